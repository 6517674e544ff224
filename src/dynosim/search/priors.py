"""What the closed-form estimates say about each output of a search: the means that its models start from."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.config import ObjectiveConfig
from dynosim.metrics import Metrics, bounds_of
from dynosim.objectives import resolve
from dynosim.search.workers import Workers
from dynosim.space import SearchSpace

Array = NDArray[np.float64]
Function = Callable[[Metrics], Any]
Estimate = Callable[[Metrics, int], Array]


@dataclass(frozen=True)
class Prior:
    """Estimates of ``n`` rows in the user's units, NaN where unknown."""

    objectives: tuple[Array | None, ...]
    """None for an objective that has no estimate in the whole space."""
    violations: Mapping[str, Array]


class ServingPriors:
    """Objective values and SLO violations of estimated metrics.

    An objective may be any function of Metrics. It is called with columns in place of numbers, and row by row where it
    does not take them. One that has no value at any of *count* typical rows is not called again: it needs a metric
    without an estimate. A user's is called in a process of its own.
    """

    def __init__(self, space: SearchSpace, typical: Metrics, count: int) -> None:
        limit_s = space.reference.optimizer.trial_timeout_s
        self._objectives: list[Estimate | None] = [_estimate(config, limit_s) for config in space.reference.objectives]
        self._violations: dict[str, Estimate] = {
            bound.name: partial(_apply, bound.violation) for bound in bounds_of(space.reference.slo)
        }
        known = self(typical, count)
        self._objectives = [
            f if values is not None and np.isfinite(values).any() else None
            for f, values in zip(self._objectives, known.objectives, strict=True)
        ]
        self._violations = {n: f for n, f in self._violations.items() if np.isfinite(known.violations[n]).any()}

    def __call__(self, metrics: Metrics, count: int) -> Prior:
        """Return the estimates of *count* rows."""
        return Prior(
            tuple(f and f(metrics, count) for f in self._objectives),
            {name: f(metrics, count) for name, f in self._violations.items()},
        )


def _estimate(config: ObjectiveConfig, limit_s: float | None) -> Estimate:
    return _Apart(config, limit_s) if config.python else partial(_apply, resolve(config).function)


class _Apart:
    """A user's objective in a process, which it may end or keep for ever; it has no estimates from then on."""

    def __init__(self, config: ObjectiveConfig, limit_s: float | None) -> None:
        self._workers = Workers(partial(_apply_user, config), 1, _nothing, isolated=True, limit_s=limit_s)
        self._ended = False
        weakref.finalize(self, self._workers.close)

    def __call__(self, metrics: Metrics, count: int) -> Array:
        values = None if self._ended else self._workers.submit((metrics, count)).result()
        self._ended = values is None
        return np.full(count, np.nan) if values is None else values


def _apply_user(config: ObjectiveConfig, task: tuple[Metrics, int]) -> Array | None:
    return _apply(resolve(config).function, *task)


def _nothing(task: object, reason: str) -> None:
    return None


def _apply(function: Function, metrics: Metrics, count: int) -> Array:
    """Return *function* of each of *count* rows of *metrics*, NaN where it fails."""
    try:
        values = np.asarray(function(metrics), dtype=float)
    except (Exception, SystemExit):  # a user's function on columns that it does not expect
        values = np.zeros(())
    return values if values.shape == (count,) else _by_row(function, metrics, count)


def _by_row(function: Function, metrics: Metrics, count: int) -> Array:
    values = np.full(count, np.nan)
    for i in range(count):
        with suppress(Exception, SystemExit):
            values[i] = function(_row(metrics, i))
    return values


def _row(metrics: Metrics, i: int) -> Metrics:
    return Metrics(
        {k: {s: v[i] for s, v in x.items()} if isinstance(x, dict) else x[i] for k, x in metrics.to_dict().items()}
    )
