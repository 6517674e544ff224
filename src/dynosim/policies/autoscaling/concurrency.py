"""Scale by unfinished requests per replica: Knative's pod autoscaler.

    replicas = ceil(unfinished requests / (target utilisation * most running requests of one replica))

Knative's target utilisation is 0.7; here that is the upper threshold, and a lower one adds hysteresis.
"""

from __future__ import annotations

from dynosim.policies.base import ScalingView, Setpoint
from dynosim.policies.options import check_thresholds
from dynosim.policies.sizing import between_thresholds


class Concurrency:
    """Keep unfinished requests per replica between two shares of ``max_num_seqs``."""

    def __init__(self, up: float = 0.7, down: float = 0.5) -> None:
        check_thresholds(up=up, down=down)
        self._up, self._down = up, down

    def desired(self, pool: ScalingView) -> int:
        """Return the wanted replicas."""
        return between_thresholds(pool.outstanding_requests / pool.max_num_seqs, self._up, self._down, pool)

    def setpoint(self) -> Setpoint:
        """Return the thresholds."""
        return Setpoint({"outstanding": 1.0}, self._up, self._down)
