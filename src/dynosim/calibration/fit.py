"""Fits the parameters of a profile to measured runs, and says how far off they are on runs they were not fitted on.

Minimised are the logarithms of predicted over measured averages, each over what it may differ by: its sampling error
and what the model leaves out (``MODEL_ERRORS``). A run is simulated once per set of parameters, so that the folds of
the cross-validation share many of their simulations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dynosim.calibration.parameters import PARAMETERS, Array, Solution, solve
from dynosim.calibration.replay import MAX_LENGTH_DIFFERENCE, Replay
from dynosim.errors import ConfigError
from dynosim.metrics import Metrics
from dynosim.timing.calibrated import Profile, Residual, conditions, fitted_on

MODEL_ERRORS = {
    "time_to_first_token": 0.02,
    "inter_token_latency": 0.01,
    "inter_chunk_latency": 0.01,
    "request_latency": 0.01,
    "output_token_throughput": 0.01,
}
"""Relative errors of a calibrated simulation by what it leaves out: those against real servers with known pass times
(docs/calibration.md), rounded up."""
FITTED = (
    ("time_to_first_token",),
    ("inter_token_latency", "inter_chunk_latency", "request_latency"),
    ("output_token_throughput",),
)
"""Of each the average of the first that a run has."""
MIN_SERVED = 0.99


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
    """By parameters that were fitted without this run."""


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
    error: float
    """Standard deviation of log(predicted / measured)."""


class Simulator:
    """Remembers what the runs do under the parameters tried so far."""

    def __init__(self, replays: Sequence[Replay]) -> None:
        self.replays = replays
        self._known: dict[tuple[int, str], Metrics] = {}

    def metrics(self, run: int, profile: Profile) -> Metrics:
        """Return what *run* does under the parameters of *profile*."""
        key = run, profile.content_hash()
        if key not in self._known:
            self._known[key] = self.replays[run].predict(profile)
        return self._known[key]

    def predicted(self, targets: Sequence[_Target], parameters: Solution) -> Array:
        """Return shape (len(targets),), NaN where no request has the metric."""
        profile = Profile(name="fit", **parameters.values)
        values = [self.metrics(target.run, profile).value(target.metric) for target in targets]
        return np.array([math.nan if value is None else value for value in values])

    def fitted(self, targets: Sequence[_Target]) -> Solution:
        """Return the parameters that meet *targets* best."""
        measured, errors = (np.array([getattr(each, name) for each in targets]) for name in ("measured", "error"))
        disaggregated = any(self.replays[target.run].deployment.disaggregated for target in targets)
        tried = [i for i, each in enumerate(PARAMETERS) if disaggregated or each.name != "transfer"]
        return solve(lambda x: np.log(self.predicted(targets, _at(x)) / measured) / errors, tried)


NEUTRAL = Solution(np.zeros(len(PARAMETERS)), (), {})


def _at(x: Array) -> Solution:
    return Solution(x, (), {})


def fit(replays: Sequence[Replay], name: str, **provenance: Any) -> Calibration:
    """Return the profile that brings the simulations of *replays* closest to what was measured; deterministic.

    Configurations are left out in turn to see what it is worth elsewhere; of one configuration its lengths, and of one
    length its load points. *provenance* are further fields of the profile. Raises ConfigError where the simulated
    deployment turns requests away that the real one served, or has no request with a metric that was measured.
    """
    simulator = Simulator(replays)
    targets = [target for i, each in enumerate(replays) for target in _targets(i, each)]
    _check(simulator, targets)
    best = simulator.fitted(targets)
    before, after = (simulator.predicted(targets, each) for each in (NEUTRAL, best))
    kind, groups = _groups(replays)
    of_target = np.array([groups[target.run] for target in targets])
    left_out = _left_out(simulator, targets, of_target) if kind else np.full(len(targets), math.nan)
    fitted = Profile(name=name, **best.values)
    met = [conditions(each.deployment, simulator.metrics(i, fitted).flat()) for i, each in enumerate(replays)]
    profile = fitted.model_copy(
        update={
            "fitted_on": fitted_on(*(each.deployment for each in replays)),
            "ranges": {key: (min(x[key] for x in met), max(x[key] for x in met)) for key in met[0]},
            "standard_errors": {PARAMETERS[i].name: PARAMETERS[i].error(x) for i, x in best.errors.items()},
            "not_determined": tuple(PARAMETERS[i].name for i in best.errors if i not in best.free),
            "left_out": kind,
            "at_bounds": best.at_bounds,
            "recommended": kind is not None and _helps(targets, before, left_out, of_target),
            "residuals": _residuals(targets, before, after, left_out),
            **provenance,
        }
    )
    rows = zip(targets, before, after, left_out, strict=True)
    return Calibration(profile, tuple(_comparison(replays[row[0].run], *row) for row in rows))


def _targets(index: int, replay: Replay) -> list[_Target]:
    run = replay.run
    found = [next((name for name in names if name in run.metrics), None) for names in FITTED]
    return [
        _Target(index, name, run.metrics[name]["avg"], math.hypot(MODEL_ERRORS[name], replay.sampling_error(name)))
        for name in found
        if name
    ]


def _check(simulator: Simulator, targets: Sequence[_Target]) -> None:
    """Raise ConfigError where the simulation without a profile is not of what was measured."""
    for target, value in zip(targets, simulator.predicted(targets, NEUTRAL), strict=True):
        file, result = simulator.replays[target.run].run.file, simulator.metrics(target.run, Profile(name="fit"))
        if (result.value("served_request_fraction") or 0.0) < MIN_SERVED:
            raise ConfigError("the simulated deployment turns requests away that the real one served", file=file)
        if math.isnan(value):
            raise ConfigError(f"{target.metric} was measured, and no simulated request has one", file=file)


Kind = Literal["configuration", "length", "load point"]


def _groups(replays: Sequence[Replay]) -> tuple[Kind | None, list[int]]:
    """Return what is left out in turn, and the group of each run: the coarsest difference that there is."""
    names = [each.deployment.content_hash() for each in replays]
    configurations = [names.index(name) for name in names]
    lengths = [next(j for j, other in enumerate(replays) if _alike(other, each)) for each in replays]
    points = list(range(len(replays)))
    kinds: dict[Kind, list[int]] = {"configuration": configurations, "length": lengths, "load point": points}
    return next(((kind, groups) for kind, groups in kinds.items() if len(set(groups)) > 1), (None, points))


def _alike(a: Replay, b: Replay) -> bool:
    """Whether two runs have prompts and answers of like lengths."""
    pairs = (getattr(a.workload, name).mean() / getattr(b.workload, name).mean() for name in _LENGTHS)
    return all(abs(ratio - 1.0) <= MAX_LENGTH_DIFFERENCE for ratio in pairs)


_LENGTHS = ("input_tokens", "output_tokens")


def _left_out(simulator: Simulator, targets: Sequence[_Target], of_target: Any) -> Array:
    """Return the prediction of every target by parameters that were chosen and fitted without its group."""
    found = np.empty(len(targets))
    for group in set(of_target.tolist()):
        known = [target for target, g in zip(targets, of_target, strict=True) if g != group]
        others = [target for target, g in zip(targets, of_target, strict=True) if g == group]
        found[of_target == group] = simulator.predicted(others, simulator.fitted(known))
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


def _helps(targets: Sequence[_Target], before: Array, left_out: Array, of_target: Any) -> bool:
    """Whether what was left out is met better than without a profile, by more than the groups differ in it.

    Errors are in standard deviations. Of two groups both must gain.
    """
    measured, errors = (np.array([getattr(each, name) for each in targets]) for name in ("measured", "error"))
    gain = (np.abs(np.log(before / measured)) - np.abs(np.log(left_out / measured))) / errors
    gains = np.array([gain[of_target == group].mean() for group in set(of_target.tolist())])
    return bool(gains.mean() > gains.std(ddof=1) / math.sqrt(len(gains)))


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
