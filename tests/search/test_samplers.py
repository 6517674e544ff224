"""Contracts of every sampler in the registry, ours and Optuna's, and what only ours promise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import optuna
import pytest
from botorch.acquisition.multi_objective import logei
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from dynosim.config import Scenario
from dynosim.errors import ConfigError
from dynosim.search.distributions import PlainSpace, decode, encode, key, suggest
from dynosim.search.features import FEATURES
from dynosim.search.loop import run_study
from dynosim.search.rows import Rows
from dynosim.search.samplers import SAMPLERS, BayesSampler, RandomSampler, make_sampler
from dynosim.search.samplers.base import History
from dynosim.search.samplers.candidates import maximize
from dynosim.search.samplers.checks import rare, untried
from dynosim.search.samplers.encoding import Featurizer
from dynosim.search.samplers.surrogate import Surrogate
from dynosim.search.trial import Outcome, Status
from search.analytic import evaluate
from search.problems import serving, small

QUICK = {"gp": 11, "qlognehvi": 12}
"""Their suggestions take seconds, so they get few trials beyond the initial ones."""


@pytest.mark.filterwarnings("ignore:Clip non-finite values")  # GPSampler on what could not be run
@pytest.mark.filterwarnings("ignore:A not p.d.")  # BoTorch on points that lie close together
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("auto", "exhaustive")])
def test_every_sampler_gives_valid_trials_and_respects_conditions(name: str) -> None:
    space = serving()
    study = run_study(space, trials=QUICK.get(name, 20), sampler=name, evaluate=evaluate)
    assert len(study.trials) == QUICK.get(name, 20)
    for trial in study.trials:
        assert set(trial.point) == {parameter.path for parameter in space.active(trial.point)}
        assert space.infeasible_reason(trial.point) is None
    assert study.baseline is study.trials[0]


def test_qlognehvi_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr("torch.utils.cpp_extension.load", lambda **arguments: compiled.append(arguments))
    run_study(small(), trials=7, sampler="qlognehvi", evaluate=evaluate)
    assert compiled == []
    assert logei._C is None


@pytest.mark.parametrize("name", ["bayes", "random"])
def test_ours_propose_no_invalid_and_no_repeated_point(name: str) -> None:
    study = run_study(serving(), trials=40, sampler=name, evaluate=evaluate)
    assert [trial.number for trial in study.trials] == list(range(40))
    assert len({key(trial.point) for trial in study.trials}) == 40


@pytest.mark.parametrize("name", ["bayes", "random", "tpe", "nsga2"])
def test_equal_seeds_give_equal_trials(name: str) -> None:
    def points(seed: int) -> list[object]:
        study = run_study(serving(), trials=14, sampler=name, evaluate=evaluate, seed=seed)
        return [key(trial.point) for trial in study.trials]

    first = points(1)
    assert points(1) == first
    assert points(2) != first


@pytest.mark.parametrize("name", ["bayes", "random", "exhaustive"])
def test_ours_exhaust_a_small_space(name: str) -> None:
    space = small()
    valid = {key(point) for point in space.points() if space.infeasible_reason(point) is None}
    study = run_study(space, trials=100, sampler=name, evaluate=evaluate)
    assert len(study.trials) == len(valid)
    assert {key(trial.point) for trial in study.trials} == valid


def test_exhaustive_refuses_a_continuous_range_at_once() -> None:
    with pytest.raises(ConfigError, match="cannot be enumerated"):
        make_sampler("exhaustive", serving())


def test_unknown_sampler_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'bayes'"):
        make_sampler("bayse", small())


def _volume(sampler: str, seed: int) -> float:
    study = run_study(serving(), trials=30, sampler=sampler, evaluate=evaluate, seed=seed)
    return study.hypervolume(reference=(10.0, 12000.0, 60.0))


def test_bayes_beats_random_by_far() -> None:
    seeds = range(2)
    ours, chance = (np.mean([_volume(name, seed) for seed in seeds]) for name in ("bayes", "random"))
    assert ours > 1.1 * chance


def _one_goal(scenario: Scenario) -> Outcome:
    outcome = evaluate(scenario)
    assert outcome.values is not None
    return Outcome(outcome.status, outcome.values[:1], outcome.constraints)


def _four_mixed_goals(scenario: Scenario) -> Outcome:
    outcome = evaluate(scenario)
    assert outcome.values is not None
    return Outcome(outcome.status, (*outcome.values, 1e3 / outcome.values[1]), outcome.constraints)


@pytest.mark.parametrize(
    ("evaluation", "objectives"),
    [
        (_one_goal, [("usd_per_million_output_tokens", None)]),
        (
            _four_mixed_goals,
            [
                ("usd_per_million_output_tokens", None),
                ("time_to_first_token", "p99"),
                ("inter_token_latency", "p99"),
                ("output_token_throughput", None),
            ],
        ),
    ],
)
def test_one_to_four_objectives_with_mixed_directions(
    evaluation: Callable[[Scenario], Outcome], objectives: list[tuple[str, str | None]]
) -> None:
    fields = [f"{{metric: {metric}" + (f", stat: {stat}}}" if stat else "}") for metric, stat in objectives]
    space = serving(f"objectives=[{', '.join(fields)}]")
    study = run_study(space, trials=16, evaluate=evaluation)
    assert len(study.reference_point) == len(objectives)
    assert study.frontier()
    assert study.hypervolume() > 0.0


def test_a_region_that_never_runs_is_left_alone() -> None:
    def fragile(scenario: Scenario) -> Outcome:
        disaggregated = scenario.deployment.mode == "disaggregated"
        return Outcome(Status.INFEASIBLE, reason="no link") if disaggregated else evaluate(scenario)

    study = run_study(serving(), trials=30, evaluate=fragile)
    late = [trial.scenario.deployment.mode for trial in study.trials[15:]]
    assert late.count("disaggregated") <= 3


def test_pending_points_are_not_proposed_again_and_lower_the_gain_nearby() -> None:
    space, rng = serving(), np.random.default_rng(0)
    sampler = BayesSampler(space, startup=4)
    points = [space.complete(space.sample(rng)) for _ in range(12)]
    values = np.array([evaluate(space.scenario(point)).values for point in points])
    history = History(("minimize",) * 3, points, values, {}, [], [])
    proposal = sampler.propose(space, history, np.random.default_rng(1))
    waiting = History(("minimize",) * 3, points, values, {}, [], [proposal])
    assert key(sampler.propose(space, waiting, np.random.default_rng(1))) != key(proposal)
    rows = Rows(space)
    featurizer = Featurizer(rows, serving=True)
    surrogate, proposed = Surrogate(rows, featurizer, (), rows.sample(32, rng)), rows.of([proposal])
    alone, together = (sampler.score(featurizer, surrogate(h))(proposed)[0] for h in (history, waiting))
    assert together < alone


def test_feasibility_is_learned_from_constraints() -> None:
    space, rng = serving(), np.random.default_rng(0)
    rows = Rows(space)
    drawn = rows.sample(40, rng)
    points = [rows.point(row) for row in drawn]
    outcomes = [evaluate(space.scenario(point)) for point in points]
    constraints = {name: np.array([o.constraints[name] for o in outcomes]) for name in outcomes[0].constraints}
    history = History(
        ("minimize",) * 3, points[:30], np.array([o.values for o in outcomes[:30]]),
        {name: values[:30] for name, values in constraints.items()}, [], [],
    )  # fmt: skip
    featurizer = Featurizer(rows, serving=False)
    posterior = Surrogate(rows, featurizer, (), drawn)(history)
    predicted = posterior.log_feasibility(*posterior.predict(featurizer(drawn[30:])))
    met = np.array([o.feasible for o in outcomes[30:]])
    assert predicted[met].mean() > predicted[~met].mean()
    assert (predicted <= 0.0).all()


def test_encoding_of_conditions_logs_and_choices() -> None:
    space = serving()
    rows = Rows(space)
    featurizer = Featurizer(rows, serving=False)
    point = space.complete({"deployment.mode": "aggregated", "deployment.router.policy": "round_robin"})

    def distance(path: str, one: object, other: object) -> float:
        X = featurizer(rows.of([{**point, path: one}, {**point, path: other}])).X
        return float(np.linalg.norm(X[0] - X[1]))

    assert distance("deployment.gpu", "l40s", "b200_sxm") == pytest.approx(1.0)
    tp = "deployment.aggregated.tensor_parallel_size"
    assert distance(tp, 1, 2) == pytest.approx(distance(tp, 2, 4)) == pytest.approx(0.5)
    seqs = "deployment.aggregated.max_num_seqs"
    assert distance(seqs, 16, 64) == pytest.approx(distance(seqs, 64, 256))
    apart = space.complete({**point, "deployment.mode": "disaggregated"})
    X = featurizer(rows.of([point, apart])).X
    assert ((X >= 0.0) & (X <= 1.0)).all()


def test_derived_features_are_scaled_and_neutral_where_unknown() -> None:
    space = serving("deployment.model=llama-3.1-70b")  # does not fit on one L40S
    rows = Rows(space)
    featurizer, drawn = Featurizer(rows, serving=True), rows.sample(200, np.random.default_rng(0))
    raw, view = Featurizer(rows, serving=False)(drawn).X, featurizer(drawn)
    derived = view.X[:, raw.shape[1] :]
    np.testing.assert_array_equal(view.X[:, : raw.shape[1]], raw)
    assert derived.shape[1] == len(FEATURES)
    assert 0 < view.possible.sum() < 200
    assert (derived[~view.possible] == 0.5).any(axis=1).all()
    known = derived[view.possible]
    assert ((known > -0.2) & (known < 1.2)).all()
    varied = np.array(FEATURES) != "backlog_s"  # ten requests leave none
    assert (np.ptp(known[:, varied], axis=0) > 0.7).all()


@pytest.mark.parametrize("trials", [5, 9])
def test_a_space_whose_features_are_all_unknown_is_still_searched(trials: int) -> None:
    """Nothing physical is known of a plain space: raw features, no prior, and every point may work."""
    space = PlainSpace.of({"x": optuna.distributions.FloatDistribution(0.0, 1.0)})
    rows = Rows(space)
    view = Featurizer(rows, serving=not isinstance(space, PlainSpace))(rows.sample(3, np.random.default_rng(0)))
    assert view.X.shape == (3, 1)
    assert view.possible.all()
    assert view.prior.objectives == ()
    study = optuna.create_study(sampler=BayesSampler(space))
    study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0) ** 2, n_trials=trials)
    assert len({trial.params["x"] for trial in study.trials}) == trials


def test_composite_choices_cross_the_border_to_optuna() -> None:
    space = small("deployment.router={choices: [{policy: round_robin}, {policy: least_outstanding}]}")
    point = {**space.sample(np.random.default_rng(0)), "deployment.router": {"policy": "least_outstanding"}}
    assert decode(space, encode(point)) == point
    study = optuna.create_study(sampler=RandomSampler(space))
    assert isinstance(suggest(study.ask(), space)["deployment.router"], dict)
    assert len(run_study(space, trials=14, evaluate=evaluate).trials) == 14


def test_plain_optuna_finds_a_plain_optimum() -> None:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x, n = trial.suggest_float("x", -2.0, 2.0), trial.suggest_int("n", 1, 64, log=True)
        trial.set_constraint("c", 0.5 - x)
        return (x - 1.0) ** 2 + 0.1 * np.log(n), 10.0 + n**0.5 if trial.suggest_categorical(
            "k", ["a", "b"]
        ) == "a" else 12.0

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=BayesSampler(seed=0), directions=["minimize", "minimize"])
    study.optimize(objective, n_trials=30)
    assert min(trial.values[0] for trial in study.best_trials) < 0.1


def test_plain_space_has_optunas_values() -> None:
    distributions = {
        "a": optuna.distributions.FloatDistribution(0.0, 1.0, step=0.25),
        "b": optuna.distributions.IntDistribution(2, 10, step=4),
        "c": optuna.distributions.CategoricalDistribution(["x", None]),
    }
    space = PlainSpace.of(distributions)
    assert space.size() == 5 * 3 * 2
    assert all(d._contains(d.to_internal_repr(p[name])) for p in space.points() for name, d in distributions.items())


def test_conditional_define_by_run_spaces_and_all_kinds_of_parameters_in_plain_optuna() -> None:
    """Parameters that only some trials have are drawn independently; those of all trials are modelled."""

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        kind = trial.suggest_categorical("kind", ["line", "curve"])
        x = trial.suggest_float("x", 0.0, 1.0, step=0.1)
        scale = trial.suggest_float("scale", 1e-3, 1.0, log=True)
        n = trial.suggest_int("n", 1, 1024, log=True)
        bend = trial.suggest_int("bend", 2, 8, step=2) if kind == "curve" else 1
        trial.set_constraint("enough", 0.2 - x)
        return x**bend, scale + x, n * scale, -x, 1.0 / n

    directions = ["minimize", "minimize", "maximize", "minimize", "maximize"]
    study = optuna.create_study(sampler=BayesSampler(seed=1, startup=4), directions=directions)
    study.optimize(objective, n_trials=12)
    for trial in study.trials:
        assert trial.state is optuna.trial.TrialState.COMPLETE
        assert ("bend" in trial.params) is (trial.params["kind"] == "curve")
        assert trial.params["x"] * 10 == pytest.approx(round(trial.params["x"] * 10))
    space = BayesSampler().infer_relative_search_space(study, study.trials[-1])
    assert set(space) == {"kind", "x", "scale", "n"}


def test_a_constraint_of_a_plain_study_is_learned() -> None:
    def objective(trial: optuna.Trial) -> float:
        x, y = trial.suggest_float("x", 0.0, 1.0), trial.suggest_float("y", 0.0, 1.0)
        trial.set_constraint("away from the corner", 0.5 - x * y)
        return x + y

    study = optuna.create_study(sampler=BayesSampler(seed=0))
    study.optimize(objective, n_trials=25)
    areas = [trial.params["x"] * trial.params["y"] for trial in study.trials]
    best = min(trial.values[0] for trial, area in zip(study.trials, areas, strict=True) if area >= 0.5)
    assert best < 1.45  # 1.414 at x = y = sqrt(1/2)
    assert np.median(np.abs(np.array(areas[10:]) - 0.5)) < 0.1


class TestOptunasOwnContract(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    """The tests that Optuna ships for people who write samplers."""

    @pytest.fixture(params=[BayesSampler, partial(BayesSampler, noisy=True), RandomSampler], ids=str)
    def sampler(self, request: pytest.FixtureRequest) -> Callable[[], BaseSampler]:
        return request.param


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1.0), ("maximize", -1.0)])
def test_a_bound_that_has_no_logarithm(direction: str, sign: float) -> None:
    """A bound of zero on a positive objective makes it linear: the reference stays finite and says which way to go."""

    def f(trial: optuna.Trial) -> tuple[float, float]:
        x = trial.suggest_float("x", 0.0, 1.0)
        trial.set_constraint("value", sign * (1.0 + x))
        return 1.0 + x, 2.0 - x

    study = optuna.create_study(
        directions=[direction, "minimize"], sampler=BayesSampler(seed=0, bounds=(0.0, None), startup=4)
    )
    study.optimize(f, n_trials=9)
    found = [trial.params["x"] for trial in study.trials[4:]]
    best = min(found) if direction == "minimize" else max(found)
    assert abs(best - (0.0 if direction == "minimize" else 1.0)) < 0.05


def test_climbing_comes_close_to_the_best_point_of_continuous_ranges() -> None:
    ranges = {name: optuna.distributions.FloatDistribution(*ends) for name, ends in (("a", (0, 1)), ("b", (-5, 15)))}
    rows, best = Rows(PlainSpace.of(ranges)), np.array([0.377, 11.1])

    def score(at: np.ndarray) -> np.ndarray:
        return -np.square((at - best) / [1.0, 20.0]).sum(axis=1)

    found = maximize(rows, score, lambda _: True, np.zeros((0, 2)), set(), np.random.default_rng(0))
    assert found is not None
    assert np.abs((found - best) / [1.0, 20.0]).max() < 0.01


def test_values_of_continuous_ranges_are_not_rare() -> None:
    floats = PlainSpace.of({name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in "ab"})
    rows = Rows(floats)
    tried = rows.sample(5, np.random.default_rng(0))
    near = untried(rows, tried, set())
    assert len(near)
    assert not len(rare(rows, near, tried, np.ones(5, dtype=bool), 3))
