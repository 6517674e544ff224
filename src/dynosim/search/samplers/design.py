"""The first trials: what closed forms believe to be the front, or else points that lie far from each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dynosim.rng import stream
from dynosim.search import pareto
from dynosim.search.rows import Rows
from dynosim.search.samplers.base import History
from dynosim.search.samplers.candidates import Valid
from dynosim.search.samplers.encoding import Featurizer, View
from dynosim.search.samplers.profile import floor, logarithms

Array = NDArray[np.float64]

_SURVEYED = 2_048
_HEADROOM = 0.33
"""Of an SLO that must be left by an estimate: routing and tails, which closed forms do not know, take about as much."""


def space_filling(encoded: Array, centers: Array) -> int:
    """Return the row of *encoded* (``n x d``) farthest from its nearest center (``c x d``): a greedy maximin design."""
    if len(centers) == 0:
        return 0
    squared = ((encoded[:, None, :] - centers[None, :, :]) ** 2).sum(axis=2)
    return int(np.argmax(squared.min(axis=1)))


def believed_front(
    rows: Rows,
    featurizer: Featurizer,
    valid: Valid,
    history: History,
    bounds: Sequence[float | None],
    count: int,
) -> Array:
    """Return up to *count* valid rows (``k x p``) that together gain the most hypervolume if the estimates are right.

    They are the same for all seeds: what is known beforehand is. Empty where some objective has no estimate.
    """
    surveyed = rows.sample(_SURVEYED, stream(0, "survey"))
    losses = _believed_losses(featurizer(surveyed), history)
    known = np.flatnonzero(np.isfinite(losses).all(axis=1))
    candidates = known[pareto.nondominated(losses[known])].tolist()
    given = bounds or [None] * losses.shape[1]
    limits = [np.nan if x is None else _loss(np.array([x]), history.sign(j))[0] for j, x in enumerate(given)]
    reference = pareto.reference_point(losses[known] + 0.1, np.array(limits))
    chosen: list[int] = []
    while candidates and len(chosen) < count:
        best = max(candidates, key=lambda i: pareto.hypervolume(losses[[*chosen, i]], reference))
        candidates.remove(best)
        if valid(surveyed[best]):
            chosen.append(best)
    return surveyed[chosen]


def _believed_losses(view: View, history: History) -> Array:
    """Return the estimated losses (``n x m``), NaN where unknown, impossible or close to missing an SLO."""
    estimates = [np.full(len(view.X), np.nan) if x is None else x for x in view.prior.objectives]
    if not estimates:
        return np.full((len(view.X), len(history.directions)), np.nan)
    losses = np.column_stack([_loss(x, history.sign(j)) for j, x in enumerate(estimates)])
    missed = [np.nan_to_num(violation, nan=-1.0) > -_HEADROOM for violation in view.prior.violations.values()]
    losses[~view.possible | np.logical_or.reduce([np.zeros(len(view.X), bool), *missed])] = np.nan
    return losses


def _loss(values: Array, sign: float) -> Array:
    """Return losses, in logarithms where no value is negative."""
    return sign * logarithms(values, floor(values))
