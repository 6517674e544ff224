"""Cheapest replica by prefill still to compute and KV cache in use: Dynamo's KV router.

    cost = prefill_weight * max(0, queued prefill + prompt - overlap_weight * cached - host_weight * cached below)
           + KV cache in use

in tokens, both with this request included (Dynamo ``docs/components/router/router-concepts.md``: prefill_load_scale,
overlap_score_credit, host_cache_hit_weight). As Dynamo's prefill router, the one of a prefill pool leaves the KV cache
in use out: nothing is decoded there. The lowest cost wins, ties at random; a temperature T > 0 draws from
softmax(-cost / ((max - min) T)) instead.
"""

from __future__ import annotations

import math
from bisect import bisect
from itertools import accumulate
from typing import ClassVar

import numpy as np

from dynosim.policies.base import PoolView, RequestView
from dynosim.policies.options import check_at_least


class KVAware:
    """Prefer replicas that hold the prompt's prefix, unless they are too busy."""

    looks: ClassVar[bool] = True

    def __init__(
        self,
        rng: np.random.Generator,
        overlap_weight: float = 1.0,
        prefill_weight: float = 1.0,
        host_weight: float = 0.75,
        temperature: float = 0.0,
    ) -> None:
        check_at_least(0.0, overlap_weight=overlap_weight, prefill_weight=prefill_weight)
        check_at_least(0.0, host_weight=host_weight, temperature=temperature)
        self._rng, self._temperature = rng, temperature
        self._weights = prefill_weight, overlap_weight, host_weight

    def route(self, request: RequestView, pool: PoolView) -> int:
        """Return the replica of lowest cost."""
        (prefill_weight, overlap_weight, host_weight), tokens = self._weights, request.input_tokens
        kept = [0] * len(pool.targets) if pool.role == "prefill" else pool.kv_tokens.tolist()
        cached, below = pool.cached_tokens().tolist(), pool.host_cached_tokens().tolist()
        cost = []
        # A plain loop: for a few replicas it takes a third of the time of array operations.
        for queued, kv, here, further in zip(pool.prefill_tokens.tolist(), kept, cached, below, strict=True):
            new = queued + tokens - overlap_weight * here - host_weight * further
            cost.append(prefill_weight * new + kv if new > 0.0 else kv)
        return self._draw(cost) if self._temperature > 0.0 else self._lowest(cost)

    def _lowest(self, cost: list[float]) -> int:
        low = min(cost)
        ties = cost.count(low)
        if ties == 1:
            return cost.index(low)
        return [i for i, each in enumerate(cost) if each == low][int(self._rng.random() * ties)]

    def _draw(self, cost: list[float]) -> int:
        low, spread = min(cost), max(cost) - min(cost) or 1.0
        shares = list(accumulate(math.exp((low - each) / spread / self._temperature) for each in cost))
        return min(bisect(shares, self._rng.random() * shares[-1]), len(cost) - 1)
