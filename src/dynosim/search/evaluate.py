"""One trial: simulate a scenario, case by case, summarize it, score it. Never raises for what the scenario did."""

from __future__ import annotations

import math
import time
import traceback
from dataclasses import replace
from pathlib import Path

from dynosim.config import Scenario, cases_of
from dynosim.errors import InfeasibleError
from dynosim.metrics import slo_violations, summarize
from dynosim.objectives import resolve
from dynosim.search import cache
from dynosim.search.cases import by_load, combined, is_lost, lost
from dynosim.search.trial import Outcome, Status
from dynosim.simulation import LostCause, SimulationResult, simulate
from dynosim.uncertainty.evidence import evidence
from dynosim.uncertainty.sampling import relative
from dynosim.workload import load_workload
from dynosim.workload.table import Workload

Runs = dict[tuple[str, str], SimulationResult]
"""Simulations of one trial by deployment and workload: scenarios of prices need none of their own."""


def evaluate(scenario: Scenario, results: Path | None = None) -> Outcome:
    """Return what *scenario* does; a result that the file *results* has is taken from there, and a new one added.

    A deployment that cannot run is INFEASIBLE with its reason. Any other exception is FAILED with its
    traceback: a bug, or a user's objective that raises, exits or is not finite, must not end a search of hours. With
    ``optimizer.stop_lost_runs`` a simulation that is bound to miss an SLO ends early and is LOST, and so are the
    cases that are left.
    """
    start = time.perf_counter()
    try:
        outcome = _outcome(scenario, results)
    except (Exception, SystemExit):
        outcome = Outcome(Status.FAILED, reason=traceback.format_exc())
    return replace(outcome, wall_s=time.perf_counter() - start)


def _outcome(scenario: Scenario, results: Path | None) -> Outcome:
    """Return the outcome of the one case, or of all: those that ask the most of a GPU first, until one is lost."""
    cases, runs, seen = cases_of(scenario), Runs(), dict[str, Outcome]()
    for case in by_load(cases) if len(cases) > 1 else cases:
        outcome = score(case.scenario, _result(case.scenario, results, runs))
        if len(cases) == 1:
            return outcome
        if outcome.status is Status.INFEASIBLE:
            return replace(outcome, reason=f"{case.name}: {outcome.reason}")
        seen[case.name] = outcome
        if scenario.optimizer.stop_lost_runs and is_lost(scenario, outcome):
            return lost(scenario, len(cases), seen)
    return combined(scenario, cases, [seen[case.name] for case in cases])


def _result(scenario: Scenario, results: Path | None, runs: Runs) -> Outcome:
    """Return the outcome without objectives and SLOs, which need no simulation."""
    workload, stopped = load_workload(scenario.workload, scenario.seed), scenario.optimizer.stop_lost_runs
    key = cache.result_key(scenario, workload, stopped=stopped) if results else None
    if results is None or key is None:
        return _simulate(scenario, workload, runs)
    known = cache.load(results, key)
    if known is None:
        known = _simulate(scenario, workload, runs)
        whole = [] if known.status is Status.LOST else [cache.result_key(scenario, workload, stopped=False)]
        cache.save(results, {key, *filter(None, whole)}, known)
    return known


def _simulate(scenario: Scenario, workload: Workload, runs: Runs) -> Outcome:
    stop = LostCause(scenario.slo_of_each()) if scenario.optimizer.stop_lost_runs else None
    same = scenario.deployment.content_hash(), scenario.workload.content_hash()
    try:
        result = runs.get(same) or simulate(scenario.deployment, workload, seed=scenario.seed, stop=stop)
    except InfeasibleError as error:
        return Outcome(Status.INFEASIBLE, reason=str(error))
    runs[same] = result
    if result.lost:
        named = ", ".join(f"{name} by {violation:.0%}" for name, violation in result.lost.items())
        return Outcome(Status.LOST, constraints=result.lost, reason=f"misses at least {named}; ended early")
    metrics = summarize(result, scenario.slo, scenario.prices)
    if metrics.value("completed"):
        return Outcome(Status.COMPLETE, metrics=metrics.to_dict(), deviations=metrics.deviations)
    shortest = int((workload.input_tokens + workload.output_tokens).min())
    held = min(pool.kv_blocks * pool.block_size for pool in result.pools)
    reason = f"no request fits: a replica's KV blocks hold {held} tokens, the shortest needs {shortest}"
    return Outcome(Status.INFEASIBLE, reason=reason)


def score(scenario: Scenario, result: Outcome) -> Outcome:
    """Return a complete result with its objectives and SLOs; ValueError for an objective that is not finite."""
    if result.metrics is None:
        return result
    metrics = result.known_metrics()
    objectives = [resolve(config) for config in scenario.objectives]
    values = tuple(objective(metrics) for objective in objectives)
    for objective, value in zip(objectives, values, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"objective {objective.name} is {'NaN' if math.isnan(value) else value}")
    mark = evidence(scenario, metrics.flat())
    named = {o.name: relative(result.deviations, o.plain_name) for o in objectives if o.name != o.plain_name}
    deviations = {name: known.tolist() for name, known in named.items() if known is not None}
    result = replace(result, deviations={**result.deviations, **deviations})
    return replace(result, values=values, constraints=slo_violations(metrics, scenario.slo), evidence=mark)
