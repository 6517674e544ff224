"""From a request to a row of a pool: what the router sees, and requests that find nobody to serve them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim import rng
from dynosim.config import RouterConfig
from dynosim.policies.base import PoolView, RequestView, Router
from dynosim.policies.registry import make
from dynosim.policies.routing.kv_aware import KVAware
from dynosim.simulation import engine as core
from dynosim.simulation.arrays import sparse_zeros
from dynosim.simulation.pool import Pool
from dynosim.simulation.state import CACHED, DISK, HOST, PREFILL_BUSY, REFERENCED
from dynosim.workload.table import FloatArray, IntArray, Workload

LOADS = ("outstanding", "prefill_load", "kv_load", "active_blocks", "n_waiting", "n_arriving")
"""Columns of the rows that a router sees, the first ones in the order of ``PoolView``."""


class Dispatcher:
    """Routes requests to those rows of one pool that serve, as far as the router knows."""

    def __init__(
        self,
        pool: Pool,
        config: RouterConfig,
        path: str,
        workload: Workload,
        seed: int,
        missing: NDArray[np.bool_],
        *,
        indexed: bool,
    ) -> None:
        self.pool, self._workload, self._config = pool, workload, config
        self.router: Router = make(
            "router", config.policy, config.options, path, rng.stream(seed, f"routing/{pool.role}")
        )
        self.report_interval_s = config.load_report_interval_s
        self._missing = missing
        self.rows: IntArray = np.zeros(0, np.int64)
        """Rows that the router may choose."""
        self.lost: dict[int, list[int]] = {}
        """Row that has crashed -> requests on it, which wait for the crash to be noticed."""
        self.parked: list[tuple[int, float]] = []
        """(request, since when) that found nobody serving."""
        self._held: list[tuple[int, float, int, int, float]] = []
        """Heap of (priority, key, order, request, since when): waiting while every replica has its fill of prefill."""
        self._held_so_far = 0
        self.cold_start_s = sparse_zeros(len(workload), np.float64)
        """Shape (n,): how long each request was parked before its first pass."""
        self.sent, self.sent_tokens = 0, 0
        replicas = pool.engine.rows
        free_blocks = pool.engine.caches["free_blocks"][: len(replicas)]
        self._live = (*(replicas[name] for name in LOADS), free_blocks)
        self._loads = tuple(load.copy() for load in self._live) if self.report_interval_s else self._live
        # Items of a memoryview are Python numbers, and cheaper than those of an array.
        self._input, self._offsets = workload.input_tokens.data, workload.hash_offsets.data
        self._session, self._priority = workload.session.data, workload.priority.data
        self._hash_ids = workload.hash_ids
        limits = pool.engine.limits[0]
        limits["indexed"] = indexed or self.router.looks
        self._compiled: KVAware | None = None
        self._holds = isinstance(self.router, KVAware) and self.router.queue_threshold is not None
        limits["watch_prompts"] = self._holds
        if isinstance(self.router, KVAware):
            limits["predict_s"] = self.router.predicted_ttl_s
            self._weights = np.array(self.router.weights(pool.role))
            if type(self.router) is KVAware and not self.report_interval_s:
                self._compiled = self.router
                self._draws = self.router.draws(len(workload))
                self._draw = self._draws.data
        self._job, self._time, self._looked_up = 0, 0.0, False

    def rows_of(self, replica: int) -> IntArray:
        """Return all rows of *replica*: its data-parallel ranks or pipeline lanes."""
        rows = self.pool.lanes * self.pool.ranks
        return np.arange(replica * rows, (replica + 1) * rows)

    def serve(self, replicas: Iterable[int], time: float) -> None:
        """Let the router choose among *replicas* from now on; requests that waited for one are sent.

        Every rank is routed to by itself, and the first lane takes in the requests of all.
        """
        rows = [self.rows_of(replica)[:: self.pool.lanes] for replica in replicas]
        self.rows = np.concatenate([np.zeros(0, np.int64), *rows])
        self._everybody = len(self.rows) == len(self.pool.engine.rows)
        self._view = self._make_view()
        self._is_live = self._everybody and self._loads is self._live
        if len(self.rows):
            parked, self.parked = self.parked, []
            for i, since in parked:
                if math.isnan(self.pool.engine.jobs["scheduled"][i]):
                    self.cold_start_s[i] += time - since
                self.send(i, time)
        self.release(time)

    def choose(self, i: int, time: float) -> int:
        """Return the row that the router picks for request *i*; at least one serves."""
        if self._compiled:
            position: int = core.route(self.pool.handle, self.rows, self._weights, self._draw[i], i, time)
        else:
            self._job, self._time, self._looked_up = i, time, False
            position = self.router.route(self._request(i), self._view if self._is_live else self._make_view())
            self._check(position)
        return int(self.rows[position])

    def _check(self, position: int) -> None:
        if not 0 <= position < len(self.rows):
            raise ValueError(f"router {self._config.policy} chose replica {position} of {len(self.rows)}")

    def choose_all(self, requests: IntArray) -> IntArray:
        """Return the row of each of *requests*, for a router that does not look."""
        route, request, view = self.router.route, self._request, self._view
        positions = np.array([route(request(i), view) for i in requests.tolist()], np.int64)
        self._check(int(positions.min(initial=0)))
        self._check(int(positions.max(initial=0)))
        return self.rows[positions]

    @property
    def compiled(self) -> bool:
        """Whether all that is sent can be routed in compiled code, one request after the other."""
        return self._compiled is not None and not self._holds

    def next_event(
        self, handles: IntArray, requests: IntArray, times: FloatArray, first: int, until: float
    ) -> tuple[int, int, int]:
        """Run the engines to their next event or to *until*, and send those of *requests*, from the *first* on, that
        come by then; return (number of events, index of their pool, next request)."""
        found: tuple[int, int, int] = core.route_to_event(
            handles, self.rows, self._weights, self._draws, requests, times, first, until
        )
        return found

    def submit(self, i: int, row: int, time: float) -> None:
        """Queue request *i* on *row*."""
        self.sent += 1
        self.sent_tokens += self._input[i]
        if row in self.lost:
            self.lost[row].append(i)
            self._missing[i] = True
        else:
            core.submit(self.pool.handle, row, i, time)

    def send(self, i: int, time: float) -> None:
        """Route request *i* and queue it."""
        if not len(self.rows):
            self.parked.append((i, time))
        elif self._is_full():
            self._held_so_far += 1
            heappush(self._held, (self._priority[i], self._place(i, time), self._held_so_far, i, time))
        elif self._compiled and not self.lost:
            self.sent += 1
            self.sent_tokens += self._input[i]
            core.send(self.pool.handle, self.rows, self._weights, self._draw[i], i, time)
        else:
            self.submit(i, self.choose(i, time), time)

    def forget(self, i: int) -> None:
        """Request *i* does not wait at the router any more: it is sent anew, or given up."""
        self._held = [held for held in self._held if held[3] != i]
        heapify(self._held)

    def release(self, time: float) -> None:
        """Send on the requests that wait at the router, as far as replicas have room."""
        while self._held and len(self.rows) and not self._is_full():
            *_, i, since = heappop(self._held)
            self.pool.engine.job_waits[i, PREFILL_BUSY] += time - since
            self.submit(i, self.choose(i, time), time)

    def _is_full(self) -> bool:
        """Whether every replica has more prefill queued than its router wants (Dynamo's ``router_queue_threshold``)."""
        if not self._holds:
            return False
        assert isinstance(self.router, KVAware)
        most = (self.router.queue_threshold or 0.0) * self.pool.config.max_num_batched_tokens
        return bool((self.pool.engine.rows["prefill_load"][self.rows] > most).all())

    def _place(self, i: int, time: float) -> float:
        """Return the key of request *i* among those that wait at the router: lower goes first."""
        assert isinstance(self.router, KVAware)
        if self.router.queue_policy == "wspt":
            core.look_up(self.pool.handle, i, time)
            cached = int(self.pool.engine.overlap[CACHED, self.rows].max()) * self.pool.capacity.block_size
            return float(self._input[i] - cached)
        return -time if self.router.queue_policy == "lcfs" else time

    @property
    def unsent(self) -> list[int]:
        """Requests that no replica has: they found nobody serving, or all full."""
        return [i for i, _ in self.parked] + [held[3] for held in self._held]

    def cached_tokens(self, i: int, row: int, time: float) -> int:
        """Return the prompt tokens of request *i* that the router's index shows on *row*; the last one is computed."""
        core.look_up(self.pool.handle, i, time)
        size = self.pool.capacity.block_size
        return min(int(self.pool.engine.overlap[CACHED, row]), (self._input[i] - 1) // size) * size

    def report(self, time: float) -> None:
        """Show the router the loads of this moment until the next report."""
        core.settle_all(self.pool.handle, time)
        self._loads = tuple(load.copy() for load in self._live)

    def unsent_tokens(self) -> int:
        """Return the prompt tokens of the requests that no replica has."""
        return sum(self._input[i] for i in self.unsent)

    def _request(self, i: int) -> RequestView:
        hashes = self._hash_ids[self._offsets[i] : self._offsets[i + 1]]
        return RequestView(
            i, self._input[i], self._session[i], self._priority[i], hashes, self._workload.hash_block_tokens
        )

    def _make_view(self) -> PoolView:
        outstanding, prefill, kv, active = map(self._of_rows, self._loads[:4])
        return PoolView(
            role=self.pool.role,
            block_size=self.pool.capacity.block_size,
            targets=self.rows,
            outstanding_requests=outstanding,
            prefill_tokens=prefill,
            kv_tokens=kv,
            active_blocks=active,
            waiting_requests=self._waiting,
            kv_utilization=self._kv_utilization,
            cached_blocks=partial(self._overlap, CACHED),
            referenced_blocks=partial(self._overlap, REFERENCED),
            host_cached_blocks=partial(self._overlap, HOST),
            disk_cached_blocks=partial(self._overlap, DISK),
        )

    def _of_rows(self, column: NDArray[Any]) -> NDArray[Any]:
        return column if self._everybody else column[self.rows]

    def _waiting(self) -> IntArray:
        _, _, _, _, waiting, arriving, _ = self._loads
        return self._of_rows(waiting + arriving)

    def _kv_utilization(self) -> FloatArray:
        if self._loads is self._live:
            core.settle_all(self.pool.handle, self._time)
        return self._of_rows(1.0 - self._loads[-1] / self.pool.capacity.blocks)

    def _overlap(self, kind: int) -> IntArray:
        if not self._looked_up:
            core.look_up(self.pool.handle, self._job, self._time)
            self._looked_up = True
        return self._of_rows(self.pool.engine.overlap[kind])
