"""``simulate``: one deployment, one workload, one seed, one result."""

from __future__ import annotations

import numpy as np

from dynosim.config import DeploymentConfig
from dynosim.hardware.startup import check
from dynosim.simulation import gaps
from dynosim.simulation.cluster import Cluster
from dynosim.simulation.lost import LostCause
from dynosim.simulation.pool_runtime import PoolRuntime
from dynosim.simulation.records import PoolRecord, SimulationResult
from dynosim.simulation.state import LINK_COLUMNS
from dynosim.workload.table import Workload

LINKS = {
    "h2d": "host_read",
    "d2h": "host_write",
    "net_out": "kv_transfer",
    "net_in": "kv_transfer",
    "nvlink_out": "nvlink",
    "nvlink_in": "nvlink",
    "rack_out": "rack_uplink",
    "rack_in": "rack_uplink",
}
"""Names in ``PoolRecord.link_utilization`` where they differ from the engine's."""


def simulate(
    deployment: DeploymentConfig, workload: Workload, seed: int = 0, stop: LostCause | None = None
) -> SimulationResult:
    """Serve *workload* on *deployment* in virtual time; pure, and byte-equal for equal arguments.

    With *stop* a run ends early where it has provably lost an SLO; any other is byte-equal to the run without.

    Raises InfeasibleError when the model does not fit, TimingError when the pass times are unknown, ConfigError for
    names that do not exist.
    """
    cluster = Cluster(deployment, check(deployment), workload, seed, stop)
    cluster.run()
    cluster.keep_results()
    requests = cluster.records()
    stopped = not cluster.idle
    start_s = min(float(np.nanmin(cluster.sessions.sent_s)), cluster.end_s)
    ended_s = np.fmax(requests["last_token_s"], cluster.failures.failed_s)
    end_s = cluster.end_s if stopped else float(np.nanmax(ended_s, initial=start_s))
    runtimes = cluster.runtimes.values()
    result = SimulationResult(
        requests=requests,
        gaps=gaps.merge([runtime.pool.gaps() for runtime in runtimes]),
        pools=tuple(_pool_record(runtime, start_s, end_s) for runtime in runtimes),
        duration_s=end_s - start_s,
        warmup_requests=workload.warmup_requests,
        timing=tuple(runtime.pool.tables.provenance for runtime in runtimes),
        stopped=("slo" if cluster.lost else "duration") if stopped else "",
        lost=cluster.lost,
    )
    cluster.release()
    return result


def _pool_record(runtime: PoolRuntime, start_s: float, end_s: float) -> PoolRecord:
    """Return what a pool did from *start_s* to *end_s*."""
    pool, config, rows = runtime.pool, runtime.pool.config, runtime.pool.engine.rows
    rows_per_replica = pool.lanes * pool.ranks
    replica_s = runtime.fleet.replica_seconds(start_s, end_s)
    busy_rows_s = float(rows["busy_s"].sum())
    block_s = replica_s * rows_per_replica * pool.capacity.blocks
    return PoolRecord(
        role=pool.role,
        gpu=pool.plan.gpu_name,
        replicas=config.replicas,
        gpus_per_replica=config.gpus_per_replica,
        kv_blocks=pool.capacity.blocks,
        block_size=pool.capacity.block_size,
        max_num_seqs=config.running_seqs,
        gpu_seconds=replica_s * config.gpus_per_replica,
        busy_s=busy_rows_s / rows_per_replica,
        passes=int(rows["passes"].sum()),
        prefill_tokens=int(rows["prefill_done_tokens"].sum()),
        decode_tokens=int(rows["decode_done_tokens"].sum()),
        mean_batch=float(rows["batch_time"].sum()) / max(busy_rows_s, 1e-12),
        mean_kv_utilization=float(rows["block_time"].sum()) / max(block_s, 1e-12),
        extrapolated_pass_share=float(rows["extrapolated_s"].sum()) / max(busy_rows_s, 1e-12),
        timeline=runtime.fleet.timeline(start_s, end_s),
        decode_rounds=int(pool.engine.jobs["rounds"].sum()),
        link_utilization=_link_utilization(runtime, end_s - start_s),
    )


def _link_utilization(runtime: PoolRuntime, duration_s: float) -> dict[str, float]:
    """Return moved bytes over bandwidth x duration, of all links of one kind together, at most 1: copies to lower
    tiers go on after the last token."""
    engine, found = runtime.pool.engine, dict[str, float]()
    for column, name in enumerate(LINK_COLUMNS):
        links = engine.links[np.unique(engine.row_links[:, column][engine.row_links[:, column] >= 0])]
        capacity = float(links["bytes_s"].sum()) * duration_s
        if capacity > 0.0:
            name = LINKS.get(name, name)
            found[name] = max(found.get(name, 0.0), min(float(links["bytes"].sum()) / capacity, 1.0))
    return found
