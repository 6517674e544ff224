"""What stands in the memory of one GPU: weights, KV cache, activations, communication buffers.

Weights are exact from the model card, sliced as tensor and expert parallelism slice them. The reserves for
activations, CUDA, libraries and NCCL buffers are the empirical constants that aiconfigurator-core 0.12.0 plans with
(its ``backends/*.py`` and ``systems/*.yaml``), so capacities agree with NVIDIA's planner. With attention data
parallelism each rank has a copy of the attention weights and a KV cache of its own; the routed experts are spread over
the GPUs of all ranks, whole or sliced (vLLM's ``FusedMoEParallelConfig``). Left out: the weights and KV cache of draft
models, and LoRA adapters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dynosim.config import StartedPool
from dynosim.engines.base import Memory
from dynosim.hardware.models import ModelCard

KV_DTYPE_BYTES = {"bf16": 2, "fp8": 1}

NCCL_BYTES = {1: 0, 2: 342 * 2**20, 4: 392 * 2**20, 8: 392 * 2**20}


@dataclass(frozen=True)
class KVCapacity:
    """The KV cache of one scheduler rank and what stands beside it in the memory of its fullest GPUs."""

    blocks: int
    block_size: int
    """Tokens per block."""
    bytes_per_token: int
    """On all GPUs of the rank, all stages together; heads or latents that several GPUs hold count once per copy."""
    gpu_memory_bytes: int
    weights_bytes_per_gpu: int
    activation_bytes_per_gpu: int
    runtime_bytes_per_gpu: int
    """CUDA context, libraries and communication buffers."""
    kv_bytes_per_gpu: int
    """Memory left for KV blocks."""

    @property
    def tokens(self) -> int:
        """Tokens that the blocks hold."""
        return self.blocks * self.block_size


def kv_bytes_per_token(model: ModelCard, tensor_parallel_size: int, dtype: str, window_share: float = 0.0) -> int:
    """Return the KV bytes of one token on one GPU; of layers with a sliding window *window_share* of it.

    2 (K and V) x layers x KV heads per GPU x head_dim x dtype bytes; with more GPUs than KV heads each keeps a copy of
    one head. MLA keeps the latent and the rope key, whole on every GPU (arXiv 2405.04434, section 2.1.2).
    """
    layers = model.layers - (1.0 - window_share) * model.sliding_window_layers
    if model.mla is not None:
        return round(layers * (model.mla.kv_lora_rank + model.mla.rope_head_dim) * KV_DTYPE_BYTES[dtype])
    heads = -(-model.kv_heads // tensor_parallel_size)
    return round(layers * 2 * heads * model.head_dim * KV_DTYPE_BYTES[dtype])


def weights_bytes_per_gpu(
    model: ModelCard,
    tensor_parallel_size: int,
    quantization: str,
    data_parallel_size: int = 1,
    expert_parallel: bool = False,
) -> int:
    """Return the bytes of weights on one GPU; sliced experts and whole ones (expert parallel) take the same.

    But whole ones that the GPUs do not divide are there more than once: 256 on 48 GPUs take 288 slots, 6 on each.
    """
    gpus: float = tensor_parallel_size * data_parallel_size
    if expert_parallel and model.moe is not None:
        gpus = model.moe.experts / math.ceil(model.moe.experts / gpus)
    shards = {"expert": gpus}
    return round(
        sum(
            weight.bytes_per_gpu(shards.get(weight.role, tensor_parallel_size), quantization)
            for weight in model.weights()
        )
    )


def activation_bytes_per_gpu(model: ModelCard, memory: Memory, pool: StartedPool) -> int:
    """Return the peak activations of a pass of ``max_num_batched_tokens`` tokens of every rank on one GPU.

    The block-scaled dispatch workspace of DeepSeek's experts is tokens of all ranks x hidden x experts x top_k / EP /
    128 x 4 bytes.
    """
    group = min(pool.tensor_parallel_size, 8)
    coefficient = next(value for size, value in memory.activation_coefficients.items() if size >= group)
    width = model.hidden if model.mla else model.heads * model.head_dim
    tokens = pool.max_num_batched_tokens
    activations = 2 * tokens * width * coefficient * (2 if model.moe else 1)
    if model.mla and model.moe:
        ranks = pool.data_parallel_size
        expert_parallel = pool.tensor_parallel_size * ranks if pool.enable_expert_parallel else 1
        activations += ranks * tokens * model.hidden * model.moe.experts * model.moe.top_k / expert_parallel / 32
    return round(max(activations, memory.min_activation_bytes))


def communication_bytes(tensor_parallel_size: int) -> int:
    """Return the NCCL buffers of one GPU."""
    return next(size for group, size in NCCL_BYTES.items() if group >= min(tensor_parallel_size, 8))
