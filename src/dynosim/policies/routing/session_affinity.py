"""All requests of a session to one replica, where the earlier turns are cached.

The session is bound when its first request comes, to the replica with the fewest unfinished requests (Dynamo's session
affinity; sticky sessions of any HTTP load balancer). One whose replica has gone is bound anew.
"""

from __future__ import annotations

from typing import ClassVar

from dynosim.policies.base import PoolView, RequestView


class SessionAffinity:
    """Keep every session where it started."""

    looks: ClassVar[bool] = True
    keeps_prefixes: ClassVar[bool] = True

    def __init__(self) -> None:
        self._target_of: dict[int, int] = {}

    def route(self, request: RequestView, pool: PoolView) -> int:
        """Return the session's replica."""
        targets: list[int] = pool.targets.tolist()
        target = self._target_of.get(request.session, -1)
        if target in targets:
            return targets.index(target)
        chosen = int(pool.outstanding_requests.argmin())
        self._target_of[request.session] = targets[chosen]
        return chosen
