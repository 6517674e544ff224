"""vLLM V1: scheduler and flags of 0.32 (``vllm serve``), defaults of the releases named at ``VERSIONS``.

Read in the wheels of 0.9.2, 0.10.2, 0.11.2, 0.13.0, 0.14.1, 0.16.0, 0.18.0, 0.19.0, 0.20.0, 0.21.0, 0.23.0, 0.26.0,
0.28.0, 0.30.0, 0.32.0 and 0.33.0: a record begins at the first of them that has what is new in it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from dynosim.engines.base import (
    SPARSE,
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
    share_of_all,
    shell,
)


def _command(launch: Launch) -> str:
    pool, host, own = launch.pool, launch.pool.kv_offload.host, launch.pool.kv_offload.offload_prompt_only
    connector = {"kv_connector": "NixlConnector", "kv_role": "kv_both"} if launch.role != "mixed" else None
    drafts = launch.draft_tokens and {"method": "mtp", "num_speculative_tokens": launch.draft_tokens}
    flags: Flags = {
        "tensor-parallel-size": pool.tensor_parallel_size,
        "pipeline-parallel-size": pool.pipeline_parallel_size if pool.pipeline_parallel_size > 1 else None,
        "data-parallel-size": pool.data_parallel_size if pool.data_parallel_size > 1 else None,
        "enable-expert-parallel": pool.enable_expert_parallel,
        "max-num-seqs": pool.max_num_seqs,
        "max-num-batched-tokens": pool.max_num_batched_tokens,
        "enable-chunked-prefill" if pool.enable_chunked_prefill else "no-enable-chunked-prefill": True,
        "enable-prefix-caching" if pool.enable_prefix_caching else "no-enable-prefix-caching": True,
        "block-size": pool.block_size,
        "gpu-memory-utilization": pool.gpu_memory_utilization,
        "num-gpu-blocks-override": pool.num_gpu_blocks_override,
        "scheduling-policy": "priority" if pool.scheduling_policy == "priority" else None,
        "scheduler-reserve-full-isl" if pool.scheduler_reserve_full_isl else "no-scheduler-reserve-full-isl": True,
        "long-prefill-token-threshold": pool.long_prefill_token_threshold or None,
        "long-prefill-token-threshold-adaptive": pool.long_prefill_token_threshold_adaptive,
        "max-num-active-seqs": pool.max_num_active_seqs,
        "watermark": pool.watermark or None,
        "quantization": "fp8" if launch.quantises else None,
        "kv-cache-dtype": "fp8" if launch.fp8_cache else None,
        "kv-offloading-size": host and f"{host.size_gib:g}",
        "kv-offloading-backend": host and "native",
        "kv-transfer-config.kv_connector_extra_config.offload_prompt_only": "false" if host and own is False else None,
        "speculative-config": drafts and json.dumps(drafts),
        "kv-transfer-config": connector and json.dumps(connector),
        **_engine_flags(launch),
    }
    return shell(["vllm", "serve", launch.checkpoint], flags)


def _engine_flags(launch: Launch) -> Flags:
    engine = launch.engine
    graphs = {"cudagraph_mode": engine.cudagraph_mode} if engine.cudagraph_mode else None
    return {
        "async-scheduling": engine.async_scheduling is True,
        "no-async-scheduling": engine.async_scheduling is False,
        "compilation-config": graphs and json.dumps(graphs),
        "max-cudagraph-capture-size": launch.said("max_cudagraph_capture_size"),
        "attention-backend": launch.said("attention_backend"),
        "moe-backend": "flashinfer_trtllm_afp8" if engine.mxfp8_activations else None,
        "attention-config.use_trtllm_attention": 0 if engine.attention_backend == "FLASHINFER" else None,
    }


def _without_flag(launch: Launch) -> dict[str, Any]:
    pool = launch.pool
    return {
        "scheduling_policy": None if pool.scheduling_policy in ("fcfs", "priority") else pool.scheduling_policy,
        "kv_offload.disk": gib(pool.kv_offload.disk),
        "kv_offload.remote": gib(pool.kv_offload.remote),
    }


SMALLER = (Limits(70, 1024, 8192, excepted="a100"), Limits(0, 256, 2048))
"""``get_batch_defaults`` of ``engine/arg_utils.py``: an A100 of 80 GB counts as one of the small."""


def _attention_backend(server: Server) -> str:
    """Return the first of ``_get_backend_priorities`` (``platforms/cuda.py``) that takes the model and its cache."""
    if server.model in SPARSE:
        return "FLASHMLA_SPARSE"
    if not server.mla:
        return "FLASH_ATTN"
    if server.blackwell:
        return "FLASHINFER_MLA"
    return "FLASHMLA" if server.architecture == "sm90" and server.fp8_cache else "FLASH_ATTN_MLA"


def _graphs(rules: EngineRules, server: Server) -> Graphs:
    """``_set_cudagraph_sizes`` of ``config/vllm.py``; a decode pass that drafts needs whole requests."""
    engine, pool, tokens, known = server.engine, server.pool, server.engine.tokens_per_decode, rules.graph_tokens
    if engine.cudagraph_mode == "NONE":
        return Graphs()
    seqs, budget = pool.max_num_seqs or 0, pool.max_num_batched_tokens or 0
    most = known.get(server.model) or known.get(server.architecture) or known[""]
    largest = min(engine.max_cudagraph_capture_size or min(2 * seqs * tokens, most), budget)
    sizes = {1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16), seqs, budget}
    batches = sorted(size for size in sizes if size * tokens <= largest)
    mixed = 0 if engine.cudagraph_mode == "FULL_DECODE_ONLY" else max(size for size in sizes if size <= largest)
    return Graphs(tuple(batches), mixed_tokens=mixed)


def _memory(resident_gib: tuple[float, float], logit_bytes: float = 14.0, graphs_gib: float = 0.0) -> Memory:
    """Start-up logs of 0.11 to 0.22 on H100 and H200 (tests/hardware/test_memory.py): bytes of a logit agree over
    vocabularies of 49,000 to 256,000 within a tenth, and fell when 0.17 ceased to sort."""
    resident = (resident_gib[0] * 2**30, resident_gib[1] * 2**30)
    return Memory(
        resident_bytes=resident, logit_bytes=logit_bytes, graph_bytes=graphs_gib * 2**30, kv_bytes=share_of_all
    )


_NEWEST = EngineRules(
    title="vLLM",
    version="0.28",
    until="0.33",
    as_of="2026-11",
    settings=(
        "attention_backend",
        "long_prefill_token_threshold",
        "long_prefill_token_threshold_adaptive",
        "max_num_active_seqs",
        "mxfp8_activations",
        "watermark",
    ),
    limits=(Limits(160, 1024, 16384), *SMALLER),
    utilization=lambda rules, server: 0.92,  # ``config/cache.py``
    graphs=_graphs,
    graph_tokens={"": 512, "sm100": 1024, "sm103": 1024, "gpt-oss-20b": 1024, "gpt-oss-120b": 1024},
    block_size=16,
    attention_backend=_attention_backend,
    # ``get_supported_kernel_block_sizes`` of ``v1/attention/backends``.
    backend_block_sizes={"FLASHMLA": 64, "FLASHINFER_MLA": 32, "CUTLASS_MLA": 128, "FLASHMLA_SPARSE": 64},
    null_blocks=1,  # ``null_block`` of ``v1/core/block_pool.py``
    offloads_prompt_only=True,  # since pull request 43797
    memory=_memory(resident_gib=(0.25, 1.1), graphs_gib=1.0),
    # The tables of block-FP8 GEMMs are flat at 60 us (Hopper) to 180 us (Blackwell) below 1,024 tokens, launch
    # overhead that CUDA graphs hide from decode passes: TP8 would be no faster than TP1. SGLang runs the same
    # DeepGEMM kernels.
    kernels=Kernels(fp8_attention=False, mxfp8_experts=False, mxfp8_experts_of="sglang", block_fp8_gemms_of="sglang"),
    behaviour=Behaviour(
        overlap=True, launch_us=850.0, pass_us=400.0, request_us=20.0, frontend_ms=6.0,
        frontend_request_us=1000.0,
        serial_us=1000.0, prefill_slowdown=1.3, moe_launches=1.5, mla_launches=1.0,
    ),
    scheduler="in_turn",
    # The decode replica computes the last prompt token again: P/D connectors drop the prefill replica's token.
    first_token="decode",
    command=_command,
    without_flag=_without_flag,
    multi_node="start it on every node, with --data-parallel-size-local and --data-parallel-address"
    " (or --nnodes, Ray)",
)  # fmt: skip
_SMALL_GRAPHS = replace(
    _NEWEST,
    version="0.23",
    until="0.26",
    limits=SMALLER,
    graph_tokens={**_NEWEST.graph_tokens, "sm100": 512, "sm103": 512},
)
_ALL_OFFLOADED = replace(_SMALL_GRAPHS, version="0.20", until="0.21", offloads_prompt_only=False)
_GRAPHS_BESIDE = replace(
    _ALL_OFFLOADED,
    version="0.17",
    until="0.19",
    utilization=lambda rules, server: 0.9,
    memory=_memory(resident_gib=(0.25, 2.1)),
)
# A defect of asynchronous scheduling, the default since 0.14, lost answers on the way down (pull request 33881).
_ANSWERS_LOST = replace(
    _GRAPHS_BESIDE,
    version="0.14",
    until="0.16",
    offloads_prompt_only=True,
    memory=_memory(resident_gib=(0.13, 0.55), logit_bytes=37.5),
)
_SERIAL = replace(
    _ANSWERS_LOST,
    version="0.9",
    until="0.13",
    offloads_prompt_only=False,
    behaviour=replace(_NEWEST.behaviour, overlap=False),
)
VERSIONS = (_NEWEST, _SMALL_GRAPHS, _ALL_OFFLOADED, _GRAPHS_BESIDE, _ANSWERS_LOST, _SERIAL)
"""The newest first."""
