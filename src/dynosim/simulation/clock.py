"""The cluster's clock: SimPy's, with absolute times and plain callbacks instead of processes.

A callback costs less than half of a resumed generator, and an absolute time is met to the bit, where ``now + (time -
now)`` may miss it: passes that end exactly then must be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush

import simpy

READY, SEND, TICK, CHECK = 0, 1, 2, 3
"""Order of what happens at the same time: replicas come and go, requests are sent, everybody looks, and whether there
is any use in going on."""


class Clock(simpy.Environment):
    """Calls back at given times, in seconds."""

    def at(self, time: float, order: int, action: Callable[..., None], *args: object) -> None:
        """Call ``action(time, *args)`` at *time*."""
        event = simpy.Event(self)
        event._ok, event._value = True, None
        event.callbacks.append(lambda _: action(time, *args))
        heappush(self._queue, (time, order, next(self._eid), event))  # type: ignore[misc]
