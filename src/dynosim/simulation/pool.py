"""One pool of equal replicas: builds the compiled engine's arrays and speaks to it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.config import DeploymentConfig, PoolConfig
from dynosim.hardware.memory import KVCapacity, kv_capacity
from dynosim.policies.base import PoolView
from dynosim.simulation import engine as core
from dynosim.simulation import gaps
from dynosim.simulation.compiled import handle_of
from dynosim.simulation.kv_cache import SLOT
from dynosim.simulation.records import PoolRecord, TokenGaps
from dynosim.timing import forward_times
from dynosim.timing.base import PassTables
from dynosim.workload.table import IntArray, Workload

TABLES = ("tokens_s", "graph_tokens_s", "decode_context", "decode_s", "prefill_seq", "prefill_share_s")


class Pool:
    """Replicas of one role. Job *i* is request *i* of the workload.

    A *prefill* pool ends every request at its first token and keeps the blocks until ``release``. With *watch* the
    engine reports every request that ends.
    """

    def __init__(
        self, role: str, config: PoolConfig, deployment: DeploymentConfig, workload: Workload, *, watch: bool
    ) -> None:
        self.role, self.config, self.gpu = role, config, deployment.pool_gpu(config)
        self.capacity = kv_capacity(deployment, config)
        self.tables = forward_times(deployment, config).tables(
            max_num_seqs=config.max_num_seqs, max_num_batched_tokens=config.max_num_batched_tokens
        )
        node_tokens, offsets, ids = _nodes(workload, config, self.capacity.block_size)
        self.engine = core.Engine(
            limits=_limits(role, config, self.capacity, self.tables, workload, node_tokens, watch),
            replicas=_replicas(config.replicas, self.capacity.blocks),
            jobs=_jobs(role, workload, offsets),
            running=np.zeros((config.replicas, config.max_num_seqs), np.int32),
            slots=_slots(config.replicas, self.capacity.blocks),
            buckets=np.zeros((config.replicas, _buckets(self.capacity, node_tokens)), np.int32),
            hash_ids=np.ascontiguousarray(ids, np.int64),
            held=np.zeros(len(ids) + 1, np.int32),
            events=np.zeros(2 * len(workload) + config.replicas * config.max_num_seqs, core.EVENT),
            gap_count=np.zeros(gaps.BINS),
            gap_sum=np.zeros(gaps.BINS),
            gap_range=np.array([math.inf, -math.inf]),
            **{name: np.ascontiguousarray(getattr(self.tables, name), np.float64) for name in TABLES},
        )
        self.handle = handle_of(self.engine)

    def fits(self, workload: Workload) -> NDArray[np.bool_]:
        """Return which requests can ever run here: whole context in the blocks, prompt in an unchunked pass."""
        limits = self.engine.limits[0]
        tokens = workload.input_tokens + self.engine.jobs["output"]
        # One block more for the last prompt block, which a full prefix hit computes again beside the cached one.
        fits = -(-tokens // limits["block_size"]) + 1 <= limits["num_blocks"]
        if not limits["chunked"]:
            fits &= tokens <= limits["max_num_batched_tokens"]
        return np.asarray(fits)

    def view(self, job: int, time: float, overlap: bool) -> PoolView:
        """Return what a router sees at *time*; without *overlap* no replica has the prompt's prefix."""
        replicas = self.engine.replicas

        def cached_tokens() -> IntArray:
            out = np.zeros(len(replicas), np.int64)
            if overlap:
                core.cached_tokens(self.handle, job, time, out)
            return out

        return PoolView(
            role=self.role,
            block_size=self.capacity.block_size,
            targets=np.arange(len(replicas)),
            outstanding_requests=replicas["outstanding"],
            prefill_tokens=replicas["prefill_load"],
            kv_tokens=replicas["kv_load"],
            cached_tokens=cached_tokens,
            host_cached_tokens=lambda: np.zeros(len(replicas), np.int64),
        )

    def record(self, duration_s: float) -> PoolRecord:
        """Return what the pool did in *duration_s* seconds."""
        replicas, limits = self.engine.replicas, self.engine.limits[0]
        busy = float(replicas["busy_s"].sum())
        return PoolRecord(
            role=self.role,
            gpu=self.gpu,
            replicas=len(replicas),
            gpus_per_replica=self.config.tensor_parallel_size,
            kv_blocks=self.capacity.blocks,
            block_size=self.capacity.block_size,
            max_num_seqs=self.config.max_num_seqs,
            gpu_seconds=duration_s * len(replicas) * self.config.tensor_parallel_size,
            busy_s=busy,
            passes=int(replicas["passes"].sum()),
            prefill_tokens=int(replicas["prefill_done_tokens"].sum()),
            decode_tokens=int(replicas["decode_done_tokens"].sum()),
            mean_batch=float(replicas["batch_time"].sum()) / max(busy, 1e-12),
            mean_kv_utilization=float(replicas["block_time"].sum())
            / max(duration_s * len(replicas) * int(limits["num_blocks"]), 1e-12),
            extrapolated_pass_share=float(replicas["extrapolated_s"].sum()) / max(busy, 1e-12),
        )

    def gaps(self) -> TokenGaps:
        """Return the token gaps of all replicas."""
        low, high = self.engine.gap_range
        return TokenGaps(self.engine.gap_count, self.engine.gap_sum, float(low), float(high))


def _nodes(workload: Workload, config: PoolConfig, block_size: int) -> tuple[int, IntArray, IntArray]:
    """Return (tokens per node, offsets, ids): the trace's block ids on a grid that whole KV blocks fit into.

    Where KV blocks do not fit into the trace's blocks, a node is one KV block: two are equal when they stand at the
    same place and the trace's block that holds their last token is equal, because equal ids mean equal prefixes.
    """
    if not workload.hash_block_tokens or not config.enable_prefix_caching:
        return 1, np.zeros(len(workload) + 1, np.int64), np.zeros(0, np.int64)
    if workload.hash_block_tokens % block_size == 0:
        return workload.hash_block_tokens, workload.hash_offsets, workload.hash_ids
    counts = workload.input_tokens // block_size
    offsets = np.concatenate([[0], np.cumsum(counts)])
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    holder = ((place + 1) * block_size - 1) // workload.hash_block_tokens
    ids = workload.hash_ids[np.repeat(workload.hash_offsets[:-1], counts) + holder]
    _, dense = np.unique(np.column_stack([ids, place]), axis=0, return_inverse=True)
    return block_size, offsets, dense.astype(np.int64)


def _limits(
    role: str,
    config: PoolConfig,
    capacity: KVCapacity,
    tables: PassTables,
    workload: Workload,
    node_tokens: int,
    watch: bool,
) -> NDArray[Any]:
    limits = np.zeros(1, core.LIMITS)
    row = limits[0]
    for name in ("max_num_seqs", "max_num_batched_tokens"):
        row[name] = getattr(config, name)
    row["block_size"] = capacity.block_size
    row["chunked"] = config.enable_chunked_prefill
    row["caching"] = config.enable_prefix_caching and workload.hash_block_tokens > 0
    row["reserve_full"] = config.scheduler_reserve_full_isl
    row["hold"], row["watch"], row["fused"] = role == "prefill", watch, tables.fused
    row["num_blocks"], row["hash_tokens"] = capacity.blocks, node_tokens
    row["warmup"] = workload.warmup_requests
    row["measured_tokens"] = tables.measured_tokens or math.inf
    row["measured_context"] = tables.measured_context or math.inf
    return limits


def _replicas(count: int, blocks: int) -> NDArray[Any]:
    replicas = np.zeros(count, core.REPLICA)
    replicas["end"] = math.inf
    replicas["wait_head"] = replicas["wait_tail"] = core.NONE
    replicas["lru_head"] = replicas["lru_tail"] = replicas["slots_used"] = 1
    replicas["free_blocks"] = blocks
    return replicas


def _slots(replicas: int, blocks: int) -> NDArray[Any]:
    """Return the slots of every replica: number 1 is all blocks, empty. Untouched pages of zeros cost no memory."""
    slots = np.zeros((replicas, blocks + 2), SLOT)
    slots["key"][:, 1], slots["count"][:, 1] = -1, blocks
    return slots


def _buckets(capacity: KVCapacity, node_tokens: int) -> int:
    """Return a power of two near the number of whole nodes that fit."""
    return 1 << max(4, (capacity.tokens // node_tokens).bit_length())


def _jobs(role: str, workload: Workload, offsets: IntArray) -> NDArray[Any]:
    jobs = np.zeros(len(workload), core.JOB)
    for name in ("scheduled", "first", "second", "last", "gap_from", "preempted_at"):
        jobs[name] = math.nan
    jobs["input"] = workload.input_tokens
    jobs["output"] = 1 if role == "prefill" else workload.output_tokens
    jobs["hash_start"], jobs["hash_count"] = offsets[:-1], np.diff(offsets)
    jobs["kv"] = core.REMOTE if role == "decode" else core.LOCAL
    jobs["replica"] = core.NONE
    return jobs
