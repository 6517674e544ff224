r"""Covariance of one output between points, as a function of log hyperparameters: with gradient, and for BoTorch.

Both have one lengthscale ``ell_k`` per feature and k_k(x, x') = exp(-((x_k - x'_k) / ell_k)^2 / 2).

======================  =================================================  =======================================
kernel                  k(x, x')                                           what is told about an untried point
======================  =================================================  =======================================
squared exponential     prod_k k_k                                         points that are alike in every feature
ANOVA                   v prod_k (1 - r_k + r_k k_k)                       also those that are alike in some: an
                                                                           effect of one feature is learned once,
                                                                           whatever the others are
======================  =================================================  =======================================

``r_k``, the share of feature k, says how far it interacts: with small ones the product is a sum of effects of single
features and, of lower order, of pairs (Stitson et al. 1999, "Support vector regression with ANOVA decomposition
kernels"; Durrande et al. 2013, "ANOVA kernels and RKHS of zero mean functions for model-based sensitivity analysis");
with r_k = v = 1 it is the squared exponential.

Priors are normal densities of theta, the unconstrained hyperparameters: those of lengthscales LogNormal(sqrt 2 +
log(d) / 2, sqrt 3) (Hvarfner, Hellsten and Nardi 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dynosim.search.samplers.botorch_api import GpytorchKernel, RBFKernel, ScaleKernel, Tensor, torch

Array = NDArray[np.float64]

MIN_LENGTHSCALE = 2.5e-2  # BoTorch's bound
_LONGEST = 12.0
"""Logarithm of the lengthscale of a feature that does not matter at all."""
_SHARES = -2.5, 1.5, -8.0, 6.0
"""Mode, scale and bounds of logit r: a priori a feature interacts by a twelfth."""
_VARIANCE = 0.5, 1.0, -2.0, 5.0
"""The same of log v."""


Gradient = Callable[[Array], Array]
"""From A (``n x n``) to that of tr(A K) / 2 by the logarithms of the lengthscales and by the others, ``t``."""


class Kernel(Protocol):
    """Covariance functions of ``d`` features with lengthscales (``d``) and ``t - d`` other hyperparameters."""

    def priors(self, d: int) -> Array:
        """Return location, scale, lower and upper bound of log lengthscales and others, ``4 x t``."""
        ...

    def covariance(self, X: Array, ell: Array, others: Array) -> tuple[Array, Gradient]:
        """Return K of the rows of *X* (``n x n``), and how to differentiate it."""
        ...

    def module(self, ell: Array, others: Array, variance: float) -> Any:
        """Return GPyTorch's kernel of the first ``d`` columns of its inputs, times *variance*."""
        ...


def _lengthscales(d: int) -> Array:
    scale = np.sqrt(3.0)
    return np.tile([[np.sqrt(2.0) + 0.5 * np.log(d)], [scale], [np.log(MIN_LENGTHSCALE)], [_LONGEST]], d)


class SquaredExponential:
    """Without others."""

    def priors(self, d: int) -> Array:
        """Return those of the lengthscales."""
        return _lengthscales(d)

    def covariance(self, X: Array, ell: Array, others: Array) -> tuple[Array, Gradient]:
        """Return exp(-|z - z'|^2 / 2) of rows divided by the lengthscales."""
        Z = X / ell
        squared = (Z**2).sum(1)
        K = np.asarray(np.exp(-0.5 * np.maximum(squared[:, None] + squared - 2.0 * Z @ Z.T, 0.0)))

        def gradient(A: Array) -> Array:
            weights = A * K
            return np.asarray(weights.sum(axis=1) @ Z**2 - np.einsum("ik,ik->k", Z, weights @ Z))

        return K, gradient

    def module(self, ell: Array, others: Array, variance: float) -> Any:
        """Return BoTorch's usual kernel."""
        kernel = ScaleKernel(RBFKernel(ard_num_dims=len(ell), active_dims=tuple(range(len(ell)))))
        kernel.base_kernel.lengthscale = torch.as_tensor(ell)
        kernel.outputscale = torch.tensor(variance, dtype=torch.float64)
        return kernel


class Anova:
    """The others are logit r (``d``) and log v."""

    def priors(self, d: int) -> Array:
        """Return those of lengthscales, shares and variance."""
        others = np.array([_SHARES] * d + [_VARIANCE]).T
        others[0] += others[1] ** 2  # the location of the lengthscales' kind of prior
        return np.hstack([_lengthscales(d), others])

    def covariance(self, X: Array, ell: Array, others: Array) -> tuple[Array, Gradient]:
        """Return the product of all features' factors."""
        r = 1.0 / (1.0 + np.exp(-others[:-1, None, None]))
        squared = np.square((X.T[:, :, None] - X.T[:, None, :]) / ell[:, None, None])
        each = np.exp(-0.5 * squared)
        factors = 1.0 + r * (each - 1.0)
        K = np.exp(others[-1]) * factors.prod(axis=0)

        def gradient(A: Array) -> Array:
            weights, parts = 0.5 * A * K, r / factors
            lengthscales = np.einsum("ij,kij->k", weights, parts * each * squared)
            shares = np.einsum("ij,kij->k", weights, parts * (1.0 - r) * (each - 1.0))
            return np.concatenate([lengthscales, shares, [weights.sum()]])

        return K, gradient

    def module(self, ell: Array, others: Array, variance: float) -> Any:
        """Return it as one of GPyTorch's."""
        return _AnovaModule(ell, others, variance)


class _AnovaModule(GpytorchKernel):  # type: ignore[misc]  # GPyTorch is not typed
    def __init__(self, ell: Array, others: Array, variance: float) -> None:
        super().__init__()
        self.ell, self.r = torch.as_tensor(ell), torch.sigmoid(torch.as_tensor(others[:-1]))
        self.variance = variance * float(np.exp(others[-1]))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        """Return the covariance of the rows of *x1* and *x2*, or only that of each with the one in its place."""
        found = torch.tensor(self.variance, dtype=torch.float64)
        for k, (ell, r) in enumerate(zip(self.ell.tolist(), self.r.tolist(), strict=True)):
            a, b = x1[..., k] / ell, x2[..., k] / ell
            difference = a - b if diag else a[..., :, None] - b[..., None, :]
            found = found * (1.0 - r + r * torch.exp(-0.5 * difference.square()))
        return found


KERNELS: dict[str, Kernel] = {"squared exponential": SquaredExponential(), "anova": Anova()}
