"""SGLang: scheduler of 0.5.23, flags of 0.5.14 (``sglang.launch_server``), defaults of the releases at ``VERSIONS``.

Read in the wheels of 0.5.5, 0.5.8, 0.5.9, 0.5.10, 0.5.12, 0.5.14, 0.5.16, 0.5.18, 0.5.20 and 0.5.23
(``server_args.py``, later ``arg_groups/memory_hook.py`` and ``cuda_graph_hook.py``): a record begins at the first of
them that has what is new in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
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
    NewTokenRatio,
    Server,
    gib,
    share_of_initial,
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
        "page-size": pool.block_size,
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
        "cuda-graph-max-bs": launch.said("max_cudagraph_capture_size"),
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
        "kv_offload.remote": gib(pool.kv_offload.remote) if pool.kv_offload.disk else None,
    }


DECODE_BATCHES = (1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 497, 16), *range(512, 4097, 32))
PREFILL_TOKENS = (
    *range(4, 33, 4), *range(48, 257, 16), *range(288, 513, 32), *range(576, 1025, 64), *range(1280, 4097, 256),
    *range(4608, 131073, 512),
)  # fmt: skip
UNCAPTURED: dict[str, Callable[[Server], object]] = {
    "drafts": lambda server: server.engine.speculative,
    "ranks": lambda server: server.pool.data_parallel_size > 1,
    "stages": lambda server: server.pool.pipeline_parallel_size > 1,
    "amd": lambda server: server.architecture.startswith("cdna"),
    "tiers": lambda server: server.pool.kv_offload.host,
    "split": lambda server: server.role != "mixed",
    "decode": lambda server: server.role == "decode",
    "mla": lambda server: server.mla,
    "trtllm_mla": lambda server: server.mla and server.blackwell,
}
"""What keeps prompts out of CUDA graphs, as far as it is modelled, under the names that records use."""


def _attention_backend(server: Server) -> str:
    """``get_default_attn_backend`` and ``model_overrides``."""
    if server.model in SPARSE:
        return "dsa"
    if server.blackwell:
        return "trtllm_mla" if server.mla else "trtllm_mha"
    return "fa3"


def _graphs(rules: EngineRules, server: Server, *, mla_tokens: int = 0, without: tuple[str, ...] = ()) -> Graphs:
    """Prompts are captured up to a whole chunk, under latent attention up to *mla_tokens*; not *without* exception,
    unless the configuration asks for it. A release without *mla_tokens* captures none by itself."""
    engine, pool, mode = server.engine, server.pool, server.engine.cudagraph_mode
    if mode == "NONE":
        return Graphs()
    captured = mla_tokens > 0 and not any(UNCAPTURED[name](server) for name in without)
    captured = captured if mode is None else mode == "FULL_AND_PIECEWISE"
    seqs, chunk = pool.max_num_seqs or 0, pool.max_num_batched_tokens or 0
    largest = engine.max_cudagraph_capture_size or server.among(rules.limits).graph_batches[server.gpus >= 4]
    batches = () if server.role == "prefill" else DECODE_BATCHES
    return Graphs(
        tuple(sorted({min(size, seqs) for size in batches if size <= largest})),
        mixed_tokens=captured * (min(chunk, mla_tokens or chunk) if server.mla else chunk),
    )


def _mem_fraction(rules: EngineRules, server: Server) -> float:
    """``handle_gpu_memory_settings``: all but what is reserved for activations, graphs and buffers, in MiB.

    It reserves before Blackwell's latent attention gives up the graphs of its prompts.
    """
    graphs = rules.graphs(rules, replace(server, architecture="sm90") if server.blackwell else server)
    pool, gpu = server.pool, server.memory_bytes / 2**20
    ranks, largest = pool.data_parallel_size, max(graphs.batches, default=0)
    tokens = (
        (pool.max_num_batched_tokens or 0) * ranks if pool.enable_chunked_prefill else server.engine.max_prefill_tokens
    )
    if server.role == "decode":
        tokens = (pool.max_num_seqs or 0) * server.engine.tokens_per_decode
    reserved = 512 + 1.5 * max(tokens, 2048) + 1024 * server.gpus * pool.pipeline_parallel_size / 8 + 2 * largest
    if ranks > 1:
        reserved += largest * ranks * (4.5 if largest > 300 else 3)
    if graphs.mixed_tokens:
        reserved += 1536 if server.mla else 8 * sum(size <= graphs.mixed_tokens for size in PREFILL_TOKENS)
    if gpu > 60 * 1024:
        reserved = max(reserved, 10240)
    return round((gpu - reserved) / gpu, 3)


CLASSES = (
    Limits(160, 2048, 16384, (512, 512)), Limits(60, 2048, 8192, (256, 512)), Limits(35, 2048, 4096, (32, 160)),
    Limits(20, 2048, 4096, (48, 160)), Limits(0, 2048, 2048, (8, 8)),
)  # fmt: skip
"""Chunks and graphs; requests: the least that ``kv_cache_configurator.py`` takes where the KV cache has room."""
_NEWEST = EngineRules(
    title="SGLang",
    version="0.5.20",
    until="0.5.23",
    as_of="2026-11",
    settings=(
        "ignore_eos", "schedule_conservativeness", "enable_mixed_chunk", "max_prefill_tokens",
        "scheduler_recv_interval",
    ),
    limits=CLASSES,
    ranks_share_limits=True,
    drafting_seqs=48,  # ``_handle_eagle_family`` of ``arg_groups/speculative_hook.py``, over the attention ranks
    unchunked_tokens=131072,  # ``chunked_prefill_size`` -1: a prompt of any length, alone (``PrefillAdder``)
    decodes_take_budget=False,
    utilization=_mem_fraction,
    graphs=partial(_graphs, mla_tokens=8192, without=("stages", "amd", "decode", "trtllm_mla")),
    block_size=1,
    attention_backend=_attention_backend,
    # ``arg_groups/overrides.py``.
    backend_block_sizes={"flashmla": 64, "trtllm_mla": 64, "trtllm_mha": 64, "fa4": 128, "dsa": 64},
    whole_pages=True,
    # ``_profile_available_bytes`` of ``mem_cache/kv_cache_configurator.py``; free before the weights are loaded: 287.18
    # of 287.98 GiB on one MI355X, 137.97 of 139.80 on eight H200 (tests/hardware/test_memory.py).
    memory=Memory(
        resident_bytes=(0.7 * 2**30, 1.8 * 2**30),
        logit_bytes=6.0,
        kv_bytes=share_of_initial,
        window_share=0.8,  # ``swa_full_tokens_ratio``
    ),
    slices_scale_blocks=False,
    # It runs OpenAI's ``triton_kernels`` (``model_overrides/gpt_oss.py``), as vLLM; its table has the generic ones,
    # three times as slow.
    kernels=Kernels(hopper_mxfp4_experts_of="vllm"),
    behaviour=Behaviour(
        overlap=True, launch_us=850.0, pass_us=400.0, request_us=20.0, frontend_ms=6.0,
        frontend_request_us=1000.0,
        serial_us=1000.0, prefill_slowdown=1.0, moe_launches=1.5, mla_launches=1.5,
    ),
    scheduler="prompts_first",
    # ``SGLANG_INIT_NEW_TOKEN_RATIO``, ``SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR``, ``..._NEW_TOKEN_RATIO_DECAY_STEPS``.
    new_token_ratio=NewTokenRatio(first=0.7, least=0.14, steps=600),
    # ``DecodePreallocQueue``: a prompt on its way has a row of the request table, which has spare ones for few.
    hand_off_seats=lambda seats: 3 * seats if seats <= 32 else seats,
    first_token="transfer",
    destination_first=True,
    command=_command,
    without_flag=_without_flag,
    multi_node="start it on every node, with --nnodes, --node-rank and --dist-init-addr",
)  # fmt: skip
_SMALL_CHUNKS = replace(
    _NEWEST,
    version="0.5.18",
    until="0.5.18",
    limits=(*CLASSES[:3], Limits(20, 2048, 2048, (24, 80)), CLASSES[4]),
    graphs=partial(_graphs, mla_tokens=2048, without=("stages", "amd", "decode", "trtllm_mla")),
)
_NO_MLA = partial(_graphs, mla_tokens=2048, without=("mla", "ranks", "stages", "amd", "decode"))
_PIECEWISE = ("ranks", "stages", "amd", "tiers", "split")
VERSIONS = (
    _NEWEST,
    _SMALL_CHUNKS,
    replace(_SMALL_CHUNKS, version="0.5.16", until="0.5.16", graphs=_NO_MLA),
    replace(
        _SMALL_CHUNKS, version="0.5.12", until="0.5.14", graphs=partial(_graphs, mla_tokens=2048, without=_PIECEWISE)
    ),
    replace(
        _SMALL_CHUNKS,
        version="0.5.10",
        until="0.5.10",
        graphs=partial(_graphs, mla_tokens=2048, without=("drafts", *_PIECEWISE)),
    ),
    replace(
        _SMALL_CHUNKS,
        version="0.5",
        until="0.5.9",
        graphs=_graphs,
        # sgl-project/sglang pull request 18242 brought tuned tiles and fused kernels; fitted to runs on MI300X before.
        behaviour=replace(_NEWEST.behaviour, untuned_us={"cdna3": 160.0}),
    ),
)
"""The newest first. Piecewise graphs of prompts since 0.5.10, breakable ones since 0.5.16, which take latent attention
since 0.5.18."""
