"""Metrics of one simulation under AIPerf's names, so that simulated and measured runs compare without glue.

Latencies are in milliseconds; a missing value is None, never 0. Percentiles interpolate linearly (numpy's default).
Warm-up requests are left out of everything that is counted per request. Left out: energy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dynosim.config import SLO, PriceConfig
from dynosim.config.goals import ALIASES, canonical
from dynosim.errors import ConfigError, nearest
from dynosim.hardware.prices import usd
from dynosim.simulation import SimulationResult, gaps
from dynosim.simulation.records import (
    COMPLETED,
    FAILED,
    INCOMPLETE,
    REJECTED,
    UNSENT,
    WAIT_REASONS,
    PoolRecord,
)
from dynosim.uncertainty import sampling

Array = NDArray[np.float64]
Value = float | dict[str, float] | None

PERCENTILES = {f"p{p:g}": p for p in (1, 5, 10, 25, 50, 75, 90, 95, 99)} | {"p999": 99.9}
LEVELS = np.array(list(PERCENTILES.values())) / 100.0
STATS = ("avg", "min", "max", "std", *PERCENTILES, "count", "sum")


@dataclass(frozen=True)
class MetricInfo:
    """How a metric is shown and which way is better."""

    display: str
    unit: str
    better: Literal["lower", "higher"] | None
    distribution: bool = False


def _latency(display: str) -> MetricInfo:
    return MetricInfo(display, "ms", "lower", distribution=True)


METRICS: Mapping[str, MetricInfo] = {
    "time_to_first_token": _latency("TTFT"),
    "time_to_second_token": _latency("TTST"),
    "inter_token_latency": _latency("ITL"),
    "inter_chunk_latency": _latency("ICL"),
    "request_latency": _latency("E2E latency"),
    "queue_time": _latency("queue time"),
    "prefill_time": _latency("prefill time"),
    "kv_transfer_time": _latency("KV transfer time"),
    "decode_time": _latency("decode time"),
    "preempted_time": _latency("preempted time"),
    "stall_time": _latency("stall time"),
    "output_token_throughput_per_user": MetricInfo("interactivity", "tok/s/user", "higher", distribution=True),
    "e2e_output_token_throughput": MetricInfo("E2E output speed", "tok/s/user", "higher", distribution=True),
    "request_throughput": MetricInfo("request throughput", "req/s", "higher"),
    "output_token_throughput": MetricInfo("output throughput", "tok/s", "higher"),
    "input_token_throughput": MetricInfo("input throughput", "tok/s", "higher"),
    "total_token_throughput": MetricInfo("total throughput", "tok/s", "higher"),
    "output_token_throughput_per_gpu": MetricInfo("output throughput per GPU", "tok/s/GPU", "higher"),
    "total_token_throughput_per_gpu": MetricInfo("total throughput per GPU", "tok/s/GPU", "higher"),
    "goodput": MetricInfo("goodput", "req/s", "higher"),
    "good_request_fraction": MetricInfo("SLO attainment", "ratio", "higher"),
    "served_request_fraction": MetricInfo("requests served", "ratio", "higher"),
    "goodput_token_throughput": MetricInfo("good output throughput", "tok/s", "higher"),
    "goodput_token_throughput_per_gpu": MetricInfo("good output throughput per GPU", "tok/s/GPU", "higher"),
    "usd_per_million_output_tokens": MetricInfo("cost", "USD/M output tokens", "lower"),
    "usd_per_million_total_tokens": MetricInfo("cost", "USD/M total tokens", "lower"),
    "usd_per_million_good_output_tokens": MetricInfo("cost", "USD/M good output tokens", "lower"),
    "usd_per_1k_requests": MetricInfo("cost", "USD/1k requests", "lower"),
    "usd_per_hour": MetricInfo("cost", "USD/h", "lower"),
    "gpus": MetricInfo("GPUs", "GPUs", "lower"),
    "gpu_hours": MetricInfo("GPU-hours", "GPU-h", "lower"),
    "replicas": MetricInfo("replicas", "replicas", "lower"),
    "replicas_min": MetricInfo("fewest replicas", "replicas", None),
    "replicas_max": MetricInfo("most replicas", "replicas", None),
    "replica_starts": MetricInfo("replicas started", "count", "lower"),
    "effective_concurrency": MetricInfo("requests in flight", "requests", None),
    "kv_cache_utilization": MetricInfo("KV cache use", "ratio", None),
    "batch_slot_utilization": MetricInfo("batch slot use", "ratio", None),
    "replica_utilization": MetricInfo("busy replicas", "ratio", None),
    "prefix_cache_hit_rate": MetricInfo("prefix cache hits", "ratio", "higher"),
    "host_cache_hit_rate": MetricInfo("host memory cache hits", "ratio", "higher"),
    "disk_cache_hit_rate": MetricInfo("disk cache hits", "ratio", "higher"),
    "remote_cache_hit_rate": MetricInfo("remote cache hits", "ratio", "higher"),
    "kv_link_utilization": MetricInfo("busiest KV link", "ratio", None),
    "acceptance_length": MetricInfo("tokens per decode pass", "tokens", "higher"),
    **{
        f"wait_{reason}_share": MetricInfo(f"queueing for {reason.replace('_', ' ')}", "ratio", None)
        for reason in WAIT_REASONS
    },
    "preemptions": MetricInfo("preemptions", "count", "lower"),
    "retries": MetricInfo("retries", "count", "lower"),
    "extrapolated_pass_share": MetricInfo("extrapolated pass time", "ratio", "lower"),
    "saturated": MetricInfo("saturated", "0 or 1", "lower"),
    "stopped_early": MetricInfo("ended by a stop rule", "0 or 1", None),
    "duration": MetricInfo("duration", "s", None),
    "completed": MetricInfo("completed", "count", "higher"),
    "rejected": MetricInfo("rejected", "count", "lower"),
    "failed": MetricInfo("failed", "count", "lower"),
    "incomplete": MetricInfo("incomplete", "count", "lower"),
    "slo_undetermined_requests": MetricInfo("without an SLO-bound metric", "count", None),
}
"""Every metric by canonical name (AIPerf's tags where it has one)."""


LATENCY_PARTS = ("queue_time", "prefill_time", "kv_transfer_time", "decode_time", "preempted_time", "stall_time")
"""They sum to ``request_latency``, request by request."""

TAILS = {
    "tail_ttft": "time_to_first_token",
    "tail_itl": "inter_token_latency",
    "tail_latency": "request_latency",
}
"""Further statistic of each of LATENCY_PARTS: its mean over the slowest 1 % of requests -> by which metric."""


@dataclass(frozen=True)
class Metrics:
    """All metrics of one run: scalars, and distributions as statistic -> value."""

    values: Mapping[str, Value]
    deviations: sampling.Deviations = field(default_factory=dict)
    """What is known of their sampling noise, see ``uncertainty.sampling``; metrics without an interval are absent."""

    def value(self, metric: str, stat: str | None = None) -> float | None:
        """Return one number, or None where it is missing. A distribution without *stat* gives its average.

        *metric* may be one of ``config.goals.ALIASES``.
        """
        found = self.values[canonical(metric)]
        return found.get(stat or "avg") if isinstance(found, dict) else found

    def number(self, name: str) -> float | None:
        """Return the number that ``flat`` has under *name*, None where it is missing or no metric."""
        metric, _, stat = name.partition(".")
        return self.value(metric, stat or None) if metric in self.values else None

    def interval(self, metric: str, stat: str | None = None) -> tuple[float, float] | None:
        """Return the 95 % sampling interval of one number in its unit; None where the sample gives none."""
        return sampling.interval(self.deviations, f"{canonical(metric)}.{stat or 'avg'}", self.value(metric, stat))

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return the sampling interval of every number of ``flat`` that has one."""
        known = ((name, sampling.interval(self.deviations, name, value)) for name, value in self.flat().items())
        return {name: interval for name, interval in known if interval is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return name -> number, None, or {statistic: number}."""
        return dict(self.values)

    def flat(self) -> dict[str, float]:
        """Return MLflow keys: the bare name (average) and ``name.statistic``; missing values are absent."""
        out: dict[str, float] = {}
        for name, value in self.values.items():
            if isinstance(value, dict):
                out |= {name if stat == "avg" else f"{name}.{stat}": number for stat, number in value.items()}
            elif value is not None:
                out[name] = value
        return out


def over_seeds(runs: Sequence[Metrics]) -> Metrics:
    """Return the mean of each number over runs of one scenario with different seeds, each run a deviation from it.

    A number that one run lacks is missing. Independent runs give everything an interval, and need no long ones.
    """
    means = averaged(runs)
    flats, known = [run.flat() for run in runs], means.flat()
    deviations = {
        name: (np.array([flat[name] for flat in flats]) / mean - 1.0).round(4).tolist()
        for name, mean in known.items()
        if mean
    }
    return replace(means, deviations=deviations)


def averaged(runs: Sequence[Metrics], weights: Array | None = None) -> Metrics:
    """Return the mean of each number over *runs*, weighted (``n``) where asked for; missing where one run lacks it."""
    flats = [run.flat() for run in runs]
    known = {name: np.array([flat[name] for flat in flats]) for name in flats[0] if all(name in flat for flat in flats)}
    means = {name: float(np.average(x, weights=weights)) for name, x in known.items()}
    return Metrics({name: _mean_value(name, value, means) for name, value in runs[0].values.items()})


def _mean_value(name: str, value: Value, means: Mapping[str, float]) -> Value:
    if not isinstance(value, dict):
        return means.get(name)
    keys = {stat: name if stat == "avg" else f"{name}.{stat}" for stat in value}
    return {stat: means[key] for stat, key in keys.items() if key in means} or None


def check_metric(metric: str, stat: str | None, path: str) -> MetricInfo:
    """Return the metric's info; ConfigError when the name or the statistic does not exist."""
    if metric not in METRICS:
        near = nearest(metric.lower(), [*METRICS, *ALIASES], most=3, cutoff=0.0)  # too many to list
        raise ConfigError(f"{metric!r}: no such metric: {near.strip()}", path=path)
    info = METRICS[metric]
    if info.distribution and stat not in STATS:
        what = f"{stat!r}: {nearest(stat, STATS)}" if stat else f"{metric} needs a statistic, such as {metric}.p99; "
        raise ConfigError(f"{what}allowed: {', '.join(STATS)}", path=path)
    if not info.distribution and stat is not None:
        raise ConfigError(f"{stat!r}: {metric} is one number without statistics", path=path)
    return info


def _describe(sample: sampling.Sample) -> dict[str, float] | None:
    x, order = sample.values, sample.ascending
    if not len(x):
        return None
    total = x.sum()
    stats = {"avg": total / len(x), "min": order[0], "max": order[-1], "std": x.std()}
    stats |= dict(zip(PERCENTILES, sample.at(LEVELS), strict=True))
    return {k: float(v) for k, v in stats.items()} | {"count": float(len(x)), "sum": float(total)}


def _describe_gaps(result: SimulationResult) -> dict[str, float] | None:
    """Statistics of the pooled token gaps in ms (the bins are 0.2 % wide; the average is exact)."""
    count, total = result.gaps.count.sum(), result.gaps.sum_s.sum()
    if not count:
        return None
    filled = result.gaps.count > 0
    means = result.gaps.sum_s[filled] / result.gaps.count[filled]
    std = math.sqrt(max(float(np.average((means - total / count) ** 2, weights=result.gaps.count[filled])), 0.0))
    stats = {"avg": total / count, "min": result.gaps.min_s, "max": result.gaps.max_s, "std": std}
    stats |= {name: gaps.percentile(result.gaps, p) for name, p in PERCENTILES.items()}
    return {k: float(v) * 1e3 for k, v in stats.items()} | {"count": float(count), "sum": float(total) * 1e3}


def _latencies(requests: NDArray[Any]) -> dict[str, Array]:
    """Per-request latencies in ms and rates in tokens/s; NaN where undefined."""
    first, last, arrival = (requests[n] for n in ("first_token_s", "last_token_s", "arrival_s"))
    tokens = requests["output_tokens"]
    with np.errstate(divide="ignore", invalid="ignore"):
        itl_s = np.where(tokens > 1, (last - first) / (tokens - 1), np.nan)
        per_user, end_to_end = 1.0 / itl_s, tokens / (last - arrival)
    parts = {name: requests[f"{name.removesuffix('_time')}_s"] for name in LATENCY_PARTS}
    seconds = {
        "time_to_first_token": first - arrival,
        "time_to_second_token": requests["second_token_s"] - first,
        "inter_token_latency": itl_s,
        "request_latency": last - arrival,
        **parts,
    }
    return {name: x * 1e3 for name, x in seconds.items()} | {
        "output_token_throughput_per_user": per_user,
        "e2e_output_token_throughput": end_to_end,
    }


def _with_tails(values: Mapping[str, Value], latencies: Mapping[str, Array], done: NDArray[Any]) -> dict[str, Value]:
    """Return the parts of the latency with their means over each of TAILS, in ms.

    Of ``tail_ttft`` it is the time up to the first token, of ``tail_itl`` that after it, so that they sum to it.
    """
    means: dict[str, dict[str, float]] = {part: {} for part in LATENCY_PARTS}
    for tail, metric in TAILS.items():
        described = values[metric]
        if not isinstance(described, dict):
            continue
        rows = np.flatnonzero(latencies[metric] >= described["p99"])
        before = _before_first_token(done[rows], latencies["time_to_first_token"][rows])
        for part in LATENCY_PARTS:
            whole = latencies[part][rows]
            x = {"tail_ttft": before[part], "tail_itl": whole - before[part]}.get(tail, whole)
            means[part][tail] = float(x.mean())
    return {part: found | means[part] for part in LATENCY_PARTS if isinstance(found := values[part], dict)}


def _before_first_token(done: NDArray[Any], ttft_ms: Array) -> dict[str, Array]:
    """Return the part of each time that lies before the first token, in ms: they fill it up in the order they occur."""
    left, taken = ttft_ms.copy(), {name: np.zeros(len(done)) for name in LATENCY_PARTS}
    phases = {
        "queue_time": done["queue_s"] - done["decode_queue_s"],
        "prefill_time": done["prefill_s"],
        "preempted_time": done["preempted_s"],
        "decode_queue": done["decode_queue_s"],
        "kv_transfer_time": done["kv_transfer_s"],
        "decode_time": done["decode_s"],
        "stall_time": done["stall_s"],
    }
    for phase, seconds in phases.items():
        part = np.clip(1e3 * seconds, 0.0, left)
        taken["queue_time" if phase == "decode_queue" else phase] += part
        left = left - part
    return taken


def _good(latencies: Mapping[str, Array], slo: SLO) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which requests meet every per-request bound, and for which a bound says nothing (one-token outputs).

    A bound on any statistic of a per-request metric bounds each request (AIPerf's and vLLM's goodput); of several, the
    widest: a median bound is meant for half of the requests only.
    """
    n = len(next(iter(latencies.values())))
    good, undetermined = np.ones(n, bool), np.zeros(n, bool)
    for name, bounds in slo.items():
        if name in latencies:
            x, below = latencies[name], METRICS[name].better == "lower"
            met = x <= max(bounds.values()) if below else x >= min(bounds.values())
            good &= met | np.isnan(x)
            undetermined |= np.isnan(x)
    return good, undetermined


def _waited(requests: NDArray[Any], end_s: float) -> Array:
    """Seconds each waited before its first token beyond its own prefill, until *end_s* for who still waits.

    Room on the decode replica and the way of its KV cache there, which others slow down, included.
    """
    scheduled, computed, landed = (
        np.fmin(requests[n], end_s) for n in ("scheduled_s", "prefill_done_s", "kv_landed_s")
    )
    computed = np.where(np.isfinite(requests["prefill_done_s"]), computed, landed)
    so_far = scheduled - requests["arrival_s"] + landed - computed
    known: Array = requests["queue_s"] + requests["kv_transfer_s"]
    waited: Array = np.where(np.isfinite(known), known, so_far)
    return waited


def _saturated(requests: NDArray[Any], end_s: float) -> bool:
    """Whether the backlog kept growing: waiting rises into the last fifth of arrivals, to over three times the first's.

    By more than chance and one's own prefill explain: n arrivals at a server just at its limit wander by sqrt(n)
    services, 1 / sqrt(n) of the time they take to arrive.
    """
    arrival_s = np.ascontiguousarray(requests["arrival_s"])
    span_s = float(np.ptp(arrival_s)) if len(requests) >= 100 else 0.0
    if not span_s:
        return False
    waited = _waited(requests, end_s)
    if (np.diff(arrival_s) < 0.0).any():
        waited = waited[np.argsort(arrival_s, kind="stable")]
    early, *_, before, late = (part.mean() for part in np.array_split(waited, 5))
    # A stop cuts the last waits off: those still waiting would take this long at the rate so far.
    waiting = int((~np.isfinite(requests["kv_landed_s"]) & ~_computing(requests)).sum())
    late = max(late, waiting / max(len(requests) - waiting, 1) * (end_s - arrival_s.min()))
    chance_s = max(span_s / math.sqrt(len(requests)), _mean(requests["prefill_s"]))
    return bool(waiting < len(requests) and late > max(3.0 * early, before) and late - early > chance_s)


def _computing(requests: NDArray[Any]) -> NDArray[np.bool_]:
    computing: NDArray[np.bool_] = np.isfinite(requests["scheduled_s"]) & ~np.isfinite(requests["prefill_done_s"])
    return computing


def _mean(x: Array) -> float:
    """Mean of the known values, 0 without any."""
    known = x[np.isfinite(x)]
    return float(known.mean()) if len(known) else 0.0


def summarize(result: SimulationResult, slo: SLO, prices: PriceConfig) -> Metrics:
    """Return all metrics of *result*. Rates are per second from the first measured arrival to the last token."""
    measured = result.requests[result.warmup_requests :]
    measured = _kept(measured, measured["status"] != UNSENT)
    status = np.ascontiguousarray(measured["status"])
    completed = status == COMPLETED
    done = _kept(measured, completed)
    latencies = _latencies(done)
    values: dict[str, Value] = {}
    deviations: dict[str, list[float]] = {}
    edges = sampling.edges_within(completed, sampling.batch_edges(len(completed)))
    for name, x in latencies.items():
        sample = sampling.sample_of(x, edges)
        values[name] = _describe(sample)
        deviations |= sampling.of_distribution(name, sample)
    values |= _with_tails(values, latencies, done)
    values["inter_chunk_latency"] = _describe_gaps(result)
    span_s = float(done["last_token_s"].max() - measured["arrival_s"].min()) if len(done) else math.nan
    good, undetermined = _good(latencies, slo)
    values |= _throughput(result, done, good, span_s) | _cost(result, prices, done, good, span_s)
    values |= _usage(result, done, span_s)
    values |= {
        "good_request_fraction": _ratio(float(good.sum()), len(measured)),
        "served_request_fraction": _ratio(len(done), len(measured)),
        "completed": float(len(done)),
        "rejected": float(np.count_nonzero(status == REJECTED)),
        "failed": float(np.count_nonzero(status == FAILED)),
        "incomplete": float(np.count_nonzero(status == INCOMPLETE)),
        "slo_undetermined_requests": float(undetermined.sum()),
        "preemptions": float(measured["preemptions"].sum()),
        "retries": float(measured["retries"].sum()),
        "saturated": float(_saturated(_kept(measured, (status != REJECTED) & (status != FAILED)), _end_s(result))),
        "stopped_early": float(bool(result.stopped)),
        "duration": result.duration_s,
    }
    finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
    deviations |= sampling.deviations_of(completed, done, good)
    return Metrics({name: finite[name] for name in METRICS}, deviations)


def _kept(requests: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the requests of the *mask*, not copied where it is all of them."""
    return requests if mask.all() else requests[mask]


def _ratio(part: float, whole: float) -> float:
    """Return part / whole; NaN, a missing value, where there is no whole."""
    return part / whole if whole else math.nan


def _end_s(result: SimulationResult) -> float:
    """Return the virtual time at which the run ended."""
    return float(np.nanmin(result.requests["arrival_s"])) + result.duration_s


def _gpus(result: SimulationResult) -> float:
    """Time-averaged provisioned GPUs."""
    return _ratio(sum(pool.gpu_seconds for pool in result.pools), result.duration_s)


def _throughput(
    result: SimulationResult, done: NDArray[Any], good: NDArray[np.bool_], span_s: float
) -> dict[str, Value]:
    gpus, output, input_ = _gpus(result), float(done["output_tokens"].sum()), float(done["input_tokens"].sum())
    amounts = {
        "request_throughput": float(len(done)),
        "output_token_throughput": output,
        "input_token_throughput": input_,
        "total_token_throughput": input_ + output,
        "goodput": float(good.sum()),
        "goodput_token_throughput": float(done["output_tokens"][good].sum()),
    }
    rates = {name: _ratio(amount, span_s) for name, amount in amounts.items()}
    tokens = ("output_token_throughput", "total_token_throughput", "goodput_token_throughput")
    return {**rates, **{f"{name}_per_gpu": _ratio(rates[name], gpus) for name in tokens}, "gpus": gpus}


def _cost(
    result: SimulationResult, prices: PriceConfig, done: NDArray[Any], good: NDArray[np.bool_], span_s: float
) -> dict[str, Value]:
    """Cost of the measured span: the run's mean USD per second times the span."""
    gpu_hours = ((pool.gpu, pool.gpu_seconds / 3600.0) for pool in result.pools)
    usd_per_s = _ratio(usd(gpu_hours, prices), result.duration_s)
    spent = usd_per_s * span_s
    output = float(done["output_tokens"].sum())
    return {
        "usd_per_million_output_tokens": 1e6 * _ratio(spent, output),
        "usd_per_million_total_tokens": 1e6 * _ratio(spent, output + float(done["input_tokens"].sum())),
        "usd_per_million_good_output_tokens": 1e6 * _ratio(spent, float(done["output_tokens"][good].sum())),
        "usd_per_1k_requests": 1e3 * _ratio(spent, len(done)),
        "usd_per_hour": usd_per_s * 3600.0,
    }


def _usage(result: SimulationResult, done: NDArray[Any], span_s: float) -> dict[str, Value]:
    served = {pool.role: pool.gpu_seconds / pool.gpus_per_replica for pool in result.pools}  # replica-seconds

    def weighted(attribute: Callable[[PoolRecord], float]) -> float:
        return _ratio(sum(attribute(pool) * served[pool.role] for pool in result.pools), sum(served.values()))

    busy = sum(pool.busy_s for pool in result.pools)
    return {
        "effective_concurrency": _ratio(float((done["last_token_s"] - done["arrival_s"]).sum()), span_s),
        "kv_cache_utilization": weighted(lambda pool: pool.mean_kv_utilization),
        "batch_slot_utilization": weighted(lambda pool: pool.mean_batch / pool.max_num_seqs),
        "replica_utilization": _ratio(busy, sum(served.values())),
        "kv_link_utilization": max(
            (x for pool in result.pools for x in pool.link_utilization.values()), default=math.nan
        ),
        "acceptance_length": _acceptance_length(result),
        "extrapolated_pass_share": _ratio(sum(p.extrapolated_pass_share * p.busy_s for p in result.pools), busy),
        **_cache_hits(done),
        **_waits(done),
        **_replicas(result),
    }


def _cache_hits(done: NDArray[Any]) -> dict[str, Value]:
    """Share of prompt tokens that each tier of the KV cache had at first admission."""
    columns = {"prefix_cache_hit_rate": "cached_tokens"}
    columns |= {f"{tier}_cache_hit_rate": f"cached_{tier}_tokens" for tier in ("host", "disk", "remote")}
    prompts = float(done["input_tokens"].sum())
    return {name: _ratio(float(done[column].sum()), prompts) for name, column in columns.items()}


def _waits(done: NDArray[Any]) -> dict[str, Value]:
    """Share of all queueing by what the head of the queue waited for."""
    waited = {reason: float(done[f"wait_{reason}_s"].sum()) for reason in WAIT_REASONS}
    return {f"wait_{reason}_share": _ratio(x, sum(waited.values())) for reason, x in waited.items()}


def _acceptance_length(result: SimulationResult) -> float:
    """Tokens that one request gets per decode pass; NaN without speculative decoding."""
    rounds = sum(pool.decode_rounds for pool in result.pools)
    if not rounds:
        return math.nan
    tokens = result.requests["output_tokens"][result.requests["status"] == COMPLETED] - 1
    return float(tokens.sum()) / rounds


def _replicas(result: SimulationResult) -> dict[str, Value]:
    """Replicas that were paid for, summed over the pools."""
    provisioned = [pool.timeline[:, 1] for pool in result.pools]
    return {
        "gpu_hours": sum(pool.gpu_seconds for pool in result.pools) / 3600.0,
        "replicas": _ratio(sum(p.gpu_seconds / p.gpus_per_replica for p in result.pools), result.duration_s),
        "replicas_min": float(sum(counts.min() for counts in provisioned)),
        "replicas_max": float(sum(counts.max() for counts in provisioned)),
        "replica_starts": float(sum(np.maximum(np.diff(counts), 0).sum() for counts in provisioned)),
    }


def check_slo(slo: SLO) -> None:
    """Raise ConfigError when an SLO names an unknown metric or statistic; a number is bounded by min or max."""
    for metric, bounds in slo.items():
        for stat in bounds:
            path = f"slo.{metric}.{stat}"
            if metric not in METRICS or METRICS[metric].distribution:
                check_metric(metric, stat, path)
            elif stat not in ("min", "max"):
                raise ConfigError(f"{stat!r}: {metric} is one number: allowed: min, max", path=path)


@dataclass(frozen=True)
class Bound:
    """One bound of an SLO."""

    metric: str
    stat: str
    """Of a distribution, which is bounded from the metric's worse side; of one number ``min`` or ``max``."""
    value: float
    """In the metric's unit."""

    @property
    def name(self) -> str:
        """``metric.stat``: its key wherever violations are kept."""
        return f"{self.metric}.{self.stat}"

    @property
    def label(self) -> str:
        """What it bounds, in words."""
        info = METRICS[self.metric]
        return f"{info.display} {self.stat}" if info.distribution else info.display

    @property
    def upper(self) -> bool:
        """Whether larger values violate it."""
        info = METRICS[self.metric]
        return info.better == "lower" if info.distribution else self.stat == "max"

    def of(self, metrics: Metrics) -> float | None:
        """Return the number that it bounds, None where that is missing."""
        return metrics.value(self.metric, self.stat if METRICS[self.metric].distribution else None)

    def violation(self, metrics: Metrics) -> float:
        """Return the violation relative to the bound; at or below 0 is met, inf where the number is missing."""
        value = self.of(metrics)
        over = math.inf if value is None else (value - self.value if self.upper else self.value - value)
        return over / abs(self.value) if self.value else over

    def at(self, violation: float) -> float | None:
        """Return the number that has *violation*, None where that is infinite: the inverse of ``violation``."""
        over = violation * (abs(self.value) if self.value else 1.0)
        return None if math.isinf(over) else self.value + over if self.upper else self.value - over


def bounds_of(slo: SLO) -> list[Bound]:
    """Return the bounds of *slo* in its order."""
    return [Bound(metric, stat, value) for metric, stats in slo.items() for stat, value in stats.items()]


def slo_violations(metrics: Metrics, slo: SLO) -> dict[str, float]:
    """Return the violation of each bound by its name."""
    return {bound.name: bound.violation(metrics) for bound in bounds_of(slo)}
