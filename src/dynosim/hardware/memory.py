"""How many KV blocks a replica has: GPU memory x memory fraction - weights - activations - runtime.

Weights are exact from the model card, sliced as tensor and expert parallelism slice them. The reserves for
activations, CUDA, libraries and NCCL buffers are the empirical constants that aiconfigurator-core 0.12.0 plans with
(its ``backends/*.py`` and ``systems/*.yaml``), so capacities agree with NVIDIA's planner. With pipeline stages every
stage must hold its layers of every block: the fullest one counts. With attention data parallelism each rank has a copy
of the attention weights and a KV cache of its own; the routed experts are spread over the GPUs of all ranks, whole or
sliced (vLLM's ``FusedMoEParallelConfig``). Left out: the weights and KV cache of draft models, LoRA adapters, and
vLLM's profiling run, which measures what is estimated here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dynosim.config import DeploymentConfig, PoolConfig
from dynosim.engines import block_size, contradictions, rules_of
from dynosim.engines.base import Memory
from dynosim.errors import InfeasibleError
from dynosim.hardware.gpus import get_gpu
from dynosim.hardware.models import ModelCard, MoE, get_model, precision_of

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


def kv_dtype(deployment: DeploymentConfig) -> str:
    """Return ``bf16`` or ``fp8``: ``auto`` follows the checkpoint."""
    if deployment.kv_cache_dtype != "auto":
        return deployment.kv_cache_dtype
    return "bf16" if deployment.quantization == "none" else "fp8"


def kv_bytes_per_token(model: ModelCard, tensor_parallel_size: int, dtype: str) -> int:
    """Return the KV bytes of one token on one GPU.

    2 (K and V) x layers x KV heads per GPU x head_dim x dtype bytes; with more GPUs than KV heads each keeps a copy of
    one head. MLA keeps the latent and the rope key, whole on every GPU (arXiv 2405.04434, section 2.1.2).
    """
    layers = model.layers - model.sliding_window_layers
    if model.mla is not None:
        return layers * (model.mla.kv_lora_rank + model.mla.rope_head_dim) * KV_DTYPE_BYTES[dtype]
    heads = -(-model.kv_heads // tensor_parallel_size)
    return layers * 2 * heads * model.head_dim * KV_DTYPE_BYTES[dtype]


def weights_bytes_per_gpu(
    model: ModelCard, tensor_parallel_size: int, quantization: str, data_parallel_size: int = 1
) -> int:
    """Return the bytes of weights on one GPU; sliced experts and whole experts (expert parallel) take the same."""
    shards = {"expert": tensor_parallel_size * data_parallel_size}
    return round(
        sum(
            weight.bytes_per_gpu(shards.get(weight.role, tensor_parallel_size), quantization)
            for weight in model.weights()
        )
    )


def activation_bytes_per_gpu(model: ModelCard, memory: Memory, pool: PoolConfig) -> int:
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


def kv_capacity(deployment: DeploymentConfig, pool: PoolConfig) -> KVCapacity:
    """Return the KV blocks of one scheduler rank of *pool*; ``num_gpu_blocks_override`` wins over the computed number.

    ``gpu_memory_utilization`` means what each engine's own argument means (``engines.base.Memory.kv_bytes``).

    Raises InfeasibleError with the sum when not even one block fits, ConfigError for unknown models and GPUs.
    """
    stages = get_model(deployment.model).stages(pool.pipeline_parallel_size)
    capacities = [_stage_capacity(deployment, pool, stage) for stage in stages]
    fullest = min(capacities, key=lambda stage: stage.blocks)
    if fullest.blocks < 1:
        raise InfeasibleError(_does_not_fit(deployment, pool, fullest))
    return replace(fullest, bytes_per_token=sum(stage.bytes_per_token for stage in capacities))


def _stage_capacity(deployment: DeploymentConfig, pool: PoolConfig, stage: ModelCard) -> KVCapacity:
    gpu, rules, tp = get_gpu(deployment.pool_gpu(pool)), rules_of(deployment.engine), pool.tensor_parallel_size
    tokens = block_size(deployment, pool)
    weights = weights_bytes_per_gpu(stage, tp, deployment.quantization, pool.data_parallel_size)
    activations = activation_bytes_per_gpu(stage, rules.memory, pool)
    runtime = round(
        rules.memory.runtime_bytes + next(size for group, size in NCCL_BYTES.items() if group >= min(tp, 8))
    )
    used = weights + activations + runtime
    budget = rules.memory.kv_bytes(gpu.memory_bytes, used, pool.gpu_memory_utilization)
    per_token = kv_bytes_per_token(stage, tp, kv_dtype(deployment))
    # A stage of sliding-window layers only keeps next to nothing per token.
    blocks = pool.num_gpu_blocks_override or int(budget // max(per_token * tokens, 1))
    blocks -= rules.null_blocks
    return KVCapacity(
        blocks, tokens, per_token * tp, gpu.memory_bytes, weights, activations, runtime, int(budget)
    )  # fmt: skip


def _does_not_fit(deployment: DeploymentConfig, pool: PoolConfig, full: KVCapacity) -> str:
    return (
        f"{get_model(deployment.model).name} does not fit on {pool.gpus_per_replica} x {deployment.pool_gpu(pool)}:"
        f" {pool.gpu_memory_utilization:g} x {_gib(full.gpu_memory_bytes)} less {_gib(full.weights_bytes_per_gpu)}"
        f" weights, {_gib(full.activation_bytes_per_gpu)} activations and {_gib(full.runtime_bytes_per_gpu)} runtime"
        f" leaves {_gib(full.kv_bytes_per_gpu)} per GPU for KV blocks"
    )


def check(deployment: DeploymentConfig) -> None:
    """Raise InfeasibleError when the engine could not start this deployment, with the reason in one line."""
    for path, message in contradictions(deployment):
        raise InfeasibleError(f"{'.'.join(path)}: {message}")
    model = get_model(deployment.model)
    if deployment.quantization != "none" and not model.fp8_checkpoint:
        raise InfeasibleError(f"{model.name} is published in its own precision only: use quantization 'none'")
    if precision_of(deployment.model) not in ("none", deployment.quantization):
        said = precision_of(deployment.model)
        raise InfeasibleError(f"{deployment.model} is a checkpoint of another precision: use quantization {said!r}")
    for role, pool in deployment.pools().items():
        try:
            _check_precision(deployment, pool)
            _check_parallelism(model, deployment, pool)
            kv_capacity(deployment, pool)
        except InfeasibleError as error:
            section = "aggregated" if role == "mixed" else f"disaggregated.{role}"
            raise InfeasibleError(f"deployment.{section}: {error}") from error


def _check_precision(deployment: DeploymentConfig, pool: PoolConfig) -> None:
    gpu = get_gpu(deployment.pool_gpu(pool))
    if "fp8" not in gpu.flops and "fp8" in (deployment.quantization, kv_dtype(deployment)):
        raise InfeasibleError(f"{gpu.name} has no FP8 tensor cores: use quantization 'none' and a bf16 KV cache")
    if "fp4" not in gpu.flops and deployment.quantization == "nvfp4":
        raise InfeasibleError(f"{gpu.name} has no FP4 tensor cores: use quantization 'fp8' or 'none'")


def _check_parallelism(model: ModelCard, deployment: DeploymentConfig, pool: PoolConfig) -> None:
    _check_links(deployment, pool)
    tp, pp = pool.tensor_parallel_size, pool.pipeline_parallel_size
    if pp > model.layers:
        raise InfeasibleError(f"pipeline_parallel_size {pp} exceeds the {model.layers} layers of {model.name}")
    for what, size in _sliced(model, tp).items():
        if size % tp:
            raise InfeasibleError(f"tensor_parallel_size {tp} does not divide the {size} {what} of {model.name}")
    if model.moe is not None:
        _check_experts(model, model.moe, deployment, pool)
    elif pool.enable_expert_parallel:
        raise InfeasibleError(f"{model.name} is dense: enable_expert_parallel has no experts to shard")
    elif pool.data_parallel_size > 1:
        raise InfeasibleError(f"{model.name} is dense: data_parallel_size has no experts to share; use more replicas")


def _check_links(deployment: DeploymentConfig, pool: PoolConfig) -> None:
    tp, gpu, topology = pool.tensor_parallel_size, get_gpu(deployment.pool_gpu(pool)), deployment.topology
    if tp > gpu.scale_up_gpus:
        raise InfeasibleError(f"tensor_parallel_size {tp} exceeds the {gpu.scale_up_gpus} GPUs that {gpu.name} links")
    if topology is not None:
        linked = topology.gpus_per_node * (topology.nodes_per_rack if topology.nvlink_domain == "rack" else 1)
        if linked > gpu.scale_up_gpus:
            raise InfeasibleError(f"topology joins {linked} x {gpu.name} by NVLink, which links {gpu.scale_up_gpus}")
    rules = rules_of(deployment.engine)
    if rules.one_gpu_per_rank and pool.data_parallel_size > 1 and tp > 1:
        raise InfeasibleError(
            f"{rules.title}'s attention data parallelism has one rank per GPU: use tensor_parallel_size 1"
        )


def _sliced(model: ModelCard, tensor_parallel_size: int) -> dict[str, int]:
    """What tensor parallelism cuts into equal slices; KV heads are copied where there are too few of them."""
    sizes, tp = {"attention heads": model.heads}, tensor_parallel_size
    if model.mla is None:
        sizes["KV heads"] = model.kv_heads if tp <= model.kv_heads else tp // model.kv_heads * model.kv_heads
    if model.moe is None or model.moe.dense_layers:
        sizes["feed-forward width"] = model.intermediate
    return sizes


def _check_experts(model: ModelCard, moe: MoE, deployment: DeploymentConfig, pool: PoolConfig) -> None:
    """The GPUs of all ranks share the experts; some engines refuse to load block-scaled FP8 ones that are sliced across
    a scale block (vLLM, which did, runs them on Triton kernels)."""
    gpus = pool.tensor_parallel_size * pool.data_parallel_size
    group = f"tensor_parallel_size {pool.tensor_parallel_size}"
    if pool.data_parallel_size > 1:
        group += f" x data_parallel_size {pool.data_parallel_size}"
    what, size = ("experts", moe.experts) if pool.enable_expert_parallel else ("expert width", moe.intermediate)
    if size % gpus:
        raise InfeasibleError(f"{group} does not divide the {size} {what} of {model.name}")
    sliced = not rules_of(deployment.engine).slices_scale_blocks and not pool.enable_expert_parallel
    blocks = model.fp8_block if deployment.quantization == "fp8" and sliced else None
    if blocks and size // gpus % blocks:
        raise InfeasibleError(
            f"{group} slices the FP8 experts of {model.name} to {size // gpus} columns, not a multiple of their"
            f" {blocks}-wide scale blocks: set enable_expert_parallel"
        )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
