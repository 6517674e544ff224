"""Rows against the space's own points: every array operation does what the space does one point at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, ks_2samp

from dynosim.search.distributions import PlainSpace, key
from dynosim.search.rows import Rows, keys
from dynosim.space import SearchSpace, bundled_spaces
from search.problems import serving, small
from search.test_serving_stack import STACK

PLAIN = PlainSpace.of(
    {
        "x": optuna.distributions.FloatDistribution(-1.0, 2.0),
        "grid": optuna.distributions.FloatDistribution(0.0, 1.0, step=0.25),
        "decades": optuna.distributions.FloatDistribution(1e-3, 1e3, log=True),
        "n": optuna.distributions.IntDistribution(-4, 20, step=4),
        "octaves": optuna.distributions.IntDistribution(1, 100, log=True),
        "kind": optuna.distributions.CategoricalDistribution([None, True, 3, "a"]),
    }
)
MIXED_NAMESAKES = serving(
    "deployment.aggregated.replicas={choices: [1, 2, 5]}",
    "deployment.disaggregated.prefill.max_num_seqs={choices: [16, 32, 100]}",
)
SPACES = {
    "serving": serving(),
    "namesakes of other domains": MIXED_NAMESAKES,
    "no baseline": small(),
    "composite choices": small("deployment.router={choices: [{policy: round_robin}, {policy: least_outstanding}]}"),
    "stack": SearchSpace.parse(STACK),
    "plain": PLAIN,
    **{name: SearchSpace.load(name) for name in bundled_spaces()},
}
ROWS = {name: Rows(space) for name, space in SPACES.items()}

places = st.tuples(st.sampled_from(list(SPACES)), st.integers(0, 2**32 - 1))
quick = settings(max_examples=40)


def _drawn(place: tuple[str, int], count: int = 8) -> tuple[Rows, np.ndarray, np.random.Generator]:
    name, seed = place
    rng = np.random.default_rng(seed)
    return ROWS[name], ROWS[name].sample(count, rng), rng


def _points(rows: Rows, array: np.ndarray) -> list[dict[str, Any]]:
    return [rows.point(row) for row in array]


def _check(rows: Rows, array: np.ndarray) -> None:
    """Exactly the active parameters, with values of their domains and of their kind."""
    for point in _points(rows, array):
        active = rows.space.active(point)
        assert list(point) == [parameter.path for parameter in active]
        for parameter in active:
            value = point[parameter.path]
            assert parameter.domain.contains(value), (parameter.path, value)


def _alike(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Equal but for the last digits of continuous values."""
    assert [list(point) for point in ours] == [list(point) for point in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for path, value in one.items():
            if isinstance(value, float):
                assert math.isclose(value, other[path], rel_tol=1e-12), path
            else:
                assert value == other[path], path


@given(places)
@quick
def test_a_row_and_its_point_are_two_forms_of_one_thing(place: tuple[str, int]) -> None:
    rows, drawn, _ = _drawn(place)
    points = _points(rows, drawn)
    np.testing.assert_array_equal(rows.of(points), drawn)
    assert _points(rows, rows.of(points)) == points
    own = [rows.space.sample(np.random.default_rng(place[1] + i)) for i in range(4)]
    assert _points(rows, rows.of(own)) == own


@given(places)
@quick
def test_what_is_drawn_or_varied_is_a_point_of_the_space(place: tuple[str, int]) -> None:
    rows, drawn, rng = _drawn(place)
    _check(rows, drawn)
    _check(rows, rows.mutate(drawn, rng))
    _check(rows, rows.cross(drawn, drawn[::-1], rng))
    _check(rows, rows.neighbours(drawn[:2]))


@given(places)
@quick
def test_neighbours_are_those_of_the_space(place: tuple[str, int]) -> None:
    rows, drawn, _ = _drawn(place, 3)
    expected = [near for point in _points(rows, drawn) for near in rows.space.neighbours(point)]
    _alike(_points(rows, rows.neighbours(drawn)), expected)


@given(places)
@quick
def test_crossing_with_oneself_changes_nothing(place: tuple[str, int]) -> None:
    rows, drawn, rng = _drawn(place)
    np.testing.assert_array_equal(rows.cross(drawn, drawn, rng), drawn)


@given(places)
@quick
def test_keys_tell_rows_apart_as_points_are(place: tuple[str, int]) -> None:
    rows, drawn, rng = _drawn(place)
    array = np.vstack([drawn, drawn[::2], rows.mutate(drawn, rng)])
    names = {}
    for name, point in zip(keys(array), _points(rows, array), strict=True):
        assert names.setdefault(name, key(point)) == key(point)
    assert len(set(names.values())) == len(names)


def test_a_mutation_changes_one_to_four_parameters_and_reaches_every_one() -> None:
    rows, rng = ROWS["serving"], np.random.default_rng(0)
    parents = np.repeat(rows.of([rows.space.baseline_point() or {}]), 2_000, axis=0)
    mutants = rows.mutate(parents, rng)
    same_mode = mutants[:, rows.column("deployment.mode")] == parents[0, rows.column("deployment.mode")]
    policy = rows.column("deployment.router.policy")
    same = same_mode & (mutants[:, policy] == parents[0, policy])  # nothing is switched on or off
    changed = (mutants != parents) & ~(np.isnan(mutants) & np.isnan(parents))
    assert set(changed[same].sum(axis=1)) == {0, 1, 2, 3, 4}  # 0: drawn as it was
    assert (changed.any(axis=0) | np.isnan(parents[0])).all()


def test_a_draw_is_as_likely_as_the_spaces_own() -> None:
    """Each parameter takes its values as often as in ``SearchSpace.sample`` (chi-square, and means of logarithms)."""
    rows = ROWS["plain"]
    rng = np.random.default_rng(0)
    ours, theirs = rows.sample(4_000, rng), rows.of([rows.space.sample(rng) for _ in range(4_000)])
    for j, parameter in enumerate(rows.parameters):
        if parameter.domain.values is None:
            p = ks_2samp(ours[:, j], theirs[:, j]).pvalue
        else:
            values = np.unique([ours[:, j], theirs[:, j]])
            counts = [[(array[:, j] == value).sum() for value in values] for array in (ours, theirs)]
            p = chi2_contingency(counts).pvalue
        assert p > 1e-4, parameter.path


def test_all_rows_are_all_points_in_order() -> None:
    rows = ROWS["no baseline"]
    assert _points(rows, rows.all()) == list(rows.space.points())


def test_columns_and_numbers() -> None:
    rows = ROWS["serving"]
    point = rows.space.baseline_point() or {}
    array = rows.of([point])
    tp = "deployment.aggregated.tensor_parallel_size"
    assert array[0, rows.column(tp)] == 2  # the third choice
    assert rows.numbers(array, tp) == [4.0]
    assert rows.numbers(array, "deployment.aggregated.replicas") == [5.0]
    assert np.isnan(rows.numbers(array, "deployment.disaggregated.prefill.replicas")).all()
    assert rows.column("deployment.model") is None
    assert rows.numbers(array, "deployment.model") is None


def test_no_parameters_no_columns() -> None:
    rows = Rows(small("deployment.aggregated.replicas=2", "deployment.aggregated.tensor_parallel_size=1"))
    assert rows.sample(3, np.random.default_rng(0)).shape == (3, 0)
    assert keys(rows.all()) == [b""]


def test_wide_integers_are_drawn_without_listing_them() -> None:
    rows = Rows(PlainSpace.of({"i": optuna.distributions.IntDistribution(-6, 10**15, step=2)}))
    drawn = rows.sample(50, np.random.default_rng(0))[:, 0]
    assert (drawn % 2 == 0).all()
    assert drawn.min() >= -6
    assert 10**14 < drawn.max() <= 10**15
