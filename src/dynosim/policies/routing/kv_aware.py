"""Cheapest replica by prefill still to compute and KV cache in use: Dynamo's KV router.

    cost = prefill_weight * max(0, queued prefill blocks + prompt blocks - overlap_weight * cached blocks)
           + KV blocks in use

both with this request included (Dynamo ``docs/components/router/router-concepts.md``: prefill_load_scale,
overlap_score_credit). The lowest cost wins, ties at random; a temperature T > 0 draws from
softmax(-cost / ((max - min) T)) instead.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dynosim.errors import ConfigError
from dynosim.policies.base import PoolView, RequestView


class KVAware:
    """Prefer replicas that hold the prompt's prefix, unless they are too busy."""

    looks: ClassVar[bool] = True

    def __init__(
        self,
        rng: np.random.Generator,
        overlap_weight: float = 1.0,
        prefill_weight: float = 1.0,
        temperature: float = 0.0,
    ) -> None:
        for name, value in (
            ("overlap_weight", overlap_weight),
            ("prefill_weight", prefill_weight),
            ("temperature", temperature),
        ):
            if not value >= 0.0:
                raise ConfigError(f"{value}: must be at least 0", path=f"deployment.router.options.{name}")
        self._rng, self._temperature = rng, temperature
        self._overlap_weight, self._prefill_weight = overlap_weight, prefill_weight

    def route(self, request: RequestView, pool: PoolView) -> int:
        """Return the replica of lowest cost."""
        uncached = pool.prefill_tokens + request.input_tokens - self._overlap_weight * pool.cached_tokens()
        cost = (self._prefill_weight * np.maximum(uncached, 0.0) + pool.kv_tokens) / pool.block_size
        if self._temperature > 0.0:
            return self._draw(cost)
        best = np.flatnonzero(cost == cost.min())
        return int(best[0] if len(best) == 1 else self._rng.choice(best))

    def _draw(self, cost: np.ndarray) -> int:
        spread = float(cost.max() - cost.min()) or 1.0
        weight = np.exp(-(cost - cost.min()) / (spread * self._temperature))
        return int(self._rng.choice(len(cost), p=weight / weight.sum()))
