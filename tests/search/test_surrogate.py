"""What the models make of a history: priors that must earn their place, bounds of lost trials, what cannot run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import optuna
import pytest

from dynosim.search import pareto
from dynosim.search.distributions import PlainSpace
from dynosim.search.priors import Prior
from dynosim.search.rows import Rows
from dynosim.search.samplers import BayesSampler, bayes
from dynosim.search.samplers.base import History
from dynosim.search.samplers.encoding import Featurizer, View
from dynosim.search.samplers.profile import PLAIN, floor
from dynosim.search.samplers.surrogate import Posterior, Surrogate, _properly_efficient
from dynosim.space import SearchSpace
from search.analytic import evaluate
from search.problems import serving

Array = np.ndarray

# A small stand-in for serving: cost against a latency that explodes, over machines, their kind and two knobs.
SPACE = PlainSpace.of(
    {
        "machines": optuna.distributions.IntDistribution(1, 24),
        "speed": optuna.distributions.FloatDistribution(0.5, 4.0, log=True),
        "batch": optuna.distributions.IntDistribution(1, 256, log=True),
        "policy": optuna.distributions.CategoricalDistribution(["a", "b", "c"]),
        "cache": optuna.distributions.FloatDistribution(0.0, 1.0),
    }
)
ROWS = Rows(SPACE)
REFERENCE = np.log([60.0, 60.0])
SCOUTS = ROWS.sample(32, np.random.default_rng(8))


def _values(rows: Array, roughness: float = 0.0) -> Array:
    """Cost and latency, ``n x 2``; with *roughness* as an estimate would have them."""
    machines, speed, batch, policy, cache = rows.T
    load = np.minimum(8.0 * (1.0 - 0.5 * cache) / (machines * speed * (1.0 - 1.0 / (1.0 + batch / 16.0))), 50.0)
    wait = np.where(load < 0.9, load / (1.0 - np.minimum(load, 0.9)), 9.0 + 40.0 * (load - 0.9))
    latency = (1.0 + batch / 64.0 + wait * (1.0 + 0.3 * policy)) / speed
    cost = machines * speed**1.3 * (1.0 + 0.3 * cache)
    bend = np.exp(roughness * np.sin(3.0 * policy + 5.0 * cache))
    return np.column_stack([cost * bend, latency / bend])


def _right(rows: Array) -> Array:
    return _values(rows, 0.2)


def _inverted(rows: Array) -> Array:
    return 1.0 / _values(rows)


def _shuffled(rows: Array) -> Array:
    """Values of other rows: as spread as the right ones, and about something else."""
    return _values(np.column_stack([24.0 - rows[:, 0], 4.5 - rows[:, 1], rows[:, 2], rows[:, 3], 1.0 - rows[:, 4]]))


def _failing(rows: Array) -> Array:
    return np.full((len(rows), 2), np.nan)


class _Informed(Featurizer):
    """Sees the rows with given estimates."""

    def __init__(self, estimate: Callable[[Array], Array]) -> None:
        super().__init__(ROWS, serving=False)
        self._estimate = estimate

    def __call__(self, rows: Array) -> View:
        return replace(super().__call__(rows), prior=Prior(tuple(self._estimate(rows).T), {}))


def _history(rows: Array) -> History:
    return History(("minimize",) * 2, [ROWS.point(row) for row in rows], _values(rows), {}, [], [])


def _fitted(estimate: Callable[[Array], Array] | None, rows: Array) -> tuple[Posterior, Featurizer]:
    featurizer = Featurizer(ROWS, serving=False) if estimate is None else _Informed(estimate)
    return Surrogate(ROWS, featurizer, (60.0, 60.0), SCOUTS)(_history(rows)), featurizer


def _error(estimate: Callable[[Array], Array] | None, trials: int) -> float:
    """Mean absolute error of the predicted logarithms at points that matter."""
    drawn = ROWS.sample(400, np.random.default_rng(0))
    posterior, featurizer = _fitted(estimate, drawn[:trials])
    mean, _ = posterior.predict(featurizer(drawn[trials:]))
    truth = np.log(_values(drawn[trials:]))
    inside = (truth < REFERENCE).all(axis=1)
    return float(np.abs(mean - truth)[inside].mean())


def test_a_right_prior_is_kept_and_helps() -> None:
    drawn = ROWS.sample(20, np.random.default_rng(0))
    posterior, _ = _fitted(_right, drawn)
    assert all(output.mean is not None for output in posterior.objectives)
    assert _error(_right, 20) < 0.6 * _error(None, 20)


@pytest.mark.parametrize("estimate", [_inverted, _shuffled, _failing])
def test_a_wrong_prior_is_dropped_and_leaves_no_trace(estimate: Callable[[Array], Array]) -> None:
    drawn = ROWS.sample(40, np.random.default_rng(0))
    posterior, featurizer = _fitted(estimate, drawn[:30])
    alone, plain = _fitted(None, drawn[:30])
    assert all(output.mean is None for output in posterior.objectives)
    for ours, theirs in zip(posterior.predict(featurizer(drawn)), alone.predict(plain(drawn)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_each_output_is_judged_for_itself_and_says_so() -> None:
    def estimate(rows: Array) -> Array:
        return np.column_stack([_right(rows)[:, 0], _inverted(rows)[:, 1]])

    drawn = ROWS.sample(30, np.random.default_rng(0))
    posterior, _ = _fitted(estimate, drawn)
    assert posterior.priors() == {"objective 0": "closed form", "objective 1": "dropped (the data disagree)"}
    assert _fitted(None, drawn)[0].priors() == {"objective 0": "none", "objective 1": "none"}


def _search(estimate: Callable[[Array], Array] | None, seed: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """Return the hypervolume after 20 trials."""
    featurizer = Featurizer(ROWS, serving=False) if estimate is None else _Informed(estimate)
    monkeypatch.setattr(bayes, "Featurizer", lambda *_, **__: featurizer)
    sampler, rows = BayesSampler(SPACE, bounds=(60.0, 60.0)), np.zeros((0, 5))
    for number in range(20):
        point = sampler.propose(SPACE, _history(rows), np.random.default_rng([seed, number]))
        rows = np.vstack([rows, ROWS.of([point])])
    return pareto.hypervolume(np.log(_values(rows)), REFERENCE)


def test_a_right_prior_speeds_the_search_and_a_wrong_one_hardly_slows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    right, none, wrong = (
        np.mean([_search(estimate, seed, monkeypatch) for seed in range(2)]) for estimate in (_right, None, _inverted)
    )
    assert right > none
    assert wrong > 0.93 * none


def _serving_history(lost: int, broken: float) -> tuple[SearchSpace, History]:
    """Return 12 trials of the analytic problem, of which one missed the bound on TTFT by at least *broken*."""
    space, rng = serving(), np.random.default_rng(0)
    points = [space.sample(rng) for _ in range(12)]
    outcomes = [evaluate(space.scenario(point)) for point in points]
    values = np.array([outcome.values for outcome in outcomes])
    constraints = {name: np.array([o.constraints[name] for o in outcomes]) for name in outcomes[0].constraints}
    values[lost] = np.inf
    for name, column in constraints.items():
        column[lost] = broken if name == "time_to_first_token.p99" else np.nan
    return space, History(("minimize",) * 3, points, values, constraints, [], [])


def _posterior(space: SearchSpace, history: History) -> Posterior:
    rows = Rows(space)
    scouts = rows.sample(32, np.random.default_rng(8))
    return Surrogate(rows, Featurizer(rows, serving=True, priors=False), (None, 12_000.0, 60.0), scouts)(history)


def test_a_lost_trial_is_its_bound_in_the_objective_that_it_bounds() -> None:
    near, far = (_posterior(*_serving_history(3, broken)) for broken in (0.25, 4.0))
    for posterior in (near, far):
        assert [len(output.y) for output in posterior.objectives] == [11, 12, 11]
        assert "runs" not in [output.name for output in posterior.constraints]
    assert near.objectives[1].y[3] > np.log(12_000.0)
    assert far.objectives[1].y[3] > near.objectives[1].y[3]
    np.testing.assert_array_equal(np.delete(near.objectives[1].y, 3), np.delete(far.objectives[1].y, 3))


def test_a_bound_just_beyond_the_reference_is_taken_as_it_is() -> None:
    posterior = _posterior(*_serving_history(3, 1e-6))
    assert posterior.objectives[1].y[3] == pytest.approx(np.log(12_000.0 * (1 + 1e-6)))


def test_what_cannot_run_is_no_value_and_no_violation_but_a_model_of_its_own() -> None:
    space, history = _serving_history(3, 1.0)
    violations = {name: np.where(np.arange(12) == 3, 1.0, column) for name, column in history.constraints.items()}
    posterior = _posterior(space, replace(history, constraints=violations))
    assert [len(output.y) for output in posterior.objectives] == [11, 11, 11]
    runs = next(output for output in posterior.constraints if output.name == "runs")
    assert runs.y.tolist() == [1.0 if i == 3 else -1.0 for i in range(12)]
    assert all(len(output.y) == 11 for output in posterior.constraints if output.name != "runs")


def test_a_crash_counts_as_what_cannot_run() -> None:
    space, history = _serving_history(3, 0.5)
    crashed = space.sample(np.random.default_rng(99))
    posterior = _posterior(space, replace(history, failed=[crashed]))
    runs = next(output for output in posterior.constraints if output.name == "runs")
    assert runs.y.tolist() == [-1.0] * 12 + [1.0]


def test_running_trials_count_as_predicted() -> None:
    drawn = ROWS.sample(25, np.random.default_rng(0))
    featurizer = Featurizer(ROWS, serving=False)
    surrogate, history = Surrogate(ROWS, featurizer, (60.0, 60.0), SCOUTS), _history(drawn[:20])
    waiting = [ROWS.point(row) for row in drawn[20:]]
    alone, together = surrogate(history), surrogate(replace(history, pending=waiting))
    before, after = (posterior.predict(featurizer(drawn[20:])) for posterior in (alone, together))
    np.testing.assert_allclose(after[0], before[0], rtol=0.02, atol=0.02)
    assert (after[1] < 0.5 * before[1]).all()
    everything = np.vstack([alone.front, before[0]])
    assert pareto.hypervolume(together.front, REFERENCE) == pytest.approx(pareto.hypervolume(everything, REFERENCE))


def test_models_are_fitted_again_only_when_the_data_have_grown() -> None:
    drawn = ROWS.sample(64, np.random.default_rng(0))
    best = np.argmin(_values(drawn), axis=0)
    drawn = np.vstack([drawn[best], np.delete(drawn, best, axis=0)])  # what comes later is no extreme
    surrogate = Surrogate(ROWS, _Informed(_right), (60.0, 60.0), SCOUTS)
    fitted = [tuple(o.hyperparameters.s2 for o in surrogate(_history(drawn[:n])).objectives) for n in range(50, 64)]
    assert len(set(fitted)) <= 7  # every 8 %, and once more when the priors are weighed again


def test_posteriors_do_not_depend_on_when_the_process_started() -> None:
    drawn = ROWS.sample(40, np.random.default_rng(0))
    view, early = _Informed(_right)(drawn), Surrogate(ROWS, _Informed(_right), (60.0, None), SCOUTS)
    for trials in (11, 17, 30, 33):
        late = Surrogate(ROWS, _Informed(_right), (60.0, None), SCOUTS)(_history(drawn[:trials]))
        for ours, theirs in zip(early(_history(drawn[:trials])).predict(view), late.predict(view), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_an_unbounded_objective_reaches_as_far_as_it_is_believed_to() -> None:
    """The reference lies beyond the worst trial where untried points that may be feasible are believed to be worse."""
    cheap = SCOUTS[np.argsort(_values(SCOUTS)[:, 0])[:10]]
    posterior = Surrogate(ROWS, _Informed(_right), (None, 60.0), SCOUTS)(_history(cheap))
    met = np.log(_values(cheap)[:, 0]).max()
    within = np.log(_values(SCOUTS))[_values(SCOUTS)[:, 1] < 60.0, 0].max()
    assert posterior.reference[1] == pytest.approx(np.log(60.0))
    assert met + 0.5 * (within - met) < posterior.reference[0] < within + 1.0


def test_an_objective_that_can_be_zero_keeps_its_logarithms() -> None:
    drawn = ROWS.sample(21, np.random.default_rng(0))
    history = _history(drawn)
    history.values[20, 1] = 0.0
    output = Surrogate(ROWS, Featurizer(ROWS, serving=False), (), SCOUTS)(history).objectives[1]
    known = history.values[:20, 1]
    assert output.y[20] == pytest.approx(np.log(0.01 * np.median(known)))
    np.testing.assert_allclose(output.y[:20], np.log(known))


def test_logarithms_need_a_positive_value_and_no_negative_one() -> None:
    assert floor(np.array([2.0, 4.0, 6.0])) == 0.0
    assert floor(np.array([0.0, 4.0, np.inf, 6.0])) == pytest.approx(0.05)
    assert floor(np.zeros(3)) is None
    assert floor(np.array([-1.0, 0.0, 5.0])) is None


def test_of_any_function_values_count_and_the_reference_is_beyond_what_is_attainable() -> None:
    """Of a front from (0, 1) to (1, 0) one end was met; the far corner of the space is beyond use."""
    space = PlainSpace.of({name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in ("place", "distance")})
    rows = Rows(space)
    scouts = rows.sample(256, np.random.default_rng(0))

    def losses(x: np.ndarray) -> np.ndarray:
        place, distance = x[:, rows.column("place")], x[:, rows.column("distance")]
        return np.column_stack([place, 1.0 - place]) + distance[:, None]

    met = scouts[scouts[:, rows.column("place")] < 0.4][:30]
    points = [rows.point(row) for row in met]
    history = History(("minimize", "minimize"), points, losses(met), {}, [], [])
    posterior = Surrogate(rows, Featurizer(rows, serving=False), (), scouts, PLAIN)(history)
    np.testing.assert_allclose(posterior.front, losses(met)[pareto.nondominated(losses(met))])
    assert posterior.front[:, 0].max() < 0.5 < 0.9 < posterior.reference[0] < 1.4
    assert 0.9 < posterior.reference[1] < 1.4


def test_what_gives_up_much_for_hardly_anything_is_not_attainable_front() -> None:
    """At the edge of DTLZ2 a loss is zero whatever the others are."""
    angles = np.linspace(0.0, np.pi / 2.0, 9)
    front = np.column_stack([np.cos(angles), np.sin(angles)])
    edge = np.array([[-1e-6, 1.9], [1.9, -1e-6]])
    np.testing.assert_array_equal(_properly_efficient(np.vstack([front, edge])), front)
    single = np.array([[0.0, 0.0], [1.0, 2.0]])
    np.testing.assert_array_equal(_properly_efficient(single), single)
