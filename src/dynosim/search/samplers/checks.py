"""What the models may have written off too early: one step from the front.

A value that was met only in bad company looks bad, and so may the middle one of an ordered choice whose ends are bad.
The models are sure of both. So neighbours of the front with a value that hardly any feasible trial has are tried, and
once progress rests also others; a search that has not is not settled.
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
_MOST_VALUES = 9
"""Of an ordered parameter with more the models interpolate well: no single value stands for itself."""
_NEGLIGIBLE = 1e-4
"""Expected gains below this share of the hypervolume are no reason for a trial."""


def untried(rows: Rows, front: Array, taken: set[Key]) -> Array:
    """Return the neighbours of the rows of *front* that are not in *taken*, each once."""
    if not len(front):
        return front
    near = rows.neighbours(front)
    places = {name: i for i, name in enumerate(keys(near)) if name not in taken}
    return near[list(places.values())]


def rare(rows: Rows, near: Array, tried: Array, feasible: NDArray[np.bool_], least: int) -> Array:
    """Return the rows of *near* (``q x p``) with a value that fewer than *least* feasible trials have.

    *tried* are the rows of all complete trials (``n x p``), *feasible* says which of them meet every SLO.
    """
    found = np.zeros(len(near), dtype=bool)
    for parameter, column, known in zip(rows.parameters, near.T, tried.T, strict=True):
        if len(parameter.domain.values or ()) > _MOST_VALUES or not parameter.domain.values:
            continue  # any value of a long range is rare
        same = column[:, None] == known
        good, total = (same & feasible).sum(axis=1), same.sum(axis=1)
        found |= ~np.isnan(column) & (good < least) & (total < _LOST_PER_FEASIBLE * least)
    return near[found]


def worthwhile(near: Array, score: Score, posterior: Posterior) -> Array:
    """Return the rows of *near* whose expected gain is not negligible, the highest *score* first."""
    hypervolume = pareto.hypervolume(posterior.front, posterior.reference)
    if not len(near) or not hypervolume:
        return near[:0]
    scores = score(near)
    order = np.argsort(-scores, kind="stable")
    return np.asarray(near[order[scores[order] > np.log(_NEGLIGIBLE * hypervolume)]])


def likely(near: Array, view: View, posterior: Posterior, rng: np.random.Generator) -> Array:
    """Return the rows of *near* by what each would gain in one joint draw of the models, most first; no gain, no row.

    So each is first as often as the models believe it to be best (Thompson 1933), where the largest expectation would
    name the same again and again.
    """
    if not len(near) or not posterior.searchable:
        return near[:0]
    (drawn,), m = posterior.draws(view, 1, rng), len(posterior.objectives)
    holds = (drawn[:, m:] <= 0.0).all(axis=1) & view.possible
    before = pareto.hypervolume(posterior.front, posterior.reference)
    fronts = (np.vstack([posterior.front, losses]) for losses in drawn[:, :m])
    gains = np.array([pareto.hypervolume(front, posterior.reference) - before for front in fronts]) * holds
    order = np.argsort(-gains, kind="stable")
    return np.asarray(near[order[gains[order] > 0.0]])
