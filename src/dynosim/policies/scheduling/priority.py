"""The most urgent first: vLLM's ``--scheduling-policy priority``."""

from __future__ import annotations

from dynosim.policies.base import FloatArray, QueueView


class Priority:
    """Serve requests by priority, lower values first, and in order of arrival within one."""

    longest_prefix = False
    add_arrival = False

    def keys(self, requests: QueueView) -> FloatArray:
        """Return the priorities."""
        return requests.priority.astype(float)
