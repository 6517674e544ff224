"""The KV hand-off network: transfers share the ports of the replicas they leave and enter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

Port = tuple[str, int]
"""(role, replica)."""


@dataclass(eq=False)
class Transfer:
    """Bytes on their way between two ports."""

    source: Port
    target: Port
    remaining_bytes: float
    done: simpy.Event
    rate_bytes_s: float = field(default=0.0)


class Network:
    """Processor sharing: a transfer runs at the smaller of its two ports' fair shares.

    The share of a port is its bandwidth over the transfers on it; what one transfer cannot use because its other port
    is busier is not given to the others (so a little pessimistic against max-min fairness).
    """

    def __init__(self, env: simpy.Environment, bandwidth_bytes_s: dict[str, float], latency_s: float) -> None:
        self._env, self._bandwidth, self._latency_s = env, bandwidth_bytes_s, latency_s
        self._transfers: list[Transfer] = []
        self._users: Counter[Port] = Counter()
        self._updated_s = 0.0
        self._epoch = 0

    def transfer(self, source: Port, target: Port, size_bytes: float) -> Generator[simpy.Event, Any, None]:
        """Move *size_bytes*; returns when the last byte has arrived."""
        yield self._env.timeout(self._latency_s)
        if size_bytes > 0.0:
            transfer = Transfer(source, target, size_bytes, self._env.event())
            self._progress()
            self._transfers.append(transfer)
            self._users.update((source, target))
            self._share()
            yield transfer.done

    def _progress(self) -> None:
        """Bring all remaining bytes to the present."""
        elapsed_s = self._env.now - self._updated_s
        for transfer in self._transfers:
            transfer.remaining_bytes -= transfer.rate_bytes_s * elapsed_s
        self._updated_s = self._env.now

    def _share(self) -> None:
        """Recompute all rates and wake up when the next transfer ends."""
        self._epoch += 1
        for transfer in self._transfers:
            transfer.rate_bytes_s = min(
                self._bandwidth[port[0]] / self._users[port] for port in (transfer.source, transfer.target)
            )
        if self._transfers:
            first = min(self._transfers, key=lambda t: t.remaining_bytes / t.rate_bytes_s)
            wait_s = max(first.remaining_bytes / first.rate_bytes_s, 0.0)
            epoch = self._epoch
            self._env.timeout(wait_s).callbacks.append(lambda _: self._finish(first, epoch))

    def _finish(self, first: Transfer, epoch: int) -> None:
        """End *first*, unless the rates have changed since its end was computed."""
        if epoch == self._epoch:
            self._progress()
            self._transfers.remove(first)
            self._users.subtract((first.source, first.target))
            first.done.succeed()
            self._share()
