"""Scale by the headroom to latency targets: the rule of Dynamo planner's ``sla`` target (load scaling).

One replica more when mean TTFT or mean ITL is above its target. One less when the latencies that the others would
have with its share of the load, measured * N / (N - 1), are below ``sensitivity`` of both targets. No decision while a
replica is starting. The planner estimates latencies with fitted models; here they are those measured since the last
tick. One that was not is within its target, but while requests wait and none got a token no replica is removed. The
defaults are the planner's: 500 ms, 50 ms, 80 %.
"""

from __future__ import annotations

import math

from dynosim.policies.base import ScalingView, Setpoint
from dynosim.policies.options import check_positive, check_share


class SLO:
    """Keep mean TTFT and ITL within their targets with as few replicas as that takes."""

    def __init__(self, ttft_ms: float = 500.0, itl_ms: float = 50.0, sensitivity: float = 0.8) -> None:
        check_positive(ttft_ms=ttft_ms, itl_ms=itl_ms)
        check_share(sensitivity=sensitivity)
        self._ttft_ms, self._itl_ms, self._sensitivity = ttft_ms, itl_ms, sensitivity

    def desired(self, pool: ScalingView) -> int:
        """Return the wanted replicas."""
        present, used = pool.replicas + pool.starting, self._used(pool)
        if pool.starting or not present:
            return max(present, 1)
        if used > 1.0:
            return present + 1
        return present - (present > 1 and used * present / (present - 1) < self._sensitivity)

    def _used(self, pool: ScalingView) -> float:
        """Return the larger of the two latencies as a share of its target."""
        silent = math.isnan(pool.ttft_ms) and pool.queue_requests > 0
        shares = pool.ttft_ms / self._ttft_ms, pool.itl_ms / self._itl_ms, self._sensitivity if silent else 0.0
        return max(share for share in shares if not math.isnan(share))

    def setpoint(self) -> Setpoint:
        """Return the targets."""
        weights = {"ttft_ms": 1.0 / self._ttft_ms, "itl_ms": 1.0 / self._itl_ms}
        return Setpoint(weights, 1.0, self._sensitivity, step_up=1.0, step_down=1.0)
