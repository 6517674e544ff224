"""Replicas in turn, blind to load and content."""

from __future__ import annotations

from typing import ClassVar

from dynosim.policies.base import PoolView, RequestView


class RoundRobin:
    """Send request n to replica n modulo the number of replicas."""

    looks: ClassVar[bool] = False

    def __init__(self) -> None:
        self._next = 0

    def route(self, request: RequestView, pool: PoolView) -> int:
        """Return the next replica in turn."""
        chosen = self._next % len(pool.targets)
        self._next += 1
        return chosen
