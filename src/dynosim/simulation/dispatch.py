"""From a request to a row of a pool: what the router sees, and requests that find nobody to serve them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dynosim import rng
from dynosim.config import RouterConfig
from dynosim.policies.base import PoolView, RequestView, Router
from dynosim.policies.registry import make
from dynosim.simulation import engine as core
from dynosim.simulation.pool import Pool
from dynosim.workload.table import IntArray, Workload

LOADS = ("outstanding", "prefill_load", "kv_load")
"""Columns of the rows that a router sees, in the order of ``PoolView``."""


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
        overlap: bool,
    ) -> None:
        self.pool, self._workload, self._config, self._overlap = pool, workload, config, overlap
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
        self.cold_start_s = np.zeros(len(workload))
        """Shape (n,): how long each request was parked before its first pass."""
        self.sent, self.sent_tokens = 0, 0
        replicas = pool.engine.rows
        self._live = tuple(replicas[name] for name in LOADS)
        self._loads = tuple(load.copy() for load in self._live) if self.report_interval_s else self._live
        self._cached, self._tiered = np.zeros(len(replicas), np.int64), np.zeros(len(replicas), np.int64)
        # Items of a memoryview are Python numbers, and cheaper than those of an array.
        self._input, self._offsets = workload.input_tokens.data, workload.hash_offsets.data
        self._session, self._priority = workload.session.data, workload.priority.data
        self._hash_ids = workload.hash_ids
        self._has_tiers = overlap and pool.engine.limits[0]["tiers"] > 0
        self._job, self._time = 0, 0.0

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
        self._everybody = len(self.rows) == len(self._tiered)
        self._view = self._make_view()
        self._is_live = self._everybody and self._loads is self._live
        if len(self.rows):
            parked, self.parked = self.parked, []
            for i, since in parked:
                if math.isnan(self.pool.engine.jobs["scheduled"][i]):
                    self.cold_start_s[i] += time - since
                self.send(i, time)

    def choose(self, i: int, time: float) -> int:
        """Return the row that the router picks for request *i*; at least one serves."""
        self._job, self._time = i, time
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
        if len(self.rows):
            self.submit(i, self.choose(i, time), time)
        else:
            self.parked.append((i, time))

    def cached_tokens(self, i: int, row: int, time: float) -> int:
        """Return the prompt tokens of request *i* that the router's index shows on *row*."""
        core.cached_tokens(self.pool.handle, i, time, self._cached)
        return int(self._cached[row])

    def report(self, _time: float) -> None:
        """Show the router the loads of this moment until the next report."""
        self._loads = tuple(load.copy() for load in self._live)

    def parked_tokens(self) -> int:
        """Return the prompt tokens of the requests that found nobody serving."""
        return sum(self._input[i] for i, _ in self.parked)

    def _request(self, i: int) -> RequestView:
        hashes = self._hash_ids[self._offsets[i] : self._offsets[i + 1]]
        return RequestView(
            i, self._input[i], self._session[i], self._priority[i], hashes, self._workload.hash_block_tokens
        )

    def _make_view(self) -> PoolView:
        outstanding, prefill, kv = self._loads if self._everybody else (load[self.rows] for load in self._loads)
        return PoolView(
            role=self.pool.role,
            block_size=self.pool.capacity.block_size,
            targets=self.rows,
            outstanding_requests=outstanding,
            prefill_tokens=prefill,
            kv_tokens=kv,
            cached_tokens=self._in_cache,
            host_cached_tokens=self._in_tiers,
        )

    def _in_cache(self) -> IntArray:
        if self._overlap:
            core.cached_tokens(self.pool.handle, self._job, self._time, self._cached)
        return self._cached if self._everybody else self._cached[self.rows]

    def _in_tiers(self) -> IntArray:
        if self._has_tiers:
            core.tier_cached_tokens(self.pool.handle, self._job, self._time, self._tiered)
        return self._tiered if self._everybody else self._tiered[self.rows]
