"""Replicas and queue over time of the deployments that scale, for the page.

Trials keep metrics, not courses of events, so the named picks and the baseline are simulated once more: equal
arguments give equal results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynosim.simulation import simulate
from dynosim.workload import load_workload

if TYPE_CHECKING:
    from dynosim.search.study import Study
    from dynosim.search.trial import Trial
    from dynosim.simulation.records import SimulationResult

SAMPLES = 400
"""Times at which the queue is shown."""


def timelines(study: Study) -> dict[str, Any]:
    """Return trial number -> what ``timeline`` says, of the simulated picks and baseline that have an autoscaler."""
    if not study.simulated:
        return {}
    shown = {trial.number: trial for trial in (*study.picks().values(), study.baseline) if trial and _scales(trial)}
    return {str(number): _timeline_of(trial) for number, trial in sorted(shown.items())}


def _scales(trial: Trial) -> bool:
    pools = trial.scenario.deployment.pools().values()
    return trial.outcome.metrics is not None and any(pool.autoscaler for pool in pools)


def _timeline_of(trial: Trial) -> dict[str, Any]:
    scenario = trial.scenario
    workload = load_workload(scenario.workload, scenario.seed)
    return timeline(simulate(scenario.deployment, workload, seed=scenario.seed))


def timeline(result: SimulationResult) -> dict[str, Any]:
    """Return the course of a run, times in s after the first arrival.

    ``pools``: role -> ``time_s``, ``provisioned`` and ``serving`` replicas, a step at every change. ``queue``: requests
    that have come and not been scheduled, at ``SAMPLES`` times.
    """
    arrival, scheduled = (np.sort(result.requests[name]) for name in ("arrival_s", "scheduled_s"))
    start = float(np.nanmin(arrival))
    times = np.linspace(start, start + result.duration_s, SAMPLES)
    waiting = np.searchsorted(arrival, times, "right") - np.searchsorted(scheduled, times, "right")
    pools = {}
    for pool in result.pools:
        changes = np.vstack([pool.timeline, pool.timeline[-1]])
        changes[-1, 0] = start + result.duration_s
        columns = (changes[:, 0] - start, changes[:, 1], changes[:, 2])
        pools[pool.role] = dict(zip(("time_s", "provisioned", "serving"), map(np.ndarray.tolist, columns), strict=True))
    return {"pools": pools, "queue": {"time_s": (times - start).tolist(), "requests": waiting.tolist()}}
