"""Policies that do as they are told, in a module of their own so that tests and registry see the same ones."""

from __future__ import annotations

from typing import ClassVar

from dynosim.policies.base import PoolView, RequestView, ScalingView
from dynosim.policies.routing.kv_aware import KVAware


class Scripted:
    """Wants the replicas of its list, one tick after the other, and then the last of them; remembers what it saw."""

    seen: ClassVar[list[ScalingView]] = []

    def __init__(self, wishes: list[int]) -> None:
        self._wishes = list(wishes)
        Scripted.seen.clear()

    def desired(self, pool: ScalingView) -> int:
        """Return the next wish."""
        Scripted.seen.append(pool)
        return self._wishes.pop(0) if len(self._wishes) > 1 else self._wishes[0]


class Fixed:
    """Always sends to the same position; remembers the views it had, with their arrays as they were."""

    looks: ClassVar[bool] = True
    seen: ClassVar[list[tuple[RequestView, PoolView, list[int], list[int]]]] = []

    def __init__(self, position: int = 0) -> None:
        self._position = position
        Fixed.seen.clear()

    def route(self, request: RequestView, pool: PoolView) -> int:
        """Return the position."""
        Fixed.seen.append((request, pool, pool.outstanding_requests.tolist(), pool.cached_tokens().tolist()))
        return self._position


class Interpreted(KVAware):
    """A user's policy that does what ``kv_aware`` does: nothing of it is compiled."""
