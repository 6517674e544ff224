"""What one replica of a pool can do: times of a prompt and of a token, and what its memory holds.

Pass times come from the scenario's own timing tables.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.config import PriceConfig
from dynosim.estimates.demand import Demand
from dynosim.hardware.plan import PoolPlan
from dynosim.hardware.prices import usd
from dynosim.timing import effective_tables
from dynosim.timing.base import PassTables

Array = NDArray[np.float64]
Records = NDArray[np.void]

BATCHES = np.array([1, 4, 16, 64, 256])
CHUNKS = np.array([256, 512, 1024, 2048, 4096, 8192, 16384])

REPLICA_DTYPE = np.dtype(
    [
        ("usd_per_hour", "f8"),
        ("gpus", "f8"),
        ("batches", "f8"),  # run at a time, each as fast as one would be alone: one per attention rank and stage
        ("stages", "f8"),
        ("prefill_s", "f8"),  # computing one prompt of mean length, of which nothing is cached
        ("chunk_s", "f8", len(CHUNKS)),  # a pass of CHUNKS prompt tokens, but for attention
        ("attended_s", "f8"),  # attention, per prompt token
        ("pair_s", "f8"),  # and per pair of tokens that it compares
        ("token_s", "f8", len(BATCHES)),  # between two tokens of a request, at BATCHES requests of mean context
        ("context_s", "f8", len(BATCHES)),  # attention in such a pass
        ("stalls", "f8"),  # 1 where nobody decodes during a prompt
        ("kv_requests", "f8"),  # of mean final length in the KV cache of one batch, shared blocks counted once
        ("kv_bytes", "f8"),  # of one prompt of mean length
        ("cache_requests", "f8"),  # prompts of mean length in GPU memory and the tiers below it
        ("store_requests", "f8"),  # and in the store that all replicas share
        ("reuses", "f8"),  # 1 with prefix caching
        ("replicas", "f8"),
        ("max_num_seqs", "f8"),
        ("max_num_batched_tokens", "f8"),
        ("weights_gb", "f8"),  # of one GPU
    ]
)
"""What one replica of a pool can do, and how many there are. Pipeline stages each run a batch whose passes take as long
as one pass through all stages but overlap."""


def largest_batch(pools: Records) -> Array:
    """Return the requests that one batch can hold; ``max_num_seqs`` counts those of one scheduler."""
    return np.asarray(np.maximum(np.minimum(pools["max_num_seqs"] / pools["stages"], pools["kv_requests"]), 1.0))


def step_s(pools: Records, batch: Array) -> Array:
    """Return the time between two tokens in batches of *batch* requests (``n``)."""
    return interpolated(pools["token_s"], BATCHES, batch)


def interpolated(table: Array, nodes: NDArray[np.int64], at: Array) -> Array:
    """Return the values *at* (``n``) of the rows of *table* (``n x nodes``), linear between *nodes*."""
    j = np.clip(np.searchsorted(nodes, at, "right") - 1, 0, len(nodes) - 2)
    weight = np.clip((at - nodes[j]) / (nodes[j + 1] - nodes[j]), 0.0, 1.0)
    i = np.arange(len(at))
    return np.asarray((1.0 - weight) * table[i, j] + weight * table[i, j + 1])


def replica(plan: PoolPlan, prices: PriceConfig, demand: Demand) -> tuple[Any, ...]:
    """Return the fields of ``REPLICA_DTYPE``; InfeasibleError or TimingError where they cannot be known."""
    pool, capacity = plan.config, plan.capacity
    ranks, stages = pool.data_parallel_size, pool.pipeline_parallel_size
    limits = {"max_num_seqs": int(BATCHES[-1]), "max_num_batched_tokens": int(CHUNKS[-1])}
    tables = effective_tables(PoolPlan.of(plan.deployment, plan.role, pool.model_copy(update=limits)))
    context = demand.input_tokens + demand.output_tokens / 2
    attention = np.array([np.interp(b * context, tables.decode_context[b], tables.decode_s[b]) for b in BATCHES])
    chunk_s = tables.tokens_s[CHUNKS]
    chunk_s = np.where(tables.eager_tokens < CHUNKS, np.maximum(chunk_s, tables.eager_s), chunk_s)
    tokens, answer, (attended_s, pair_s) = demand.input_tokens, demand.output_tokens, _attention(tables, demand)
    kv_bytes, tiers = capacity.bytes_per_token * demand.input_tokens, pool.kv_offload
    below = sum(tier.size_gib for tier in (tiers.host, tiers.disk) if tier) * 2**30
    return (
        usd([(plan.gpu_name, pool.gpus_per_replica)], prices),
        pool.gpus_per_replica,
        ranks * stages,
        stages,
        tokens / CHUNKS[-2] * chunk_s[-2] + tokens * attended_s + tokens**2 / 2.0 * pair_s,
        chunk_s,
        attended_s,
        pair_s,
        (tables.graph_tokens_s[BATCHES] + attention) / plan.tokens_per_pass,
        attention,
        plan.rules.scheduler == "prompts_first" and not plan.engine.enable_mixed_chunk,
        capacity.tokens / (tokens * (demand.unshared if pool.enable_prefix_caching else 1.0) + answer) / stages,
        kv_bytes,
        ranks * capacity.tokens / demand.input_tokens + below / kv_bytes,
        tiers.remote.size_gib * 2**30 / kv_bytes if tiers.remote else 0.0,
        pool.enable_prefix_caching,
        pool.replicas,
        pool.running_seqs,
        pool.max_num_batched_tokens,
        capacity.weights_bytes_per_gpu / 1e9,
    )


def _attention(tables: PassTables, demand: Demand) -> tuple[float, float]:
    """Return attention's time per prompt token and per pair of tokens: those of a mean and of a long prompt."""
    lengths = np.array([demand.input_tokens, max(demand.longest_tokens, 1.5 * demand.input_tokens)])
    per_token_s = np.interp(lengths, tables.prefill_seq, tables.prefill_share_s[1]) / lengths
    pair_s = max(float(np.diff(per_token_s)[0] / np.diff(lengths)[0]), 0.0)
    return max(float(per_token_s[0] - pair_s * lengths[0]), 0.0), 2.0 * pair_s
