"""Laws that every run obeys, whatever is configured: checked on the result and on what is left in the engine."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

from dynosim.config import DeploymentConfig, PriceConfig
from dynosim.metrics import Metrics, summarize
from dynosim.simulation import SimulationResult, cluster, simulate
from dynosim.simulation.pool import Pool
from dynosim.simulation.records import COMPLETED, FAILED, INCOMPLETE, REJECTED, UNSENT, WAIT_REASONS
from dynosim.workload.table import Workload

PARTS = ("queue_s", "prefill_s", "kv_transfer_s", "decode_s", "preempted_s", "stall_s")
SLACK_S = 1e-9


@dataclass(frozen=True)
class Run:
    """One simulation and the pools as it left them."""

    deployment: DeploymentConfig
    workload: Workload
    result: SimulationResult
    pools: list[Pool]


def run(deployment: DeploymentConfig, workload: Workload, seed: int = 0) -> Run:
    """Simulate and keep the pools."""
    pools: list[Pool] = []

    def keep(*args: Any, **kwargs: Any) -> Pool:
        pools.append(Pool(*args, **kwargs))
        return pools[-1]

    with (
        mock.patch.object(cluster, "Pool", keep),
        mock.patch.multiple(cluster.Cluster, keep_results=mock.DEFAULT, release=mock.DEFAULT),
    ):
        return Run(deployment, workload, simulate(deployment, workload, seed), pools)


def fingerprint(result: SimulationResult) -> bytes:
    """Return all bytes of a result that must be equal for equal arguments."""
    gaps = (result.gaps.count, result.gaps.sum_s, np.array([result.gaps.min_s, result.gaps.max_s]))
    arrays = (result.requests, *gaps, *(pool.timeline for pool in result.pools))
    return b"".join(array.tobytes() for array in arrays) + repr(result.pools).encode()


def check(done: Run) -> None:
    """Raise AssertionError where a law is broken."""
    requests_are_conserved(done)
    time_goes_forward(done)
    time_is_split_exactly(done)
    tokens_are_counted(done)
    blocks_are_conserved(done)
    pools_are_plausible(done)
    metrics_are_numbers(done)


def requests_are_conserved(done: Run) -> None:
    requests, n = done.result.requests, len(done.workload)
    assert len(requests) == n
    counts = {status: int((requests["status"] == status).sum()) for status in range(5)}
    assert sum(counts.values()) == n
    assert (np.isfinite(requests["last_token_s"]) >= (requests["status"] == COMPLETED)).all()
    if done.result.stopped:
        assert math.isfinite(done.workload.end_s)
        assert counts[INCOMPLETE] + counts[UNSENT] > 0
    else:
        assert counts[INCOMPLETE] == counts[UNSENT] == 0, "left over without a stop rule"
    if done.deployment.failures.mtbf_s is None and not done.deployment.failures.crashes:
        assert counts[FAILED] == 0


def time_goes_forward(done: Run) -> None:
    requests, workload = done.result.requests, done.workload
    ok = requests[requests["status"] == COMPLETED]
    stages = [ok[name] for name in ("arrival_s", "scheduled_s", "prefill_done_s", "kv_landed_s", "last_token_s")]
    for earlier, later in itertools.pairwise(stages):
        assert (later >= earlier - SLACK_S).all()
    assert (ok["first_token_s"] >= ok["scheduled_s"] - SLACK_S).all()
    assert (ok["first_token_s"] <= ok["last_token_s"] + SLACK_S).all()
    second = ok[ok["output_tokens"] > 1]
    assert (second["second_token_s"] >= second["first_token_s"] - SLACK_S).all()
    assert (second["second_token_s"] <= second["last_token_s"] + SLACK_S).all()
    assert not (ok["last_token_s"] > workload.end_s + SLACK_S).any()
    if workload.concurrency is None:
        roots = np.diff(workload.after_offsets) == 0
        np.testing.assert_array_equal(requests["arrival_s"][roots], workload.arrival_s[roots])
    waiting = np.repeat(np.arange(len(workload)), np.diff(workload.after_offsets))
    sent = np.isfinite(requests["arrival_s"][waiting])
    ended = np.fmax(requests["last_token_s"], -math.inf)[workload.after_ids]
    gone = np.isin(requests["status"][workload.after_ids], (REJECTED, FAILED))
    late = requests["arrival_s"][waiting] >= ended + workload.delay_s[waiting] - SLACK_S
    assert (late | gone | ~sent).all()


def time_is_split_exactly(done: Run) -> None:
    ok = done.result.requests[done.result.requests["status"] == COMPLETED]
    latency = ok["last_token_s"] - ok["arrival_s"]
    np.testing.assert_allclose(sum(ok[part] for part in PARTS), latency, rtol=0, atol=1e-8)
    waits = [f"wait_{reason}_s" for reason in WAIT_REASONS]
    np.testing.assert_allclose(sum(ok[wait] for wait in waits), ok["queue_s"], rtol=0, atol=1e-8, err_msg="waits")
    for part in (*PARTS, *waits):
        assert (ok[part] >= -1e-8).all(), part


def tokens_are_counted(done: Run) -> None:
    requests, result = done.result.requests, done.result
    ok = requests[requests["status"] == COMPLETED]
    hits = [ok["cached_tokens"], ok["cached_host_tokens"], ok["cached_disk_tokens"], ok["cached_remote_tokens"]]
    assert all((hit >= 0).all() for hit in hits)
    assert (sum(hits) < ok["input_tokens"]).all(), "the last prompt token is computed"
    measured = requests[done.workload.warmup_requests :]
    if not result.stopped and not (requests["retries"] > 0).any() and not (requests["status"] == FAILED).any():
        tokens = measured["output_tokens"][measured["status"] == COMPLETED]
        assert result.gaps.count.sum() == (tokens - 1).sum(), "every token but a request's first closes a gap"


def blocks_are_conserved(done: Run) -> None:
    for pool in done.pools:
        e, idle = pool.engine, not done.result.stopped
        for row in np.unique(e.rows["cache"]):
            cache = e.caches[row]
            slots = e.slots[cache["slot_base"] + 1 : cache["slots_used"] + 1]
            held = e.jobs["own"][np.isin(e.jobs["row"], np.flatnonzero(e.rows["cache"] == row))].sum()
            free = _queue(e, cache)
            assert cache["slots_used"] - cache["slot_base"] <= cache["num_blocks"] + 1, "more slots than blocks"
            assert sum(e.slots["count"][free]) + cache["empty"] == cache["free_blocks"]
            assert len(set(free)) == len(free)
            assert not e.slots["refs"][free].any()
            used = slots[slots["refs"] > 0]["count"].sum()
            assert (e.slots["key"][free] < 0).sum() + (slots["key"][slots["refs"] > 0] < 0).sum() == cache["copies"]
            assert used + held + cache["free_blocks"] == pool.capacity.blocks, "blocks are lost"
            # At a stop, copies to lower tiers may still be on their way.
            drained = idle and math.isinf(done.workload.end_s)
            assert cache["free_blocks"] == pool.capacity.blocks or not drained, "blocks are held by nobody"
        for name in ("outstanding", "prefill_load", "kv_load", "active_blocks"):
            assert not e.rows[name].any() or not idle, name
            assert (e.rows[name] >= 0).all(), name


def _queue(e: Any, cache: Any) -> list[int]:
    """Slots of the free queue, oldest first."""
    found, slot = list[int](), int(cache["lru_head"])
    while slot:
        found.append(slot)
        slot = int(e.slots[slot]["next"])
    return found


def pools_are_plausible(done: Run) -> None:
    result = done.result
    for pool in result.pools:
        replica_s = pool.gpu_seconds / pool.gpus_per_replica
        assert -SLACK_S <= pool.busy_s <= replica_s * (1 + 1e-9) + SLACK_S, "busier than there is time"
        assert -SLACK_S <= pool.mean_kv_utilization <= 1 + 1e-9
        assert 0 <= pool.mean_batch <= pool.max_num_seqs * (1 + 1e-9)
        assert 0 <= pool.extrapolated_pass_share <= 1 + 1e-9
        assert all(-SLACK_S <= x <= 1 + 1e-6 for x in pool.link_utilization.values()), pool.link_utilization
        assert (np.diff(pool.timeline[:, 0]) >= 0).all()
    ok = result.requests[result.requests["status"] == COMPLETED]
    computed = sum(pool.prefill_tokens for pool in result.pools)
    hits = sum(
        ok[name].sum() for name in ("cached_tokens", "cached_host_tokens", "cached_disk_tokens", "cached_remote_tokens")
    )
    again = ok["preemptions"].any() or result.requests["retries"].any()  # hits of later admissions are not recorded
    assert again or computed >= ok["input_tokens"].sum() - hits


def metrics_are_numbers(done: Run) -> None:
    metrics = summarize(done.result, {"time_to_first_token": {"p95": 900.0}}, PriceConfig())
    for name, value in metrics.flat().items():
        assert math.isfinite(value), name
    assert metrics.value("stopped_early") == float(bool(done.result.stopped))
    measured = done.result.requests[done.result.warmup_requests :]
    tails_are_split_exactly(metrics, measured[measured["status"] == COMPLETED])


def tails_are_split_exactly(metrics: Metrics, ok: np.ndarray) -> None:
    ttft, after = ok["first_token_s"] - ok["arrival_s"], ok["last_token_s"] - ok["first_token_s"]
    latency = ok["last_token_s"] - ok["arrival_s"]
    with np.errstate(divide="ignore", invalid="ignore"):
        itl = np.where(ok["output_tokens"] > 1, after / (ok["output_tokens"] - 1), np.nan)
    for tail, by, spent in (("ttft", ttft, ttft), ("itl", itl, after), ("latency", latency, latency)):
        by_ms = 1e3 * by
        if len(known := by_ms[np.isfinite(by_ms)]):
            slowest = by_ms >= np.percentile(known, 99.0)
            parts = [metrics.value(f"{part[:-2]}_time", f"tail_{tail}") or 0.0 for part in PARTS]
            assert min(parts) >= -1e-5
            assert math.isclose(sum(parts), 1e3 * spent[slowest].mean(), rel_tol=1e-6, abs_tol=1e-4), tail
