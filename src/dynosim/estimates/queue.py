"""What requests meet that queue for a pool: the requests of the traffic, one by one, before batches that serve prompts.

A queueing formula would need the traffic to be Poisson. This plays the arrivals there are, with the lengths there are,
bursts and all, in a tenth of a millisecond (``simulation.queueing``), once for each pool that differs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dynosim.simulation import queueing
from dynosim.simulation.compiled import load

Array = NDArray[np.float64]

QUANTILES = {"p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999, "max": 1.0}
STATS = ("avg", *QUANTILES)
MOST_REQUESTS, _STRETCH = 4_096, 512
"""Of longer traffic, stretches of consecutive requests from all of it."""
_DIGITS = 3
"""Pools whose numbers agree so far are one pool."""


_MOST_KNOWN = 50_000
"""Pools are forgotten beyond: each takes a kilobyte."""


class Queue:
    """The requests of one traffic in order of arrival, and what is known of pools that they met."""

    def __init__(self, arrival_s: Array, tokens: Array, pairs: Array, output: Array, warmup_requests: int) -> None:
        some = _stretches(len(arrival_s))
        self._counted = some >= warmup_requests
        self._arrival_s, self._output = arrival_s[some], output[some]
        self._tokens, self._pairs = (np.ascontiguousarray(x[:, some]) for x in (tokens, pairs))
        n = len(some)
        self._begin_s, self._end_s, self._busy_s, self._gap_s = (np.empty(n) for _ in range(4))
        self._following = np.empty(n, np.int64)
        self._places = [int(q * (self._counted.sum() - 1)) for q in QUANTILES.values()]
        self._known: dict[bytes, Array] = {}
        load()

    def __call__(self, numbers: Array, least_s: Array, caches: NDArray[np.int64], replicas: Array) -> Array:
        """Return mean and quantiles (``STATS``) of TTFT and of mean gaps between tokens, in s: ``n x 2 x STATS``.

        *numbers* (``n x 8``) are those of ``queueing.replay``, a prompt takes at least *least_s*, *caches* says which
        row of what is cached counts, and *replicas* are there in each window (``n x w``). NaN where a number is.
        """
        rounded, replicas = _rounded(np.column_stack([numbers, least_s, caches])), np.ascontiguousarray(replicas)
        names = [row.tobytes() for row in np.hstack([rounded, replicas])]
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        for i, name in enumerate(names):
            if name not in self._known:
                self._known[name] = self._met(rounded[i], replicas[i])
        return np.array([self._known[name] for name in names])

    def _met(self, pool: Array, replicas: Array) -> Array:
        if np.isnan(pool).any():
            return np.full((2, len(STATS)), np.nan)
        numbers, least_s, cache = np.ascontiguousarray(pool[:-2]), pool[-2], int(pool[-1])
        room = int(max(replicas.max(), 1.0) * numbers[queueing.BATCHES])
        queueing.replay(
            numbers, replicas, self._arrival_s, self._tokens[cache], self._pairs[cache], np.empty(room),
            self._begin_s, self._end_s, self._following, np.empty(room, np.int64),
        )  # fmt: skip
        waited_s = self._begin_s - self._arrival_s * numbers[queueing.SPACING]
        first_s = waited_s + np.maximum(self._end_s - self._begin_s, least_s)
        if not numbers[queueing.STEP_S]:
            return np.array([self._stats(first_s), np.full(len(STATS), np.nan)])
        queueing.decode(numbers, self._output, self._begin_s, self._end_s, self._following, self._busy_s, self._gap_s)
        return np.array([self._stats(first_s), self._stats(self._gap_s)])

    def _stats(self, times_s: Array) -> list[float]:
        counted = times_s[self._counted]
        mean = float(counted.mean())
        counted.partition(self._places)
        return [mean, *counted[self._places].tolist()]


def _stretches(n: int) -> NDArray[np.int64]:
    """Return the places of up to ``MOST_REQUESTS`` of *n* requests."""
    if n <= MOST_REQUESTS:
        return np.arange(n)
    starts = np.linspace(0, n - _STRETCH, MOST_REQUESTS // _STRETCH).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(_STRETCH))


def _rounded(numbers: Array) -> Array:
    """Return numbers (positive) with ``_DIGITS`` digits."""
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = 10.0 ** (np.floor(np.log10(np.abs(numbers))) - _DIGITS + 1.0)
        return np.where((numbers == 0.0) | ~np.isfinite(numbers), numbers, np.round(numbers / unit) * unit)
