"""Sampling noise of the metrics of one run, by batch means: ten long batches stand for ten independent, shorter runs.

Requests are autocorrelated, because they meet the same queue, so s / sqrt(n) over requests is too small. Means of long
batches are nearly independent (Law, Simulation Modeling and Analysis, 9.5.3; 10 to 30 of them are enough: Schmeiser,
"Batch size effects", 1982). Ten, because fewer are longer: on M/D/1 waiting times coverage falls with their number.

A percentile q is turned around (Woodruff, 1952): batch means say how far the share of requests at or below q is known,
and the sample's own percentiles at the ends of that range are the interval. With independent requests it is the
textbook interval of order statistics.

What is kept of a metric are its ten deviations: relative differences of a batch from the whole, 0 on average. They give
the interval of one run, and, as all trials of a study serve the same requests, that of the difference of two: noise
that both share cancels. Of several seeds, they are those of each run from the mean (``metrics.over_seeds``).

Left out: percentiles of token gaps, which are kept as a histogram; utilisations and counts; what a scaled number of
GPUs adds to rates per GPU; requests that follow earlier ones by more than a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Edges = NDArray[np.int64]
Deviations = Mapping[str, Sequence[float]]
"""``Metrics.flat`` name -> relative deviation of each batch."""

BATCHES = 10
MIN_BATCH = 10
"""Requests that every batch needs: no metric has an interval below 100 requests."""
MIN_TAIL = 10
"""Requests beyond a percentile that its interval needs: p99 has none below 1,000."""
CONFIDENCE = 0.95
LEVELS = {"p1": 0.01, "p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
"""Percentiles with an interval."""

FOLLOWS: Mapping[str, tuple[str, int]] = {
    "output_token_throughput_per_gpu": ("output_token_throughput", 1),
    "total_token_throughput_per_gpu": ("total_token_throughput", 1),
    "goodput_token_throughput_per_gpu": ("goodput_token_throughput", 1),
    "usd_per_million_output_tokens": ("output_token_throughput", -1),
    "usd_per_million_total_tokens": ("total_token_throughput", -1),
    "usd_per_million_good_output_tokens": ("goodput_token_throughput", -1),
    "usd_per_1k_requests": ("request_throughput", -1),
}
"""Metric -> the rate that it is a constant times, or (-1) a constant over."""


def half_width(deviations: Array, confidence: float = CONFIDENCE) -> Array:
    """Return the half-width of the mean over batches, or over seeds (Student's t), along the last axis."""
    return np.asarray(np.linalg.norm(as_lengths(deviations, confidence), axis=-1))


def as_lengths(deviations: Array, confidence: float = CONFIDENCE) -> Array:
    """Return *deviations* so scaled and centred that the half-width of a difference is the length of theirs."""
    n = deviations.shape[-1]
    centred = deviations - deviations.mean(axis=-1, keepdims=True)
    return np.asarray(student_t(n - 1, confidence) * centred / math.sqrt(n * (n - 1)))


@lru_cache(maxsize=64)
def student_t(freedom: int, confidence: float) -> float:
    """Return t such that -t .. t has the probability *confidence* under Student's distribution, by bisection.

    Of whole degrees of *freedom* its distribution is a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    low, high = 0.0, math.pi / 2.0
    while low < (angle := (low + high) / 2.0) < high:
        low, high = (angle, high) if _probability(freedom, angle) < confidence else (low, angle)
    return math.sqrt(freedom) * math.tan(angle)


def _probability(freedom: int, angle: float) -> float:
    """Return the probability of less than sqrt(freedom) tan(angle) either way."""
    odd = freedom % 2
    term = total = math.sin(angle) * (math.cos(angle) if odd else 1.0)
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    return (angle + (total if freedom > 1 else 0.0)) * 2.0 / math.pi if odd else total


def relative(deviations: Deviations, name: str) -> Array | None:
    """Return the deviations of the metric *name* (``Metrics.flat``, or with ``.avg``); None without an interval."""
    name = name.removesuffix(".avg")
    source, sign = (name, 1) if name in deviations else FOLLOWS.get(name, (name, 1))
    known = deviations.get(source)
    return None if known is None else sign * np.asarray(known)


def interval(deviations: Deviations, name: str, value: float | None) -> tuple[float, float] | None:
    """Return the 95 % sampling interval of the metric *name* around its *value*; None where it has none."""
    known = relative(deviations, name)
    if known is None or value is None:
        return None
    half = abs(value) * float(half_width(known))
    return max(value - half, 0.0), value + half


def batch_edges(n: int) -> Edges:
    """Return where the batches of *n* consecutive requests begin, and *n*."""
    return np.arange(BATCHES + 1) * n // BATCHES


def of_ratio(part: Array, whole: Array | None, edges: Edges) -> list[float] | None:
    """Return the deviations of sum(part) / sum(whole) over requests (delta method); of a mean, *whole* is None."""
    if np.diff(edges).min() < MIN_BATCH or not (total := part.sum()):
        return None
    wholes = np.diff(edges) if whole is None else np.add.reduceat(whole, edges[:-1])
    return _rounded((np.add.reduceat(part, edges[:-1]) / total - wholes / wholes.sum()) * BATCHES)


def of_rates(arrival_s: Array, amounts: Mapping[str, Array]) -> dict[str, list[float] | None]:
    """Return the deviations of sum(amount) per second over equal windows of time.

    Amounts count when their request arrives, as in a closed loop the next one does when one ends: completions would
    take the ramp and the drain of the run, which are the same every time, for noise. So would the requests that come
    together at the start of a closed loop; they are left out.
    """
    start_s = float(arrival_s.min(initial=np.inf))
    after = arrival_s > start_s
    span_s = float(arrival_s.max(initial=start_s)) - start_s
    if after.sum() < MIN_BATCH * BATCHES:
        return {}
    window = np.minimum((arrival_s[after] - start_s) / span_s * BATCHES, BATCHES - 1).astype(np.int64)
    sums = {name: np.bincount(window, amount[after], BATCHES) for name, amount in amounts.items()}
    return {name: _rounded(x / x.sum() * BATCHES - 1.0) if x.any() else None for name, x in sums.items()}


@dataclass(frozen=True)
class Sample:
    """The known values of one metric."""

    values: Array
    """Shape (n,), in order of arrival."""
    edges: Edges
    """Where its batches begin, and n."""

    @cached_property
    def ascending(self) -> Array:
        """The values in their order of size."""
        return np.sort(self.values)

    def at(self, levels: Array) -> Array:
        """Return the percentiles at the shares *levels*: ``numpy.percentile``'s, to the last bit; the ends beyond."""
        rank = np.clip(levels, 0.0, 1.0) * (len(self.ascending) - 1)
        below = rank.astype(np.int64)
        low, high = self.ascending[below], self.ascending[np.minimum(below + 1, len(self.ascending) - 1)]
        part, step = rank - below, high - low
        return np.where(part >= 0.5, high - step * (1.0 - part), low + step * part)

    def shares_up_to(self, value: float) -> Array:
        """Return for each batch which share of it is at or below *value*."""
        below = self.values <= value
        counts = [np.count_nonzero(below[start:end]) for start, end in pairwise(self.edges.tolist())]
        return np.array(counts) / np.diff(self.edges)


def of_percentiles(sample: Sample, levels: Array) -> list[list[float] | None]:
    """Return the deviations of each percentile (shares *levels*), None where the sample is too small.

    That is where fewer than MIN_TAIL requests lie beyond it, or its interval would end beyond the largest or smallest.
    """
    n = len(sample.values)
    if np.diff(sample.edges).min() < MIN_BATCH:
        return [None] * len(levels)
    values = sample.at(levels)
    shares = np.array([sample.shares_up_to(value) for value in values])
    half = half_width(shares)
    low, high = levels - half, levels + half
    known = (n * np.minimum(levels, 1.0 - levels) >= MIN_TAIL) & (n * low >= 1.0) & (n * (1.0 - high) >= 1.0)
    width = sample.at(high) - sample.at(low)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(half > 0.0, width / (2.0 * half), 0.0) / values  # relative change per share
        deviations = -(shares - shares.mean(axis=1, keepdims=True)) * slope[:, None]
    return [_rounded(row) if sure else None for row, sure in zip(deviations, known & np.isfinite(slope), strict=True)]


def _rounded(x: Array) -> list[float] | None:
    """Return *x* to 1e-4 of the metric, which keeps stored trials small."""
    return x.round(4).tolist() if np.isfinite(x).all() else None


def sample_of(x: Array, edges: Edges) -> Sample:
    """Return the known values of *x*, NaN where a request has none, in batches that begin at *edges*."""
    known = np.isfinite(x)
    return Sample(x, edges) if known.all() else Sample(x[known], edges_within(known, edges))


def deviations_of(
    completed: NDArray[np.bool_],
    done: NDArray[Any],
    good: NDArray[np.bool_],
) -> dict[str, list[float]]:
    """Return the deviations of rates and ratios by their names in ``Metrics.flat``, of those that have an interval.

    *completed* says it of each request in order of arrival; those are the records *done* (``REQUEST_DTYPE``), *good*
    or not.
    """
    edges = batch_edges(len(completed))
    found = of_rates(done["arrival_s"], _amounts(done, good)) | _ratios(done, edges_within(completed, edges))
    found["good_request_fraction"] = _share(np.flatnonzero(completed)[good], len(completed), edges)
    found["served_request_fraction"] = _share(np.flatnonzero(completed), len(completed), edges)
    return _known(found)


def of_distribution(name: str, sample: Sample) -> dict[str, list[float]]:
    """Return the deviations of the metric *name*, its mean and its percentiles, by their names in ``Metrics.flat``."""
    percentiles = of_percentiles(sample, np.array(list(LEVELS.values())))
    named = {f"{name}.{stat}": deviations for stat, deviations in zip(LEVELS, percentiles, strict=True)}
    return _known({name: of_ratio(sample.values, None, sample.edges), **named})


def _known(found: Mapping[str, list[float] | None]) -> dict[str, list[float]]:
    return {name: deviations for name, deviations in found.items() if deviations is not None}


def edges_within(kept: NDArray[np.bool_], edges: Edges) -> Edges:
    """Return the edges of the same batches once only the *kept* requests are left."""
    counts = [np.count_nonzero(kept[start:end]) for start, end in pairwise(edges.tolist())]
    return np.concatenate(([0], np.cumsum(counts)))


def _share(rows: NDArray[np.int64], n: int, edges: Edges) -> list[float] | None:
    """Return the deviations of the share *rows* of *n* requests; none where it is all: of failures nothing is known."""
    if len(rows) == n:
        return None
    inside = np.zeros(n)
    inside[rows] = 1.0
    return of_ratio(inside, None, edges)


def _amounts(done: NDArray[Any], good: NDArray[np.bool_]) -> dict[str, Array]:
    input_, output = done["input_tokens"].astype(float), done["output_tokens"].astype(float)
    return {
        "request_throughput": np.ones(len(done)),
        "output_token_throughput": output,
        "input_token_throughput": input_,
        "total_token_throughput": input_ + output,
        "goodput": good.astype(float),
        "goodput_token_throughput": output * good,
    }


def _ratios(done: NDArray[Any], edges: Edges) -> dict[str, list[float] | None]:
    prompts, gaps = done["input_tokens"].astype(float), done["output_tokens"] - 1.0
    return {
        "prefix_cache_hit_rate": of_ratio(done["cached_tokens"].astype(float), prompts, edges),
        "inter_chunk_latency": of_ratio(done["last_token_s"] - done["first_token_s"], gaps, edges),
    }
