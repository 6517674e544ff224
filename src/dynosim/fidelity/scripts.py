"""What the sources' public launch scripts say where a row's notes are silent, as data.

Flags have their engine's own names. A script counts for rows of its source, engine, model, GPU and dates; where several
count, the later one wins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dynosim.fidelity.measurements import Measurement

Value = Any | Callable[[Measurement], Any]
"""Of a flag: itself, or what the script computes from the run."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """What one script, or several that agree, starts servers with."""

    name: str
    """Path in the source's repository."""
    engine: str
    source: str = ".*InferenceX"
    model: str = ""
    gpu: str = ""
    precision: str = ""
    """Patterns of the beginning of those columns; empty is any."""
    role: str = "mixed"
    """Pool that it starts: ``mixed``, ``prefill``, ``decode``; empty is any."""
    since: str = ""
    until: str = "9"
    """First and last date of measurement (ISO)."""
    when: Callable[[Measurement], bool] = lambda row: True
    flags: Mapping[str, Value] = field(default_factory=dict)

    def counts_for(self, row: Measurement, engine: str, role: str) -> bool:
        """Whether the pool of *role* was started by it."""
        columns = (
            (self.source, row.source),
            (self.model, row.model),
            (self.gpu, row.gpu),
            (self.precision, row.precision or ""),
        )
        return (
            engine == self.engine
            and all(re.match(pattern, column) for pattern, column in columns)
            and self.role in ("", role)
            and self.since <= row.measured_on <= self.until
            and self.when(row)
        )


def _ranks(row: Measurement) -> int:
    return int(row.facts.get("attention_dp", 1))


def _load(row: Measurement) -> int:
    return row.concurrency


def _rounded_tokens(per_request: Callable[[Measurement], int], least: int = 0) -> Callable[[Measurement], int]:
    """Return what scripts give ``max_num_tokens``: tokens of all decodes, a prompt and 64, rounded up to 64."""
    return lambda row: max(-(-(per_request(row) + int(row.isl) + 64) // 64) * 64, least)


def has_mtp(row: Measurement) -> bool:
    """Whether the model's own layers drafted."""
    return row.facts.get("spec_decoding") == "mtp"


SCRIPTS = (
    Script(
        # Seen in InferenceX's scripts; that other sources turn padding on as well is an assumption.
        name="all that start TensorRT-LLM: cuda_graph_config has enable_padding and covers every batch",
        engine="trtllm", source=".*", role="",
        flags={"cuda_graph_max_bs": 2048},
    ),
    Script(
        name="benchmarks/*_trt*.sh",
        engine="trtllm",
        flags={"cuda_graph_max_bs": lambda row: max(_load(row) // _ranks(row), 1)},
    ),
    Script(
        name="experimental/multiturn/vllm_benchmark/sweep_experiment.sh",
        engine="vllm",
        when=lambda row: "multi-turn" in row.load_kind,
        flags={"cudagraph_mode": "FULL_DECODE_ONLY", "attention_backend": "FLASHINFER"},
    ),
    Script(
        name="benchmarks/70b_fp8_b200_docker.sh",
        engine="vllm", model=".*Llama-3", gpu="B200",
        flags={"cudagraph_mode": "FULL_DECODE_ONLY"},
    ),
    Script(
        name="benchmarks/70b_fp8_h200_trt_slurm.sh",
        engine="trtllm", model=".*Llama-3",
        when=lambda row: row.isl == row.osl == 1024 and (row.tp or 8) < 8,
        flags={"batch_wait_timeout_iters": 20, "batch_wait_max_tokens_ratio": 0.9},
    ),
    Script(
        name="benchmarks/dsr1_fp8_h200.sh",
        engine="sglang",
        flags={"max_prefill_tokens": 32768, "chunked_prefill_size": 32768},
    ),
    Script(
        name="benchmarks/dsr1_fp8_h200.sh",
        engine="sglang", model=".*DeepSeek", gpu="H[12]00", precision="fp8",
        flags={
            "mem_fraction_static": 0.82,
            "max_running_requests": lambda row: 512 if row.isl == row.osl == 1024 else 256,
            "cuda_graph_max_bs": lambda row: 512 if row.isl == row.osl == 1024 else 256,
        },
    ),
    Script(
        name="benchmarks/dsr1_fp8_b200.sh",
        engine="sglang", model=".*DeepSeek", gpu="B[23]00", precision="fp8",
        flags={
            "mem_fraction_static": lambda row: 0.82 if row.tp == 8 else 0.95,
            "chunked_prefill_size": lambda row: 32768 if row.tp == 8 else 8192,
            "max_prefill_tokens": lambda row: 32768 if row.tp == 8 else 8192,
            "max_running_requests": lambda row: 128 if row.tp == 8 else 32,
            "cuda_graph_max_bs": lambda row: 128 if row.tp == 8 else 32,
            "scheduler_recv_interval": lambda row: 30 if _load(row) >= 16 and row.tp == 8 else 10,
        },
    ),
    Script(
        name="benchmarks/single_node/fixed_seq_len/dsr1_fp8_mi355x_mtp.sh",
        engine="sglang", model=".*DeepSeek", gpu="MI355X", precision="fp8", when=has_mtp,
        flags={"max_running_requests": _load},
    ),
    Script(
        name="benchmarks/single_node/fixed_seq_len/dsr1_fp8_h200_mtp.sh",
        engine="sglang", model=".*DeepSeek", gpu="H200", precision="fp8", when=has_mtp,
        flags={"max_running_requests": lambda row: 512 if row.isl == row.osl == 1024 else 256},
    ),
    Script(
        name="benchmarks/dsr1_fp8_b200_mtp.sh",
        engine="sglang", model=".*DeepSeek", gpu="B[23]00", precision="fp8", when=has_mtp,
        flags={"max_running_requests": 256, "cuda_graph_max_bs": 256},
    ),
    Script(
        name="benchmarks/dsr1_fp4_b200.sh",
        engine="sglang", model=".*DeepSeek", gpu="B200", precision="fp4",
        # ``--enable-symm-mem``, under which SGLang leaves out the graphs of prompts.
        flags={
            "scheduler_recv_interval": lambda row: 30 if _load(row) >= 16 else 10,
            "cudagraph_mode": "FULL_DECODE_ONLY",
        },
    ),
    Script(
        name="benchmarks/gptoss_fp4_b200_trt.sh; what NVIDIA's own offline runs had is not stated",
        engine="trtllm", source=".*", model=".*gpt-oss", gpu="G?B[23]00",
        flags={"kv_cache_dtype": "fp8"},
    ),
    Script(
        name="benchmarks/dsr1_fp8_b200_trt.sh",
        engine="trtllm", model=".*DeepSeek",
        flags={"max_num_tokens": _rounded_tokens(_load)},
    ),
    Script(
        name="benchmarks/dsr1_fp8_b200_trt.sh",
        engine="trtllm", model=".*DeepSeek", since="2026-02",
        flags={"max_num_tokens": _rounded_tokens(_load, least=8192)},
    ),
    Script(
        name="benchmarks/dsr1_fp8_b200_trt.sh, once the cache's share was computed in it",
        engine="trtllm", model=".*DeepSeek", gpu="B", precision="fp8",
        when=lambda row: not has_mtp(row) and "free_gpu_memory_fraction" not in row.flags,
        flags={
            "free_gpu_memory_fraction": lambda row: (
                0.75 if row.isl > 4096 and row.tp == 4 else 0.7 if row.isl <= 4096 and _load(row) >= 256 else 0.8
            ),
            "batch_wait_timeout_iters": lambda row: 40 if row.isl == row.osl == 1024 and 64 <= _load(row) < 256 else 0,
            "batch_wait_max_tokens_ratio": 0.8,
        },
    ),
    Script(
        name="benchmarks/dsr1_fp8_h200_trt.sh",
        engine="trtllm", model=".*DeepSeek", gpu="H",
        flags={"cuda_graph_max_bs": 128},
    ),
    Script(
        name="benchmarks/dsr1_fp4_b200_trt.sh",
        engine="trtllm", model=".*DeepSeek", precision="fp4",
        flags={"cuda_graph_max_bs": 512},
    ),
    Script(
        name="benchmarks/gptoss_fp4_b200.sh, which sets VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8",
        engine="vllm", model=".*gpt-oss", gpu="G?B",
        flags={
            "mxfp8_activations": True, "max_num_seqs": 512, "max_num_batched_tokens": 8192,
            "max_cudagraph_capture_size": 2048, "gpu_memory_utilization": 0.9, "kv_cache_dtype": "fp8",
        },
    ),
    Script(
        name="benchmarks/gptoss_fp4_h100.sh, gptoss_fp4_h200.sh",
        engine="vllm", model=".*gpt-oss", gpu="H[12]00",
        flags={
            "max_num_seqs": _load, "max_num_batched_tokens": 8192, "max_cudagraph_capture_size": 2048,
            "gpu_memory_utilization": 0.9,
        },
    ),
    Script(
        name="benchmarks/gptoss_fp4_b200_trt.sh",
        engine="trtllm", model=".*gpt-oss", gpu="G?B",
        flags={"max_num_tokens": 20000, "max_batch_size": 512, "free_gpu_memory_fraction": 0.85},
    ),
    Script(
        name="benchmarks/gptoss_fp4_h200_trt.sh",
        engine="trtllm", model=".*gpt-oss", gpu="H",
        flags={"max_num_tokens": 20000, "max_batch_size": _load, "free_gpu_memory_fraction": 0.85},
    ),
    Script(
        name="benchmarks/gptoss_fp4_mi300x.sh",
        engine="vllm", model=".*gpt-oss", gpu="MI",
        flags={"gpu_memory_utilization": 0.95, "block_size": 64, "cudagraph_mode": "FULL_AND_PIECEWISE"},
    ),
    Script(
        name="benchmarks/dsr1_fp4_mi355x_atom.sh",
        engine="vllm", when=lambda row: row.engine.lower().startswith("atom"),
        flags={"kv_cache_dtype": "fp8", "block_size": 16},
    ),
    Script(
        name="benchmarks/dsr1_fp8_mi355x.sh",
        engine="sglang", gpu="MI",
        flags={
            "mem_fraction_static": 0.8,
            "chunked_prefill_size": lambda row: 131072 if row.gpu.startswith(("MI300X", "MI325X")) else 196608,
            "max_prefill_tokens": lambda row: 131072 if row.gpu.startswith(("MI300X", "MI325X")) else 196608,
            "cuda_graph_max_bs": 128,
        },
    ),
    Script(
        name="benchmarks/dsr1_fp8_b200_trt_mtp.sh",
        engine="trtllm", model=".*DeepSeek", when=has_mtp,
        flags={
            "drafts": lambda row: 1 if _ranks(row) > 1 else 3,
            "max_batch_size": lambda row: max(_load(row) // _ranks(row), 1),
            "max_num_tokens": _rounded_tokens(
                lambda row: (2 if _ranks(row) > 1 else 4) * max(_load(row) // _ranks(row), 1)
            ),
        },
    ),
    Script(
        name="benchmarks/dsr1_fp8_b200_trt.sh and its siblings",
        engine="trtllm", model=".*DeepSeek", when=lambda row: _ranks(row) > 1,
        flags={"enable_balance": True, "timeout_iters": 60, "batching_wait_iters": 0},
    ),
    *(
        Script(
            name="generator rules of launch files of AIConfigurator, taken to have run its gap analysis",
            engine=engine, source=".*gap-analysis", role="",
            flags={flag: lambda row: _load(row) + int(row.isl) + 1500},
        )
        for engine, flag in (
            ("vllm", "max_num_batched_tokens"), ("sglang", "chunked_prefill_size"), ("trtllm", "max_num_tokens"),
        )
    ),
)  # fmt: skip


def flags_of(scripts: Iterable[Script], row: Measurement, engine: str, role: str) -> dict[str, Any]:
    """Return the flags of those of *scripts* that started the pool of *role*."""
    flags: dict[str, Value] = {}
    for script in scripts:
        if script.counts_for(row, engine, role):
            flags |= script.flags
    return {name: value(row) if callable(value) else value for name, value in flags.items()}
