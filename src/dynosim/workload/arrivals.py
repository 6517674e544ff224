"""Arrival processes: the times (s) at which requests reach the deployment."""

from __future__ import annotations

import numpy as np

from dynosim.config import Arrivals, ConstantLoad, PoissonLoad
from dynosim.workload.table import FloatArray


def poisson(load: PoissonLoad, n: int, rng: np.random.Generator) -> FloatArray:
    """Return *n* times with independent gamma gaps of mean 1/rate and shape ``burstiness``.

    The coefficient of variation of the gaps is ``burstiness ** -0.5`` (the definition of ``vllm bench serve``).
    """
    return np.cumsum(_gamma_gaps(load.burstiness, n, rng)) / load.rate_rps


def constant(load: ConstantLoad, n: int) -> FloatArray:
    """Return *n* times, 1/rate apart, from 0."""
    return np.arange(n) / load.rate_rps


def of_source(arrivals: Arrivals, n: int, rng: np.random.Generator) -> FloatArray:
    """Return *n* times of the source's own process, the first at 0.

    A renewal process of unit rate is mapped through the inverse of the cumulative rate (time change, Çınlar,
    *Introduction to Stochastic Processes*, 1975, ch. 4).
    """
    if arrivals.gap_quantiles is None:
        gaps = _gamma_gaps(arrivals.burstiness, n, rng)
    else:
        gaps = _quantile_gaps(arrivals.gap_quantiles, n, rng)
    counts = np.cumsum(gaps) - gaps[0]
    rates = np.array(arrivals.rates_rps)
    starts_s = np.arange(len(rates)) * arrivals.window_s
    starts_count = np.concatenate(([0.0], np.cumsum(rates[:-1] * arrivals.window_s)))
    window = np.searchsorted(starts_count, counts, side="right") - 1
    times_s: FloatArray = starts_s[window] + (counts - starts_count[window]) / rates[window]
    if arrivals.quantum_s:
        times_s = np.floor(times_s / arrivals.quantum_s) * arrivals.quantum_s
    return times_s


def _gamma_gaps(shape: float, n: int, rng: np.random.Generator) -> FloatArray:
    return rng.gamma(shape, 1.0 / shape, n)


def _quantile_gaps(quantiles: dict[float, float], n: int, rng: np.random.Generator) -> FloatArray:
    probability, value = np.array(list(quantiles)), np.array(list(quantiles.values()))
    mean = np.trapezoid(value, probability)
    gaps: FloatArray = np.interp(rng.random(n), probability, value) / mean
    return gaps
