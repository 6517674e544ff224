"""The methods that ``benchmarks/search.py`` compares: ours, and every peer in several configurations.

All propose through one small interface, get the baseline first and the SLOs as constraints, and are told of points that
are known to be invalid without paying a trial for them. As in a study, runs that are bound to miss an SLO end early for
ours only, which knows a bound from a value; peers are told what the whole run gives. Optuna's samplers see a space in
one of these forms:

conditional   parameters appear where they are active, every choice is a category: what ``dynosim`` itself gives them
flat          every parameter is always asked; what is inactive at the point is ignored
ordinal       numeric choices are asked as integers, the index into the choices
log           they are told logarithms of the objectives
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any

import numpy as np
import optuna
from model_peers import Ax, BoTorch, Hebo, Smac
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, TPESampler
from optuna.trial import TrialState
from proposer import Proposal, Proposer, is_numeric, slo_names
from scipy.stats import qmc
from truth import bounds, log_losses, objectives

from dynosim.rng import stream
from dynosim.search.distributions import Key, Point, key, label, to_distribution
from dynosim.search.samplers import make_sampler
from dynosim.search.store import RUNS
from dynosim.search.trial import Outcome, Status
from dynosim.space import Choices, Parameter, SearchSpace


@dataclass(frozen=True)
class Method:
    """One configuration of one method."""

    family: str
    make: Callable[[SearchSpace, int], Proposer]
    trials: int
    """Run so long: cheap methods get more trials, so that they can be compared at equal wall time."""
    seeds: int = 5


class Unguided(Proposer):
    """A sequence of points that was fixed beforehand, the baseline first."""

    def __init__(self, space: SearchSpace, points: Iterator[Point]) -> None:
        baseline = space.baseline_point()
        self._points = chain([] if baseline is None else [baseline], points)

    def ask(self) -> Proposal:
        """Return the next point of the sequence."""
        return Proposal(next(self._points))

    def tell(self, proposal: Proposal, outcome: Outcome | None) -> None:
        """Learn nothing."""


def random(space: SearchSpace, seed: int) -> Proposer:
    """Uniform over the space."""
    rng = stream(seed, "random")
    return Unguided(space, (space.sample(rng) for _ in count()))


def sobol(space: SearchSpace, seed: int) -> Proposer:
    """A scrambled Sobol sequence over all parameters; what is inactive at a point is ignored."""
    sequence = qmc.Sobol(len(space.parameters), seed=seed)

    def point() -> Point:
        u = sequence.random()[0]
        return space.complete({p.path: _at(p, x) for p, x in zip(space.parameters, u, strict=True)})

    return Unguided(space, (point() for _ in count()))


def _at(parameter: Parameter, u: float) -> Any:
    values = parameter.domain.values
    if values is None:
        return parameter.domain.min + u * (parameter.domain.max - parameter.domain.min)
    return values[int(u * len(values))]


def grid(levels: int) -> Callable[[SearchSpace, int], Proposer]:
    """Return the maker of a coarse grid: *levels* values of every number, all categories, in random order."""

    def make(space: SearchSpace, seed: int) -> Proposer:
        coarse = SearchSpace("", {}, tuple(_thin(parameter, levels) for parameter in space.parameters))
        points = list(coarse.points())
        return Unguided(space, (points[i] for i in stream(seed, "grid").permutation(len(points))))

    return make


def _thin(parameter: Parameter, levels: int) -> Parameter:
    values = parameter.domain.values
    if values is None or not is_numeric(parameter) or len(values) <= levels:
        return parameter
    kept = sorted({round(i) for i in np.linspace(0, len(values) - 1, levels)})
    return replace(parameter, domain=Choices(tuple(values[i] for i in kept)))


_PATIENCE = 3
"""Proposals in a row that one of Optuna's samplers had made before, after which a random point is put in."""


class OptunaPeer(Proposer):
    """One of Optuna's samplers, or ours, in a study of its own in memory.

    Where a sampler does nothing but repeat itself, as TPE does in small spaces, a random point helps it on.
    """

    def __init__(
        self,
        space: SearchSpace,
        sampler: BaseSampler,
        *,
        flat: bool = False,
        ordinal: bool = False,
        log: bool = False,
        takes_bounds: bool = False,
    ) -> None:
        self._space, self._flat, self._ordinal, self._log = space, flat, ordinal, log
        self.takes_bounds = takes_bounds
        self._directions = [objective.direction for objective in objectives(space)]
        self._violated = dict.fromkeys(slo_names(space) or [RUNS], 1.0)
        self.study = optuna.create_study(sampler=sampler, directions=self._directions)
        self._rng, self._seen, self._repeats = stream(0, "repeats"), set[Key](), 0
        if (baseline := space.baseline_point()) is not None:
            self._enqueue(baseline)

    def _enqueue(self, point: Point) -> None:
        self.study.enqueue_trial({p.path: self._stored(p, point[p.path]) for p in self._space.active(point)})

    def ask(self) -> Proposal:
        """Ask every parameter of a new trial, or those that are active."""
        if self._repeats >= _PATIENCE:
            self._enqueue(self._space.sample(self._rng))
        trial, values = self.study.ask(), dict[str, Any]()
        for parameter in self._space.parameters:
            if self._flat or parameter.active(values):
                values[parameter.path] = self._suggest(trial, parameter)
        return Proposal({p.path: values[p.path] for p in self._space.active(values)}, trial)

    def _suggest(self, trial: optuna.Trial, parameter: Parameter) -> Any:
        domain = parameter.domain
        if not isinstance(domain, Choices):
            return trial._suggest(parameter.path, to_distribution(domain))
        if self._ordinal and is_numeric(parameter):
            return domain.values[trial.suggest_int(parameter.path, 0, len(domain.values) - 1)]
        labels = [label(value) for value in domain.values]
        return domain.values[labels.index(trial.suggest_categorical(parameter.path, labels))]

    def _stored(self, parameter: Parameter, value: Any) -> Any:
        ordinal = self._ordinal and isinstance(parameter.domain, Choices) and is_numeric(parameter)
        return parameter.domain.values.index(value) if ordinal else label(value)

    def tell(self, proposal: Proposal, outcome: Outcome | None) -> None:
        """Store the outcome as a study does: what could not run is infinitely bad and violates every constraint."""
        trial, known, name = proposal.token, outcome or Outcome(Status.INFEASIBLE), key(proposal.point)
        self._repeats = self._repeats + 1 if name in self._seen else 0
        self._seen.add(name)
        if known.status is Status.FAILED:
            self.study.tell(trial, state=TrialState.FAIL)
            return
        for name, violation in (known.constraints or self._violated).items():
            trial.set_constraint(name, violation)
        worst = [-math.inf if direction == "maximize" else math.inf for direction in self._directions]
        values = known.values or worst
        self.study.tell(trial, [math.log(v) if self._log and math.isfinite(v) else v for v in values])


def optuna_peer(make: Callable[[int], BaseSampler], **form: bool) -> Callable[[SearchSpace, int], Proposer]:
    """Return the maker of a peer from that of a sampler of Optuna's."""

    def factory(space: SearchSpace, seed: int) -> Proposer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return OptunaPeer(space, make(seed), **form)

    return factory


def ours(name: str) -> Callable[[SearchSpace, int], Proposer]:
    """Return the maker of a sampler that dynosim ships."""
    return lambda space, seed: OptunaPeer(
        space, make_sampler(name, space, seed=seed, bounds=tuple(bounds(space))), takes_bounds=True
    )


class Pymoo(Proposer):
    """pymoo's genetic algorithm for mixed variables with non-dominated sorting (NSGA-II), told by generations."""

    def __init__(self, space: SearchSpace, seed: int, population: int) -> None:
        from pymoo.algorithms.moo.nsga2 import RankAndCrowdingSurvival
        from pymoo.core.mixed import MixedVariableGA, MixedVariableSampling
        from pymoo.core.problem import Problem
        from pymoo.core.variable import Choice, Integer

        self._space = space
        slos = slo_names(space)
        variables = {
            p.path: Integer(bounds=(0, len(p.domain.values or ()) - 1))
            if is_numeric(p)
            else Choice(options=range(len(p.domain.values or ())))
            for p in space.parameters
        }
        self._m, self._slos = len(objectives(space)), slos
        problem = Problem(vars=variables, n_obj=self._m, n_ieq_constr=len(slos) + 1)
        np.random.seed(seed)
        start = MixedVariableSampling()(problem, population)
        baseline = space.baseline_point()
        if baseline is not None:
            start[0].X = start[0].X | {
                p.path: list(p.domain.values or ()).index(baseline[p.path]) for p in space.active(baseline)
            }
        self._algorithm = MixedVariableGA(pop_size=population, sampling=start, survival=RankAndCrowdingSurvival())
        self._algorithm.setup(problem, termination=("n_gen", 10_000), seed=seed, verbose=False)
        self._waiting: deque[Any] = deque()
        self._infills: Any = None

    def ask(self) -> Proposal:
        """Return the next individual of the generation."""
        if not self._waiting:
            self._infills = self._algorithm.ask()
            self._waiting.extend(self._infills)
        individual = self._waiting.popleft()
        values = {p.path: (p.domain.values or ())[int(individual.X[p.path])] for p in self._space.parameters}
        return Proposal({p.path: values[p.path] for p in self._space.active(values)}, individual)

    def tell(self, proposal: Proposal, outcome: Outcome | None) -> None:
        """Judge an individual; the last of a generation makes the next one."""
        ran = outcome is not None and outcome.values is not None
        individual = proposal.token
        individual.F = log_losses(self._space, np.array(outcome.values))[0] if ran else np.full(self._m, 1e9)
        violations = [outcome.constraints[name] for name in self._slos] if ran else [1e9] * len(self._slos)
        individual.G = np.array([*np.clip(violations, -1e9, 1e9), -1.0 if ran else 1e9])
        individual.evaluated.update({"F", "G", "H"})
        individual.H = np.zeros(0)
        if not self._waiting:
            self._algorithm.tell(infills=self._infills)


def _tpe(**options: Any) -> Callable[[int], BaseSampler]:
    return lambda seed: TPESampler(seed=seed, **options)


def _gp(seed: int) -> BaseSampler:
    return GPSampler(seed=seed, deterministic_objective=True, warn_independent_sampling=False)


_GROUP = {"multivariate": True, "group": True}

METHODS: dict[str, Method] = {
    "bayes": Method("dynosim", ours("bayes"), 150),
    "random": Method("random", random, 800),
    "sobol": Method("Sobol", sobol, 800),
    "grid-2": Method("coarse grid", grid(2), 800),
    "grid-3": Method("coarse grid", grid(3), 800),
    "nsga2-10": Method("NSGA-II", optuna_peer(lambda seed: NSGAIISampler(seed=seed, population_size=10)), 800),
    "nsga2-20": Method("NSGA-II", optuna_peer(lambda seed: NSGAIISampler(seed=seed, population_size=20)), 800),
    "nsga2-50": Method("NSGA-II", optuna_peer(lambda seed: NSGAIISampler(seed=seed, population_size=50)), 800),
    "nsga3-20": Method("NSGA-III", optuna_peer(lambda seed: NSGAIIISampler(seed=seed, population_size=20)), 800),
    "pymoo-20": Method("pymoo GA", lambda space, seed: Pymoo(space, seed, 20), 800),
    "tpe": Method("TPE", optuna_peer(_tpe()), 300),
    "tpe-group": Method("TPE", optuna_peer(_tpe(**_GROUP)), 300),
    "tpe-group-no-liar": Method("TPE", optuna_peer(_tpe(**_GROUP, constant_liar=False)), 300),
    "tpe-flat-ordinal": Method("TPE", optuna_peer(_tpe(multivariate=True), flat=True, ordinal=True, log=True), 300),
    "gp": Method("GPSampler", optuna_peer(_gp), 100, seeds=2),
    "gp-flat": Method("GPSampler", optuna_peer(_gp, flat=True), 100, seeds=2),
    "gp-flat-ordinal-log": Method("GPSampler", optuna_peer(_gp, flat=True, ordinal=True, log=True), 100),
    "botorch": Method("BoTorch qLogNEHVI", BoTorch, 100),
    "ax": Method("Ax", Ax, 60, seeds=2),
    "hebo": Method("HEBO", Hebo, 100),
    "smac": Method("SMAC3", Smac, 100),
    "qlognehvi": Method("dynosim models, qLogNEHVI", ours("qlognehvi"), 100, seeds=2),
}
