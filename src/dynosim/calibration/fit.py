"""Fits the multipliers of a profile to measured runs, and says how far off they are on runs they were not fitted on.

Minimised are the logarithms of predicted over measured, each over its entry of ``SCALES``, with a weak prior at the
neutral profile: what the runs do not tell apart stays where it is. The least squares are scipy's (trust region
reflective with bounds; outliers count linearly). A run is simulated once per set of multipliers, so that the folds of
the cross-validation share many of their simulations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from dynosim.calibration.readers import MeasuredRun
from dynosim.calibration.replay import Replay
from dynosim.errors import ConfigError
from dynosim.metrics import Metrics
from dynosim.timing.calibrated import Profile, Residual, conditions, fitted_on

Array = NDArray[np.float64]

SCALES = {
    "time_to_first_token": 0.25,
    "inter_token_latency": 0.08,
    "inter_chunk_latency": 0.08,
    "request_latency": 0.1,
    "output_token_throughput": 0.1,
}
"""Relative errors that weigh alike: those that dynosim aims at without a profile (docs/fidelity.md)."""
FITTED = (
    ("time_to_first_token",),
    ("inter_token_latency", "inter_chunk_latency", "request_latency"),
    ("output_token_throughput",),
)
"""Of each the average of the first that a run has."""
MIN_SERVED = 0.99

NAMES = ("prefill", "decode", "overhead_ms", "transfer")
UNIT_MS = 10.0
"""The overhead is fitted as 1 + overhead / UNIT_MS, so that all parameters start at 1 and move in like steps."""
LOW, HIGH = np.array([0.5, 0.5, 1.0, 0.5]), np.array([3.0, 3.0, 3.0, 3.0])
"""Bounds of the parameters; an overhead of up to 20 ms."""
PRIOR = 1.0
"""Standard deviation of the prior: a factor of e, or UNIT_MS."""
STEP = 0.02
"""Of finite differences: schedules jump, so smaller ones see steps and not slopes."""


@dataclass(frozen=True)
class Comparison:
    """One number as it was measured and as it is predicted."""

    file: str
    deployment: str
    load: str
    metric: str
    measured: float
    before: float
    """Without a profile."""
    after: float
    left_out: float | None
    """By multipliers that were fitted without this run."""


@dataclass(frozen=True)
class Calibration:
    """A profile with what it was fitted to."""

    profile: Profile
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class _Target:
    """One number to be met: the average of a metric of a run, by its place in the list."""

    run: int
    metric: str
    measured: float


class _Simulator:
    """Remembers what the runs do under the parameters tried so far."""

    def __init__(self, replays: Sequence[Replay]) -> None:
        self.replays = replays
        self._known: dict[tuple[int, str], Metrics] = {}

    def metrics(self, run: int, x: Array) -> Metrics:
        profile = Profile(name="fit", **_multipliers(x))
        key = run, profile.content_hash()
        if key not in self._known:
            self._known[key] = self.replays[run].predict(profile)
        return self._known[key]

    def predicted(self, targets: Sequence[_Target], x: Array) -> Array:
        values = [self.metrics(target.run, x).value(target.metric) for target in targets]
        return np.array([math.nan if value is None else value for value in values])


def fit(replays: Sequence[Replay], name: str, **provenance: Any) -> Calibration:
    """Return the profile that brings the simulations of *replays* closest to what was measured; deterministic.

    Configurations are left out in turn to see what it is worth elsewhere, load points where there is one only.
    *provenance* are further fields of the profile. Raises ConfigError where the simulated deployment turns requests
    away that the real one served, or has no request with a metric that was measured.
    """
    simulator = _Simulator(replays)
    targets = [target for i, each in enumerate(replays) for target in _targets(i, each.run)]
    neutral = np.ones(4 if any(each.deployment.disaggregated for each in replays) else 3)
    _check(simulator, targets, neutral)
    best = _solve(simulator, targets, neutral)
    before, after = (simulator.predicted(targets, x) for x in (neutral, best))
    kind, groups = _groups(replays)
    left_out = _left_out(simulator, targets, groups, best) if kind else np.full(len(targets), math.nan)
    residuals = _residuals(targets, before, after, left_out)
    met = [conditions(each.deployment, simulator.metrics(i, best).flat()) for i, each in enumerate(replays)]
    profile = Profile(
        name=name,
        **_multipliers(best),
        fitted_on=fitted_on(*(each.deployment for each in replays)),
        ranges={key: (min(x[key] for x in met), max(x[key] for x in met)) for key in met[0]},
        left_out=kind,
        at_bounds=_at_bounds(best),
        recommended=kind is not None and _helps(residuals),
        residuals=residuals,
        **provenance,
    )
    rows = zip(targets, before, after, left_out, strict=True)
    return Calibration(profile, tuple(_comparison(replays[row[0].run], *row) for row in rows))


def _multipliers(x: Array) -> dict[str, Any]:
    """Return the multipliers that the parameters *x* stand for; rounded, so that a file holds exactly them."""
    values = dict(zip(NAMES, x.tolist(), strict=False))
    values["overhead_ms"] = max(values["overhead_ms"] - 1.0, 0.0) * UNIT_MS
    return {name: round(value, 6) for name, value in values.items()}


def _at_bounds(x: Array) -> tuple[str, ...]:
    """Return the multipliers at a bound; an overhead of nothing is none."""
    near = (x > HIGH[: len(x)] * 0.99) | ((x < LOW[: len(x)] * 1.01) & (LOW[: len(x)] < 1.0))
    return tuple(name for name, met in zip(NAMES, near, strict=False) if met)


def _targets(index: int, run: MeasuredRun) -> list[_Target]:
    found = [next((name for name in names if name in run.metrics), None) for names in FITTED]
    return [_Target(index, name, run.metrics[name]["avg"]) for name in found if name]


def _check(simulator: _Simulator, targets: Sequence[_Target], x: Array) -> None:
    """Raise ConfigError where the simulation under the parameters *x* is not of what was measured."""
    for i, each in enumerate(simulator.replays):
        if (simulator.metrics(i, x).value("served_request_fraction") or 0.0) < MIN_SERVED:
            message = "the simulated deployment turns requests away that the real one served"
            raise ConfigError(message, file=each.run.file)
    for target, value in zip(targets, simulator.predicted(targets, x), strict=True):
        if math.isnan(value):
            message = f"{target.metric} was measured, and no simulated request has one"
            raise ConfigError(message, file=simulator.replays[target.run].run.file)


def _solve(simulator: _Simulator, targets: Sequence[_Target], start: Array) -> Array:
    """Return the parameters that meet *targets* best."""
    measured = np.array([target.measured for target in targets])
    scales = np.array([SCALES[target.metric] for target in targets])

    def residuals(x: Array) -> Array:
        return np.append(np.log(simulator.predicted(targets, x) / measured) / scales, np.log(x) / PRIOR)

    low, high = LOW[: len(start)], HIGH[: len(start)]
    options = {"loss": "soft_l1", "diff_step": STEP, "xtol": 1e-3, "ftol": 1e-4, "max_nfev": 15}
    found = least_squares(residuals, np.clip(start, low, high), bounds=(low, high), **options)
    return np.asarray(found.x, dtype=float)


def _groups(replays: Sequence[Replay]) -> tuple[str | None, list[int]]:
    """Return what is left out in turn, and the group of each run."""
    names = [each.deployment.content_hash() for each in replays]
    if len(set(names)) > 1:
        return "configuration", [names.index(name) for name in names]
    return "load point" if len(replays) > 1 else None, list(range(len(replays)))


def _left_out(simulator: _Simulator, targets: Sequence[_Target], groups: Sequence[int], start: Array) -> Array:
    """Return the prediction of every target by parameters that were fitted without its group."""
    found, of_target = np.empty(len(targets)), np.array([groups[target.run] for target in targets])
    for group in set(groups):
        known = [target for target, g in zip(targets, of_target, strict=True) if g != group]
        others = [target for target, g in zip(targets, of_target, strict=True) if g == group]
        found[of_target == group] = simulator.predicted(others, _solve(simulator, known, start))
    return found


def _residuals(targets: Sequence[_Target], before: Array, after: Array, left_out: Array) -> dict[str, Residual]:
    off = np.array([before, after, left_out]) / np.array([target.measured for target in targets]) - 1.0
    found = {}
    for name in dict.fromkeys(target.metric for target in targets):
        own = off[:, [target.metric == name for target in targets]]
        first, second, third = np.abs(own).mean(axis=1).tolist()
        found[name] = Residual(
            runs=own.shape[1],
            bias=float(own[1].mean()),
            mape_before=first,
            mape=second,
            mape_left_out=None if math.isnan(third) else third,
        )
    return found


def _helps(residuals: Mapping[str, Residual]) -> bool:
    """Whether errors on what was left out, in units of SCALES, are together smaller than those without a profile."""
    gains = ((each.mape_before - (each.mape_left_out or 0.0)) / SCALES[name] for name, each in residuals.items())
    return sum(gains) > 0.0


def _comparison(replay: Replay, target: _Target, before: float, after: float, left_out: float) -> Comparison:
    return Comparison(
        file=replay.run.file,
        deployment=replay.deployment.label(),
        load=replay.load,
        metric=target.metric,
        measured=target.measured,
        before=float(before),
        after=float(after),
        left_out=None if math.isnan(left_out) else float(left_out),
    )
