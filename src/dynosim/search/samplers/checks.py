"""What the models may have written off too early: one step from the front, with a value that hardly any trial has.

A value that was met only in bad company looks bad, and so may the middle one of an ordered choice whose ends are bad.
The models are sure of both. So such neighbours of the front are tried, and a search that has not is not settled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dynosim.search import pareto
from dynosim.search.rows import Key, Rows, keys
from dynosim.search.samplers.candidates import Score
from dynosim.search.samplers.encoding import View

if TYPE_CHECKING:
    from dynosim.search.samplers.surrogate import Posterior

Array = NDArray[np.float64]

_LOST_PER_FEASIBLE = 4
"""A value is given up after this many trials for each feasible one that it was to have."""
_NEGLIGIBLE = 1e-4
"""Expected gains below this share of the hypervolume are no reason for a trial."""


def unchecked(
    rows: Rows, tried: Array, feasible: NDArray[np.bool_], front: Array, taken: set[Key], least: int
) -> Array:
    """Return the untried neighbours of *front* (``k x p``) with a value that fewer than *least* feasible trials have.

    *tried* are the rows of all complete trials (``n x p``), *feasible* says which of them meet every SLO.
    """
    if not len(front):
        return front
    near = rows.neighbours(front)
    names = keys(near)
    near = near[[i for name, i in dict(zip(names, range(len(near)), strict=True)).items() if name not in taken]]
    found = np.zeros(len(near), dtype=bool)
    for column, known in zip(near.T, tried.T, strict=True):
        same = column[:, None] == known
        good, total = (same & feasible).sum(axis=1), same.sum(axis=1)
        found |= ~np.isnan(column) & (good < least) & (total < _LOST_PER_FEASIBLE * least)
    return near[found]


def worthwhile(near: Array, score: Score, hypervolume: float) -> Array:
    """Return the rows of *near* (``k x p``) whose expected gain by *score* is not negligible."""
    return near[score(near) > np.log(_NEGLIGIBLE * hypervolume)] if len(near) and hypervolume > 0.0 else near[:0]


def likely(near: Array, view: View, posterior: Posterior, rng: np.random.Generator) -> Array:
    """Return the rows of *near* (``q x p``) by what each would gain in one joint draw of the models, most first.

    So each is first as often as the models believe it to be best (Thompson 1933): the draw is of the function, not of one
    point, which the largest expectation would be for every proposal. Without those that would gain nothing.
    """
    (drawn,), m = posterior.draws(view, 1, rng), len(posterior.objectives)
    holds = (drawn[:, m:] <= 0.0).all(axis=1) & view.possible
    before = pareto.hypervolume(posterior.front, posterior.reference)
    gains = np.array(
        [
            pareto.hypervolume(np.vstack([posterior.front, losses]), posterior.reference) - before if ok else 0.0
            for losses, ok in zip(drawn[:, :m], holds, strict=True)
        ]
    )
    order = np.argsort(-gains, kind="stable")
    return near[order[gains[order] > 0.0]]
