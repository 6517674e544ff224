"""An autoscaling policy that does as it is told, in a module of its own so that tests and policies see the same one."""

from __future__ import annotations

from typing import ClassVar

from dynosim.policies.base import ScalingView


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
