r"""Exact Gaussian-process regression: BoTorch's ``SingleTaskGP``, evaluated without autograd.

========  ==========================================================  ============
symbol    meaning                                                     shape
========  ==========================================================  ============
``X``     training inputs, each feature scaled to [0, 1]              ``n x d``
``y``     training targets                                            ``n``
``ell``   lengthscales                                                ``d``
``s2``    noise variance of the standardised targets                  scalar
``K``     k(X, X) + s2 I,  k(x, x') = exp(-|(x - x') / ell|^2 / 2)    ``n x n``
``alpha`` K^-1 (y - c), with c the constant mean                      ``n``
========  ==========================================================  ============

Same model as BoTorch's: constant mean, squared-exponential kernel with one lengthscale per feature and unit
variance on standardised targets, lengthscale prior LogNormal(sqrt 2 + log(d) / 2, sqrt 3) and noise prior
LogNormal(-4, 1) (Hvarfner, Hellsten and Nardi 2024, "Vanilla Bayesian optimization performs great in high
dimensions"). A study fits six of these between two 50 ms simulations; BoTorch's fit takes seconds, this one
milliseconds. The tests hold both to the same posterior and the same marginal likelihood. Not modelled:
input-dependent noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize

if TYPE_CHECKING:
    from dynosim.search.samplers.botorch_api import ModelListGP

Array = NDArray[np.float64]

MIN_LENGTHSCALE, MIN_NOISE = 2.5e-2, 1e-4  # BoTorch's bounds
_NOISE_PRIOR = (-4.0, 1.0)
_JITTER = 1e-6
"""Variance added to joint draws, whose covariance matrix is singular but for rounding."""


def _lengthscale_prior(d: int) -> tuple[float, float]:
    return np.sqrt(2.0) + 0.5 * np.log(d), np.sqrt(3.0)


def _log_normal(log_value: Array, prior: tuple[float, float]) -> tuple[float, Array]:
    """Return the summed log density (up to a constant) of LogNormal(*prior), and its gradient in log_value."""
    location, scale = prior
    z = (log_value - location) / scale
    return float(-np.sum(log_value + 0.5 * z**2)), -1.0 - z / scale


def _kernel(A: Array, B: Array) -> Array:
    """Return exp(-|a - b|^2 / 2) of rows already divided by the lengthscales."""
    squared = (A**2).sum(1)[:, None] + (B**2).sum(1) - 2.0 * A @ B.T
    return np.asarray(np.exp(-0.5 * np.maximum(squared, 0.0)))


@dataclass(frozen=True, eq=False)
class Hyperparameters:
    """What is fitted: ``ell`` (``d``) and ``s2``. The mean is not among them: it has a closed form given these."""

    ell: Array
    s2: float
    evidence: float = 0.0
    """Log posterior density of the targets (not standardised) and of these, up to a constant: to compare models."""


def negative_log_posterior(theta: Array, X: Array, y: Array) -> tuple[float, Array]:
    """Return the negative log marginal likelihood plus log priors at theta = log(ell, s2), and its gradient.

    Rasmussen and Williams 2006, eq. 5.8 and 5.9. The mean c = 1'K^-1 y / 1'K^-1 1 maximises the likelihood
    for given theta, so by the envelope theorem its own derivative does not enter the gradient.
    """
    n, d = X.shape
    Z, s2 = X / np.exp(theta[:d]), float(np.exp(theta[d]))
    kernel = _kernel(Z, Z)
    K = kernel.copy()
    K.flat[:: n + 1] += s2
    factor = dpotrf(K, lower=1, overwrite_a=1)[0]
    inverse = dpotri(factor, lower=1)[0]  # its lower triangle; the upper one stays zero
    inverse += inverse.T
    inverse.flat[:: n + 1] *= 0.5
    weights = inverse.sum(axis=0)
    residual = y - weights @ y / weights.sum()
    alpha = inverse @ residual
    log_likelihood = -0.5 * residual @ alpha - np.log(factor.diagonal()).sum() - 0.5 * n * np.log(2.0 * np.pi)

    A = (np.outer(alpha, alpha) - inverse) * kernel
    gradient = np.empty(d + 1)
    gradient[:d] = A.sum(axis=1) @ Z**2 - np.einsum("ik,ik->k", Z, A @ Z)  # 1/2 tr(A dK/dlog ell_k)
    gradient[d] = 0.5 * s2 * (alpha @ alpha - inverse.trace())
    log_ell, ell_gradient = _log_normal(theta[:d], _lengthscale_prior(d))
    log_s2, s2_gradient = _log_normal(theta[d:], _NOISE_PRIOR)
    return -float(log_likelihood + log_ell + log_s2), -(gradient + np.append(ell_gradient, s2_gradient))


def fit(X: Array, y: Array) -> Hyperparameters:
    """Return the maximum a posteriori hyperparameters, starting from the priors' modes as BoTorch does.

    The start never depends on an earlier fit, so the result is a function of the data alone and a resumed study
    continues exactly.
    """
    d = X.shape[1]
    location, scale = _lengthscale_prior(d)
    start = np.append(np.full(d, location - scale**2), _NOISE_PRIOR[0] - _NOISE_PRIOR[1] ** 2)
    bounds = [(np.log(MIN_LENGTHSCALE), 12.0)] * d + [(np.log(MIN_NOISE), 2.0)]
    targets = (y - y.mean()) / _scale(y)
    result = minimize(
        negative_log_posterior,
        np.clip(start, *np.transpose(bounds)),
        (X, targets),
        method="L-BFGS-B",
        jac=True,
        bounds=bounds,
        options={"maxiter": 50},
    )
    evidence = -float(result.fun) - len(y) * np.log(_scale(y))
    return Hyperparameters(np.exp(result.x[:d]), float(np.exp(result.x[d])), evidence)


def _scale(y: Array) -> float:
    """Return the standard deviation that standardises y (BoTorch's ``Standardize``: n - 1, and 1 if constant)."""
    spread = float(y.std(ddof=1)) if len(y) > 1 else 0.0
    return spread if spread > 1e-8 else 1.0


@dataclass(frozen=True, eq=False)
class GP:
    """The posterior of one output given data and hyperparameters."""

    X: Array
    y: Array
    hyperparameters: Hyperparameters

    @cached_property
    def _solved(self) -> tuple[Array, Array, float]:
        """The Cholesky factor of K, alpha, and the mean c, all of standardised targets."""
        n, Z = len(self.X), self.X / self.hyperparameters.ell
        factor = cho_factor(_kernel(Z, Z) + self.hyperparameters.s2 * np.eye(n), lower=True)
        targets = (self.y - self.y.mean()) / _scale(self.y)
        weights = cho_solve(factor, np.ones(n))
        c = float(weights @ targets / weights.sum())
        return np.tril(factor[0]), cho_solve(factor, targets - c), c

    def posterior(self, X: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation of the noise-free output at X (``q x d``), each ``q``.

        Rasmussen and Williams 2006, eq. 2.25 and 2.26.
        """
        factor, alpha, c = self._solved
        cross = _kernel(X / self.hyperparameters.ell, self.X / self.hyperparameters.ell)
        V = solve_triangular(factor, cross.T, lower=True, check_finite=False)
        variance = np.maximum(1.0 - np.einsum("nq,nq->q", V, V), 1e-12)
        scale = _scale(self.y)
        return self.y.mean() + scale * (c + cross @ alpha), scale * np.sqrt(variance)

    def draws(self, X: Array, normals: Array) -> Array:
        """Return joint draws of the noise-free output at X (``q x d``), one per row of standard normals (``s x q``).

        Rasmussen and Williams 2006, eq. 2.24.
        """
        factor, alpha, c = self._solved
        Z, known = X / self.hyperparameters.ell, self.X / self.hyperparameters.ell
        cross = _kernel(Z, known)
        V = solve_triangular(factor, cross.T, lower=True, check_finite=False)
        covariance = _kernel(Z, Z) - V.T @ V + _JITTER * np.eye(len(X))
        deviations = normals @ np.linalg.cholesky(covariance).T
        return np.asarray(self.y.mean() + _scale(self.y) * (c + cross @ alpha + deviations))

    def condition_on_mean(self, X: Array) -> GP:
        """Return the GP that has seen its own mean at X (``q x d``): a Kriging believer (Ginsbourger et al. 2010)."""
        return GP(np.vstack([self.X, X]), np.append(self.y, self.posterior(X)[0]), self.hyperparameters)


def to_botorch(models: list[GP]) -> ModelListGP:
    """Return BoTorch's own models with the same data and hyperparameters."""
    from dynosim.search.samplers.botorch_api import ModelListGP, SingleTaskGP, settings, torch

    def convert(gp: GP) -> SingleTaskGP:
        model = SingleTaskGP(torch.as_tensor(gp.X), torch.as_tensor(gp.y)[:, None])
        model.covar_module.lengthscale = torch.as_tensor(gp.hyperparameters.ell)
        model.likelihood.noise = torch.tensor([gp.hyperparameters.s2], dtype=torch.float64)
        model.mean_module.constant = gp._solved[2]
        return model.eval()

    # Derived features may leave [0, 1] a little, and an output may be constant: both are fine here.
    with settings.validate_input_scaling(False):
        return ModelListGP(*map(convert, models))
