"""What the trials so far say: one model per objective and per constraint, the front, the reference.

Each output is modelled where its differences count. Objectives of deployments are modelled in logarithms. Losses
beyond the reference are compressed: no hypervolume lies there, but one saturated trial, a thousand times slower than
the rest, would set the scale of the model and make the differences along the frontier look like nothing. Where a
closed-form estimate of an output exists and the data speak for it, the process models what that leaves unexplained.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from dynosim.rng import stream
from dynosim.search import pareto
from dynosim.search.rows import Rows
from dynosim.search.samplers.base import History
from dynosim.search.samplers.botorch_api import ModelListGP, SingleTaskGP, Tensor, torch
from dynosim.search.samplers.encoding import Featurizer, View
from dynosim.search.samplers.model import Hyperparameters, fit, predicted, process
from dynosim.search.samplers.profile import SERVING, Profile, floor, logarithms

Array = NDArray[np.float64]
Scale = Callable[[Array], Array]
Mean = Callable[[View], Array]
Prior = Callable[[View], Array | None]

ESTIMATE, EARLIER = "closed form", "earlier study"
_WORST_VIOLATION = 1e4
"""An SLO whose metric has no value at all is violated infinitely; beyond this it makes no difference."""
_REFIT, _RECONSIDER = 1.08, 1.3
"""Growth of the data after which hyperparameters are fitted again, and after which a prior is put to the test again."""
_MOST_FITTED = 200
"""A fit takes the cube of its trials: seconds beyond this number, which tells the lengthscales. Predictions use all."""
_JITTER = 1e-6
"""Share of its variance that is added to an output's covariance matrix, which is singular but for rounding."""
_NOTICEABLE = 0.005
"""Gains of hypervolume below this share are no progress."""
_MARGIN = 0.1
"""The reference of an objective without an SLO lies this share of the feasible range beyond the worst feasible loss
(the share that Ishibuchi et al. 2011 found robust), so that the ends of the front count too."""
_VARIED, _HOPE = 256, 0.05
"""Variations of the front among which the attainable one is sought, and how likely they must be to be feasible."""
_TRADE_OFF = 0.1
"""What gives up more than its inverse for one of another loss, in shares of the front's ranges, is no aim."""


@dataclass(frozen=True, eq=False)
class Output:
    """One modelled quantity: what is known of it, and the hyperparameters of the process that explains it."""

    name: str
    X: Array
    """Features of the ``n`` trials that tell something of it, ``n x d``."""
    known: Array
    """The prior mean there (``n``), zeros without one."""
    y: Array
    """What they tell, on the scale of the model, ``n``."""
    noise: Array
    """Variances of ``y`` as far as they were told, zeros elsewhere, ``n``."""
    hyperparameters: Hyperparameters
    mean: Mean | None = None
    """What was known beforehand, on the scale of the model; None where there is nothing, or the data disagree."""
    source: str = ""
    """Where it comes from: ``ESTIMATE`` or an earlier study."""
    offered: tuple[str, ...] = ()
    """All sources that there are."""

    @property
    def prior(self) -> str:
        """What became of prior knowledge, in words."""
        return self.source or ("dropped (the data disagree)" if self.offered else "none")

    def prior_mean(self, view: View) -> Array:
        """Return the prior mean at the rows of *view*, ``n``."""
        return np.zeros(len(view.X)) if self.mean is None else self.mean(view)

    def process(self, place: int, outputs: int) -> SingleTaskGP:
        """Return the process; its prior mean is column *place* of the *outputs* that follow the features."""
        inputs = np.hstack([self.X, np.zeros((len(self.X), outputs))])
        inputs[:, self.X.shape[1] + place] = self.known
        return process(inputs, self.y, self.hyperparameters, self.X.shape[1] + place, self.noise)

    def believing(self, view: View, y: Array) -> Output:
        """Return the output as if trials at the rows of *view* had told *y* (``q``)."""
        X, known = np.vstack([self.X, view.X]), np.append(self.known, self.prior_mean(view))
        return replace(self, X=X, known=known, y=np.append(self.y, y), noise=np.append(self.noise, np.zeros(len(y))))


@dataclass(frozen=True, eq=False)
class Posterior:
    """What the models say after all trials so far, the running ones counted as predicted."""

    objectives: list[Output]
    """Those of which something is known."""
    constraints: list[Output]
    model: ModelListGP
    """The objectives, then the constraints, as BoTorch's model of losses and violations."""
    limits: Array
    """The loss at the SLO of each of ``objectives``, NaN where it has none."""
    front: Array
    """Feasible non-dominated losses, ``p x m``, with the predicted ones of running trials."""
    reference: Array
    """``m``; NaN while nothing is feasible and no SLO bounds an objective."""
    seen: Array
    """Rows of the trials of which all objectives are known, and of the running ones, ``n x p``."""
    idle: int = 0
    """Trials since the hypervolume was last noticeably smaller."""

    @property
    def outputs(self) -> list[Output]:
        """The objectives, then the constraints."""
        return [*self.objectives, *self.constraints]

    @property
    def noisy(self) -> bool:
        """Whether trials told how noisy their values are."""
        return any(output.noise.any() for output in self.objectives)

    @property
    def searchable(self) -> bool:
        """Whether improvements of the hypervolume can be predicted: not before something is known of each objective."""
        return len(self.objectives) == len(self.reference) and not np.isnan(self.reference).any()

    def inputs(self, view: View) -> Tensor:
        """Return what the model takes for the rows of *view*: their features, then the prior mean of each output."""
        return torch.as_tensor(np.column_stack([view.X, *(output.prior_mean(view) for output in self.outputs)]))

    def predict(self, view: View) -> tuple[Array, Array]:
        """Return mean and standard deviation of all outputs, each ``n x outputs``."""
        with torch.no_grad():
            mean, sd = predicted(self.model, self.inputs(view))
        return mean.numpy(), sd.numpy()

    def draws(self, view: View, count: int, rng: np.random.Generator) -> Array:
        """Return joint draws of all outputs at the ``q`` rows of *view*, ``count x q x outputs``."""
        inputs, drawn = self.inputs(view), []
        processes: list[Any] = list(self.model.models)
        for one in processes:
            with torch.no_grad():
                joint = one.posterior(inputs).distribution
                mean, covariance, prior = (
                    x.numpy() for x in (joint.mean, joint.covariance_matrix, one.covar_module(inputs).diagonal())
                )
            factor = np.linalg.cholesky(covariance + _JITTER * np.diag(prior))
            drawn.append(mean + rng.standard_normal((count, len(mean))) @ factor.T)
        return np.stack(drawn, axis=2)

    def priors(self) -> dict[str, str]:
        """Return name -> the source of its prior mean, or that it was dropped, or none."""
        return {output.name: output.prior for output in self.outputs}

    def log_feasibility(self, mean: Array, sd: Array) -> Array:
        """Return the log probability that all constraints hold (``n``) of predictions (``n x outputs``)."""
        m = len(self.objectives)
        return _log_below(mean[:, m:], sd[:, m:], np.zeros(len(self.constraints)))

    def log_admissibility(self, mean: Array, sd: Array) -> Array:
        """Return the same of the constraints and of the objectives' bounds: what counts while nothing is feasible."""
        bounded = np.flatnonzero(~np.isnan(self.limits))
        return self.log_feasibility(mean, sd) + _log_below(mean[:, bounded], sd[:, bounded], self.limits[bounded])


def _log_below(mean: Array, sd: Array, limits: Array) -> Array:
    """Return the log probability (``n``) that independent outputs (``n x c``) are all within their limits (``c``)."""
    return np.asarray(log_ndtr((limits - mean) / sd).sum(axis=1))


class Surrogate:
    """Fits posteriors to histories of one study; keeps fitted hyperparameters, which depend on the data alone."""

    def __init__(
        self,
        rows: Rows,
        featurizer: Featurizer,
        bounds: Sequence[float | None],
        scouts: Array,
        profile: Profile = SERVING,
    ) -> None:
        self._profile = profile
        self._rows, self._featurizer, self._bounds, self._scouts = rows, featurizer, bounds, featurizer(scouts)
        self._earlier: list[tuple[Posterior, dict[str, int]]] = []
        self._fits: dict[tuple[str, int], tuple[bytes, Hyperparameters]] = {}

    def learn_from(self, history: History) -> None:
        """Take what an earlier study of like points says as one more thing that may be known beforehand."""
        posterior = Surrogate(self._rows, self._featurizer, self._bounds, self._rows.of(history.points[:1]))(history)
        self._earlier.append((posterior, {output.name: place for place, output in enumerate(posterior.outputs)}))

    def __call__(self, history: History, draw: int = 0) -> Posterior:
        """Return the posterior of a history with at least one trial that ran.

        Of the hyperparameters it takes the most probable ones, or from *draw* 1 on one of some draws (``model.fit``).
        """
        rows = self._rows.of(history.points)
        view = self._featurizer(rows)
        losses, limits, priors, noise = self._losses(history)
        best = losses[history.feasible]
        reference = _reference(best, limits)
        told = [j for j in range(losses.shape[1]) if np.isfinite(losses[:, j]).any()]
        objectives = [
            self._output(
                f"objective {j}", view, losses[:, j], priors[j], _Calm(best[:, j], reference[j]), draw, noise[j]
            )
            for j in told
        ]
        constraints = self._constraints(view, history, draw)
        model = modelled([*objectives, *constraints])
        seen = rows[np.isfinite(history.values).all(axis=1)]
        posterior = Posterior(objectives, constraints, model, limits[told], best, reference, seen)
        if len(best):
            near = self._profile.attainable
            reference = self._attainable(posterior, rows[history.feasible]) if near else self._wider(posterior)
            posterior = replace(posterior, reference=reference)
            posterior = replace(posterior, idle=_idle(losses, history.feasible, posterior.reference))
        if history.pending:
            rows = self._rows.of(history.pending)
            posterior = _assume_predicted(posterior, self._featurizer(rows))
            posterior = replace(posterior, seen=np.vstack([posterior.seen, rows]))
        return replace(posterior, front=posterior.front[pareto.nondominated(posterior.front)])

    def _losses(self, history: History) -> tuple[Array, Array, list[Prior], list[Array]]:
        """Return the modelled losses (``n x m``), those at the SLOs (``m``), priors and noise variances (``n``)."""
        ran = np.isfinite(history.values).all(axis=1)
        given = self._bounds or [None] * history.values.shape[1]
        bounds = np.array([np.nan if bound is None else bound for bound in given])
        axes = [
            _Axis(floor(column) if self._profile.logarithms and not bounds[j] <= 0.0 else None, history.sign(j), j)
            for j, column in enumerate(history.values[ran].T)
        ]
        values = self._with_bounds(history)
        losses = np.column_stack([axis.loss(column) for axis, column in zip(axes, values.T, strict=True)])
        limits = np.array([axis.loss(np.array([bound]))[0] for axis, bound in zip(axes, bounds, strict=True)])
        told = np.full(values.shape, np.nan) if history.noise is None else history.noise
        noise = [axis.variance(column, sd) for axis, column, sd in zip(axes, values.T, told.T, strict=True)]
        return losses, limits, [axis.prior for axis in axes], noise

    def _wider(self, posterior: Posterior) -> Array:
        """Return the reference, moved to what unbounded objectives are believed to be at points that may be feasible.

        Otherwise the search would not look for what is, say, dearer and faster than anything it has met.
        """
        mean, sd = posterior.predict(self._scouts)
        admissible = posterior.log_admissibility(mean, sd) > np.log(0.5)
        worst = mean[admissible, : len(posterior.limits)].max(axis=0, initial=-np.inf)
        bounded = ~np.isnan(posterior.limits)
        return np.where(bounded, posterior.reference, np.maximum(posterior.reference, worst))

    def _attainable(self, posterior: Posterior, feasible: Array) -> Array:
        """Return a reference just beyond the front that is believed to be attainable; *feasible* are rows, ``p x n``.

        The worst that was met draws the search to the edges of the space, where one loss is minimal and the others are
        beyond use; the ends of the front that was met hide what lies beyond them, such as another part of it.
        """
        rng = stream(0, f"variations of a front of {len(feasible)}")
        front = feasible[pareto.nondominated(posterior.front)]
        varied = self._rows.mutate(front[rng.integers(len(front), size=_VARIED)], rng)
        views = self._scouts, self._featurizer(varied)
        mean, sd = (np.vstack(parts) for parts in zip(*map(posterior.predict, views), strict=True))
        hopeful = posterior.log_admissibility(mean, sd) > np.log(_HOPE)
        losses = np.vstack([posterior.front, mean[hopeful, : len(posterior.limits)]])
        return _reference(_properly_efficient(losses), posterior.limits)

    def _constraints(self, view: View, history: History, draw: int) -> list[Output]:
        """Return the models of the constraints that are not the bound of an objective, and of "it runs"."""
        told = {
            name: np.where(history.runs, np.minimum(x, _WORST_VIOLATION), np.nan)
            for name, x in history.constraints.items()
        }
        constraints = [
            self._output(name, view, violations, partial(_violation_prior, name), _soften, draw)
            for name, violations in told.items()
            if self._twin(name, history) is None and _varies(violations)
        ]
        if not history.runs.all() or history.failed:
            seen = self._featurizer(self._rows.of([*history.points, *history.failed]))
            fails = np.append(np.where(history.runs, -1.0, 1.0), np.ones(len(history.failed)))
            constraints.append(self._output("runs", seen, fails, None, _identity, draw))
        return constraints

    def _twin(self, name: str, history: History) -> int | None:
        """Return the objective whose bound a constraint is; its reference says the same, so it needs no model."""
        ran, violations = np.isfinite(history.values).all(axis=1), history.constraints[name]
        for j, bound in enumerate(self._bounds):
            if bound is not None and ran.any():
                same = history.sign(j) * (history.values[ran, j] - bound) / abs(bound or 1.0)
                if np.allclose(same, violations[ran], rtol=1e-9, atol=1e-12):
                    return j
        return None

    def _with_bounds(self, history: History) -> Array:
        """Return the values (``n x m``), NaN where unknown; of a lost trial the bound that it broke by so much."""
        values = np.where(np.isfinite(history.values), history.values, np.nan)
        for name, violations in history.constraints.items():
            j = self._twin(name, history)
            bound = None if j is None else self._bounds[j]
            if j is not None and bound is not None:
                broken = bound + history.sign(j) * abs(bound or 1.0) * violations
                values[:, j] = np.where(np.isnan(values[:, j]) & history.runs, broken, values[:, j])
        return values

    def _output(
        self, name: str, view: View, y: Array, prior: Prior | None, scale: Scale, draw: int, noise: Array | float = 0.0
    ) -> Output:
        """Return the model of one output (``n``, NaN where unknown), with the mean that the data speak for most."""
        told = np.isfinite(y)
        X, targets, v = view.X[told], scale(y[told]), np.broadcast_to(noise, y.shape)[told]
        means = self._means(name, view, y, prior, scale)
        known = {source: mean(view)[told] for source, mean in means.items()} | {"": np.zeros(len(targets))}
        evidence = {
            source: self._fit(f"{name} {source}", X, targets - mean, v, _RECONSIDER).evidence
            for source, mean in known.items()
            if len(known) > 1
        }
        best = max(evidence, key=evidence.__getitem__, default="")
        hyperparameters = self._fit(name, X, targets - known[best], v, _REFIT, draw)
        return Output(name, X, known[best], targets, v, hyperparameters, means.get(best), best, tuple(means))

    def _means(self, name: str, view: View, y: Array, prior: Prior | None, scale: Scale) -> dict[str, Mean]:
        """Return what may be known of an output beforehand, by source, each at the level of the data."""
        found = {ESTIMATE: _aligned(view, y, prior, scale)}
        for i, (earlier, places) in enumerate(self._earlier):
            if name in places:
                recalled = partial(_recall, earlier, places[name])
                found[f"{EARLIER} {i + 1}"] = _aligned(view, scale(y), recalled, _identity)
        return {source: mean for source, mean in found.items() if mean is not None}

    def _fit(self, name: str, X: Array, y: Array, v: Array, growth: float, draw: int = 0) -> Hyperparameters:
        """Return hyperparameters for the first trials of a study, as many as the last scheduled fit had.

        So they depend on the trials alone, not on when this process started. Of very many, an even selection is fitted.
        """
        size = _scheduled(len(y), growth)
        some = np.linspace(0, size - 1, min(size, _MOST_FITTED)).round().astype(int)
        data = X[some].tobytes() + y[some].tobytes() + v[some].tobytes()
        if self._fits.get((name, draw), (b"",))[0] != data:
            rng = stream(draw, f"hyperparameters of {name} at {size}") if draw else None
            self._fits[name, draw] = data, fit(X[some], y[some], rng, v[some], self._profile)
        return self._fits[name, draw][1]


@dataclass(frozen=True)
class _Axis:
    """How one objective becomes a loss."""

    least: float | None
    """What values are raised to before their logarithms are taken; None where losses are the values."""
    sign: float
    index: int

    def loss(self, values: Array) -> Array:
        return self.sign * logarithms(values, self.least)

    def variance(self, values: Array, sd: Array) -> Array:
        """Return the variances (``n``) of the losses of *values* with standard deviations *sd*; zeros where unknown."""
        relative = sd if self.least is None else sd / np.maximum(values, self.least)
        return np.nan_to_num(relative**2)

    def prior(self, view: View) -> Array | None:
        found = view.prior.objectives
        values = found[self.index] if self.index < len(found) else None
        return None if values is None else self.loss(values)


class _Calm:
    """Compresses losses beyond the reference: excess e becomes w log(1 + e / w). w is half the range that counts."""

    def __init__(self, feasible: Array, reference: float) -> None:
        self._reference = np.inf if np.isnan(reference) else reference
        self._width = 0.5 * max(reference - feasible.min(), 1e-3) if len(feasible) else 1.0

    def __call__(self, losses: Array) -> Array:
        excess = np.maximum(losses - self._reference, 0.0)
        return np.asarray(np.minimum(losses, self._reference) + self._width * np.log1p(excess / self._width))


def _recall(posterior: Posterior, place: int, view: View) -> Array:
    return posterior.predict(view)[0][:, place]


def _violation_prior(name: str, view: View) -> Array | None:
    return view.prior.violations.get(name)


def _soften(violation: Array) -> Array:
    """Compress violations, which explode at saturation: log(metric / bound), and its own logarithm far from zero."""
    ratio = np.log1p(np.clip(violation, -0.999, _WORST_VIOLATION))
    return np.asarray(np.sign(ratio) * np.log1p(np.abs(ratio)))


def _idle(losses: Array, feasible: NDArray[np.bool_], reference: Array) -> int:
    """Return after how many trials of ``n`` (losses ``n x m``) the hypervolume was last noticeably below today's."""

    def volume(trials: int) -> float:
        return pareto.hypervolume(losses[:trials][feasible[:trials]], reference)

    today = volume(len(losses))
    return len(losses) - bisect_left(range(len(losses)), True, key=lambda n: volume(n) >= (1.0 - _NOTICEABLE) * today)


def _identity(column: Array) -> Array:
    return column


def _varies(y: Array) -> bool:
    """Whether there is something to learn: an SLO that every trial meets alike needs no model."""
    return len(np.unique(y[~np.isnan(y)])) > 1


def _properly_efficient(losses: Array) -> Array:
    """Return the front of *losses* (``n x m``) less what gives up much of one for hardly anything of another.

    So points at the edge of a space go that nothing dominates only because none is below zero (proper efficiency,
    Geoffrion 1968): of the front's ranges one may be given for up to 1 / ``_TRADE_OFF`` others. Everything as long as
    the front is a single point.
    """
    front = losses[pareto.nondominated(losses)]
    scaled = front / np.maximum(np.ptp(front, axis=0), 1e-12)
    proper = front[pareto.nondominated(scaled + _TRADE_OFF * scaled.sum(axis=1, keepdims=True))]
    return proper if len(proper) > 1 else losses


def _reference(feasible: Array, limits: Array) -> Array:
    margin = _MARGIN * np.maximum(np.ptp(feasible, axis=0), 1e-3) if len(feasible) else 0.0
    return pareto.reference_point(feasible + margin, limits)


def _aligned(view: View, y: Array, prior: Prior | None, scale: Scale) -> Mean | None:
    """Return the prior shifted to the level of the data (``n``), then scaled; None where there is none.

    The level is that of the trials that weighed it: a mean that moved with every trial would need a fit each time.
    """
    raw = prior(view) if prior is not None else None
    if prior is None or raw is None:
        return None
    known = np.flatnonzero(np.isfinite(y) & np.isfinite(raw))
    weighed = known[: _scheduled(len(known), _RECONSIDER)]
    if not len(weighed):
        return None
    shift, level = float(np.median(y[weighed] - raw[weighed])), float(np.median(y[weighed]))

    def mean(other: View) -> Array:
        return scale(np.nan_to_num(np.asarray(prior(other)) + shift, nan=level, posinf=level, neginf=level))

    return mean


def _assume_predicted(posterior: Posterior, pending: View) -> Posterior:
    """Return the posterior as if running trials had told their means (Kriging believer, Ginsbourger et al. 2010)."""
    mean, sd = posterior.predict(pending)
    outputs = [output.believing(pending, told) for output, told in zip(posterior.outputs, mean.T, strict=True)]
    m, hopeful = len(posterior.objectives), posterior.log_feasibility(mean, sd) > np.log(0.5)
    front = np.vstack([posterior.front, mean[hopeful, :m]]) if posterior.searchable else posterior.front
    return replace(posterior, objectives=outputs[:m], constraints=outputs[m:], model=modelled(outputs), front=front)


def modelled(outputs: Sequence[Output]) -> ModelListGP:
    """Return BoTorch's model of all *outputs*."""
    return ModelListGP(*(output.process(place, len(outputs)) for place, output in enumerate(outputs)))


def _scheduled(n: int, growth: float) -> int:
    """Return the largest number up to *n* of those at which models are fitted: all up to 10, then fewer and fewer."""
    size = following = min(n, 10)
    while following <= n and size < n:
        size, following = following, max(following + 1, int(following * growth))
    return size
