"""Effects of caches, host memory and links, and per-request times: measured against predicted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dynosim.fidelity.errors import grouped, pairs_of
from dynosim.fidelity.sweeps import RANKED, is_step, sweep_of

if TYPE_CHECKING:
    from dynosim.fidelity.replay import Outcome

Array = NDArray[np.float64]
Columns = Mapping[str, Array]
"""Per-request values by name, among them ``ttft_ms`` and ``input_tokens``, in order of arrival."""

HIT, TRANSFER = "prefix_hit_percent", "kv_transfer_ms"
CLIFF = 10.0
"""Percentage points of prefix-cache hits whose fall in one step makes a cliff."""


@dataclass(frozen=True)
class Effect:
    """What a change of the deployment or its load does, measured and predicted in *unit*."""

    name: str
    where: str
    unit: str
    measured: float
    predicted: float

    @property
    def ratio(self) -> float:
        """Predicted over measured size; below zero where the sign is wrong."""
        return self.predicted / self.measured if self.measured else math.nan

    @property
    def kept(self) -> bool:
        """Whether the sign is right and the size within a third."""
        return 2 / 3 <= self.ratio <= 4 / 3


@dataclass(frozen=True)
class Requests:
    """Per-request times of one row; quantile -> (measured, predicted) in ms."""

    id: str
    rows: int
    ttft_ms: Mapping[str, tuple[float, float]]
    latency_ms: Mapping[str, tuple[float, float]]
    correlation: float | None
    """Pearson's r of TTFT by request; None where the simulation's requests are not those of the log one by one."""


def effects(outcomes: Sequence[Outcome], requests: Iterable[Requests]) -> list[Effect]:
    """Return every effect that rows of *outcomes* and their per-request times show."""
    return [*_cliffs(outcomes), *_host_gains(outcomes), *_transfers(outcomes), *_queueing(requests)]


def _cliffs(outcomes: Iterable[Outcome]) -> Iterator[Effect]:
    """Yield the largest fall of prefix-cache hits from one load to the next of a sweep."""
    having = [o for o in outcomes if is_step(o) and HIT in o.predicted and HIT in o.measurement.measured]
    for rows in grouped(having, lambda o: sweep_of(o.measurement)).values():
        steps = list(pairwise(sorted(rows, key=lambda o: o.measurement.load or 0.0)))
        falls = [_change(a, b, HIT) for a, b in steps]
        if falls and min(falls)[0] < -CLIFF:
            a, b = steps[falls.index(min(falls))]
            where = f"{a.measurement.id} -> {b.measurement.id}"
            yield Effect("prefix-cache cliff: hits of prompt tokens", where, "points", *min(falls))


def _change(before: Outcome, after: Outcome, metric: str) -> tuple[float, float]:
    """Return after - before, measured and predicted."""
    return (
        after.measurement.measured[metric] - before.measurement.measured[metric],
        after.predicted[metric] - before.predicted[metric],
    )


def _host_gains(outcomes: Iterable[Outcome]) -> Iterator[Effect]:
    """Yield what KV offload to host memory changes, by rows whose ids differ in ``offloadon`` and ``offloadoff``."""
    by_id = {o.measurement.id: {pair.metric: pair for pair in pairs_of(o)} for o in outcomes if o.problem is None}
    for name, on in by_id.items():
        off = by_id.get(name.replace("offloadon", "offloadoff"), on)
        for metric in RANKED:
            if off is not on and metric in on and metric in off:
                measured = on[metric].measured / off[metric].measured - 1.0
                predicted = on[metric].predicted / off[metric].predicted - 1.0
                yield Effect(f"host tier: change of {RANKED[metric]}", name, "%", measured, predicted)


def _transfers(outcomes: Iterable[Outcome]) -> Iterator[Effect]:
    pairs = [pair for outcome in outcomes for pair in pairs_of(outcome) if pair.metric == TRANSFER]
    for pair in sorted(pairs, key=lambda pair: pair.measured):
        yield Effect("KV transfer time", pair.outcome.measurement.id, "ms", pair.measured, pair.predicted)


def requests(outcomes: Iterable[Outcome], logs: Mapping[str, Columns]) -> Iterator[Requests]:
    """Yield per-request times where both a log and a simulation have them."""
    for outcome in outcomes:
        log, ours = logs.get(outcome.measurement.id), outcome.requests
        if log is not None and ours is not None:
            quantiles = {name: _quantiles(log[name], ours[name]) for name in ("ttft_ms", "latency_ms")}
            yield Requests(
                outcome.measurement.id, len(log["ttft_ms"]), correlation=_correlation(log, ours), **quantiles
            )


def _queueing(scored: Iterable[Requests]) -> Iterator[Effect]:
    """Yield quantiles of TTFT where the requests are those of the log one by one."""
    for row in scored:
        if row.correlation is not None:
            yield from (Effect(f"queueing: {q} of TTFT", row.id, "ms", *row.ttft_ms[q]) for q in ("p50", "p90"))


def _quantiles(measured: Array, predicted: Array) -> dict[str, tuple[float, float]]:
    at = (10, 50, 90, 99)
    values = zip(np.nanpercentile(measured, at), np.nanpercentile(predicted, at), strict=True)
    return {f"p{q}": (float(a), float(b)) for q, (a, b) in zip(at, values, strict=True)}


def _correlation(log: Columns, ours: Columns) -> float | None:
    if not all(np.array_equal(log[name], ours[name]) for name in ("input_tokens", "output_tokens")):
        return None
    return float(np.corrcoef(log["ttft_ms"], ours["ttft_ms"])[0, 1])
