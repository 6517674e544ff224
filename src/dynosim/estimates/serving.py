"""What deployments would do: loads and cost in closed form, first tokens and gaps from the queue of the prompts.

Replicas and backlogs follow the traffic over time (``scaling``), and its requests queue one by one (``queue``). It only
has to order configurations roughly: what evicts, where KV blocks are and what a router knows are what the simulation is
for. All else is arithmetic on columns, one entry for each of ``n`` deployments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from dynosim.estimates.demand import REUSE_WORKERS, Demand
from dynosim.estimates.queue import QUANTILES
from dynosim.estimates.queue import STATS as QUEUED
from dynosim.estimates.replica import BATCHES, CHUNKS, Records, interpolated, largest_batch, step_s
from dynosim.estimates.scaling import Flow, Pools, flow
from dynosim.metrics import STATS, Metrics

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

STABLE_LOAD = 0.97
"""Up to here a queue is taken to be in equilibrium."""
BACKLOG_FLOOR_S = 0.01
"""Less than this is no backlog."""
_MOST_DECODING = 0.75
"""Of the tokens of a pass, taken by requests that decode."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """What the deployments of ``n`` rows would do; NaN where a replica cannot be."""

    demand: Demand
    rate_rps: Array
    usd_per_hour: Array
    gpus: Array
    first_token_s: Array
    """Unloaded, nothing cached, the hand-off included."""
    step_s: Array
    """Between two tokens while nothing else runs."""
    prefill_load: Array
    decode_load: Array
    load: Array
    kv_requests: Array
    cache_requests: Array
    together: Flags
    computed: Array
    """Share of the prompt tokens that are not found in the prefix cache."""
    backlogs_s: Array
    """Time until the work before them is done, of equal shares of the requests (``n x SHARES``)."""
    times_s: Array
    """Mean and quantiles (``queue.STATS``) of TTFT and of the gaps between tokens, ``n x 2 x STATS``."""

    @property
    def backlog_s(self) -> Array:
        """What one request in a hundred meets, and a bit, so that it has a logarithm."""
        return np.asarray(BACKLOG_FLOOR_S + np.quantile(self.backlogs_s, 0.99, axis=1))

    @property
    def _drained(self) -> Array:
        """How much longer it takes to end the requests than they take to come."""
        if not self.demand.span_s:
            return np.ones(len(self.gpus))
        ends_s = self.demand.last_s + np.outer(self.step_s, self.demand.last_tokens)
        return np.asarray(np.maximum(ends_s.max(axis=1) / self.demand.span_s, 1.0))

    def metrics(self) -> Metrics:
        """Return the metrics that have an estimate, as columns (``n``) where a simulation gives numbers."""
        throughput = self.rate_rps * self.demand.output_tokens / np.maximum(self.load, self._drained)
        total = throughput * (1.0 + self.demand.input_tokens / self.demand.output_tokens)
        requests = throughput / self.demand.output_tokens
        first, gap = (_all_stats(dict(zip(QUEUED, 1e3 * self.times_s[:, j].T, strict=True))) for j in (0, 1))
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


def _all_stats(found: dict[str, Array]) -> dict[str, Array]:
    """Return *found* with the average for every statistic that has no estimate of its own."""
    return {stat: found.get(stat, found["avg"]) for stat in STATS}


@dataclass(frozen=True, eq=False)
class Deployments:
    """``n`` deployments: what a replica of each pool can do and what joins the pools."""

    prefill: Records
    decode: Records
    """Of an aggregated deployment the same."""
    together: Flags
    """Whether one pool does both."""
    prefill_scaler: Records
    """Of ``SCALER_DTYPE``."""
    decode_scaler: Records
    keeps_prefixes: Flags
    """Whether the router sends what begins alike to one replica,"""
    looks: Flags
    """and whether it knows who is busy."""
    link_bytes_s: Array
    """Bandwidth of one replica's hand-offs."""


@dataclass(frozen=True, eq=False)
class _Prompts:
    """What prompts cost the pool that computes them."""

    caches: NDArray[np.int64]
    """Row of ``Demand.tokens`` that is cached."""
    token_s: Array
    """Per token, where the passes are full of prompts."""

    @classmethod
    def of(cls, demand: Demand, of: Deployments) -> _Prompts:
        ahead = of.prefill
        workers = np.where(of.keeps_prefixes, 1.0, ahead["replicas"])
        nearest = np.abs(np.log(np.divide.outer(np.nan_to_num(workers, nan=1.0), REUSE_WORKERS))).argmin(axis=1)
        caches = np.where(ahead["reuses"] > 0.0, nearest, len(REUSE_WORKERS))
        return cls(caches, _chunk_s(ahead) / _chunk(ahead) + ahead["attended_s"])

    def work_s(self, demand: Demand, of: Deployments) -> Array:
        """Return what the mean prompt takes."""
        attention_s = demand.pairs[self.caches] * of.prefill["pair_s"]
        return np.asarray(demand.tokens[self.caches] * self.token_s + attention_s)


def _chunk(pools: Records) -> Array:
    return np.asarray(np.clip(pools["max_num_batched_tokens"], CHUNKS[0], CHUNKS[-1]))


def _chunk_s(pools: Records) -> Array:
    return interpolated(pools["chunk_s"], CHUNKS, _chunk(pools))


def estimate(demand: Demand, of: Deployments) -> Estimate:
    """Return what *of* would do under *demand*."""
    ahead, behind, together, apart = of.prefill, of.decode, of.together, ~of.together
    max_batch, prompts = largest_batch(behind), _Prompts.of(demand, of)
    # Of one replica that serves one request per second.
    prefill_load = prompts.work_s(demand, of) / ahead["batches"]
    decode_load = demand.output_tokens * step_s(behind, max_batch) / max_batch / behind["batches"]
    hop_s = np.where(together, 0.0, ahead["kv_bytes"] / of.link_bytes_s)
    rate = _rate_rps(demand, of, prefill_load, decode_load, hop_s)
    first = flow(Pools(ahead, of.prefill_scaler, prefill_load, decode_load * together, rate), demand)
    prefills, decodes, handed_s = first.replicas, first.replicas.copy(), np.zeros_like(first.backlog_s)
    if apart.any():
        second = flow(Pools(behind, of.decode_scaler, np.zeros(len(rate)), decode_load, rate).at(apart), demand)
        decodes[apart], handed_s[apart] = second.replicas, second.backlog_s
    # Little's law: requests decoding = their rate x their time. Two rounds, since the step depends on the batch.
    going = demand.windows.decode.mean()
    tokens_per_s = going * rate * demand.output_tokens / decodes / behind["batches"]
    batch = tokens_per_s * step_s(behind, np.ones(len(rate)))
    batch = np.minimum(np.maximum(tokens_per_s * step_s(behind, batch), 1.0), max_batch)
    prefill_load, decode_load = rate * prefill_load / prefills, going * rate * decode_load / decodes
    times_s = _queued(demand, of, prompts, first, batch, rate)
    times_s[apart, 1] = _steps_s(behind[apart], batch[apart])
    backlog_s, handed_s = demand.independent * first.backlog_s, demand.independent * handed_s
    behind_all_s = np.where(together[:, None], ahead["prefill_s"][:, None] + _quantiles(backlog_s), 0.0)
    times_s[:, 0] = np.maximum(times_s[:, 0], behind_all_s) + hop_s[:, None] + _quantiles(handed_s)
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
        computed=demand.tokens[prompts.caches] / demand.input_tokens,
        backlogs_s=backlog_s + handed_s,
        times_s=times_s,
    )


def _queued(demand: Demand, of: Deployments, prompts: _Prompts, first: Flow, batch: Array, rate: Array) -> Array:
    """Return what the queue makes of TTFT and gaps (``n x 2 x STATS``); *batch* requests of a batch decode meanwhile.

    Where prompts and tokens share a pass, a pass has fewer prompt tokens and takes longer by what decoding adds.
    """
    pools, windows, chunk = of.prefill, demand.windows, _chunk(of.prefill)
    mixed = of.together & ~(pools["stalls"] > 0.0)
    taken = np.where(mixed, np.minimum(batch / chunk, _MOST_DECODING), 0.0)
    added_s = np.where(mixed, interpolated(pools["context_s"], BATCHES, batch), 0.0)
    token_s = (prompts.token_s + added_s / chunk) / (1.0 - taken)
    replicas = first.serving if windows.width_s else first.replicas.round()[:, None]
    spacing = np.ones(len(rate)) if demand.concurrency is None else 1.0 / rate
    gap_s = np.where(of.together, step_s(of.decode, batch), 0.0)
    pass_s = np.where(mixed, chunk * token_s, np.inf)
    numbers = [
        pools["batches"], ~of.looks, token_s, pools["pair_s"], gap_s, pass_s, spacing,
        np.full(len(rate), windows.width_s),
    ]  # fmt: skip
    return demand.queue(np.column_stack(numbers), pools["chunk_s"][:, 0], prompts.caches, replicas)


def _steps_s(pools: Records, batch: Array) -> Array:
    """Return the gaps where nothing but tokens is computed, in batches that vary as independent requests do."""
    deviations = [0.0, *(max(float(ndtri(min(q, 0.999))), 0.0) for q in QUANTILES.values())]
    return np.column_stack([step_s(pools, batch + z * np.sqrt(batch)) for z in deviations])


def _quantiles(backlogs_s: Array) -> Array:
    """Return mean and quantiles (``n x STATS``) of backlogs (``n x SHARES``)."""
    return np.column_stack([backlogs_s.mean(axis=1), *np.quantile(backlogs_s, list(QUANTILES.values()), axis=1)])


def _rate_rps(demand: Demand, of: Deployments, prefill_load: Array, decode_load: Array, hop_s: Array) -> Array:
    """Return the rate of the traffic; in a closed loop that of N requests in flight, up to what the pools carry."""
    if demand.concurrency is None:
        return np.full(len(hop_s), demand.rate_rps)
    ahead, behind = of.prefill, of.decode
    prefill, decode = prefill_load / ahead["replicas"], decode_load / behind["replicas"]
    batch = demand.concurrency / behind["replicas"] / behind["batches"]
    decode_s = demand.output_tokens * step_s(behind, np.minimum(batch, largest_batch(behind)))
    alone = demand.concurrency / (ahead["prefill_s"] + hop_s + decode_s)
    busiest = np.where(of.together, prefill + decode, np.maximum(prefill, decode))
    return np.asarray(np.minimum(alone, STABLE_LOAD / busiest))
