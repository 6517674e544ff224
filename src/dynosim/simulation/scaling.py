"""Autoscaling of one pool: a fast loop that reacts to load, a slow one that sizes for the predicted rate."""

from __future__ import annotations

import math
import operator

import numpy as np

from dynosim import rng
from dynosim.config import AutoscalerConfig
from dynosim.policies.base import AutoscalingPolicy, LoadPredictor, ScalingView
from dynosim.policies.registry import make
from dynosim.policies.sizing import replicas_for
from dynosim.simulation.dispatch import Dispatcher
from dynosim.simulation.fleet import DOWN, DRAINING, OFF, SERVING, STARTING, Fleet
from dynosim.workload.table import FloatArray


class Meter:
    """What a pool did since it was last read."""

    def __init__(self, dispatcher: Dispatcher, arrival_s: FloatArray) -> None:
        self._dispatcher, self._arrival_s = dispatcher, arrival_s
        self._before = np.zeros(4)
        self._time = 0.0
        self._open = 0
        self._finished, self._waited = self._by_replica("finished"), self._by_replica("n_waiting") > 0
        self._context = math.nan
        self.replica_rps = math.nan
        """Requests per second that one replica finished at its busiest so far: in an interval at both ends of which
        requests waited for it."""

    def read(self, time: float) -> dict[str, float]:
        """Return the means and rates of ``ScalingView`` since the last reading."""
        totals = self._totals()
        sent, tokens, gaps, gap_s = totals - self._before
        elapsed, since = time - self._time, self._time
        self._before, self._time = totals, time
        self._context = tokens / sent if sent else self._context
        self._learn_capacity(elapsed)
        return {
            "context_tokens": float(self._context),
            "ttft_ms": self._ttft_ms(since, time),
            "itl_ms": float(1e3 * gap_s / gaps) if gaps else math.nan,
            "rate_rps": float(sent / elapsed),
            "replica_rps": self.replica_rps,
        }

    def _learn_capacity(self, elapsed_s: float) -> None:
        finished, waits = self._by_replica("finished"), self._by_replica("n_waiting", "n_arriving") > 0
        rates = (finished - self._finished)[waits & self._waited] / elapsed_s
        if len(rates):
            self.replica_rps = float(np.fmax(self.replica_rps, rates.max()))
        self._finished, self._waited = finished, waits

    def _by_replica(self, *columns: str) -> FloatArray:
        """Return shape (replicas,): the sum of *columns* over the rows of each."""
        pool = self._dispatcher.pool
        rows = np.sum([pool.engine.rows[name] for name in columns], axis=0, dtype=np.float64)
        return np.asarray(rows.reshape(-1, pool.lanes * pool.ranks).sum(axis=1))

    def _totals(self) -> FloatArray:
        e, d = self._dispatcher.pool.engine, self._dispatcher
        return np.array([d.sent, d.sent_tokens, e.gap_count.sum(), e.gap_sum.sum()])

    def _ttft_ms(self, since: float, time: float) -> float:
        """Mean time to first token of the prompts that this pool finished after *since*; requests come in order."""
        jobs = self._dispatcher.pool.engine.jobs[self._open :]
        first = jobs["first"]
        recent = (first > since) & (first <= time)
        ttft_s = (first - self._arrival_s[self._open :])[recent]
        done = np.isfinite(jobs["last"])
        self._open += len(done) if done.all() else int(done.argmin())
        return float(1e3 * ttft_s.mean()) if len(ttft_s) else math.nan


class Autoscaler:
    """Moves the replicas of a fleet between its bounds.

    A decision is the policy's wish, at least what the slow loop asks for, within ``min_replicas``, ``max_replicas`` and
    ``max_step``; it is dropped during a cool-down. Draining replicas hold their GPUs and so their place among
    ``max_replicas``.
    """

    def __init__(
        self,
        config: AutoscalerConfig,
        fleet: Fleet,
        dispatcher: Dispatcher,
        arrival_s: FloatArray,
        path: str,
        seed: int,
    ) -> None:
        self.config, self._fleet, self._dispatcher = config, fleet, dispatcher
        role = dispatcher.pool.role
        self._policy: AutoscalingPolicy = make(
            "autoscaler", config.policy, config.options, path, rng.stream(seed, f"autoscaling/{role}")
        )
        self._predictor: LoadPredictor = make(
            "predictor", config.predictor, config.predictor_options, path, rng.stream(seed, f"prediction/{role}")
        )
        self._fast, self._slow = Meter(dispatcher, arrival_s), Meter(dispatcher, arrival_s)
        self._floor = config.min_replicas
        self._acted_s = -math.inf
        weights_s = dispatcher.pool.capacity.weights_bytes_per_gpu / (config.weights_load_gb_s * 1e9)
        self.cold_start_s = config.provision_s + weights_s + config.startup_s

    def react(self, time: float) -> list[int]:
        """Take one decision of the fast loop; returns the replicas that begin to start."""
        wish = self._policy.desired(self._view(time))
        try:
            return self._scale(operator.index(wish), time)
        except TypeError as error:
            raise ValueError(f"autoscaler {self.config.policy} wants {wish!r} replicas") from error

    def size(self, time: float) -> list[int]:
        """Take one decision of the slow loop: replicas for the predicted rate, at least."""
        reading = self._slow.read(time)
        self._predictor.observe(reading["rate_rps"])
        needed = replicas_for(self._predictor.predict(), reading["replica_rps"])
        self._floor = max(min(needed, self.config.max_replicas), self.config.min_replicas)
        return self._scale(len(self._fleet.having(SERVING, STARTING, DOWN)), time)

    def _view(self, time: float) -> ScalingView:
        d, pool, e = self._dispatcher, self._dispatcher.pool, self._dispatcher.pool.engine
        rows, serving = e.rows[d.rows], len(self._fleet.having(SERVING))
        caches = e.caches[rows["cache"]]
        blocks = caches["num_blocks"].sum()
        return ScalingView(
            time_s=time,
            replicas=serving,
            starting=len(self._fleet.having(STARTING, DOWN)),
            queue_requests=int(rows["n_waiting"].sum() + rows["n_arriving"].sum()) + len(d.unsent),
            queued_prefill_tokens=int(rows["prefill_load"].sum()) + d.unsent_tokens(),
            running_requests=sum(int(e.rows["n_running"][d.rows_of(r)].sum()) for r in self._fleet.having(SERVING)),
            max_num_seqs=pool.config.running_seqs * pool.config.data_parallel_size,
            kv_utilization=float(1.0 - caches["free_blocks"].sum() / blocks) if blocks else 0.0,
            outstanding_requests=int(e.rows["outstanding"].sum()) + len(d.unsent),
            max_num_batched_tokens=pool.config.max_num_batched_tokens * pool.config.data_parallel_size,
            **self._fast.read(time),
        )

    def _scale(self, wish: int, time: float) -> list[int]:
        config, present = self.config, self._fleet.having(STARTING, SERVING, DOWN)
        wanted = min(max(wish, self._floor), config.max_replicas)
        step = max(min(wanted - len(present), config.max_step), -config.max_step)
        cooldown = config.scale_up_cooldown_s if step > 0 else config.scale_down_cooldown_s
        if step == 0 or time - self._acted_s < cooldown:
            return []
        started = self._fleet.having(OFF)[: max(step, 0)]
        if step < 0:
            self._remove(sorted(present, key=self._value)[:-step], time)
        for replica in started:
            self._fleet.move(replica, STARTING, time)
        if step < 0 or started:  # not where all the places are still draining
            self._acted_s = time
        return started

    def _remove(self, replicas: list[int], time: float) -> None:
        for replica in replicas:
            serving = self._fleet.states[replica] == SERVING
            self._fleet.move(replica, DRAINING if serving else OFF, time)

    def _value(self, replica: int) -> tuple[bool, int, int]:
        """Least first: replicas that do not serve yet, then those with the fewest requests, then the youngest."""
        rows = self._dispatcher.pool.engine.rows["outstanding"][self._dispatcher.rows_of(replica)]
        return self._fleet.states[replica] == SERVING, int(rows.sum()), -replica
