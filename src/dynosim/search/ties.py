"""Tie groups: points of a frontier that the simulation cannot tell apart, and the one of each that is preferred.

Two points tie if they differ in no objective by more than the noise of their difference: the 95 % sampling interval of
the difference, batch by batch over the requests that both served, and the model's error, added in squares. What both
have in common cancels in either: the traffic, and the bias of the model where both rest on the same evidence, which
leaves only its spread; between different evidence both whole bands count. An objective without an interval or a band
counts as exact, so that nothing ties for lack of knowledge.

Ties are no equivalence (a and b, b and c, but not a and c), so a group has a leader, and everything in it ties with
the leader. Leaders are the preferred ones: fewer GPUs, then fewer pools, then fewer replicas, then the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dynosim.search.trial import Trial
from dynosim.uncertainty.model_band import evidence_class
from dynosim.uncertainty.sampling import BATCHES, half_width, relative

Array = NDArray[np.float64]


def tie_groups(front: Sequence[Trial], names: Sequence[str]) -> list[list[Trial]]:
    """Return *front*, trials with values of the objectives *names*, as groups of ties, each with its leader first.

    Leaders stand in the order of *front*; a group may have one member.
    """
    tied = _tied(front, names)
    free, groups = np.ones(len(front), bool), dict[int, list[Trial]]()
    for leader in sorted(range(len(front)), key=lambda i: (*preference(front[i]), i)):
        if free[leader]:
            members = np.flatnonzero(tied[leader] & free)
            free[members] = False
            groups[leader] = [front[leader], *(front[int(i)] for i in members if i != leader)]
    return [groups[leader] for leader in sorted(groups)]


def preference(trial: Trial) -> tuple[int, int, int]:
    """Return what is better smaller between points that tie: GPUs, pools, replicas."""
    deployment = trial.scenario.deployment
    pools = deployment.pools().values()
    return deployment.num_gpus(), len(pools), sum(pool.replicas for pool in pools)


def _tied(front: Sequence[Trial], names: Sequence[str]) -> NDArray[np.bool_]:
    """Return which pairs tie, shape (n, n)."""
    values = np.array([trial.outcome.values for trial in front], dtype=float).reshape(len(front), len(names))
    deviations = np.array([[_deviations(trial, name) for name in names] for trial in front])
    bands = [trial.model_bands() for trial in front]
    spread, wide = (
        np.array(
            [[getattr(of[name], field) ** 2 if name in of else 0.0 for name in map(_metric, names)] for of in bands]
        )
        for field in ("spread", "half_width")
    )
    kinds = [
        (evidence_class(t.scenario.deployment), t.scenario.deployment.calibration, t.outcome.evidence) for t in front
    ]
    tied = np.empty((len(front), len(front)), bool)
    for i in range(len(front)):
        same = np.array([[kind == kinds[i]] for kind in kinds])
        model = np.where(same, spread + spread[i], wide + wide[i])
        noise = np.sqrt(half_width(deviations - deviations[i]) ** 2 + model)
        size = (np.abs(values) + np.abs(values[i])) / 2.0
        tied[i] = np.all(np.abs(values - values[i]) <= noise * size, axis=1)
    return tied


def _deviations(trial: Trial, name: str) -> Array:
    known = relative(trial.outcome.deviations, name)
    return np.zeros(BATCHES) if known is None else known


def _metric(name: str) -> str:
    return name.partition(".")[0]
