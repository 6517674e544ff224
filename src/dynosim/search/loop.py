"""Making a study: it proposes trials and is told how they ended, by the simulator's loop here or by anyone else."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property, partial
from itertools import islice
from threading import RLock
from types import TracebackType
from typing import Any, Literal, Self

import optuna
from optuna.samplers import BaseSampler

from dynosim.config import Scenario
from dynosim.config.load import references
from dynosim.errors import ConfigError, DynosimError, InfeasibleError, StudyError
from dynosim.metrics import bounds_of
from dynosim.rng import stream
from dynosim.search import store
from dynosim.search.answer import ASKED, Answer
from dynosim.search.distributions import key, suggest
from dynosim.search.evaluate import evaluate as simulate_and_score
from dynosim.search.samplers import BayesSampler, PointSampler, make_sampler
from dynosim.search.samplers.base import Gap, draw_valid
from dynosim.search.study import SIMULATION, Listener, Study, objectives_of
from dynosim.search.trial import Outcome, Proposal, Status, Trial
from dynosim.search.warm import history_of
from dynosim.search.workers import Workers, count_workers, finished
from dynosim.space import SearchSpace, feasibility
from dynosim.space.reasons import summary

Evaluate = Callable[[Scenario], Outcome]

GAP_EVERY = 10
"""Trials between two looks at the gap, each of which takes as long as two or three proposals."""
LAST_CHANCES = 0.05
"""Share of the budget that a study in which nothing is feasible spends on runs that go to their end."""
_AHEAD_PER_WORKER = 2
"""Of samplers that learn nothing: enough for workers behind a slow trial."""
_MAX_REJECTIONS = 1_000
_ENUMERABLE = 20_000


class OpenStudy(Study):
    """A study that is being made: ``ask`` proposes a trial, ``tell`` takes how it ended, in any order and any thread.

    What was asked for and not told stays in the storage, and is offered again under its number when the study is opened
    the next time. A context manager: leaving it closes the study.
    """

    @store.storage_errors()
    def __init__(
        self,
        space: SearchSpace,
        *,
        storage: str | None = None,
        study_id: str = "study",
        trials: int | None = None,
        seed: int | None = None,
        in_flight: int | None = None,
        sampler: str | None = None,
        evaluator: str = ASKED,
        listeners: Sequence[Listener] = (),
        earlier: Sequence[Study] = (),
    ) -> None:
        """Open the study *study_id* of the *storage*, or a new one; in memory only where there is no storage.

        *trials*, *seed*, *sampler* and *in_flight* default to the space's. What *earlier* studies found is a start for
        our samplers. Raises ConfigError for an unknown sampler or objective, InfeasibleError where no point of the
        space can be deployed, StudyError if the storage holds another study under this name.
        """
        super().__init__(study_id, space, objectives_of(space), space.reference.slo)
        plan = space.reference.optimizer
        seed, name = plan.seed if seed is None else seed, sampler or plan.sampler
        self.evaluator, self._window, self._earlier = evaluator, in_flight or plan.in_flight, earlier
        identity = {"space": space.content_hash(), "seed": seed, "sampler": name, "in_flight": self._window}
        identity |= {"code": space.code_hash(), "evaluator": evaluator}
        self._store = store.TrialStore(storage, study_id, space, self.objectives, identity)
        self.trials += self._store.trials
        self.rejected += self._store.rejected
        self._make_sampler = partial(make_sampler, name, space, seed=seed, bounds=self.bounds, done=len(self.trials))
        self.in_flight = None if name in ("random", "exhaustive") else self._window
        self.budget = _attainable(space, trials or plan.trials, count=name == "exhaustive")
        self._listeners, self._lock, self._closed = listeners, RLock(), False
        self._asked: dict[int, tuple[optuna.Trial, Proposal]] = {}
        found = map(self._accepted, self._store.unfinished())
        self._again = deque(proposal for proposal in found if proposal is not None)
        if not self.trials and not self._again:
            self._check_new()
        for listener in listeners:
            listener.study_started(self)
        self._looked = len(self.trials) - self._window
        """Trials after which the last look at the gap was due."""

    def _check_new(self) -> None:
        """Raise what is wrong with the sampler or the space of a new study, before anything is asked for."""
        self._store.study.sampler = self._sampler
        if not self.budget or self.space.size() > _ENUMERABLE:
            draw_valid(self.space, stream(0, "valid"), set())

    @cached_property
    def _sampler(self) -> BaseSampler:
        """The sampler, made when it is first needed: who only tells does without."""
        sampler = self._make_sampler()
        if isinstance(sampler, BayesSampler):
            for known in self._earlier:
                sampler.learn_from(history_of(known.trials, self.space))
        return sampler

    @property
    def pending(self) -> list[Proposal]:
        """What was asked for, now or earlier, and is not told."""
        return [proposal for _, proposal in self._asked.values()]

    @store.storage_errors()
    def ask(self, *, new: bool = False) -> Proposal | None:
        """Return the next trial to evaluate; None where the budget is spent on trials that are told or pending.

        First come those that were asked for before the study was opened, unless it is to be *new*. Raises
        InfeasibleError where no valid configuration is found.
        """
        with self._lock:
            self._check_open()
            self._stop_when_close()
            handed_out = len(self._asked) - (0 if new else len(self._again))
            if len(self.trials) + handed_out >= self.budget:
                return None
            return self._again.popleft() if self._again and not new else self._next_valid()

    def tell(self, trial: Proposal | int, values: Sequence[float] | None = None, **answer: Any) -> Trial:
        """Store how *trial*, or the trial of that number, ended, and return it; the arguments are ``Answer``'s fields.

        Raises ConfigError, and stores nothing, for a trial that is not pending and for an answer that is not complete.
        """
        with self._lock:
            number = trial if isinstance(trial, int) else trial.number
            _, proposal = self._pending(number)
            return self.end(number, Answer(values, **answer).outcome(proposal.scenario))

    @store.storage_errors()
    def end(self, number: int, outcome: Outcome) -> Trial:
        """Store the outcome of a pending trial and return it."""
        with self._lock:
            self._check_open()
            trial, proposal = self._pending(number)
            record = Trial(number, proposal.point, proposal.scenario, outcome)
            self._store.tell(trial, record)
            del self._asked[number]
            with suppress(ValueError):
                self._again.remove(proposal)
            self.trials.append(record)
            for listener in self._listeners:
                listener.trial_finished(self, record)
            return record

    def close(self, *, estimate: bool = True) -> None:
        """End this session: what is known is reported, and pending trials stay in the storage.

        To *estimate* what may be missing takes as long as some proposals.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if estimate:
                self.gap, self.priors = self._gap(len(self.trials)), self._priors()
            for listener in self._listeners:
                listener.study_finished(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StudyError(f"study {self.id} is closed")

    def _pending(self, number: int) -> tuple[optuna.Trial, Proposal]:
        if number not in self._asked:
            told = any(trial.number == number for trial in self.trials)
            waiting = ", ".join(map(str, sorted(self._asked))) or "none"
            problem = "was told already" if told else "was never asked for"
            raise ConfigError(f"trial {number} of {self.id} {problem}; pending: {waiting}")
        return self._asked[number]

    def _next_valid(self) -> Proposal:
        """Return the next proposal that is not known to be infeasible; those that are cost no trial."""
        study = self._store.study
        study.sampler = self._sampler
        for trial in islice(iter(study.ask, None), _MAX_REJECTIONS):
            proposal = self._accepted(trial)
            if proposal is not None:
                return proposal
        raise InfeasibleError(f"no valid configuration in {_MAX_REJECTIONS} proposals: {summary(self.rejected)}")

    def _accepted(self, trial: optuna.Trial) -> Proposal | None:
        point = suggest(trial, self.space)
        try:
            scenario = self.space.scenario(point)
            feasibility.check(scenario)
        except DynosimError as error:
            self.rejected.append(str(error))
            self._store.tell_infeasible(trial, self.slo, str(error))
            return None
        self._store.start(trial)
        proposal = Proposal(trial.number, point, scenario)
        self._asked[trial.number] = trial, proposal
        return proposal

    def _stop_when_close(self) -> None:
        """Cut the budget to what is in flight once the gap after trials since the last look is below the plan's.

        A look knows only the trials before it, so a study that was interrupted while its last trials ran stops with the
        same ones.
        """
        target, since, self._looked = self.space.reference.optimizer.stop_at_gap, self._looked, len(self.trials)
        if target is None:
            return
        looks = [trials for trials in range(max(since, 0) + 1, len(self.trials) + 1) if trials % GAP_EVERY == 0]
        if any(gap is not None and gap.high < target for gap in map(self._gap, looks)):
            self.budget = min(self.budget, len(self.trials) + len(self._asked))

    def _gap(self, trials: int) -> Gap | None:
        """Return the gap after *trials* trials; None where it is unknown."""
        if not isinstance(self._sampler, BayesSampler) or not trials:
            return None
        last = max(trial.number for trial in self.trials[:trials])
        return self._sampler.gap(self._sampler.read(self._store.study, self.space, before=last + 1))

    def _priors(self) -> Mapping[str, str]:
        """Return output -> what its model started from, by the name that users see."""
        if not isinstance(self._sampler, BayesSampler):
            return {}
        shown = {bound.name: bound.label for bound in bounds_of(self.slo)}
        shown |= {f"objective {j}": objective.display for j, objective in enumerate(self.objectives)}
        found = self._sampler.priors(self._sampler.read(self._store.study, self.space))
        return {shown[name]: source for name, source in found.items() if name in shown}

    def to_simulate(self, proposal: Proposal) -> Scenario:
        """Return the scenario of *proposal*, whose run goes to its end even if lost where that has to be known.

        That is the baseline's, and all under Optuna's samplers, which take a bound for the violation itself; and the
        last ones of a study in which nothing is feasible, which tell what bound would be enough.
        """
        scenario, baseline = proposal.scenario, self.space.baseline_point()
        is_baseline = baseline is not None and key(proposal.point) == key(baseline)
        if isinstance(self._sampler, PointSampler) and not is_baseline and not self._is_last_chance(proposal.number):
            return scenario
        return scenario.model_copy(
            update={"optimizer": scenario.optimizer.model_copy(update={"stop_lost_runs": False})}
        )

    def _is_last_chance(self, number: int) -> bool:
        """Whether nothing that was told before trial *number* was asked for is feasible, and the budget ends."""
        before = (trial for trial in self.trials if trial.number <= number - self._window)
        left = self.budget - number
        return left <= max(1, LAST_CHANCES * self.budget) and not any(trial.outcome.feasible for trial in before)


def run_study(
    space: SearchSpace,
    *,
    workers: int | Literal["auto"] = 1,
    evaluate: Evaluate = simulate_and_score,
    evaluator: str = SIMULATION,
    **options: Any,
) -> OpenStudy:
    """Search *space* until the study has its trials, or all valid points; go on where an earlier call stopped.

    Results are told in the order in which points were proposed, ``in_flight`` proposals ahead of the oldest that is not
    told, so equal arguments give equal trials with any number of *workers*. A configuration that was evaluated before
    is not evaluated again. *options* and errors are those of ``OpenStudy``. What is known is reported on
    KeyboardInterrupt too.
    """
    count, plan = count_workers(workers), space.reference.optimizer
    study = OpenStudy(space, evaluator=evaluator, **options)
    # A user's code may exit, crash and hang: it must not take the study with it.
    isolated = plan.trial_timeout_s is not None or bool(references(space.fields)) or evaluator != SIMULATION
    try:
        with Workers(evaluate, count, _failed, isolated=isolated, limit_s=plan.trial_timeout_s) as pool:
            _evaluate_all(study, pool)
    except KeyboardInterrupt:
        study.close()
        raise
    study.close()
    return study


def _evaluate_all(study: OpenStudy, pool: Workers[Scenario, Outcome]) -> None:
    known = {trial.scenario.content_hash(): finished(trial.outcome) for trial in study.trials}
    running: deque[tuple[int, Future[Outcome]]] = deque()
    window = study.in_flight or _AHEAD_PER_WORKER * pool.count
    while True:
        while len(running) < window and (proposal := study.ask()) is not None:
            name = proposal.scenario.content_hash()
            known[name] = known.get(name) or pool.submit(study.to_simulate(proposal))
            running.append((proposal.number, known[name]))
        if not running:
            return
        number, future = running.popleft()
        study.end(number, future.result())


def _failed(scenario: Scenario, reason: str) -> Outcome:
    return Outcome(Status.FAILED, reason=reason)


def _attainable(space: SearchSpace, trials: int, *, count: bool) -> int:
    """Return *trials*, or the number of valid points where there are fewer; of a large space only if to *count*."""
    if space.size() > _ENUMERABLE and not count:
        return trials
    valid = (point for point in space.points() if space.infeasible_reason(point) is None)
    return sum(1 for _ in islice(valid, trials))
