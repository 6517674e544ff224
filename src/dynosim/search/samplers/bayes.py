"""The default sampler: Gaussian processes on log objectives, constrained log expected hypervolume improvement.

One exact Gaussian process per objective and per constraint, one more for "it runs" once some trial did not.
Positive objectives are modelled in logarithms (latencies explode at saturation); the improvement is of the
hypervolume in the same logarithms, and of feasible trials only. Trials still running count as if they had
returned their predicted mean. Not modelled: correlation between outputs, and noise, because equal seeds mean
equal traffic in every trial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dynosim.search import pareto
from dynosim.search.distributions import Point
from dynosim.search.features import ServingFeatures
from dynosim.search.samplers.acquisition import log_ehvi, log_feasibility, nondominated_cells
from dynosim.search.samplers.base import History, PointSampler, draw_valid
from dynosim.search.samplers.candidates import Score, maximize, space_filling
from dynosim.search.samplers.encoding import Encoder
from dynosim.search.samplers.model import GP, Hyperparameters, fit
from dynosim.space import SearchSpace

Array = NDArray[np.float64]

STARTUP = 10
"""Trials of the space-filling design, the baseline among them."""
_DRAWS = 32
"""Valid points among which the design takes the one farthest from all trials."""
_PARENTS = 24
_WORST_VIOLATION = 1e4
"""An SLO whose metric has no value at all is violated infinitely; beyond this it makes no difference."""
_DOUBT_EVERY, _DOUBT = 5, 8.0
"""Every fifth proposal trusts the objectives' models less. Maximum a posteriori lengthscales are overconfident about
parameters that few trials have varied: the search would settle beside, say, a routing policy it has met only in bad
company (docs/search.md has the measurement)."""
_MARGIN = 0.1
"""The reference of an objective without an SLO lies this share of the feasible range beyond the worst feasible loss
(the share that Ishibuchi et al. 2011 found robust), so that the ends of the front count too."""


@dataclass(frozen=True, eq=False)
class Belief:
    """What the models say after all trials so far, the running ones counted as predicted."""

    objectives: list[GP]
    constraints: list[GP]
    front: Array
    """Feasible non-dominated losses, ``p x m``, with the predicted ones of running trials."""
    reference: Array
    """``m``; NaN while nothing is feasible and no SLO bounds an objective."""
    doubt: float = 1.0
    """Factor on the standard deviations of the objectives."""

    def predict(self, X: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation of the losses at X (``q x d``), each ``q x m``."""
        mean, sd = _stack(self.objectives, X)
        return mean, self.doubt * sd

    def log_feasibility(self, X: Array) -> Array:
        """Return the log probability that all constraints hold at X (``q x d``), ``q``."""
        return log_feasibility(*_stack(self.constraints, X)) if self.constraints else np.zeros(len(X))


def _stack(models: list[GP], X: Array) -> tuple[Array, Array]:
    columns = [model.posterior(X) for model in models]
    return np.column_stack([mean for mean, _ in columns]), np.column_stack([sd for _, sd in columns])


class BayesSampler(PointSampler):
    """Constrained Bayesian search for the Pareto front of a mixed, conditional space.

    *bounds* are the objectives' SLOs in their own units, None where there is none: they make the reference
    point.
    """

    def __init__(
        self,
        space: SearchSpace | None = None,
        *,
        seed: int = 0,
        startup: int = STARTUP,
        bounds: Sequence[float | None] | None = None,
    ) -> None:
        super().__init__(space, seed=seed)
        self._startup, self._bounds = startup, bounds
        self._encoder = Encoder(space, ServingFeatures(space)) if space is not None else None
        self._fits: dict[str, tuple[bytes, Hyperparameters]] = {}

    def propose(self, space: SearchSpace, history: History, rng: np.random.Generator) -> Point:
        """Return the point with the highest acquisition value; early on, the one farthest from all others."""
        encoder = self._encoder or Encoder(space)
        # These matrices are small: a second thread makes BLAS and torch slower, and takes a core from simulations.
        with threadpool_limits(1):
            if len(history.taken) < self._startup or not np.isfinite(history.values).all(axis=1).any():
                return _design(space, encoder, history, rng)
            belief = self.belief(encoder, history)
            if len(history.taken) % _DOUBT_EVERY == 0:
                belief = replace(belief, doubt=_DOUBT)
            best = maximize(space, self.score(encoder, belief), _parents(history, rng), history.taken, rng)
        return best or draw_valid(space, rng, history.taken)

    def score(self, encoder: Encoder, belief: Belief) -> Score:
        """Return the acquisition function of points: log EHVI plus log probability of feasibility."""
        if np.isnan(belief.reference).any():
            return lambda points: belief.log_feasibility(encoder(points))
        lower, upper = nondominated_cells(belief.front, belief.reference)

        def acquisition(points: Sequence[Point]) -> Array:
            X = encoder(points)
            return log_ehvi(*belief.predict(X), lower, upper) + belief.log_feasibility(X)

        return acquisition

    def belief(self, encoder: Encoder, history: History) -> Belief:
        """Return the models of a history with at least one trial that ran."""
        ran = np.isfinite(history.values).all(axis=1)
        scales = [np.log if (column[ran] > 0.0).all() else _identity for column in history.values.T]
        losses = self._losses(history.values, history, scales)
        best = losses[history.feasible]
        reference = self._reference(best, history, scales)
        losses = _calm(losses, best, reference)
        outputs = {f"objective {j}": np.where(ran, losses[:, j], np.nan) for j in range(losses.shape[1])}
        violations = {name: np.where(ran, _bounded(v), np.nan) for name, v in history.constraints.items()}
        X = encoder(history.points)
        objectives = [self._model(name, X, y) for name, y in outputs.items()]
        constraints = [self._model(name, X, y) for name, y in violations.items() if _varies(y)]
        if not ran.all() or history.failed:
            points = history.points + history.failed
            runs = np.append(np.where(ran, -1.0, 1.0), np.ones(len(history.failed)))
            constraints.append(self._model("runs", encoder(points), runs))
        if history.pending:
            P = encoder(history.pending)
            hopeful = log_feasibility(*_stack(constraints, P)) > np.log(0.5) if constraints else slice(None)
            best = np.vstack([best, _stack(objectives, P)[0][hopeful]])
            objectives, constraints = ([gp.condition_on_mean(P) for gp in gps] for gps in (objectives, constraints))
        return Belief(objectives, constraints, best[pareto.nondominated(best)], reference)

    def _losses(self, values: Array, history: History, scales: Sequence[Callable[[Array], Array]]) -> Array:
        """Return values (``n x m``) as losses on the scales that they are modelled in."""
        with np.errstate(invalid="ignore", divide="ignore"):
            scaled = np.column_stack([scale(column) for scale, column in zip(scales, values.T, strict=True)])
        return pareto.losses(scaled, history.directions)

    def _reference(self, feasible: Array, history: History, scales: Sequence[Callable[[Array], Array]]) -> Array:
        bounds = np.array([[np.nan if b is None else b for b in self._bounds or [None] * feasible.shape[1]]])
        limits = self._losses(bounds, history, scales)[0]
        margin = _MARGIN * np.maximum(np.ptp(feasible, axis=0), 1e-3) if len(feasible) else 0.0
        return pareto.reference_point(feasible + margin, limits)

    def _model(self, name: str, X: Array, y: Array) -> GP:
        """Return the process of one output (``n``, NaN where unknown); hyperparameters are refitted as data grows.

        They are fitted to the first trials only, up to a scheduled number: every trial up to 25, every second
        up to 50, and so on. So they depend on the trials alone, not on when this process started.
        """
        known = np.isfinite(y)
        X, y = X[known], y[known]
        size = len(y) - len(y) % (1 + len(y) // 25)
        data = X[:size].tobytes() + y[:size].tobytes()
        if name not in self._fits or self._fits[name][0] != data:
            self._fits[name] = (data, fit(X[:size], y[:size]))
        return GP(X, y, self._fits[name][1])


def _identity(column: Array) -> Array:
    return column


def _varies(y: Array) -> bool:
    """Whether there is something to learn: an SLO that every trial meets alike needs no model."""
    return len(np.unique(y[np.isfinite(y)])) > 1


def _calm(losses: Array, feasible: Array, reference: Array) -> Array:
    """Return losses (``n x m``) with what lies beyond the reference compressed: excess e becomes w log(1 + e / w).

    No hypervolume lies there, but one saturated trial, a thousand times slower than the rest, would set the scale of
    the model and make the differences along the frontier look like nothing. w is half the range that counts.
    """
    if not len(feasible):
        return losses
    width = 0.5 * np.maximum(reference - feasible.min(axis=0), 1e-3)
    excess = np.maximum(losses - reference, 0.0)
    return np.asarray(np.minimum(losses, reference) + width * np.log1p(excess / width))


def _bounded(violation: Array) -> Array:
    """Compress violations, which explode at saturation, into [-1, 1): v / (1 + v) above 0, and themselves below."""
    broken = np.clip(violation, 0.0, _WORST_VIOLATION)
    return np.asarray(np.where(violation > 0.0, broken / (1.0 + broken), np.maximum(violation, -1.0)))


def _design(space: SearchSpace, encoder: Encoder, history: History, rng: np.random.Generator) -> Point:
    taken = history.taken
    drawn = [draw_valid(space, rng, taken) for _ in range(_DRAWS)]
    others = [*history.points, *history.failed, *history.pending]
    return drawn[space_filling(encoder(drawn), encoder(others) if others else np.zeros((0, 0)))]


def _parents(history: History, rng: np.random.Generator) -> list[Point]:
    """Return the trials worth varying: the feasible front, or those closest to being feasible."""
    feasible = np.flatnonzero(history.feasible)
    if len(feasible):
        losses = pareto.losses(history.values[feasible], history.directions)
        chosen = feasible[pareto.nondominated(losses)]
    else:
        violation = np.sum([np.maximum(np.nan_to_num(v), 0.0) for v in history.constraints.values()], axis=0)
        chosen = np.argsort(violation, kind="stable")[:5]
    return [history.points[i] for i in rng.permutation(chosen)[:_PARENTS]]
