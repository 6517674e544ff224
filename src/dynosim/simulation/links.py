"""Links: KV copies between GPUs, hosts, disks and stores share their bandwidth. Compiled.

Processor sharing: a transfer runs at the smallest of its links' fair shares, bandwidth over the transfers on it. What
one transfer cannot use because another of its links is busier is not given to the others (so a little pessimistic
against max-min fairness).
"""

from __future__ import annotations

import math

from dynosim.simulation.compiled import inner


@inner
def progress(e, time):
    """Bring all remaining bytes to *time*."""
    net = e.net[0]
    elapsed = time - net.now
    if elapsed > 0.0:
        for i in range(net.active):
            e.transfers[i].remaining -= e.transfers[i].rate * elapsed
    net.now = time


@inner
def _share(e):
    """Recompute all rates and when the next transfer starts or ends."""
    net = e.net[0]
    net.next, net.which = math.inf, -1
    for i in range(net.active):
        t = e.transfers[i]
        time = t.starts
        if t.rate > 0.0:
            t.rate = math.inf
            for k in range(t.n_links):
                link = e.links[t.links[k]]
                t.rate = min(t.rate, link.bytes_s / link.users)
            time = net.now + max(t.remaining, 0.0) / t.rate
        if time < net.next:
            net.next, net.which = time, i


@inner
def _use(e, t, change):
    for k in range(t.n_links):
        e.links[t.links[k]].users += change


@inner
def begin(e, time, kind, row, j, size):
    """Add a transfer of *size* bytes without links yet; returns it, to be completed with ``over`` and ``depart``."""
    progress(e, time)
    net = e.net[0]
    t = e.transfers[net.active]
    t.kind, t.pool, t.row, t.job = kind, e.limits[0].pool, row, j
    t.size = t.remaining = size
    t.rate, t.starts, t.n_links, t.first, t.last, t.tier = 0.0, time, 0, 0, 0, 0
    return t


@inner
def over(e, t, link):
    """Send transfer *t* over *link* too; NONE is no link."""
    if link >= 0:
        t.links[t.n_links] = link
        t.n_links += 1
        t.starts = max(t.starts, e.net[0].now + e.links[link].latency_s)


@inner
def depart(e, t):
    """Let transfer *t* go."""
    e.net[0].active += 1
    if t.starts <= e.net[0].now and t.size > 0.0 and t.n_links > 0:
        _use(e, t, 1)
        t.rate = 1.0
    _share(e)


@inner
def has_room(e):
    """Whether a copy down may begin: one hand-off or three copies up of every job must always find a place."""
    return e.net[0].active + 4 * len(e.jobs) < len(e.transfers)


@inner
def step(e):
    """Move to the next change; returns the index of a transfer that has ended (then ``remove`` it), or -1."""
    net = e.net[0]
    i = net.which
    progress(e, net.next)
    t = e.transfers[i]
    if t.rate > 0.0 or t.size <= 0.0 or t.n_links == 0:
        return i
    t.rate = 1.0
    _use(e, t, 1)
    _share(e)
    return -1


@inner
def remove(e, i):
    """Forget transfer *i*, which may not have ended; the last one takes its place."""
    net, t = e.net[0], e.transfers[i]
    for k in range(t.n_links):
        e.links[t.links[k]].bytes += t.size - max(t.remaining, 0.0)
    if t.rate > 0.0:
        _use(e, t, -1)
    net.active -= 1
    e.transfers[i] = e.transfers[net.active]
    _share(e)
