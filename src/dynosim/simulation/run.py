"""``simulate``: one deployment, one workload, one seed, one result."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.config import DeploymentConfig
from dynosim.hardware import memory
from dynosim.simulation import gaps, records
from dynosim.simulation.cluster import FIRST_TOKEN, Cluster
from dynosim.simulation.records import REQUEST_DTYPE, SimulationResult
from dynosim.workload.table import Workload


def simulate(deployment: DeploymentConfig, workload: Workload, seed: int = 0) -> SimulationResult:
    """Serve *workload* on *deployment* in virtual time; pure, and byte-equal for equal arguments.

    Raises InfeasibleError when the model does not fit, TimingError when the pass times are unknown, ConfigError for
    names that do not exist.
    """
    memory.check(deployment)
    cluster = Cluster(deployment, workload, seed)
    cluster.run()
    requests = _requests(cluster)
    ends = requests["last_token_s"][np.isfinite(requests["last_token_s"])]
    duration_s = float(ends.max() - requests["arrival_s"].min()) if len(ends) else 0.0
    pools = cluster.pools.values()
    return SimulationResult(
        requests=requests,
        gaps=gaps.merge([pool.gaps() for pool in pools]),
        pools=tuple(pool.record(duration_s) for pool in pools),
        duration_s=duration_s,
        warmup_requests=workload.warmup_requests,
        timing=tuple(pool.tables.provenance for pool in pools),
    )


def _requests(cluster: Cluster) -> NDArray[Any]:
    """Join what the pools know of each request and split its time, so that the parts sum to its latency."""
    first_pool, last_pool = next(iter(cluster.pools.values())), list(cluster.pools.values())[-1]
    prefill, decode = first_pool.engine.jobs, last_pool.engine.jobs
    out = np.zeros(len(cluster.workload), REQUEST_DTYPE)
    out["arrival_s"], out["scheduled_s"], out["prefill_done_s"] = (
        cluster.arrival_s,
        prefill["scheduled"],
        prefill["first"],
    )
    out["input_tokens"], out["output_tokens"] = cluster.workload.input_tokens, cluster.workload.output_tokens
    out["second_token_s"] = decode["second"]
    out["cached_tokens"], out["preemptions"] = prefill["cached"], prefill["preemptions"]
    out["prefill_replica"], out["decode_replica"] = prefill["replica"], decode["replica"]
    if first_pool is last_pool:
        out["kv_landed_s"] = out["first_token_s"] = decode_start = prefill["first"]
        out["last_token_s"] = prefill["last"]
        out["preempted_s"], lost = prefill["preempted_prefill_s"], prefill["preempted_decode_s"]
        out["stall_s"] = prefill["stall_s"]
    else:
        decode_start, lost = _join_hand_off(out, cluster, prefill, decode)
    _split(out, decode_start, lost)
    out["status"] = np.where(
        np.isfinite(out["last_token_s"]),
        records.COMPLETED,
        np.where(cluster.admissible, records.INCOMPLETE, records.REJECTED),
    )
    return out


def _join_hand_off(
    out: NDArray[Any], cluster: Cluster, prefill: NDArray[Any], decode: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Fill in the decode pool's part; returns when decoding began and what preemption took of it."""
    moved = cluster.workload.output_tokens > 1
    landed = out["kv_landed_s"] = np.where(moved, cluster.landed_s, prefill["first"])
    shown = {"decode": decode["first"], "transfer": landed, "prefill": prefill["first"]}
    out["first_token_s"] = np.where(moved, shown[FIRST_TOKEN[cluster.deployment.engine.name]], prefill["first"])
    out["last_token_s"] = np.where(moved, decode["last"], prefill["last"])
    out["preemptions"] += decode["preemptions"]
    out["preempted_s"], out["stall_s"] = (
        prefill["preempted_prefill_s"],
        np.where(moved, decode["stall_s"], 0.0),
    )
    return landed, decode["preempted_prefill_s"] + decode["preempted_decode_s"]


def _split(out: NDArray[Any], decode_start: NDArray[Any], lost: NDArray[Any]) -> None:
    """Cut the latency at the phase borders and take the preempted and stalled time out of the phase it fell in.

    ``preempted_s`` comes in with prefill's part only; *lost* is decode's. The parts sum to the latency up to rounding.
    """
    out["queue_s"] = out["scheduled_s"] - out["arrival_s"]
    out["prefill_s"] = out["prefill_done_s"] - out["scheduled_s"] - out["preempted_s"]
    out["kv_transfer_s"] = decode_start - out["prefill_done_s"]
    out["decode_s"] = out["last_token_s"] - decode_start - lost - out["stall_s"]
    out["preempted_s"] += lost
