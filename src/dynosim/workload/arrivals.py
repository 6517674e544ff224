"""Arrival processes: the times (s) at which requests, or sessions, reach the deployment.

A renewal process of unit rate is mapped through the inverse of the cumulative rate (time change, Çınlar, *Introduction
to Stochastic Processes*, 1975, ch. 4).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dynosim.config import (
    Arrivals,
    ConstantLoad,
    CurveLoad,
    DiurnalLoad,
    PoissonLoad,
    SpikeLoad,
    StepLoad,
)
from dynosim.workload.lengths import interpolate
from dynosim.workload.readers.rate_curve import read_rate_curve
from dynosim.workload.table import FloatArray

_DIURNAL_POINTS = 1440
"""Points per period of the cosine's integral; between them it is linear."""


class _Curve(NamedTuple):
    """Expected arrivals until given times, from (0, 0)."""

    times_s: FloatArray
    counts: FloatArray
    final_rps: float | None
    """Rate after the last time; None: the curve starts again."""

    def times_of(self, counts: FloatArray) -> FloatArray:
        """Return the times at which *counts* arrivals are expected."""
        total, end_s = float(self.counts[-1]), float(self.times_s[-1])
        rounds = np.zeros_like(counts) if self.final_rps is not None else np.floor(counts / total)
        times_s: FloatArray = rounds * end_s + np.interp(counts - rounds * total, self.counts, self.times_s)
        return times_s if self.final_rps is None else times_s + np.maximum(counts - total, 0.0) / self.final_rps


def of_load(
    load: PoissonLoad | ConstantLoad | DiurnalLoad | StepLoad | SpikeLoad | CurveLoad,
    n: int,
    rng: np.random.Generator,
    rate_factor: float = 1.0,
) -> FloatArray:
    """Return *n* times. Gaps are independent and gamma-distributed with shape ``burstiness`` under the load's rate.

    The rate is *rate_factor* times the load's at all times.

    The coefficient of variation of the gaps is ``burstiness ** -0.5`` (the definition of ``vllm bench serve``).
    """
    if isinstance(load, ConstantLoad):
        return np.arange(n) / (load.rate_rps * rate_factor)
    counts = np.cumsum(_gamma_gaps(load.burstiness, n, rng)) / rate_factor
    return counts / load.rate_rps if isinstance(load, PoissonLoad) else _curve(load).times_of(counts)


def of_source(arrivals: Arrivals, n: int, rng: np.random.Generator) -> FloatArray:
    """Return *n* times of the source's own process, the first at 0."""
    if arrivals.gap_quantiles is None:
        gaps = _gamma_gaps(arrivals.burstiness, n, rng)
    else:
        gaps = _quantile_gaps(arrivals.gap_quantiles, n, rng)
    starts_s = np.arange(len(arrivals.rates_rps), dtype=np.float64) * arrivals.window_s
    curve = _windows(starts_s, np.array(arrivals.rates_rps[:-1]), arrivals.rates_rps[-1])
    times_s = curve.times_of(np.cumsum(gaps) - gaps[0])
    if arrivals.quantum_s:
        times_s = np.floor(times_s / arrivals.quantum_s) * arrivals.quantum_s
    return times_s


def _curve(load: DiurnalLoad | StepLoad | SpikeLoad | CurveLoad) -> _Curve:
    match load:
        case StepLoad():
            return _windows(np.array([0.0, load.at_s]), np.array([load.before_rps]), load.after_rps)
        case SpikeLoad():
            times_s = np.array([0.0, load.at_s, load.at_s + load.duration_s])
            return _windows(times_s, np.array([load.base_rps, load.peak_rps]), load.base_rps)
        case DiurnalLoad():
            turn = np.arange(_DIURNAL_POINTS + 1) / _DIURNAL_POINTS
            swing = (load.peak_rps - load.base_rps) / 2
            # The integral of base + swing (1 - cos 2 pi t).
            counts = (load.base_rps + swing) * turn - swing * np.sin(2 * math.pi * turn) / (2 * math.pi)
            return _Curve(turn * load.period_s, counts * load.period_s, None)
        case CurveLoad():
            times_s, rates_rps = read_rate_curve(load.path, load.series)
            widths_s = np.diff(times_s)
            mean_rps = float(rates_rps @ widths_s / widths_s.sum())
            scale = 1.0 if load.mean_rps is None else load.mean_rps / mean_rps
            return _windows((times_s - times_s[0]) / load.speedup, rates_rps * scale, None)


def _windows(times_s: FloatArray, rates_rps: FloatArray, final_rps: float | None) -> _Curve:
    """Return the curve of constant rates between successive times."""
    return _Curve(times_s, np.concatenate(([0.0], np.cumsum(rates_rps * np.diff(times_s)))), final_rps)


def _gamma_gaps(shape: float, n: int, rng: np.random.Generator) -> FloatArray:
    return rng.gamma(shape, 1.0 / shape, n)


def _quantile_gaps(quantiles: dict[float, float], n: int, rng: np.random.Generator) -> FloatArray:
    mean = np.trapezoid(np.array(list(quantiles.values())), np.array(list(quantiles)))
    gaps: FloatArray = interpolate(quantiles, rng.random(n)) / mean
    return gaps
