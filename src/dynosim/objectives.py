"""Objectives: functions of Metrics with a direction and a unit, by metric name or written by the user."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from dynosim.config import ObjectiveConfig
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

    def __call__(self, metrics: Metrics) -> float:
        return float(self.function(metrics))

    @property
    def kind(self) -> Kind:
        """What its unit says it measures."""
        return next((kind for pattern, kind in _UNITS if re.search(pattern, self.unit)), "other")


def objective(
    *, direction: Direction, unit: str, display: str | None = None
) -> Callable[[Callable[[Metrics], float]], Objective]:
    """Make an objective of a function of Metrics; its name is the function's."""
    if direction not in ("minimize", "maximize"):
        raise ConfigError(f"{direction!r}: direction is 'minimize' or 'maximize'")

    def wrap(function: Callable[[Metrics], float]) -> Objective:
        return Objective(function.__name__, display or function.__name__, unit, direction, function)

    return wrap


def resolve(config: ObjectiveConfig) -> Objective:
    """Return the objective that *config* names; ConfigError when there is none."""
    return _from_metric(config) if config.metric else load_python(config.python or "")


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
    """Return the objective of ``package.module:name`` or ``path/to/file.py:name``."""
    source, _, name = reference.rpartition(":")
    is_file = source.endswith(".py")
    if not source or (source.startswith(".") and not is_file):
        raise ConfigError(f"{reference!r}: expected package.module:name or file.py:name", path="objectives.python")
    try:
        found = getattr(_load_file(Path(source)) if is_file else importlib.import_module(source), name)
    except (ImportError, AttributeError, FileNotFoundError, SyntaxError) as error:
        raise ConfigError(f"{reference!r}: {error}", path="objectives.python") from error
    if not isinstance(found, Objective):
        raise ConfigError(f"{reference!r}: not an @objective", path="objectives.python")
    return found


def _load_file(path: Path) -> ModuleType:
    name = f"dynosim_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
