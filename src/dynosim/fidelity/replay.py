"""Replays a measured run: the deployment and workload of a row, simulated, in the row's own metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from dynosim.config import DeploymentConfig, PriceConfig, RooflineTiming
from dynosim.errors import DynosimError, InfeasibleError, TimingError
from dynosim.fidelity.deployments import first_prompts_s, run_of
from dynosim.fidelity.measurements import Measurement
from dynosim.fidelity.workloads import requests_of
from dynosim.hardware.models import get_model
from dynosim.hardware.plan import pool_plans
from dynosim.hardware.startup import check
from dynosim.metrics import Metrics, summarize
from dynosim.simulation import SimulationResult, simulate
from dynosim.simulation.records import COMPLETED
from dynosim.timing import build_missing, forward_times
from dynosim.uncertainty.model_band import evidence_class


@dataclass(frozen=True)
class Outcome:
    """What the simulator says of one measured run."""

    measurement: Measurement
    predicted: Mapping[str, float]
    """In the row's metrics, wherever the simulation has the value."""
    evidence: str = ""
    """Its class, ``tables/dense`` and the like (``uncertainty.model_band``)."""
    problem: str | None = None
    """Why there is no prediction."""
    requests: Mapping[str, NDArray[np.float64]] | None = None
    """Per-request columns, where the row has a per-request log."""
    deployment: DeploymentConfig | None = None
    """What was simulated, or could not be."""
    unread: tuple[str, ...] = ()
    """Flags and phrases of the row's notes that are not simulated."""


def replay(measurement: Measurement) -> Outcome:
    """Simulate the run of *measurement*; a run that cannot be simulated says why."""
    outcome = Outcome(measurement, {})
    try:
        deployment, unread = run_of(measurement)
        outcome = replace(outcome, deployment=deployment, unread=unread)
        fitting = _fitting(deployment)
        if fitting != deployment:
            outcome = replace(outcome, unread=(*unread, "memory share: raised, it would not have started"))
        return _predicting(replace(outcome, deployment=timed(fitting)))
    except DynosimError as error:
        return replace(outcome, problem=str(error))
    except ValidationError as error:
        return replace(outcome, problem=error.errors()[0]["msg"])


def _predicting(outcome: Outcome) -> Outcome:
    """Return *outcome* with what its deployment does under the row's load."""
    row, deployment = outcome.measurement, outcome.deployment
    assert deployment is not None
    result = _late(_simulated(row, deployment), first_prompts_s(row))
    if not (result.requests["status"] == COMPLETED).any():
        raise InfeasibleError("no request was completed")
    predicted = _predicted(row, summarize(result, {}, PriceConfig()))
    keep = row.load_kind.startswith(("closed-loop multi-turn", "open-loop trace"))
    evidence = evidence_class(deployment) or ""
    return replace(outcome, predicted=predicted, evidence=evidence, requests=_requests(result) if keep else None)


def _late(result: SimulationResult, seconds: float) -> SimulationResult:
    """Return *result* with its first pass so much longer: who came first waits, and all else happens later."""
    if not seconds:
        return result
    requests, times = result.requests.copy(), ("arrival_s", "first_token_s", "second_token_s", "last_token_s")
    first = requests["arrival_s"] == requests["arrival_s"].min()
    for name in times:
        requests[name] += np.where(first, 0.0, seconds) if name == "arrival_s" else seconds
    return replace(result, requests=requests)


def _simulated(row: Measurement, deployment: DeploymentConfig) -> SimulationResult:
    """Simulate the row; clients that stop at a number of answers leave the rest unsent, so that few are ever idle."""
    workload = requests_of(row)
    result = simulate(deployment, workload)
    stop = int(row.facts.get("stop_after", 0))
    ended_s = np.sort(result.requests["last_token_s"][result.requests["status"] == COMPLETED])
    if not 0 < stop < len(ended_s):
        return result
    return simulate(deployment, workload.take(np.flatnonzero(result.requests["arrival_s"] <= ended_s[stop - 1])))


def _fitting(deployment: DeploymentConfig) -> DeploymentConfig:
    """Return the deployment as it is, or where it would not start with more memory, then with whole experts: the real
    one has run."""
    relaxed: list[dict[str, Any]] = [{"gpu_memory_utilization": 0.97}]
    relaxed += [relaxed[0] | {"enable_expert_parallel": True}] if get_model(deployment.model).moe else []
    for update in relaxed:
        try:
            check(deployment)
        except InfeasibleError:
            deployment = _with_pools(deployment, update)
    check(deployment)
    return deployment


def _with_pools(deployment: DeploymentConfig, update: dict[str, Any]) -> DeploymentConfig:
    pools = {role: pool.model_copy(update=update) for role, pool in deployment.pools().items()}
    if deployment.disaggregated is None:
        return deployment.model_copy(update={"aggregated": pools["mixed"]})
    return deployment.model_copy(update={"disaggregated": deployment.disaggregated.model_copy(update=pools)})


def timed(deployment: DeploymentConfig) -> DeploymentConfig:
    """Return the deployment with a timing source that has data for it: kernel tables where they exist.

    A pack that is not at hand is built where the extra ``[aic]`` is installed.
    """
    plans = pool_plans(deployment).values()
    try:
        build_missing(plans)
        for plan in plans:
            forward_times(plan)
        return deployment
    except TimingError:
        return deployment.model_copy(update={"timing": RooflineTiming()})


def _predicted(row: Measurement, metrics: Metrics) -> dict[str, float]:
    stage = row.load_kind.startswith("open-loop constant-rate")
    tpot = "inter_chunk_latency" if stage else "inter_token_latency"
    found = {
        "tpot_ms_mean": metrics.value(tpot),
        "tpot_ms_p99": metrics.value(tpot, "p99"),
        "ttft_ms_mean": metrics.value("time_to_first_token"),
        "ttft_ms_p99": metrics.value("time_to_first_token", "p99"),
        "output_tok_s_per_gpu": metrics.value("output_token_throughput_per_gpu"),
        "e2e_ms_mean": metrics.value("request_latency"),
        "e2e_ms_p99": metrics.value("request_latency", "p99"),
        "kv_transfer_ms": metrics.value("kv_transfer_time"),
        "prefix_hit_percent": _percent(metrics.value("prefix_cache_hit_rate")),
        "host_hit_percent": _percent(metrics.value("host_cache_hit_rate")),
    }
    return {name: value for name, value in found.items() if value is not None}


def _percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * share


def _requests(result: SimulationResult) -> dict[str, NDArray[np.float64]]:
    done = result.requests[result.requests["status"] == COMPLETED]
    gaps = np.maximum(done["output_tokens"] - 1, 1)
    return {
        "start_s": done["arrival_s"],
        "ttft_ms": 1e3 * (done["first_token_s"] - done["arrival_s"]),
        "tpot_ms": 1e3 * (done["last_token_s"] - done["first_token_s"]) / gaps,
        "latency_ms": 1e3 * (done["last_token_s"] - done["arrival_s"]),
        "input_tokens": done["input_tokens"].astype(float),
        "output_tokens": done["output_tokens"].astype(float),
    }
