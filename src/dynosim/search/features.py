"""What a serving engineer would compute before simulating: capacities, loads and latencies in closed form.

The models get the capacities and loads beside the raw parameters, on logarithmic scales: they mean the same in every
mode and on every GPU, so what is learned of one region carries over to others. From the same numbers comes a first
estimate of the metrics, so of any objective that is a function of them: the mean that the models start from. Both only
have to order configurations roughly: bursts, prefix reuse per cache, routing and tails are what the simulation is for.

Pass times come from the scenario's own timing tables, kept by what they depend on. Everything else is arithmetic on
columns: a search asks for a thousand points per proposal.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.config import LinkConfig, PriceConfig, Scenario, SpeculativeConfig
from dynosim.config.deployment import SECTIONS
from dynosim.errors import DynosimError
from dynosim.hardware.gpus import usd_per_gpu_hour
from dynosim.hardware.plan import PoolPlan
from dynosim.metrics import STATS, Metrics
from dynosim.search.rows import Key, Rows, keys
from dynosim.timing import effective_tables
from dynosim.workload import load_workload
from dynosim.workload.statistics import reuse_bound

Array = NDArray[np.float64]
Records = NDArray[np.void]

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
_COUNTS = ("replicas", "max_num_seqs", "max_num_batched_tokens", "block_size")
"""Fields of a pool that enter by arithmetic, not through the tables."""
_BATCH = ("max_num_seqs", "max_num_batched_tokens")
_ELSEWHERE = (
    "workload",
    "slo",
    "seed",
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
_STABLE_LOAD = 0.97
"""Up to here a queue is taken to be in equilibrium; beyond, the backlog at the end of the traffic comes on top."""
_REUSE_WORKERS = (1, 2, 4, 8, 16, 32)
_QUANTILES = {"p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999, "max": 0.999}
_CACHE_AWARE = ("kv_aware", "prefix_affinity", "session_affinity")


@dataclass(frozen=True, eq=False)
class Demand:
    """What the traffic asks for."""

    rate_rps: float
    """1 in a closed loop, which has no rate of its own: loads are then relative."""
    span_s: float
    input_tokens: float
    output_tokens: float
    """Means."""
    input_quantiles: Array
    """Prompt lengths at ``_QUANTILES``."""
    input_square: float
    """Mean square over squared mean of the prompts."""
    reuse: Array
    """Share of prompt tokens that a prefix cache could serve, of ``_REUSE_WORKERS`` caches behind round robin."""
    concurrency: int | None


REPLICA_DTYPE = np.dtype(
    [
        ("usd_per_hour", "f8"),
        ("gpus", "f8"),
        ("batches", "f8"),  # run at a time, each as fast as one would be alone: one per attention rank and stage
        ("stages", "f8"),
        ("prefill_s", "f8"),  # computing one prompt of mean length
        ("prefill_quantiles_s", "f8", len(_QUANTILES)),  # and of the lengths of Demand.input_quantiles
        ("token_s", "f8", len(_BATCHES)),  # between two tokens of a request, at _BATCHES requests of mean context
        ("kv_requests", "f8"),  # requests of mean final length that the KV cache of one batch holds
        ("kv_bytes", "f8"),  # of one prompt of mean length
        ("cache_requests", "f8"),  # prompts of mean length in GPU memory and the tiers below it
        ("store_requests", "f8"),  # and in the store that all replicas share
        ("reuses", "f8"),  # 1 with prefix caching
        ("replicas", "f8"),
        ("max_num_seqs", "f8"),
        ("min_replicas", "f8"),  # of the autoscaler, NaN without one
        ("max_replicas", "f8"),
    ]
)
"""What one replica of a pool can do, and how many there are. Pipeline stages each run a batch whose passes take as long
as one pass through all stages but overlap."""


def largest_batch(pools: Records) -> Array:
    """Return the requests that one batch can hold; ``max_num_seqs`` counts those of one scheduler."""
    return np.asarray(np.maximum(np.minimum(pools["max_num_seqs"] / pools["stages"], pools["kv_requests"]), 1.0))


def step_s(pools: Records, batch: Array) -> Array:
    """Return the time between two tokens in batches of *batch* requests (``n``), linear between ``_BATCHES``."""
    j = np.clip(np.searchsorted(_BATCHES, batch, "right") - 1, 0, len(_BATCHES) - 2)
    weight = np.clip((batch - _BATCHES[j]) / (_BATCHES[j + 1] - _BATCHES[j]), 0.0, 1.0)
    i, table = np.arange(len(batch)), pools["token_s"]
    return np.asarray((1.0 - weight) * table[i, j] + weight * table[i, j + 1])


def count(pools: Records, load: Array) -> Array:
    """Return the replicas on average: as many as *load* for one replica needs where an autoscaler decides."""
    low, high = pools["min_replicas"], pools["max_replicas"]
    return np.where(np.isnan(low), pools["replicas"], np.clip(load / _TARGET_LOAD, low, high))


@dataclass(frozen=True, eq=False)
class Estimate:
    """What the deployments of ``n`` rows would do under steady traffic; NaN where a replica cannot be."""

    demand: Demand
    rate_rps: Array
    usd_per_hour: Array
    gpus: Array
    first_token_s: Array
    """Unloaded, the hand-off included."""
    step_s: Array
    """Between two tokens while nothing else runs."""
    prefill_load: Array
    decode_load: Array
    load: Array
    kv_requests: Array
    cache_requests: Array
    together: NDArray[np.bool_]
    computed: Array
    """Share of the prompt tokens that are not found in the prefix cache."""
    prefill: Records
    prefills: Array

    def features(self) -> Array:
        """Return the logarithms of ``FEATURES``, ``n x 9``."""
        return np.asarray(np.log(np.column_stack([getattr(self, name) for name in FEATURES])))

    def metrics(self) -> Metrics:
        """Return the metrics that have a closed form, as columns (``n``) where a simulation gives numbers."""
        throughput = self.rate_rps * self.demand.output_tokens / np.maximum(self.load, 1.0)
        total = throughput * (1.0 + self.demand.input_tokens / self.demand.output_tokens)
        requests = throughput / self.demand.output_tokens
        first, gap = self._first_token_ms(), self._gap_ms()
        decode = {stat: gap[stat] * self.demand.output_tokens for stat in gap}
        columns: dict[str, Any] = {
            "time_to_first_token": first,
            "inter_token_latency": gap,
            "inter_chunk_latency": gap,
            "request_latency": {stat: first[stat] + decode[stat] for stat in gap},
            "output_token_throughput_per_user": {stat: 1e3 / gap[stat] for stat in gap},
            "request_throughput": requests,
            "output_token_throughput": throughput,
            "input_token_throughput": total - throughput,
            "total_token_throughput": total,
            "output_token_throughput_per_gpu": throughput / self.gpus,
            "total_token_throughput_per_gpu": total / self.gpus,
            "goodput": requests,
            "goodput_token_throughput": throughput,
            "goodput_token_throughput_per_gpu": throughput / self.gpus,
            "usd_per_hour": self.usd_per_hour,
            "usd_per_million_output_tokens": self.usd_per_hour / throughput / 3600.0 * 1e6,
            "usd_per_million_good_output_tokens": self.usd_per_hour / throughput / 3600.0 * 1e6,
            "usd_per_million_total_tokens": self.usd_per_hour / total / 3600.0 * 1e6,
            "usd_per_1k_requests": self.usd_per_hour / requests / 3.6,
            "gpus": self.gpus,
        }
        return Metrics(columns)

    def _first_token_ms(self) -> dict[str, Array]:
        """Return TTFT: the prompt of that quantile behind the M/G/1 wait of that quantile, or the final backlog.

        Mean wait by Pollaczek and Khinchine, its tail as exponential: P(W > t) = rho exp(-t rho / E[W]).
        """
        busy = np.where(self.together, self.decode_load, 0.0)
        slowed = 1.0 / (1.0 - np.minimum(busy, 0.9))
        service_s = self.prefill["prefill_s"] * slowed / self.prefill["batches"]
        rho = np.clip(self.prefill_load * slowed, 1e-6, _STABLE_LOAD)
        wait_s = rho * service_s * self.demand.input_square / (2.0 * (1.0 - rho))
        backlog_s = self.demand.span_s * np.maximum(self.load - _STABLE_LOAD, 0.0)
        hop_s = self.first_token_s - self.prefill["prefill_s"]
        found = {"avg": 1e3 * (hop_s + service_s * self.prefill["batches"] + wait_s + backlog_s / 2.0)}
        for j, (stat, q) in enumerate(_QUANTILES.items()):
            tail_s = wait_s / rho * np.maximum(np.log(rho / (1.0 - q)), 0.0)
            own_s = self.computed * self.prefill["prefill_quantiles_s"][:, j] * slowed
            found[stat] = 1e3 * (hop_s + np.hypot(own_s, tail_s) + q * backlog_s)
        return _all_stats(found)

    def _gap_ms(self) -> dict[str, Array]:
        """Return ITL: decode passes, stretched by the prompts of others that arrive meanwhile where a pool does both.

        N prompts arrive during a decode of n tokens (Poisson): gap = step + N prefill / n, with its mean and deviation.
        """
        n, rate = self.demand.output_tokens, self.rate_rps / self.prefills / self.prefill["batches"]
        share = np.where(self.together, np.minimum(self.prefill_load, 0.9), 0.0)
        mean_s = self.step_s / (1.0 - share)
        prompt_s = np.where(self.together, self.prefill["prefill_s"], 0.0) * np.sqrt(self.demand.input_square)
        deviation_s = np.sqrt(rate * n * mean_s) * prompt_s / n
        found = {"avg": 1e3 * mean_s}
        for stat, q in _QUANTILES.items():
            found[stat] = 1e3 * (mean_s + max(_normal_quantile(q), 0.0) * deviation_s)
        return _all_stats(found)


def _normal_quantile(q: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(q))


def _all_stats(found: dict[str, Array]) -> dict[str, Array]:
    """Return *found* with the average for every statistic that has no estimate of its own."""
    return {stat: found.get(stat, found["avg"]) for stat in STATS}


class ServingEstimates:
    """Closed-form estimates of the points of one space."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._replica = lru_cache(maxsize=None)(self._measure)

    def __call__(self, rows: Array) -> Estimate:
        """Return the estimate of each row (``n x p``)."""
        together = self._is_aggregated(rows)
        ahead = self._pools(rows, np.where(together, "mixed", "prefill"))
        behind = self._pools(rows, np.where(together, "mixed", "decode"))
        return self._estimate(rows, together, ahead, behind)

    @cached_property
    def _demand(self) -> Demand:
        return demand_of(self._rows.space.reference)

    def _is_aggregated(self, rows: Array) -> NDArray[np.bool_]:
        j = self._rows.column("deployment.mode")
        if j is None:
            aggregated = self._rows.space.reference.deployment.mode == "aggregated"
            return np.full(len(rows), aggregated)
        values = self._rows.parameters[j].domain.values or ()
        return np.isin(rows[:, j], [i for i, value in enumerate(values) if value == "aggregated"])

    def _estimate(self, rows: Array, together: NDArray[np.bool_], ahead: Records, behind: Records) -> Estimate:
        demand, policy = self._demand, self._cache_aware(rows)
        max_batch = largest_batch(behind)
        # Of one replica that serves one request per second.
        workers = np.where(policy, 1.0, ahead["replicas"])
        computed = 1.0 - ahead["reuses"] * np.interp(np.log(workers), np.log(_REUSE_WORKERS), demand.reuse)
        prefill_load = computed * ahead["prefill_s"] / ahead["batches"]
        decode_load = demand.output_tokens * step_s(behind, max_batch) / max_batch / behind["batches"]
        hop_s = np.where(together, 0.0, ahead["kv_bytes"] / self._link_bytes_s(rows, ahead))
        rate = self._rate_rps(ahead, behind, prefill_load, decode_load, hop_s, together)
        own = np.where(together, prefill_load + decode_load, prefill_load), prefill_load * together + decode_load
        prefills, decodes = count(ahead, rate * own[0]), count(behind, rate * own[1])
        prefill_load, decode_load = rate * prefill_load / prefills, rate * decode_load / decodes
        # Little's law: requests decoding = their rate x their time. Two rounds, since the step depends on the batch.
        tokens_per_s = rate * demand.output_tokens / decodes / behind["batches"]
        batch = tokens_per_s * step_s(behind, np.ones(len(rows)))
        batch = np.minimum(np.maximum(tokens_per_s * step_s(behind, batch), 1.0), max_batch)
        apart = ~together
        return Estimate(
            demand=demand,
            rate_rps=rate,
            usd_per_hour=ahead["usd_per_hour"] * prefills + apart * behind["usd_per_hour"] * decodes,
            gpus=ahead["gpus"] * prefills + apart * behind["gpus"] * decodes,
            first_token_s=ahead["prefill_s"] + hop_s,
            step_s=step_s(behind, batch),
            prefill_load=prefill_load,
            decode_load=decode_load,
            load=np.where(together, prefill_load + decode_load, np.maximum(prefill_load, decode_load)),
            kv_requests=max_batch * behind["stages"],
            cache_requests=ahead["cache_requests"] * prefills + ahead["store_requests"],
            together=together,
            computed=computed,
            prefill=ahead,
            prefills=prefills,
        )

    def _rate_rps(
        self,
        ahead: Records,
        behind: Records,
        prefill_load: Array,
        decode_load: Array,
        hop_s: Array,
        together: NDArray[np.bool_],
    ) -> Array:
        """Return the rate of the traffic; in a closed loop that of N requests in flight, up to what the pools carry."""
        demand = self._demand
        if demand.concurrency is None:
            return np.full(len(hop_s), demand.rate_rps)
        prefill, decode = prefill_load / ahead["replicas"], decode_load / behind["replicas"]
        batch = demand.concurrency / behind["replicas"] / behind["batches"]
        decode_s = demand.output_tokens * step_s(behind, np.minimum(batch, largest_batch(behind)))
        alone = demand.concurrency / (ahead["prefill_s"] + hop_s + decode_s)
        busiest = np.where(together, prefill + decode, np.maximum(prefill, decode))
        return np.asarray(np.minimum(alone, _STABLE_LOAD / busiest))

    def _cache_aware(self, rows: Array) -> NDArray[np.bool_]:
        """Return which rows send a conversation to the replica that has its prefix."""
        j = self._rows.column("deployment.router.policy")
        if j is None:
            return np.full(len(rows), self._rows.space.reference.deployment.router.policy in _CACHE_AWARE, dtype=bool)
        values = self._rows.parameters[j].domain.values or ()
        return np.isin(rows[:, j], [i for i, value in enumerate(values) if value in _CACHE_AWARE])

    def _link_bytes_s(self, rows: Array, pools: Records) -> Array:
        """Return the bandwidth of one replica's link; where it is not searched its scale makes no difference."""
        searched = self._rows.numbers(rows, "deployment.disaggregated.kv_transfer.bandwidth_gb_s")
        default = LinkConfig().bandwidth_gb_s
        gb_s = np.full(len(rows), default) if searched is None else np.where(np.isnan(searched), default, searched)
        return np.asarray(gb_s * 1e9 * pools["gpus"])

    def _pools(self, rows: Array, roles: NDArray[Any]) -> Records:
        """Return one record per row, that of its pool in the role."""
        found = np.empty(len(rows), REPLICA_DTYPE)
        for role in np.unique(roles).tolist():
            at = np.flatnonzero(roles == role)
            found[at] = self._pool(rows[at], role)
        return found

    def _pool(self, rows: Array, role: str) -> Records:
        part = np.full(rows.shape, np.nan)
        part[:, self._relevant[role]] = rows[:, self._relevant[role]]
        names = keys(part)
        place = {name: i for i, name in enumerate(dict.fromkeys(names))}
        different = np.array([self._replica(role, name) for name in place], REPLICA_DTYPE)
        found = different[[place[name] for name in names]]
        for name in ("replicas", "max_num_seqs"):
            searched = self._rows.numbers(rows, f"{SECTIONS[role]}.{name}")
            if searched is not None:
                found[name] = np.where(np.isnan(searched), found[name], searched)
        return found

    @cached_property
    def _relevant(self) -> dict[str, list[int]]:
        """Columns that decide what one replica of a role can do.

        The bounds of an autoscaler belong together with ``replicas``, pipeline stages with the size of a batch, which
        they split: so these stay.
        """
        found = {}
        paths = [parameter.path for parameter in self._rows.parameters]
        for role, section in SECTIONS.items():
            others = (prefix for name, prefix in SECTIONS.items() if name != role)
            scales = any(path.startswith(f"{section}.autoscaler") for path in paths)
            staged = f"{section}.pipeline_parallel_size" in paths
            counts = (name for name in _COUNTS if not ((scales and name == "replicas") or (staged and name in _BATCH)))
            dropped = (*others, *_ELSEWHERE, *(f"{section}.{name}" for name in counts))
            found[role] = [j for j, path in enumerate(paths) if not path.startswith(dropped)]
        return found

    def _measure(self, role: str, name: Key) -> tuple[Any, ...]:
        space = self._rows.space
        try:
            scenario = space.scenario(space.complete(self._rows.point(np.frombuffer(name))))
            return replica(PoolPlan.of(scenario.deployment, role), scenario.prices, self._demand)
        except DynosimError:
            return tuple(np.full(REPLICA_DTYPE[name].shape, np.nan) for name in REPLICA_DTYPE.names or ())


def replica(plan: PoolPlan, prices: PriceConfig, demand: Demand) -> tuple[Any, ...]:
    """Return the fields of ``REPLICA_DTYPE``; InfeasibleError or TimingError where they cannot be known."""
    pool, capacity = plan.config, plan.capacity
    ranks, stages = pool.data_parallel_size, pool.pipeline_parallel_size
    limits = {"max_num_seqs": int(_BATCHES[-1]), "max_num_batched_tokens": _CHUNK_TOKENS}
    tables = effective_tables(PoolPlan.of(plan.deployment, plan.role, pool.model_copy(update=limits)))
    context = demand.input_tokens + demand.output_tokens / 2
    attention = [np.interp(b * context, tables.decode_context[b], tables.decode_s[b]) for b in _BATCHES]
    prompts = np.append(demand.input_tokens, demand.input_quantiles)
    prompt_attention = np.interp(prompts, tables.prefill_seq, tables.prefill_share_s[1])
    prefill_s = prompts / _CHUNK_TOKENS * tables.tokens_s[_CHUNK_TOKENS] + prompt_attention
    prefill_s = np.where(prompts > tables.eager_tokens, np.maximum(prefill_s, tables.eager_s), prefill_s)
    kv_bytes, tiers, scaler = capacity.bytes_per_token * demand.input_tokens, pool.kv_offload, pool.autoscaler
    below = sum(tier.size_gib for tier in (tiers.host, tiers.disk) if tier) * 2**30
    return (
        pool.gpus_per_replica * usd_per_gpu_hour(plan.gpu_name, prices),
        pool.gpus_per_replica,
        ranks * stages,
        stages,
        prefill_s[0],
        prefill_s[1:],
        (tables.graph_tokens_s[_BATCHES] + np.array(attention)) / tokens_per_pass(plan.engine.speculative),
        capacity.tokens / (demand.input_tokens + demand.output_tokens) / stages,
        kv_bytes,
        ranks * capacity.tokens / demand.input_tokens + below / kv_bytes,
        tiers.remote.size_gib * 2**30 / kv_bytes if tiers.remote else 0.0,
        pool.enable_prefix_caching,
        pool.replicas,
        pool.max_num_seqs,
        scaler.min_replicas if scaler else np.nan,
        scaler.max_replicas if scaler else np.nan,
    )


def tokens_per_pass(speculative: SpeculativeConfig | None) -> float:
    """Return the mean tokens of a request per decode pass: 1 + sum over k of p_1 ... p_k."""
    if speculative is None:
        return 1.0
    rates = np.array(speculative.acceptance_rates)
    drafted = np.minimum(np.arange(speculative.num_speculative_tokens), len(rates) - 1)
    return 1.0 + float(np.cumprod(rates[drafted]).sum())


def demand_of(scenario: Scenario) -> Demand:
    """Return what the traffic of *scenario* asks for."""
    table = load_workload(scenario.workload, scenario.seed)
    span_s = float(table.arrival_s[-1] - table.arrival_s[0])
    prompts = table.input_tokens.astype(float)
    return Demand(
        rate_rps=len(table) / span_s if span_s > 0.0 else 1.0,
        span_s=span_s,
        input_tokens=float(prompts.mean()),
        output_tokens=float(table.output_tokens.mean()),
        input_quantiles=np.quantile(prompts, list(_QUANTILES.values())),
        input_square=float((prompts**2).mean() / prompts.mean() ** 2),
        reuse=np.array([reuse_bound(table, workers) for workers in _REUSE_WORKERS]),
        concurrency=table.concurrency,
    )
