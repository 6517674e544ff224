"""Any replica, with equal chances."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dynosim.policies.base import PoolView, RequestView


class Random:
    """Send each request to a replica drawn uniformly, blind to load and content."""

    looks: ClassVar[bool] = False

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def route(self, request: RequestView, pool: PoolView) -> int:
        """Return a random replica."""
        return int(self._rng.random() * len(pool.targets))
