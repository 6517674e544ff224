"""Hypervolume and dominance against closed forms and brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dynosim.search import pareto

POINTS = st.integers(1, 4).flatmap(
    lambda m: arrays(float, st.tuples(st.integers(1, 9), st.just(m)), elements=st.integers(0, 5).map(float))
)


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_hypervolume_of_a_staircase(n: int) -> None:
    steps = np.arange(n, dtype=float)
    staircase = np.column_stack([steps, steps[::-1]])
    assert pareto.hypervolume(staircase, np.full(2, float(n))) == n * (n + 1) / 2


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_hypervolume_of_one_point_is_a_box(m: int) -> None:
    point, reference = np.arange(1.0, m + 1), np.arange(1.0, m + 1) + 2.0
    assert pareto.hypervolume(point[None], reference) == pytest.approx(2.0**m)


@given(POINTS)
def test_hypervolume_counts_unit_cells(points: np.ndarray) -> None:
    m = points.shape[1]
    cells = np.stack(np.meshgrid(*[np.arange(5.0)] * m, indexing="ij"), axis=-1).reshape(-1, m)
    dominated = (points[None] <= cells[:, None]).all(axis=2).any(axis=1)
    assert pareto.hypervolume(points, np.full(m, 5.0)) == pytest.approx(dominated.sum())


@given(POINTS)
def test_nondominated_by_definition(points: np.ndarray) -> None:
    def dominated(i: int) -> bool:
        better = (points <= points[i]).all(axis=1) & (points < points[i]).any(axis=1)
        repeated = (points[:i] == points[i]).all(axis=1)
        return bool(better.any() or repeated.any())

    assert pareto.nondominated(points).tolist() == [not dominated(i) for i in range(len(points))]


def test_points_beyond_the_reference_and_infinities_count_nothing() -> None:
    points = np.array([[0.0, 3.0], [np.inf, 0.0], [1.0, np.inf]])
    assert pareto.hypervolume(points, np.array([2.0, 2.0])) == 0.0
    assert pareto.hypervolume(np.zeros((0, 2)), np.ones(2)) == 0.0
    assert pareto.nondominated(np.zeros((0, 2))).shape == (0,)


def test_maximised_columns_change_sign_once() -> None:
    values = np.array([[1.0, 2.0]])
    losses = pareto.losses(values, ["minimize", "maximize"])
    assert losses.tolist() == [[1.0, -2.0]]
    assert pareto.losses(losses, ["minimize", "maximize"]).tolist() == values.tolist()


def test_reference_point_prefers_the_slo() -> None:
    losses = np.array([[1.0, 5.0], [3.0, 4.0]])
    assert pareto.reference_point(losses, np.array([np.nan, 10.0])).tolist() == [3.0, 10.0]
    assert np.isnan(pareto.reference_point(np.zeros((0, 2)), np.array([np.nan, 10.0]))).tolist() == [True, False]


def test_knee_is_scale_free() -> None:
    front = np.array([[0.0, 10.0], [1.0, 2.0], [10.0, 0.0]])
    assert pareto.knee(front) == 1
    assert pareto.knee(front * [1e-6, 1e6]) == 1
    assert pareto.knee(front[:1]) == 0
