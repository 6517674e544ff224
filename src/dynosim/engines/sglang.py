"""SGLang: rules and flags of 0.5.14 (``sglang.launch_server``), limits and page sizes of 0.5.23."""

from __future__ import annotations

from typing import Any

from dynosim.engines.base import (
    Behaviour,
    EngineRules,
    Flags,
    Launch,
    Limits,
    Memory,
    NewTokenRatio,
    gib,
    share_of_all,
    shell,
)


def _command(launch: Launch) -> str:
    engine, pool, tiers, drafts = launch.engine, launch.pool, launch.pool.kv_offload, launch.draft_tokens
    ranks = pool.data_parallel_size
    group = pool.tensor_parallel_size * ranks  # tp-size counts the GPUs of all attention ranks
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
        "page-size": launch.block_size,
        "mem-fraction-static": pool.gpu_memory_utilization,
        "quantization": "fp8" if launch.quantises else None,
        "kv-cache-dtype": "fp8_e4m3" if launch.fp8_cache else None,
        "enable-hierarchical-cache": tiers.host is not None,
        "hicache-size": tiers.host and f"{tiers.host.size_gib * 1.073741824 / pool.gpus_per_replica:.0f}",
        "hicache-storage-backend": "file" if tiers.disk else "mooncake" if tiers.remote else None,
        "speculative-algorithm": drafts and "EAGLE",
        "speculative-num-steps": drafts,
        "speculative-eagle-topk": drafts and 1,
        "speculative-num-draft-tokens": drafts and drafts + 1,
        "disaggregation-mode": launch.role if launch.role != "mixed" else None,
        "disaggregation-transfer-backend": "nixl" if launch.role != "mixed" else None,
        "scheduler-recv-interval": launch.said("scheduler_recv_interval"),
        "disable-overlap-schedule": engine.async_scheduling is False,
        "disable-cuda-graph": engine.cudagraph_mode == "NONE",
        "disable-piecewise-cuda-graph": engine.cudagraph_mode == "FULL_DECODE_ONLY",
        "enable-piecewise-cuda-graph": engine.cudagraph_mode == "FULL_AND_PIECEWISE",
    }
    return shell(["python", "-m", "sglang.launch_server", "--model-path", launch.checkpoint], flags)


def _without_flag(launch: Launch) -> dict[str, Any]:
    pool, policies = launch.pool, ("fcfs", "longest_prefix", "priority")
    return {
        "scheduler_reserve_full_isl": None if pool.scheduler_reserve_full_isl else False,
        "scheduling_policy": None if pool.scheduling_policy in policies else pool.scheduling_policy,
        "num_gpu_blocks_override": pool.num_gpu_blocks_override,
        "enable_chunked_prefill": None if pool.enable_chunked_prefill else False,
        "kv_offload.offload_prompt_only": pool.kv_offload.offload_prompt_only,
        "max_cudagraph_capture_size": launch.said("max_cudagraph_capture_size"),
        "kv_offload.remote": gib(pool.kv_offload.remote) if pool.kv_offload.disk else None,
    }


VERSIONS = {
    "current": EngineRules(
        title="SGLang",
        settings=(
            "ignore_eos", "schedule_conservativeness", "enable_mixed_chunk", "max_prefill_tokens",
            "scheduler_recv_interval",
        ),
        # Chunks: ``handle_gpu_memory_settings`` of ``arg_groups/memory_hook.py``; requests: the least that
        # ``kv_cache_configurator.py`` takes where the KV cache has room for them.
        limits=(Limits(160, 2048, 16384), Limits(60, 2048, 8192), Limits(20, 2048, 4096), Limits(0, 2048, 2048)),
        block_size=1,
        # ``arg_groups/overrides.py``.
        backend_block_sizes={"flashmla": 64, "trtllm_mla": 64, "trtllm_mha": 64, "fa4": 128},
        whole_pages=True,
        memory=Memory(
            activation_coefficients={1: 16.1, 2: 9.775, 4: 7.475, 8: 7.475},
            min_activation_bytes=103.5 * 2**20,
            runtime_bytes=4.2 * 2**30,
            kv_bytes=share_of_all,
        ),
        slices_scale_blocks=False,
        behaviour=Behaviour(
            overlap=True, piecewise=False, launch_us=850.0, pass_us=400.0, request_us=20.0, frontend_ms=6.0,
            serial_us=1000.0, prefill_slowdown=1.0, moe_launches=1.5, mla_launches=1.5,
        ),
        scheduler="prompts_first",
        # ``SGLANG_INIT_NEW_TOKEN_RATIO``, ``SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR``, ``..._NEW_TOKEN_RATIO_DECAY_STEPS``.
        new_token_ratio=NewTokenRatio(first=0.7, least=0.14, steps=600),
        first_token="transfer",
        destination_first=True,
        command=_command,
        without_flag=_without_flag,
        multi_node="start it on every node, with --nnodes, --node-rank and --dist-init-addr",
    )
}  # fmt: skip
