"""The border between a search space and Optuna: domains and distributions, points and parameters.

Optuna stores scalars, so a choice that is not one (knobs that change together) crosses as JSON text. An
inactive parameter is never suggested, so a trial's parameters are exactly the point.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

from dynosim.space import Choices, Parameter, Range, SearchSpace

Point = dict[str, Any]
Key = tuple[tuple[str, Any], ...]


def label(value: Any) -> Any:
    """Return what Optuna stores for a value: scalars as they are, anything else as JSON text."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value, sort_keys=True)


def key(point: Mapping[str, Any]) -> Key:
    """Return the identity of a point: hashable, and independent of the order of its parameters."""
    return tuple(sorted((path, label(value)) for path, value in point.items()))


def encode(point: Mapping[str, Any]) -> Point:
    """Return the point as Optuna stores it."""
    return {path: label(value) for path, value in point.items()}


def decode(space: SearchSpace, stored: Mapping[str, Any]) -> Point:
    """Return the point of parameters as Optuna stores them; the inverse of ``encode``."""
    return {p.path: _value(p, stored[p.path]) for p in space.parameters if p.path in stored}


def _value(parameter: Parameter, stored: Any) -> Any:
    if isinstance(parameter.domain, Choices) and isinstance(stored, str):
        return next(value for value in parameter.domain.values if label(value) == stored)
    return stored


def suggest(trial: BaseTrial, space: SearchSpace) -> Point:
    """Ask a trial, under any of Optuna's samplers, for every active parameter; return the point."""
    point: Point = {}
    for parameter in space.parameters:
        if parameter.active(point):
            point[parameter.path] = _value(parameter, _suggest(trial, parameter))
    return point


def _suggest(trial: BaseTrial, parameter: Parameter) -> Any:
    name, d = parameter.path, to_distribution(parameter.domain)
    if isinstance(d, CategoricalDistribution):
        return trial.suggest_categorical(name, d.choices)
    if isinstance(d, IntDistribution):
        return trial.suggest_int(name, d.low, d.high, step=d.step, log=d.log)
    assert isinstance(d, FloatDistribution)
    return trial.suggest_float(name, d.low, d.high, step=d.step, log=d.log)


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution of every parameter, active or not."""
    return {parameter.path: to_distribution(parameter.domain) for parameter in space.parameters}


def to_distribution(domain: Choices | Range) -> BaseDistribution:
    """Return Optuna's distribution of a domain."""
    if isinstance(domain, Choices):
        return CategoricalDistribution([label(value) for value in domain.values])
    log = domain.scale == "log"
    if domain.integer:
        return IntDistribution(int(domain.min), int(domain.max), log=log, step=int(domain.step or 1))
    return FloatDistribution(domain.min, domain.max, log=log, step=domain.step)


def domain_of(distribution: BaseDistribution) -> Choices | Range:
    """Return the domain of one of Optuna's distributions."""
    if isinstance(distribution, CategoricalDistribution):
        return Choices(tuple(distribution.choices))
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    scale = "log" if distribution.log else "linear"
    integer = isinstance(distribution, IntDistribution)
    return Range(distribution.low, distribution.high, None if distribution.log else distribution.step, scale, integer)


class PlainSpace(SearchSpace):
    """The space of a plain Optuna study: distributions without conditions, and nothing known to be invalid."""

    @classmethod
    def of(cls, distributions: Mapping[str, BaseDistribution]) -> PlainSpace:
        """Return the space of Optuna's distributions by name."""
        return cls("", {}, tuple(Parameter(name, domain_of(d)) for name, d in distributions.items()))

    def infeasible_reason(self, point: Mapping[str, Any]) -> str | None:
        """Return None: an objective function tells only when it is called."""
        return None
