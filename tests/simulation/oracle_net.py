"""The oracle's links: transfers at the smallest of their links' fair shares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class Transfer:
    """Bytes on their way. ``what`` is called with the time when the last has arrived."""

    links: list[int]
    size: float
    starts: float
    arrive: Any
    parties: tuple[Any, ...] = ()
    """What it dies with."""
    remaining: float = 0.0
    rate: float = 0.0

    @property
    def flowing(self) -> bool:
        return self.rate > 0.0


class Network:
    """All transfers of all pools."""

    def __init__(self, links: Any) -> None:
        self.links = links
        self.now = 0.0
        self.active: list[Transfer] = []

    def begin(self, links: list[int], size: float, time: float, arrive: Any, parties: tuple[Any, ...]) -> None:
        self._progress(time)
        latency = max((float(self.links[i]["latency_s"]) for i in links), default=0.0)
        transfer = Transfer(links, size, time + latency, arrive, parties, size)
        self.active.append(transfer)
        if latency == 0.0 and size > 0.0 and links:
            transfer.rate = 1.0
        self._share()

    def _progress(self, time: float) -> None:
        for transfer in self.active:
            transfer.remaining -= transfer.rate * (time - self.now)
        self.now = time

    def _share(self) -> None:
        users: dict[int, int] = {}
        for transfer in self.active:
            for link in transfer.links if transfer.flowing else []:
                users[link] = users.get(link, 0) + 1
        for transfer in self.active:
            if transfer.flowing:
                transfer.rate = min(float(self.links[i]["bytes_s"]) / users[i] for i in transfer.links)

    def _next_of(self, transfer: Transfer) -> float:
        return self.now + max(transfer.remaining, 0.0) / transfer.rate if transfer.flowing else transfer.starts

    def next(self) -> float:
        """When the next transfer starts to flow or has arrived."""
        return min(map(self._next_of, self.active), default=math.inf)

    def step(self) -> None:
        time = self.next()
        transfer = min(self.active, key=self._next_of)
        self._progress(time)
        if not transfer.flowing and transfer.size > 0.0 and transfer.links:
            transfer.rate = 1.0
            self._share()
            return
        self._remove(transfer)
        transfer.arrive(time)

    def break_off(self, parties: list[Any], time: float) -> None:
        """End the transfers of *parties* wherever they are."""
        self._progress(time)
        for transfer in reversed(list(self.active)):
            if any(party in parties for party in transfer.parties):
                self._remove(transfer)

    def _remove(self, transfer: Transfer) -> None:
        """Take it out; the last one takes its place, which matters where two end at the same time."""
        i, last = self.active.index(transfer), self.active.pop()
        if i < len(self.active):
            self.active[i] = last
        self._share()
