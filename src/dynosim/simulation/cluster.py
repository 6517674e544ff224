"""The cluster: SimPy owns the clock and everything that interacts; engines run between its events.

Sending, routing, autoscaling and failures are callbacks of the clock. The compiled engines, with their hand-offs and KV
tiers, are advanced to the next callback, or to the first engine event that the cluster has to act on, whichever is
earlier. A router that looks at nobody under a plain open loop puts nothing on the clock: each engine then gets its
arrivals in bulk and runs through in one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from dynosim.config import DeploymentConfig
from dynosim.config.deployment import SECTIONS
from dynosim.hardware.plan import PoolPlan
from dynosim.simulation import engine as core
from dynosim.simulation.clock import CHECK, READY, TICK, Clock
from dynosim.simulation.dispatch import Dispatcher
from dynosim.simulation.failures import Failures
from dynosim.simulation.flows import Aggregated, Disaggregated
from dynosim.simulation.lost import LostCause, Progress
from dynosim.simulation.network import Network
from dynosim.simulation.pool import Pool
from dynosim.simulation.pool_runtime import PoolRuntime
from dynosim.simulation.records import COMPLETED, FAILED, INCOMPLETE, REJECTED, UNSENT
from dynosim.simulation.scaling import Autoscaler
from dynosim.simulation.sessions import Sessions
from dynosim.simulation.split import Served, request_records
from dynosim.simulation.state import FINISHED, NONE, PREFILL_DONE, PROMPT_DONE, RESERVED
from dynosim.timing.frontend import frontend
from dynosim.workload.table import IntArray, Workload

FIRST_CHECK_S, CHECK_GROWTH = 1.0, 2.0
"""Checks for a lost cause take place at these virtual times: a lost run takes at most twice the time it has to."""


class Cluster:
    """One deployment serving one workload once."""

    def __init__(
        self,
        deployment: DeploymentConfig,
        plans: Mapping[str, PoolPlan],
        workload: Workload,
        seed: int,
        stop: LostCause | None = None,
    ) -> None:
        self.deployment, self.workload, self.clock = deployment, workload, Clock()
        self.sessions = Sessions(workload, self.clock, self._arrive, frontend(plans.values()))
        self.missing = np.zeros(len(workload), np.bool_)
        """Shape (n,): on a replica that has crashed, which nobody has noticed yet."""
        self.network = Network(deployment, plans, len(workload))
        pools = {
            role: Pool(
                plan, workload, self.network,
                index=index, watch=self.sessions.watch or role == "prefill", seed=seed,
            )
            for index, (role, plan) in enumerate(plans.items())
        }  # fmt: skip
        self.handles = np.stack([pool.handle for pool in pools.values()])
        self._events = [pool.engine.events for pool in pools.values()]
        self.runtimes = {role: self._runtime(pool, seed) for role, pool in pools.items()}
        self._runtimes = list(self.runtimes.values())
        self.admissible = np.logical_and.reduce([pool.fits(workload) for pool in pools.values()])
        self.flow: Aggregated | Disaggregated = (
            Disaggregated(deployment.disaggregated, self.runtimes, workload, self.sessions)
            if deployment.disaggregated
            else Aggregated(self.runtimes)
        )
        self.served = Served(workload, list(self.runtimes.values()), self.flow.local)
        self.failures = Failures(
            deployment.failures, self.runtimes, self.flow, self.sessions, self.clock, self.missing,
            seed=seed, idle=lambda: self.idle,
        )  # fmt: skip
        self.end_s = workload.end_s
        """Virtual time at which the run stops, whatever is still in flight."""
        self.lost: dict[str, float] = {}
        """SLO that the run was ended for -> lower bound of its violation."""
        self._stop = stop if self.admissible.any() else None
        self._to_route: IntArray | None = None
        self._routed = 0
        """Requests that are routed in compiled code, and how many of them have been so far."""

    def run(self) -> None:
        """Serve the whole workload, or what is served of it by its end."""
        self.failures.start()
        if self._is_static() and len(self.runtimes) == 1 and not self._dispatcher.router.looks:
            self._submit_all()
        elif self._is_static() and self.flow.direct and self._dispatcher.compiled:
            self._to_route = self._admitted()
        else:
            self._start_ticks()
            self.sessions.start()
        self.clock.at(0.0, CHECK, self._check)
        self._run_on_the_clock()
        for runtime in self.runtimes.values():
            runtime.turn_off_drained()
            if not self.idle:
                core.stop(runtime.pool.handle, self.end_s)

    def keep_results(self) -> None:
        """Give back the memory of what no result is made of: the run is over."""
        self._events.clear()
        for runtime in self.runtimes.values():
            runtime.pool.keep_results()

    def records(self) -> NDArray[np.void]:
        """Return shape (n,) of REQUEST_DTYPE: what became of each request."""
        out = request_records(self.served, self.sessions, self.failures.retries)
        out["status"] = np.where(np.isfinite(out["last_token_s"]), COMPLETED, INCOMPLETE)
        out["status"][~self.admissible] = REJECTED
        out["status"][np.isfinite(self.failures.failed_s)] = FAILED
        out["status"][~(out["arrival_s"] <= self.end_s)] = UNSENT
        return out

    def release(self) -> None:
        """Give the engines' arrays back: callbacks know the cluster and it them, and Python collects circles late."""
        for runtime in self.runtimes.values():
            del runtime.pool.engine

    @property
    def idle(self) -> bool:
        """Whether everything has been sent and has ended."""
        runtimes = self.runtimes.values()
        if self.sessions.unsent or self.missing.any() or any(runtime.dispatcher.unsent for runtime in runtimes):
            return False
        return not any(runtime.pool.engine.rows["outstanding"].any() for runtime in runtimes)

    def _runtime(self, pool: Pool, seed: int) -> PoolRuntime:
        role, split, router = pool.role, self.deployment.disaggregated, self.deployment.role_router(pool.role)
        path = "deployment.router" if router is self.deployment.router else "deployment.disaggregated.decode_router"
        local_prefill = role == "decode" and split is not None and split.local_prefill is not None
        dispatcher = Dispatcher(pool, router, path, self.workload, seed, self.missing, indexed=local_prefill)
        runtime = PoolRuntime(pool, dispatcher)
        if pool.config.autoscaler is not None:
            path = f"{SECTIONS[role]}.autoscaler"
            runtime.scaler = Autoscaler(
                pool.config.autoscaler, runtime.fleet, dispatcher, self.sessions.arrival_s, path, seed
            )
        return runtime

    # ------------------------------------------------------------------------------------------------------ the clock

    def _run_on_the_clock(self) -> None:
        """Let the engines run to the next callback, or to the first event that somebody waits for, till all is done."""
        clock = self.clock
        while True:
            until = min(clock.peek(), self.end_s)
            if until > clock.now:
                count, index = self._next_event(until)
                if count:
                    self._report(index, count)
                    continue
            if until == self.end_s:
                return
            clock.step()

    def _report(self, index: int, count: int) -> None:
        """Act on the events that one pass or transfer caused."""
        for time, kind, i in self._events[index][:count].tolist():
            if kind in (PREFILL_DONE, PROMPT_DONE):
                self._runtimes[index].dispatcher.release(time)
            if kind == PREFILL_DONE:
                self.flow.prefilled(i, time)
            elif kind == FINISHED:
                self.sessions.ended(time, i)
            elif kind == RESERVED:
                self.flow.reserved(i, time)

    def _start_ticks(self) -> None:
        for runtime in self.runtimes.values():
            if runtime.dispatcher.report_interval_s:
                self._every(runtime.dispatcher.report_interval_s, runtime.dispatcher.report)
            if runtime.scaler is not None:
                if runtime.scaler.config.throughput_interval_s is not None:
                    self._every(runtime.scaler.config.throughput_interval_s, self._scale, runtime, runtime.scaler.size)
                self._every(runtime.scaler.config.interval_s, self._scale, runtime, runtime.scaler.react)

    def _every(self, interval_s: float, action: Callable[..., None], *args: object) -> None:
        """Call ``action(time, *args)`` every *interval_s* as long as there is work."""

        def tick(time: float, count: int) -> None:
            if not self.idle:
                action(time, *args)
                self.clock.at((count + 1) * interval_s, TICK, tick, count + 1)

        self.clock.at(interval_s, TICK, tick, 1)

    def _check(self, time: float) -> None:
        """End the run if an SLO is lost, or check again later.

        Runs without a stop meet the same times, as the order in which replicas advance shows in the last digits of the
        sums over them.
        """
        if self.idle:
            return
        if self._stop is not None:
            self.lost = self._stop.violations(self._progress(time))
        if self.lost:
            self.end_s = time
        else:
            first_s = max(self.workload.arrival_s[len(self.workload) // 100], FIRST_CHECK_S)
            self.clock.at(max(time * CHECK_GROWTH, first_s), CHECK, self._check)

    def _progress(self, time: float) -> Progress:
        """Return what is known of the measured requests at *time*."""
        measured = slice(self.workload.warmup_requests, None)
        arrival_s = self.sessions.arrival_s[measured]
        served = (self.admissible & np.isnan(self.failures.failed_s))[measured]
        rows = measured.start + np.flatnonzero((arrival_s <= time) & served)
        first_s, last_s = self.served.token_times(rows)
        return Progress(
            time_s=time,
            arrival_s=self.sessions.arrival_s[rows],
            first_token_s=first_s,
            last_token_s=last_s,
            output_tokens=self.workload.output_tokens[rows],
            total=int(np.count_nonzero(~(arrival_s > self.end_s))),
            unserved=int(np.count_nonzero((arrival_s <= self.end_s) & ~served)),
            certain=math.isinf(self.end_s) and not self.failures.expected,
        )

    # ------------------------------------------------------------------------------------------------------- requests

    @property
    def _dispatcher(self) -> Dispatcher:
        return next(iter(self.runtimes.values())).dispatcher

    def _is_static(self) -> bool:
        """Whether nothing but arrivals ever changes anything: a plain open loop on replicas that stay."""
        changing = any(runtime.scaler or runtime.dispatcher.report_interval_s for runtime in self._runtimes)
        return not (changing or self.failures.expected or self.sessions.watch)

    def _admitted(self) -> IntArray:
        """Return the requests that will be sent and can run."""
        return np.flatnonzero((self.sessions.arrival_s <= self.workload.end_s) & self.admissible)

    def _submit_all(self) -> None:
        runtime, arrival_s, admitted = self.runtimes["mixed"], self.sessions.arrival_s, self._admitted()
        row_of = np.full(len(self.workload), NONE, np.int64)
        row_of[admitted] = runtime.dispatcher.choose_all(admitted)
        core.submit_all(runtime.pool.handle, row_of, arrival_s)
        self._have_come(self.workload.end_s)

    def _next_event(self, until: float) -> tuple[int, int]:
        """Run the engines to their next event or to *until*; returns (number of events, index of their pool)."""
        if self._to_route is None:
            found: tuple[int, int] = core.next_event(self.handles, until)
            return found
        count, index, self._routed = self._dispatcher.next_event(
            self.handles, self._to_route, self.sessions.arrival_s, self._routed, until
        )
        if count == 0:
            self._have_come(until)
        return count, index

    def _have_come(self, time: float) -> None:
        self.sessions.unsent = len(self.workload) - int(np.searchsorted(self.sessions.arrival_s, time, "right"))

    def _arrive(self, i: int, time: float) -> None:
        if self.admissible[i]:
            self.flow.send(i, time)
        elif self.sessions.watch:
            self.clock.at(time, READY, self.sessions.ended, i)

    # ------------------------------------------------------------------------------------------------------- replicas

    def _scale(self, time: float, runtime: PoolRuntime, decide: Callable[[float], list[int]]) -> None:
        assert runtime.scaler is not None
        core.settle_all(runtime.pool.handle, time)
        runtime.turn_off_drained()
        for replica in decide(time):
            ready_s = time + runtime.scaler.cold_start_s
            self.clock.at(ready_s, READY, self.failures.ready, runtime, replica, runtime.fleet.epochs[replica])
