"""Rows as feature vectors: what the Gaussian process measures distances in.

Numbers become one feature in [0, 1], logarithmic where the range is or where numeric choices span a factor of
four (a step from TP 1 to 2 matters as much as one from 4 to 8). Two other choices become one 0/1 feature,
more become one-hot features scaled so that any two differ by 1. An inactive parameter sits at a constant: two
points that both lack it are equal in it, and how a point without it differs from one with it is told by the
parameter it depends on. Derived features are scaled to the range that they take over random points of the
space.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dynosim.rng import stream
from dynosim.search.features import ServingEstimates, columns
from dynosim.search.priors import Prior, ServingPriors
from dynosim.search.rows import Rows
from dynosim.space import Choices, Range

Array = NDArray[np.float64]
_INACTIVE = 0.5
_LOG_SPAN = 4.0
_RANGE_SAMPLES = 512


@dataclass(frozen=True, eq=False)
class View:
    """What the models see of ``n`` rows."""

    X: Array
    """Features, ``n x d``."""
    prior: Prior
    possible: NDArray[np.bool_]
    """False where the closed form already says that the deployment cannot be."""


class Featurizer:
    """Turns rows of a space into features and priors; of a space that is not of serving, into features only."""

    def __init__(self, rows: Rows, *, serving: bool, priors: bool = True) -> None:
        self._columns = [_column(parameter.domain) for parameter in rows.parameters]
        self._estimates = ServingEstimates(rows) if serving else None
        self._priors: ServingPriors | None = None
        typical = rows.sample(_RANGE_SAMPLES, stream(0, "feature ranges"))
        if self._estimates and priors:
            self._priors = ServingPriors(rows.space, self._estimates(typical).metrics(), len(typical))
        known = self._derived(typical)[0]
        known = known[np.isfinite(known).all(axis=1)]
        self._low = known.min(axis=0, initial=np.inf)
        span = known.max(axis=0, initial=-np.inf) - self._low
        self._span = np.where(span > 0.0, span, 1.0)

    def __call__(self, rows: Array) -> View:
        """Return what is seen of *rows* (``n x p``)."""
        raw = [column(rows[:, j]) for j, column in enumerate(self._columns)]
        derived, prior = self._derived(rows)
        features = np.hstack([np.zeros((len(rows), 0)), *raw, (derived - self._low) / self._span])
        X = np.nan_to_num(features, nan=_INACTIVE, posinf=_INACTIVE, neginf=_INACTIVE)
        return View(X, prior, np.asarray(~np.isnan(derived).any(axis=1)))

    def _derived(self, rows: Array) -> tuple[Array, Prior]:
        if self._estimates is None:
            return np.zeros((len(rows), 0)), Prior((), {})
        estimate = self._estimates(rows)
        prior = self._priors(estimate.metrics(), len(rows)) if self._priors else Prior((), {})
        return columns(estimate), prior


def is_nominal(domain: Choices | Range) -> bool:
    """Whether the values of a domain have no order."""
    if isinstance(domain, Range):
        return False
    return any(isinstance(value, bool) or not isinstance(value, int | float) for value in domain.values)


def _column(domain: Choices | Range) -> Callable[[Array], Array]:
    """Return the function from codes (``n``) to features (``n x 1`` or ``n x values``), NaN where inactive."""
    if isinstance(domain, Range):
        return partial(_unit, None, domain.min, domain.max, domain.scale == "log")
    if not is_nominal(domain):
        low, high = min(domain.values), max(domain.values)
        return partial(_unit, np.array(domain.values, dtype=float), low, high, high >= _LOG_SPAN * low > 0)
    return partial(_one_hot, len(domain.values))


def _unit(values: Array | None, low: float, high: float, log: bool, codes: Array) -> Array:
    if low == high:
        return np.full((len(codes), 1), _INACTIVE)
    known = ~np.isnan(codes)
    x = codes if values is None else np.where(known, values[np.where(known, codes, 0.0).astype(int)], np.nan)
    return np.asarray((np.log(x / low) / np.log(high / low) if log else (x - low) / (high - low))[:, None])


def _one_hot(count: int, codes: Array) -> Array:
    if count <= 2:
        return codes[:, None]
    hot = (codes[:, None] == np.arange(count)) / np.sqrt(2.0)
    return np.asarray(np.where(np.isnan(codes)[:, None], np.nan, hot))
