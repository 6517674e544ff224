"""What an evaluator other than the simulator says of a trial: a benchmark on a cluster, a script, a function."""

from __future__ import annotations

import math
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any

import cloudpickle

from dynosim import plugins
from dynosim.config import Scenario, cases_of
from dynosim.config.goals import canonical
from dynosim.errors import ConfigError, InfeasibleError, nearest
from dynosim.hardware.prices import usd
from dynosim.metrics import METRICS, Metrics, Value, bounds_of
from dynosim.objectives import Objective, resolve
from dynosim.search.cases import combined
from dynosim.search.study import SIMULATION
from dynosim.search.trial import Outcome, Status
from dynosim.uncertainty.sampling import FOLLOWS

Evaluator = str | Callable[[Scenario], Any]
"""A function of the user's, or ``file.py:function``."""
ASKED = "ask and tell"
"""Who evaluates, where it is neither the simulator nor a function of the user's."""
Stated = Mapping[str, float | Mapping[str, float | None] | None]
"""Metric -> number or {statistic: number}, or ``metric.stat`` -> number, under the names and in the units of
``dynosim.metrics``; aliases are taken too."""


@dataclass(frozen=True)
class Answer:
    """Either ``values``, ``metrics`` or both; or ``cases``; or ``failed``; or ``infeasible``."""

    values: Sequence[float] | None = None
    """Of the objectives in their order and units; where not given they are computed from the metrics."""
    constraints: Mapping[str, float] | None = None
    """SLO (``metric.stat``) -> violation relative to its bound, at or below 0 is met; the others are computed."""
    noise: Sequence[float | None] | None = None
    """Standard deviation of each value in its unit; None where it is unknown."""
    metrics: Stated | None = None
    cases: Mapping[str, Stated] | None = None
    """Of several workloads or scenarios: case -> its metrics."""
    failed: str | None = None
    """Why there is no result: nothing is learnt of the configuration, but that it was tried."""
    infeasible: str | None = None
    """Why it cannot run: it is taken as violating every SLO."""
    wall_s: float = 0.0

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Answer:
        """Return the answer of a JSON object; ConfigError for a name that is none of the fields."""
        allowed = [field.name for field in fields(cls)]
        for name in said:
            if name not in allowed:
                raise ConfigError(f"{name!r}: {nearest(name, allowed)}allowed: {', '.join(allowed)}")
        return cls(**said)

    def outcome(self, scenario: Scenario) -> Outcome:
        """Return the outcome of *scenario*; ConfigError, one line, where it does not follow."""
        data = self.values if self.values is not None else self.metrics
        if sum(said is not None for said in (data, self.cases, self.failed, self.infeasible)) != 1:
            raise ConfigError("allowed: values or metrics, or failed with a reason, or infeasible with a reason")
        if self.failed is not None or self.infeasible is not None:
            status = Status.INFEASIBLE if self.failed is None else Status.FAILED
            return Outcome(status, reason=str(self.infeasible or self.failed), wall_s=self.wall_s)
        objectives = [resolve(config) for config in scenario.objectives]
        found = self._of_one(scenario, objectives) if self.cases is None else self._of_cases(scenario)
        return replace(found, noise=self._noise(objectives), wall_s=self.wall_s)

    def _of_one(self, scenario: Scenario, objectives: Sequence[Objective]) -> Outcome:
        names = [case.name for case in cases_of(scenario)]
        known = Metrics(self._metrics(scenario, objectives if len(names) == 1 else ()))
        if self.values is None and len(names) > 1:
            raise ConfigError(f"give cases, with the metrics of each of {', '.join(names)}", path="metrics")
        values, violations = self._values(objectives, known), self._violations(scenario, known)
        return Outcome(Status.COMPLETE, values, violations, known.to_dict())

    def _of_cases(self, scenario: Scenario) -> Outcome:
        cases, said = cases_of(scenario), _object(self.cases, "cases")
        names = [case.name for case in cases]
        if said.keys() != set(names) or len(cases) < 2:
            allowed = f"allowed: each of {', '.join(names)}" if len(cases) > 1 else "there is one: give metrics"
            raise ConfigError(f"{', '.join(said)}: {allowed}", path="cases")
        found = [Answer(metrics=said[case.name]).outcome(case.scenario) for case in cases]
        return combined(scenario, cases, found)

    def _values(self, objectives: Sequence[Objective], known: Metrics) -> tuple[float, ...]:
        if self.values is None:
            return tuple(_computed(objective, known) for objective in objectives)
        return tuple(_number(x, "values") for x in _one_each(self.values, objectives, "values"))

    def _noise(self, objectives: Sequence[Objective]) -> tuple[float | None, ...] | None:
        if self.noise is None:
            return None
        known = _one_each(self.noise, objectives, "noise")
        if any(sd is not None and _number(sd, "noise") < 0.0 for sd in known):
            raise ConfigError(f"{known}: allowed: standard deviations, at least 0, or null", path="noise")
        return tuple(None if sd is None else float(sd) for sd in known)

    def _metrics(self, scenario: Scenario, objectives: Sequence[Objective]) -> dict[str, Value]:
        """Return every metric: what was said, what follows from it and the deployment, None for the rest.

        The values of *objectives* that are metrics are said too.
        """
        said: dict[str, Value] = dict(_given(_object(self.metrics, "metrics")))
        values = [] if self.values is None else _listed(self.values, "values")
        for objective, value in zip(objectives, values, strict=False):
            metric, _, stat = objective.name.partition(".")
            known = said.get(metric)
            if metric in METRICS:
                stats = {**(known if isinstance(known, dict) else {}), stat: _number(value, "values")}
                said[metric] = stats if stat else _number(value, "values")
        gpus, prices = scenario.deployment.gpu_counts(), scenario.prices
        if not scenario.deployment.autoscaled:
            said = {"gpus": float(sum(gpus.values())), "usd_per_hour": usd(gpus.items(), prices), **said}
        if (done := said.get("completed")) and isinstance(done, float):
            lost = sum(x for name in ("failed", "rejected", "incomplete") if isinstance(x := said.get(name), float))
            said = {"served_request_fraction": done / (done + lost), **said}
        return {**dict.fromkeys(METRICS), "served_request_fraction": 1.0, **_rates(said), **said}

    def _violations(self, scenario: Scenario, known: Metrics) -> dict[str, float]:
        bounds = {bound.name: bound for bound in bounds_of(scenario.slo)}
        said = _object(self.constraints, "constraints")
        for name in said:
            if name not in bounds:
                raise ConfigError(f"no such SLO: {nearest(name, bounds)}allowed: {', '.join(bounds)}", path=name)
        for name, bound in bounds.items():
            if name not in said and bound.of(known) is None:
                raise ConfigError(f"{name} has an SLO: give it in metrics, or its violation in constraints")
        found = {name: bound.violation(known) for name, bound in bounds.items() if name not in said}
        return {name: found[name] if name in found else _number(said[name], f"constraints.{name}") for name in bounds}


def name_of(evaluator: Evaluator | None) -> tuple[str, str | None]:
    """Return the name of who evaluates, without folders, and a hash of the code if it is in a file.

    None is the simulator, a text without a colon a name. Raises ConfigError for what workers cannot get or find.
    """
    if evaluator is None or evaluator == ASKED:
        return evaluator or SIMULATION, None
    if isinstance(evaluator, str):
        if not callable(plugins.load(evaluator, path="evaluate")):
            raise ConfigError(f"{evaluator}: allowed: a function of a Scenario", path="evaluate")
        reference = plugins.absolute(evaluator, Path())
    else:
        reference = _reference(evaluator)
    return plugins.short(reference), plugins.content_hash(reference)


def _reference(evaluate: Callable[[Scenario], Any]) -> str:
    name = getattr(evaluate, "__qualname__", type(evaluate).__qualname__)
    try:
        cloudpickle.dumps(evaluate)
    except Exception as error:  # whatever the objects that a user's function refers to raise
        raise ConfigError(f"{name}: cannot be sent to worker processes ({error})", path="evaluate") from error
    module = sys.modules.get(getattr(evaluate, "__module__", None) or "")
    return f"{getattr(module, '__file__', None) or 'session'}:{name}"


def answered(evaluate: Evaluator, scenario: Scenario) -> Outcome:
    """Return what *evaluate* says of *scenario*, as Metrics, an Outcome, or a dict of Answer's fields.

    InfeasibleError is INFEASIBLE. Any other exception is FAILED with its traceback, and so is what is no answer.
    """
    start = time.perf_counter()
    try:
        function = plugins.load(evaluate) if isinstance(evaluate, str) else evaluate
        outcome = _outcome(function(scenario), scenario)
    except InfeasibleError as error:
        outcome = Outcome(Status.INFEASIBLE, reason=str(error))
    except (Exception, SystemExit):
        outcome = Outcome(Status.FAILED, reason=traceback.format_exc())
    return replace(outcome, wall_s=outcome.wall_s or time.perf_counter() - start)


def _outcome(said: Any, scenario: Scenario) -> Outcome:
    if isinstance(said, Outcome):
        return said
    if isinstance(said, Metrics):
        return replace(Answer(metrics=said.values).outcome(scenario), deviations=said.deviations)
    if isinstance(said, Mapping):
        return Answer.of(said).outcome(scenario)
    raise ConfigError(f"{type(said).__name__}: allowed: Metrics, Outcome, or a dict with values or metrics")


def _given(metrics: Stated) -> Iterator[tuple[str, Value]]:
    """Yield the numbers of *metrics* by metric, a distribution's as {statistic: number}; None is not given."""
    numbers: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        stats = value if isinstance(value, Mapping) else {"": value}
        for stat, number in stats.items():
            metric, _, own = ".".join(filter(None, (name, stat))).partition(".")
            if number is not None:
                numbers.setdefault(canonical(metric), {})[own] = _number(number, f"metrics.{name}")
    for metric, found in numbers.items():
        single = found.keys() <= {"", "avg"} and not (metric in METRICS and METRICS[metric].distribution)
        yield metric, next(iter(found.values())) if single else {stat or "avg": x for stat, x in found.items()}


def _rates(said: Mapping[str, Value]) -> dict[str, Value]:
    """Return rates per GPU and costs of tokens and requests, as far as rates, GPUs and their price are known."""
    found: dict[str, Value] = {}
    for name, (source, sign) in FOLLOWS.items():
        rate, of = said.get(source), said.get("gpus" if sign > 0 else "usd_per_hour")
        if isinstance(rate, float) and isinstance(of, float) and rate > 0.0 and of > 0.0:
            found[name] = rate / of if sign > 0 else of / 3600.0 / rate * (1e3 if "1k" in name else 1e6)
    return found


def _computed(objective: Objective, known: Metrics) -> float:
    try:
        value = objective(known)
    except Exception as error:  # whatever a user's objective does with metrics that were not measured
        raise ConfigError(f"objective {objective.name}: {type(error).__name__}: {error}") from error
    if not math.isfinite(value):
        raise ConfigError(f"objective {objective.name} does not follow from the metrics: give it, or values")
    return value


def _number(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(f"{value!r}: allowed: a finite number", path=path)
    return float(value)


def _one_each(said: Any, objectives: Sequence[Objective], path: str) -> list[Any]:
    numbers = _listed(said, path)
    if len(numbers) != len(objectives):
        names = ", ".join(objective.name for objective in objectives)
        raise ConfigError(f"{len(numbers)} numbers: allowed: {len(objectives)}, one for each of {names}", path=path)
    return numbers


def _listed(said: Any, path: str) -> list[Any]:
    if isinstance(said, str | Mapping) or not isinstance(said, Iterable):
        raise ConfigError(f"{said!r}: allowed: a list of numbers", path=path)
    return list(said)


def _object(said: Any, path: str) -> dict[str, Any]:
    if said is not None and not isinstance(said, Mapping):
        raise ConfigError(f"{said!r}: allowed: names with numbers", path=path)
    return dict(said or {})
