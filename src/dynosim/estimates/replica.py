"""What one replica of a pool can do: times of a prompt and of a token, and what its memory holds.

Pass times come from the scenario's own timing tables.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.config import PriceConfig
from dynosim.estimates.demand import QUANTILES, Demand
from dynosim.hardware.plan import PoolPlan
from dynosim.hardware.prices import usd
from dynosim.timing import effective_tables

Array = NDArray[np.float64]
Records = NDArray[np.void]

BATCHES = np.array([1, 4, 16, 64, 256])
CHUNK_TOKENS = 8192

REPLICA_DTYPE = np.dtype(
    [
        ("usd_per_hour", "f8"),
        ("gpus", "f8"),
        ("batches", "f8"),  # run at a time, each as fast as one would be alone: one per attention rank and stage
        ("stages", "f8"),
        ("prefill_s", "f8"),  # computing one prompt of mean length
        ("prefill_quantiles_s", "f8", len(QUANTILES)),  # and of the lengths of Demand.input_quantiles
        ("token_s", "f8", len(BATCHES)),  # between two tokens of a request, at BATCHES requests of mean context
        ("kv_requests", "f8"),  # requests of mean final length that the KV cache of one batch holds
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
    """Return the time between two tokens in batches of *batch* requests (``n``), linear between ``BATCHES``."""
    j = np.clip(np.searchsorted(BATCHES, batch, "right") - 1, 0, len(BATCHES) - 2)
    weight = np.clip((batch - BATCHES[j]) / (BATCHES[j + 1] - BATCHES[j]), 0.0, 1.0)
    i, table = np.arange(len(batch)), pools["token_s"]
    return np.asarray((1.0 - weight) * table[i, j] + weight * table[i, j + 1])


def replica(plan: PoolPlan, prices: PriceConfig, demand: Demand) -> tuple[Any, ...]:
    """Return the fields of ``REPLICA_DTYPE``; InfeasibleError or TimingError where they cannot be known."""
    pool, capacity = plan.config, plan.capacity
    ranks, stages = pool.data_parallel_size, pool.pipeline_parallel_size
    limits = {"max_num_seqs": int(BATCHES[-1]), "max_num_batched_tokens": CHUNK_TOKENS}
    tables = effective_tables(PoolPlan.of(plan.deployment, plan.role, pool.model_copy(update=limits)))
    context = demand.input_tokens + demand.output_tokens / 2
    attention = [np.interp(b * context, tables.decode_context[b], tables.decode_s[b]) for b in BATCHES]
    prompts = np.append(demand.input_tokens, demand.input_quantiles)
    prompt_attention = np.interp(prompts, tables.prefill_seq, tables.prefill_share_s[1])
    prefill_s = prompts / CHUNK_TOKENS * tables.tokens_s[CHUNK_TOKENS] + prompt_attention
    prefill_s = np.where(prompts > tables.eager_tokens, np.maximum(prefill_s, tables.eager_s), prefill_s)
    kv_bytes, tiers = capacity.bytes_per_token * demand.input_tokens, pool.kv_offload
    below = sum(tier.size_gib for tier in (tiers.host, tiers.disk) if tier) * 2**30
    return (
        usd([(plan.gpu_name, pool.gpus_per_replica)], prices),
        pool.gpus_per_replica,
        ranks * stages,
        stages,
        prefill_s[0],
        prefill_s[1:],
        (tables.graph_tokens_s[BATCHES] + np.array(attention)) / plan.tokens_per_pass,
        capacity.tokens / (demand.input_tokens + demand.output_tokens) / stages,
        kv_bytes,
        ranks * capacity.tokens / demand.input_tokens + below / kv_bytes,
        tiers.remote.size_gib * 2**30 / kv_bytes if tiers.remote else 0.0,
        pool.enable_prefix_caching,
        pool.replicas,
        pool.running_seqs,
        pool.max_num_batched_tokens,
        capacity.weights_bytes_per_gpu / 1e9,
    )
