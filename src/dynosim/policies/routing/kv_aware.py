"""Cheapest replica by prefill still to compute and KV blocks in use: Dynamo's KV router.

    credit  = overlap_score_credit / (1 + overlap_score_credit_decay * excess) * cached blocks
              + host_cache_hit_weight * blocks in host memory + disk_cache_hit_weight * blocks in lower tiers
    prefill = prefill_load_scale * max(0, (prefill tokens queued there + prompt) / block size - credit)
    decode  = active blocks + blocks of this prompt that no request there has
    cost    = prefill + decode + decode_active_request_weight * unfinished requests

Active blocks are those of the prompts of unfinished requests, shared ones counted once; ``excess`` is how much more
prefill is queued than on the least loaded replica, over the prompt's blocks. The lowest cost wins, ties at random; a
``router_temperature`` T > 0 draws from softmax(-cost / ((max - min) T)) instead. In a prefill pool nothing is decoded
and the second term is left out; in a decode pool nothing is prefilled, prompts share no blocks, and what is cached
counts where ``decode_overlap_score_credit`` says so.

With ``router_queue_threshold`` requests wait at the router while every replica has more than that many passes of
``max_num_batched_tokens`` of prefill queued: ``fcfs``, the last one first (``lcfs``), or the shortest uncached prompt
first (``wspt``). With ``router_predicted_ttl_secs`` the router expects a prompt's blocks where it has just sent it.

Names, rules and defaults are those of Dynamo 1.6.1 (``lib/kv-router/src/scheduling/selector/default.rs``,
``components/src/dynamo/common/configuration/groups/kv_router_args.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dynosim.policies.base import FloatArray, PoolView, RequestView
from dynosim.policies.options import check_at_least, check_choice, check_positive

QUEUE_POLICIES = ("fcfs", "lcfs", "wspt")
SCALE, CREDIT, DECAY, HOST, DISK, DECODE, DECODE_CREDIT, REQUEST, TEMPERATURE = range(9)
"""Places of the weights of ``choose``."""
Seen = tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int], Sequence[int], Sequence[int], Sequence[int]]
"""Of every row: prefill tokens queued, active blocks, unfinished requests, and of the prompt's blocks those cached, in
use, in host memory and in lower tiers."""


class KVAware:
    """Prefer replicas that hold the prompt's prefix, unless they are too busy."""

    looks: ClassVar[bool] = True
    keeps_prefixes: ClassVar[bool] = True

    def __init__(
        self,
        rng: np.random.Generator,
        overlap_score_credit: float = 1.0,
        overlap_score_credit_decay: float = 0.0,
        prefill_load_scale: float = 1.0,
        host_cache_hit_weight: float = 0.75,
        disk_cache_hit_weight: float = 0.25,
        decode_active_request_weight: float = 0.0,
        decode_overlap_score_credit: float = 0.0,
        router_temperature: float = 0.0,
        router_queue_threshold: float | None = None,
        router_queue_policy: str = "fcfs",
        router_predicted_ttl_secs: float | None = None,
    ) -> None:
        weights = {
            "prefill_load_scale": prefill_load_scale,
            "overlap_score_credit": overlap_score_credit,
            "overlap_score_credit_decay": overlap_score_credit_decay,
            "host_cache_hit_weight": host_cache_hit_weight,
            "disk_cache_hit_weight": disk_cache_hit_weight,
            "decode": 1.0,
            "decode_overlap_score_credit": decode_overlap_score_credit,
            "decode_active_request_weight": decode_active_request_weight,
            "router_temperature": router_temperature,
        }
        check_at_least(0.0, **weights)
        self._weights = list(weights.values())
        if router_queue_threshold is not None:
            check_at_least(0.0, router_queue_threshold=router_queue_threshold)
        check_choice(QUEUE_POLICIES, router_queue_policy=router_queue_policy)
        if router_predicted_ttl_secs is not None:
            check_positive(router_predicted_ttl_secs=router_predicted_ttl_secs)
        self.predicted_ttl_s = router_predicted_ttl_secs or 0.0
        self.queue_threshold, self.queue_policy = router_queue_threshold, router_queue_policy
        self._rng, self._draws = rng, np.zeros(0)

    def weights(self, role: str) -> list[float]:
        """Return the weights of ``choose`` in a pool of *role*."""
        weights = list(self._weights)
        if role == "decode":
            weights[SCALE] = 0.0
        else:
            weights[DECODE_CREDIT] = 0.0
        weights[DECODE] = 0.0 if role == "prefill" else 1.0
        return weights

    def draws(self, requests: int) -> FloatArray:
        """Return numbers from 0 to 1 of the first *requests* requests of the workload, or more."""
        if len(self._draws) < requests:
            self._draws = np.append(self._draws, self._rng.random(max(requests - len(self._draws), 1000)))
        return self._draws

    def route(self, request: RequestView, pool: PoolView) -> int:
        """Return the replica of lowest cost."""
        seen = (
            pool.prefill_tokens.tolist(),
            pool.active_blocks.tolist(),
            pool.outstanding_requests.tolist(),
            pool.cached_blocks().tolist(),
            pool.referenced_blocks().tolist(),
            pool.host_cached_blocks().tolist(),
            pool.disk_cached_blocks().tolist(),
        )
        draw, rows = float(self.draws(request.number + 1)[request.number]), range(len(pool.targets))
        return choose(
            self.weights(pool.role), draw, request.input_tokens, pool.block_size, rows, seen, [0.0] * len(rows)
        )


# The simulator compiles what follows, to call it on arrays of its own.


def choose(
    weights: Sequence[float],
    draw: float,
    tokens: int,
    block_size: int,
    rows: Sequence[int],
    seen: Seen,
    costs: list[float],
) -> int:
    """Return the position in *rows* of the one to send *tokens* to. *seen* has the state of every row, *costs* room for
    as many numbers."""
    queued = seen[0]
    least = queued[rows[0]]
    for r in rows:
        least = min(least, queued[r])
    low, high, equal = math.inf, 0.0, 0
    for r in rows:
        cost = cost_of(weights, tokens, block_size, least, seen, r)
        costs[r], high = cost, max(high, cost)
        if cost < low:
            low, equal = cost, 0
        equal += cost == low
    if weights[TEMPERATURE] > 0.0:
        return _softmax(costs, rows, low, (high - low or 1.0) * weights[TEMPERATURE], draw)
    return _nth_equal(costs, rows, low, int(draw * equal))


def cost_of(weights: Sequence[float], tokens: int, block_size: int, least: int, seen: Seen, r: int) -> float:
    """Return the cost of row *r*, in blocks."""
    queued, active, requests, cached, referenced, host, disk = seen
    credit = weights[CREDIT]
    if weights[DECAY] > 0.0:
        blocks = (tokens + block_size - 1) // block_size
        credit /= 1.0 + weights[DECAY] * (queued[r] - least) / block_size / blocks
    prefill = (queued[r] + tokens) / block_size - credit * cached[r]
    prefill -= weights[HOST] * host[r] + weights[DISK] * disk[r]
    decode = weights[DECODE] * (active[r] + tokens // block_size - referenced[r]) - weights[DECODE_CREDIT] * cached[r]
    return weights[SCALE] * max(prefill, 0.0) + max(decode, 0.0) + weights[REQUEST] * requests[r]


def _nth_equal(costs: list[float], rows: Sequence[int], low: float, n: int) -> int:
    for position in range(len(rows)):
        if costs[rows[position]] == low:
            if n == 0:
                return position
            n -= 1
    return 0


def _softmax(costs: list[float], rows: Sequence[int], low: float, scale: float, draw: float) -> int:
    total = 0.0
    for r in rows:
        costs[r] = math.exp((low - costs[r]) / scale)
        total += costs[r]
    left = draw * total
    for position in range(len(rows)):
        left -= costs[rows[position]]
        if left < 0.0:
            return position
    return len(rows) - 1
