"""Where the acquisition function is maximised: over concrete, valid, new points instead of a relaxed box.

The pool is random points, mutations and crossovers of the best trials, then hill climbing along the space's
own neighbours. What is known to be infeasible is dropped in order of score, so that only the few points that
could win are ever checked: a check costs more than a score.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dynosim.search.rows import Key, Rows, keys
from dynosim.search.samplers.profile import SERVING

Array = NDArray[np.float64]
Score = Callable[[Array], Array]
"""From rows (``n x p``) to their scores (``n``); minus infinity where a point is known not to work."""
Valid = Callable[[Array], bool]
"""Whether a row (``p``) may work."""

RANDOM, MUTATIONS, CROSSOVERS = 256, 256, 128
CLIMBERS = 6
ENUMERABLE = 1_500
"""A space with no more points than this is scored whole."""


class Ranking:
    """Scored rows, best first; validity is asked only of rows that come first."""

    def __init__(self, score: Score, valid: Valid, taken: set[Key]) -> None:
        self._score, self._valid, self._seen = score, valid, set(taken)
        self._scored: list[tuple[float, int, Array]] = []
        self._known: set[int] = set()

    def add(self, rows: Array) -> None:
        """Score the rows that are new."""
        new = {name: row for name, row in zip(keys(rows), rows, strict=True) if name not in self._seen}
        if not new:
            return
        first = len(self._seen)
        self._seen |= new.keys()
        scores = self._score(np.array(list(new.values())))
        # The serial number breaks ties in the order of proposal, which keeps the search deterministic.
        found = zip(scores.tolist(), new.values(), strict=True)
        self._scored += [(-s, first + i, row) for i, (s, row) in enumerate(found) if s > -np.inf]
        self._scored.sort(key=lambda entry: entry[:2])

    def best(self, count: int) -> list[Array]:
        """Return the *count* valid rows with the highest scores; invalid ones met on the way are forgotten."""
        kept: list[tuple[float, int, Array]] = []
        for position, entry in enumerate(self._scored):
            if len(kept) == count:
                self._scored = kept + self._scored[position:]
                break
            if entry[1] in self._known or self._valid(entry[2]):
                self._known.add(entry[1])
                kept.append(entry)
        else:
            self._scored = kept
        return [entry[2] for entry in kept]


def maximize(
    rows: Rows,
    score: Score,
    valid: Valid,
    parents: Array,
    taken: set[Key],
    rng: np.random.Generator,
    rounds: int = SERVING.rounds,
) -> Array | None:
    """Return the valid row outside *taken* with the highest score found in *rounds* of climbing; None without any."""
    ranking = Ranking(score, valid, taken)
    if rows.space.size() <= ENUMERABLE:
        ranking.add(rows.all())
        return next(iter(ranking.best(1)), None)
    ranking.add(pool(rows, parents, rng))
    climbers = ranking.best(CLIMBERS)
    for _ in range(rounds):
        if not climbers:
            return None
        ranking.add(rows.neighbours(np.array(climbers)))
        higher = ranking.best(CLIMBERS)
        if keys(np.array(higher)) == keys(np.array(climbers)):
            break
        climbers = higher
    return next(iter(climbers), None)


def pool(rows: Rows, parents: Array, rng: np.random.Generator) -> Array:
    """Return random rows, and variations of *parents* (``k x p``)."""
    drawn = rows.sample(RANDOM, rng)
    if not len(parents):
        return drawn
    mutated = rows.mutate(parents[rng.integers(len(parents), size=MUTATIONS)], rng)
    one, other = parents[rng.integers(len(parents), size=(2, CROSSOVERS))]
    return np.vstack([drawn, mutated, rows.cross(one, other, rng)])
