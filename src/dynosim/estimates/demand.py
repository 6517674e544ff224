"""What the traffic of a scenario asks for, in the numbers that closed forms and queues read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynosim.config import Scenario
from dynosim.estimates.queue import Queue
from dynosim.workload import Workload, load_workload
from dynosim.workload.statistics import reused_tokens
from dynosim.workload.table import take_ragged

Array = NDArray[np.float64]

REUSE_WORKERS = (1, 2, 4, 8, 16, 32)


WINDOWS = 96
"""Into which the traffic is divided. More rank no space's configurations better."""
SHARES = 64
"""Of the requests, for quantiles of what they meet."""
_TOKEN_S = 0.02
"""Between two tokens of a request, where only a simulation would know."""
_PARTS = 16
_ABREAST, _MOMENTS = 32, 32
"""Requests that are taken to be in a pool at a time, and how many such groups are looked at."""


@dataclass(frozen=True, eq=False)
class Windows:
    """How the demand rises and falls: ``w`` windows of equal length; constant, without a length, in a closed loop."""

    width_s: float
    prefill: Array
    """Prompt tokens that arrive in each window, and"""
    decode: Array
    """tokens that are generated, each over the mean of what the requests ask for (``w``): long answers end after the
    last window."""
    at: NDArray[np.int64]
    """Window of the request in the middle of each of ``SHARES`` equal shares of the requests."""


@dataclass(frozen=True, eq=False)
class Demand:
    """What the traffic asks for."""

    rate_rps: float
    """1 in a closed loop, which has no rate of its own: loads are then relative."""
    span_s: float
    input_tokens: float
    output_tokens: float
    """Means."""
    longest_tokens: float
    """Prompt that one in a hundred exceeds."""
    input_square: float
    """Mean square over squared mean of the prompts."""
    tokens: Array
    """Mean prompt tokens to compute beside ``REUSE_WORKERS`` prefix caches behind round robin, last without any,"""
    pairs: Array
    """and pairs of tokens that attention compares for them."""
    unshared: float
    """Share of the KV blocks of prompts that are there at a time which no other of these prompts has too."""
    independent: float
    """Share of the requests that come whether or not others have ended: only these pile up."""
    last_s: Array
    """Arrival of the requests that may be the last to end,"""
    last_tokens: Array
    """and the tokens that these generate."""
    concurrency: int | None
    windows: Windows
    queue: Queue


def demand_of(scenario: Scenario) -> Demand:
    """Return what the traffic of *scenario* asks for."""
    table = load_workload(scenario.workload, scenario.seed)
    times_s = _arrivals_s(table)
    order = np.argsort(times_s, kind="stable")
    span_s = float(np.ptp(times_s)) if table.concurrency is None else 0.0
    prompts, output = (x[order].astype(float) for x in (table.input_tokens, table.output_tokens))
    cached = np.array([*(reused_tokens(table, workers)[order] for workers in REUSE_WORKERS), np.zeros(len(order))])
    tokens = np.maximum(prompts - cached, 1.0)
    pairs = (prompts**2 - (prompts - tokens) ** 2) / 2.0
    arrival_s = times_s[order] - times_s.min() if span_s else np.arange(len(order), dtype=float)
    last = np.unique([np.argmax(arrival_s + output * step_s) for step_s in np.geomspace(1e-3, 1.0, 32)])
    return Demand(
        rate_rps=len(table) / span_s if span_s > 0.0 else 1.0,
        span_s=span_s,
        input_tokens=float(prompts.mean()),
        output_tokens=float(output.mean()),
        longest_tokens=float(np.quantile(prompts, 0.99)),
        input_square=float((prompts**2).mean() / prompts.mean() ** 2),
        tokens=tokens.mean(axis=1),
        pairs=pairs.mean(axis=1),
        unshared=_unshared(table, order),
        independent=float((np.diff(table.after_offsets) == 0).mean()),
        last_s=arrival_s[last],
        last_tokens=output[last],
        concurrency=table.concurrency,
        windows=_windows(arrival_s, prompts, output) if span_s else _constant(),
        queue=Queue(arrival_s, tokens, pairs, output, table.warmup_requests),
    )


def _arrivals_s(table: Workload) -> Array:
    """Return when requests come (``n``); those that wait for others, which only a simulation knows, about then."""
    times_s = table.arrival_s.copy()
    ends_s = times_s + table.output_tokens * _TOKEN_S
    for i in np.flatnonzero(np.diff(table.after_offsets)):
        before = table.after_ids[table.after_offsets[i] : table.after_offsets[i + 1]]
        times_s[i] = ends_s[before].max() + table.delay_s[i]
        ends_s[i] += times_s[i] - table.arrival_s[i]
    return times_s


def _unshared(table: Workload, order: NDArray[np.int64]) -> float:
    """Return unique blocks over all blocks of prompts that come one after the other."""
    if not len(table.hash_ids):
        return 1.0
    starts = np.linspace(0, max(len(order) - _ABREAST, 0), _MOMENTS).astype(int)
    of_each = [take_ragged(table.hash_offsets, table.hash_ids, order[i : i + _ABREAST])[1] for i in starts]
    return sum(len(np.unique(ids)) for ids in of_each) / sum(map(len, of_each))


def _constant() -> Windows:
    return Windows(0.0, np.ones(WINDOWS), np.ones(WINDOWS), np.zeros(SHARES, np.int64))


def _windows(times_s: Array, prompts: Array, output: Array) -> Windows:
    width_s = times_s[-1] / WINDOWS
    place = np.minimum(times_s / width_s, WINDOWS - 1).astype(np.int64)
    prefill = np.bincount(place, prompts, WINDOWS)
    # Tokens come one after the other, from the arrival on: of each request, in equal parts.
    during_s = times_s + np.outer((np.arange(_PARTS) + 0.5) / _PARTS, output * _TOKEN_S)
    decode = np.bincount((during_s / width_s).astype(np.int64).ravel(), np.tile(output, _PARTS), WINDOWS)[:WINDOWS]
    middle = ((np.arange(SHARES) + 0.5) / SHARES * len(times_s)).astype(int)
    return Windows(width_s, prefill / prefill.mean(), decode / (_PARTS * output.sum() / WINDOWS), place[middle])
