"""A study: the trials of one search, and what they say. ``search.loop`` makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dynosim.config import SLO
from dynosim.objectives import Objective, resolve
from dynosim.search import pareto, store
from dynosim.search.distributions import key
from dynosim.search.samplers.base import Gap
from dynosim.search.ties import groups
from dynosim.search.trial import Trial
from dynosim.space import SearchSpace

Array = NDArray[np.float64]

SIMULATION = "simulation"


@dataclass(eq=False)
class Study:
    """Trials over a space, judged by objectives under SLOs."""

    id: str
    space: SearchSpace
    objectives: tuple[Objective, ...]
    slo: SLO
    trials: list[Trial] = field(default_factory=list)
    budget: int = 0
    """Trials that this study is to have in the end."""
    in_flight: int | None = None
    """Proposals made ahead of the oldest that is not told, itself included: the most that are evaluated at a time.

    None where what is proposed does not depend on what was told."""
    evaluator: str = SIMULATION
    """Who evaluates the trials."""
    priors: Mapping[str, str] = field(default_factory=dict)
    """What the models started from, by output: a source, that it was dropped, or none; known once the study ends."""
    rejected: list[str] = field(default_factory=list)
    """Why proposals were known not to work; they cost no trial."""
    gap: Gap | None = None
    """What is believed to be missing, once the study ends; None where the sampler does not know."""
    _grouped: tuple[list[Trial], list[list[Trial]]] | None = field(default=None, init=False, repr=False)
    """The trials that ``groups`` was last asked of, and its answer."""

    def __repr__(self) -> str:
        counts = f"{len(self.trials)} trials, {len(self.feasible)} feasible, {len(self.leaders())} on the frontier"
        return f"<Study {self.id}: {counts} that can be told apart>"

    @property
    def feasible(self) -> list[Trial]:
        """Trials that completed and met every SLO."""
        return [trial for trial in self.trials if trial.outcome.feasible]

    @property
    def ended(self) -> bool:
        """Whether it has all its trials."""
        return len(self.trials) >= self.budget

    @property
    def simulated(self) -> bool:
        """Whether its trials are simulations."""
        return self.evaluator == SIMULATION

    @property
    def origin(self) -> str:
        """Where its numbers are from, in words."""
        return "simulated" if self.simulated else f"evaluated by {self.evaluator}"

    @property
    def baseline(self) -> Trial | None:
        """The trial of today's deployment, if it has been evaluated."""
        point = self.space.baseline_point()
        return next((t for t in self.trials if point is not None and key(t.point) == key(point)), None)

    def losses(self, trials: Sequence[Trial]) -> Array:
        """Return the objective values of complete trials, ``n x m``, with maximised ones negated."""
        values = [trial.outcome.values for trial in trials]
        return pareto.losses(np.array(values, dtype=float).reshape(len(trials), len(self.objectives)), self._directions)

    def frontier(self) -> list[Trial]:
        """Return the feasible trials that no other dominates, by their first objective, best first."""
        feasible = self.feasible
        if not feasible:
            return []
        losses = self.losses(feasible)
        chosen = np.flatnonzero(pareto.nondominated(losses))
        return [feasible[i] for i in chosen[np.lexsort(losses[chosen].T[::-1])]]

    def groups(self) -> list[list[Trial]]:
        """Return the frontier as groups that cannot be told apart from their first, the leader: see ``search.ties``.

        A leader may be a trial that the frontier lacks by less than the noise.
        """
        if self._grouped is None or self._grouped[0] != self.trials:
            front = self.frontier()
            known = {trial.number for trial in front}
            others = [trial for trial in self.feasible if trial.number not in known]
            self._grouped = (list(self.trials), groups(front, others, self.objectives))
        return self._grouped[1]

    def leaders(self) -> list[Trial]:
        """Return the frontier as far as it can be told apart, by their first objective, best first."""
        return [group[0] for group in self.groups()]

    def recommended(self) -> list[Trial]:
        """Return the frontier and its leaders by their first objective: those of ``recommendations/0001.yaml`` on."""
        members = [trial for group in self.groups() for trial in group]
        return [members[i] for i in np.lexsort(self.losses(members).T[::-1])] if members else []

    def picks(self) -> dict[str, Trial]:
        """Return the leaders of ``best_at`` by name; empty when nothing is feasible.

        Of several objectives, the best is what is closest to the best of each after scaling it by the leaders' range.
        A saturated point is only picked where all are.
        """
        leaders = self.leaders()
        front = [trial for trial in leaders if not trial.saturated] or leaders
        losses = self.losses(front)
        return {name: front[pareto.knee(losses[:, chosen])] for name, chosen in self.best_at.items()} if front else {}

    @property
    def best_at(self) -> dict[str, list[int]]:
        """What picks are best at -> the places of its objectives; ``balanced`` in all, where their kinds differ."""
        names = [objective.pick for objective in self.objectives]
        kinds = {name: [i for i, other in enumerate(names) if other == name] for name in names}
        return kinds if len(kinds) == 1 else kinds | {"balanced": list(range(len(names)))}

    @property
    def bounds(self) -> tuple[float | None, ...]:
        """The SLO of each objective in its own unit, None where it has none."""
        return tuple(map(self._bound, self.objectives))

    def _bound(self, objective: Objective) -> float | None:
        metric, _, stat = objective.plain_name.partition(".")
        return self.slo.get(metric, {}).get(stat or ("max" if objective.direction == "minimize" else "min"))

    @property
    def reference_point(self) -> tuple[float, ...]:
        """The worst corner that the hypervolume counts from, in the objectives' units.

        The SLO of an objective where it has one, otherwise its worst feasible value so far; NaN where neither
        is known.
        """
        bounds = np.array([np.nan if bound is None else bound for bound in self.bounds])
        feasible = self.losses(self.feasible) if self.feasible else np.zeros((0, len(bounds)))
        reference = pareto.reference_point(feasible, pareto.losses(bounds, self._directions))
        return tuple(pareto.losses(reference, self._directions).tolist())

    def hypervolume(self, reference: Sequence[float] | None = None) -> float:
        """Return the volume that the frontier dominates, in units of the reference point; 0 while there is no frontier.

        With minimised positive objectives it is below 1, the volume of a free deployment without latency.
        """
        corner = np.array(self.reference_point if reference is None else reference)
        if not self.feasible or np.isnan(corner).any():
            return 0.0
        scale = np.where(corner == 0.0, 1.0, np.abs(corner))
        return pareto.hypervolume(self.losses(self.feasible) / scale, pareto.losses(corner, self._directions) / scale)

    @property
    def _directions(self) -> list[str]:
        return [objective.direction for objective in self.objectives]


class Listener(Protocol):
    """Hears of a study as it goes: progress lines, trackers, the service. It must not change anything."""

    def study_started(self, study: Study) -> None:
        """Called once, with the trials of an interrupted run already there."""

    def trial_finished(self, study: Study, trial: Trial) -> None:
        """Called after each trial has been stored."""

    def study_finished(self, study: Study) -> None:
        """Called once, when the budget is spent or the space is exhausted."""


def load_study(space: SearchSpace, *, storage: str, study_id: str) -> Study:
    """Return the study *study_id* of *space* with its finished trials; StudyError if the storage has none."""
    study = Study(study_id, space, objectives_of(space), space.reference.slo)
    stored = store.load(store.open_storage(storage), study_id)
    study.trials += store.read(stored, space)
    study.rejected += store.rejected(stored)
    study.evaluator = stored.user_attrs.get("identity", {}).get("evaluator", SIMULATION)
    study.budget = len(study.trials)
    return study


def objectives_of(space: SearchSpace) -> tuple[Objective, ...]:
    """Return the objectives that *space* names."""
    return tuple(resolve(config) for config in space.reference.objectives)
