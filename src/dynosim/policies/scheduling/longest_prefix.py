"""The longest cached prefix first: SGLang's ``--schedule-policy lpm``.

SGLang falls back to order of arrival while more than 128 requests wait (``schedule_policy.py`` of sgl-project/sglang),
and so does the simulated engine.
"""

from __future__ import annotations

import numpy as np

from dynosim.policies.base import FloatArray, QueueView


class LongestPrefix:
    """Serve the request first that has most prompt tokens in the replica's cache."""

    longest_prefix = True
    add_arrival = False

    def keys(self, requests: QueueView) -> FloatArray:
        """Return equal keys: order of arrival among equals."""
        return np.zeros(len(requests.input_tokens))
