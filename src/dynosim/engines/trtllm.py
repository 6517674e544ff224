"""TensorRT-LLM's PyTorch backend: rules and flags of 1.3 (``trtllm-serve``)."""

from __future__ import annotations

from typing import Any

import yaml

from dynosim.engines.base import (
    Behaviour,
    EngineRules,
    Flags,
    Graphs,
    Kernels,
    Launch,
    Limits,
    Memory,
    Server,
    gib,
    share_of_free,
    shell,
)


def _command(launch: Launch) -> str:
    """Most settings are in a YAML file, which the script writes first."""
    pool, role, ranks = launch.pool, launch.role, launch.pool.data_parallel_size
    group = pool.tensor_parallel_size * ranks
    flags: Flags = {
        "backend": "pytorch",
        "tp_size": group,
        "pp_size": pool.pipeline_parallel_size if pool.pipeline_parallel_size > 1 else None,
        "ep_size": group if pool.enable_expert_parallel else None,
        "max_batch_size": pool.max_num_seqs,
        "max_num_tokens": pool.max_num_batched_tokens,
        "extra_llm_api_options": f"{role}.yaml",
    }
    text = yaml.safe_dump(_options(launch), sort_keys=False)
    return f"cat > {role}.yaml <<'EOF'\n{text}EOF\n" + shell(["trtllm-serve", launch.checkpoint], flags)


def _options(launch: Launch) -> dict[str, Any]:
    engine, pool, host = launch.engine, launch.pool, launch.pool.kv_offload.host
    cache = {
        "enable_block_reuse": pool.enable_prefix_caching,
        "tokens_per_block": pool.block_size,
        "free_gpu_memory_fraction": pool.gpu_memory_utilization,
        "dtype": "fp8" if launch.fp8_cache else "auto",
        **({"host_cache_size": int(host.size_gib * 2**30 / pool.gpus_per_replica)} if host else {}),
    }
    options: dict[str, Any] = {
        "enable_chunked_prefill": pool.enable_chunked_prefill,
        "enable_attention_dp": pool.data_parallel_size > 1,
        "kv_cache_config": cache,
        "scheduler_config": {"capacity_scheduler_policy": engine.capacity_scheduler_policy},
    }
    if engine.async_scheduling is False:
        options["disable_overlap_scheduler"] = True
    if engine.cudagraph_mode == "NONE":
        options["cuda_graph_config"] = None
    elif engine.max_cudagraph_capture_size:
        options["cuda_graph_config"] = {"enable_padding": True, "max_batch_size": engine.max_cudagraph_capture_size}
    if engine.batch_wait_timeout_iters:
        options["batch_wait_timeout_iters"] = engine.batch_wait_timeout_iters
        options["batch_wait_max_tokens_ratio"] = engine.batch_wait_max_tokens_ratio
    if engine.attention_dp_enable_balance:
        options["attention_dp_config"] = {
            "enable_balance": True,
            "timeout_iters": engine.attention_dp_timeout_iters,
            "batching_wait_iters": engine.attention_dp_batching_wait_iters,
        }
    if launch.trtllm_gen:
        options["moe_config"] = {"backend": "TRTLLM"}
    if launch.quantises:
        options["quant_config"] = {"quant_algo": "FP8"}
    if launch.draft_tokens:
        options["speculative_config"] = {"decoding_type": "MTP", "max_draft_len": launch.draft_tokens}
    if launch.role != "mixed":
        options["cache_transceiver_config"] = {"backend": "DEFAULT"}
    return options


def _without_flag(launch: Launch) -> dict[str, Any]:
    pool, tiers, graphs = launch.pool, launch.pool.kv_offload, launch.engine.cudagraph_mode
    return {
        "scheduler_reserve_full_isl": None if pool.scheduler_reserve_full_isl else False,
        "scheduling_policy": None if pool.scheduling_policy == "fcfs" else pool.scheduling_policy,
        "num_gpu_blocks_override": pool.num_gpu_blocks_override,
        "kv_offload.offload_prompt_only": tiers.offload_prompt_only,
        "kv_offload.disk": gib(tiers.disk),
        "cudagraph_mode": None if graphs == "NONE" else graphs,
        "kv_offload.remote": gib(tiers.remote),
    }


def _graphs(rules: EngineRules, server: Server) -> Graphs:
    """``CudaGraphConfig`` of ``llmapi/llm_args.py``: without a size that is asked for nothing is padded."""
    engine, seqs = server.engine, server.pool.max_num_seqs or 0
    if engine.cudagraph_mode == "NONE":
        return Graphs()
    largest = engine.max_cudagraph_capture_size
    if largest is None:
        return Graphs(tuple(size for size in (*range(1, 33), 64, 128) if size <= seqs), padded=False)
    sizes = {1, 2, 4, *range(8, 129, 8), *(2**power for power in range(8, largest.bit_length())), largest}
    mixed = largest if engine.cudagraph_mode == "FULL_AND_PIECEWISE" else 0
    return Graphs(tuple(sorted({min(size, seqs) for size in sizes if size <= largest})), mixed_tokens=mixed)


VERSIONS = (
    EngineRules(
        title="TensorRT-LLM",
        version="1.0",
        until="1.4",
        as_of="2026-11",
        settings=(
            "capacity_scheduler_policy", "batch_wait_timeout_iters", "batch_wait_max_tokens_ratio",
            "attention_dp_enable_balance", "attention_dp_timeout_iters", "attention_dp_batching_wait_iters",
        ),
        limits=(Limits(0, 2048, 8192),),  # ``llmapi/llm_args.py``: no classes of GPUs
        utilization=lambda rules, server: 0.9,
        graphs=_graphs,
        block_size=32,
        # The runtime is what aiconfigurator-core 0.12.0 plans with (``backends/*.py``, ``systems/*.yaml``).
        memory=Memory(
            resident_bytes=(3.5 * 2**30, 3.9 * 2**30),
            logit_bytes=6.0,
            kv_bytes=share_of_free,
            window_share=1.0,  # ``max_attention_window`` is ``max_seq_len`` unless given (``resource_manager.py``)
        ),
        one_gpu_per_rank=True,
        # Of TensorRT-LLM itself the tables have CUTLASS and DeepGEMM only; SGLang runs these through FlashInfer.
        kernels=Kernels(trtllm_gen_experts_of="sglang", evened_experts="power_law_1.01_eplb"),
        behaviour=Behaviour(  # an expert layer is one operator
            overlap=True, launch_us=850.0, pass_us=0.0, request_us=0.0, frontend_ms=8.0,
            frontend_request_us=1000.0,
            serial_us=1000.0, prefill_slowdown=1.1, mla_launches=2.0,
        ),
        scheduler="no_evict",
        # ``PyExecutor``: the overlap scheduler has to be off on context servers; a generation server takes in as many
        # requests as it has seats, those whose KV is on its way included (``_fetch_new_requests``), and shows the
        # context server's token before its own first pass (``_handle_first_token_response``).
        overlaps_prefill=False,
        hand_off_seats=lambda seats: seats,
        first_token="transfer",
        command=_command,
        without_flag=_without_flag,
        multi_node="start it under mpirun or srun, through trtllm-llmapi-launch",
    ),
)  # fmt: skip
"""One record: the defaults of 1.0, 1.2 and 1.3 are the same where they are modelled. Of 1.4, a candidate, only those of
the KV cache were read."""
