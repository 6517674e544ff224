"""Where scenarios are evaluated: in this process, or in a pool that survives the death of a worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from types import TracebackType
from typing import Literal

from dynosim.config import Scenario
from dynosim.search.trial import Outcome, Status

_DIED = "the worker process died twice: out of memory, or a crash in compiled code"

Evaluate = Callable[[Scenario], Outcome]


def count_workers(workers: int | Literal["auto"]) -> int:
    """Return the number of worker processes; ``auto`` is one for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if workers == "auto" else workers


class Workers:
    """Evaluates scenarios with *count* processes; one means this process, at once."""

    def __init__(self, evaluate: Evaluate, count: int) -> None:
        self._evaluate, self.count = evaluate, count
        self._pool = _pool(count) if count > 1 else None
        self._alone: ProcessPoolExecutor | None = None

    def submit(self, scenario: Scenario) -> Future[Outcome]:
        """Start an evaluation."""
        if self._pool is None:
            return finished(self._evaluate(scenario))
        try:
            return self._pool.submit(self._evaluate, scenario)
        except BrokenExecutor:
            self._pool = _pool(self.count)
            return self._pool.submit(self._evaluate, scenario)

    def result(self, future: Future[Outcome], scenario: Scenario) -> Outcome:
        """Wait for an evaluation. One whose process died is repeated once, alone, and failed if that one dies too."""
        try:
            return future.result()
        except BrokenExecutor:
            return self._repeat(scenario)

    def _repeat(self, scenario: Scenario) -> Outcome:
        # All that was in flight comes here when one worker dies, so the process is kept for the next one.
        self._alone = self._alone or _pool(1)
        try:
            return self._alone.submit(self._evaluate, scenario).result()
        except BrokenExecutor:
            self._alone = None
            return Outcome(Status.FAILED, reason=_DIED)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in filter(None, (self._pool, self._alone)):
            pool.shutdown(wait=True, cancel_futures=True)


def finished(outcome: Outcome) -> Future[Outcome]:
    """Return a future that already has its result."""
    future: Future[Outcome] = Future()
    future.set_result(outcome)
    return future


def _pool(count: int) -> ProcessPoolExecutor:
    # Not forked: this process has threads (BLAS, torch, a service), and a fork would copy their locks.
    return ProcessPoolExecutor(count, get_context("spawn"), _ignore_interrupt)


def _ignore_interrupt() -> None:
    """Leave Ctrl-C to the owner of the study."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
