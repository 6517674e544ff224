r"""One output of a study as a Gaussian process: BoTorch's ``SingleTaskGP`` with a prior mean, and its hyperparameters.

=========  =================================================================  =========
symbol     meaning                                                            shape
=========  =================================================================  =========
``X``      features of the trials, each scaled to [0, 1]                      ``n x d``
``y``      what the trials gave, less the prior mean                          ``n``
``v``      their noise variances as far as told, zeros where they are not     ``n``
``ell``    lengthscales                                                       ``d``
``s2``     noise variance of the standardised ``y`` beside that               scalar
``K``      k(X, X) + s2 I + diag v,  k one of ``kernels``                     ``n x n``
``alpha``  K^-1 (y - c), with c the constant mean                             ``n``
=========  =================================================================  =========

BoTorch's own choices: constant mean, of deployments a squared-exponential kernel of unit variance on standardised
targets, lengthscale prior LogNormal(sqrt 2 + log(d) / 2, sqrt 3) (Hvarfner, Hellsten and Nardi 2024, "Vanilla Bayesian
optimization performs great in high dimensions"). Kernel and prior of s2 are those of a ``Profile``. The
hyperparameters are found in logarithms with the gradient in closed form: BoTorch's own fit of the same density takes
a hundred times as long (docs/sampler.md). Not modelled: correlation between outputs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize

from dynosim.search.samplers.botorch_api import (
    ConstantMean,
    ModelListGP,
    NumericalWarning,
    SingleTaskGP,
    Tensor,
    min_fixed_noise,
    min_variance,
    settings,
    torch,
)
from dynosim.search.samplers.kernels import KERNELS, Kernel
from dynosim.search.samplers.profile import SERVING, Profile

Array = NDArray[np.float64]

_LEAST_LEFT = 1e-2
"""Share of the targets' spread that a prior mean is taken to leave, also where it met all of them more closely."""
_LEAST_VARIANCE = 1e-30
"""Variances are in the units of the targets, so what is negligible is not for GPyTorch to say."""


@dataclass(frozen=True, eq=False)
class Hyperparameters:
    """What is fitted. The mean is not among them: it has a closed form given these."""

    ell: Array
    s2: float
    evidence: float = 0.0
    """Log posterior density of the targets (not standardised) and of these, up to a constant: to compare models."""
    others: Array = field(default_factory=lambda: np.zeros(0))
    """What else *kernel* has."""
    kernel: Kernel = KERNELS[SERVING.kernel]

    def covariance(self, X: Array) -> Array:
        """Return k(X, X), ``n x n``."""
        return self.kernel.covariance(X, self.ell, self.others)[0]


def negative_log_posterior(
    theta: Array, X: Array, y: Array, center: Array, v: Array | float = 0.0, profile: Profile = SERVING
) -> tuple[float, Array]:
    """Return the negative log marginal likelihood plus log priors at theta (the kernel's, log s2), and its gradient.

    Rasmussen and Williams 2006, eq. 5.8 and 5.9. The mean c = 1'K^-1 y / 1'K^-1 1 maximises the likelihood for given
    theta, so by the envelope theorem its own derivative does not enter the gradient. The priors are normal densities of
    theta around *center*.
    """
    n, d = X.shape
    s2 = float(np.exp(theta[-1]))
    kernel, weigh = KERNELS[profile.kernel].covariance(X, np.exp(theta[:d]), theta[d:-1])
    K = kernel.copy()
    K.flat[:: n + 1] += s2 + v
    factor = dpotrf(K, lower=1, overwrite_a=1)[0]
    inverse = dpotri(factor, lower=1)[0]  # its lower triangle; the upper one stays zero
    inverse += inverse.T
    inverse.flat[:: n + 1] *= 0.5
    weights = inverse.sum(axis=0)
    residual = y - weights @ y / weights.sum()
    alpha = inverse @ residual
    log_likelihood = -0.5 * residual @ alpha - np.log(factor.diagonal()).sum() - 0.5 * n * np.log(2.0 * np.pi)

    noise = 0.5 * s2 * (alpha @ alpha - inverse.trace())
    gradient = np.append(weigh(np.outer(alpha, alpha) - inverse), noise)
    _, scale, *_ = log_priors(d, profile)
    z = (theta - center) / scale
    return float(0.5 * z @ z - log_likelihood), z / scale - gradient


def log_priors(d: int, profile: Profile = SERVING) -> Array:
    """Return location, scale and bounds of the normal priors of the kernel's theta and log s2, ``4 x (t + 1)``."""
    noise = profile.noise
    return np.column_stack([KERNELS[profile.kernel].priors(d), [noise.location, noise.scale, np.log(noise.least), 2.0]])


def fit(
    X: Array,
    y: Array,
    rng: np.random.Generator | None = None,
    v: Array | float = 0.0,
    profile: Profile = SERVING,
) -> Hyperparameters:
    """Return the maximum a posteriori hyperparameters, or with *rng* a draw from about their posterior.

    As a function of theta the log-normal density of exp(theta) is a normal one around its mode. A draw is the optimum
    under priors around centers that were themselves drawn from the priors: what the data determine stays, what they do
    not is as the prior has it (randomize, then optimize: Bardsley et al. 2014, SIAM J. Sci. Comput. 36(4)). The start
    never depends on an earlier fit, so the result is a function of the data alone and a resumed study goes on exactly.
    """
    d = X.shape[1]
    location, scale, *bounds = log_priors(d, profile)
    mode = location - scale**2
    center = mode if rng is None else np.append((location + scale * rng.standard_normal(len(mode)))[:-1], mode[-1])
    targets = (y - y.mean()) / scale_of(y)
    result = minimize(
        negative_log_posterior,
        np.clip(mode, *bounds),
        (X, targets, center, v / scale_of(y) ** 2, profile),
        method="L-BFGS-B",
        jac=True,
        bounds=np.transpose(bounds),
        options={"maxiter": 50},
    )
    evidence = -float(result.fun) - len(y) * np.log(scale_of(y))
    ell, others, s2 = np.exp(result.x[:d]), result.x[d:-1], float(np.exp(result.x[-1]))
    return Hyperparameters(ell, s2, evidence, others, KERNELS[profile.kernel])


def scale_of(y: Array) -> float:
    """Return the standard deviation that standardises y (BoTorch's ``Standardize``: n - 1, and 1 if constant)."""
    spread = float(y.std(ddof=1)) if len(y) > 1 else 0.0
    return spread if spread > 1e-8 else 1.0


class PriorMean(ConstantMean):  # type: ignore[misc]  # GPyTorch is not typed
    """A constant on top of what is known beforehand, which is a column of the inputs."""

    def __init__(self, column: int) -> None:
        super().__init__()
        self.column = column

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the mean at *inputs* (``... x q x D``), ``... x q``."""
        constant: Tensor = super().forward(inputs)
        return constant + inputs[..., self.column]


def process(
    inputs: Array, y: Array, hyperparameters: Hyperparameters, column: int, v: Array | float = 0.0
) -> SingleTaskGP:
    """Return BoTorch's model of *y* (``n``) at *inputs* (``n x D``): ``d`` features first, the prior mean in *column*.

    It is in the units of the targets: the standard deviation of what the mean leaves is the scale of its kernel.
    """
    d, rest = len(hyperparameters.ell), y - inputs[:, column]
    variance = max(scale_of(rest), _LEAST_LEFT * scale_of(y)) ** 2
    noise = torch.as_tensor(np.full(len(y), hyperparameters.s2 * variance) + v)
    mean = PriorMean(column)
    mean.constant = _most_likely_constant(inputs[:, :d], rest, hyperparameters, v / variance)
    # Features may leave [0, 1] a little, and targets are not standardised: both are fine here.
    with settings.validate_input_scaling(False), min_fixed_noise(double_value=_LEAST_VARIANCE):
        model = SingleTaskGP(
            torch.as_tensor(inputs),
            torch.as_tensor(y)[:, None],
            noise[:, None],
            covar_module=hyperparameters.kernel.module(hyperparameters.ell, hyperparameters.others, variance),
            mean_module=mean,
            outcome_transform=None,
        )
    return model.eval()


def predicted(model: ModelListGP, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of all outputs at *inputs* (``n x D``), each ``n x outputs``."""
    with min_variance(double_value=_LEAST_VARIANCE), warnings.catch_warnings():
        # Beside a trial of a function without noise, rounding makes variances negative; GPyTorch raises them.
        warnings.simplefilter("ignore", NumericalWarning)
        found = model.posterior(inputs)
        return found.mean, found.variance.sqrt()


def _most_likely_constant(X: Array, y: Array, hyperparameters: Hyperparameters, v: Array | float) -> float:
    """Return c = 1'K^-1 y / 1'K^-1 1."""
    K = hyperparameters.covariance(X) + (hyperparameters.s2 + v) * np.eye(len(X))
    weights = np.linalg.solve(K, np.ones(len(X)))
    return float(weights @ y / weights.sum())
