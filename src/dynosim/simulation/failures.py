"""Crashes and slow nodes: which replica goes down when, and what becomes of its requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from dynosim import rng
from dynosim.config import FailuresConfig
from dynosim.errors import ConfigError
from dynosim.simulation import engine as core
from dynosim.simulation.clock import READY, Clock
from dynosim.simulation.fleet import DOWN, DRAINING, OFF, SERVING
from dynosim.simulation.flows import Aggregated, Disaggregated
from dynosim.simulation.pool_runtime import PoolRuntime
from dynosim.simulation.sessions import Sessions
from dynosim.workload.table import IntArray

MAX_RETRIES = 10
"""A request that has lost its replica more often has failed: without a bound a replica that crashes faster than it
answers would keep a run going for ever."""


class Failures:
    """Lets replicas crash, recover and be slow, and sends their requests again once it is noticed.

    A request that is sent again starts from its prompt. With ``migrate`` one that has shown tokens keeps them, and is
    computed again by the next (decode) replica like a preempted one.
    """

    def __init__(
        self,
        config: FailuresConfig,
        runtimes: Mapping[str, PoolRuntime],
        flow: Aggregated | Disaggregated,
        sessions: Sessions,
        clock: Clock,
        missing: NDArray[np.bool_],
        *,
        seed: int,
        idle: Callable[[], bool],
    ) -> None:
        self._config, self._runtimes, self._flow, self._sessions = config, runtimes, flow, sessions
        self._clock, self._missing, self._seed, self._idle = clock, missing, seed, idle
        self._handles = np.stack([runtime.pool.handle for runtime in runtimes.values()])
        self._streams: dict[tuple[str, int], np.random.Generator] = {}
        self.retries = np.zeros(len(missing), np.int32)
        """Shape (n,): how often each request was sent again."""
        self.failed_s = np.full(len(missing), math.nan)
        """Shape (n,): when a request was given up."""

    @property
    def expected(self) -> bool:
        """Whether any replica may crash."""
        return self._config.mtbf_s is not None or len(self._config.crashes) > 0

    def start(self) -> None:
        """Slow the stragglers down and put the planned crashes on the clock."""
        for k, straggler in enumerate(self._config.stragglers):
            runtime = self._runtime(straggler.pool, straggler.replica, f"stragglers[{k}]")
            runtime.pool.engine.rows["slowdown"][runtime.dispatcher.rows_of(straggler.replica)] = straggler.slowdown
        for k, crash in enumerate(self._config.crashes):
            runtime = self._runtime(crash.pool, crash.replica, f"crashes[{k}]")
            self._clock.at(crash.at_s, READY, self._crash, runtime, crash.replica, crash.down_s)
        for runtime in self._runtimes.values():
            for replica in runtime.fleet.having(SERVING):
                self.serving(runtime, replica, 0.0)

    def serving(self, runtime: PoolRuntime, replica: int, time: float) -> None:
        """Draw when *replica*, which serves from *time* on, will crash."""
        if self._config.mtbf_s is not None:
            name = runtime.pool.role, replica
            if name not in self._streams:
                self._streams[name] = rng.stream(self._seed, f"failures/{runtime.pool.role}/{replica}")
            after_s = float(self._streams[name].exponential(self._config.mtbf_s))
            epoch = runtime.fleet.epochs[replica]
            self._clock.at(time + after_s, READY, self._crash_by_chance, runtime, replica, epoch)

    def _crash_by_chance(self, time: float, runtime: PoolRuntime, replica: int, epoch: int) -> None:
        if runtime.fleet.epochs[replica] == epoch:
            self._crash(time, runtime, replica, self._config.mttr_s)

    def _crash(self, time: float, runtime: PoolRuntime, replica: int, down_s: float) -> None:
        """Everything on *replica* is gone; one that does not serve cannot crash."""
        if self._idle() or runtime.fleet.states[replica] not in (SERVING, DRAINING):
            return
        rows = runtime.dispatcher.rows_of(replica)
        lost = self._drop(runtime, replica, time)
        runtime.dispatcher.lost |= dict.fromkeys(rows.tolist(), lost)
        self._clock.at(time + self._config.detection_s, READY, self._notice, runtime, rows, lost)
        if runtime.fleet.states[replica] == DRAINING:
            runtime.fleet.move(replica, OFF, time)
        else:
            runtime.fleet.move(replica, DOWN, time)
            self._clock.at(time + down_s, READY, self.ready, runtime, replica, runtime.fleet.epochs[replica])

    def _drop(self, runtime: PoolRuntime, replica: int, time: float) -> list[int]:
        """Take everything off *replica*; returns its requests that had not left it."""
        for each in self._runtimes.values():
            core.settle_all(each.pool.handle, time)
        on = runtime.requests_on(replica) & np.isnan(self._flow.left_s(runtime))
        core.crash(self._handles, runtime.pool.engine.limits[0]["pool"], replica, time)
        self._flow.dropped(runtime, on)
        lost: list[int] = np.flatnonzero(on & ~self._missing).tolist()
        self._missing[lost] = True
        return lost

    def ready(self, time: float, runtime: PoolRuntime, replica: int, epoch: int) -> None:
        """A replica that was started, or has recovered, serves from now on unless it was given up meanwhile."""
        if runtime.fleet.epochs[replica] == epoch:
            core.boot(runtime.pool.handle, replica, time)
            for row in runtime.dispatcher.rows_of(replica).tolist():
                runtime.dispatcher.lost.pop(row, None)
            runtime.fleet.move(replica, SERVING, time)
            self.serving(runtime, replica, time)

    def _notice(self, time: float, runtime: PoolRuntime, rows: IntArray, lost: list[int]) -> None:
        """The crash is noticed: no more requests go there, and its own are sent again."""
        for row in rows.tolist():
            if runtime.dispatcher.lost.get(row) is lost:
                del runtime.dispatcher.lost[row]
        runtime.refresh(time)
        self._missing[lost] = False
        for i in lost:
            if self._config.on_crash == "lose" or self.retries[i] == MAX_RETRIES:
                self.failed_s[i] = time
                self._flow.give_up(i, time, runtime)
                self._sessions.ended(time, i)
            else:
                self.retries[i] += 1
                self._flow.send_again(i, time, runtime, keep=self._config.on_crash == "migrate")

    def _runtime(self, role: str, replica: int, path: str) -> PoolRuntime:
        """Return the runtime that a setting names; ConfigError when there is no such replica."""
        runtimes, path = self._runtimes, f"deployment.failures.{path}"
        if role not in runtimes:
            raise ConfigError(f"{role!r}: allowed: {', '.join(runtimes)}", path=f"{path}.pool")
        if replica >= len(runtimes[role].fleet.states):
            raise ConfigError(
                f"{replica}: allowed is less than {len(runtimes[role].fleet.states)}", path=f"{path}.replica"
            )
        return runtimes[role]
