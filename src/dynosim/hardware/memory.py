"""What stands in the memory of one GPU: weights, KV cache, activations, buffers.

Weights are exact from the model card, sliced as tensor and expert parallelism slice them. Activations are those of the
pass that an engine tries out when it starts, from the widths of one layer; what it keeps resident is its own
(``engines.base.Memory``). With attention data parallelism each rank has a copy of the attention weights and a KV cache
of its own; the routed experts are spread over the GPUs of all ranks, whole or sliced (vLLM's
``FusedMoEParallelConfig``). Left out: draft models of their own, and LoRA adapters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dynosim.config import StartedPool
from dynosim.engines.base import Memory
from dynosim.hardware.models import ModelCard

KV_DTYPE_BYTES = {"bf16": 2, "fp8": 1}

EXPERT_CHUNK_TOKENS = 16384
"""Tokens that vLLM's experts compute at once (``VLLM_FUSED_MOE_CHUNK_SIZE``)."""
FOUR_BIT_TILE = (256, 128)
"""Kernels of 4-bit experts (Marlin, Triton) pad the model's width and each GPU's expert width to multiples of these."""


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
    kept = 0.0 if model.linear_attention else window_share
    layers = model.layers - (1.0 - kept) * model.sliding_window_layers
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
    padding = {"expert": _expert_padding(model, 1 if expert_parallel else tensor_parallel_size * data_parallel_size)}
    return round(
        sum(
            weight.bytes_per_gpu(shards.get(weight.role, tensor_parallel_size), quantization)
            * padding.get(weight.role, 1.0)
            for weight in model.weights()
        )
    )


def _expert_padding(model: ModelCard, slices: int) -> float:
    """Return how much larger 4-bit experts are in memory than in the checkpoint."""
    if model.moe is None or model.moe.native_bytes >= 1:
        return 1.0
    widths = (model.hidden, model.moe.intermediate / slices)
    return math.prod(math.ceil(width / tile) * tile / width for width, tile in zip(widths, FOUR_BIT_TILE, strict=True))


def activation_bytes_per_gpu(model: ModelCard, memory: Memory, pool: StartedPool) -> int:
    """Return what the pass that an engine tries out takes on one GPU: ``max_num_batched_tokens`` tokens, and the
    sampling of ``max_num_seqs`` requests.

    In a layer live the residual, its input, and the widest of what it computes (two projections and their product, or
    queries, keys and values with the output), in bf16; while sampling, three copies of the hidden states and all
    logits. What experts work in stays allocated.
    """
    tokens, tp = pool.max_num_batched_tokens, pool.tensor_parallel_size
    attention = 2 * (model.heads + model.kv_heads) * model.head_dim
    layer = 2 * tokens * (2 * model.hidden + max(3 * model.dense_intermediate, attention) / tp)
    logits = min(pool.max_num_seqs, tokens) * model.vocabulary * model.predicts
    sampling = memory.logit_bytes * logits + 6 * tokens * model.hidden
    return round(max(layer, sampling) + _expert_buffer_bytes(model, pool))


def _expert_buffer_bytes(model: ModelCard, pool: StartedPool) -> float:
    """Return the two buffers that the experts of a layer write into in turn; kernels of 4-bit experts keep none."""
    if model.moe is None or model.moe.native_bytes < 1:
        return 0.0
    moe, ranks = model.moe, pool.data_parallel_size
    slices = 1 if pool.enable_expert_parallel else pool.tensor_parallel_size * ranks
    tokens, width = min(pool.max_num_batched_tokens * ranks, EXPERT_CHUNK_TOKENS), moe.intermediate / slices
    return 2 * tokens * moe.top_k * (max(width, model.hidden) + max(2 * width, model.hidden))
