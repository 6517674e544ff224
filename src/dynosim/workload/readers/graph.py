"""From rows in file order, with what waits for what, to the request table."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynosim.workload.readers.records import InvalidTraceError
from dynosim.workload.table import FloatArray, IntArray, Workload, numbered, ragged, take_ragged

NO_PAIRS = np.empty((0, 2), np.int64)


def arranged(time_s: FloatArray, session: IntArray, after: IntArray, **columns: Any) -> Workload:
    """Return the requests in the table's order: by time (stably), a session's requests behind each other.

    time_s: shape (n,); NaN where a request waits for others; all NaN in a source without times.
    after: shape (pairs, 2), a row and one that it waits for. Raises InvalidTraceError naming a row in a cycle.
    """
    n = len(time_s)
    level = levels(after, n)
    timed = bool(np.isfinite(time_s[level == 0]).all())
    start_s = np.where(level == 0, time_s if timed else 0.0, -np.inf)
    for step in range(1, int(level.max(initial=0)) + 1):
        row, before = after[level[after[:, 0]] == step].T
        np.maximum.at(start_s, row, start_s[before])
    after_offsets, after_ids = ragged(after[:, 0], after[:, 1], n)
    table = Workload(
        arrival_s=start_s - start_s.min(initial=np.inf) if n else start_s,
        session=session,
        after_offsets=after_offsets,
        after_ids=after_ids,
        timed=timed,
        **columns,
    )
    return table.take(np.lexsort((level, numbered(session), start_s)))


def levels(after: IntArray, n: int) -> IntArray:
    """Return how many requests come before each on its longest way from a root."""
    waiting = np.bincount(after[:, 0], minlength=n)
    offsets, children = ragged(after[:, 1], after[:, 0], n)
    level, step = np.zeros(n, np.int64), 0
    ready = np.flatnonzero(waiting == 0)
    while len(ready):
        level[ready] = step
        reached, times = np.unique(take_ragged(offsets, children, ready)[1], return_counts=True)
        waiting[reached] -= times
        ready, step = reached[waiting[reached] == 0], step + 1
    if waiting.any():
        raise InvalidTraceError("waits for itself, through others or not", int(np.argmax(waiting > 0)))
    return level


def turns_after(session: IntArray) -> IntArray:
    """Return the pairs (turn, turn before), shape (pairs, 2), of sessions whose turns stand in order."""
    order = np.argsort(session, kind="stable")
    same = session[order[1:]] == session[order[:-1]]
    return np.column_stack((order[1:][same], order[:-1][same]))
