"""What a measured row says was run: its deployment and its workload.

What a row leaves open is taken from the source's public launch scripts, named beside each fact, or the engine's
defaults, never from the row's measured numbers.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np

from dynosim.config import (
    ConcurrencyLoad,
    DeploymentConfig,
    FixedLength,
    Length,
    PoissonLoad,
    RatioLength,
    SyntheticSource,
    TraceLoad,
    TraceSource,
    WorkloadConfig,
)
from dynosim.config.workload import PrefixGroups, Sessions
from dynosim.engines import ENGINES
from dynosim.errors import ConfigError
from dynosim.fidelity.measurements import Measurement
from dynosim.hardware.models import get_model, precision_of
from dynosim.workload import load_workload
from dynosim.workload.table import Workload

GPUS = {
    "H100": "h100_sxm", "H200": "h200_sxm", "H20-3e": "h20_3e", "H20": "h20_sxm", "A100": "a100_sxm",
    "B200": "b200_sxm", "B300": "b300_sxm", "GB200": "gb200", "GB300": "gb300", "L40S": "l40s",
    "RTX-PRO-6000": "rtx_pro_6000_server", "MI300X": "mi300x", "MI325X": "mi325x", "MI355X": "mi355x",
}  # fmt: skip
"""Beginning of a row's GPU name -> card."""
ALIASES = {"tensorrt-llm": "trtllm", "trt-llm": "trtllm", "trt": "trtllm"}
QUANTIZATION = {"bf16": "none", "fp16": "none", "fp8": "fp8", "fp4": "nvfp4", "nvfp4": "nvfp4",
                "int4": "none",
                "mxfp4": "none"}  # fmt: skip
MAX_NUM_SEQS = {"vllm": 256, "sglang": 1024, "trtllm": 2048}
MAX_NUM_BATCHED_TOKENS = 8192
"""Defaults of the versions that were measured: vLLM's and trtllm-serve's server, SGLang's by memory."""
RDMA_EFFICIENCY = 0.85
HAND_OFF_LATENCY_US = 1500.0
"""Of Mooncake's hand-offs: 84 % of the line rate and 1.6 ms each, over all lengths of its disaggregated runs."""
GENERATED_BUDGET_TOKENS = 1500
"""AIConfigurator's launch files set max_num_tokens to batch size + ISL + 1500 (its generator's rules); its own gap
analysis is taken to have run them."""
LOADS = ("closed-loop", "open-loop", "offline", "sequential")
"""Beginnings of the load kinds."""
BLIS_PROMPTS = 100
"""Distinct prompts that the client of the constant-rate stages cycled: mean lengths over 16,800 requests are exact
multiples of 0.01."""


def deployment_of(row: Measurement) -> DeploymentConfig:
    """Return the deployment that *row* was measured on; ConfigError for what dynosim does not know."""
    engine = ALIASES.get(name := row.engine.lower().partition(" ")[0], name)
    if engine not in ENGINES:
        raise ConfigError(f"{row.engine!r}: allowed: {', '.join(ENGINES)}", path="engine")
    pools = _disaggregated(row, engine) or {
        "mode": "aggregated",
        "aggregated": _pool(row, engine, _layout(row, engine)),
    }
    quantization = _quantization(row)
    return DeploymentConfig.model_validate(
        {
            "model": row.model,
            "gpu": card_of(row.gpu),
            "quantization": quantization,
            "kv_cache_dtype": _kv_cache_dtype(row, engine, quantization),
            "engine": {"name": engine, **_engine_flags(row, engine)},
            **pools,
        }
    )


def card_of(gpu: str) -> str:
    """Return the card of a row's GPU; PCIe, NVL and half-sized variants have none."""
    other = re.search("PCIe|NVL-|NVL$|40GB", gpu) and not gpu.startswith("GB")
    return gpu if other else next((card for name, card in GPUS.items() if gpu.startswith(name)), gpu)


def _quantization(row: Measurement) -> str:
    if row.precision is None:
        return precision_of(row.model)
    if row.precision not in QUANTIZATION:
        raise ConfigError(f"{row.precision!r}: allowed: {', '.join(QUANTIZATION)}", path="precision")
    model = get_model(row.model)
    own = model.moe is not None and model.moe.native_bytes < 1  # gpt-oss, Kimi-K2.5
    if row.precision in ("int4", "mxfp4") and not own:
        raise ConfigError(
            f"{row.precision}: no {row.precision} checkpoint of {model.name} is modelled", path="precision"
        )
    return "none" if own and row.model.startswith("openai/") else QUANTIZATION[row.precision]


def _kv_cache_dtype(row: Measurement, engine: str, quantization: str) -> str:
    """Return FP8 where the notes say so; without a flag, only TensorRT-LLM takes it from an FP8 checkpoint."""
    if row.noted(r"kv-cache fp8|KV fp8"):
        return "auto" if quantization != "none" else "fp8"
    return "auto" if quantization == "none" or engine == "trtllm" else "bf16"


def _engine_flags(row: Measurement, engine: str) -> dict[str, Any]:
    """Engine settings from the source's public launch scripts, where the notes are silent."""
    flags: dict[str, Any] = {}
    if "InferenceX" not in row.source:
        return flags
    if engine == "vllm" and "multi-turn" in row.load_kind:  # experimental/multiturn/vllm_benchmark/sweep_experiment.sh
        flags |= {"cudagraph_mode": "FULL_DECODE_ONLY", "attention_backend": "FLASHINFER"}
    elif engine == "vllm" and "Llama-3" in row.model and row.gpu.startswith("B200"):
        # benchmarks/70b_fp8_b200_docker.sh
        flags |= {"cudagraph_mode": "FULL_DECODE_ONLY"}
    if engine == "trtllm" and "Llama-3" in row.model and row.isl == row.osl == 1024 and (row.tp or 8) < 8:
        # benchmarks/70b_fp8_h200_trt_slurm.sh
        flags |= {"batch_wait_timeout_iters": 20, "batch_wait_max_tokens_ratio": 0.9}
    if engine == "sglang":  # benchmarks/dsr1_fp8_h200.sh
        flags |= {"max_prefill_tokens": 32768}
        if row.gpu.startswith("B200") and row.load is not None:  # benchmarks/dsr1_fp8_b200.sh
            flags |= {"scheduler_recv_interval": 30 if row.load >= 16 and row.tp == 8 else 10}
    return flags


def _layout(row: Measurement, engine: str) -> dict[str, Any]:
    ranks, experts = int(row.noted(r"attention_dp=(\d+)") or 1), int(row.noted(r"moe_ep=(\d+)") or 1)
    tp = row.tp or row.n_gpus
    return _parallel(engine, tp if tp * ranks <= row.n_gpus else max(row.n_gpus // ranks, 1), ranks, experts)


def _parallel(engine: str, tp: int, ranks: int, experts: int) -> dict[str, Any]:
    """Return the sizes of a replica; the attention ranks of some engines are single GPUs."""
    if ENGINES[engine]["current"].one_gpu_per_rank and ranks > 1:
        tp, ranks = 1, tp * ranks
    return {"tensor_parallel_size": tp, "data_parallel_size": ranks, "enable_expert_parallel": experts > 1}


def _disaggregated(row: Measurement, engine: str) -> dict[str, Any] | None:
    """Return the two pools of ``prefill 1 worker(s) x (tp8 adp1 ep8); decode 7 worker(s) x (...)`` or ``1P1D, TP8``."""
    found = re.findall(r"(prefill|decode) (\d+) worker\(s\) x \(tp(\d+) adp(\d+) ep(\d+)\)", row.notes)
    pools = {
        role: _pool(row, engine, {"replicas": int(workers)} | _parallel(engine, int(tp), int(ranks), int(experts)))
        for role, workers, tp, ranks, experts in found
    }
    if not pools and (shorthand := re.search(r"disaggregated (\d+)P(\d+)D, TP(\d+) each", row.notes)):
        prefill, decode, tp = map(int, shorthand.groups())
        pools = {
            role: _pool(row, engine, {"replicas": replicas, "tensor_parallel_size": tp})
            for role, replicas in (("prefill", prefill), ("decode", decode))
        }
    if not pools:
        return None
    return {"mode": "disaggregated", "disaggregated": pools | {"kv_transfer": _link(row)}}


def _link(row: Measurement) -> dict[str, Any]:
    """Return the hand-off network of ``RoCE 4x400GbE per node``; a node has 8 GPUs. RDMA gets most of the line rate."""
    ports = re.search(r"(\d+)x(\d+)GbE per node", row.notes)
    if not ports:
        return {}
    per_gpu = int(ports[1]) * int(ports[2]) / 8 / 8
    return {"bandwidth_gb_s": RDMA_EFFICIENCY * per_gpu, "latency_us": HAND_OFF_LATENCY_US}


def _pool(row: Measurement, engine: str, layout: dict[str, Any]) -> dict[str, Any]:
    blocks = row.noted(r"GPU KV cache (\d+) tokens")
    block_size = row.noted(r"block (\d+)")
    offload = row.noted(r"CPU KV offload on.*?(\d+) GiB")
    budget = int(row.noted(r"max_num_(?:batched_)?tokens (\d+)(?!\*)") or MAX_NUM_BATCHED_TOKENS)
    if factor := row.noted(r"max_num_batched_tokens (\d+)\*ISL"):
        budget = int(factor) * int(row.isl)
    if "InferenceX" in row.source and engine == "sglang" and "disaggregated" not in row.notes:
        budget = 32768  # benchmarks/dsr1_fp8_h200.sh: chunked-prefill-size
    if "gap-analysis" in row.source and row.load is not None:
        budget = int(row.load + row.isl) + GENERATED_BUDGET_TOKENS
    return layout | {
        "max_num_seqs": min(_max_num_seqs(row, engine), budget),
        "max_num_batched_tokens": budget,
        "gpu_memory_utilization": float(row.noted(r"gpu_mem_util ([\d.]+\d)") or 0.9),
        "enable_prefix_caching": not row.noted(r"prefix caching off|block reuse off|no prefix reuse|radix cache"),
        **({"block_size": int(block_size)} if block_size else {}),
        **({"num_gpu_blocks_override": int(blocks) // int(block_size or 16)} if blocks else {}),
        **({"kv_offload": {"host": {"size_gib": float(offload)}}} if offload else {}),
    }


def _max_num_seqs(row: Measurement, engine: str) -> int:
    if "512 on B200" in row.notes and "B200" in row.gpu:
        return 512
    if "max_num_seqs=conc" in row.notes and row.load is not None:
        return int(row.load)
    return int(row.noted(r"max_num_seqs (\d+)") or MAX_NUM_SEQS[engine])


# ---- the workload -------------------------------------------------------------------------------------------------


def requests_of(row: Measurement) -> Workload:
    """Return the requests of *row*, the chat template's tokens included."""
    return _with_template(row, load_workload(workload_of(row), seed=0))


def workload_of(row: Measurement) -> WorkloadConfig:
    """Return what *row* was measured with, as ``measured/README.md`` says each ``load_kind`` was produced."""
    kind = row.load_kind
    if not kind.startswith(LOADS):
        raise ConfigError(f"{kind!r}: allowed: {', '.join(LOADS)}, and words after it", path="load_kind")
    if kind.startswith("open-loop trace"):
        return WorkloadConfig(source=_trace(row), load=TraceLoad())
    if kind.startswith("open-loop"):
        return _stage(row)
    load = ConcurrencyLoad(concurrency=_concurrency(row))
    if kind.startswith("closed-loop multi-turn"):
        return WorkloadConfig(source=_trace(row), load=load)
    requests = int(row.noted(r"num_requests (\d+)") or row.noted(r"\((\d+) per length") or 10 * load.concurrency)
    source = SyntheticSource(requests=requests, input_tokens=_length(row, row.isl), output_tokens=_length(row, row.osl))
    return WorkloadConfig(source=source, load=load)


def _with_template(row: Measurement, workload: Workload) -> Workload:
    """Add the chat template's tokens, which a server counts and its client does not: per prompt and per message."""
    found = re.search(r"about (\d+) \+ (\d+) per message more", row.notes)
    if not found:
        return workload
    first = np.unique(workload.session, return_index=True)[1]
    turn = np.arange(len(workload)) - first[workload.session]
    more = int(found[1]) + int(found[2]) * (2 * turn + 1)
    return replace(workload, input_tokens=workload.input_tokens + more)


def _concurrency(row: Measurement) -> int:
    if row.load is None:
        return 1
    return int(row.noted(r"num_requests (\d+)") or 1) if math.isinf(row.load) else int(row.load)


def _length(row: Measurement, tokens: float) -> Length:
    ratio = row.noted(r"RANDOM_RANGE_RATIO ([\d.]+\d)")
    return RatioLength(tokens=round(tokens), ratio=float(ratio)) if ratio else FixedLength(tokens=round(tokens))


def _stage(row: Measurement) -> WorkloadConfig:
    """A stage of requests at a rate. Where its client cycles few prompts, a later stage finds their blocks cached."""
    if row.load is None:
        raise ConfigError("open-loop without a rate: allowed: requests per second", path="concurrency_or_rate")
    seconds = float((re.search(r"([\d.]+) s\)", row.load_kind) or [0, 600])[1])
    cycled = row.noted("shared_prefix") is not None
    warm = 3 * BLIS_PROMPTS if cycled and not row.noted(r"stage 0 of") else 0
    prompt, prefix = _length(row, row.isl), FixedLength(tokens=max(round(row.isl) - 1, 1))
    source = SyntheticSource(
        requests=round(seconds * row.load) + warm,
        input_tokens=FixedLength(tokens=1) if cycled else prompt,
        output_tokens=_length(row, row.osl),
        sessions=Sessions(groups=PrefixGroups(groups=BLIS_PROMPTS, prefix_tokens=prefix)) if cycled else None,
    )
    return WorkloadConfig(source=source, load=PoissonLoad(rate_rps=row.load), warmup_requests=warm)


def _trace(row: Measurement) -> TraceSource:
    """Return the trace that the notes name first, beside the rows' file or in a folder ``traces`` beside its folder."""
    named = row.noted(r"(\w[\w.-]*\.(?:jsonl|csv)(?:\.gz)?)")
    if named is None:
        raise ConfigError(f"{row.load_kind}: the notes name no .csv or .jsonl (.gz) to replay", path="notes")
    path = next((path for path in (row.folder / named, row.folder.parent / "traces" / named) if path.is_file()), None)
    if path is None:
        raise ConfigError(f"{named}: not beside the measurements, nor in ../traces from there", path="notes")
    blocks = row.noted(r"\((\d+)-token blocks\)")
    return TraceSource(path=str(path), block_tokens=int(blocks) if blocks else None)
