"""What a serving engineer would compute before simulating: capacities, loads and unloaded latencies in closed form.

The models get these beside the raw parameters, on logarithmic scales. They mean the same in every mode and on every
GPU, so what is learned of one region carries over to others. They only have to order configurations roughly: queueing,
prefix reuse, routing, bursts and tails are what the simulation is for.

Pass times come from the scenario's own timing tables, cached by what they depend on, because a search asks for a
thousand points per proposal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.config import DeploymentConfig, LinkConfig, PoolConfig, PriceConfig, Scenario, SpeculativeConfig
from dynosim.errors import DynosimError
from dynosim.hardware.gpus import get_gpu
from dynosim.hardware.memory import kv_capacity
from dynosim.search.distributions import Key, decode, label
from dynosim.space import SearchSpace
from dynosim.timing import effective_tables
from dynosim.workload import load_workload

Array = NDArray[np.float64]

FEATURES = (
    "usd_per_hour",
    "gpus",
    "first_token_s",
    "step_s",
    "prefill_load",
    "decode_load",
    "load",
    "kv_requests",
    "cache_requests",
)
_SECTIONS = {
    "mixed": "deployment.aggregated",
    "prefill": "deployment.disaggregated.prefill",
    "decode": "deployment.disaggregated.decode",
}
_COUNTS = ("replicas", "max_num_seqs", "max_num_batched_tokens", "block_size")
"""Fields of a pool that enter by arithmetic, not through the tables."""
_ELSEWHERE = (
    "deployment.router",
    "deployment.topology",
    "deployment.failures",
    "deployment.disaggregated.kv_transfer",
    "deployment.disaggregated.local_prefill",
    "deployment.disaggregated.decode_router",
)
_BATCHES = np.array([1, 4, 16, 64, 256])
_CHUNK_TOKENS = 8192
_TARGET_LOAD = 0.7
"""Load at which an autoscaled pool is taken to run."""


@dataclass(frozen=True)
class Demand:
    """What the traffic asks for, on average."""

    rate_rps: float
    """1 in a closed loop, which has no rate of its own: loads are then relative."""
    input_tokens: float
    output_tokens: float


@dataclass(frozen=True, eq=False)
class Replica:
    """What one replica of a pool can do.

    It runs ``batches`` batches at a time, each as fast as one would be alone: one per attention rank, and one per
    pipeline stage, whose passes take as long as one pass through all stages but overlap.
    """

    pool: PoolConfig
    demand: Demand
    batches: int
    prefill_s: float
    """Computing one prompt of mean length."""
    token_s: Array
    """Time between two tokens of a request at ``_BATCHES`` requests of mean context: a decode pass over the tokens
    that speculation gets out of it."""
    kv_requests: float
    """Requests of mean final length that the KV cache of one batch holds."""
    kv_bytes: float
    """KV cache of one prompt of mean length."""
    cache_requests: float
    """Prompts of mean length in GPU memory and the tiers below it."""
    store_requests: float
    """The same in the store that all replicas share."""
    usd_per_hour: float

    def step(self, batch: float) -> float:
        """Return the time between two tokens in a batch of *batch* requests."""
        return float(np.interp(batch, _BATCHES, self.token_s))

    def largest_batch(self, max_num_seqs: float) -> float:
        """Return how many requests one batch can hold; *max_num_seqs* counts those of one scheduler."""
        slots = max_num_seqs / self.pool.pipeline_parallel_size
        return max(min(slots, self.kv_requests), 1.0)

    def count(self, replicas: float, load: float) -> float:
        """Return the replicas of the pool on average: as many as *load* for one replica needs where it scales."""
        scaler = self.pool.autoscaler
        if scaler is None:
            return replicas
        return min(max(load / _TARGET_LOAD, scaler.min_replicas), scaler.max_replicas)


class ServingFeatures:
    """Closed-form features of the points of one space: the logarithms of ``FEATURES``, NaN where they are unknown."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._replica = lru_cache(maxsize=None)(self._measure)

    def __call__(self, point: Mapping[str, Any]) -> list[float]:
        """Return the features of *point*."""
        mode = point.get("deployment.mode") or self._space.reference.deployment.mode
        roles = ("mixed", "mixed") if mode == "aggregated" else ("prefill", "decode")
        able = {role: self._replica(role, self._relevant(point, role)) for role in dict.fromkeys(roles)}
        prefill, decode = (able[role] for role in roles)
        if prefill is None or decode is None:
            return [np.nan] * len(FEATURES)
        return list(np.log(self._estimate(point, roles, prefill, decode)))

    def _estimate(
        self, point: Mapping[str, Any], roles: tuple[str, str], prefill: Replica, decode: Replica
    ) -> tuple[float, ...]:
        demand, together = decode.demand, roles[0] == roles[1]
        max_batch = decode.largest_batch(self._count(point, roles[1], decode.pool, "max_num_seqs"))
        # Loads of one replica that serves everything.
        prefill_load = demand.rate_rps * prefill.prefill_s / prefill.batches
        decode_load = demand.rate_rps * demand.output_tokens * decode.step(max_batch) / max_batch / decode.batches
        own = (prefill_load + decode_load,) * 2 if together else (prefill_load, decode_load)
        prefills = prefill.count(self._count(point, roles[0], prefill.pool, "replicas"), own[0])
        decodes = decode.count(self._count(point, roles[1], decode.pool, "replicas"), own[1])
        prefill_load, decode_load = prefill_load / prefills, decode_load / decodes
        # Little's law: requests decoding = their rate x their time. Two rounds, since the step depends on the batch.
        tokens_per_s = demand.rate_rps * demand.output_tokens / decodes / decode.batches
        batch = tokens_per_s * decode.step(1.0)
        batch = min(max(tokens_per_s * decode.step(batch), 1.0), max_batch)
        hop_s = 0.0 if together else prefill.kv_bytes / self._link_bytes_s(point, prefill.pool)
        pools = [(prefill, prefills)] if together else [(prefill, prefills), (decode, decodes)]
        return (
            sum(replica.usd_per_hour * count for replica, count in pools),
            sum(replica.pool.gpus_per_replica * count for replica, count in pools),
            prefill.prefill_s + hop_s,
            decode.step(batch),
            prefill_load,
            decode_load,
            prefill_load + decode_load if together else max(prefill_load, decode_load),
            max_batch * decode.pool.pipeline_parallel_size,
            prefill.cache_requests * prefills + prefill.store_requests,
        )

    def _link_bytes_s(self, point: Mapping[str, Any], pool: PoolConfig) -> float:
        """Return the bandwidth of one replica's link; where it is not searched its scale makes no difference."""
        searched = point.get("deployment.disaggregated.kv_transfer.bandwidth_gb_s")
        return (searched or LinkConfig().bandwidth_gb_s) * 1e9 * pool.gpus_per_replica

    def _count(self, point: Mapping[str, Any], role: str, pool: PoolConfig, name: str) -> float:
        return float(point.get(f"{_SECTIONS[role]}.{name}", getattr(pool, name)))

    def _relevant(self, point: Mapping[str, Any], role: str) -> Key:
        """Return the part of *point* that decides what one replica of the role can do.

        The bounds of an autoscaler belong together with ``replicas``, so there both stay.
        """
        section = _SECTIONS[role]
        others = (prefix for name, prefix in _SECTIONS.items() if name != role)
        scales = any(path.startswith(f"{section}.autoscaler") for path in point)
        counts = (name for name in _COUNTS if not (scales and name == "replicas"))
        dropped = (*others, *_ELSEWHERE, *(f"{section}.{name}" for name in counts))
        return tuple((path, label(value)) for path, value in point.items() if not path.startswith(dropped))

    def _measure(self, role: str, relevant: Key) -> Replica | None:
        try:
            scenario = self._space.scenario(self._space.complete(decode(self._space, dict(relevant))))
            return replica(scenario, scenario.deployment.pools()[role])
        except DynosimError:
            return None


def replica(scenario: Scenario, pool: PoolConfig) -> Replica:
    """Return what one replica of *pool* can do; InfeasibleError or TimingError where it cannot be known."""
    deployment, demand = scenario.deployment, _demand(scenario)
    capacity, ranks = kv_capacity(deployment, pool), pool.data_parallel_size
    limits = {"max_num_seqs": int(_BATCHES[-1]), "max_num_batched_tokens": _CHUNK_TOKENS}
    tables = effective_tables(deployment, pool.model_copy(update=limits))
    context = demand.input_tokens + demand.output_tokens / 2
    attention = [np.interp(b * context, tables.decode_context[b], tables.decode_s[b]) for b in _BATCHES]
    prompt_attention = np.interp(demand.input_tokens, tables.prefill_seq, tables.prefill_share_s[1])
    kv_bytes, tiers = capacity.bytes_per_token * demand.input_tokens, pool.kv_offload
    below = sum(tier.size_gib for tier in (tiers.host, tiers.disk) if tier) * 2**30
    return Replica(
        pool,
        demand,
        ranks * pool.pipeline_parallel_size,
        float(demand.input_tokens / _CHUNK_TOKENS * tables.tokens_s[_CHUNK_TOKENS] + prompt_attention),
        (tables.graph_tokens_s[_BATCHES] + np.array(attention)) / tokens_per_pass(deployment.engine.speculative),
        capacity.tokens / (demand.input_tokens + demand.output_tokens) / pool.pipeline_parallel_size,
        kv_bytes,
        ranks * capacity.tokens / demand.input_tokens + below / kv_bytes,
        tiers.remote.size_gib * 2**30 / kv_bytes if tiers.remote else 0.0,
        pool.gpus_per_replica * _price(deployment, pool, scenario.prices),
    )


def tokens_per_pass(speculative: SpeculativeConfig | None) -> float:
    """Return the mean tokens of a request per decode pass: 1 + sum over k of p_1 ... p_k."""
    if speculative is None:
        return 1.0
    rates = np.array(speculative.acceptance_rates)
    drafted = np.minimum(np.arange(speculative.num_speculative_tokens), len(rates) - 1)
    return 1.0 + float(np.cumprod(rates[drafted]).sum())


def _demand(scenario: Scenario) -> Demand:
    workload = load_workload(scenario.workload, scenario.seed)
    span_s = float(workload.arrival_s[-1] - workload.arrival_s[0])
    return Demand(
        len(workload) / span_s if span_s > 0.0 else 1.0,
        float(workload.input_tokens.mean()),
        float(workload.output_tokens.mean()),
    )


def _price(deployment: DeploymentConfig, pool: PoolConfig, prices: PriceConfig) -> float:
    gpu = deployment.pool_gpu(pool)
    return prices.usd_per_gpu_hour.get(gpu, get_gpu(gpu).usd_per_hour[prices.table])
