"""What is between a client and the router: HTTP, tokenising, detokenising, streaming.

A server's frontend is a process that handles one request after the other, so two requests never reach the engine at
once: the first of those that are sent together starts a pass alone, and the others wait for its end. In a closed loop
of equal requests that is what keeps them from marching in step (docs/calibration.md has it measured, on vLLM 0.32
alone). Left out: the frontend's own queue on the way back, and that first and later turns of an open loop share one.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynosim.engines import behaviour
from dynosim.hardware.plan import PoolPlan
from dynosim.timing import forward_times
from dynosim.timing.calibrated import profile_of

Array = NDArray[np.float64]


class Frontend(NamedTuple):
    """The frontends of all replicas as one."""

    latency_s: float = 0.0
    """From a client to the engine and back, where nobody else is there."""
    request_s: float = 0.0
    """From one request that passes to the next."""

    def passed(self, sent_s: Array) -> Array:
        """Return when requests that are sent at these times, which do not decrease, reach the router."""
        if self == NO_FRONTEND:
            return sent_s
        queue_s = self.request_s * np.arange(len(sent_s))
        return np.asarray(np.maximum.accumulate(sent_s + self.latency_s - queue_s) + queue_s)


NO_FRONTEND = Frontend()


def frontend(plans: Collection[PoolPlan]) -> Frontend:
    """Return the frontend before the pools of *plans*, calibrated: of that whose own is shortest, one per replica."""
    hardware = all(forward_times(plan).knows_hardware for plan in plans)
    return min(_of(plan, hardware=hardware) for plan in plans)


def _of(plan: PoolPlan, *, hardware: bool) -> Frontend:
    profile, own = profile_of(plan.deployment), behaviour(plan.engine, hardware=hardware)
    latency_ms = max(own.frontend_ms + profile.frontend_ms, 0.0) if profile else own.frontend_ms
    return Frontend(latency_ms * 1e-3, own.frontend_request_us * 1e-6 / plan.config.replicas)
