"""Whether the engine of a deployment would start: precision, parallel sizes, links and memory."""

from __future__ import annotations

from dynosim.config import DeploymentConfig
from dynosim.config.deployment import SECTIONS
from dynosim.engines import contradictions
from dynosim.errors import InfeasibleError
from dynosim.hardware.acceptance import acceptance_rates, draft_cost
from dynosim.hardware.models import ModelCard, MoE, get_model, precision_of
from dynosim.hardware.plan import PoolPlan, pool_plans


def check(deployment: DeploymentConfig) -> dict[str, PoolPlan]:
    """Return role -> plan of every pool; InfeasibleError, in one line, when the engine could not start one."""
    for path, message in contradictions(deployment):
        raise InfeasibleError(f"{'.'.join(path)}: {message}")
    model, said = get_model(deployment.model), precision_of(deployment.model)
    if deployment.quantization != "none" and not model.fp8_checkpoint:
        raise InfeasibleError(f"{model.name} is published in its own precision only: use quantization 'none'")
    if said not in ("none", deployment.quantization):
        raise InfeasibleError(f"{deployment.model} is a checkpoint of another precision: use quantization {said!r}")
    plans = pool_plans(deployment)
    if deployment.engine.speculative is not None:  # both raise where neither the configuration nor a measurement says
        _ = draft_cost(deployment.engine.speculative, model), acceptance_rates(deployment.engine.speculative, model)
    for role, plan in plans.items():
        try:
            _check_precision(plan)
            _check_parallelism(plan)
            _check_pages(plan)
            _ = plan.capacity  # raises where nothing fits
        except InfeasibleError as error:
            raise InfeasibleError(f"{SECTIONS[role]}: {error}") from error
    return plans


def _check_precision(plan: PoolPlan) -> None:
    gpu, quantization = plan.gpu, plan.deployment.quantization
    if "fp8" not in gpu.flops and "fp8" in (quantization, plan.kv_dtype):
        raise InfeasibleError(f"{gpu.name} has no FP8 tensor cores: use quantization 'none' and a bf16 KV cache")
    if "fp4" not in gpu.flops and quantization == "nvfp4":
        raise InfeasibleError(f"{gpu.name} has no FP4 tensor cores: use quantization 'fp8' or 'none'")


def _check_parallelism(plan: PoolPlan) -> None:
    _check_links(plan)
    model, pool = plan.model, plan.config
    tp, pp = pool.tensor_parallel_size, pool.pipeline_parallel_size
    if pp > model.layers:
        raise InfeasibleError(f"pipeline_parallel_size {pp} exceeds the {model.layers} layers of {model.name}")
    for what, size in _sliced(model, tp).items():
        if size % tp:
            raise InfeasibleError(f"tensor_parallel_size {tp} does not divide the {size} {what} of {model.name}")
    if model.moe is not None:
        _check_experts(plan, model.moe)
    elif pool.enable_expert_parallel:
        raise InfeasibleError(f"{model.name} is dense: enable_expert_parallel has no experts to shard")
    elif pool.data_parallel_size > 1:
        raise InfeasibleError(f"{model.name} is dense: data_parallel_size has no experts to share; use more replicas")


def _check_pages(plan: PoolPlan) -> None:
    budget, block = plan.config.max_num_batched_tokens, plan.config.block_size
    if plan.rules.whole_pages and block > budget:
        raise InfeasibleError(
            f"max_num_batched_tokens ({budget}) must be at least block_size ({block}):"
            f" {plan.rules.title} prefills whole pages"
        )


def _check_links(plan: PoolPlan) -> None:
    tp, gpu, topology = plan.config.tensor_parallel_size, plan.gpu, plan.deployment.topology
    if tp > gpu.scale_up_gpus and tp % gpu.scale_up_gpus:
        raise InfeasibleError(
            f"tensor_parallel_size {tp} exceeds the {gpu.scale_up_gpus} GPUs that {gpu.name} links,"
            f" and is no multiple of them"
        )
    if topology is not None:
        linked = topology.gpus_per_node * (topology.nodes_per_rack if topology.nvlink_domain == "rack" else 1)
        if linked > gpu.scale_up_gpus:
            raise InfeasibleError(f"topology joins {linked} x {gpu.name} by NVLink, which links {gpu.scale_up_gpus}")
    if plan.rules.one_gpu_per_rank and plan.config.data_parallel_size > 1 and tp > 1:
        raise InfeasibleError(
            f"{plan.rules.title}'s attention data parallelism has one rank per GPU: use tensor_parallel_size 1"
        )


def _sliced(model: ModelCard, tensor_parallel_size: int) -> dict[str, int]:
    """What tensor parallelism cuts into equal slices; KV heads are copied where there are too few of them."""
    sizes, tp = {"attention heads": model.heads}, tensor_parallel_size
    if model.mla is None:
        sizes["KV heads"] = model.kv_heads if tp <= model.kv_heads else tp // model.kv_heads * model.kv_heads
    if model.moe is None or model.moe.dense_layers:
        sizes["feed-forward width"] = model.intermediate
    return sizes


def _check_experts(plan: PoolPlan, moe: MoE) -> None:
    """The GPUs of all ranks share the experts; some engines refuse to load block-scaled FP8 ones that are sliced across
    a scale block (vLLM, which did, runs them on Triton kernels)."""
    model, pool = plan.model, plan.config
    gpus = pool.tensor_parallel_size * pool.data_parallel_size
    group = f"tensor_parallel_size {pool.tensor_parallel_size}"
    if pool.data_parallel_size > 1:
        group += f" x data_parallel_size {pool.data_parallel_size}"
    if pool.enable_expert_parallel:
        return  # experts that the GPUs do not divide are there twice, so that all have as many
    size = moe.intermediate
    if size % gpus:
        raise InfeasibleError(f"{group} does not divide the {size} expert width of {model.name}")
    sliced = plan.deployment.quantization == "fp8" and not plan.rules.slices_scale_blocks
    blocks = model.fp8_block if sliced else None
    if blocks and size // gpus % blocks:
        raise InfeasibleError(
            f"{group} slices the FP8 experts of {model.name} to {size // gpus} columns, not a multiple of their"
            f" {blocks}-wide scale blocks: set enable_expert_parallel"
        )
