"""Scale by what waits for prefill: the signal of Dynamo planner's ``throughput`` and ``latency`` targets for prefill.

The planner compares queued prompt tokens per replica with the context length, up at 1 and down below 0.1 (throughput)
or up at 0.1 and down at 0 (latency). Here the yardstick is one pass's token budget, ``unit: passes``, so the defaults
say: up when more than one full pass of prefill waits per replica. ``unit: requests`` counts waiting requests instead,
as scalers on vLLM's ``num_requests_waiting`` do.
"""

from __future__ import annotations

from dynosim.policies.base import ScalingView, Setpoint
from dynosim.policies.options import check_choice, check_thresholds
from dynosim.policies.sizing import between_thresholds


class QueueDepth:
    """Keep the queue of each replica between two depths."""

    def __init__(self, up: float = 1.0, down: float = 0.1, unit: str = "passes") -> None:
        check_thresholds(up=up, down=down)
        check_choice(("passes", "requests"), unit=unit)
        self._up, self._down, self._by_requests = up, down, unit == "requests"

    def desired(self, pool: ScalingView) -> int:
        """Return the wanted replicas."""
        passes = pool.queued_prefill_tokens / pool.max_num_batched_tokens
        queue = pool.queue_requests if self._by_requests else passes
        wanted = between_thresholds(queue, self._up, self._down, pool)
        # An empty queue does not say how many replicas keep it empty: one less at a time, as the planner does.
        return max(wanted, pool.replicas + pool.starting - 1)

    def setpoint(self) -> Setpoint:
        """Return the thresholds."""
        signal = "queued_requests" if self._by_requests else "queued_passes"
        return Setpoint({signal: 1.0}, self._up, self._down, step_down=1.0)
