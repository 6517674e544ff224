"""The replica with the fewest unfinished requests."""

from __future__ import annotations

from typing import ClassVar

from dynosim.policies.base import PoolView, RequestView


class LeastOutstanding:
    """Send each request to the replica with the fewest unfinished requests; the first of equals."""

    looks: ClassVar[bool] = True

    def route(self, request: RequestView, pool: PoolView) -> int:
        """Return the least loaded replica."""
        return int(pool.outstanding_requests.argmin())
