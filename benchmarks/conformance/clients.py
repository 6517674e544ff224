"""When each request of a recorded workload is sent, as its clients would: open loop, turns, or a closed loop."""

from __future__ import annotations

import heapq
from typing import Any


class Clients:
    """The requests still to come, by (time, index): the semantics of ``dynosim.workload.table.Workload``."""

    def __init__(self, workload: dict[str, Any]) -> None:
        count = len(workload["input_tokens"])
        offsets, ids = workload.get("after_offsets", [0] * (count + 1)), workload.get("after_ids", [])
        self.after = [set(ids[offsets[i] : offsets[i + 1]]) for i in range(count)]
        self.delay_s = workload.get("delay_s", [0.0] * count)
        session = workload.get("session", list(range(count)))
        self.sessions = [[i for i in range(count) if session[i] == s] for s in range(max(session) + 1)]
        self.session = session
        self.ended: set[int] = set()
        self._coming: list[tuple[float, int]] = []
        self._closed, self._next = workload.get("concurrency") is not None, 0
        for _ in range(workload.get("concurrency") or 0):
            self._take_session(0.0)
        if not self._closed:
            roots = (i for i in range(count) if not self.after[i])
            self._coming = [(workload["arrival_s"][i], i) for i in roots]
            heapq.heapify(self._coming)

    @property
    def next_s(self) -> float | None:
        """When the next request comes; None where none does before another has ended."""
        return self._coming[0][0] if self._coming else None

    def due(self, now: float) -> list[tuple[float, int]]:
        """Take out what comes up to *now*, as (time, index)."""
        found = []
        while self._coming and self._coming[0][0] <= now:
            found.append(heapq.heappop(self._coming))
        return found

    def end(self, i: int, now: float) -> None:
        """Request *i* has ended: what waited for it is on its way."""
        self.ended.add(i)
        for j in self.sessions[self.session[i]]:
            if i in self.after[j] and self.after[j] <= self.ended:
                heapq.heappush(self._coming, (now + self.delay_s[j], j))
        if self._closed and self.ended.issuperset(self.sessions[self.session[i]]):
            self._take_session(now)

    def _take_session(self, now: float) -> None:
        if self._next < len(self.sessions):
            for i in self.sessions[self._next]:
                if not self.after[i]:
                    heapq.heappush(self._coming, (now, i))
            self._next += 1
