"""Cheapest replica by prefill still to compute and KV cache in use: Dynamo's KV router.

    cost = prefill_weight * max(0, queued prefill blocks + prompt blocks - overlap_weight * cached blocks
                                   - host_weight * further blocks in lower KV tiers)
           + KV blocks in use

both with this request included (Dynamo ``docs/components/router/router-concepts.md``: prefill_load_scale,
overlap_score_credit, host_cache_hit_weight). Like Dynamo's prefill router, the one of a prefill pool leaves the KV
blocks out: nothing is decoded there. The lowest cost wins, ties at random; a temperature T > 0 draws from
softmax(-cost / ((max - min) T)) instead.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from dynosim.policies.base import PoolView, RequestView, check_at_least


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
        check_at_least(
            0.0,
            overlap_weight=overlap_weight,
            prefill_weight=prefill_weight,
            host_weight=host_weight,
            temperature=temperature,
        )
        self._rng, self._temperature = rng, temperature
        self._overlap_weight, self._prefill_weight, self._host_weight = overlap_weight, prefill_weight, host_weight

    def route(self, request: RequestView, pool: PoolView) -> int:
        """Return the replica of lowest cost."""
        credit = self._overlap_weight * pool.cached_tokens() + self._host_weight * pool.host_cached_tokens()
        uncached = (pool.prefill_tokens + request.input_tokens - credit).tolist()
        kept = [0] * len(uncached) if pool.role == "prefill" else pool.kv_tokens.tolist()
        # In tokens: dividing by the block size changes no comparison. Lists are faster than arrays of a few replicas.
        scale = self._prefill_weight
        cost = [scale * new + kv if new > 0.0 else kv for new, kv in zip(uncached, kept, strict=True)]
        return self._draw(cost) if self._temperature > 0.0 else self._lowest(cost)

    def _lowest(self, cost: list[float]) -> int:
        low = min(cost)
        ties = cost.count(low)
        chosen = cost.index(low)
        for _ in range(int(self._rng.random() * ties) if ties > 1 else 0):
            chosen = cost.index(low, chosen + 1)
        return chosen

    def _draw(self, cost: list[float]) -> int:
        low = min(cost)
        scale = self._temperature * (max(cost) - low or 1.0)
        weight = np.array([math.exp((low - each) / scale) for each in cost])
        return int(self._rng.choice(len(cost), p=weight / weight.sum()))
