"""One outcome from those of several cases (``dynosim.config.cases``): means, the worst, and what lies in between.

All three are one functional, the conditional value at risk of Rockafellar and Uryasev ("Optimization of conditional
value-at-risk", 2000; of discrete distributions: "Conditional value-at-risk for general loss distributions", 2002). Of
losses l_c with probabilities p_c, at level a, the share of the worst that is averaged (their 1 - beta):

    CVaR_a = min over z of  z + sum_c p_c max(l_c - z, 0) / a  =  sum_c q_c l_c,

where q is p / a for the worst cases, cut off so that it sums to 1. Level 1 is the mean; at or below the weight of the
worst case it is that case alone.

As it is linear in the losses, the violation of the combined number is the combined violation, and its sampling
deviations are those of the cases weighted alike, batch by batch: of cases that serve the same requests what they
share adds up, of independent ones it averages out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.config import Case, Scenario, WorkloadConfig
from dynosim.config.goals import level_of
from dynosim.metrics import Metrics, averaged, bounds_of
from dynosim.objectives import resolve
from dynosim.search.trial import Outcome, Status
from dynosim.uncertainty import sampling
from dynosim.uncertainty.model_band import BEST_FIRST
from dynosim.workload import load_workload, reuse_bound

Array = NDArray[np.float64]

PEAK_S = 10.0
"""How long demand must last to be felt as waiting: bursts decide tail latencies, not the mean rate."""
LOST_BY = 0.5
"""A complete case that misses a bound by this share of it ends the race, as a run that reaches 1.5 times its bound
ends early (``simulation.lost``). One that misses by less is worth the rest: the models learn its values."""


def tail_weights(losses: Array, weights: Array, level: float) -> Array:
    """Return q (``n``, sum 1) such that q @ losses is the conditional value at risk at *level*; 0 is the worst.

    *weights* are positive, on any scale. Of equal losses the first count first.
    """
    p = weights / weights.sum()
    order = np.argsort(-losses, kind="stable")
    before = np.concatenate(([0.0], np.cumsum(p[order])[:-1]))
    share = max(level, float(np.finfo(float).tiny))
    q = np.empty(len(p))
    q[order] = np.clip(share - before, 0.0, p[order]) / share
    return np.asarray(q / q.sum())


def by_load(cases: Sequence[Case]) -> list[Case]:
    """Return *cases* by what each GPU is asked for at the worst of times, most first: these lose an SLO soonest."""
    return sorted(cases, key=_load, reverse=True)


def _load(case: Case) -> float:
    scenario = case.scenario
    return _peak(scenario.workload.model_dump_json(), scenario.seed) / scenario.deployment.num_gpus()


@lru_cache(maxsize=256)
def _peak(workload: str, seed: int) -> float:
    """Return the most tokens per second over PEAK_S, without the share of prompts that was in earlier ones.

    Of a closed loop, those of its clients, one request of each at a time.
    """
    table = load_workload(WorkloadConfig.model_validate_json(workload), seed)
    tokens = table.input_tokens * (1.0 - reuse_bound(table)) + table.output_tokens
    if table.concurrency is not None:
        return float(tokens.mean()) * table.concurrency / PEAK_S
    until = np.searchsorted(table.arrival_s, table.arrival_s + PEAK_S)
    total = np.concatenate(([0.0], np.cumsum(tokens)))
    return float((total[until] - total[:-1]).max()) / PEAK_S


def is_lost(scenario: Scenario, outcome: Outcome) -> bool:
    """Whether a case has lost an SLO that must hold in every case, by so much that the others need not be simulated."""
    return outcome.status is Status.LOST or any(v >= LOST_BY for v in _missed(scenario, outcome).values())


def _missed(scenario: Scenario, outcome: Outcome) -> dict[str, float]:
    """Return the violations of bounds that must hold in every case."""
    hard = {bound.name for bound in bounds_of(scenario.slo_of_each())}
    return {name: v for name, v in outcome.constraints.items() if name in hard and v > 0.0}


def lost(scenario: Scenario, cases: int, seen: Mapping[str, Outcome]) -> Outcome:
    """Return the outcome of a configuration that lost in the last of the cases *seen*; there are *cases* in all.

    A violation that must be none in every case is at least as large as in those that are known.
    """
    missed: dict[str, float] = {}
    for outcome in seen.values():
        for name, violation in _missed(scenario, outcome).items():
            missed[name] = max(violation, missed.get(name, 0.0))
    named = ", ".join(f"{name} by {violation:.0%}" for name, violation in missed.items())
    reason = f"misses at least {named}; ended early, with {list(seen)[-1]}, {len(seen)} of {cases} cases"
    return Outcome(Status.LOST, constraints=missed, reason=reason, cases=_kept(seen))


def _kept(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    known = {name: outcome for name, outcome in outcomes.items() if outcome.status is Status.COMPLETE}
    return {
        name: {"metrics": outcome.metrics, "values": outcome.values, "constraints": dict(outcome.constraints)}
        for name, outcome in known.items()
    }


def combined(scenario: Scenario, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome of *scenario* from the complete *outcomes* of all its *cases*.

    Objectives and SLOs as their ``over`` says; every other metric is the weighted mean, missing where one case lacks
    it. The evidence is that of the weakest case.
    """
    weights = np.array([case.weight for case in cases])
    metrics = averaged([outcome.known_metrics() for outcome in outcomes], weights)
    deviations = _deviations(metrics, outcomes, weights / weights.sum())
    values = []
    for place, objective in enumerate(map(resolve, scenario.objectives)):
        found = np.array([(outcome.values or ())[place] for outcome in outcomes])
        sign = 1.0 if objective.direction == "minimize" else -1.0
        q = tail_weights(sign * found, weights, objective.level)
        values.append(_dot(q, found))
        if objective.level < 1.0:
            deviations |= _deviation(objective.name, objective.plain_name, values[-1], outcomes, q)
    return Outcome(
        Status.COMPLETE,
        values=tuple(values),
        constraints=_violations(scenario, outcomes, weights),
        metrics=metrics.to_dict(),
        deviations=deviations,
        evidence=max((o.evidence for o in outcomes if o.evidence), key=BEST_FIRST.index, default=""),
        cached=all(outcome.cached for outcome in outcomes),
        cases=_kept(dict(zip((case.name for case in cases), outcomes, strict=True))),
    )


def _violations(scenario: Scenario, outcomes: Sequence[Outcome], weights: Array) -> dict[str, float]:
    found = {}
    for bound in bounds_of(scenario.slo):
        level = level_of(scenario.slo_over.get(bound.metric, {}).get(bound.stat, "worst"))
        violations = np.array([outcome.constraints[bound.name] for outcome in outcomes])
        found[bound.name] = _dot(tail_weights(violations, weights, level), violations)
    return found


def _deviations(metrics: Metrics, outcomes: Sequence[Outcome], p: Array) -> dict[str, list[float]]:
    """Return the deviations of the weighted means of all numbers that have some in every case."""
    found: dict[str, list[float]] = {}
    for name, mean in metrics.flat().items():
        found |= _deviation(name, name, mean, outcomes, p)
    return found


def _deviation(name: str, of: str, value: float, outcomes: Sequence[Outcome], q: Array) -> dict[str, list[float]]:
    """Return *name* -> deviations of *value*, the metric *of* under the weights *q*; empty where one is unknown."""
    total: Any = 0.0
    for weight, outcome in zip(q.tolist(), outcomes, strict=True):
        if weight > 0.0:
            known, size = sampling.relative(outcome.deviations, of), outcome.known_metrics().number(of)
            if known is None or size is None:
                return {}
            total = total + weight * size * known
    return {name: (total / value).round(4).tolist()} if value else {}


def _dot(q: Array, x: Array) -> float:
    """Return q @ x, where an infinite x without weight does not count."""
    return float(q[q > 0.0] @ x[q > 0.0]) if not math.isinf(x[q > 0.0].max()) else math.inf
