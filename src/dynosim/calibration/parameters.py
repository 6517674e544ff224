"""What is fitted, in units in which all parameters start at 0 and a prior of one holds them, and the least squares.

The least squares are scipy's (trust region reflective with bounds; outliers count linearly). A parameter is fitted only
where the data determine it: starting from the model's values, the one that explains most is freed, as long as what it
explains is ``SIGNIFICANT``; of several that would explain the same, one is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Parameter:
    """A field of ``Profile``: a factor exp(x), or a time x * unit."""

    name: str
    low: float
    high: float
    unit: float | None = None

    def value(self, x: float) -> float:
        """Return what *x* stands for; rounded, so that a file holds exactly that."""
        return round(math.exp(x) if self.unit is None else x * self.unit, 6)

    def error(self, error: float) -> float:
        """Return a standard error of *x* in the parameter's unit; of a factor as a share."""
        return error if self.unit is None else error * self.unit

    @property
    def bounds(self) -> tuple[float, float]:
        """Bounds of x."""
        if self.unit is None:
            return math.log(self.low), math.log(self.high)
        return self.low / self.unit, self.high / self.unit


PARAMETERS = (
    Parameter("prefill", 0.5, 3.0),
    Parameter("decode", 0.5, 3.0),
    Parameter("overhead_ms", 0.0, 20.0, unit=10.0),
    Parameter("request_us", 0.0, 2000.0, unit=100.0),
    Parameter("frontend_ms", -10.0, 200.0, unit=10.0),
    Parameter("transfer", 0.5, 3.0),
)
LOW, HIGH = np.array([each.bounds for each in PARAMETERS]).T
PRIOR = 1.0
"""Standard deviation of every x: a factor of e, or a unit."""
STEP, LOOK = 0.02, 0.1
"""Of finite differences, at an optimum and on the way there: schedules jump, and a small step may see nothing else."""
CANDIDATES = 3
"""Parameters that are tried in earnest before one is freed, those first that would explain most by their slopes."""
SIGNIFICANT = 2.0
"""Standard errors."""


@dataclass(frozen=True)
class Solution:
    """Parameters that meet the data best."""

    x: Array
    """Shape (len(PARAMETERS),)."""
    free: tuple[int, ...]
    """What was fitted and is determined."""
    errors: Mapping[int, float]
    """Of what was tried: its standard error beside all others."""

    @property
    def values(self) -> dict[str, float]:
        """Fields of ``Profile``."""
        return {each.name: each.value(x) for each, x in zip(PARAMETERS, self.x.tolist(), strict=True)}

    @property
    def at_bounds(self) -> tuple[str, ...]:
        """Parameters at a bound; a time of nothing is none."""
        near = (self.x > HIGH - 0.01 * (HIGH - LOW)) | ((self.x < LOW + 0.01 * (HIGH - LOW)) & (LOW < 0.0))
        return tuple(PARAMETERS[i].name for i in self.free if near[i])


Misfit = Callable[[Array], Array]
"""Parameters, shape (len(PARAMETERS),) -> differences to the data, each in its standard deviations."""


def solve(misfit: Misfit, tried: Sequence[int]) -> Solution:
    """Return the parameters that meet the data best, of those *tried* the ones that are determined; others are 0."""
    x, free = np.zeros(len(PARAMETERS)), list[int]()
    while True:
        off, slopes = _linearised(misfit, x, tried)
        gains, errors = _gains(off, slopes, x, free, tried)
        likely = sorted((i for i in gains if gains[i] >= SIGNIFICANT**2), key=lambda i: -gains[i])[:CANDIDATES]
        rough = [(*_minimum(misfit, x, [*free, i], LOOK), i) for i in likely]
        if not rough:
            return Solution(x, tuple(sorted(free)), errors)
        _, near, added = min(rough, key=lambda each: each[0])
        left, best = _minimum(misfit, near, [*free, added], STEP)
        if float(off @ off) - left < SIGNIFICANT**2 * _variance(left, len(off) - len(free) - 1):
            return Solution(x, tuple(sorted(free)), errors)
        x, free = best, [*free, added]


def _variance(squares: float, freedom: int) -> float:
    """Return that of a misfit: 1 by definition, more where the model leaves more than its error."""
    return max(squares / max(freedom, 1), 1.0)


def _linearised(misfit: Misfit, x: Array, tried: Sequence[int]) -> tuple[Array, Array]:
    """Return the misfit at *x* and its slopes, shape (data, len(tried)), by steps away from the nearer bound."""
    off, steps = misfit(x), np.where(x + LOOK > HIGH, -LOOK, LOOK)
    slopes = [(misfit(x + step * np.eye(len(x))[i]) - off) / step for i, step in zip(tried, steps[tried], strict=True)]
    return off, np.array(slopes).T


def _gains(
    off: Array, slopes: Array, x: Array, free: Sequence[int], tried: Sequence[int]
) -> tuple[dict[int, float], dict[int, float]]:
    """Return by how much the squared misfit falls with each further parameter, and the standard errors of all.

    Both on the linearised misfit, where the free parameters follow. A step to the lower bound or below gains nothing.
    """
    gradient = slopes.T @ off + x[list(tried)] / PRIOR**2
    information = slopes.T @ slopes + np.eye(len(tried)) / PRIOR**2
    gains, errors = {}, {}
    for place, i in enumerate(tried):
        others = [k for k, j in enumerate(tried) if j in free and j != i]
        follow = np.linalg.solve(information[np.ix_(others, others)], information[others, place])
        certain = information[place, place] - information[place, others] @ follow
        step = -(gradient[place] - gradient[others] @ follow) / certain
        gain = float(certain * step**2)
        errors[i] = math.sqrt(_variance(float(off @ off) - gain, len(off) - len(others) - 1) / certain)
        if i not in free and LOW[i] < x[i] + step:
            gains[i] = gain
    return gains, errors


def _minimum(misfit: Misfit, x: Array, free: Sequence[int], step: float) -> tuple[float, Array]:
    """Return the least squared misfit over the *free* parameters, beginning at *x*, and where it is."""
    low, high = LOW[list(free)], HIGH[list(free)]

    def residuals(moved: Array) -> Array:
        return np.append(misfit(_with(x, free, moved - 1.0)), (moved - 1.0) / PRIOR)

    # ``diff_step`` is relative, and parameters start at 0: they are moved by 1.
    options = {"loss": "soft_l1", "xtol": 1e-3, "ftol": 1e-4, "max_nfev": 10, "bounds": (low + 1.0, high + 1.0)}
    found = least_squares(residuals, x[list(free)] + 1.0, diff_step=step, **options)
    return float(found.fun[: -len(free)] @ found.fun[: -len(free)]), _with(x, free, found.x - 1.0)


def _with(x: Array, places: Sequence[int], values: Array) -> Array:
    changed = x.copy()
    changed[list(places)] = values
    return changed
