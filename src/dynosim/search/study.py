"""A study: the trials of one search, what they say, and the loop that makes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Literal, NamedTuple, Protocol

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import BaseSampler

from dynosim.config import SLO, Scenario
from dynosim.config.load import references
from dynosim.errors import DynosimError, InfeasibleError
from dynosim.metrics import bounds_of
from dynosim.objectives import Objective, resolve
from dynosim.rng import stream
from dynosim.search import pareto, store
from dynosim.search.distributions import Point, key, suggest
from dynosim.search.evaluate import evaluate as simulate_and_score
from dynosim.search.samplers import BayesSampler, ExhaustiveSampler, PointSampler, RandomSampler, make_sampler
from dynosim.search.samplers.base import draw_valid
from dynosim.search.samplers.gap import Gap
from dynosim.search.ties import groups
from dynosim.search.trial import Outcome, Status, Trial
from dynosim.search.warm import history_of
from dynosim.search.workers import Workers, count_workers, finished
from dynosim.space import SearchSpace, feasibility
from dynosim.space.reasons import summary

Array = NDArray[np.float64]
Evaluate = Callable[[Scenario], Outcome]

GAP_EVERY = 10
"""Trials between two looks at the gap, each of which takes as long as two or three proposals."""
_AHEAD_PER_WORKER = 2
"""Of samplers that learn nothing: enough for workers behind a slow trial."""
_MAX_REJECTIONS = 1_000
_ENUMERABLE = 20_000


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
    in_flight: int = 1
    """Proposals made ahead of the oldest that is not told, itself included: as many may be evaluated at a time."""
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


class _Running(NamedTuple):
    trial: optuna.Trial
    point: Point
    scenario: Scenario
    future: Future[Outcome]


def run_study(
    space: SearchSpace,
    *,
    storage: str | None = None,
    study_id: str = "study",
    trials: int | None = None,
    seed: int | None = None,
    in_flight: int | None = None,
    workers: int | Literal["auto"] = 1,
    listeners: Sequence[Listener] = (),
    sampler: str | None = None,
    evaluate: Evaluate = simulate_and_score,
    earlier: Sequence[Study] = (),
) -> Study:
    """Search *space* until the study has *trials* trials, or all valid points; go on where an earlier call stopped.

    Results are told in the order in which points were proposed, *in_flight* proposals ahead of the oldest that is not
    told, so equal arguments give equal trials with any number of *workers*. A configuration that was evaluated before
    is not evaluated again. *trials*, *seed*, *sampler* and *in_flight* default to the space's. What *earlier* studies
    found is a start for our samplers. Raises ConfigError for an unknown sampler or objective, InfeasibleError where no
    point of the space can be deployed, StudyError if the storage holds another study under this name.
    """
    plan = space.reference.optimizer
    seed, sampler = plan.seed if seed is None else seed, sampler or plan.sampler
    study = _empty(space, study_id)
    study.in_flight = in_flight or plan.in_flight
    identity = {"space": space.content_hash(), "seed": seed, "sampler": sampler, "in_flight": study.in_flight}
    identity["code"] = space.code_hash()
    trial_store = store.TrialStore(storage, study_id, space, study.objectives, identity)
    study.trials += trial_store.trials
    study.rejected += trial_store.rejected
    trial_store.study.sampler = make_sampler(sampler, space, seed=seed, bounds=study.bounds, done=len(study.trials))
    if isinstance(trial_store.study.sampler, BayesSampler):
        for known in earlier:
            trial_store.study.sampler.learn_from(history_of(known.trials, space))
    study.budget = _attainable(space, trial_store.study.sampler, trials or plan.trials)
    if not study.budget or (not study.trials and space.size() > _ENUMERABLE):
        draw_valid(space, stream(0, "valid"), set())
    count = count_workers(workers)
    if type(trial_store.study.sampler) in (RandomSampler, ExhaustiveSampler):  # no result changes what they propose
        study.in_flight = max(study.in_flight, _AHEAD_PER_WORKER * count)
    for listener in listeners:
        listener.study_started(study)
    limit_s = plan.trial_timeout_s
    # A user's code may exit, crash and hang: it must not take the study with it.
    isolated = limit_s is not None or bool(references(space.fields))
    with Workers(evaluate, count, _failed, isolated=isolated, limit_s=limit_s) as pool:
        for record in _evaluated(study, trial_store, pool):
            study.trials.append(record)
            for listener in listeners:
                listener.trial_finished(study, record)
    study.gap, study.priors = _gap(study, trial_store, len(study.trials)), _priors(study, trial_store)
    for listener in listeners:
        listener.study_finished(study)
    return study


def _evaluated(study: Study, trial_store: store.TrialStore, pool: Workers[Scenario, Outcome]) -> Iterator[Trial]:
    """Yield what is left of the budget, each trial once it is stored; the caller appends it to the study."""
    space = study.space
    proposals = chain(trial_store.unfinished(), iter(trial_store.study.ask, None))
    known = {trial.scenario.content_hash(): finished(trial.outcome) for trial in study.trials}
    running: deque[_Running] = deque()
    _stop_when_close(study, trial_store, since=len(study.trials) - study.in_flight + 1)
    while running or len(study.trials) < study.budget:
        while len(running) < min(study.in_flight, study.budget - len(study.trials)):
            trial, point, scenario = _next_valid(proposals, trial_store, study)
            name = scenario.content_hash()
            asked = scenario if _may_stop(trial_store, point, space) else _to_its_end(scenario)
            known[name] = known.get(name) or pool.submit(asked)
            running.append(_Running(trial, point, scenario, known[name]))
        trial, point, scenario, future = running.popleft()
        record = Trial(trial.number, point, scenario, future.result())
        trial_store.tell(trial, record)
        yield record
        _stop_when_close(study, trial_store, since=len(study.trials))


def _failed(scenario: Scenario, reason: str) -> Outcome:
    return Outcome(Status.FAILED, reason=reason)


def _stop_when_close(study: Study, trial_store: store.TrialStore, since: int) -> None:
    """Cut the budget to what is in flight once the gap after *since* or more trials is below the plan's.

    A look knows only the trials before it, so a study that was interrupted while its last trials ran stops with the
    same ones.
    """
    target = study.space.reference.optimizer.stop_at_gap
    for trials in range(max(since, 1), len(study.trials) + 1):
        if target is not None and trials % GAP_EVERY == 0:
            gap = _gap(study, trial_store, trials)
            if gap is not None and gap.high < target:
                study.budget = min(study.budget, trials + study.in_flight - 1)


def _gap(study: Study, trial_store: store.TrialStore, trials: int) -> Gap | None:
    """Return the gap after *trials* trials; None where it is unknown."""
    sampler = trial_store.study.sampler
    if not isinstance(sampler, BayesSampler) or not trials:
        return None
    return sampler.gap(sampler.read(trial_store.study, study.space, before=study.trials[trials - 1].number + 1))


def _may_stop(trial_store: store.TrialStore, point: Point, space: SearchSpace) -> bool:
    """Return whether a lost run may end early: Optuna's samplers take a bound for the violation itself."""
    baseline = space.baseline_point()
    return isinstance(trial_store.study.sampler, PointSampler) and (baseline is None or key(point) != key(baseline))


def _to_its_end(scenario: Scenario) -> Scenario:
    return scenario.model_copy(update={"optimizer": scenario.optimizer.model_copy(update={"stop_lost_runs": False})})


def _priors(study: Study, trial_store: store.TrialStore) -> dict[str, str]:
    """Return output -> what its model started from, by the name that users see."""
    sampler = trial_store.study.sampler
    if not isinstance(sampler, BayesSampler):
        return {}
    shown = {bound.name: bound.label for bound in bounds_of(study.slo)}
    shown |= {f"objective {j}": objective.display for j, objective in enumerate(study.objectives)}
    found = sampler.priors(sampler.read(trial_store.study, study.space))
    return {shown[name]: source for name, source in found.items() if name in shown}


def load_study(space: SearchSpace, *, storage: str, study_id: str) -> Study:
    """Return the study *study_id* of *space* with its finished trials; StudyError if the storage has none."""
    study = _empty(space, study_id)
    stored = store.load(store.open_storage(storage), study_id)
    study.trials += store.read(stored, space)
    study.rejected += store.rejected(stored)
    study.budget = len(study.trials)
    return study


def _empty(space: SearchSpace, study_id: str) -> Study:
    objectives = tuple(resolve(config) for config in space.reference.objectives)
    return Study(study_id, space, objectives, space.reference.slo)


def _attainable(space: SearchSpace, sampler: BaseSampler, trials: int) -> int:
    """Return *trials*, or the number of valid points where there are fewer."""
    if isinstance(sampler, ExhaustiveSampler):
        return min(trials, len(sampler.points))
    if space.size() > _ENUMERABLE:
        return trials
    valid = (point for point in space.points() if space.infeasible_reason(point) is None)
    return sum(1 for _ in islice(valid, trials))


def _next_valid(
    proposals: Iterator[optuna.Trial], trial_store: store.TrialStore, study: Study
) -> tuple[optuna.Trial, Point, Scenario]:
    """Return the next proposal that is not known to be infeasible; those that are cost no trial."""
    for trial in islice(proposals, _MAX_REJECTIONS):
        point = suggest(trial, study.space)
        try:
            scenario = study.space.scenario(point)
            feasibility.check(scenario)
        except DynosimError as error:
            study.rejected.append(str(error))
            trial_store.tell_infeasible(trial, study.slo, str(error))
        else:
            trial_store.start(trial)
            return trial, point, scenario
    raise InfeasibleError(f"no valid configuration in {_MAX_REJECTIONS} proposals: {summary(study.rejected)}")
