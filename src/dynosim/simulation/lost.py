"""Lost causes: runs that miss an SLO however they go on, known from the requests that are late already.

A request that waits is at least as late as it is now, and one of which nothing is known may take no time at all. A
statistic over such lower bounds is a lower bound of the statistic, since averages and percentiles grow with each value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dynosim.config import SLO
from dynosim.workload.table import FloatArray, IntArray

PERCENT = {"min": 0.0, "max": 100.0, "p999": 99.9} | {f"p{p}": float(p) for p in (1, 5, 10, 25, 50, 75, 90, 95, 99)}
"""Statistic -> percentile that it is."""
STATISTICS: dict[str, Callable[[FloatArray], np.floating[Any]]] = {"avg": np.mean} | {
    stat: partial(np.percentile, q=q) for stat, q in PERCENT.items()
}
SERVED = "served_request_fraction"


class Progress(NamedTuple):
    """What is known of a run at *time_s*; arrays have a row per measured request that was sent and not given up."""

    time_s: float
    arrival_s: FloatArray
    first_token_s: FloatArray
    """NaN where it was not shown yet."""
    last_token_s: FloatArray
    output_tokens: IntArray
    total: int
    """Measured requests, those that may still be sent included."""
    unserved: int
    """Of them, those that never fit or were given up."""
    certain: bool
    """Whether every other request that is sent will be served."""


@dataclass(frozen=True)
class LostCause:
    """Ends a run once it is certain to miss an SLO by *margin*.

    Looks at ``served_request_fraction`` and at averages and percentiles of ``time_to_first_token``,
    ``request_latency`` and ``inter_token_latency``.
    """

    slo: SLO
    margin: float = 1.5
    """A latency must reach this multiple of its bound: a search learns more from *far over* than from *over*."""

    def violations(self, seen: Progress) -> dict[str, float]:
        """Return ``metric.stat`` -> lower bound of its violation (``metrics.slo_violations``); empty unless lost.

        Latencies count served requests only, and one that is late now may never be. So their bounds hold for every
        ending that serves as many as ``served_request_fraction`` asks for; the others are lost by that alone.
        """
        served = self.slo.get(SERVED, {}).get("min", 0.0)
        spare = math.floor((1.0 - served) * seen.total + 1e-9) - seen.unserved
        if spare < 0:
            return {f"{SERVED}.min": 1.0 - (seen.total - seen.unserved) / seen.total / served}
        spare = 0 if seen.certain else spare
        return self._missed(seen, spare, self.margin) and self._missed(seen, spare, 1.0)

    def _missed(self, seen: Progress, spare: int, margin: float) -> dict[str, float]:
        """Return the violations of the bounds on latencies that are missed by *margin*."""
        found = {}
        for metric in self.slo:
            for stat, limit_ms in self.slo[metric].items() if metric in _LATENCIES else ():
                low_ms = _lower_bound_ms(seen, metric, stat, limit_ms * margin, spare)
                if low_ms > limit_ms and low_ms >= limit_ms * margin:
                    found[f"{metric}.{stat}"] = (low_ms - limit_ms) / (limit_ms or 1.0)
        return found


def _first_token(seen: Progress) -> FloatArray:
    return np.fmin(seen.first_token_s, seen.time_s) - seen.arrival_s


def _last_token(seen: Progress) -> FloatArray:
    return np.fmin(seen.last_token_s, seen.time_s) - seen.arrival_s


def _between_tokens(seen: Progress) -> FloatArray:
    """Mean gaps of requests that are done; 0 for others, and where there is no gap."""
    return np.fmax((seen.last_token_s - seen.first_token_s) / np.maximum(seen.output_tokens - 1, 1), 0.0)


_LATENCIES = {
    "time_to_first_token": _first_token,
    "request_latency": _last_token,
    "inter_token_latency": _between_tokens,
}
"""Metric -> seconds that each request takes at least."""


def _lower_bound_ms(seen: Progress, metric: str, stat: str, limit_ms: float, spare: int) -> float:
    """Return what *stat* of *metric* is at least while up to *spare* requests are never served; 0 if below *limit_ms*.

    A value of 0 lowers a statistic no less than a request that is missing, so those are left out that way.
    """
    x, n = _LATENCIES[metric](seen) * 1e3, seen.total - seen.unserved
    if stat not in STATISTICS or np.count_nonzero(x >= limit_ms) < _needed(stat, n):
        return 0.0
    done = np.isfinite(seen.last_token_s)
    open_ = np.sort(x[~done])[: max(len(x) - np.count_nonzero(done) - spare, 0)]
    known = np.concatenate((x[done], open_))
    return float(STATISTICS[stat](np.concatenate((known, np.zeros(n - len(known))))))


def _needed(stat: str, n: int) -> int:
    """Return how many of *n* values must reach a limit, at least, for the statistic to reach it."""
    return max(n - math.ceil(PERCENT.get(stat, 100.0) / 100.0 * (n - 1)), 1)
