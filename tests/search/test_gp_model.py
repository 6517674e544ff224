"""The lean Gaussian process against BoTorch's, and against what any Gaussian process must do."""

import numpy as np
import pytest
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models.gp_regression import SingleTaskGP
from gpytorch.mlls import ExactMarginalLogLikelihood
from scipy.optimize import approx_fprime

from dynosim.search.samplers.model import GP, Hyperparameters, fit, negative_log_posterior, to_botorch


def _data(n: int = 30, d: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    X = np.random.default_rng(seed).random((n, d))
    return X, 3.0 + 10.0 * np.sin(5.0 * X[:, 0]) + 4.0 * X[:, 1] ** 2


@pytest.mark.parametrize("hyperparameters", [Hyperparameters(np.array([0.3, 1.0, 2.0, 9.0]), 1e-3), None])
def test_posterior_equals_botorch(hyperparameters: Hyperparameters | None) -> None:
    X, y = _data()
    gp = GP(X, y, hyperparameters or fit(X, y))
    targets = np.random.default_rng(1).random((50, 4))
    with torch.no_grad():
        posterior = to_botorch([gp]).posterior(torch.as_tensor(targets))
    mean, sd = gp.posterior(targets)
    np.testing.assert_allclose(mean, posterior.mean[:, 0], rtol=1e-6)
    np.testing.assert_allclose(sd, posterior.variance[:, 0].sqrt(), rtol=1e-6)


def test_log_posterior_equals_gpytorch_up_to_a_constant() -> None:
    X, y = _data()
    standard = (y - y.mean()) / y.std(ddof=1)
    differences = []
    for seed in range(4):
        theta = np.random.default_rng(seed).normal(size=5) - [0, 0, 0, 0, 4]
        gp = GP(X, y, Hyperparameters(np.exp(theta[:4]), float(np.exp(theta[4]))))
        model = to_botorch([gp]).models[0].train()
        mll = ExactMarginalLogLikelihood(model.likelihood, model)
        with torch.no_grad():
            theirs = len(y) * mll(model(*model.train_inputs), model.train_targets).item()
        differences.append(theirs + negative_log_posterior(theta, X, standard)[0])
    np.testing.assert_allclose(differences, differences[0], rtol=1e-6)


def test_the_mean_is_the_most_likely_one() -> None:
    X, y = _data()
    gp = GP(X, y, Hyperparameters(np.array([0.3, 1.0, 2.0, 9.0]), 1e-2))
    model = to_botorch([gp]).models[0].train()
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    mll(model(*model.train_inputs), model.train_targets).backward()
    assert model.mean_module.raw_constant.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_evidence_compares_targets_of_any_scale() -> None:
    """The density of k y + b is that of y over k^n: a prior that leaves half of the spread is worth n log 2."""
    X, y = _data()
    one, other = fit(X, y), fit(X, 100.0 * y - 7.0)
    np.testing.assert_allclose(other.ell, one.ell, rtol=1e-3)
    assert other.evidence == pytest.approx(one.evidence - len(y) * np.log(100.0), abs=1e-4)


def test_evidence_prefers_a_mean_that_explains_the_targets() -> None:
    X, y = _data()
    truth = 10.0 * np.sin(5.0 * X[:, 0])
    wrong = np.random.default_rng(3).permutation(truth)
    right, none, shuffled = (fit(X, y - mean).evidence for mean in (truth, np.zeros(len(y)), wrong))
    assert right > none > shuffled


def test_gradient_equals_finite_differences() -> None:
    X, y = _data()
    standard = (y - y.mean()) / y.std(ddof=1)
    theta = np.array([-0.5, 0.3, 0.8, 1.5, -4.0])
    numeric = approx_fprime(theta, lambda t: negative_log_posterior(t, X, standard)[0], 1e-6)
    np.testing.assert_allclose(negative_log_posterior(theta, X, standard)[1], numeric, rtol=1e-4)


def test_fit_is_as_good_as_botorch() -> None:
    X, y = _data()
    model = SingleTaskGP(torch.as_tensor(X), torch.as_tensor(y)[:, None])
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    theirs = [*model.covar_module.lengthscale.detach().numpy()[0], model.likelihood.noise.item()]
    ours = fit(X, y)
    standard = (y - y.mean()) / y.std(ddof=1)
    loss = negative_log_posterior(np.log([*ours.ell, ours.s2]), X, standard)[0]
    assert loss <= negative_log_posterior(np.log(theirs), X, standard)[0] + 0.01


def test_interpolates_and_reverts_to_the_prior_far_away() -> None:
    X, y = _data()
    gp = GP(X, y, Hyperparameters(np.full(4, 0.5), 1e-4))
    mean, sd = gp.posterior(X)
    assert np.abs(mean - y).max() < 0.2
    assert sd.max() < 0.02 * y.std(ddof=1)
    far = gp.posterior(np.full((1, 4), 50.0))
    assert far[1][0] == pytest.approx(y.std(ddof=1))


def test_believing_its_mean_changes_only_the_variance() -> None:
    X, y = _data()
    gp, point = GP(X, y, Hyperparameters(np.full(4, 0.5), 1e-4)), np.full((1, 4), 0.5)
    believer = gp.condition_on_mean(point)
    assert believer.posterior(point)[0] == pytest.approx(gp.posterior(point)[0], rel=0.01)
    assert believer.posterior(point)[1][0] < 0.2 * gp.posterior(point)[1][0]


@pytest.mark.parametrize("y", [np.ones(5), np.array([2.0])])
def test_constant_outputs_are_learned(y: np.ndarray) -> None:
    X = np.random.default_rng(0).random((len(y), 2))
    mean, sd = GP(X, y, fit(X, y)).posterior(np.random.default_rng(1).random((3, 2)))
    np.testing.assert_allclose(mean, y[0], atol=1e-6)
    assert np.isfinite(sd).all()
