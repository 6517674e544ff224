"""The replicas of one pool over time: which of them start, serve, drain or are down, and what their GPUs cost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dynosim.config import PoolConfig

OFF, STARTING, SERVING, DRAINING, DOWN = 0, 1, 2, 3, 4
"""States of a replica. All but OFF hold GPUs, which are paid for."""


class Fleet:
    """Up to ``max_replicas`` replicas, of which the first ``replicas`` serve from the start.

    *changed* is called with the time after every change.
    """

    def __init__(self, config: PoolConfig, changed: Callable[[float], None]) -> None:
        self.states = [OFF] * config.max_replicas
        self.epochs = [0] * config.max_replicas
        """Counts the changes of each replica, so that what was planned for it can be seen to be out of date."""
        self.since = [0.0] * config.max_replicas
        """When each replica came into its state."""
        self._changed: Callable[[float], None] = lambda _: None
        self._history: list[tuple[float, int, int]] = []
        for replica in range(config.replicas):
            self.move(replica, SERVING, 0.0)
        self._changed = changed

    def having(self, *states: int) -> list[int]:
        """Return the replicas that are in one of *states*."""
        return [replica for replica, state in enumerate(self.states) if state in states]

    def move(self, replica: int, state: int, time: float) -> None:
        """Let *replica* be in *state* from *time* on, which for OFF may lie in the past."""
        self.states[replica] = state
        self.epochs[replica] += 1
        self.since[replica] = time
        self._history.append((time, replica, state))
        self._changed(time)

    def timeline(self, start: float, end: float) -> NDArray[np.float64]:
        """Return rows of (time, provisioned, serving, starting, draining), one at *start* and one per change."""
        states, counts = [OFF] * len(self.states), dict[float, tuple[float, ...]]()
        for time, replica, state in sorted(self._history, key=lambda change: change[0]):
            states[replica] = state
            if time <= end:
                provisioned = len(states) - states.count(OFF)
                counts[max(time, start)] = provisioned, *(states.count(s) for s in (SERVING, STARTING, DRAINING))
        return np.array([(time, *count) for time, count in counts.items()])

    def replica_seconds(self, start: float, end: float) -> float:
        """Return the time between *start* and *end* that replicas held their GPUs, summed over replicas."""
        total, since = 0.0, dict[int, float]()
        for time, replica, state in [*self._history, *((end, replica, OFF) for replica in range(len(self.states)))]:
            if state != OFF:
                since.setdefault(replica, time)
            elif replica in since:
                total += max(min(time, end) - max(since.pop(replica), start), 0.0)
        return total
