"""How a real server is started like a simulated deployment: one command per pool, in each engine's own flags.

Flag names are those of vLLM 0.24, SGLang 0.5.14 and TensorRT-LLM 1.3; where the simulator has a knob that a server has
no flag for, the script says so in a comment. Left out: hosts and ports, and the router in front of the replicas.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from dynosim.config import DeploymentConfig, EngineConfig, PoolConfig, Scenario
from dynosim.config.deployment import TopologyConfig
from dynosim.hardware.memory import kv_dtype
from dynosim.hardware.models import get_model, precision_of

Flags = dict[str, Any]
"""Flag without dashes -> value; True is a bare flag, None and False are left out."""

MTP = ("deepseek-v3", "deepseek-v3.2", "glm-5")
"""Models whose checkpoint has layers for multi-token prediction."""

MULTI_NODE = {
    "vllm": "start it on every node, with --data-parallel-size-local and --data-parallel-address (or --nnodes, Ray)",
    "sglang": "start it on every node, with --nnodes, --node-rank and --dist-init-addr",
    "trtllm": "start it under mpirun or srun, through trtllm-llmapi-launch",
}


def launch_script(scenario: Scenario) -> str:
    """Return a shell script with the command that starts one replica, for every pool of *scenario*."""
    deployment = scenario.deployment
    lines = ["#!/bin/sh", f"# {scenario.name or 'dynosim'}: {deployment.label()} of {deployment.model}, simulated"]
    for role, pool in deployment.pools().items():
        lines += ["", *_comments(deployment, role, pool), _command(deployment, role, pool)]
    return "\n".join(lines) + "\n"


def _comments(deployment: DeploymentConfig, role: str, pool: PoolConfig) -> list[str]:
    """Return what no flag says: how many replicas, on what, behind what."""
    scaler, gpus = pool.autoscaler, pool.gpus_per_replica
    count = f"{pool.replicas} x" if scaler is None else f"{scaler.min_replicas} to {scaler.max_replicas} x"
    out = [f"# {role}: {count} this, each on {gpus} x {deployment.pool_gpu(pool)}"]
    router = deployment.role_router(role)
    out.append(f"# router: {router.policy} {json.dumps(router.options)}")
    if scaler is not None:
        said = json.dumps(scaler.model_dump(exclude_defaults=True, exclude={"min_replicas", "max_replicas"}))
        out.append(f"# autoscaler: {scaler.policy} {said}")
    if gpus > (node := (deployment.topology or TopologyConfig()).gpus_per_node):
        out.append(f"# multi-node: {gpus} GPUs, {node} in a node: {MULTI_NODE[deployment.engine.name]}")
    if deployment.engine.speculative and not _drafts(deployment):
        drafts = deployment.engine.speculative.num_speculative_tokens
        out.append(
            f"# {drafts} draft tokens: {deployment.model} has no MTP layer: choose a draft model or n-gram method"
        )
    if deployment.quantization == "nvfp4" and precision_of(checkpoint(deployment)) != "nvfp4":
        out.append(
            f"# no NVFP4 checkpoint of {deployment.model} is known here: quantise {checkpoint(deployment)} first"
        )
    out += [f"# no flag for {name}: {value}" for name, value in _without_flag(deployment, role, pool).items()]
    return out


def _drafts(deployment: DeploymentConfig) -> int | None:
    """Return the draft tokens that the model makes itself; None where it does not."""
    speculative = deployment.engine.speculative
    has_mtp = get_model(deployment.model).name in MTP
    return speculative.num_speculative_tokens if speculative and has_mtp else None


def _without_flag(deployment: DeploymentConfig, role: str, pool: PoolConfig) -> dict[str, Any]:
    """Return the settings that the engine has no flag for, where they differ from what it does by itself."""
    engine, tiers = deployment.engine.name, pool.kv_offload
    policies = {"vllm": ("fcfs", "priority"), "sglang": ("fcfs", "longest_prefix", "priority"), "trtllm": ("fcfs",)}
    disk, remote = (tier and f"{tier.size_gib:g} GiB" for tier in (tiers.disk, tiers.remote))
    local = deployment.disaggregated.local_prefill if deployment.disaggregated and role == "decode" else None
    found = {
        "local_prefill": local and json.dumps(local.model_dump()),
        "scheduling_options": json.dumps(pool.scheduling_options) if pool.scheduling_options else None,
        "scheduler_reserve_full_isl": None if engine == "vllm" or pool.scheduler_reserve_full_isl else False,
        "scheduling_policy": None if pool.scheduling_policy in policies[engine] else pool.scheduling_policy,
        "num_gpu_blocks_override": None if engine == "vllm" else pool.num_gpu_blocks_override,
        "enable_chunked_prefill": False if engine == "sglang" and not pool.enable_chunked_prefill else None,
        "kv_offload.offload_prompt_only": None if engine == "vllm" else tiers.offload_prompt_only,
        "kv_offload.disk": disk if engine != "sglang" else None,
        "cudagraph_mode": _graphs_without_flag(deployment.engine),
        "max_cudagraph_capture_size": None
        if engine == "vllm"
        else _unless_default(deployment.engine, "max_cudagraph_capture_size"),
        "kv_offload.remote": remote if engine != "sglang" or disk else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _graphs_without_flag(engine: EngineConfig) -> str | None:
    mode = engine.cudagraph_mode
    return mode if engine.name == "trtllm" and mode not in (None, "NONE") else None


def _command(deployment: DeploymentConfig, role: str, pool: PoolConfig) -> str:
    return _ENGINES[deployment.engine.name](deployment, role, pool, checkpoint(deployment))


def checkpoint(deployment: DeploymentConfig) -> str:
    """Return the checkpoint on the Hugging Face Hub, an instruction-tuned and published FP8 one where there is one."""
    if "/" in deployment.model:
        return deployment.model
    known = [name for name in get_model(deployment.model).aliases if "/" in name]
    known = [name for name in known if precision_of(name) == deployment.quantization] or known
    return next((name for name in known if "Instruct" in name), known[0])


def _quantises(deployment: DeploymentConfig) -> bool:
    """Return whether the server has to quantise the checkpoint itself."""
    published = checkpoint(deployment).endswith("-FP8") or get_model(deployment.model).fp8_block is not None
    return deployment.quantization == "fp8" and not published


def _join(words: list[str], flags: Mapping[str, Any]) -> str:
    """Return a command with one flag per line."""
    said = [(name, value) for name, value in flags.items() if value is not None and value is not False]
    lines = [shlex.join(words)]
    lines += [f"--{name}" if value is True else f"--{name} {shlex.quote(str(value))}" for name, value in said]
    return " \\\n  ".join(lines)


def _vllm(deployment: DeploymentConfig, role: str, pool: PoolConfig, model: str) -> str:
    host, own, draft_tokens = pool.kv_offload.host, pool.kv_offload.offload_prompt_only, _drafts(deployment)
    connector = {"kv_connector": "NixlConnector", "kv_role": "kv_both"} if role != "mixed" else None
    drafts = draft_tokens and {"method": "mtp", "num_speculative_tokens": draft_tokens}
    flags: Flags = {
        "tensor-parallel-size": pool.tensor_parallel_size,
        "pipeline-parallel-size": pool.pipeline_parallel_size if pool.pipeline_parallel_size > 1 else None,
        "data-parallel-size": pool.data_parallel_size if pool.data_parallel_size > 1 else None,
        "enable-expert-parallel": pool.enable_expert_parallel,
        "max-num-seqs": pool.max_num_seqs,
        "max-num-batched-tokens": pool.max_num_batched_tokens,
        "enable-chunked-prefill" if pool.enable_chunked_prefill else "no-enable-chunked-prefill": True,
        "enable-prefix-caching" if pool.enable_prefix_caching else "no-enable-prefix-caching": True,
        "block-size": deployment.block_size(pool),
        "gpu-memory-utilization": pool.gpu_memory_utilization,
        "num-gpu-blocks-override": pool.num_gpu_blocks_override,
        "scheduling-policy": "priority" if pool.scheduling_policy == "priority" else None,
        "scheduler-reserve-full-isl" if pool.scheduler_reserve_full_isl else "no-scheduler-reserve-full-isl": True,
        "long-prefill-token-threshold": pool.long_prefill_token_threshold or None,
        "long-prefill-token-threshold-adaptive": pool.long_prefill_token_threshold_adaptive,
        "max-num-active-seqs": pool.max_num_active_seqs,
        "watermark": pool.watermark or None,
        "quantization": "fp8" if _quantises(deployment) else None,
        "kv-cache-dtype": "fp8" if kv_dtype(deployment) == "fp8" else None,
        "kv-offloading-size": host and f"{host.size_gib:g}",
        "kv-offloading-backend": host and "native",
        "kv-transfer-config.kv_connector_extra_config.offload_prompt_only": "false" if host and own is False else None,
        "speculative-config": drafts and json.dumps(drafts),
        "kv-transfer-config": connector and json.dumps(connector),
        **_vllm_engine_flags(deployment.engine),
    }
    return _join(["vllm", "serve", model], flags)


def _vllm_engine_flags(engine: EngineConfig) -> Flags:
    said = {"cudagraph_mode": engine.cudagraph_mode} if engine.cudagraph_mode else None
    return {
        "async-scheduling": engine.async_scheduling is True,
        "no-async-scheduling": engine.async_scheduling is False,
        "compilation-config": said and json.dumps(said),
        "max-cudagraph-capture-size": _unless_default(engine, "max_cudagraph_capture_size"),
        "attention-backend": _unless_default(engine, "attention_backend"),
        "attention-config.use_trtllm_attention": 0 if engine.attention_backend == "FLASHINFER" else None,
    }


def _unless_default(engine: EngineConfig, name: str) -> Any:
    value = getattr(engine, name)
    return None if value == EngineConfig.model_fields[name].default else value


def _sglang(deployment: DeploymentConfig, role: str, pool: PoolConfig, model: str) -> str:
    engine, tiers, ranks = deployment.engine, pool.kv_offload, pool.data_parallel_size
    drafts = _drafts(deployment)
    group = pool.tensor_parallel_size * ranks  # SGLang's tp-size counts the GPUs of all attention ranks
    flags: Flags = {
        "tp-size": group,
        "pp-size": pool.pipeline_parallel_size if pool.pipeline_parallel_size > 1 else None,
        "dp-size": ranks if ranks > 1 else None,
        "enable-dp-attention": ranks > 1,
        "ep-size": group if pool.enable_expert_parallel else None,
        "max-running-requests": pool.max_num_seqs * ranks,
        "chunked-prefill-size": pool.max_num_batched_tokens * ranks if pool.enable_chunked_prefill else -1,
        "max-prefill-tokens": engine.max_prefill_tokens,
        "schedule-policy": "lpm" if pool.scheduling_policy == "longest_prefix" else "fcfs",
        "enable-priority-scheduling": pool.scheduling_policy == "priority",
        "schedule-conservativeness": engine.schedule_conservativeness,
        "enable-mixed-chunk": engine.enable_mixed_chunk,
        "disable-radix-cache": not pool.enable_prefix_caching,
        "page-size": deployment.block_size(pool),
        "mem-fraction-static": pool.gpu_memory_utilization,
        "quantization": "fp8" if _quantises(deployment) else None,
        "kv-cache-dtype": "fp8_e4m3" if kv_dtype(deployment) == "fp8" else None,
        "enable-hierarchical-cache": tiers.host is not None,
        "hicache-size": tiers.host and f"{tiers.host.size_gib * 1.073741824 / pool.gpus_per_replica:.0f}",
        "hicache-storage-backend": "file" if tiers.disk else "mooncake" if tiers.remote else None,
        "speculative-algorithm": drafts and "EAGLE",
        "speculative-num-steps": drafts,
        "speculative-eagle-topk": drafts and 1,
        "speculative-num-draft-tokens": drafts and drafts + 1,
        "disaggregation-mode": role if role != "mixed" else None,
        "disaggregation-transfer-backend": "nixl" if role != "mixed" else None,
        "scheduler-recv-interval": _unless_default(engine, "scheduler_recv_interval"),
        "disable-overlap-schedule": engine.async_scheduling is False,
        "disable-cuda-graph": engine.cudagraph_mode == "NONE",
        "disable-piecewise-cuda-graph": engine.cudagraph_mode == "FULL_DECODE_ONLY",
        "enable-piecewise-cuda-graph": engine.cudagraph_mode == "FULL_AND_PIECEWISE",
    }
    return _join(["python", "-m", "sglang.launch_server", "--model-path", model], flags)


def _trtllm(deployment: DeploymentConfig, role: str, pool: PoolConfig, model: str) -> str:
    """TensorRT-LLM takes most settings from a YAML file, which the script writes first."""
    engine, ranks, host = deployment.engine, pool.data_parallel_size, pool.kv_offload.host
    group = pool.tensor_parallel_size * ranks
    cache = {
        "enable_block_reuse": pool.enable_prefix_caching,
        "tokens_per_block": deployment.block_size(pool),
        "free_gpu_memory_fraction": pool.gpu_memory_utilization,
        "dtype": "fp8" if kv_dtype(deployment) == "fp8" else "auto",
        **({"host_cache_size": int(host.size_gib * 2**30 / pool.gpus_per_replica)} if host else {}),
    }
    options: dict[str, Any] = {
        "enable_chunked_prefill": pool.enable_chunked_prefill,
        "enable_attention_dp": ranks > 1,
        "kv_cache_config": cache,
        "scheduler_config": {"capacity_scheduler_policy": engine.capacity_scheduler_policy},
    }
    if engine.async_scheduling is False:
        options["disable_overlap_scheduler"] = True
    if engine.cudagraph_mode == "NONE":
        options["cuda_graph_config"] = None
    if engine.batch_wait_timeout_iters:
        options["batch_wait_timeout_iters"] = engine.batch_wait_timeout_iters
        options["batch_wait_max_tokens_ratio"] = engine.batch_wait_max_tokens_ratio
    if _quantises(deployment):
        options["quant_config"] = {"quant_algo": "FP8"}
    if drafts := _drafts(deployment):
        options["speculative_config"] = {"decoding_type": "MTP", "max_draft_len": drafts}
    if role != "mixed":
        options["cache_transceiver_config"] = {"backend": "DEFAULT"}
    flags: Flags = {
        "backend": "pytorch",
        "tp_size": group,
        "pp_size": pool.pipeline_parallel_size if pool.pipeline_parallel_size > 1 else None,
        "ep_size": group if pool.enable_expert_parallel else None,
        "max_batch_size": pool.max_num_seqs,
        "max_num_tokens": pool.max_num_batched_tokens,
        "extra_llm_api_options": f"{role}.yaml",
    }
    text = yaml.safe_dump(options, sort_keys=False)
    return f"cat > {role}.yaml <<'EOF'\n{text}EOF\n" + _join(["trtllm-serve", model], flags)


_ENGINES: dict[str, Callable[[DeploymentConfig, str, PoolConfig, str], str]] = {
    "vllm": _vllm,
    "sglang": _sglang,
    "trtllm": _trtllm,
}
