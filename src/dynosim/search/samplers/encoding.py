"""Points as feature vectors: what the Gaussian process measures distances in.

Numbers become one feature in [0, 1], logarithmic where the range is or where numeric choices span a factor of
four (a step from TP 1 to 2 matters as much as one from 4 to 8). Two other choices become one 0/1 feature,
more become one-hot features scaled so that any two differ by 1. An inactive parameter sits at a constant: two
points that both lack it are equal in it, and how a point without it differs from one with it is told by the
parameter it depends on. Derived features are scaled to the range that they take over random points of the
space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.rng import stream
from dynosim.search.distributions import Point
from dynosim.space import Choices, Parameter, Range, SearchSpace

Array = NDArray[np.float64]
Features = Callable[[Mapping[str, Any]], Sequence[float]]

_INACTIVE = 0.5
_LOG_SPAN = 4.0
_RANGE_SAMPLES = 256


class Encoder:
    """Turns points of a space into rows of ``d`` features."""

    def __init__(self, space: SearchSpace, features: Features) -> None:
        self._columns = [(p.path, _column(p.domain), _width(p.domain)) for p in space.parameters]
        self._features = features
        rng = stream(0, "feature ranges")
        rows = np.array([features(space.sample(rng)) for _ in range(_RANGE_SAMPLES)])
        span = np.ptp(rows, axis=0)
        self._low, self._span = rows.min(axis=0), np.where(span > 0.0, span, 1.0)

    def __call__(self, points: Sequence[Point]) -> Array:
        """Return the features of *points*, ``n x d``."""
        derived = (np.array([self._features(point) for point in points]) - self._low) / self._span
        return np.hstack([np.array([self._row(point) for point in points]), derived])

    def _row(self, point: Point) -> list[float]:
        row: list[float] = []
        for path, column, width in self._columns:
            row += column(point[path]) if path in point else [_INACTIVE] * width
        return row


def fleet_features(parameters: Sequence[Parameter]) -> Features:
    """Return the derived features of a serving space: log2 of all searched GPUs.

    They need only names that end in ``replicas`` and ``tensor_parallel_size``, so any space may use them; a
    space without has none.
    """
    factors: dict[str, list[str]] = {}
    for path in (parameter.path for parameter in parameters):
        if path.endswith((".replicas", ".tensor_parallel_size")):
            factors.setdefault(path.rpartition(".")[0], []).append(path)

    def features(point: Mapping[str, Any]) -> list[float]:
        pools = [prod(point[path] for path in paths) for paths in factors.values() if paths[0] in point]
        return [float(np.log2(sum(pools)))] if pools else [0.0] * bool(factors)

    return features


def _is_numeric(domain: Choices | Range) -> bool:
    if isinstance(domain, Range):
        return True
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in domain.values)


def _width(domain: Choices | Range) -> int:
    return 1 if isinstance(domain, Range) or _is_numeric(domain) or len(domain.values) <= 2 else len(domain.values)


def _column(domain: Choices | Range) -> Callable[[Any], list[float]]:
    """Return the function from a value to its features."""
    if isinstance(domain, Choices) and not _is_numeric(domain):
        return partial(_one_hot, domain.values)
    if isinstance(domain, Range):
        return partial(_unit, domain.min, domain.max, domain.scale == "log")
    low, high = min(domain.values), max(domain.values)
    return partial(_unit, low, high, high >= _LOG_SPAN * low > 0)


def _unit(low: float, high: float, log: bool, value: float) -> list[float]:
    if low == high:
        return [_INACTIVE]
    return [float(np.log(value / low) / np.log(high / low)) if log else (value - low) / (high - low)]


def _one_hot(values: Sequence[Any], value: Any) -> list[float]:
    index = values.index(value)
    if len(values) <= 2:
        return [float(index)]
    return [float(i == index) / np.sqrt(2.0) for i in range(len(values))]
