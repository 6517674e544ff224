"""What deployments would do, in closed form: loads, queues, latencies, throughput and cost.

Replicas and backlogs follow the traffic over time (``scaling``), all else is that of its mean. It only has to order
configurations roughly: prefix reuse per cache, routing and tails are what the simulation is for. Everything is
arithmetic on columns, one entry for each of ``n`` deployments.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.estimates.demand import QUANTILES, REUSE_WORKERS, Demand
from dynosim.estimates.replica import Records, largest_batch, step_s
from dynosim.estimates.scaling import Pools, flow
from dynosim.metrics import STATS, Metrics

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

STABLE_LOAD = 0.97
"""Up to here a queue is taken to be in equilibrium."""
BACKLOG_FLOOR_S = 0.01
"""Less than this is no backlog."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """What the deployments of ``n`` rows would do; NaN where a replica cannot be."""

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
    together: Flags
    computed: Array
    """Share of the prompt tokens that are not found in the prefix cache."""
    prefill: Records
    prefills: Array
    backlogs_s: Array
    """Time until the work before them is done, of equal shares of the requests (``n x SHARES``)."""

    @property
    def backlog_s(self) -> Array:
        """What one request in a hundred meets, and a bit, so that it has a logarithm."""
        return BACKLOG_FLOOR_S + self._backlogs_s["p99"]

    @cached_property
    def _backlogs_s(self) -> dict[str, Array]:
        quantiles = np.quantile(self.backlogs_s, list(QUANTILES.values()), axis=1)
        return {"avg": self.backlogs_s.mean(axis=1), **dict(zip(QUANTILES, quantiles, strict=True))}

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
        """Return TTFT: the prompt of that quantile behind the M/G/1 wait of that quantile, and the backlog of it.

        Mean wait by Pollaczek and Khinchine, its tail as exponential: P(W > t) = rho exp(-t rho / E[W]).
        """
        busy = np.where(self.together, self.decode_load, 0.0)
        slowed = 1.0 / (1.0 - np.minimum(busy, 0.9))
        service_s = self.prefill["prefill_s"] * slowed / self.prefill["batches"]
        rho = np.clip(self.prefill_load * slowed, 1e-6, STABLE_LOAD)
        wait_s = rho * service_s * self.demand.input_square / (2.0 * (1.0 - rho))
        backlog_s = self._backlogs_s
        hop_s = self.first_token_s - self.prefill["prefill_s"]
        found = {"avg": 1e3 * (hop_s + service_s * self.prefill["batches"] + wait_s + backlog_s["avg"])}
        for j, (stat, q) in enumerate(QUANTILES.items()):
            tail_s = wait_s / rho * np.maximum(np.log(rho / (1.0 - q)), 0.0)
            own_s = self.computed * self.prefill["prefill_quantiles_s"][:, j] * slowed
            found[stat] = 1e3 * (hop_s + np.hypot(own_s, tail_s) + backlog_s[stat])
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
        for stat, q in QUANTILES.items():
            found[stat] = 1e3 * (mean_s + max(_normal_quantile(q), 0.0) * deviation_s)
        return _all_stats(found)


def _normal_quantile(q: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(q))


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
    """Whether the router sends what begins alike to one replica."""
    link_bytes_s: Array
    """Bandwidth of one replica's hand-offs."""


def estimate(demand: Demand, of: Deployments) -> Estimate:
    """Return what *of* would do under *demand*."""
    ahead, behind, together = of.prefill, of.decode, of.together
    max_batch = largest_batch(behind)
    # Of one replica that serves one request per second.
    workers = np.where(of.keeps_prefixes, 1.0, ahead["replicas"])
    computed = 1.0 - ahead["reuses"] * np.interp(np.log(workers), np.log(REUSE_WORKERS), demand.reuse)
    prefill_load = computed * ahead["prefill_s"] / ahead["batches"]
    decode_load = demand.output_tokens * step_s(behind, max_batch) / max_batch / behind["batches"]
    hop_s = np.where(together, 0.0, ahead["kv_bytes"] / of.link_bytes_s)
    rate = _rate_rps(demand, of, prefill_load, decode_load, hop_s)
    first = flow(Pools(ahead, of.prefill_scaler, prefill_load, decode_load * together, rate), demand)
    prefills, decodes, backlogs_s, apart = first.replicas, first.replicas.copy(), first.backlog_s, ~together
    if apart.any():
        second = flow(Pools(behind, of.decode_scaler, np.zeros(len(rate)), decode_load, rate).at(apart), demand)
        decodes[apart], backlogs_s[apart] = second.replicas, backlogs_s[apart] + second.backlog_s
    prefill_load, decode_load = rate * prefill_load / prefills, rate * decode_load / decodes
    # Little's law: requests decoding = their rate x their time. Two rounds, since the step depends on the batch.
    tokens_per_s = rate * demand.output_tokens / decodes / behind["batches"]
    batch = tokens_per_s * step_s(behind, np.ones(len(rate)))
    batch = np.minimum(np.maximum(tokens_per_s * step_s(behind, batch), 1.0), max_batch)
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
        backlogs_s=backlogs_s,
    )


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
