"""Waiting queues: who comes next, who has waited for what. Compiled."""

from __future__ import annotations

import math

from dynosim.simulation import kv_cache
from dynosim.simulation.compiled import inner
from dynosim.simulation.state import LANDED, LOADED, NONE, SGLANG

LONGEST_PREFIX_LIMIT = 128
"""SGLang falls back to first come, first served above this many waiting requests (``schedule_policy.py``)."""


@inner
def arrive(e, q, j):
    """Append job *j* to those on their way to queue *q*; they come in the order of time."""
    rep = e.rows[q]
    e.jobs[j].next = NONE
    if rep.arrive_head == NONE:
        rep.arrive_head = j
    else:
        e.jobs[rep.arrive_tail].next = j
    rep.arrive_tail = j
    rep.n_arriving += 1


@inner
def _link(e, q, before, j):
    """Put job *j* behind *before*, or at the front where that is NONE."""
    rep, job = e.rows[q], e.jobs[j]
    job.next = rep.wait_head if before == NONE else e.jobs[before].next
    if before == NONE:
        rep.wait_head = j
    else:
        e.jobs[before].next = j
    if job.next == NONE:
        rep.wait_tail = j
    rep.n_waiting += 1


@inner
def _unlink(e, q, before, j):
    """Take job *j*, which stands behind *before*, out of the queue."""
    rep = e.rows[q]
    if before == NONE:
        rep.wait_head = e.jobs[j].next
    else:
        e.jobs[before].next = e.jobs[j].next
    if rep.wait_tail == j:
        rep.wait_tail = before
    rep.n_waiting -= 1


@inner
def push_front(e, q, j):
    """Put job *j* first: its KV has arrived and holds blocks that others may wait for."""
    _link(e, q, NONE, j)


@inner
def _holds(e, j):
    return e.jobs[j].kv == LANDED or e.jobs[j].kv == LOADED


@inner
def push_preempted(e, q, j):
    """Put job *j* first of those that hold nothing; where the queue has an order, in its place there."""
    if e.limits[0].ordered:
        insert(e, q, j)
        return
    before, i = NONE, e.rows[q].wait_head
    while i != NONE and _holds(e, i):
        before, i = i, e.jobs[i].next
    _link(e, q, before, j)


@inner
def _goes_before(e, i, j):
    """Whether job *i* stands before job *j*: by key, then by arrival (vLLM's ``Request.__lt__``), or as they come."""
    a, b = e.jobs[i], e.jobs[j]
    if a.key != b.key or not e.limits[0].ordered or e.limits[0].scheduler == SGLANG:
        return a.key <= b.key
    return a.arrived < b.arrived or (a.arrived == b.arrived and i < j)


@inner
def insert(e, q, j):
    """Put job *j* in its place, and behind those that hold blocks already."""
    rep, before = e.rows[q], NONE
    if rep.wait_tail != NONE and _goes_before(e, rep.wait_tail, j):
        before = rep.wait_tail
    else:
        i = rep.wait_head
        while i != NONE:
            if _goes_before(e, i, j) or _holds(e, i):
                before = i
            i = e.jobs[i].next
    _link(e, q, before, j)


@inner
def candidate(e, q):
    """Return (the job before it, the job that is to be admitted next)."""
    rep = e.rows[q]
    before, j = NONE, rep.wait_head
    if not e.limits[0].longest_prefix or rep.n_waiting > LONGEST_PREFIX_LIMIT:
        return before, j
    best, best_before, best_hit, last = j, NONE, -1, NONE
    while j != NONE:
        job = e.jobs[j]
        if job.kv == LANDED or job.kv == LOADED:
            return last, j
        hit = kv_cache.match(e, rep.cache, j, job.input + job.generated)[0]
        if hit > best_hit:
            best, best_before, best_hit = j, last, hit
        last, j = j, job.next
    return best_before, best


@inner
def sort(e, q):
    """Put the jobs of queue *q* in the order of their places, equal ones as they stand."""
    rep = e.rows[q]
    j = rep.wait_head
    rep.wait_head = rep.wait_tail = NONE
    rep.n_waiting = 0
    while j != NONE:
        following, before, i = e.jobs[j].next, rep.wait_tail, rep.wait_head
        if before != NONE and e.jobs[before].place > e.jobs[j].place:
            before = NONE
            while e.jobs[i].place <= e.jobs[j].place:
                before, i = i, e.jobs[i].next
        _link(e, q, before, j)
        j = following


# -------------------------------------------------------------------------------------------------------------- waits


@inner
def charge(e, q, time):
    """Add the time since the last charge to what queue *q* has waited for."""
    rep = e.rows[q]
    if time > rep.reason_since:
        e.waits[q, rep.reason] += time - rep.reason_since
    rep.reason_since = max(rep.reason_since, time)


@inner
def look(e, q, now, seen):
    """Move everyone who has come by *seen* into the queue, at *now*; later ones wait too, but unseen."""
    rep = e.rows[q]
    j = rep.arrive_head
    while j != NONE and e.jobs[j].visible <= now:
        job = e.jobs[j]
        following = job.next
        if math.isnan(job.scheduled) and not job.marked:
            charge(e, q, job.visible)
            job.marked = 1
            for k in range(e.waits.shape[1]):
                e.job_waits[j, k] -= e.waits[q, k]
        if job.visible <= seen:
            rep.arrive_head = following
            rep.n_arriving -= 1
            insert(e, q, j)
        j = following
    charge(e, q, now)


@inner
def settle_waits(e, q, j):
    """The waits of job *j* are what those of queue *q* have grown by since it came."""
    e.jobs[j].marked = 0
    for k in range(e.waits.shape[1]):
        e.job_waits[j, k] += e.waits[q, k]


@inner
def leave(e, q, before, j):
    """Take job *j* out of queue *q*."""
    if e.jobs[j].marked:
        settle_waits(e, q, j)
    _unlink(e, q, before, j)


@inner
def next_arrival(e, q):
    """When the next job comes to queue *q*."""
    head = e.rows[q].arrive_head
    return e.jobs[head].visible if head != NONE else math.inf


@inner
def withdraw(e, q, j):
    """Take job *j* out of queue *q*, wherever it stands in it or on its way to it."""
    rep, before = e.rows[q], NONE
    i = rep.wait_head
    while i != NONE and i != j:
        before, i = i, e.jobs[i].next
    if i == j:
        leave(e, q, before, j)
        return
    before, i = NONE, rep.arrive_head
    while i != NONE and i != j:
        before, i = i, e.jobs[i].next
    if i == j:
        if e.jobs[j].marked:
            settle_waits(e, q, j)
        _skip_arrival(e, q, before, j)


@inner
def _skip_arrival(e, q, before, j):
    rep = e.rows[q]
    if before == NONE:
        rep.arrive_head = e.jobs[j].next
    else:
        e.jobs[before].next = e.jobs[j].next
    if rep.arrive_tail == j:
        rep.arrive_tail = before
    rep.n_arriving -= 1
