"""The earliest deadline first (Liu and Layland, JACM 20(1), 1973).

A request's deadline is its arrival + ``deadline_s`` of the workload, the time by which it wants its first token; where
it has none, ``default_s`` after its arrival, so that nothing waits for ever.
"""

from __future__ import annotations

import numpy as np

from dynosim.policies.base import FloatArray, QueueView
from dynosim.policies.options import check_at_least


class Deadline:
    """Serve the request first whose deadline comes first."""

    longest_prefix = False
    add_arrival = True

    def __init__(self, default_s: float = 60.0) -> None:
        check_at_least(0.0, default_s=default_s)
        self._default_s = default_s

    def keys(self, requests: QueueView) -> FloatArray:
        """Return the deadlines, seconds after arrival."""
        return np.where(np.isfinite(requests.deadline_s), requests.deadline_s, self._default_s)
