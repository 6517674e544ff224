"""The less loaded of two replicas drawn at random.

Nearly as even as asking all of them, and far less sensitive to stale load reports, which send everybody to the same
least loaded replica (Mitzenmacher, "The power of two choices in randomized load balancing", IEEE TPDS 12(10), 2001,
and "How useful is old information?", IEEE TPDS 11(1), 2000). SGLang's router has it under this name.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dynosim.policies.base import PoolView, RequestView


class PowerOfTwo:
    """Draw two different replicas and take the one with fewer unfinished requests; the first drawn of equals."""

    looks: ClassVar[bool] = True

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def route(self, request: RequestView, pool: PoolView) -> int:
        """Return the better of two."""
        load = pool.outstanding_requests
        first = int(self._rng.random() * len(load))
        if len(load) == 1:
            return first
        second = int(self._rng.random() * (len(load) - 1))
        second += second >= first
        return second if load[second] < load[first] else first
