"""GuideLLM's ``benchmarks.json`` (GuideLLM 0.8.1, report version 2): several benchmarks, each a run.

Request latencies are in seconds, token times in milliseconds. The summary of ``inter_token_latency_ms`` weights each
request by its gaps, so its mean is that of the pooled gaps, ``inter_chunk_latency``, and its percentiles are those of
nothing here; ``inter_token_latency`` comes from the requests themselves where the file has all of them. GuideLLM's own
``time_per_output_token_ms`` counts the first token's time and is not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.calibration.readers.record import Fields, MeasuredRun, Requests, known
from dynosim.config import ConcurrencyLoad, ConstantLoad, PoissonLoad
from dynosim.metrics import PERCENTILES

_STATS = {"mean": "avg", "std_dev": "std", "min": "min", "max": "max"}
_PERCENTILES = {"p01": "p1", "p05": "p5"} | {name: name for name in PERCENTILES if name not in ("p1", "p5")}


def matches(documents: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether this is such a file."""
    return isinstance(documents[0].get("benchmarks"), list)


def read(documents: Sequence[Mapping[str, Any]], file: str) -> list[MeasuredRun]:
    """Return one run per benchmark."""
    benchmarks = documents[0]["benchmarks"]
    return [_run(Fields(benchmark, file, f"benchmarks.{i}")) for i, benchmark in enumerate(benchmarks)]


def _run(fields: Fields) -> MeasuredRun:
    metrics, config = fields.section("metrics"), fields.section("config")
    totals, output = metrics.section("request_totals"), _successful(metrics, "output_token_count")
    completed, duration_s = totals.completed("successful"), fields.number("duration")
    requests = (fields.data.get("requests") or {}).get("successful") or []
    requests = requests if len(requests) == completed else []
    return MeasuredRun(
        file=fields.file,
        tool="guidellm",
        model=config.section("backend").text("model"),
        load=_load(config.section("strategy"), completed),
        completed=completed,
        failed=totals.count("errored", 0),
        input_tokens=_successful(metrics, "prompt_token_count").number("mean"),
        output_tokens=output.number("mean"),
        duration_s=duration_s,
        metrics=known(
            {
                "time_to_first_token": _statistics(_successful(metrics, "time_to_first_token_ms")),
                "inter_token_latency": _gaps(requests),
                "inter_chunk_latency": {"avg": _successful(metrics, "inter_token_latency_ms").number("mean")},
                "request_latency": _statistics(_successful(metrics, "request_latency"), 1e3),
                "output_token_throughput": {"avg": output.number("mean") * completed / duration_s},
            }
        ),
        requests=_requests(requests),
    )


def _successful(metrics: Fields, name: str) -> Fields:
    return metrics.section(name).section("successful")


def _statistics(summary: Fields, scale: float = 1.0) -> dict[str, float]:
    percentiles = summary.section("percentiles")
    found = {stat: summary.number(key) * scale for key, stat in _STATS.items()}
    return found | {stat: percentiles.number(key) * scale for key, stat in _PERCENTILES.items()}


def _gaps(requests: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return statistics over the requests, none where the file keeps a sample of them."""
    gaps_ms = _column(requests, "inter_token_latency_ms")
    gaps_ms = gaps_ms[np.isfinite(gaps_ms)]
    if not len(gaps_ms):
        return {}
    percentiles = np.percentile(gaps_ms, list(PERCENTILES.values())).tolist()
    stats = dict(zip(PERCENTILES, percentiles, strict=True))
    return stats | {"avg": float(gaps_ms.mean()), "std": float(gaps_ms.std())}


def _column(requests: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    return np.array([np.nan if request.get(key) is None else request[key] for request in requests], dtype=float)


def _requests(requests: Sequence[Mapping[str, Any]]) -> Requests | None:
    keys = {
        "sent_s": "request_start_time",
        "input_tokens": "prompt_tokens",
        "output_tokens": "output_tokens",
        "time_to_first_token": "time_to_first_token_ms",
        "inter_token_latency": "inter_token_latency_ms",
    }
    columns = {name: _column(requests, key) for name, key in keys.items()}
    return Requests.of({**columns, "request_latency": 1e3 * _column(requests, "request_latency")})


def _load(strategy: Fields, completed: int) -> ConcurrencyLoad | PoissonLoad | ConstantLoad | None:
    kind = strategy.text("type_")
    match kind:
        case "synchronous":
            return ConcurrencyLoad(concurrency=1)
        case "concurrent":
            return ConcurrencyLoad(concurrency=strategy.count("streams"))
        case "throughput":
            return ConcurrencyLoad(concurrency=strategy.count("max_concurrency", completed))
        case "poisson":
            return PoissonLoad(rate_rps=strategy.number("rate"))
        case "constant":
            return ConstantLoad(rate_rps=strategy.number("rate"))
        case "trace":
            return None
    raise strategy.error("type_", f"{kind}: allowed: synchronous, concurrent, throughput, poisson, constant, trace")
