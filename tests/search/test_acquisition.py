"""Expected hypervolume improvement against BoTorch's, Monte Carlo and closed forms."""

import numpy as np
import pytest
import torch
from botorch.acquisition.multi_objective.analytic import ExpectedHypervolumeImprovement
from botorch.utils.multi_objective.box_decompositions import FastNondominatedPartitioning
from botorch.utils.testing import MockModel, MockPosterior
from scipy.stats import norm

from dynosim.search import pareto
from dynosim.search.samplers import acquisition
from dynosim.search.samplers.acquisition import LogEHVI, nondominated_cells
from dynosim.search.samplers.botorch_api import log_h


def log_ehvi(mu: np.ndarray, sigma: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    return acquisition.log_ehvi(*map(torch.as_tensor, (mu, sigma, lower, upper))).numpy()


def _front(m: int, p: int, seed: int = 0) -> np.ndarray:
    points = np.abs(np.random.default_rng(seed).normal(size=(p, m)))
    return 1.0 - 0.8 * points / np.linalg.norm(points, axis=1)[:, None]  # on a concave sphere: none dominates another


def _ties(m: int, p: int, seed: int) -> np.ndarray:
    """Dominated, repeated and tied points, some on the reference (1) or beyond it."""
    return np.random.default_rng(seed).integers(0, 6, size=(p, m)) / 4.0


def _fronts(m: int) -> list[np.ndarray]:
    tied = [_ties(m, p, seed) for seed, p in enumerate((1, 2, 3, 5, 8, 12))]
    return [np.zeros((0, m)), _front(m, 6), np.vstack([_front(m, 4, 1)] * 2), *tied]


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_cells_tile_what_the_front_does_not_dominate(m: int) -> None:
    reference, rng = np.ones(m), np.random.default_rng(7)
    probes = rng.uniform(-0.5, 1.0, size=(500, m))
    for front in _fronts(m):
        lower, upper = nondominated_cells(front, reference)
        assert (lower < upper).all()
        assert (upper <= reference).all()
        volume = np.prod(upper - np.maximum(lower, -0.5), axis=1, where=upper > -0.5).sum()
        assert volume == pytest.approx(1.5**m - pareto.hypervolume(front, reference), rel=1e-12)
        inside = ((lower < probes[:, None]) & (probes[:, None] <= upper)).all(axis=2).sum(axis=1)
        dominated = (front[None] <= probes[:, None]).all(axis=2).any(axis=1)
        np.testing.assert_array_equal(inside, np.where(dominated, 0, 1))


@pytest.mark.parametrize("m", [2, 3, 4, 5])
def test_ehvi_equals_botorch(m: int) -> None:
    reference, rng = np.ones(m), np.random.default_rng(1)
    mu, sigma = rng.random((3, m)), 0.05 + 0.3 * rng.random((3, m))
    model = MockModel(MockPosterior(mean=torch.as_tensor(-mu)[:, None], variance=torch.as_tensor(sigma**2)[:, None]))
    for front in _fronts(m):
        cells = FastNondominatedPartitioning(ref_point=-torch.as_tensor(reference), Y=-torch.as_tensor(front))
        theirs = ExpectedHypervolumeImprovement(model, (-reference).tolist(), cells)(torch.zeros(3, 1, 1))
        ours = log_ehvi(mu, sigma, *nondominated_cells(front, reference))
        np.testing.assert_allclose(np.exp(ours), theirs.numpy(), rtol=1e-6)


def test_ehvi_is_the_volume_that_a_certain_point_adds() -> None:
    front, reference = _ties(3, 8, 3), np.ones(3)
    points = np.random.default_rng(5).random((20, 3)) * 0.6
    before = pareto.hypervolume(front, reference)
    gains = [pareto.hypervolume(np.vstack([front, point]), reference) - before for point in points]
    expected = log_ehvi(points, np.full((20, 3), 1e-9), *nondominated_cells(front, reference))
    assert max(gains) > 0.0
    np.testing.assert_allclose(np.exp(expected), gains, atol=1e-8)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_ehvi_equals_monte_carlo(m: int) -> None:
    front, reference = _front(m, 5)[: 1 if m == 1 else 5], np.full(m, 1.1)
    mu, sigma = np.full((1, m), 0.6), np.full((1, m), 0.25)
    draws = mu + sigma * np.random.default_rng(2).normal(size=(4_000, m))
    before = pareto.hypervolume(front, reference)
    gains = [pareto.hypervolume(np.vstack([front, y]), reference) - before for y in draws]
    expected = np.exp(log_ehvi(mu, sigma, *nondominated_cells(front, reference))[0])
    assert expected == pytest.approx(np.mean(gains), abs=4 * np.std(gains) / np.sqrt(len(gains)))


def test_single_objective_is_log_expected_improvement() -> None:
    best, mu, sigma = 0.3, np.array([[0.5], [0.1]]), np.array([[0.2], [0.05]])
    z = (best - mu) / sigma
    expected = np.log(sigma * (z * norm.cdf(z) + norm.pdf(z)))[:, 0]
    cells = nondominated_cells(np.array([[0.7], [best]]), np.array([1.0]))
    np.testing.assert_allclose(log_ehvi(mu, sigma, *cells), expected, rtol=1e-10)


def test_without_a_front_the_whole_box_is_to_gain() -> None:
    cells = nondominated_cells(np.zeros((0, 2)), np.array([1.0, 1.0]))
    gain = log_ehvi(np.array([[0.25, 0.5]]), np.full((1, 2), 1e-6), *cells)
    assert np.exp(gain[0]) == pytest.approx(0.75 * 0.5, rel=1e-6)


def test_ehvi_stays_finite_and_ordered_where_it_underflows() -> None:
    cells = nondominated_cells(_front(3, 8), np.full(3, 1.1))
    distance = np.array([2.0, 10.0, 100.0, 1e4])
    values = log_ehvi(np.repeat(distance[:, None], 3, axis=1), np.full((4, 3), 0.01), *cells)
    assert np.isfinite(values).all()
    assert (np.diff(values) < 0.0).all()


def test_log_h_is_smooth_over_its_branches() -> None:
    z = np.array([3.0, 0.0, -0.999, -1.001, -10.0, -30.0])
    np.testing.assert_allclose(log_h(torch.as_tensor(z)), np.log(norm.pdf(z) + z * norm.cdf(z)), rtol=1e-7)
    edge = log_h(torch.tensor([-1e6 * (1 - 1e-9), -1e6 * (1 + 1e-9)], dtype=torch.float64))
    assert edge[0] - edge[1] == pytest.approx(2e3, rel=1e-3)  # the slope there is |z|


def test_constraints_multiply_by_the_probability_that_they_hold() -> None:
    mu, sigma = np.array([[0.4, 0.5, 0.3, -1.0]]), np.array([[0.2, 0.2, 0.5, 2.0]])
    model = MockModel(MockPosterior(mean=torch.as_tensor(mu), variance=torch.as_tensor(sigma**2)))
    cells = nondominated_cells(_front(2, 4), np.ones(2))
    gain = log_ehvi(mu[:, :2], sigma[:, :2], *cells)[0]
    value = LogEHVI(model, *cells)(torch.zeros(1, 1, 1))
    assert value.item() == pytest.approx(gain + np.log(norm.cdf(-0.6) * norm.cdf(0.5)))
