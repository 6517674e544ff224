"""Objectives: functions of Metrics with a direction and a unit, by metric name or written by the user."""

from __future__ import annotations

import hashlib
import math
import pickle
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cloudpickle

from dynosim import plugins
from dynosim.config import ObjectiveConfig
from dynosim.config.goals import level_of
from dynosim.errors import ConfigError
from dynosim.metrics import Metrics, check_metric

Direction = Literal["minimize", "maximize"]
Kind = Literal["cost", "latency", "throughput", "energy", "share", "count", "other"]

_UNITS: tuple[tuple[str, Kind], ...] = (
    (r"USD|EUR|[$€]", "cost"),
    (r"\b[kMm]?(J|Wh?)\b", "energy"),
    (r"/s(ec)?/user$", "latency"),
    (r"/(s|sec|second|min|minute|h|hour)\b", "throughput"),
    (r"^(ns|us|µs|ms|s|sec|seconds?|min|minutes?|h|hours?)(/|$)", "latency"),
    (r"^(ratio|share|fraction|%|percent)$", "share"),
    (r"^(count|GPUs|GPU-h|replicas|requests|tokens)$", "count"),
)
"""Pattern of a unit -> kind; the first that is found. One user's tokens per second are a latency turned around."""

SAME_WITHIN: Mapping[Kind, float] = {"latency": 0.01}
"""Kind -> relative difference for which nobody changes a deployment, where the objective does not say: a convention.
0.1 % for all others, as cost and throughput of a run repeat to 0.03 %, by how its last requests end."""

_PICKS: Mapping[Kind, str] = {
    "cost": "cheapest",
    "latency": "fastest",
    "throughput": "highest throughput",
    "energy": "most efficient",
}


@dataclass(frozen=True)
class Objective:
    """One axis of the trade-off."""

    name: str
    """Key in tables and files, for example ``time_to_first_token.p99``."""
    display: str
    unit: str
    direction: Direction
    function: Callable[[Metrics], float]
    """Raises or returns NaN where it has no value: the trial then counts as failed."""
    resolution: float | None = None
    """Relative difference below which two values are the same; that of its kind where None."""
    level: float = 1.0
    """Share of the cases, the worst ones, whose mean it is (``search.cases``): 1 is all of them, 0 the worst alone."""

    def __call__(self, metrics: Metrics) -> float:
        return float(self.function(metrics))

    @property
    def plain_name(self) -> str:
        """The name of what it is of one case."""
        return self.name.rpartition("/")[2]

    @property
    def kind(self) -> Kind:
        """What its unit says it measures."""
        return next((kind for pattern, kind in _UNITS if re.search(pattern, self.unit)), "other")

    @property
    def same_within(self) -> float:
        """Relative difference below which two values are the same, whatever their noise."""
        return SAME_WITHIN.get(self.kind, 0.001) if self.resolution is None else self.resolution

    @property
    def pick(self) -> str:
        """What the best configuration in it is called: objectives of one kind have one pick in common."""
        if self.kind == "count":
            return f"{'fewest' if self.direction == 'minimize' else 'most'} {self.display}"
        return _PICKS.get(self.kind, f"best {self.display}")


def objective(
    *, direction: Direction, unit: str, display: str | None = None, resolution: float | None = None
) -> Callable[[Callable[[Metrics], float]], Objective]:
    """Make an objective of a function of Metrics; its name is the function's."""
    if direction not in ("minimize", "maximize"):
        raise ConfigError(f"{direction!r}: direction is 'minimize' or 'maximize'")

    def wrap(function: Callable[[Metrics], float]) -> Objective:
        return Objective(function.__name__, display or function.__name__, unit, direction, function, resolution)

    return wrap


def resolve(config: ObjectiveConfig) -> Objective:
    """Return the objective that *config* names; ConfigError when there is none."""
    found = _found(config)
    if config.prefix:
        over = ", worst case" if config.over == "worst" else f", worst {100 * level_of(config.over):g} % of cases"
        found = replace(
            found, name=config.prefix + found.name, display=found.display + over, level=level_of(config.over)
        )
    return found if config.resolution is None else replace(found, resolution=config.resolution)


def _found(config: ObjectiveConfig) -> Objective:
    if config.metric:
        return _from_metric(config)
    reference = config.python or ""
    if reference in _session:
        found: Objective = pickle.loads(_session[reference])
        return found
    if reference.startswith(_NAMELESS):
        said = "only the process that made it has it (a notebook, standard input, a function's inside)"
        raise ConfigError(f"{reference}: {said}: put it in a .py file", path="objectives.python")
    return load_python(reference)


_NAMELESS = "<session>:"
_session: dict[str, bytes] = {}
"""Reference -> pickle of an objective that other processes cannot, or must not, import."""


def refer(objective: Objective) -> str:
    """Return the reference by which space files name *objective*: ``file.py:name`` where it can be found by that.

    Importing ``__main__`` again would run a script again, so what is defined there is shared with workers as a pickle.
    Raises ConfigError for what cannot be pickled.
    """
    module = sys.modules.get(getattr(objective.function, "__module__", None) or "")
    file = Path(getattr(module, "__file__", None) or "")  # which is <stdin> of a script on standard input
    found = file.is_file() and getattr(module, objective.name, None) is objective
    named = f"{file.absolute()}:{objective.name}" if found else ""
    if named and module is not sys.modules["__main__"]:
        return named
    content = _pickled(objective)
    reference = named or f"{_NAMELESS}{objective.name}@{hashlib.sha256(content).hexdigest()[:12]}"
    _session[reference] = content
    return reference


def _pickled(objective: Objective) -> bytes:
    try:
        content: bytes = cloudpickle.dumps(objective)
    except Exception as error:  # whatever the objects that a user's function refers to raise
        said = f"{objective.name}: cannot be sent to worker processes ({error}): put it in a .py file"
        raise ConfigError(said, path="objectives") from error
    return content


def shared() -> dict[str, bytes]:
    """Return what worker processes need of the objectives of this process, for ``share``."""
    return dict(_session)


def share(objectives: Mapping[str, bytes]) -> None:
    """Make another process's objectives known here."""
    _session.update(objectives)


def _from_metric(config: ObjectiveConfig) -> Objective:
    metric, stat = config.metric or "", config.stat
    info = check_metric(metric, stat, "objectives")
    if config.goal is None and info.better is None:
        raise ConfigError(f"{metric} has no better direction: set goal", path="objectives")
    goal: Direction = config.goal or ("minimize" if info.better == "lower" else "maximize")
    name = f"{metric}.{stat}" if stat else metric
    display = f"{info.display} {stat}" if stat else info.display

    def read(metrics: Metrics) -> float:
        value = metrics.value(metric, stat)
        return math.nan if value is None else value

    return Objective(name, display, info.unit, goal, read)


def load_python(reference: str) -> Objective:
    """Return the objective of ``file.py:name`` or ``package.module:name``."""
    found = plugins.load(reference, path="objectives.python")
    if not isinstance(found, Objective):
        message = f"{plugins.short(reference)}: allowed: a function under @dynosim.objective(...)"
        raise ConfigError(message, path="objectives.python")
    return found
