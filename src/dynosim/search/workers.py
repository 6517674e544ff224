"""Where tasks are done: in this process, or in a pool that survives the death of a worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from types import TracebackType
from typing import Generic, Literal, TypeVar

from dynosim.errors import ConfigError

DIED = "the worker process died twice: out of memory, or a crash in compiled code"

Task = TypeVar("Task")
Result = TypeVar("Result")


def count_workers(workers: int | Literal["auto"]) -> int:
    """Return the number of worker processes; ``auto`` is ``DYNOSIM_WORKERS``, else one per core that may be used."""
    if workers != "auto":
        return workers
    asked = os.environ.get("DYNOSIM_WORKERS") or str(len(os.sched_getaffinity(0)))
    if not asked.isdecimal() or int(asked) == 0:
        raise ConfigError(f"DYNOSIM_WORKERS: {asked!r}: allowed is a number of processes, at least 1")
    return int(asked)


class Workers(Generic[Task, Result]):
    """Does tasks with *count* processes; one means this process, at once.

    *do* must survive pickling; *died* is the result of a task whose process died twice.
    """

    def __init__(self, do: Callable[[Task], Result], count: int, died: Callable[[Task], Result]) -> None:
        self._do, self.count, self._died = do, count, died
        self._pool = _pool(count) if count > 1 else None
        self._alone: ProcessPoolExecutor | None = None

    def submit(self, task: Task) -> Future[Result]:
        """Start a task."""
        if self._pool is None:
            return finished(self._do(task))
        try:
            return self._pool.submit(self._do, task)
        except BrokenExecutor:
            self._pool = _pool(self.count)
            return self._pool.submit(self._do, task)

    def result(self, future: Future[Result], task: Task) -> Result:
        """Wait for a task. One whose process died is repeated once, alone, and given up if that one dies too."""
        try:
            return future.result()
        except BrokenExecutor:
            return self._repeat(task)

    def _repeat(self, task: Task) -> Result:
        # All that was in flight comes here when one worker dies, so the process is kept for the next one.
        self._alone = self._alone or _pool(1)
        try:
            return self._alone.submit(self._do, task).result()
        except BrokenExecutor:
            self._alone = None
            return self._died(task)

    def __enter__(self) -> Workers[Task, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in filter(None, (self._pool, self._alone)):
            pool.shutdown(wait=True, cancel_futures=True)


def finished(result: Result) -> Future[Result]:
    """Return a future that already has its result."""
    future: Future[Result] = Future()
    future.set_result(result)
    return future


def _pool(count: int) -> ProcessPoolExecutor:
    # Not forked: this process has threads (BLAS, torch, a service), and a fork would copy their locks.
    return ProcessPoolExecutor(count, get_context("spawn"), _ignore_interrupt)


def _ignore_interrupt() -> None:
    """Leave Ctrl-C to the owner of the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
