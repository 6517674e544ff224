"""AIPerf's ``profile_export_aiperf.json`` (AIPerf 0.13.0, schema 1.4).

Its tags are dynosim's names. Each metric says its unit, which is followed. The load is that of the profiling phase in
``input_config``; requests of the warm-up phase are in no metric of the file. The log of single requests is read from
beside it (``profile_export.jsonl``, or PREFIX.jsonl); alone it does not say under what load they ran. Not read: ramps
and rate series.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynosim.calibration.readers.record import Fields, MeasuredRun, Requests, known
from dynosim.config import ConcurrencyLoad, ConstantLoad, PoissonLoad
from dynosim.errors import ConfigError
from dynosim.metrics import STATS

SUMMARY, LOG = "profile_export_aiperf.json", "profile_export.jsonl"
LATENCIES = ("time_to_first_token", "inter_token_latency", "inter_chunk_latency", "request_latency")
PER_SECOND = {"ns": 1e9, "us": 1e6, "ms": 1e3, "sec": 1.0, "s": 1.0}
"""``MetricTimeUnit`` of AIPerf, how many make a second."""


def matches(documents: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether this is such a file, or AIPerf's log of single requests."""
    first = documents[0]
    return "aiperf_version" in first or _is_log(first)


def _is_log(first: Mapping[str, Any]) -> bool:
    return {"metadata", "metrics"} <= first.keys() and "benchmarks" not in first


def read(documents: Sequence[Mapping[str, Any]], file: str) -> list[MeasuredRun]:
    """Return the one run of the file."""
    if _is_log(documents[0]):
        raise ConfigError("AIPerf's log of single requests: name profile_export_aiperf.json beside it", file=file)
    fields = Fields(documents[0], file)
    if fields.data.get("is_complete") is False or fields.data.get("was_cancelled"):
        raise fields.error("is_complete", "the run ended early")
    metrics = {name: _latency(fields, name) for name in LATENCIES}
    metrics["output_token_throughput"] = {"avg": _average(fields, "output_token_throughput")}
    run = MeasuredRun(
        file=file,
        tool="aiperf",
        model=_model(fields),
        load=_load(fields),
        completed=fields.section("request_count").completed("avg"),
        failed=int(_average(fields, "error_request_count") if "error_request_count" in fields.data else 0),
        input_tokens=_average(fields, "input_sequence_length"),
        output_tokens=_average(fields, "output_sequence_length"),
        duration_s=_average(fields, "benchmark_duration") / _per_second(fields.section("benchmark_duration")),
        metrics=known(metrics),
        requests=_requests(Path(file)),
    )
    return [run]


def _requests(file: Path) -> Requests | None:
    """Return the completed requests of the profiling phase from the log beside the summary *file*."""
    log = file.with_name(LOG) if file.name == SUMMARY else file.with_suffix(".jsonl")
    if not log.is_file():
        return None
    lines = map(json.loads, filter(str.strip, log.read_text(encoding="utf-8").splitlines()))
    done = [each for each in lines if not each.get("error") and each["metadata"]["benchmark_phase"] == "profiling"]
    latencies = ("time_to_first_token", "inter_token_latency", "request_latency")
    return Requests.of(
        {
            "sent_s": [each["metadata"]["request_start_ns"] * 1e-9 for each in done],
            "input_tokens": [_value(each, "input_sequence_length") for each in done],
            "output_tokens": [_value(each, "output_sequence_length") for each in done],
            **{name: [1e3 * _value(each, name, time=True) for each in done] for name in latencies},
        }
    )


def _value(request: Mapping[str, Any], tag: str, *, time: bool = False) -> float:
    """Return a number of the log, seconds where it is a time; NaN where the request has none."""
    metric = request["metrics"].get(tag)
    return math.nan if metric is None else metric["value"] / (PER_SECOND[metric["unit"]] if time else 1.0)


def _average(fields: Fields, tag: str) -> float:
    return fields.section(tag).number("avg")


def _per_second(metric: Fields) -> float:
    unit = metric.text("unit")
    if unit not in PER_SECOND:
        raise metric.error("unit", f"{unit}: allowed: {', '.join(PER_SECOND)}")
    return PER_SECOND[unit]


def _latency(fields: Fields, tag: str) -> dict[str, float]:
    """Return the statistics in ms, none where the run has no such metric (answers that were not streamed)."""
    if tag not in fields.data:
        return {}
    metric = fields.section(tag)
    scale = 1e3 / _per_second(metric)
    stats = {stat: metric.number(stat) for stat in STATS if metric.data.get(stat) is not None}
    return {stat: x if stat == "count" else x * scale for stat, x in stats.items()}


def _model(fields: Fields) -> str | None:
    models = fields.section("input_config").data.get("models") or {}
    items = models.get("items") if isinstance(models, dict) else None
    return items[0].get("name") if items else None


def _load(fields: Fields) -> ConcurrencyLoad | PoissonLoad | ConstantLoad | None:
    phases = fields.section("input_config").data.get("phases") or []
    profiling = [phase for phase in phases if phase.get("kind", phase.get("name")) != "warmup"]
    if len(profiling) != 1:
        raise fields.error("input_config.phases", f"{len(profiling)} profiling phases: allowed: one")
    phase = Fields(profiling[0], fields.file, "input_config.phases")
    kind = phase.text("type")
    if kind != "concurrency" and "concurrency" in phase.data:
        raise phase.error("concurrency", "beside a request rate: allowed: one of the two")
    match kind:
        case "concurrency":
            return ConcurrencyLoad(concurrency=phase.count("concurrency", 1))
        case "poisson" | "gamma":
            return PoissonLoad(rate_rps=phase.number("rate"), burstiness=phase.number("smoothness", 1.0))
        case "constant":
            return ConstantLoad(rate_rps=phase.number("rate"))
        case "fixed_schedule":
            return None
    raise phase.error("type", f"{kind}: allowed: concurrency, poisson, gamma, constant, fixed_schedule")
