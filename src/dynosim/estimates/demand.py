"""What the traffic of a scenario asks for, in the few numbers that closed forms read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynosim.config import Scenario
from dynosim.workload import Workload, load_workload
from dynosim.workload.statistics import reuse_bound

Array = NDArray[np.float64]

QUANTILES = {"p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999, "max": 0.999}
REUSE_WORKERS = (1, 2, 4, 8, 16, 32)


WINDOWS = 96
"""Into which the traffic is divided. More rank no space's configurations better."""
SHARES = 64
"""Of the requests, for quantiles of what they meet."""


@dataclass(frozen=True, eq=False)
class Windows:
    """How the demand rises and falls: ``w`` windows of equal length; constant, without a length, in a closed loop."""

    width_s: float
    prefill: Array
    """Prompt tokens that arrive in each window, and"""
    decode: Array
    """tokens that these requests will generate; both over their means (``w``)."""
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
    input_quantiles: Array
    """Prompt lengths at ``QUANTILES``."""
    input_square: float
    """Mean square over squared mean of the prompts."""
    reuse: Array
    """Share of prompt tokens that a prefix cache could serve, of ``REUSE_WORKERS`` caches behind round robin."""
    concurrency: int | None
    windows: Windows


def demand_of(scenario: Scenario) -> Demand:
    """Return what the traffic of *scenario* asks for."""
    table = load_workload(scenario.workload, scenario.seed)
    span_s = float(table.arrival_s[-1] - table.arrival_s[0])
    prompts = table.input_tokens.astype(float)
    return Demand(
        rate_rps=len(table) / span_s if span_s > 0.0 else 1.0,
        span_s=span_s,
        input_tokens=float(prompts.mean()),
        output_tokens=float(table.output_tokens.mean()),
        input_quantiles=np.quantile(prompts, list(QUANTILES.values())),
        input_square=float((prompts**2).mean() / prompts.mean() ** 2),
        reuse=np.array([reuse_bound(table, workers) for workers in REUSE_WORKERS]),
        concurrency=table.concurrency,
        windows=_windows(table),
    )


def _windows(table: Workload) -> Windows:
    times_s = np.sort(table.arrival_s)
    span_s = float(times_s[-1] - times_s[0])
    if table.concurrency is not None or span_s <= 0.0:
        return Windows(0.0, np.ones(WINDOWS), np.ones(WINDOWS), np.zeros(SHARES, np.int64))
    place = np.minimum((table.arrival_s - times_s[0]) / span_s * WINDOWS, WINDOWS - 1).astype(np.int64)
    prefill, decode = (np.bincount(place, tokens, WINDOWS) for tokens in (table.input_tokens, table.output_tokens))
    middle = ((np.arange(SHARES) + 0.5) / SHARES * len(table)).astype(int)
    return Windows(span_s / WINDOWS, prefill / prefill.mean(), decode / decode.mean(), np.sort(place)[middle])
