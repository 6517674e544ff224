"""The processes of the models: what is fitted against BoTorch's own, and what any Gaussian process must do."""

import numpy as np
import pytest
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models.gp_regression import SingleTaskGP
from gpytorch.mlls import ExactMarginalLogLikelihood
from scipy.optimize import approx_fprime

from dynosim.search.samplers.kernels import KERNELS
from dynosim.search.samplers.model import Hyperparameters, fit, log_priors, negative_log_posterior, process
from dynosim.search.samplers.profile import PLAIN, SERVING, Profile

Array = np.ndarray


def _data(n: int = 30, d: int = 4, seed: int = 0) -> tuple[Array, Array]:
    X = np.random.default_rng(seed).random((n, d))
    return X, 3.0 + 10.0 * np.sin(5.0 * X[:, 0]) + 4.0 * X[:, 1] ** 2


def _process(X: Array, y: Array, hyperparameters: Hyperparameters, known: Array | None = None) -> SingleTaskGP:
    inputs = np.column_stack([X, np.zeros(len(X)) if known is None else known])
    return process(inputs, y, hyperparameters, X.shape[1])


def _predicted(model: SingleTaskGP, X: Array, known: Array | None = None) -> tuple[Array, Array]:
    inputs = np.column_stack([X, np.zeros(len(X)) if known is None else known])
    with torch.no_grad():
        predicted = model.posterior(torch.as_tensor(inputs))
    return predicted.mean[:, 0].numpy(), predicted.variance[:, 0].sqrt().numpy()


def _mode(d: int, profile: Profile = SERVING) -> Array:
    location, scale, *_ = log_priors(d, profile)
    return location - scale**2


def _standard(y: Array) -> Array:
    return (y - y.mean()) / y.std(ddof=1)


def _botorch(X: Array, y: Array, theta: Array) -> SingleTaskGP:
    """BoTorch's default model with given hyperparameters."""
    model = SingleTaskGP(torch.as_tensor(X), torch.as_tensor(y)[:, None])
    model.covar_module.lengthscale = torch.as_tensor(np.exp(theta[:-1]))
    model.likelihood.noise = torch.as_tensor(np.exp(theta[-1:]))
    return model


def test_log_posterior_equals_botorch_up_to_a_constant() -> None:
    X, y = _data()
    differences = []
    for seed in range(4):
        theta = np.random.default_rng(seed).normal(size=5) - [0, 0, 0, 0, 4]
        own = process(
            np.column_stack([X, np.zeros(30)]), _standard(y), Hyperparameters(np.exp(theta[:4]), np.exp(theta[4])), 4
        )
        model = _botorch(X, y, theta).train()
        model.mean_module.constant = own.mean_module.constant.item()
        mll = ExactMarginalLogLikelihood(model.likelihood, model)
        with torch.no_grad():
            theirs = len(y) * mll(model(*model.train_inputs), model.train_targets).item()
        differences.append(theirs + negative_log_posterior(theta, X, _standard(y), _mode(4))[0])
    np.testing.assert_allclose(differences, differences[0], rtol=1e-6)


@pytest.mark.parametrize("profile", [SERVING, PLAIN])
def test_gradient_equals_finite_differences(profile: Profile) -> None:
    X, y = _data()
    center = _mode(4, profile)
    theta = np.array([-0.5, 0.3, 0.8, 1.5, *np.linspace(-2.0, 1.0, len(center) - 5), -4.0])

    def loss(theta: Array) -> tuple[float, Array]:
        return negative_log_posterior(theta, X, _standard(y), center, 0.0, profile)

    numeric = approx_fprime(theta, lambda t: loss(t)[0], 1e-6)
    np.testing.assert_allclose(loss(theta)[1], numeric, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_the_same_for_fits_and_for_botorch(name: str) -> None:
    X, _ = _data()
    ell, others = np.array([0.3, 0.5, 2.0, 9.0]), np.array([-2.0, 0.0, 1.0, 3.0, 0.7])
    module = KERNELS[name].module(ell, others, 2.0)
    inputs = torch.as_tensor(np.column_stack([X, np.ones(30)]))
    expected = 2.0 * KERNELS[name].covariance(X, ell, others)[0]
    with torch.no_grad():
        np.testing.assert_allclose(module(inputs).to_dense().numpy(), expected, rtol=1e-6)
        np.testing.assert_allclose(module(inputs, diag=True).numpy(), expected.diagonal(), rtol=1e-6)


def test_where_all_features_interact_the_anova_kernel_is_the_squared_exponential() -> None:
    (X, _), ell = _data(), np.array([0.3, 0.5, 2.0, 9.0])
    plain, anova = (
        KERNELS[name].covariance(X, ell, np.array([50.0] * 4 + [0.0]))[0] for name in ("squared exponential", "anova")
    )
    np.testing.assert_allclose(anova, plain, rtol=1e-9)


def test_of_any_function_the_effect_of_a_parameter_is_learned_once() -> None:
    """Trials that vary one feature at a time tell the sum of two effects, of which no trial has both."""
    steps, rest = np.linspace(0.0, 1.0, 9), np.full(9, 0.5)
    X = np.vstack([np.column_stack([steps, rest]), np.column_stack([rest, steps])[steps != 0.5]])

    def function(X: Array) -> Array:
        return np.sin(6.0 * X[:, 0]) + np.square(3.0 * X[:, 1])

    corners = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    fitted = (fit(X, function(X), profile=profile) for profile in (PLAIN, SERVING))
    effects, alike = (
        np.abs(_predicted(_process(X, function(X), h), corners)[0] - function(corners)).max() for h in fitted
    )
    assert effects < 0.2 * alike


def test_fit_is_as_good_as_botorch() -> None:
    X, y = _data()
    model = SingleTaskGP(torch.as_tensor(X), torch.as_tensor(y)[:, None])
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    theirs = [*model.covar_module.lengthscale.detach().numpy()[0], model.likelihood.noise.item()]
    ours = fit(X, y)
    loss = negative_log_posterior(np.log([*ours.ell, ours.s2]), X, _standard(y), _mode(4))[0]
    assert loss <= negative_log_posterior(np.log(theirs), X, _standard(y), _mode(4))[0] + 0.01


def test_draws_keep_what_the_data_say_and_vary_in_what_they_do_not() -> None:
    """Two of four features matter: their lengthscales are known, those of the others are any that are long."""
    X, y = _data(60)
    drawn = np.log([fit(X, y, np.random.default_rng(seed)).ell for seed in range(40)])
    scale = log_priors(4)[1]
    spread = drawn.std(axis=0) / scale[:4]
    assert spread[2:].min() > 2.0 * spread[:2].max()
    assert np.abs(drawn[:, 0].mean() - np.log(fit(X, y).ell[0])) < 0.5


def test_a_draw_is_a_function_of_its_seed() -> None:
    X, y = _data()
    one, same, other = (fit(X, y, np.random.default_rng(seed)).ell for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_process_is_botorch_with_the_most_likely_constant() -> None:
    X, y = _data()
    theta = np.log([0.3, 1.0, 2.0, 9.0, 1e-2])
    own = _process(X, y, Hyperparameters(np.exp(theta[:4]), np.exp(theta[4])))
    theirs = _botorch(X, y, theta).train()
    theirs.mean_module.constant = (own.mean_module.constant.item() - y.mean()) / y.std(ddof=1)
    mll = ExactMarginalLogLikelihood(theirs.likelihood, theirs)
    mll(theirs(*theirs.train_inputs), theirs.train_targets).backward()
    assert theirs.mean_module.raw_constant.grad.item() == pytest.approx(0.0, abs=1e-6)
    targets = np.random.default_rng(1).random((50, 4))
    with torch.no_grad():
        predicted = theirs.eval().posterior(torch.as_tensor(targets))
    mean, sd = _predicted(own, targets)
    np.testing.assert_allclose(mean, predicted.mean[:, 0], rtol=1e-6)
    np.testing.assert_allclose(sd, predicted.variance[:, 0].sqrt(), rtol=1e-6)


def test_a_prior_mean_is_what_is_predicted_far_away() -> None:
    X, y = _data()
    known = 10.0 * np.sin(5.0 * X[:, 0])
    model = _process(X, y, fit(X, y - known), known)
    far = np.full((3, 4), 50.0)
    mean, sd = _predicted(model, far, np.array([-7.0, 0.0, 20.0]))
    np.testing.assert_allclose(np.diff(mean), [7.0, 20.0], rtol=1e-6)
    np.testing.assert_allclose(sd, (y - known).std(ddof=1), rtol=1e-6)


def test_a_prior_mean_is_the_same_as_modelling_what_it_leaves() -> None:
    X, y = _data()
    known, hyperparameters = 5.0 * np.sin(5.0 * X[:, 0]), Hyperparameters(np.full(4, 0.7), 1e-3)
    targets = np.random.default_rng(1).random((20, 4))
    there = 5.0 * np.sin(5.0 * targets[:, 0])
    mean, sd = _predicted(_process(X, y, hyperparameters, known), targets, there)
    rest, same = _predicted(_process(X, y - known, hyperparameters), targets)
    np.testing.assert_allclose(mean, rest + there, rtol=1e-8)
    np.testing.assert_allclose(sd, same, rtol=1e-8)


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


def test_interpolates_and_reverts_to_the_prior_far_away() -> None:
    X, y = _data()
    model = _process(X, y, Hyperparameters(np.full(4, 0.5), 1e-4))
    mean, sd = _predicted(model, X)
    assert np.abs(mean - y).max() < 0.2
    assert sd.max() < 0.02 * y.std(ddof=1)
    assert _predicted(model, np.full((1, 4), 50.0))[1][0] == pytest.approx(y.std(ddof=1))


@pytest.mark.parametrize("y", [np.ones(5), np.array([2.0])])
def test_constant_outputs_are_learned(y: Array) -> None:
    X = np.random.default_rng(0).random((len(y), 2))
    mean, sd = _predicted(_process(X, y, fit(X, y)), np.random.default_rng(1).random((3, 2)))
    np.testing.assert_allclose(mean, y[0], atol=1e-6)
    assert np.isfinite(sd).all()


def test_of_any_function_values_are_taken_as_exact_until_they_prove_noisy() -> None:
    X, y = _data(60, 2)
    exact, usual = (_predicted(_process(X, y, h), X)[0] for h in (fit(X, y, profile=PLAIN), fit(X, y)))
    assert np.abs(exact - y).max() < 0.3 * np.abs(usual - y).max()
    noisy = y + 0.3 * y.std() * np.random.default_rng(1).standard_normal(len(y))
    assert fit(X, noisy, profile=PLAIN).s2 > 1e3 * fit(X, y, profile=PLAIN).s2
