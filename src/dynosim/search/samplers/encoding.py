"""Points as feature vectors: what the Gaussian process measures distances in.

Numbers become one feature in [0, 1], logarithmic where the range is or where numeric choices span a factor of
four (a step from TP 1 to 2 matters as much as one from 4 to 8). Two other choices become one 0/1 feature,
more become one-hot features scaled so that any two differ by 1. An inactive parameter sits at a constant: two
points that both lack it are equal in it, and how a point without it differs from one with it is told by the
parameter it depends on. Derived features are scaled to the range that they take over random points of the
space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.rng import stream
from dynosim.search.distributions import Point
from dynosim.space import Choices, Range, SearchSpace

Array = NDArray[np.float64]
Derived = Callable[[Point], list[float]]
"""From a point to further features on whatever scale; NaN where one is unknown."""

_INACTIVE = 0.5
_LOG_SPAN = 4.0
_RANGE_SAMPLES = 256


class Encoder:
    """Turns points of a space into rows of ``d`` features; *derived* adds some to those of the parameters."""

    def __init__(self, space: SearchSpace, derived: Derived | None = None) -> None:
        self._columns = [(p.path, _column(p.domain), _width(p.domain)) for p in space.parameters]
        self._derived = derived or _none
        rng = stream(0, "feature ranges")
        rows = np.array([self._derived(space.sample(rng)) for _ in range(_RANGE_SAMPLES)])
        rows = rows[~np.isnan(rows).any(axis=1)]
        self._low = rows.min(axis=0, initial=np.inf)
        span = rows.max(axis=0, initial=-np.inf) - self._low
        self._span = np.where(span > 0.0, span, 1.0)

    def __call__(self, points: Sequence[Point]) -> Array:
        """Return the features of *points*, ``n x d``."""
        raw = np.array([self._row(point) for point in points])
        derived = (np.array([self._derived(point) for point in points]) - self._low) / self._span
        return np.hstack([raw, np.nan_to_num(derived, nan=_INACTIVE, posinf=_INACTIVE, neginf=_INACTIVE)])

    def _row(self, point: Point) -> list[float]:
        row: list[float] = []
        for path, column, width in self._columns:
            row += column(point[path]) if path in point else [_INACTIVE] * width
        return row


def _none(point: Point) -> list[float]:
    return []


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
