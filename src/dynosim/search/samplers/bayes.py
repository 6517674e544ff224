"""The default sampler: Gaussian processes on log objectives, constrained log expected hypervolume improvement.

It proposes the valid, new point from which the feasible hypervolume, in logarithms of positive objectives, is expected
to grow most; every second proposal doubts the hyperparameters, and every third the models (``checks``). Trials still
running count as if they had returned their predicted mean. Not modelled: correlation between outputs, and noise that
nobody tells: equal seeds mean equal traffic in every trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dynosim.errors import InfeasibleError
from dynosim.rng import stream
from dynosim.search import pareto
from dynosim.search.distributions import PlainSpace, Point
from dynosim.search.rows import Key, Rows, keys
from dynosim.search.samplers.base import Gap, History, PointSampler, draw_valid
from dynosim.search.samplers.candidates import Score, maximize
from dynosim.search.samplers.checks import likely, rare, untried, worthwhile
from dynosim.search.samplers.design import believed_front, space_filling
from dynosim.search.samplers.encoding import Featurizer
from dynosim.search.samplers.profile import PLAIN, SERVING, Profile
from dynosim.space import SearchSpace

if TYPE_CHECKING:
    from dynosim.search.samplers.surrogate import Posterior, Surrogate

Array = NDArray[np.float64]

STARTUP = 5
"""Trials of the design, the baseline among them."""
_DRAWS = 32
"""Valid points among which the design takes the one farthest from all trials."""
_PARENTS = 24
_DRAW_EVERY, _DRAWS_KEPT = 2, 4
"""Every second proposal takes one of a few draws of the hyperparameters instead of the most probable ones, which are
overconfident about parameters that few trials have varied: the search would settle beside, say, a routing policy that
it has met only in bad company (docs/sampler.md has the measurement)."""
_MOST_CELLS = 4_000
"""Fronts of five objectives have cells by the ten thousand, and memory and time go with them."""
_CHECK_EVERY, _PATIENCE, _RARE = 3, 4, 3
"""Every third proposal tries a neighbour of the front with a value that no feasible trial has yet, or, once the
hypervolume has rested for some trials, fewer than ``_RARE`` (``checks``)."""
_WIDER_PER_UNTRIED, _WIDEST = 0.02, 1.5
"""By how much each such neighbour that is left widens the upper end of the gap, and to how many times at most."""


@dataclass(eq=False)
class _Scene:
    """One space as the sampler sees it, and what it remembers of it."""

    space: SearchSpace
    rows: Rows
    featurizer: Featurizer
    bounds: Sequence[float | None]
    scouts: Array
    valid: dict[Key, bool]
    profile: Profile

    @classmethod
    def of(cls, space: SearchSpace, bounds: Sequence[float | None], profile: Profile) -> _Scene:
        rows = Rows(space)
        featurizer = Featurizer(rows, serving=not isinstance(space, PlainSpace))
        rng = stream(0, "scouts")
        scouts: list[Point] = []
        with suppress(InfeasibleError):  # where hardly any point is valid, fewer do
            while len(scouts) < profile.scouts:
                scouts.append(draw_valid(space, rng, set()))
        seen = rows.of(scouts or [space.sample(rng)])
        return cls(space, rows, featurizer, bounds, seen, {}, profile)

    @cached_property
    def surrogate(self) -> Surrogate:
        """The models, made when they are first needed: torch takes seconds to import, while the first trials run."""
        from dynosim.search.samplers.surrogate import Surrogate

        return Surrogate(self.rows, self.featurizer, self.bounds, self.scouts, self.profile)

    def may_work(self, row: Array) -> bool:
        """Return whether nothing known speaks against a row."""
        (name,) = keys(row[None])
        if name not in self.valid:
            self.valid[name] = self.space.infeasible_reason(self.rows.point(row)) is None
        return self.valid[name]


class BayesSampler(PointSampler):
    """Constrained Bayesian search for the Pareto front of a mixed, conditional space.

    *bounds* are the objectives' SLOs in their own units, None where there is none: they make the reference
    point. BoTorch's qLogNEHVI takes the place of the exact acquisition where trials tell how noisy they are, and always
    if the search is said to be *noisy*.
    """

    def __init__(
        self,
        space: SearchSpace | None = None,
        *,
        seed: int = 0,
        startup: int = STARTUP,
        bounds: Sequence[float | None] = (),
        noisy: bool = False,
    ) -> None:
        super().__init__(space, seed=seed)
        self._startup, self._bounds, self._noisy = startup, bounds, noisy
        self._warm_starts: list[Point] = []
        self._believed: list[Point] | None = None
        self._own = None if space is None else _Scene.of(space, bounds, SERVING)
        self._plain: _Scene | None = None

    def learn_from(self, earlier: History) -> None:
        """Start from what an earlier study found at points of this sampler's space (``warm.history_of``)."""
        if self._own is not None and len(earlier.points) > 1:
            self._own.surrogate.learn_from(earlier)
            self._warm_starts += [earlier.points[i] for i in _front(earlier)]

    def propose(self, space: SearchSpace, history: History, rng: np.random.Generator) -> Point:
        """Return the point with the highest acquisition value; early on, the one farthest from all others."""
        scene = self._scene(space)
        # These matrices are small: a second thread makes BLAS and torch slower, and takes a core from simulations.
        with threadpool_limits(1):
            tried = scene.rows.of([*history.points, *history.failed, *history.pending])
            taken = set(keys(tried))
            if len(taken) < self._startup or not history.runs.any():
                return self._design(scene, tried, history, rng)
            doubt = scene.profile.doubt
            draw = 0 if len(taken) % _DRAW_EVERY or not doubt else 1 + len(taken) // _DRAW_EVERY % _DRAWS_KEPT
            posterior = scene.surrogate(history, draw)
            score = self.score(scene.featurizer, posterior)
            if doubt and len(taken) % _CHECK_EVERY == 0:
                near = _worth_checking(scene, history, posterior, score, rng)
                if (first := next(filter(scene.may_work, near), None)) is not None:
                    return scene.rows.point(first)
            parents = scene.rows.of(_parents(history, rng))
            found = maximize(scene.rows, score, scene.may_work, parents, taken, rng, scene.profile.rounds)
        return draw_valid(space, rng, history.taken) if found is None else scene.rows.point(found)

    def gap(self, history: History) -> Gap | None:
        """Return how much of the full frontier is believed to be missing; None while nothing is feasible.

        It depends on the finished trials alone: what is still running has not been found.
        """
        scene = self._own
        if scene is None or not history.feasible.any():
            return None
        if (np.ptp(history.values[history.feasible], axis=0) == 0.0).any():
            why = "an objective does not vary" if history.feasible.sum() > 1 else "one trial is feasible"
            return Gap(np.nan, np.nan, np.nan, unknown=why)
        from dynosim.search.samplers.gap import estimate, promising

        rng = stream(self._seed, f"gap after {len(history.points)}")
        finished = replace(history, pending=[])
        taken = set(keys(scene.rows.of([*history.points, *history.failed])))
        front = scene.rows.of(_parents(history, rng))
        with threadpool_limits(1):
            posteriors = [scene.surrogate(finished, draw) for draw in range(_DRAWS_KEPT + 1)]
            scores = [self.score(scene.featurizer, posterior) for posterior in posteriors]
            near = _neighbours(scene, finished)
            pairs = zip(posteriors, scores, strict=True)
            seldom = np.vstack([_rare(scene, finished, near, posterior, score, _RARE) for posterior, score in pairs])
            left = list(filter(scene.may_work, dict(zip(keys(seldom), seldom, strict=True)).values()))
            rows = promising(scene.rows, scores[0], scene.may_work, front, taken, rng)
            rows = np.vstack([rows, *(row[None] for row in left)])
            if not len(rows):
                return Gap(0.0, 0.0, 0.0)
            found = estimate(posteriors, scene.featurizer(rows), rng)
            high = min(found.high * min(1.0 + _WIDER_PER_UNTRIED * len(left), _WIDEST), 1.0)
            return replace(found, high=high, untried=len(left))

    def priors(self, history: History) -> dict[str, str]:
        """Return output -> what became of prior knowledge of it; empty while nothing could be run."""
        if self._own is None or not history.runs.any():
            return {}
        with threadpool_limits(1):
            return self._own.surrogate(replace(history, pending=[])).priors()

    def _scene(self, space: SearchSpace) -> _Scene:
        """Return what is remembered of the space, or of what all trials of a plain study have in common so far."""
        if self._own is not None:
            return self._own
        if self._plain is None or self._plain.space != space:
            self._plain = _Scene.of(space, self._bounds, PLAIN)
        return self._plain

    def _design(self, scene: _Scene, tried: Array, history: History, rng: np.random.Generator) -> Point:
        """Return the next of the first trials: of the front of earlier studies, or what is believed to be the front."""
        if self._believed is None:
            count = self._startup - 1
            found = believed_front(scene.rows, scene.featurizer, scene.may_work, history, self._bounds, count)
            self._believed = [scene.rows.point(row) for row in found]
        warm = self._fresh(scene, tried, self._warm_starts)
        if not warm and (believed := self._fresh(scene, tried, self._believed)):
            return believed[0]
        drawn = warm or [draw_valid(scene.space, rng, history.taken) for _ in range(_DRAWS)]
        others = scene.featurizer(tried).X if len(tried) else np.zeros((0, 0))
        return drawn[space_filling(scene.featurizer(scene.rows.of(drawn)).X, others)]

    def _fresh(self, scene: _Scene, tried: Array, points: list[Point]) -> list[Point]:
        """Return those of *points* that have not been tried and may work here."""
        rows, taken = scene.rows.of(points), set(keys(tried))
        return [
            point
            for point, row, name in zip(points, rows, keys(rows), strict=True)
            if name not in taken and scene.may_work(row)
        ]

    def score(self, featurizer: Featurizer, posterior: Posterior) -> Score:
        """Return the acquisition function of rows: log EHVI plus log probability of feasibility."""
        if not posterior.searchable:
            return lambda rows: posterior.log_admissibility(*posterior.predict(featurizer(rows)))
        from dynosim.search.samplers.acquisition import LogEHVI
        from dynosim.search.samplers.botorch_api import torch
        from dynosim.search.samplers.qlognehvi import noisy

        acquisition = LogEHVI(posterior.model, *_cells(posterior.front, posterior.reference))

        def score(rows: Array) -> Array:
            view = featurizer(rows)
            with torch.no_grad():
                values = acquisition(posterior.inputs(view)[:, None, :]).numpy()
            return np.where(view.possible, values, -np.inf)

        # Of one objective BoTorch has no hypervolume.
        if len(posterior.objectives) > 1 and (posterior.noisy or self._noisy):
            return noisy(score, featurizer, posterior)
        return score


def _worth_checking(
    scene: _Scene, history: History, posterior: Posterior, score: Score, rng: np.random.Generator
) -> Array:
    """Return neighbours of the front to try, best first: those with rare values, or once progress rests any."""
    near, rests = _neighbours(scene, history), posterior.idle >= _PATIENCE
    found = _rare(scene, history, near, posterior, score, _RARE if rests else 1)
    return likely(near, scene.featurizer(near), posterior, rng) if rests and not len(found) else found


def _neighbours(scene: _Scene, history: History) -> Array:
    """Return the untried neighbours of the front, ``q x p``."""
    tried = scene.rows.of([*history.points, *history.failed, *history.pending])
    return untried(scene.rows, tried[_front(history)], set(keys(tried)))


def _rare(scene: _Scene, history: History, near: Array, posterior: Posterior, score: Score, least: int) -> Array:
    """Return the rows of *near* that are worth a trial: fewer than *least* feasible ones have a value of theirs."""
    return worthwhile(rare(scene.rows, near, scene.rows.of(history.points), history.feasible, least), score, posterior)


def _cells(front: Array, reference: Array) -> tuple[Array, Array]:
    """Return the cells of the front, thinned until there are few enough to score a thousand candidates with."""
    from dynosim.search.samplers.acquisition import nondominated_cells

    lower, upper = nondominated_cells(front, reference)
    return (lower, upper) if len(lower) <= _MOST_CELLS else _cells(front[::2], reference)


def _front(history: History) -> NDArray[np.int_]:
    """Return the positions of the feasible trials that no other dominates."""
    feasible = np.flatnonzero(history.feasible)
    losses = pareto.losses(history.values[feasible], history.directions)
    return feasible[pareto.nondominated(losses)]


def _parents(history: History, rng: np.random.Generator) -> list[Point]:
    """Return the trials worth varying: the feasible front, or those closest to being feasible."""
    chosen = _front(history)
    if not len(chosen):
        violation = np.sum([np.maximum(np.nan_to_num(v), 0.0) for v in history.constraints.values()], axis=0)
        chosen = np.lexsort([violation, ~history.runs])[:5]
    return [history.points[i] for i in rng.permutation(chosen)[:_PARENTS]]
