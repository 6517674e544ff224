"""Bayesian optimisers of other packages, each as its own documentation uses it.

Ax, HEBO and SMAC3 are no dependencies of dynosim: install ``ax-platform``, ``smac``, or ``HEBO`` without its pins of
an old numpy and pymoo, each in an environment of its own beside dynosim.
All learn logarithms of the objectives. Those with outcome constraints learn two-sided logarithms of the violations
(Eriksson and Poloczek 2021).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from proposer import Proposal, Proposer, is_numeric, slo_names
from truth import log_bounds, log_losses, objectives

from dynosim.rng import stream
from dynosim.search import pareto
from dynosim.search.distributions import Point, key
from dynosim.search.trial import Outcome
from dynosim.space import Parameter, SearchSpace

Array = NDArray[np.float64]

_STARTUP = 10
"""Points before the first model."""
_GENERATIONS = 50
"""Of HEBO's evolution strategy."""


def log_violations(space: SearchSpace, outcome: Outcome) -> list[float]:
    """Return the violation of each SLO as its two-sided logarithm."""
    V = np.clip([outcome.constraints[name] for name in slo_names(space)], -1e4, 1e4)
    return list(np.sign(V) * np.log1p(np.abs(V)))


def _rank(parameter: Parameter, value: Any) -> int:
    return list(parameter.domain.values or ()).index(value)


def _from_ranks(space: SearchSpace, ranks: Mapping[str, Any]) -> Point:
    """Return the point of a choice's number for every parameter; what is inactive is ignored."""
    values = {p.path: (p.domain.values or ())[int(ranks[p.path])] for p in space.parameters if p.path in ranks}
    return {p.path: values[p.path] for p in space.active(values)}


class Record:
    """What a peer without missing values learns of every proposal: log losses and log violations, one row each.

    A proposal that cannot run is as bad as the worst that was seen, and violates every SLO.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._worst = np.zeros(len(objectives(space)))
        self._seen = False

    def row(self, outcome: Outcome | None) -> tuple[Array, Array]:
        """Return log losses and log violations, at least one SLO's."""
        slos = max(len(slo_names(self._space)), 1)
        if outcome is None or outcome.values is None:
            return self._worst, np.ones(slos)
        losses = log_losses(self._space, np.array(outcome.values))[0]
        self._worst = np.maximum(self._worst, losses) if self._seen else losses
        self._seen = True
        return losses, np.array(log_violations(self._space, outcome) or [-1.0])


class BoTorch(Proposer):
    """BoTorch as its tutorials use it: SingleTaskGP on raw features, qLogNEHVI, over all valid points.

    Log objectives and two-sided logarithms of violations (Eriksson and Poloczek 2021), ten random points first. The
    reference is the SLO, or else a tenth of the feasible range beyond the worst feasible value. The acquisition is
    maximised over a random tenth of the valid points at a time: over all of them a proposal takes minutes.
    """

    def __init__(self, space: SearchSpace, seed: int, startup: int = _STARTUP, choices: int = 1_500) -> None:
        self._space, self._rng, self._startup, self._choices = space, stream(seed, "botorch"), startup, choices
        self._valid = [point for point in space.points() if space.infeasible_reason(point) is None]
        self._left = set(range(len(self._valid)))
        self._encoded = np.array([_one_hot(space, point) for point in self._valid])
        self._rows: list[int] = []
        self._losses: list[Array] = []
        self._violations: list[list[float]] = []
        self._index = {key(point): i for i, point in enumerate(self._valid)}

    def ask(self) -> Proposal:
        """Return the baseline, then random points, then the best of qLogNEHVI."""
        if not self._rows and (baseline := self._space.baseline_point()) is not None:
            return Proposal(baseline)
        choices = self._rng.permutation(sorted(self._left))[: self._choices]
        return Proposal(self._valid[choices[0] if len(self._rows) < self._startup else self._best(choices)])

    def tell(self, proposal: Proposal, outcome: Outcome | None) -> None:
        """Add one row to the data, unless the point could not run."""
        row = self._index[key(proposal.point)]
        self._left.discard(row)
        if outcome is None or outcome.values is None:
            return
        self._rows.append(row)
        self._losses.append(log_losses(self._space, np.array(outcome.values))[0])
        self._violations.append(log_violations(self._space, outcome))

    def _best(self, choices: NDArray[np.int64]) -> int:
        import torch
        from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
        from botorch.acquisition.multi_objective.objective import IdentityMCMultiOutputObjective
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import ModelListGP, SingleTaskGP
        from botorch.models.transforms.outcome import Standardize
        from botorch.optim import optimize_acqf_discrete
        from botorch.sampling.normal import SobolQMCNormalSampler
        from gpytorch.mlls import SumMarginalLogLikelihood

        torch.manual_seed(len(self._rows))
        X, losses = torch.as_tensor(self._encoded[self._rows]), np.array(self._losses)
        V = np.array(self._violations)
        Y = np.hstack([-losses, V[:, np.ptp(V, axis=0) > 0.0]])
        m = losses.shape[1]
        model = ModelListGP(
            *(SingleTaskGP(X, torch.as_tensor(y)[:, None], outcome_transform=Standardize(1)) for y in Y.T)
        )
        fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
        feasible = losses[(V <= 0.0).all(axis=1)]
        feasible = feasible if len(feasible) else losses
        reference = pareto.reference_point(feasible + 0.1 * np.ptp(feasible, axis=0), log_bounds(self._space))
        acquisition = qLogNoisyExpectedHypervolumeImprovement(
            model,
            torch.as_tensor(-reference),
            X,
            SobolQMCNormalSampler(torch.Size([64]), seed=len(self._rows)),
            IdentityMCMultiOutputObjective(outcomes=list(range(m))),
            constraints=[lambda samples, j=j: samples[..., j] for j in range(m, Y.shape[1])] or None,
            prune_baseline=True,
        )
        candidates = torch.as_tensor(self._encoded[choices])
        best, _ = optimize_acqf_discrete(acquisition, 1, candidates, max_batch_size=256)
        return int(choices[int((candidates == best).all(dim=1).nonzero()[0])])


def _one_hot(space: SearchSpace, point: Point) -> list[float]:
    """Numbers by their rank in [0, 1], categories one-hot, inactive parameters at a constant."""
    row: list[float] = []
    for parameter in space.parameters:
        values = list(parameter.domain.values or ())
        rank = values.index(point[parameter.path]) if parameter.path in point else None
        if is_numeric(parameter):
            row.append(0.5 if rank is None else rank / max(len(values) - 1, 1))
        else:
            row += [float(i == rank) for i in range(len(values))]
    return row


class Ax(Proposer):
    """Ax's ``Client`` with its default strategy: Sobol points, then its choice of model and acquisition.

    The space is a tree, as Ax has it: what depends on a parameter stands below its value, once below each of several.
    SLOs are outcome constraints, those on objectives by their bounds.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        from ax.api.client import Client

        self._space, self._record = space, Record(space)
        self._paths: dict[str, str] = {}
        self._client = Client(random_seed=seed)
        self._client.configure_experiment(parameters=self._tree())
        losses = [f"loss{j}" for j in range(len(objectives(space)))]
        self._metrics = [*losses, *(f"slo{i}" for i in range(max(len(slo_names(space)), 1)))]
        limits = zip(losses, log_bounds(space), strict=True)
        self._client.configure_optimization(
            objective=", ".join(f"-{name}" for name in losses),
            outcome_constraints=[f"{name} <= {limit}" for name, limit in limits if np.isfinite(limit)]
            + [f"{name} <= 0" for name in self._metrics[len(losses) :]],
        )
        self._client.configure_generation_strategy(initialization_budget=_STARTUP, initialization_random_seed=seed)
        self._first = space.baseline_point()

    def _tree(self) -> list[Any]:
        """Return the parameters: those below a value of another, one copy for each, are named in it."""
        from ax.api.configs import ChoiceParameterConfig

        copies: dict[str, list[str]] = {}
        below: dict[str, dict[int, list[str]]] = {}
        for i, parameter in enumerate(self._space.parameters):
            names = copies[parameter.path] = []
            places = [(parent, allowed) for parent, allowed in list(parameter.when.items())[-1:]]
            for parent, allowed in places:
                domain = next(p for p in self._space.parameters if p.path == parent)
                for copy in copies[parent]:
                    for rank in (_rank(domain, value) for value in allowed):
                        names.append(f"p{i}_{copy}_{rank}")
                        below.setdefault(copy, {}).setdefault(rank, []).append(names[-1])
            names += [] if places else [f"p{i}"]
            self._paths |= dict.fromkeys(names, parameter.path)
        by_path = {parameter.path: parameter for parameter in self._space.parameters}
        return [
            ChoiceParameterConfig(
                name=name,
                values=list(range(len(by_path[path].domain.values or ()))),
                parameter_type="int",
                is_ordered=is_numeric(by_path[path]),
                dependent_parameters=below.get(name),
            )
            for name, path in self._paths.items()
        ]

    def ask(self) -> Proposal:
        """Return the baseline, then what Ax suggests."""
        if self._first is not None:
            point, self._first = self._first, None
            return Proposal(point, self._client.attach_trial(self._ranks(point)))
        ((index, ranks),) = self._client.get_next_trials(max_trials=1).items()
        return Proposal(_from_ranks(self._space, {self._paths[name]: rank for name, rank in ranks.items()}), index)

    def _ranks(self, point: Point) -> dict[str, int]:
        by_path = {parameter.path: parameter for parameter in self._space.active(point)}
        found: dict[str, int] = {}
        for name, path in self._paths.items():
            _, _, place = name.partition("_")
            parent, _, rank = place.rpartition("_")
            if path in by_path and (not place or found.get(parent) == int(rank)):
                found[name] = _rank(by_path[path], point[path])
        return found

    def tell(self, proposal: Proposal, outcome: Outcome | None) -> None:
        """Complete the trial."""
        row = np.concatenate(self._record.row(outcome)).tolist()
        data = {name: (value, 0.0) for name, value in zip(self._metrics, row, strict=True)}
        self._client.complete_trial(proposal.token, raw_data=data)


class Hebo(Proposer):
    """HEBO's ``GeneralBO``, its optimiser of several objectives under constraints, on all parameters flat.

    Of the front that it suggests the first point that is new is taken, or else a random one. Its model fails on what
    does not vary, so SLOs that are always met are left out until one is not; and under today's GPyTorch with its own
    optimiser of hyperparameters, so that is Adam. A quarter of its generations for the acquisition: 3 CPU-s a point.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        import torch
        from hebo.design_space.design_space import DesignSpace

        np.random.seed(seed)
        torch.manual_seed(seed)
        self._space, self._record, self._told = space, Record(space), set[Any]()
        self._design = DesignSpace().parse([_hebo(parameter) for parameter in space.parameters])
        self._rows: list[Mapping[str, Any]] = []
        self._learnt: list[tuple[Array, Array]] = []

    def ask(self) -> Proposal:
        """Return the baseline, then what HEBO suggests."""
        if not self._rows and (baseline := self._space.baseline_point()) is not None:
            ranks = {p.path: _rank(p, baseline[p.path]) if p.path in baseline else 0 for p in self._space.parameters}
            return Proposal(baseline, ranks)
        rows = [*self._suggested(), *self._design.sample(1).to_dict("records")]
        points = [_from_ranks(self._space, row) for row in rows]
        new = next((i for i, point in enumerate(points) if key(point) not in self._told), len(points) - 1)
        return Proposal(points[new], rows[new])

    def _suggested(self) -> list[dict[str, Any]]:
        import pandas as pd
        from hebo.optimizers.general import GeneralBO

        if len(self._rows) < _STARTUP:
            return []
        losses, violations = (np.array(column) for column in zip(*self._learnt, strict=True))
        varying = violations[:, np.ptp(violations, axis=0) > 0.0]
        optimizer = GeneralBO(
            self._design,
            losses.shape[1],
            varying.shape[1],
            rand_sample=1,
            model_config={"optimizer": "adam"},
            evo_iters=_GENERATIONS,
        )
        optimizer.observe_new_data(pd.DataFrame(self._rows), np.hstack([losses, varying]))
        return list(optimizer.suggest(8).to_dict("records"))

    def tell(self, proposal: Proposal, outcome: Outcome | None) -> None:
        """Add one row to its data."""
        self._told.add(key(proposal.point))
        self._rows.append(proposal.token)
        self._learnt.append(self._record.row(outcome))


def _hebo(parameter: Parameter) -> dict[str, Any]:
    count = len(parameter.domain.values or ())
    if is_numeric(parameter):
        return {"name": parameter.path, "type": "int", "lb": 0, "ub": count - 1}
    return {"name": parameter.path, "type": "cat", "categories": list(range(count))}


class Smac(Proposer):
    """SMAC3's facade for hyperparameters: a random forest on a conditional space, ParEGO over the objectives.

    SMAC3 has no constraints: what violates SLOs costs its log violations more in every objective.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        from smac import HyperparameterOptimizationFacade as Facade
        from smac import Scenario
        from smac.multi_objective.parego import ParEGO

        self._space, self._record = space, Record(space)
        self._names = {parameter.path: f"p{i}" for i, parameter in enumerate(space.parameters)}
        costs = [f"cost{j}" for j in range(len(objectives(space)))]
        scenario = Scenario(
            self._configurations(),
            output_directory=Path(tempfile.mkdtemp()),
            deterministic=True,
            objectives=costs,
            n_trials=100_000,
            seed=seed,
        )
        self._smac = Facade(
            scenario,
            lambda config, seed=0: dict.fromkeys(costs, 0.0),
            initial_design=Facade.get_initial_design(scenario, n_configs=_STARTUP),
            config_selector=Facade.get_config_selector(scenario, retrain_after=1),
            multi_objective_algorithm=ParEGO(scenario),
            logging_level=False,
        )
        self._first = space.baseline_point()

    def _configurations(self) -> Any:
        """Return the space as SMAC3 has it, conditions included."""
        from ConfigSpace import AndConjunction, Categorical, ConfigurationSpace, InCondition, Integer

        configurations = ConfigurationSpace()
        for parameter in self._space.parameters:
            name, count = self._names[parameter.path], len(parameter.domain.values or ())
            ranks = Integer(name, (0, count - 1)) if is_numeric(parameter) else Categorical(name, list(range(count)))
            configurations.add(ranks)
        by_path = {parameter.path: parameter for parameter in self._space.parameters}
        for parameter in self._space.parameters:
            conditions = [
                InCondition(
                    configurations[self._names[parameter.path]],
                    configurations[self._names[parent]],
                    [_rank(by_path[parent], value) for value in allowed],
                )
                for parent, allowed in parameter.when.items()
            ]
            if conditions:
                configurations.add(conditions[0] if len(conditions) == 1 else AndConjunction(*conditions))
        return configurations

    def ask(self) -> Proposal:
        """Return the baseline, then what SMAC3 asks for."""
        from ConfigSpace import Configuration
        from smac.runhistory.dataclasses import TrialInfo

        if self._first is not None:
            point, self._first = self._first, None
            ranks = {self._names[p.path]: _rank(p, point[p.path]) for p in self._space.active(point)}
            config = Configuration(self._smac.scenario.configspace, values=ranks)
            return Proposal(point, TrialInfo(config, seed=self._smac.scenario.seed))
        trial = self._smac.ask()
        paths = {name: path for path, name in self._names.items()}
        return Proposal(_from_ranks(self._space, {paths[name]: rank for name, rank in trial.config.items()}), trial)

    def tell(self, proposal: Proposal, outcome: Outcome | None) -> None:
        """Tell the costs of a trial."""
        from smac.runhistory.dataclasses import TrialValue

        losses, violations = self._record.row(outcome)
        self._smac.tell(proposal.token, TrialValue((losses + np.maximum(violations, 0.0).sum()).tolist()))
