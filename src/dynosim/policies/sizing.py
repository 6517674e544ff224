"""How many replicas a load needs: the rules that autoscaling policies and the slow loop share."""

from __future__ import annotations

import math

from dynosim.policies.base import ScalingView

ROUNDING = 1e-9
"""Replicas by which a need may be above a whole number without asking for one more: floating-point noise."""
MOST = 1e6
"""More replicas than anybody has: keeps the need finite whatever the thresholds are."""


def replicas_for(rate_rps: float, replica_rps: float) -> int:
    """Return the replicas that serve *rate_rps* when one serves *replica_rps*, requests per second.

    Throughput scaling of NVIDIA Dynamo's planner. 0 while the capacity is unknown.
    """
    return _whole(rate_rps / replica_rps) if replica_rps > 0.0 else 0


def between_thresholds(load: float, up: float, down: float, pool: ScalingView) -> int:
    """Return the replicas that *load*, the sum over the pool, wants when each should carry between *down* and *up*.

    Above *up* per serving replica: as many as carry *up* each; below *down*, or without any load: as many as carry
    *down* each; in between nothing changes. This is the rule of Kubernetes' Horizontal Pod Autoscaler,
    ceil(replicas * metric / target), with a target for each direction: the gap is the hysteresis. Replicas that are
    starting count as there, so one need is not met twice, and none is removed meanwhile.
    """
    present = pool.replicas + pool.starting
    if load > up * pool.replicas:
        return max(present, _whole(load / up), 1)
    if not pool.starting and (load < down * pool.replicas or not load):
        return max(min(present, _whole(load / down if load else 0.0)), 1)
    return max(present, 1)


def _whole(replicas: float) -> int:
    return math.ceil(min(replicas, MOST) - ROUNDING)
