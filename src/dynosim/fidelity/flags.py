"""Which field of the configuration holds a flag of an engine's server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from dynosim.engines import ENGINES


class Field(NamedTuple):
    """A field of the configuration."""

    section: Literal["deployment", "engine", "pool"]
    name: str
    of_all_ranks: bool = False
    """The flag counts all data-parallel ranks, the field one."""


_SHARED = {
    "kv_cache_dtype": Field("deployment", "kv_cache_dtype"),
    "enable_prefix_caching": Field("pool", "enable_prefix_caching"),
    "enable_chunked_prefill": Field("pool", "enable_chunked_prefill"),
    "block_size": Field("pool", "block_size"),
    "max_num_seqs": Field("pool", "max_num_seqs"),
    "max_num_batched_tokens": Field("pool", "max_num_batched_tokens"),
    "gpu_memory_utilization": Field("pool", "gpu_memory_utilization"),
    "gpu_mem_util": Field("pool", "gpu_memory_utilization"),
    "async_scheduling": Field("engine", "async_scheduling"),
}
FIELDS: Mapping[str, Mapping[str, Field]] = {
    "vllm": {
        "max_cudagraph": Field("engine", "max_cudagraph_capture_size"),
        "max_cudagraph_capture_size": Field("engine", "max_cudagraph_capture_size"),
        "cudagraph_mode": Field("engine", "cudagraph_mode"),
        "mxfp8_activations": Field("engine", "mxfp8_activations"),
    },
    "sglang": {
        "mem_fraction_static": Field("pool", "gpu_memory_utilization"),
        "chunked_prefill_size": Field("pool", "max_num_batched_tokens", of_all_ranks=True),
        "max_running_requests": Field("pool", "max_num_seqs", of_all_ranks=True),
        "max_prefill_tokens": Field("engine", "max_prefill_tokens"),
        "cuda_graph_max_bs": Field("engine", "max_cudagraph_capture_size"),
        "cudagraph_mode": Field("engine", "cudagraph_mode"),
        "scheduler_recv_interval": Field("engine", "scheduler_recv_interval"),
        "enable_mixed_chunk": Field("engine", "enable_mixed_chunk"),
        "schedule_conservativeness": Field("engine", "schedule_conservativeness"),
        "ignore_eos": Field("engine", "ignore_eos"),
    },
    "trtllm": {
        "max_batch_size": Field("pool", "max_num_seqs"),
        "max_num_tokens": Field("pool", "max_num_batched_tokens"),
        "free_gpu_memory_fraction": Field("pool", "gpu_memory_utilization"),
        "kv_cache_free_gpu_mem_fraction": Field("pool", "gpu_memory_utilization"),
        "cuda_graph_max_bs": Field("engine", "max_cudagraph_capture_size"),
        "batch_wait_timeout_iters": Field("engine", "batch_wait_timeout_iters"),
        "batch_wait_max_tokens_ratio": Field("engine", "batch_wait_max_tokens_ratio"),
        "enable_balance": Field("engine", "attention_dp_enable_balance"),
        "timeout_iters": Field("engine", "attention_dp_timeout_iters"),
        "batching_wait_iters": Field("engine", "attention_dp_batching_wait_iters"),
    },
}
"""Engine -> flag of its server -> field, beside those that all have."""

FP8_CACHE_OF_CHECKPOINT = {"trtllm"}
"""Engines that keep an FP8 cache for an FP8 checkpoint without being told."""

_IDLE = {"max_model_len", "hicache", "ignore_eos"}
"""Flags that change nothing where no field holds them: prompts and answers fit the model's length, a tier that is off
is not there, and answers have their length anyway."""


def setting_of(engine: str, flag: str, value: Any) -> tuple[Field, Any] | None:
    """Return the field that holds *flag* of an *engine*, and its value there; None where that is not simulated."""
    if flag != "attention_backend":
        field = FIELDS[engine].get(flag) or _SHARED.get(flag)
        return field and (field, value)
    page = ENGINES[engine]["current"].backend_block_sizes.get(value)
    if page is not None:
        return Field("pool", "block_size"), page
    return (Field("engine", flag), value) if value == "FLASHINFER" else None


def is_idle(flag: str) -> bool:
    """Whether *flag* changes nothing that is simulated."""
    return flag in _IDLE
