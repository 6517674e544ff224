"""Scale by the share of KV blocks in use: the signal of Dynamo planner's targets for decode and aggregated pools.

The defaults are those of its sweep's ``load`` target, up at 90 % and down below 70 %.
"""

from __future__ import annotations

from dynosim.policies.base import ScalingView, Setpoint
from dynosim.policies.options import check_thresholds
from dynosim.policies.sizing import between_thresholds


class KVUtilization:
    """Keep the KV caches between two fill levels."""

    def __init__(self, up: float = 0.9, down: float = 0.7) -> None:
        check_thresholds(up=up, down=down)
        self._up, self._down = up, down

    def desired(self, pool: ScalingView) -> int:
        """Return the wanted replicas."""
        return between_thresholds(pool.kv_utilization * pool.replicas, self._up, self._down, pool)

    def setpoint(self) -> Setpoint:
        """Return the thresholds."""
        return Setpoint({"kv_utilization": 1.0}, self._up, self._down)
