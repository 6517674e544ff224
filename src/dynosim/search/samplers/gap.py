r"""How much of the full frontier is still to be found: the posterior of the hypervolume that there is to reach.

========  ================================================================  =========
symbol    meaning                                                           shape
========  ================================================================  =========
``q``     untried, valid candidates, those with the highest expectations    scalar
``F_s``   the s-th joint draw of all outputs at the candidates              ``q x m``
``V``     hypervolume of what has been found                                scalar
``V_s``   hypervolume of that together with the feasible rows of F_s        scalar
========  ================================================================  =========

The gap is 1 - V / V_s: its mean and its 10 % and 90 % quantiles over the draws, as they are (``benchmarks/gap.py``
holds them against the truth). Expected improvement sees one more trial; this sees all, and candidates that would gain
the same volume count once, because they are drawn together (the maximum-value view of Wang and Jegelka 2017,
"Max-value entropy search for efficient Bayesian optimization", on hypervolume). The draws are of several draws of the
hyperparameters. Not modelled: correlation between outputs, and candidates that no climb has met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dynosim.search import pareto
from dynosim.search.rows import Key, Rows
from dynosim.search.samplers.base import Gap
from dynosim.search.samplers.candidates import ENUMERABLE, Ranking, Score, Valid, pool
from dynosim.search.samplers.encoding import View
from dynosim.search.samplers.surrogate import Posterior

Array = NDArray[np.float64]

CANDIDATES, DRAWS = 300, 16
_POOLS, _CLIMBERS, _ROUNDS = 2, 24, 6
_INTERVAL = (0.1, 0.9)


def estimate(posteriors: Sequence[Posterior], view: View, rng: np.random.Generator) -> Gap:
    """Return the gap between what has been found and what is expected of untried points, or the best of them.

    *posteriors* are of several draws of the hyperparameters; front and reference are those of the first.
    """
    first = posteriors[0]
    found = pareto.hypervolume(first.front, first.reference)
    same = [replace(posterior, front=first.front, reference=first.reference) for posterior in posteriors]
    reached = np.concatenate([_hypervolumes(posterior, view, rng) for posterior in same])
    gaps = 1.0 - found / np.maximum(reached, np.finfo(float).tiny)
    low, high = np.quantile(gaps, _INTERVAL)
    # The mean of draws of which few find anything may lie above their 90 % quantile.
    return Gap(float(np.clip(gaps.mean(), low, high)), float(low), float(high))


def _hypervolumes(posterior: Posterior, view: View, rng: np.random.Generator) -> Array:
    """Return the hypervolume (``DRAWS``) of the front with what each joint draw adds to it."""
    drawn = posterior.draws(view, DRAWS, rng)
    m = len(posterior.objectives)
    feasible = (drawn[:, :, m:] <= 0.0).all(axis=2) & view.possible
    return np.array(
        [
            pareto.hypervolume(np.vstack([posterior.front, losses[ok]]), posterior.reference)
            for losses, ok in zip(drawn[:, :, :m], feasible, strict=True)
        ]
    )


def promising(rows: Rows, score: Score, valid: Valid, front: Array, taken: set[Key], rng: np.random.Generator) -> Array:
    """Return the valid rows outside *taken* with the highest scores that were found (at most ``CANDIDATES x p``)."""
    ranking = Ranking(score, valid, taken)
    if rows.space.size() <= ENUMERABLE:
        ranking.add(rows.all())
        return _table(ranking.best(CANDIDATES), rows)
    for start in (rows.neighbours(front), *(pool(rows, front, rng) for _ in range(_POOLS))):
        ranking.add(start)
    for _ in range(_ROUNDS):
        if climbers := ranking.best(_CLIMBERS):
            ranking.add(rows.neighbours(np.array(climbers)))
    return _table(ranking.best(CANDIDATES), rows)


def _table(found: Sequence[Array], rows: Rows) -> Array:
    return np.array(found).reshape(len(found), len(rows.parameters))
