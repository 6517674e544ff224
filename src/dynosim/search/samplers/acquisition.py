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

from typing import cast

import numpy as np
from numpy.typing import NDArray

from dynosim.search.samplers.botorch_api import (
    AcquisitionFunction,
    ModelListGP,
    Tensor,
    log_h,
    log_ndtr,
    t_batch_mode_transform,
    torch,
)
from dynosim.search.samplers.model import predicted

Array = NDArray[np.float64]


class LogEHVI(AcquisitionFunction):
    """Log expected hypervolume improvement of a single point, plus the log probability that constraints hold.

    The first ``m`` outputs of the model are losses, all others constraints, met at or below zero.
    """

    def __init__(self, model: ModelListGP, lower: Array, upper: Array) -> None:
        super().__init__(model)
        self.lower, self.upper = torch.as_tensor(lower), torch.as_tensor(upper)

    @t_batch_mode_transform(expected_q=1)  # type: ignore[arg-type]  # it takes methods of any acquisition function
    def forward(self, inputs: Tensor) -> Tensor:
        """Return the value of each of *inputs* (``n x 1 x D``), ``n``."""
        mean, sd = predicted(cast(ModelListGP, self.model), inputs.squeeze(-2))
        m = self.lower.shape[1]
        return log_ehvi(mean[:, :m], sd[:, :m], self.lower, self.upper) + log_ndtr(-mean[:, m:] / sd[:, m:]).sum(-1)


_FAR = 1e100
"""Stands for infinity where the logarithm of psi is computed."""


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


def log_ehvi(mu: Tensor, sigma: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return the logarithm of the expected hypervolume improvement of each candidate (``n``)."""
    log_volume = torch.zeros(len(mu), len(lower), dtype=mu.dtype)
    for j in range(mu.shape[1]):
        corners, index = torch.unique(torch.cat([lower[:, j], upper[:, j]]), return_inverse=True)
        scale = sigma[:, j, None]
        log_psi = scale.log() + log_h((corners.clamp(min=-_FAR) - mu[:, j, None]) / scale)
        log_psi[:, corners == -torch.inf] = -torch.inf
        low, high = log_psi[:, index[: len(lower)]], log_psi[:, index[len(lower) :]]
        # psi(u) - psi(l) = psi(u) (1 - psi(l) / psi(u))
        log_volume += high + torch.log(-torch.expm1((low - high).clamp(max=0.0)))
    return torch.logsumexp(log_volume, dim=1)
