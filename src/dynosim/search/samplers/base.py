"""What all samplers of ours share: they see a study's history and propose one whole, valid point.

Optuna's relative sampling carries it: the relative search space is every parameter of the space, active or
not, and ``sample_relative`` returns the active ones, so that conditions and known constraints hold by
construction. Randomness comes from (seed, trial number) and everything else from the storage; a resumed study
therefore continues as if never interrupted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from dynosim.errors import InfeasibleError
from dynosim.rng import stream
from dynosim.search.distributions import (
    Key,
    PlainSpace,
    Point,
    decode,
    distributions,
    domain_of,
    encode,
    key,
)
from dynosim.space import SearchSpace
from dynosim.space.reasons import summary

Array = NDArray[np.float64]

NOISE = "noise"
"""User attribute of a trial with the standard deviation of each value, None where unknown."""
_ATTEMPTS = 2_000
SETTLED = 0.01
"""A search is settled where the upper end of what may be missing is below this share of the hypervolume: in 72 looks at
runs with known truth, less than 3 % was missing wherever it was (docs/sampler.md)."""


@dataclass(frozen=True)
class History:
    """What a study knows when it asks for a point."""

    directions: tuple[str, ...]
    points: list[Point]
    """Of the n complete trials, in the order of their numbers."""
    values: Array
    """``n x m``, as the user wrote them; infinite where a trial could not be run."""
    constraints: Mapping[str, Array]
    """Name -> ``n``, at or below 0 is met; NaN where a trial has no such constraint."""
    failed: list[Point]
    pending: list[Point]
    """Being evaluated now."""
    noise: Array | None = None
    """``n x m`` standard deviations in the units of the values, NaN where unknown; None where no trial has any."""

    @property
    def taken(self) -> set[Key]:
        """Keys of everything that need not be evaluated again."""
        return {key(point) for point in (*self.points, *self.failed, *self.pending)}

    @property
    def runs(self) -> NDArray[np.bool_]:
        """Which complete trials could be run: the others violate everything by exactly 1 (``store``)."""
        violations = np.array([*self.constraints.values(), np.ones(len(self.points))])
        return np.asarray(
            np.isfinite(self.values).all(axis=1) | (np.nan_to_num(violations, nan=1.0) != 1.0).any(axis=0)
        )

    def sign(self, j: int) -> float:
        """Return the factor that makes objective *j* a loss."""
        return -1.0 if self.directions[j] == "maximize" else 1.0

    @property
    def feasible(self) -> NDArray[np.bool_]:
        """Which complete trials have finite values and meet every constraint, ``n``."""
        violated = [np.nan_to_num(values) > 0.0 for values in self.constraints.values()]
        ran = np.isfinite(self.values).all(axis=1)
        return np.asarray(np.logical_and.reduce([ran, *(~v for v in violated)]))


@dataclass(frozen=True)
class Gap:
    """Share of the full frontier's hypervolume that has not been found, with an 80 % interval.

    Hypervolume is that of the sampler: in logarithms of positive objectives, from its reference point.
    """

    expected: float
    low: float
    high: float
    untried: int = 0
    """Neighbours of the frontier that may gain something, with a value that hardly any feasible trial has."""
    unknown: str = ""
    """Why nothing is known: then the numbers are NaN."""

    @property
    def settled(self) -> bool:
        """Whether hardly anything can be missing."""
        return self.high < SETTLED and not self.untried

    def __str__(self) -> str:
        if self.unknown:
            return f"how much of the frontier that is, is unknown: {self.unknown}"
        found, least, most = (f"{100.0 * (1.0 - share):.1f}" for share in (self.expected, self.high, self.low))
        return f"about {found} % of the frontier found (80 % interval {least}-{most} %)"


class PointSampler(BaseSampler, ABC):
    """Proposes whole points. Without a space it searches what all trials of a plain Optuna study have in common."""

    def __init__(self, space: SearchSpace | None = None, *, seed: int = 0) -> None:
        self._space, self._seed = space, seed
        self._decoded: dict[tuple[int, datetime | None], Point] = {}

    @abstractmethod
    def propose(self, space: SearchSpace, history: History, rng: np.random.Generator) -> Point:
        """Return the next point to evaluate."""

    def read(self, study: Study, space: SearchSpace, but: int = -1, before: float = np.inf) -> History:
        """Return what *study* knows from all trials but one, or those before one, that have every active parameter."""
        by_state: dict[TrialState, list[tuple[Point, FrozenTrial]]] = {state: [] for state in TrialState}
        for trial in study.get_trials(deepcopy=False):
            if trial.number != but and trial.number < before and (point := self._point(space, trial)):
                by_state[trial.state].append((point, trial))
        complete = by_state[TrialState.COMPLETE]
        names = dict.fromkeys(name for _, trial in complete for name in trial.constraints)
        unknown = [None] * len(study.directions)
        noisy = any(NOISE in trial.user_attrs for _, trial in complete)
        noise = [trial.user_attrs.get(NOISE, unknown) for _, trial in complete]
        return History(
            tuple(direction.name.lower() for direction in study.directions),
            [point for point, _ in complete],
            np.array([trial.values for _, trial in complete]).reshape(len(complete), len(study.directions)),
            {name: np.array([trial.constraints.get(name, np.nan) for _, trial in complete]) for name in names},
            [point for point, _ in by_state[TrialState.FAIL]],
            [point for point, _ in by_state[TrialState.RUNNING]],
            np.array(noise, dtype=float) if noisy else None,
        )

    def _point(self, space: SearchSpace, trial: FrozenTrial) -> Point:
        """Return the point of a trial, empty where it lacks a parameter; of a finished trial it is kept."""
        name = trial.number, trial.datetime_complete
        if name in self._decoded:
            return self._decoded[name]
        point = decode(space, trial.params)
        if len(point) != len(space.active(point)):
            point = {}
        if space is self._space and trial.state.is_finished():
            self._decoded[name] = point
        return point

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return all parameters of the space, or those that every finished trial has."""
        if self._space is not None:
            return distributions(self._space)
        common = IntersectionSearchSpace().calculate(study)
        return {name: distribution for name, distribution in common.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the active parameters of the proposed point."""
        if not search_space:
            return {}
        space = self._space or PlainSpace.of(search_space)
        rng = stream(self._seed, f"trial {trial.number}")
        return encode(self.propose(space, self.read(study, space, trial.number), rng))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a parameter that is not in the relative search space."""
        rng = stream(self._seed, f"trial {trial.number} {param_name}")
        return domain_of(param_distribution).sample(rng)


class RandomSampler(PointSampler):
    """Uniform over the valid points that have not been evaluated."""

    def propose(self, space: SearchSpace, history: History, rng: np.random.Generator) -> Point:
        """Return a new valid point; a repeated one if there seem to be no new ones."""
        return draw_valid(space, rng, history.taken)


class ExhaustiveSampler(PointSampler):
    """Every valid point once: the baseline, then in the order of the space's parameters, the last one varying fastest.

    A trial's number is its point's position, so neither history nor randomness is needed.
    """

    def __init__(self, space: SearchSpace, *, seed: int = 0) -> None:
        super().__init__(space, seed=seed)
        space.points()  # raises ConfigError for a continuous range now, not in the first trial
        self._all = space

    @cached_property
    def points(self) -> list[Point]:
        """All valid points, in order."""
        first = self._all.baseline_point()
        rest = [p for p in self._all.points() if p != first and self._all.infeasible_reason(p) is None]
        return rest if first is None else [first, *rest]

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the point of the trial's number, from the first one again once all have been proposed."""
        return encode(self.points[trial.number % len(self.points)])

    def propose(self, space: SearchSpace, history: History, rng: np.random.Generator) -> Point:
        """Return the point that follows those of the history."""
        return self.points[len(history.taken) % len(self.points)]


def draw_valid(space: SearchSpace, rng: np.random.Generator, taken: set[Key]) -> Point:
    """Draw a valid point by rejection, a new one if one turns up soon; InfeasibleError if there is no valid one."""
    known: Point | None = None
    reasons = []
    for _ in range(_ATTEMPTS):
        point = space.sample(rng)
        reason = space.infeasible_reason(point)
        if reason is None:
            if key(point) not in taken:
                return point
            known = point
        else:
            reasons.append(reason)
    if known is None:
        raise InfeasibleError(f"no valid configuration in {_ATTEMPTS:,} draws: {summary(reasons)}")
    return known
