"""Warm start: what an earlier study says about the points of another space, in the terms of that space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from dynosim.config import ObjectiveConfig
from dynosim.metrics import Metrics, slo_violations
from dynosim.objectives import resolve
from dynosim.search.distributions import Point
from dynosim.search.samplers.base import History
from dynosim.search.trial import Trial
from dynosim.search.workers import Workers
from dynosim.space import SearchSpace


def history_of(trials: list[Trial], space: SearchSpace) -> History:
    """Return the trials that are points of *space* as if they had been simulated in it.

    Objectives and SLOs are those of *space*, computed from the metrics that were kept; what was fixed in the earlier
    space is a value like any other. Trials without metrics, or outside *space*, say nothing.
    """
    scenario = space.reference
    objectives = [resolve(config) for config in scenario.objectives]
    points, values, violations = [], [], []
    custom, limit_s = any(config.python for config in scenario.objectives), scenario.optimizer.trial_timeout_s
    with Workers(partial(_values, scenario.objectives), 1, _nothing, isolated=custom, limit_s=limit_s) as pool:
        for trial in trials:
            point, found = _point(trial, space), Metrics(trial.outcome.metrics or {})
            row = pool.submit(found).result() if point is not None and trial.outcome.metrics else None
            if row is not None and point is not None:
                points.append(point)
                values.append(row)
                violations.append(slo_violations(found, scenario.slo))
    names = violations[0] if violations else ()
    return History(
        tuple(objective.direction for objective in objectives),
        points,
        np.array(values).reshape(len(points), len(objectives)),
        {name: np.array([row[name] for row in violations]) for name in names},
        [],
        [],
    )


def _values(objectives: Sequence[ObjectiveConfig], metrics: Metrics) -> list[float] | None:
    """Return the objectives' values; None where one has none, such as a user's on metrics of an earlier version."""
    with suppress(Exception, SystemExit):
        values = [resolve(config)(metrics) for config in objectives]
        return values if all(map(math.isfinite, values)) else None
    return None


def _nothing(metrics: Metrics, reason: str) -> None:
    return None


def _point(trial: Trial, space: SearchSpace) -> Point | None:
    """Return the point of *space* that a trial's deployment is; None where it is none."""
    point: Point = {}
    said = trial.scenario.model_dump(mode="json")
    for parameter in space.parameters:
        if parameter.active(point):
            value = trial.point.get(parameter.path, _look_up(said, parameter.keys))
            if not parameter.domain.contains(value):
                return None
            point[parameter.path] = value
    return point


def _look_up(data: Mapping[str, Any] | None, keys: tuple[str, ...]) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data
