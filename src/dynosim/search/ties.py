"""Which points a simulation can tell apart, and which one stands for those that it cannot.

The noise of a difference is what the simulation cannot know of it: the sampling interval, batch by batch over the
requests that both served (95 % over all objectives together, by Bonferroni), and the model's error, added in squares.
What both have in common cancels in either: the traffic, and the bias of the model where both rest on the same evidence,
which leaves only its spread; between different evidence both whole bands count. It is never below the objective's
resolution, so that nobody prefers a configuration for the seventh digit of its cost.

One point *covers* another if it is worse by more than the noise in no objective. Two that cover each other tie; one
that covers without being covered beats. Neither is transitive: small steps add up, and with three objectives points may
beat each other in a circle. So each leader stands for what it covers itself, without a chain in between: as an
epsilon-Pareto set (Laumanns et al., Evolutionary Computation 10(3), 2002), leaders cover everything and not each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from dynosim.objectives import Objective
from dynosim.search import pareto
from dynosim.search.trial import Trial
from dynosim.uncertainty.model_band import band_of, evidence_class
from dynosim.uncertainty.sampling import BATCHES, CONFIDENCE, half_width, relative

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def groups(front: Sequence[Trial], others: Sequence[Trial], objectives: Sequence[Objective]) -> list[list[Trial]]:
    """Return *front*, an exact Pareto set, as groups, each with its leader first; leaders by their objectives.

    Of *others*, exactly dominated ones, those join that lead: what dominates them does so by less than the noise.
    """
    if not front:
        return []
    trials = [*front, *_not_beaten(front, others, objectives)]
    known = points(trials, objectives)
    found = _led(known.covers(np.arange(len(trials))), [preference(trial) for trial in trials])
    order = np.lexsort(known.losses[[leader for leader, _ in found]].T[::-1])
    return [[trials[i] for i in (found[k][0], *found[k][1]) if i < len(front) or i == found[k][0]] for k in order]


def _not_beaten(front: Sequence[Trial], others: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    known, n = points([*front, *others], objectives), len(front)
    covers, covered = known.compared(np.arange(n))
    beaten = np.any(covers & ~covered, axis=0)
    return [other for other, out in zip(others, beaten[n:], strict=True) if not out]


def _led(covers: Mask, preferences: Sequence[tuple[float, ...]]) -> list[tuple[int, list[int]]]:
    """Return (leader, the others that it stands for), of all rows of *covers* (``n x n``).

    A leader is beaten by nobody who is still free; of several the preferred one, and of a circle of beats too.
    """
    beats, free = covers & ~covers.T, np.ones(len(covers), bool)
    rank = [(*preferred, i) for i, preferred in enumerate(preferences)]
    found = []
    while free.any():
        top = np.flatnonzero(free & ~np.any(beats[free], axis=0)).tolist() or np.flatnonzero(free).tolist()
        leader = min(top, key=rank.__getitem__)
        free[leader] = False
        members = np.flatnonzero(free & covers[leader])
        free[members] = False
        found.append((leader, members.tolist()))
    return found


def preference(trial: Trial) -> tuple[float, ...]:
    """Return what is better smaller between points that tie.

    A backlog that grew, GPUs, pools, searched knobs that differ from the defaults of engine and server, how far (in
    octaves where both are positive numbers), replicas.
    """
    deployment = trial.scenario.deployment
    pools = deployment.pools().values()
    changes = [_octaves(value, default) for value, default in _beside_defaults(trial) if value != default]
    replicas = sum(pool.replicas for pool in pools)
    return trial.saturated, deployment.num_gpus(), len(pools), len(changes), round(sum(changes), 6), replicas


def _beside_defaults(trial: Trial) -> list[tuple[Any, Any]]:
    """Return (value, default) of the searched knobs that have a default."""
    found = []
    for path, value in trial.point.items():
        *sections, name = path.split(".")
        owner: Any = trial.scenario
        for key in sections:
            owner = owner.get(key) if isinstance(owner, Mapping) else getattr(owner, key, None)
        field = type(owner).model_fields.get(name) if isinstance(owner, BaseModel) else None
        if field is not None and not field.is_required():
            found.append((value, field.get_default(call_default_factory=True, validated_data={})))
    return found


def _octaves(value: Any, default: Any) -> float:
    numbers = all(isinstance(x, int | float) and x > 0 for x in (value, default))
    return abs(math.log2(value / default)) if numbers else 1.0


@dataclass(frozen=True)
class Points:
    """What is known of ``n`` trials in ``m`` objectives."""

    losses: Array
    """``n x m``, in the objectives' units."""
    deviations: Array
    """``n x m x BATCHES``, relative (``uncertainty.sampling``); zeros where there is no interval."""
    spread: Array
    """Model error that points of one evidence do not share, ``n x m``, in logarithms."""
    wide: Array
    """The whole model error, ``n x m``, in logarithms."""
    told: Array
    """Standard deviations that an evaluator told, ``n x m``, relative; zeros where there is none."""
    evidence: NDArray[np.int64]
    """``n``: equal where points rest on the same evidence."""
    same_within: Array
    """``m``: relative resolution of the objectives."""

    @property
    def confidence(self) -> float:
        """Of the interval of one objective: Bonferroni."""
        return 1.0 - (1.0 - CONFIDENCE) / len(self.same_within)

    def covers(self, rows: NDArray[np.int64]) -> Mask:
        """Return whether each of *rows* covers each point (``rows x n``)."""
        return self.compared(rows)[0]

    def compared(self, rows: NDArray[np.int64]) -> tuple[Mask, Mask]:
        """Return whether each of *rows* covers each point, and is covered by it (``rows x n``)."""
        covers, covered = np.empty((2, len(rows), len(self.losses)), bool)
        for k, i in enumerate(rows):
            worse, noise = self.losses[i] - self.losses, self._noise(int(i))
            covers[k], covered[k] = (worse <= noise).all(axis=1), (-worse <= noise).all(axis=1)
        return covers, covered

    def _noise(self, i: int) -> Array:
        """Return the noise of the difference of point *i* to each point (``n x m``), in the objectives' units."""
        same = (self.evidence == self.evidence[i])[:, None]
        model = np.where(same, self.spread**2 + self.spread[i] ** 2, self.wide**2 + self.wide[i] ** 2)
        told = NormalDist().inv_cdf((1.0 + self.confidence) / 2.0) ** 2 * (self.told**2 + self.told[i] ** 2)
        noise = np.sqrt(half_width(self.deviations - self.deviations[i], self.confidence) ** 2 + model + told)
        size = (np.abs(self.losses) + np.abs(self.losses[i])) / 2.0
        return np.asarray(np.maximum(noise, self.same_within) * size)


def points(trials: Sequence[Trial], objectives: Sequence[Objective]) -> Points:
    """Return what is known of complete *trials*."""
    values = [trial.outcome.values for trial in trials]
    bands = [[band_of(trial.model_bands(), o.name) for o in objectives] for trial in trials]
    kinds = [
        (evidence_class(t.scenario.deployment), t.scenario.deployment.calibration, t.outcome.evidence) for t in trials
    ]
    return Points(
        pareto.losses(np.array(values, dtype=float), [o.direction for o in objectives]),
        np.array([[_deviations(trial, o.name) for o in objectives] for trial in trials]),
        np.array([[band.spread if band else 0.0 for band in of] for of in bands]),
        np.array([[band.half_width if band else 0.0 for band in of] for of in bands]),
        np.array([_told(trial) for trial in trials]),
        np.array([list(dict.fromkeys(kinds)).index(kind) for kind in kinds]),
        np.array([o.same_within for o in objectives]),
    )


def _told(trial: Trial) -> list[float]:
    values = trial.outcome.values or ()
    pairs = zip(trial.outcome.noise or [None] * len(values), values, strict=True)
    return [sd / abs(value) if sd and value else 0.0 for sd, value in pairs]


def _deviations(trial: Trial, name: str) -> Array:
    known = relative(trial.outcome.deviations, name)
    return np.zeros(BATCHES) if known is None else known
