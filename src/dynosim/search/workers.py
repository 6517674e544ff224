"""Where tasks are done: in this process, or in worker processes, which may die and hang.

Every worker is a pool of one process, so that its end is the end of one task. Processes are loky's: they start
without importing ``__main__`` (scripts need no guard), and take functions that were written in a notebook.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor, wait
from functools import partial
from queue import LifoQueue
from threading import Lock, Thread
from types import TracebackType
from typing import Generic, Literal, TypeVar

from loky import ProcessPoolExecutor
from loky.backend.context import get_context

from dynosim.errors import ConfigError
from dynosim.objectives import share, shared

DIED = "the worker process died twice: it was killed, left by os._exit, ran out of memory or crashed in compiled code"
LATE = "not done within {:g} s (optimizer.trial_timeout_s)"

_ATTEMPTS = 2
_LOOK_EVERY_S = 1.0
_ENVIRONMENT = {"LOKY_MAX_MEMORY_LEAK_SIZE": "1e18"}
"""Loaded traffic is no leak: without this, loky restarts a process that has grown by 300 MB since its start."""

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
    """Does tasks with *count* processes; one means this process, when asked for the result, unless it is *isolated*.

    *do* is pickled; *failed* makes a result of a task that has none and the reason. A task whose process died is
    repeated once in a fresh one; one that takes longer than *limit_s*, which needs ``isolated``, is stopped.
    """

    def __init__(
        self,
        do: Callable[[Task], Result],
        count: int,
        failed: Callable[[Task, str], Result],
        *,
        isolated: bool = False,
        limit_s: float | None = None,
    ) -> None:
        self._do, self.count, self._failed, self._limit_s = do, count, failed, limit_s
        self._processes = [_Process(do, limit_s) for _ in range(count)] if count > 1 or isolated else []
        self._threads = ThreadPoolExecutor(count) if self._processes else None
        # The last to become idle first: no more processes start than are needed at once.
        self._idle: LifoQueue[_Process[Task, Result]] = LifoQueue()
        for process in self._processes:
            self._idle.put(process)

    def submit(self, task: Task) -> Future[Result]:
        """Start a task."""
        return _Here(self._do, task) if self._threads is None else self._threads.submit(self._apart, task)

    def _apart(self, task: Task) -> Result:
        process, reason = self._idle.get(), ""
        try:
            for _ in range(_ATTEMPTS):
                try:
                    return process(task)
                except BrokenExecutor as error:  # with a cause where it could not read the task
                    reason = f"{error.__cause__ or DIED}"
                except _LateError:
                    return self._failed(task, LATE.format(self._limit_s))
            return self._failed(task, reason)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End all processes and what they are doing."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            for process in self._processes:
                process.close()
            self._threads.shutdown()

    def __enter__(self) -> Workers[Task, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def finished(result: Result) -> Future[Result]:
    """Return a future that already has its result."""
    future: Future[Result] = Future()
    future.set_result(result)
    return future


class _Here(Future[Result]):
    """What is done in this process, and only when its result is asked for: an interrupted study loses one task."""

    def __init__(self, do: Callable[[Task], Result], task: Task) -> None:
        super().__init__()
        self._do = partial(do, task)

    def result(self, timeout: float | None = None) -> Result:
        if not self.done():
            self.set_result(self._do())
        return super().result(timeout)


class _LateError(Exception):
    """A task took longer than its limit."""


class _Process(Generic[Task, Result]):
    """A worker process that starts when it is first needed, and again after its death."""

    def __init__(self, do: Callable[[Task], Result], limit_s: float | None) -> None:
        self._do, self._limit_s = do, limit_s
        self._pool: ProcessPoolExecutor | None = None
        self._closed, self._lock = False, Lock()

    def __call__(self, task: Task) -> Result:
        """Return the result; BrokenExecutor when the process died, ``_LateError`` when it was stopped."""
        try:
            pool = self._start()
            future: Future[Result] = pool.submit(self._do, task)
            if wait([future], self._limit_s).done:
                return future.result()
        except BrokenExecutor:
            self._end()
            raise
        self._end()
        raise _LateError

    def close(self) -> None:
        """End the process for good."""
        self._closed = True
        self._end()

    def _start(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._closed:
                raise RuntimeError("closed")
            if pool := self._pool:
                return pool
            start = (os.getpid(), shared())
            pool = self._pool = ProcessPoolExecutor(
                1, context=get_context("loky"), initializer=_prepare, initargs=start, env=_ENVIRONMENT
            )
        pool.submit(_import, self._do).result()  # which is not to count against the first task
        return pool

    def _end(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(kill_workers=True)


def _prepare(owner: int, objectives: dict[str, bytes]) -> None:
    """Leave Ctrl-C to the owner of this process, and end with it."""
    share(objectives)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_follow, args=(owner,), daemon=True).start()


def _follow(owner: int) -> None:
    while os.getppid() == owner:
        time.sleep(_LOOK_EVERY_S)
    os._exit(1)


def _import(do: object) -> None:
    """Nothing: to read its argument the process has imported what tasks need."""
