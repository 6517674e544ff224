"""The way of a request through the pools: one pool that does all, or prefill and decode with a hand-off between."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from dynosim.config import DisaggregatedConfig
from dynosim.simulation import engine as core
from dynosim.simulation.pool_runtime import PoolRuntime
from dynosim.simulation.sessions import Sessions
from dynosim.simulation.state import LOCAL, NONE
from dynosim.workload.table import FloatArray, Workload


class Aggregated:
    """Every replica prefills and decodes."""

    direct: ClassVar[bool] = True
    """Whether a request that comes is sent to the first pool and nowhere else."""

    def __init__(self, runtimes: Mapping[str, PoolRuntime]) -> None:
        (self._runtime,) = runtimes.values()
        self.send = self._runtime.dispatcher.send
        self.local = np.zeros(len(self._runtime.pool.engine.jobs), np.bool_)
        """Shape (n,): no prompt has another replica to go to."""

    def prefilled(self, i: int, time: float) -> None:
        """Never happens: prompts stay where they are computed."""

    reserved = prefilled

    def send_again(self, i: int, time: float, runtime: PoolRuntime, keep: bool) -> None:
        """Serve request *i* anew, whose replica of *runtime* crashed; with *keep* behind the tokens it has shown."""
        if not keep or self._runtime.pool.engine.jobs["generated"][i] == 0:
            core.restart(self._runtime.pool.handle, i)
        self.send(i, time)

    def give_up(self, i: int, time: float, runtime: PoolRuntime) -> None:
        """Forget request *i*, whose replica of *runtime* has crashed."""

    def left_s(self, runtime: PoolRuntime) -> FloatArray:
        """Return shape (n,): when each request left the pool; NaN for those that did not."""
        return np.asarray(runtime.pool.engine.jobs["last"])

    def dropped(self, runtime: PoolRuntime, on: np.ndarray) -> None:
        """The requests *on*, shape (n,), are no longer on a replica of *runtime*, which has crashed."""
        runtime.pool.engine.jobs["row"][on] = NONE


class Disaggregated:
    """Prefill replicas compute prompts, decode replicas the rest; ``next_event`` hands over by itself.

    Source first: a decode replica is chosen when the prompt is computed. Destination first (SGLang): it is chosen, and
    has reserved its blocks, before the prompt goes to a prefill replica. With conditional disaggregation it is chosen
    first too, and keeps a prompt of which little is left to compute.
    """

    def __init__(
        self, split: DisaggregatedConfig, runtimes: Mapping[str, PoolRuntime], workload: Workload, sessions: Sessions
    ) -> None:
        self._prefill, self._decode, self._sessions = runtimes["prefill"], runtimes["decode"], sessions
        self._bounds, self._destination_first = split.local_prefill, self._decode.pool.plan.rules.destination_first
        self.direct = not (self._bounds or self._destination_first)
        self._input = workload.input_tokens.data
        self._output = workload.output_tokens.data
        self._moves = workload.output_tokens > 1
        self._chosen: dict[int, int] = {}
        self._sent = np.zeros(len(workload), np.bool_)  # to the prefill pool, which has not lost it since
        self._given_up = np.zeros(len(workload), np.bool_)
        self.local = np.zeros(len(workload), np.bool_)
        """Shape (n,): whether a decode replica computes the prompt itself."""

    def send(self, i: int, time: float) -> None:
        """Send request *i* to the pool that has to act first."""
        decode = self._decode.dispatcher
        reserves = self._destination_first and self._output[i] > 1
        if (reserves or self._bounds) and len(decode.rows):
            row = decode.choose(i, time)
            if self._is_cheap(i, row, time):
                self.local[i] = True
                decode.pool.engine.jobs["kv"][i] = LOCAL
            if reserves or self.local[i]:
                return decode.submit(i, row, time)
            self._chosen[i] = row
        elif reserves:
            return decode.send(i, time)
        return self._to_prefill(i, time)

    def _is_cheap(self, i: int, row: int, time: float) -> bool:
        if self._bounds is None:
            return False
        uncached = self._input[i] - self._decode.dispatcher.cached_tokens(i, row, time)
        bounds = self._bounds
        return uncached <= bounds.max_uncached_tokens and uncached <= bounds.max_uncached_fraction * self._input[i]

    def reserved(self, i: int, time: float) -> None:
        """A decode replica has room for request *i*: its prompt may be computed, unless it was before a crash."""
        if not self._sent[i]:
            self._to_prefill(i, time)

    def _to_prefill(self, i: int, time: float) -> None:
        self._sent[i] = True
        self._prefill.dispatcher.send(i, time)

    def prefilled(self, i: int, time: float) -> None:
        """The prompt of request *i* is computed: done, or on to a decode replica."""
        if self._output[i] == 1:
            core.release(self._prefill.pool.handle, i, time)
            self._sessions.ended(time, i)
        elif self._given_up[i]:
            core.release(self._prefill.pool.handle, i, time)
        elif not self._destination_first:
            decode, row = self._decode.dispatcher, self._chosen.pop(i, -1)
            if row >= 0 and row in decode.rows:
                decode.submit(i, row, time)
            else:
                decode.send(i, time)

    def send_again(self, i: int, time: float, runtime: PoolRuntime, keep: bool) -> None:
        """Serve request *i* anew, whose replica of *runtime* crashed; with *keep* behind the tokens it has shown.

        Those are computed again by a decode replica, as after a preemption. A prompt that is with the prefill pool only
        needs another decode replica.
        """
        decode = self._decode.pool
        self._settle(i, time, runtime)
        self._decode.dispatcher.forget(i)
        if keep and decode.engine.jobs["generated"][i] > 0:
            decode.engine.jobs["kv"][i] = LOCAL
            self._decode.dispatcher.send(i, time)
        elif self._held(i):
            core.restart(decode.handle, i)
            self._decode.dispatcher.send(i, time)
        else:
            self._prefill.dispatcher.forget(i)
            core.restart(decode.handle, i)
            core.restart(self._prefill.pool.handle, i)
            self.local[i] = self._sent[i] = False
            self.send(i, time)

    def give_up(self, i: int, time: float, runtime: PoolRuntime) -> None:
        """Forget request *i*, whose replica of *runtime* has crashed; nobody needs what is left of it any more."""
        self._settle(i, time, runtime)
        self._given_up[i] = True
        if self._held(i) and math.isfinite(self._prefill.pool.engine.jobs["last"][i]):
            core.release(self._prefill.pool.handle, i, time)

    def _settle(self, i: int, time: float, runtime: PoolRuntime) -> None:
        """Give up what a decode replica has reserved for a prompt that died with its prefill replica."""
        jobs = self._decode.pool.engine.jobs
        if runtime is self._prefill:
            self._sent[i] = False
            if jobs["row"][i] != NONE:
                core.withdraw(self._decode.pool.handle, i, time)
                jobs["row"][i] = NONE

    def _held(self, i: int) -> bool:
        """Whether the prefill pool has the prompt of request *i*, computed or not, and no decode replica has it yet."""
        return bool(self._sent[i] and math.isnan(self._decode.pool.engine.jobs["landed"][i]))

    def left_s(self, runtime: PoolRuntime) -> FloatArray:
        """Return shape (n,): when each request left the pool; prompts leave a prefill pool with their KV."""
        last, landed = runtime.pool.engine.jobs["last"], self._decode.pool.engine.jobs["landed"]
        return np.where(self._moves, landed, last) if runtime is self._prefill else np.asarray(last)

    def dropped(self, runtime: PoolRuntime, on: np.ndarray) -> None:
        """The requests *on*, shape (n,), are no longer on a replica of *runtime*, which has crashed.

        With a prefill replica goes what decode replicas have reserved for its prompts.
        """
        runtime.pool.engine.jobs["row"][on] = NONE
        if runtime is self._prefill:
            self._sent[on] = False
            self._decode.pool.engine.jobs["row"][on] = NONE
            decode = self._decode.dispatcher
            decode.parked = [(i, since) for i, since in decode.parked if not on[i]]
