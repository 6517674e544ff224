r"""Constrained expected hypervolume improvement, exact and in logarithms, for independent Gaussian predictions.

========  ================================================================  =========
symbol    meaning                                                           shape
========  ================================================================  =========
``mu``    predicted mean loss of each candidate                             ``n x m``
``sigma`` predicted standard deviation                                      ``n x m``
``lower`` lower corners of the cells that tile the non-dominated region     ``k x m``
``upper`` upper corners of those cells                                      ``k x m``
========  ================================================================  =========

Losses are minimised. A candidate at loss y gains from a cell [l, u] the volume prod_j [(u_j - y_j)^+ - (l_j -
y_j)^+], so with independent predictions (Yang et al. 2019, "Efficient computation of expected hypervolume
improvement using box decomposition algorithms", eq. 12)

    EHVI = sum_k prod_j [psi_j(u_kj) - psi_j(l_kj)],     psi_j(a) = E[(a - y_j)^+] = sigma_j h((a - mu_j) / sigma_j),

with h(z) = phi(z) + z Phi(z). All of it is computed in logarithms (Ament et al. 2023, "Unexpected
improvements to expected improvement for Bayesian optimization") because EHVI underflows to zero over most of
the space once the front is good. Outcome constraints multiply EHVI by the probability that they hold (Gardner
et al. 2014). Not modelled: correlation between outputs, and noise in the front itself, which a deterministic
simulation does not have.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, log_ndtr, logsumexp

Array = NDArray[np.float64]

_LOG_SQRT_2PI = 0.5 * np.log(2.0 * np.pi)
_ASYMPTOTIC = -1e6
"""Below it 1 - |z| sqrt(pi/2) erfcx(|z|/sqrt 2) loses all digits; there h(z) = phi(z) / z^2 to 1e-12."""


def log1mexp(x: Array) -> Array:
    """Return log(1 - exp(x)) for x <= 0 without cancellation (Maechler 2012); -inf at 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(x > -np.log(2.0), np.log(-np.expm1(x)), np.log1p(-np.exp(x))))


def log_h(z: Array) -> Array:
    """Return log(phi(z) + z Phi(z)) (Ament et al. 2023, eq. 9), finite down to z = -1e150."""
    near = np.maximum(z, -1.0)
    direct = np.log(np.exp(-0.5 * near**2 - _LOG_SQRT_2PI) + near * np.exp(log_ndtr(near)))
    far = np.clip(z, _ASYMPTOTIC, -1.0)
    ratio = np.log(-far) + 0.5 * np.log(0.5 * np.pi) + np.log(erfcx(-far / np.sqrt(2.0)))
    tail = np.where(z > _ASYMPTOTIC, log1mexp(np.minimum(ratio, 0.0)), -2.0 * np.log(np.maximum(-z, 1.0)))
    return np.asarray(np.where(z > -1.0, direct, -0.5 * z**2 - _LOG_SQRT_2PI + tail))


def nondominated_cells(front: Array, reference: Array) -> tuple[Array, Array]:
    """Tile the region that *front* (``p x m``) does not dominate, up to *reference* (``m``): corners, ``k x m`` each.

    Lower corners may be -inf. Local upper bounds are updated point by point (Klamroth, Lacour and Vanderpooten 2015,
    "On the representation of the search region in multi-objective optimization", algorithm 3) and give one cell each
    (Lacour, Klamroth and Fonseca 2017, "A box decomposition algorithm to compute the hypervolume indicator", eq. 4).
    BoTorch's ``FastNondominatedPartitioning`` is the same; it takes longer than a simulation.
    """
    ranks, levels = _ranks(front, reference)
    m, top = len(reference), len(levels) - 1.0
    bounds = np.full((1, m), top)
    # defining[k, j]: the point of the front that holds bound k in objective j; at first none, level 0 elsewhere.
    defining = np.diag(np.full(m, top))[None]
    for z in ranks:
        hit = np.all(z < bounds, axis=1)
        u, d = bounds[hit], defining[hit]
        children = [(bounds[~hit], defining[~hit])]
        for j in range(m):
            others = np.delete(d[:, :, j], j, axis=1).max(axis=1, initial=0.0)
            valid = z[j] > others
            u_j, d_j = u[valid].copy(), d[valid].copy()
            u_j[:, j], d_j[:, j] = z[j], z
            children.append((u_j, d_j))
        bounds, defining = (np.concatenate(part) for part in zip(*children, strict=True))
    below = np.zeros_like(bounds)
    for j in range(1, m):
        below[:, j] = defining[:, :j, j].max(axis=1)
    lower, upper = (levels[place.astype(int), np.arange(m)] for place in (below, bounds))
    full = (lower < upper).all(axis=1)
    return lower[full], upper[full]


def _ranks(front: Array, reference: Array) -> tuple[Array, Array]:
    """Return the ranks, from 1, of the points within *reference* (``p x m``), and the value of each (``p + 2 x m``).

    The algorithm needs points that differ in every objective, and none after one that it dominates. Deployments tie in
    cost, so ties are broken by place in lexicographic order; the cells between equal values turn out empty.
    """
    inside = front[np.all(front < reference, axis=1)]
    inside = inside[np.lexsort(inside.T[::-1])]
    order = np.argsort(inside, axis=0, kind="stable")
    levels = [np.full((1, len(reference)), -np.inf), np.take_along_axis(inside, order, axis=0), reference[None]]
    return np.argsort(order, axis=0).astype(float) + 1.0, np.concatenate(levels)


def log_ehvi(mu: Array, sigma: Array, lower: Array, upper: Array) -> Array:
    """Return the logarithm of the expected hypervolume improvement of each candidate (``n``)."""
    log_volume, share = np.zeros((len(mu), len(lower))), np.ones((len(mu), len(lower)))
    for j in range(mu.shape[1]):
        corners, index = np.unique(np.concatenate([lower[:, j], upper[:, j]]), return_inverse=True)
        finite = np.where(np.isfinite(corners), corners, 0.0)
        log_psi = np.log(sigma[:, j, None]) + log_h((finite - mu[:, j, None]) / sigma[:, j, None])
        log_psi[:, ~np.isfinite(corners)] = -np.inf
        low, high = log_psi[:, index[: len(lower)]], log_psi[:, index[len(lower) :]]
        log_volume += high
        share *= -np.expm1(np.minimum(low - high, 0.0))  # psi(u) - psi(l) = psi(u) (1 - psi(l) / psi(u))
    return np.asarray(logsumexp(log_volume, axis=1, b=share))


def log_feasibility(mu: Array, sigma: Array) -> Array:
    """Return the log probability (``n``) that all of c independent constraints (``n x c``) are at or below zero."""
    return np.asarray(log_ndtr(-mu / sigma).sum(axis=1))
