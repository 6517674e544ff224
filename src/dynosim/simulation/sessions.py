"""When each request is sent: trace times, clients in a closed loop, turns of a conversation, graphs of agents."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dynosim.simulation.clock import SEND, Clock
from dynosim.timing.frontend import NO_FRONTEND, Frontend
from dynosim.workload.table import IntArray, Workload


class Sessions:
    """Sends requests, and hears of their ends where some wait for others.

    A root goes out at its arrival time, or when one of ``concurrency`` clients takes up its session: a client takes the
    next one when all requests of its last have ended. Any other request goes out its delay after the last of those that
    it waits for has ended. Rejected and failed requests have ended too.
    """

    def __init__(
        self, workload: Workload, clock: Clock, send: Callable[[int, float], None], frontend: Frontend = NO_FRONTEND
    ) -> None:
        self._workload, self._clock, self._send, self._frontend = workload, clock, send, frontend
        self._reached_s = -math.inf
        """When the last request left the frontend."""
        pending = np.diff(workload.after_offsets)
        self._roots = np.flatnonzero(pending == 0)
        self._closed = workload.concurrency is not None
        self._linked = len(workload.after_ids) > 0
        self.watch = self._closed or self._linked
        """Whether ``ended`` must be called."""
        self.unsent = len(workload)
        self._ended = bytearray(len(workload))
        self.arrival_s = np.copy(workload.arrival_s)
        self.arrival_s[self._roots] = frontend.passed(workload.arrival_s[self._roots])
        """Shape (n,): when each request reached the router; NaN for one that has to wait and was not sent yet."""
        self.sent_s = workload.arrival_s
        """Shape (n,): when its client sent it."""
        if self._linked:
            self._pending, self._dependents = pending, _inverse(workload.after_offsets, workload.after_ids)
        if self.watch:
            later = np.full(len(workload), True) if self._closed else pending > 0
            self.arrival_s, self.sent_s = (np.where(later, np.nan, times) for times in (self.arrival_s, self.sent_s))
        if self._closed:
            self._remaining = np.bincount(workload.session)
            self._roots = self._roots[np.argsort(workload.session[self._roots], kind="stable")]
            self._root_offsets = np.searchsorted(workload.session[self._roots], np.arange(len(self._remaining) + 1))
            self._next_session = 0

    def start(self) -> None:
        """Send what is sent first and leave the rest to the clock."""
        if self._closed:
            for _ in range(min(self._workload.concurrency or 0, len(self._remaining))):
                self._clock.at(self._reach(0.0), SEND, self._take_session, 0.0)
        elif len(self._roots):
            # Items of a memoryview are Python numbers, and cheaper than those of an array.
            self._root_ids, self._root_s = self._roots.data, self.arrival_s[self._roots].data
            self._clock.at(self._root_s[0], SEND, self._arrive, 0)

    def ended(self, time: float, i: int) -> None:
        """Request *i* has ended: send or take up what waits for that. It ends once, also if it was given up before."""
        if self._ended[i]:
            return
        self._ended[i] = True
        if self._linked:
            offsets, ids = self._dependents
            for j in ids[offsets[i] : offsets[i + 1]].tolist():
                self._pending[j] -= 1
                if self._pending[j] == 0:
                    self._clock.at(time + float(self._workload.delay_s[j]), SEND, self._send_later, j)
        if self._closed:
            session = self._workload.session[i]
            self._remaining[session] -= 1
            if self._remaining[session] == 0 and self._frontend != NO_FRONTEND:
                self._clock.at(self._reach(time), SEND, self._take_session, time)
            elif self._remaining[session] == 0:
                self._take_session(time, time)

    def _arrive(self, time: float, k: int) -> None:
        """Send root *k* and those that come with it; the next one is put on the clock, however many there are."""
        while k < len(self._roots) and self._root_s[k] == time:
            self.unsent -= 1
            self._send(self._root_ids[k], time)
            k += 1
        if k < len(self._roots):
            self._clock.at(self._root_s[k], SEND, self._arrive, k)

    def _reach(self, sent_s: float) -> float:
        """Return when a request that is sent now leaves the frontend, which handles one after the other."""
        self._reached_s = max(sent_s + self._frontend.latency_s, self._reached_s + self._frontend.request_s)
        return self._reached_s

    def _send_later(self, time: float, i: int) -> None:
        self._clock.at(self._reach(time), SEND, self._send_one, i, time)

    def _take_session(self, time: float, sent_s: float) -> None:
        if self._next_session < len(self._remaining):
            s = self._next_session
            self._next_session += 1
            for i in self._roots[self._root_offsets[s] : self._root_offsets[s + 1]].tolist():
                self._send_one(time, i, sent_s)

    def _send_one(self, time: float, i: int, sent_s: float) -> None:
        self.arrival_s[i], self.sent_s[i] = time, sent_s
        self.unsent -= 1
        self._send(i, time)


def _inverse(offsets: IntArray, ids: IntArray) -> tuple[IntArray, IntArray]:
    """Return who waits for each request, as (offsets, ids), from whom each request waits for."""
    waiting = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.argsort(ids, kind="stable")
    counts = np.bincount(ids, minlength=len(offsets) - 1)
    return np.concatenate(([0], np.cumsum(counts))), waiting[order]
