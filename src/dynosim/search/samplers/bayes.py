"""The default sampler: Gaussian processes on log objectives, constrained log expected hypervolume improvement.

One exact Gaussian process per objective and per constraint, one more for "it runs" once some trial did not.
Positive objectives are modelled in logarithms (latencies explode at saturation); the improvement is of the
hypervolume in the same logarithms, and of feasible trials only. Where a closed-form estimate of an output exists and the
data speak for it, the process models what the estimate leaves unexplained. Trials still running count as if they had
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
from dynosim.search.distributions import PlainSpace, Point
from dynosim.search.rows import Key, Rows, keys
from dynosim.search.samplers.acquisition import log_ehvi, log_feasibility, nondominated_cells
from dynosim.search.samplers.base import History, PointSampler, draw_valid
from dynosim.search.samplers.candidates import Score, maximize, space_filling
from dynosim.search.samplers.encoding import Lens, View
from dynosim.search.samplers.model import GP, Hyperparameters, fit
from dynosim.space import SearchSpace

Array = NDArray[np.float64]
Scale = Callable[[Array], Array]
Mean = Callable[[View], Array | None]

STARTUP = 5
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
_REFIT, _RECONSIDER = 1.08, 1.3
"""Growth of the data after which hyperparameters are fitted again, and after which a prior is put to the test again."""
_MARGIN = 0.1
"""The reference of an objective without an SLO lies this share of the feasible range beyond the worst feasible loss
(the share that Ishibuchi et al. 2011 found robust), so that the ends of the front count too."""


@dataclass(frozen=True, eq=False)
class Output:
    """One modelled quantity: a process on top of a mean."""

    name: str
    gp: GP
    mean: Mean | None
    """The prior on the scale of the model; None where the data speak against it."""

    def posterior(self, view: View) -> tuple[Array, Array]:
        """Return mean and standard deviation at the rows of *view*, each ``n``."""
        mean, sd = self.gp.posterior(view.X)
        return (mean if self.mean is None else mean + self.mean(view)), sd


@dataclass(frozen=True, eq=False)
class Belief:
    """What the models say after all trials so far, the running ones counted as predicted."""

    objectives: list[Output]
    constraints: list[Output]
    front: Array
    """Feasible non-dominated losses, ``p x m``, with the predicted ones of running trials."""
    reference: Array
    """``m``; NaN while nothing is feasible and no SLO bounds an objective."""
    doubt: float = 1.0
    """Factor on the standard deviations of the objectives."""

    def predict(self, view: View) -> tuple[Array, Array]:
        """Return mean and standard deviation of the losses, each ``n x m``."""
        mean, sd = _stack(self.objectives, view)
        return mean, self.doubt * sd

    def log_feasibility(self, view: View) -> Array:
        """Return the log probability that all constraints hold, ``n``."""
        return log_feasibility(*_stack(self.constraints, view)) if self.constraints else np.zeros(len(view.X))


def _stack(models: list[Output], view: View) -> tuple[Array, Array]:
    columns = [model.posterior(view) for model in models]
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
        startup: int | None = None,
        bounds: Sequence[float | None] | None = None,
    ) -> None:
        super().__init__(space, seed=seed)
        self._startup, self._bounds = startup or STARTUP, bounds
        self._rows = Rows(space) if space is not None else None
        self._lens = Lens(self._rows, not isinstance(space, PlainSpace)) if self._rows else None
        self._fits: dict[str, tuple[bytes, Hyperparameters]] = {}
        self._valid: dict[Key, bool] = {}

    def propose(self, space: SearchSpace, history: History, rng: np.random.Generator) -> Point:
        """Return the point with the highest acquisition value; early on, the one farthest from all others."""
        rows = self._rows or Rows(space)
        lens = self._lens or Lens(rows, False)
        # These matrices are small: a second thread makes BLAS and torch slower, and takes a core from simulations.
        with threadpool_limits(1):
            taken = set(keys(rows.of([*history.points, *history.failed, *history.pending])))
            if len(taken) < self._startup or not np.isfinite(history.values).all(axis=1).any():
                return _design(space, rows, lens, history, rng)
            belief = self.belief(rows, lens, history)
            if len(taken) % _DOUBT_EVERY == 0:
                belief = replace(belief, doubt=_DOUBT)
            best = maximize(
                rows,
                self.score(lens, belief),
                lambda row: self._may_work(space, rows, row),
                rows.of(_parents(history, rng)),
                taken,
                rng,
            )
        return rows.point(best) if best is not None else draw_valid(space, rng, history.taken)

    def _may_work(self, space: SearchSpace, rows: Rows, row: Array) -> bool:
        (name,) = keys(row[None])
        if name not in self._valid:
            self._valid[name] = space.infeasible_reason(rows.point(row)) is None
        return self._valid[name]

    def score(self, lens: Lens, belief: Belief) -> Score:
        """Return the acquisition function of rows: log EHVI plus log probability of feasibility."""
        known = not np.isnan(belief.reference).any()
        lower, upper = nondominated_cells(belief.front, belief.reference) if known else (None, None)

        def acquisition(rows: Array) -> Array:
            view = lens(rows)
            value = belief.log_feasibility(view)
            if known:
                value = value + log_ehvi(*belief.predict(view), lower, upper)
            return np.where(view.possible, value, -np.inf)

        return acquisition

    def belief(self, rows: Rows, lens: Lens, history: History) -> Belief:
        """Return the models of a history with at least one trial that ran."""
        view = lens(rows.of(history.points))
        ran = np.isfinite(history.values).all(axis=1)
        scales = [np.log if (column[ran] > 0.0).all() else _identity for column in history.values.T]
        losses = self._losses(history.values, history.directions, scales)
        best = losses[history.feasible]
        reference = self._reference(best, history, scales)
        objectives = [
            self._output(
                f"objective {j}",
                view,
                np.where(ran, losses[:, j], np.nan),
                self._prior_loss(j, history, scales),
                _Calm(best[:, j], reference[j]),
            )
            for j in range(losses.shape[1])
        ]
        constraints = [
            self._output(name, view, np.where(ran, violations, np.nan), _violation_prior(name), _bounded)
            for name, violations in history.constraints.items()
            if _varies(violations[ran]) and not self._is_bound(violations, history)
        ]
        if not ran.all() or history.failed:
            seen = lens(rows.of([*history.points, *history.failed]))
            runs = np.append(np.where(ran, -1.0, 1.0), np.ones(len(history.failed)))
            constraints.append(self._output("runs", seen, runs, None, _identity))
        if history.pending:
            P = lens(rows.of(history.pending))
            hopeful = log_feasibility(*_stack(constraints, P)) > np.log(0.5) if constraints else slice(None)
            best = np.vstack([best, _stack(objectives, P)[0][hopeful]])
            objectives, constraints = (
                [replace(o, gp=o.gp.condition_on_mean(P.X)) for o in outputs] for outputs in (objectives, constraints)
            )
        return Belief(objectives, constraints, best[pareto.nondominated(best)], reference)

    def _is_bound(self, violations: Array, history: History) -> bool:
        """Whether a constraint says no more than the bound of an objective, which is its reference already."""
        for j, bound in enumerate(self._bounds or ()):
            if bound is not None:
                sign = -1.0 if history.directions[j] == "maximize" else 1.0
                same = sign * (history.values[:, j] - bound) / abs(bound or 1.0)
                ran = np.isfinite(same)
                if np.allclose(same[ran], violations[ran], rtol=1e-9, atol=1e-12):
                    return True
        return False

    def _prior_loss(self, j: int, history: History, scales: Sequence[Scale]) -> Mean:
        def mean(view: View) -> Array | None:
            if j >= len(view.prior.objectives) or view.prior.objectives[j] is None:
                return None
            with np.errstate(invalid="ignore", divide="ignore"):
                values = scales[j](view.prior.objectives[j])
            return pareto.losses(values[:, None], history.directions[j : j + 1])[:, 0]

        return mean

    def _losses(self, values: Array, directions: Sequence[str], scales: Sequence[Scale]) -> Array:
        """Return values (``n x m``) as losses on the scales that they are modelled in."""
        with np.errstate(invalid="ignore", divide="ignore"):
            scaled = np.column_stack([scale(column) for scale, column in zip(scales, values.T, strict=True)])
        return pareto.losses(scaled, directions)

    def _reference(self, feasible: Array, history: History, scales: Sequence[Scale]) -> Array:
        bounds = np.array(
            [[np.nan if b is None else b for b in self._bounds or [None] * feasible.shape[1]]], dtype=float
        )
        limits = self._losses(bounds, history.directions, scales)[0]
        margin = _MARGIN * np.maximum(np.ptp(feasible, axis=0), 1e-3) if len(feasible) else 0.0
        return pareto.reference_point(feasible + margin, limits)

    def _output(self, name: str, view: View, y: Array, prior: Mean | None, calm: Scale) -> Output:
        """Return the model of one output (``n``, NaN where unknown), with its prior if the data speak for it.

        Hyperparameters are fitted to the first trials only, up to a scheduled number: every trial up to 25, every second
        up to 50, and so on. So they depend on the trials alone, not on when this process started.
        """
        known = np.isfinite(y)
        mean = self._mean(view, y, prior, calm)
        X, targets = view.X[known], calm(y[known])
        offset = mean(view)[known] if mean is not None else None
        if offset is not None and not self._prefers(name, X, targets, offset):
            mean = offset = None
        residual = targets if offset is None else targets - offset
        return Output(name, GP(X, residual, self._fit(name, X, residual, _REFIT)), mean)

    def _prefers(self, name: str, X: Array, targets: Array, offset: Array) -> bool:
        """Whether the data are more probable on top of the prior than without it."""
        with_prior = self._fit(f"{name}, with prior", X, targets - offset, _RECONSIDER)
        return with_prior.evidence > self._fit(f"{name}, without prior", X, targets, _RECONSIDER).evidence

    def _fit(self, name: str, X: Array, y: Array, growth: float) -> Hyperparameters:
        """Return hyperparameters for the first trials of a study, as many as the last scheduled fit had.

        So they depend on the trials alone, not on when this process started.
        """
        size = _scheduled(len(y), growth)
        data = X[:size].tobytes() + y[:size].tobytes()
        if name not in self._fits or self._fits[name][0] != data:
            self._fits[name] = data, fit(X[:size], y[:size])
        return self._fits[name][1]

    def _mean(self, view: View, y: Array, prior: Mean | None, calm: Scale) -> Mean | None:
        """Return the prior shifted to the level of the data and compressed as they are; None where there is none."""
        raw = prior(view) if prior is not None else None
        if raw is None:
            return None
        known = np.isfinite(y) & np.isfinite(raw)
        shift = float(np.median(y[known] - raw[known])) if known.any() else 0.0
        level = float(np.median(y[np.isfinite(y)]))
        return lambda other: calm(np.nan_to_num(prior(other) + shift, nan=level, posinf=level, neginf=level))


def _scheduled(n: int, growth: float) -> int:
    """Return the last of 10, 11, 12, ... growing by *growth* at least, that is not above *n*."""
    size = following = min(n, 10)
    while following <= n and size < n:
        size, following = following, max(following + 1, int(following * growth))
    return size


def _identity(column: Array) -> Array:
    return column


def _varies(y: Array) -> bool:
    """Whether there is something to learn: an SLO that every trial meets alike needs no model."""
    return len(np.unique(y)) > 1


class _Calm:
    """Compresses losses beyond the reference: excess e becomes w log(1 + e / w).

    No hypervolume lies there, but one saturated trial, a thousand times slower than the rest, would set the scale of
    the model and make the differences along the frontier look like nothing. w is half the range that counts.
    """

    def __init__(self, feasible: Array, reference: float) -> None:
        self._reference = reference if len(feasible) else np.inf
        self._width = 0.5 * max(reference - feasible.min(), 1e-3) if len(feasible) else 1.0

    def __call__(self, losses: Array) -> Array:
        excess = np.maximum(losses - self._reference, 0.0)
        return np.asarray(np.minimum(losses, self._reference) + self._width * np.log1p(excess / self._width))


def _violation_prior(name: str) -> Mean:
    return lambda view: view.prior.violations.get(name)


def _bounded(violation: Array) -> Array:
    """Compress violations, which explode at saturation: log(metric / bound), and its own logarithm far from zero."""
    ratio = np.log1p(np.clip(violation, -0.999, _WORST_VIOLATION))
    return np.asarray(np.sign(ratio) * np.log1p(np.abs(ratio)))


def _design(space: SearchSpace, rows: Rows, lens: Lens, history: History, rng: np.random.Generator) -> Point:
    taken = history.taken
    drawn = [draw_valid(space, rng, taken) for _ in range(_DRAWS)]
    others = [*history.points, *history.failed, *history.pending]
    return drawn[space_filling(lens(rows.of(drawn)).X, lens(rows.of(others)).X if others else np.zeros((0, 0)))]


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
