"""Where the acquisition function is maximised: over concrete, valid, new points instead of a relaxed box.

The pool is random points, mutations and crossovers of the best trials, then hill climbing along the space's
own neighbours. What is known to be infeasible is dropped in order of score, so that only the few points that
could win are ever checked: a check costs more than a score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from dynosim.search.distributions import Key, Point, key
from dynosim.space import SearchSpace

Array = NDArray[np.float64]
Score = Callable[[Sequence[Point]], Array]

RANDOM, MUTATIONS, CROSSOVERS = 256, 256, 128
CLIMBERS, ROUNDS = 6, 5
ENUMERABLE = 1_500
"""A space of at most so many points is scored whole."""


def maximize(
    space: SearchSpace, score: Score, parents: Sequence[Point], taken: set[Key], rng: np.random.Generator
) -> Point | None:
    """Return the valid point outside *taken* with the highest score that was found; None if there was none."""
    if space.size() <= ENUMERABLE:
        ranking = _Ranking(space, score, taken)
        ranking.add(space.points())
        return next(iter(ranking.best(1)), None)
    ranking = _Ranking(space, score, taken)
    ranking.add(_pool(space, parents, rng))
    climbers = ranking.best(CLIMBERS)
    for _ in range(ROUNDS):
        ranking.add(near for climber in climbers for near in space.neighbours(climber))
        higher = ranking.best(CLIMBERS)
        if [key(point) for point in higher] == [key(point) for point in climbers]:
            break
        climbers = higher
    return next(iter(climbers), None)


class _Ranking:
    """Scored points, best first; validity is asked only of points that come first."""

    def __init__(self, space: SearchSpace, score: Score, taken: set[Key]) -> None:
        self._space, self._score = space, score
        self._seen = set(taken)
        self._scored: list[tuple[float, int, Point]] = []
        self._valid: set[int] = set()

    def add(self, points: Iterable[Point]) -> None:
        """Score the points that are new."""
        new = {k: point for point in points if (k := key(point)) not in self._seen}
        if not new:
            return
        first = len(self._seen)
        self._seen |= new.keys()
        scores = self._score(list(new.values()))
        # The serial number breaks ties in the order of proposal, which keeps the search deterministic.
        self._scored += [(-float(s), first + i, p) for i, (s, p) in enumerate(zip(scores, new.values(), strict=True))]
        self._scored.sort(key=lambda entry: entry[:2])

    def best(self, count: int) -> list[Point]:
        """Return the *count* valid points with the highest scores; invalid ones met on the way are forgotten."""
        kept: list[tuple[float, int, Point]] = []
        for position, entry in enumerate(self._scored):
            if len(kept) == count:
                self._scored = kept + self._scored[position:]
                break
            if entry[1] in self._valid or self._space.infeasible_reason(entry[2]) is None:
                self._valid.add(entry[1])
                kept.append(entry)
        else:
            self._scored = kept
        return [entry[2] for entry in kept]


def _pool(space: SearchSpace, parents: Sequence[Point], rng: np.random.Generator) -> list[Point]:
    pool = [space.sample(rng) for _ in range(RANDOM)]
    if parents:
        pool += [_mutate(space, parents[i], rng) for i in rng.integers(len(parents), size=MUTATIONS).tolist()]
        pairs = rng.integers(len(parents), size=(CROSSOVERS, 2)).tolist()
        pool += [_cross(space, parents[i], parents[j], rng) for i, j in pairs if i != j]
    return pool


def _mutate(space: SearchSpace, parent: Point, rng: np.random.Generator) -> Point:
    """Redraw or move one to four parameters of a point, few more often than many."""
    active = space.active(parent)
    chosen = rng.permutation(len(active))[: min(int(rng.geometric(0.5)), 4)]
    values = dict(parent)
    for parameter in (active[i] for i in chosen):
        near = parameter.domain.neighbours(parent[parameter.path])
        step = near and rng.random() < 0.5
        values[parameter.path] = near[rng.integers(len(near))] if step else parameter.domain.sample(rng)
    return space.complete(values)


def _cross(space: SearchSpace, one: Point, other: Point, rng: np.random.Generator) -> Point:
    """Take each parameter from either point."""
    return space.complete({**one, **{path: value for path, value in other.items() if rng.random() < 0.5}})


def space_filling(encoded: Array, centers: Array) -> int:
    """Return the row of *encoded* (``n x d``) farthest from its nearest center (``c x d``): a greedy maximin design."""
    if len(centers) == 0:
        return 0
    squared = ((encoded[:, None, :] - centers[None, :, :]) ** 2).sum(axis=2)
    return int(np.argmax(squared.min(axis=1)))
