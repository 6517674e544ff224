"""What the closed-form estimates say about each output of a search: the means that its models start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.config import SLO
from dynosim.metrics import Metrics, slo_violations
from dynosim.objectives import resolve
from dynosim.space import SearchSpace

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prior:
    """Estimates of ``n`` rows in the user's units; None or absent where there is none."""

    objectives: tuple[Array | None, ...]
    violations: Mapping[str, Array]


class ServingPriors:
    """Objective values and SLO violations of estimated metrics.

    An objective may be any function of Metrics. It is called with columns in place of numbers, and row by row where it
    does not take them; one that needs a metric without an estimate has no prior.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._objectives = [resolve(config) for config in space.reference.objectives]
        slo = space.reference.slo
        self._bounds = {f"{m}.{stat}": {m: {stat: bound}} for m, stats in slo.items() for stat, bound in stats.items()}

    def __call__(self, metrics: Metrics, count: int) -> Prior:
        """Return the estimates of *count* rows."""
        violations = {name: _apply(partial(_violation, slo), metrics, count) for name, slo in self._bounds.items()}
        return Prior(
            tuple(_apply(objective.function, metrics, count) for objective in self._objectives),
            {name: values for name, values in violations.items() if values is not None},
        )


def _violation(slo: SLO, metrics: Metrics) -> float:
    (value,) = slo_violations(metrics, slo).values()
    return value


def _apply(function: Callable[[Metrics], Any], metrics: Metrics, count: int) -> Array | None:
    """Return *function* of each of *count* rows of *metrics*; None where it fails or is not finite anywhere."""
    for attempt in (_columns, _by_row):
        try:
            values = attempt(function, metrics, count)
        except Exception:  # a user's function on metrics that it may not expect
            continue
        if values.shape == (count,) and np.isfinite(values).any():
            return values
    return None


def _columns(function: Callable[[Metrics], Any], metrics: Metrics, count: int) -> Array:
    return np.asarray(function(metrics), dtype=float)


def _by_row(function: Callable[[Metrics], Any], metrics: Metrics, count: int) -> Array:
    return np.array([float(function(_row(metrics, i))) for i in range(count)])


def _row(metrics: Metrics, i: int) -> Metrics:
    return Metrics(
        {k: {s: v[i] for s, v in x.items()} if isinstance(x, dict) else x[i] for k, x in metrics.to_dict().items()}
    )
