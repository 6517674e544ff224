"""Some replicas kept free for urgent requests: trunk reservation, as telephone networks have it.

Requests of priority up to ``urgent`` may go to all replicas, the others keep off the first ``reserved`` share of them
(rounded down). Within those each goes to the one with the fewest unfinished requests.
"""

from __future__ import annotations

from typing import ClassVar

from dynosim.policies.base import PoolView, RequestView
from dynosim.policies.options import check_share


class PriorityAware:
    """Least outstanding requests, on fewer replicas for requests that are not urgent."""

    looks: ClassVar[bool] = True

    def __init__(self, reserved: float = 0.25, urgent: int = 0) -> None:
        check_share(reserved=reserved)
        self._reserved, self._urgent = reserved, urgent

    def route(self, request: RequestView, pool: PoolView) -> int:
        """Return the least loaded of the replicas that the request may use."""
        replicas = len(pool.targets)
        kept = 0 if request.priority <= self._urgent else min(int(self._reserved * replicas), replicas - 1)
        return kept + int(pool.outstanding_requests[kept:].argmin())
