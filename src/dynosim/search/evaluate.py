"""One trial: simulate a scenario, summarize it, score it. Never raises for what the scenario did."""

from __future__ import annotations

import math
import time
import traceback
from dataclasses import replace

from dynosim.config import Scenario
from dynosim.errors import InfeasibleError
from dynosim.metrics import slo_violations, summarize
from dynosim.objectives import resolve
from dynosim.search.trial import Outcome, Status
from dynosim.simulation import simulate
from dynosim.workload import load_workload
from dynosim.workload.table import Workload


def evaluate(scenario: Scenario, workload: Workload | None = None) -> Outcome:
    """Return what *scenario* does under *workload*, by default its own.

    A deployment that cannot run is INFEASIBLE with its reason. Any other exception is FAILED with its
    traceback: a bug, or a user's objective that raises or returns NaN, must not end a search of hours.
    """
    start = time.perf_counter()
    try:
        outcome = _score(scenario, workload or load_workload(scenario.workload, scenario.seed))
    except InfeasibleError as error:
        outcome = Outcome(Status.INFEASIBLE, reason=str(error))
    except Exception:
        outcome = Outcome(Status.FAILED, reason=traceback.format_exc())
    return replace(outcome, wall_s=time.perf_counter() - start)


def _score(scenario: Scenario, workload: Workload) -> Outcome:
    result = simulate(scenario.deployment, workload, seed=scenario.seed)
    metrics = summarize(result, scenario.slo, scenario.prices)
    if not metrics.value("completed"):
        shortest = int((workload.input_tokens + workload.output_tokens).min())
        held = min(pool.kv_blocks * pool.block_size for pool in result.pools)
        raise InfeasibleError(
            f"no request fits: a replica's KV blocks hold {held} tokens, the shortest needs {shortest}"
        )
    objectives = [resolve(config) for config in scenario.objectives]
    values = tuple(float(objective.function(metrics)) for objective in objectives)
    for objective, value in zip(objectives, values, strict=True):
        if math.isnan(value):
            raise ValueError(f"objective {objective.name} is NaN")
    return Outcome(Status.COMPLETE, values, slo_violations(metrics, scenario.slo), metrics.to_dict())
