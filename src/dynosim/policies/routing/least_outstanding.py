"""The replica with the least unfinished work: join the shortest queue."""

from __future__ import annotations

from typing import ClassVar

from dynosim.policies.base import PoolView, RequestView
from dynosim.policies.options import check_choice


class LeastOutstanding:
    """Send each request to the replica with the fewest unfinished requests, or prompt tokens of them; first of equals.

    Prompt tokens only: how long an answer becomes is not known to a router.
    """

    looks: ClassVar[bool] = True

    def __init__(self, unit: str = "requests") -> None:
        check_choice(("requests", "tokens"), unit=unit)
        self._by_tokens = unit == "tokens"

    def route(self, request: RequestView, pool: PoolView) -> int:
        """Return the least loaded replica."""
        return int((pool.kv_tokens if self._by_tokens else pool.outstanding_requests).argmin())
