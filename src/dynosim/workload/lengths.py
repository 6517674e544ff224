"""Draws of token counts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dynosim.config import FixedLength, Length, LognormalLength, QuantileLength, RatioLength, UniformLength
from dynosim.workload.table import FloatArray, IntArray


def sample_lengths(length: Length, n: int, rng: np.random.Generator) -> IntArray:
    """Return *n* token counts; exactly one uniform or normal number is drawn for each."""
    match length:
        case FixedLength(tokens=tokens):
            return np.full(n, tokens, np.int64)
        case UniformLength(min=low, max=high):
            return rng.integers(low, high, n, endpoint=True)
        case RatioLength(tokens=tokens, ratio=ratio):
            return rng.integers(max(int(ratio * tokens), 1), tokens, n, endpoint=True)
        case LognormalLength():
            drawn = length.median * np.exp(length.sigma * rng.standard_normal(n))
            return np.clip(np.rint(drawn), length.min, length.max).astype(np.int64)
        case QuantileLength():
            log_tokens = interpolate({p: float(np.log(t)) for p, t in length.quantiles.items()}, rng.random(n))
            return np.rint(np.exp(log_tokens)).astype(np.int64)


def interpolate(quantiles: Mapping[float, float], probability: FloatArray) -> FloatArray:
    """Return the values at the given probabilities of a distribution given by its quantiles."""
    values: FloatArray = np.interp(probability, list(quantiles), list(quantiles.values()))
    return values
