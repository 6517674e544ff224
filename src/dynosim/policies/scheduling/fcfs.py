"""First come, first served: the default of all three engines."""

from __future__ import annotations

import numpy as np

from dynosim.policies.base import FloatArray, QueueView


class FCFS:
    """Serve requests in order of arrival."""

    longest_prefix = False
    add_arrival = False

    def keys(self, requests: QueueView) -> FloatArray:
        """Return equal keys."""
        return np.zeros(len(requests.input_tokens))
