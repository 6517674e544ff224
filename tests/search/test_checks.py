"""What is tried beside the models' favourites: the front of the estimates first, rare neighbours of the front later."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import optuna
import pytest

from dynosim.search.distributions import PlainSpace
from dynosim.search.priors import Prior
from dynosim.search.rows import Rows, keys
from dynosim.search.samplers import BayesSampler
from dynosim.search.samplers.base import Gap, History
from dynosim.search.samplers.checks import likely, rare, untried
from dynosim.search.samplers.design import believed_front
from dynosim.search.samplers.encoding import Featurizer, View
from dynosim.search.samplers.surrogate import Surrogate

Array = np.ndarray

SPACE = PlainSpace.of(
    {
        "size": optuna.distributions.CategoricalDistribution([1, 2, 3, 4, 5]),
        "kind": optuna.distributions.CategoricalDistribution(["a", "b", "c"]),
    }
)
ROWS = Rows(SPACE)


def _values(rows: Array) -> Array:
    """Two losses to trade off by size; kind c is better in both."""
    factor = np.where(rows[:, 1] == 2, 0.5, 1.0)
    return np.column_stack([(1.0 + rows[:, 0]) * factor, (6.0 - rows[:, 0]) * factor])


def test_neighbours_are_one_step_away_new_and_each_once() -> None:
    front = ROWS.of([{"size": 2, "kind": "a"}, {"size": 3, "kind": "a"}])
    near = untried(ROWS, front, set(keys(front)))
    assert len(set(keys(near))) == len(near)
    points = [tuple(ROWS.point(row).values()) for row in near]
    assert sorted(points) == [(1, "a"), (2, "b"), (2, "c"), (3, "b"), (3, "c"), (4, "a")]


def test_a_value_is_rare_until_enough_feasible_trials_have_it_or_many_were_lost() -> None:
    near = ROWS.of([{"size": 2, "kind": "c"}])
    common = ROWS.of([{"size": 2, "kind": "a"}] * 9)
    bad = ROWS.of([{"size": 1, "kind": "c"}])

    def is_rare(feasible: int, lost: int, least: int) -> bool:
        tried = np.vstack([common, *[bad] * (feasible + lost)])
        met = np.arange(len(tried)) < len(common) + feasible
        return bool(len(rare(ROWS, near, tried, met, least)))

    assert is_rare(0, 0, 1)
    assert is_rare(0, 3, 1)
    assert not is_rare(0, 4, 1)
    assert not is_rare(1, 0, 1)
    assert is_rare(2, 0, 3)
    assert not is_rare(3, 0, 3)


def test_neighbours_are_drawn_as_often_as_they_are_believed_to_gain() -> None:
    tried = ROWS.of([{"size": s, "kind": k} for s in (1, 3, 5) for k in "ab"])
    history = History(("minimize",) * 2, [ROWS.point(row) for row in tried], _values(tried), {}, [], [])
    featurizer = Featurizer(ROWS, serving=False)
    posterior = Surrogate(ROWS, featurizer, (), ROWS.all())(history)
    near = ROWS.of([{"size": 3, "kind": "c"}, {"size": 1, "kind": "c"}, {"size": 2, "kind": "a"}])
    firsts = [likely(near, featurizer(near), posterior, np.random.default_rng(seed))[:1] for seed in range(30)]
    chosen = [ROWS.point(row[0])["kind"] for row in firsts if len(row)]
    assert len(chosen) > 15
    assert chosen.count("c") > chosen.count("a")


class _Told(Featurizer):
    """Estimates that are right up to a constant factor."""

    def __call__(self, rows: Array) -> View:
        return replace(
            super().__call__(rows), prior=Prior(tuple(1.3 * _values(rows).T), {"slo": rows[:, 0] / 8.0 - 0.8})
        )


def test_the_first_trials_are_the_front_of_the_estimates_within_the_slos() -> None:
    history = History(("minimize",) * 2, [], np.zeros((0, 2)), {}, [], [])
    told = _Told(ROWS, serving=False)
    found = believed_front(ROWS, told, lambda row: ROWS.point(row)["size"] != 2, history, (), 2)
    assert [ROWS.point(row)["kind"] for row in found] == ["c", "c"]
    assert {ROWS.point(row)["size"] for row in found} <= {1, 3, 4}, "2 cannot be, 5 is too close to the SLO"
    assert len(believed_front(ROWS, Featurizer(ROWS, serving=False), lambda row: True, history, (), 2)) == 0


@pytest.mark.parametrize(("high", "left", "settled"), [(0.009, 0, True), (0.009, 1, False), (0.012, 0, False)])
def test_settled_means_that_little_can_be_missing_and_nothing_is_untried(high: float, left: int, settled: bool) -> None:
    assert Gap(0.01, 0.0, high, untried=left).settled is settled


def test_of_a_constant_objective_nothing_is_said() -> None:
    tried = ROWS.all()[::2]
    values = np.column_stack([_values(tried)[:, 0], np.full(len(tried), 16.0)])
    found = BayesSampler(SPACE).gap(History(("minimize",) * 2, [ROWS.point(row) for row in tried], values, {}, [], []))
    assert found is not None
    assert np.isnan(found.expected)
    assert "does not vary" in str(found)
    assert not found.settled
