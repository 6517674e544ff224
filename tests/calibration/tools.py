"""Writes what each load generator would have written about a simulated run, in its own names, units and definitions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynosim.config import ConcurrencyLoad, PoissonLoad
from dynosim.metrics import Metrics
from dynosim.simulation import SimulationResult
from dynosim.simulation.records import COMPLETED

Load = ConcurrencyLoad | PoissonLoad
MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def _flat(metrics: Metrics, names: Mapping[str, str]) -> dict[str, float]:
    """vLLM's and SGLang's keys."""
    stats = {"mean": "avg", "median": "p50", "std": "std", "p99": "p99"}
    return {
        f"{key}_{short}_ms": metrics.value(name, stat) or 0.0
        for name, short in names.items()
        for key, stat in stats.items()
    }


def _counts(result: SimulationResult, metrics: Metrics) -> dict[str, Any]:
    done = result.requests[result.requests["status"] == COMPLETED]
    return {
        "duration": metrics.value("duration"),
        "completed": len(done),
        "total_input_tokens": int(done["input_tokens"].sum()),
        "total_output_tokens": int(done["output_tokens"].sum()),
        "request_throughput": metrics.value("request_throughput"),
        "output_throughput": metrics.value("output_token_throughput"),
    }


def _requests(result: SimulationResult) -> dict[str, np.ndarray]:
    """What became of each request that was answered, times in seconds."""
    done = result.requests[result.requests["status"] == COMPLETED]
    return {
        "sent": done["arrival_s"],
        "ttft": done["first_token_s"] - done["arrival_s"],
        "streamed": done["last_token_s"] - done["first_token_s"],
        "input": done["input_tokens"],
        "output": done["output_tokens"],
    }


def vllm_bench_detailed(result: SimulationResult, metrics: Metrics, load: Load) -> str:
    """As with ``--save-detailed``; the client's clock does not start at 0."""
    done = _requests(result)
    gaps = [
        [streamed / (n - 1)] * (n - 1) for streamed, n in zip(done["streamed"], done["output"].tolist(), strict=True)
    ]
    detailed = {
        "input_lens": done["input"].tolist(),
        "output_lens": done["output"].tolist(),
        "ttfts": done["ttft"].tolist(),
        "itls": gaps,
        "start_times": (done["sent"] + 1234.5).tolist(),
        "errors": [""] * len(gaps),
    }
    return json.dumps(json.loads(vllm_bench(result, metrics, load)) | detailed)


def aiperf_log(result: SimulationResult) -> str:
    """``profile_export.jsonl``: a line per request, with one of the warm-up and one that failed."""
    done = _requests(result)
    lines = [_aiperf_line(*values) for values in zip(*(done[name].tolist() for name in done), strict=True)]
    warmup = json.loads(lines[0])
    warmup["metadata"]["benchmark_phase"] = "warmup"
    failed = {"metadata": {"benchmark_phase": "profiling"}, "metrics": {}, "error": {"code": 500}}
    return "\n".join([json.dumps(warmup), *lines, json.dumps(failed)])


def _aiperf_line(sent: float, ttft: float, streamed: float, inputs: int, outputs: int) -> str:
    metrics = {
        "time_to_first_token": {"value": 1e3 * ttft, "unit": "ms"},
        "request_latency": {"value": 1e3 * (ttft + streamed), "unit": "ms"},
        "input_sequence_length": {"value": inputs, "unit": "tokens"},
        "output_sequence_length": {"value": outputs, "unit": "tokens"},
    }
    if outputs > 1:
        metrics["inter_token_latency"] = {"value": 1e3 * streamed / (outputs - 1), "unit": "ms"}
    metadata = {"request_start_ns": round((sent + 1e9) * 1e9), "benchmark_phase": "profiling"}
    return json.dumps({"metadata": metadata, "metrics": metrics, "error": None})


def vllm_bench(result: SimulationResult, metrics: Metrics, load: Load) -> str:
    closed = isinstance(load, ConcurrencyLoad)
    data = {
        "date": "20261122-060000",
        "backend": "vllm",
        "model_id": MODEL,
        "num_prompts": len(result.requests),
        "request_rate": "inf" if closed else load.rate_rps,
        "burstiness": 1.0 if closed else load.burstiness,
        "max_concurrency": load.concurrency if closed else None,
        **_counts(result, metrics),
        "failed": 0,
        "total_token_throughput": metrics.value("total_token_throughput"),
        **_flat(metrics, {"time_to_first_token": "ttft", "inter_token_latency": "tpot", "inter_chunk_latency": "itl"}),
    }
    return json.dumps(data)


def sglang(result: SimulationResult, metrics: Metrics, load: Load) -> str:
    closed = isinstance(load, ConcurrencyLoad)
    names = {"time_to_first_token": "ttft", "inter_token_latency": "tpot", "inter_chunk_latency": "itl"}
    data = {
        "backend": "sglang",
        "dataset_name": "random",
        "request_rate": math.inf if closed else load.rate_rps,
        "max_concurrency": load.concurrency if closed else None,
        "server_info": {"model_path": MODEL},
        **_counts(result, metrics),
        **_flat(metrics, {**names, "request_latency": "e2e_latency"}),
    }
    return json.dumps(data) + "\n"


def aiperf(result: SimulationResult, metrics: Metrics, load: Load) -> str:
    closed, done = isinstance(load, ConcurrencyLoad), result.requests[result.requests["status"] == COMPLETED]
    phase = {"type": "concurrency", "concurrency": load.concurrency} if closed else {}
    if not closed:
        phase = {"type": "gamma", "rate": load.rate_rps, "smoothness": load.burstiness}
    latencies = ("time_to_first_token", "inter_token_latency", "inter_chunk_latency", "request_latency")
    data = {
        "schema_version": "1.4",
        "aiperf_version": "0.13.0",
        "request_count": {"unit": "requests", "avg": len(done)},
        "benchmark_duration": {"unit": "sec", "avg": metrics.value("duration")},
        "input_sequence_length": {"unit": "tokens", "avg": float(done["input_tokens"].mean())},
        "output_sequence_length": {"unit": "tokens", "avg": float(done["output_tokens"].mean())},
        "output_token_throughput": {"unit": "tokens/sec", "avg": metrics.value("output_token_throughput")},
        **{name: {"unit": "ms", **metrics.values[name]} for name in latencies if metrics.values[name]},
        "input_config": {
            "models": {"items": [{"name": MODEL}]},
            "phases": [
                {"name": "warmup", "kind": "warmup", "type": "concurrency", "concurrency": 2},
                {"name": "profiling", "kind": "profiling", **phase},
            ],
        },
        "was_cancelled": False,
        "is_complete": True,
    }
    return json.dumps(data, indent=2)


def guidellm(result: SimulationResult, metrics: Metrics, load: Load, *, sampled: bool = False) -> str:
    closed, done = isinstance(load, ConcurrencyLoad), result.requests[result.requests["status"] == COMPLETED]
    strategy = {"type_": "concurrent", "streams": load.concurrency} if closed else {}
    if not closed:
        strategy = {"type_": "poisson", "rate": load.rate_rps}
    gaps = done["output_tokens"] - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        itl_ms = 1e3 * (done["last_token_s"] - done["first_token_s"]) / gaps
    summaries = {
        "time_to_first_token_ms": 1e3 * (done["first_token_s"] - done["arrival_s"]),
        "request_latency": done["last_token_s"] - done["arrival_s"],
        "prompt_token_count": done["input_tokens"],
        "output_token_count": done["output_tokens"],
        "inter_token_latency_ms": np.repeat(itl_ms[gaps > 0], gaps[gaps > 0]),
    }
    kept = itl_ms[: 5 if sampled else None].tolist()
    requests = [
        {
            "request_start_time": 1e9 + float(each["arrival_s"]),
            "prompt_tokens": int(each["input_tokens"]),
            "output_tokens": int(each["output_tokens"]),
            "time_to_first_token_ms": 1e3 * float(each["first_token_s"] - each["arrival_s"]),
            "inter_token_latency_ms": x if math.isfinite(x) else None,
            "request_latency": float(each["last_token_s"] - each["arrival_s"]),
        }
        for each, x in zip(done, kept, strict=False)
    ]
    benchmark = {
        "config": {"strategy": strategy, "backend": {"model": MODEL}},
        "metrics": {
            "request_totals": {"successful": len(done), "incomplete": 0, "errored": 0, "total": len(done)},
            **{name: {"successful": _summary(x)} for name, x in summaries.items()},
        },
        "requests": {"successful": requests},
        "duration": float(done["last_token_s"].max() - result.requests["arrival_s"].min()),
    }
    return json.dumps({"metadata": {"version": 2, "guidellm_version": "0.8.1"}, "benchmarks": [benchmark]})


def _summary(x: np.ndarray) -> dict[str, Any]:
    percentiles = {"p001": 0.1, "p01": 1, "p05": 5, **{f"p{p}": p for p in (10, 25, 50, 75, 90, 95, 99)}, "p999": 99.9}
    return {
        "mean": float(x.mean()),
        "std_dev": float(x.std()),
        "min": float(x.min()),
        "max": float(x.max()),
        "percentiles": {name: float(np.percentile(x, p)) for name, p in percentiles.items()},
    }


WRITERS: dict[str, Callable[[SimulationResult, Metrics, Load], str]] = {
    "AIPerf": aiperf,
    "vLLM bench": vllm_bench,
    "GuideLLM": guidellm,
    "SGLang bench_serving": sglang,
}


def write(path: Path, tool: str, result: SimulationResult, metrics: Metrics, load: Load) -> str:
    path.write_text(WRITERS[tool](result, metrics, load))
    return str(path)
