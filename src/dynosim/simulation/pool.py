"""One pool of equal replicas: builds the compiled engine's arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim import rng
from dynosim.config import PoolConfig, TierConfig
from dynosim.hardware.plan import PoolPlan
from dynosim.policies import registry
from dynosim.policies.base import QueueView, SchedulingPolicy
from dynosim.simulation import gaps, state
from dynosim.simulation.arrays import sparse_zeros
from dynosim.simulation.compiled import handle_of, load
from dynosim.simulation.network import Network
from dynosim.simulation.nodes import PrefixNodes, prefix_nodes
from dynosim.simulation.records import TokenGaps
from dynosim.timing import effective_tables
from dynosim.timing.base import PassTables
from dynosim.workload.table import IntArray, Workload

TABLES = ("tokens_s", "graph_tokens_s", "decode_context", "decode_s", "prefill_seq", "prefill_share_s", "expert_s")
FIRST_TOKEN = {"decode": state.BY_DECODE, "transfer": state.BY_TRANSFER, "prefill": state.BY_PREFILL}
SCHEDULER = {"in_turn": state.VLLM, "prompts_first": state.SGLANG, "no_evict": state.NO_EVICT}
RESULTS = ("limits", "rows", "jobs", "job_waits", "row_links", "links", "gap_count", "gap_sum", "gap_range")
"""Arrays of the engine that a result is made of."""
LOG_ENTRIES = 1 << 18
"""Room for cache changes that the router does not know of yet; beyond it learns of the oldest early."""


class Pool:
    """Replicas of one role. Job *i* is request *i* of the workload.

    A *prefill* pool ends every request at its first token and keeps the blocks until they have been copied away or are
    released. With *watch* the engine reports every request that ends.
    """

    def __init__(
        self,
        plan: PoolPlan,
        workload: Workload,
        network: Network,
        *,
        index: int,
        watch: bool,
        seed: int,
    ) -> None:
        load()
        role, config = plan.role, plan.config
        self.plan, self.role, self.config, self.capacity = plan, role, config, plan.capacity
        self.tables = effective_tables(plan)
        self.lanes, self.ranks = config.pipeline_parallel_size, config.data_parallel_size
        self.rows = config.max_replicas * self.lanes * self.ranks
        nodes = _nodes(workload, config, self.capacity.block_size)
        policy = registry.make(
            "scheduling_policy",
            config.scheduling_policy,
            config.scheduling_options,
            f"{role} pool",
            rng.stream(seed, role),
        )
        limits = _limits(plan, self.tables, workload, policy)
        limits["pool"], limits["watch"], limits["seed"] = index, watch or role == "prefill", seed & (2**62 - 1)
        caches, slots, buckets = self._caches(limits[0], nodes.blocks)
        self.engine = state.Engine(
            limits=limits,
            rows=self._rows(network),
            jobs=_jobs(plan, workload, nodes, policy),
            running=sparse_zeros((self.rows, config.max_num_seqs), np.int64),
            caches=caches,
            slots=slots,
            buckets=buckets,
            node_blocks=nodes.blocks,
            hash_ids=nodes.ids,
            held=np.zeros(len(nodes.ids) + 1, np.int32),
            events=sparse_zeros(2 * len(workload) + self.rows * config.max_num_seqs, state.EVENT),
            waits=np.zeros((self.rows, len(state.REASONS))),
            job_waits=np.zeros((len(workload), len(state.REASONS))),
            stage_free=np.zeros((self.rows, self.lanes)),
            row_links=network.row_links[role],
            log=sparse_zeros(LOG_ENTRIES if limits[0]["lag_s"] > 0.0 else 1, state.LOG),
            net=network.net,
            links=network.links,
            transfers=network.transfers,
            accept=np.array(plan.acceptance_rates),
            tier_blocks=np.zeros(state.MAX_TIERS, np.int64),
            gap_count=np.zeros(gaps.BINS),
            gap_sum=np.zeros(gaps.BINS),
            gap_range=np.array([math.inf, -math.inf]),
            **_empty_index(self.rows, self.capacity.blocks, nodes),
            **dict[str, Any]((name, np.ascontiguousarray(getattr(self.tables, name), np.float64)) for name in TABLES),
        )
        self.handle = handle_of(self.engine)

    def fits(self, workload: Workload) -> NDArray[np.bool_]:
        """Return which requests can ever run here: whole context in the blocks, prompt in an unchunked pass."""
        limits = self.engine.limits[0]
        # Drafts need room too.
        tokens = workload.input_tokens + self.engine.jobs["output"] + limits["tokens_per_decode"] - 1
        fits = -(-tokens // limits["block_size"]) <= limits["num_blocks"]
        if not limits["chunked"] and not limits["remote"]:
            fits &= workload.input_tokens <= limits["max_num_batched_tokens"]
        return np.asarray(fits)

    def gaps(self) -> TokenGaps:
        """Return the token gaps of all replicas."""
        low, high = self.engine.gap_range
        return TokenGaps(self.engine.gap_count, self.engine.gap_sum, float(low), float(high))

    def keep_results(self) -> None:
        """Give back the memory of what no result is made of: the engine does not run again."""
        nothing: dict[str, Any] = {name: np.zeros(0) for name in state.Engine._fields if name not in RESULTS}
        self.engine, self.handle = self.engine._replace(**nothing), np.zeros((0, 3), np.int64)

    def _rows(self, network: Network) -> NDArray[Any]:
        rows = np.zeros(self.rows, state.ROW)
        rows["end"], rows["slowdown"] = math.inf, 1.0
        for name in ("arrive_head", "arrive_tail", "wait_head", "wait_tail"):
            rows[name] = state.NONE
        number = np.arange(self.rows)
        rows["queue"] = rows["cache"] = number - number % self.lanes
        rows["domain"], rows["rack"] = network.domains[self.role], network.racks[self.role]
        for replica in range(self.config.max_replicas):
            own = rows[replica * self.lanes * self.ranks :][: self.lanes * self.ranks]
            own["crossing_s"], own["crossing_token_s"] = network.placement.crossing(self.role, replica)
        return rows

    def _caches(self, limits: Any, nodes: NDArray[np.int32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int32]]:
        """Return (caches, slots, buckets) of every row and its tiers."""
        blocks = [self.capacity.blocks] * self.rows
        kinds = []
        for kind, tier in enumerate(_tiers(self.config)):
            if tier is not None:
                kinds.append(kind)
                size = tier.size_gib * 2**30 / (1 if kind == 2 else self.ranks)
                blocks += [int(size // limits["block_bytes"])] * self.rows
        limits["tiers"], limits["tier_cache"] = len(kinds), self.rows
        limits["tier_kind"][: len(kinds)] = kinds
        return _empty_caches(np.array(blocks), nodes)


def _tiers(config: PoolConfig) -> tuple[TierConfig | None, ...]:
    offload = config.kv_offload
    return offload.host, offload.disk, offload.remote


def _empty_caches(blocks: IntArray, nodes: NDArray[np.int32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int32]]:
    """Return caches of *blocks* blocks each, for nodes of *nodes* blocks. Untouched pages of zeros cost no memory."""
    slots = blocks + 2
    usual = np.clip(blocks / max(nodes.mean(), 1.0) if len(nodes) else 0, 16, 2 * len(nodes) + 16)
    buckets = 2 ** np.ceil(np.log2(np.minimum(usual, blocks + 1))).astype(np.int64)
    caches = np.zeros(len(blocks), state.CACHE)
    caches["slot_base"] = caches["slots_used"] = np.cumsum(slots) - slots
    caches["bucket_base"] = np.cumsum(buckets) - buckets
    caches["bucket_mask"] = buckets - 1
    caches["num_blocks"] = caches["empty"] = caches["free_blocks"] = blocks
    return caches, sparse_zeros(slots.sum() + 1, state.SLOT), sparse_zeros(buckets.sum(), np.int32)


def _empty_index(rows: int, blocks: int, nodes: PrefixNodes) -> dict[str, Any]:
    """Return the arrays of a router's index of the shared *nodes*. An entry is of a block in a cache, or of a request's
    node where it was sent: there are never more than both together."""
    shared, ids = max(len(nodes.blocks) - len(nodes.offsets) + 1, 0), len(nodes.ids)
    return {
        "entries": sparse_zeros(min(rows * shared, rows * min(shared, blocks) + 2 * ids) + 1, state.ENTRY),
        "entry_buckets": np.zeros(1 << (min(rows * shared, ids) + 16).bit_length(), np.int32),
        "node_entry": np.zeros(shared, np.int32),
        "overlap": np.zeros((4, rows), np.int64),
        "costs": np.zeros(rows),
        "due": np.zeros(rows),
        "evicts": np.zeros(rows, np.int8),
    }


def _nodes(workload: Workload, config: PoolConfig, block_size: int) -> PrefixNodes:
    """Return the prefix nodes; lower tiers copy and evict a trace's own blocks, so there each stays a node."""
    if not config.enable_prefix_caching:
        nothing = np.zeros(0, np.int32)
        return PrefixNodes(np.zeros(len(workload) + 1, np.int64), nothing, nothing)
    return prefix_nodes(workload, block_size, merge=not any(_tiers(config)))


def _limits(
    plan: PoolPlan,
    tables: PassTables,
    workload: Workload,
    policy: SchedulingPolicy,
) -> NDArray[Any]:
    limits = np.zeros(1, state.LIMITS)
    row, role, config, capacity, rules = limits[0], plan.role, plan.config, plan.capacity, plan.rules
    row["ranks"], row["lanes"] = config.data_parallel_size, config.pipeline_parallel_size
    row["max_num_seqs"] = config.running_seqs // config.pipeline_parallel_size
    row["most_held"] = rules.hand_off_seats(int(row["max_num_seqs"])) * row["lanes"]
    row["long_prefill_tokens"] = config.long_prefill_token_threshold
    row["long_prefill_adaptive"] = config.long_prefill_token_threshold_adaptive
    row["watermark_blocks"] = int(config.watermark * (capacity.blocks + rules.null_blocks))
    row["max_num_batched_tokens"] = config.max_num_batched_tokens
    row["chunked"], row["reserve_full"] = config.enable_chunked_prefill, config.scheduler_reserve_full_isl
    row["ordered"] = config.scheduling_policy != "fcfs" and not policy.longest_prefix
    row["longest_prefix"], row["key_adds_time"] = policy.longest_prefix, policy.add_arrival
    row["hold"], row["remote"], row["fused"] = role == "prefill", role == "decode", tables.fused
    row["first_token"], row["destination_first"] = FIRST_TOKEN[rules.first_token], rules.destination_first
    row["tokens_per_decode"] = plan.tokens_per_decode
    row["chunk_s"], row["eager_tokens"], row["eager_s"] = tables.chunk_s, tables.eager_tokens, tables.eager_s
    row["skew"] = tables.decode_skew
    row["overlap"] = tables.overlap and config.pipeline_parallel_size == 1
    row["block_size"], row["num_blocks"] = capacity.block_size, capacity.blocks
    row["block_bytes"] = capacity.block_size * capacity.bytes_per_token
    row["lag_s"] = plan.deployment.role_router(role).kv_event_lag_s
    row["warmup"] = workload.warmup_requests
    row["measured_tokens"] = tables.measured_tokens or math.inf
    row["measured_context"] = tables.measured_context or math.inf
    _set_scheduler(row, plan)
    return limits


def _set_scheduler(row: Any, plan: PoolPlan) -> None:
    engine, rules = plan.engine, plan.rules
    row["scheduler"] = SCHEDULER[rules.scheduler]
    if engine.capacity_scheduler_policy == "MAX_UTILIZATION":
        row["scheduler"] = state.VLLM
    row["recv_interval"] = engine.scheduler_recv_interval if engine.scheduler_recv_interval > 1 else 0
    # TensorRT-LLM holds prompts back only, and none under attention data parallelism (``PyExecutor._schedule``).
    row["batch_wait_iters"] = engine.batch_wait_timeout_iters if row["ranks"] == 1 and plan.role != "decode" else 0
    if engine.attention_dp_enable_balance and row["ranks"] > 1 and plan.role == "mixed":
        row["balance_iters"], row["balance_wait_iters"] = (
            engine.attention_dp_timeout_iters,
            engine.attention_dp_batching_wait_iters,
        )
    row["batch_wait_tokens"] = engine.batch_wait_max_tokens_ratio * row["max_num_batched_tokens"]
    row["max_prefill_tokens"], row["mixed_chunk"] = engine.max_prefill_tokens, engine.enable_mixed_chunk
    row["foresees"] = engine.ignore_eos and not plan.config.enable_prefix_caching
    if (ratio := rules.new_token_ratio) is not None:
        row["init_ratio"] = 1.0 if engine.ignore_eos else min(ratio.first * engine.schedule_conservativeness, 1.0)
        row["min_ratio"] = 1.0 if engine.ignore_eos else min(ratio.least * row["init_ratio"], 1.0)
        row["ratio_decay"] = (row["init_ratio"] - row["min_ratio"]) / ratio.steps


def _jobs(plan: PoolPlan, workload: Workload, nodes: PrefixNodes, policy: SchedulingPolicy) -> NDArray[Any]:
    jobs = np.zeros(len(workload), state.JOB)
    for name in ("scheduled", "landed", "first", "second", "last", "gap_from", "preempted_at"):
        jobs[name] = math.nan
    jobs["input"] = workload.input_tokens
    jobs["output"] = 1 if plan.role == "prefill" else workload.output_tokens
    jobs["hash_start"], jobs["hash_count"] = nodes.offsets[:-1], np.diff(nodes.offsets)
    covered = workload.input_tokens + (0 if plan.offloads_prompt_only else workload.output_tokens)
    jobs["offloaded"] = nodes.shared_within(covered // plan.capacity.block_size)
    jobs["kv"] = state.REMOTE if plan.role == "decode" else state.LOCAL
    jobs["row"] = state.NONE
    jobs["static_key"] = policy.keys(QueueView(workload.input_tokens, workload.priority, workload.deadline_s))
    return jobs
