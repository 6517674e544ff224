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

from dynosim.config import DeploymentConfig, LinkConfig, PoolConfig, PriceConfig, Scenario
from dynosim.errors import DynosimError
from dynosim.hardware.gpus import get_gpu
from dynosim.hardware.memory import kv_capacity
from dynosim.search.distributions import Key, decode, label
from dynosim.space import SearchSpace
from dynosim.timing import forward_times
from dynosim.workload import load_workload

Array = NDArray[np.float64]

FEATURES = ("usd_per_hour", "gpus", "first_token_s", "step_s", "prefill_load", "decode_load", "load", "kv_requests")
_SECTIONS = {
    "mixed": "deployment.aggregated",
    "prefill": "deployment.disaggregated.prefill",
    "decode": "deployment.disaggregated.decode",
}
_COUNTS = ("replicas", "max_num_seqs", "max_num_batched_tokens", "block_size")
"""Fields of a pool that enter by arithmetic, not through the tables."""
_ELSEWHERE = ("deployment.router", "deployment.disaggregated.kv_transfer")
_BATCHES = np.array([1, 4, 16, 64, 256])
_CHUNK_TOKENS = 8192


@dataclass(frozen=True)
class Demand:
    """What the traffic asks for, on average."""

    rate_rps: float
    """1 in a closed loop, which has no rate of its own: loads are then relative."""
    input_tokens: float
    output_tokens: float


@dataclass(frozen=True, eq=False)
class Replica:
    """What one replica of a pool can do."""

    pool: PoolConfig
    demand: Demand
    prefill_s: float
    """Computing one prompt of mean length."""
    step_s: Array
    """A decode pass at ``_BATCHES`` requests of mean context."""
    kv_requests: float
    """Requests of mean final length that the KV cache holds."""
    kv_bytes: float
    """KV cache of one prompt of mean length."""
    usd_per_hour: float

    def step(self, batch: float) -> float:
        """Return the time of a decode pass over *batch* requests."""
        return float(np.interp(batch, _BATCHES, self.step_s))


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
        demand = decode.demand
        prefills = self._count(point, roles[0], prefill.pool, "replicas")
        decodes = self._count(point, roles[1], decode.pool, "replicas")
        max_batch = max(min(self._count(point, roles[1], decode.pool, "max_num_seqs"), decode.kv_requests), 1.0)
        tokens_per_s = demand.rate_rps * demand.output_tokens / decodes
        prefill_load = demand.rate_rps * prefill.prefill_s / prefills
        decode_load = tokens_per_s * decode.step(max_batch) / max_batch
        # Little's law: requests decoding = their rate x their time. Two rounds, since the step depends on the batch.
        batch = tokens_per_s * decode.step(1.0)
        batch = min(max(tokens_per_s * decode.step(batch), 1.0), max_batch)
        together = roles[0] == roles[1]
        hop_s = 0.0 if together else prefill.kv_bytes / self._link_bytes_s(point, prefill.pool)
        pools = [(prefill, prefills)] if together else [(prefill, prefills), (decode, decodes)]
        return (
            sum(replica.usd_per_hour * count for replica, count in pools),
            sum(replica.pool.tensor_parallel_size * count for replica, count in pools),
            prefill.prefill_s + hop_s,
            decode.step(batch),
            prefill_load,
            decode_load,
            prefill_load + decode_load if together else max(prefill_load, decode_load),
            max_batch,
        )

    def _link_bytes_s(self, point: Mapping[str, Any], pool: PoolConfig) -> float:
        """Return the bandwidth of one replica's link; where it is not searched its scale makes no difference."""
        searched = point.get("deployment.disaggregated.kv_transfer.bandwidth_gb_s")
        return (searched or LinkConfig().bandwidth_gb_s) * 1e9 * pool.tensor_parallel_size

    def _count(self, point: Mapping[str, Any], role: str, pool: PoolConfig, name: str) -> float:
        return float(point.get(f"{_SECTIONS[role]}.{name}", getattr(pool, name)))

    def _relevant(self, point: Mapping[str, Any], role: str) -> Key:
        """Return the part of *point* that decides what one replica of the role can do."""
        section = _SECTIONS[role]
        others = (prefix for name, prefix in _SECTIONS.items() if name != role)
        dropped = (*others, *_ELSEWHERE, *(f"{section}.{name}" for name in _COUNTS))
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
    capacity = kv_capacity(deployment, pool)
    tables = forward_times(deployment, pool).tables(
        max_num_seqs=int(_BATCHES[-1]), max_num_batched_tokens=_CHUNK_TOKENS
    )
    context = demand.input_tokens + demand.output_tokens / 2
    attention = [np.interp(b * context, tables.decode_context[b], tables.decode_s[b]) for b in _BATCHES]
    prompt_attention = np.interp(demand.input_tokens, tables.prefill_seq, tables.prefill_share_s[1])
    return Replica(
        pool,
        demand,
        float(demand.input_tokens / _CHUNK_TOKENS * tables.tokens_s[_CHUNK_TOKENS] + prompt_attention),
        tables.graph_tokens_s[_BATCHES] + np.array(attention),
        capacity.tokens / (demand.input_tokens + demand.output_tokens),
        capacity.bytes_per_token * demand.input_tokens,
        pool.tensor_parallel_size * _price(deployment, pool, scenario.prices),
    )


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
