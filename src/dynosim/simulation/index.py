"""Which rows have which nodes of a prompt, as far as the router knows: one index for all rows of a pool. Compiled.

An *entry* is one node on one row: how many of its leading blocks the row's KV cache has (``cached``), and how many
belong to prompts of unfinished requests there (``active``, of ``refs`` requests). The entries of a node are linked, so
a decision touches only the rows that have a part of the prompt. What a cache gets and loses comes by ``note``, at once
or with the lag of the router's events; who is sent where, and who has ended, a router knows by itself.

With predict-on-route an entry also says how many blocks a request that was sent there will leave (``predicted``), which
is believed until ``expires``.

Nodes that one request alone can have are in no entry: their blocks only count. Nothing is kept for routers that do not
look.
"""

from __future__ import annotations

import math

import numpy as np

from dynosim.simulation.compiled import inner
from dynosim.simulation.state import CACHED, REFERENCED


@inner
def _bucket(e, key, row):
    # Fibonacci hashing spreads the dense ids of neighbouring nodes.
    return ((key * len(e.rows) + row) * 0x9E3779B97F4A7C1) & (len(e.entry_buckets) - 1)


@inner
def _find(e, key, row):
    """Return the entry of node *key* on *row*, or 0."""
    i = np.int64(e.entry_buckets[_bucket(e, key, row)])
    while i != 0 and (e.entries[i].node != key or e.entries[i].row != row):
        i = e.entries[i].chain
    return i


@inner
def _new(e, key, row):
    lim, b = e.limits[0], _bucket(e, key, row)
    i = lim.entry_head
    if i != 0:
        lim.entry_head = e.entries[i].next
    else:
        lim.entries_used += 1
        i = lim.entries_used
    entry = e.entries[i]
    entry.node, entry.row, entry.cached, entry.active, entry.refs = key, row, 0, 0, 0
    entry.predicted, entry.expires = 0, -math.inf
    entry.chain, entry.prev, entry.next = e.entry_buckets[b], 0, e.node_entry[key]
    if entry.next != 0:
        e.entries[entry.next].prev = i
    e.node_entry[key], e.entry_buckets[b] = i, i
    return i


@inner
def _drop_if_empty(e, i, time):
    """Forget entry *i* if it says nothing at *time*."""
    entry, lim = e.entries[i], e.limits[0]
    if entry.cached > 0 or entry.refs > 0 or entry.expires > time:
        return
    if entry.prev != 0:
        e.entries[entry.prev].next = entry.next
    else:
        e.node_entry[entry.node] = entry.next
    if entry.next != 0:
        e.entries[entry.next].prev = entry.prev
    b = _bucket(e, np.int64(entry.node), np.int64(entry.row))
    if e.entry_buckets[b] == i:
        e.entry_buckets[b] = entry.chain
    else:
        before = np.int64(e.entry_buckets[b])
        while e.entries[before].chain != i:
            before = e.entries[before].chain
        e.entries[before].chain = entry.chain
    entry.row = -1
    entry.next = lim.entry_head
    lim.entry_head = i


@inner
def note(e, c, key, count):
    """Cache *c* has the first *count* blocks of node *key* from now on: the router hears of it, at once or after its
    lag. Lower tiers are looked up as they are."""
    lim = e.limits[0]
    if not lim.indexed or c >= len(e.rows) or key >= len(e.node_entry):
        return
    if lim.lag_s == 0.0:
        _learn(e, c, key, count)
        return
    if lim.log_tail - lim.log_head == len(e.log):
        _hear(e)
    change = e.log[lim.log_tail % len(e.log)]
    change.time, change.key, change.cache, change.count = lim.clock, key, c, count
    lim.log_tail += 1


@inner
def _hear(e):
    """The router hears of the oldest change."""
    lim = e.limits[0]
    change = e.log[lim.log_head % len(e.log)]
    lim.log_head += 1
    _learn(e, change.cache, change.key, change.count)


@inner
def catch_up(e, time):
    """The router hears of what was more than its lag before *time*."""
    lim = e.limits[0]
    while lim.log_head < lim.log_tail and e.log[lim.log_head % len(e.log)].time <= time - lim.lag_s:
        _hear(e)


@inner
def _learn(e, row, key, count):
    i = _find(e, key, row)
    if i == 0 and count > 0:
        i = _new(e, key, row)
    if i != 0:
        e.entries[i].cached = count
        _drop_if_empty(e, i, e.limits[0].clock)


@inner
def forget(e, row):
    """*row* starts with nothing: what was there, or was sent there, is gone, and what the router has not heard of yet
    is not to come."""
    lim = e.limits[0]
    if lim.indexed:
        for i in range(lim.log_head, lim.log_tail):
            if e.log[i % len(e.log)].cache == row:
                e.log[i % len(e.log)].count = 0
        for i in range(1, lim.entries_used + 1):
            entry = e.entries[i]
            if entry.row == row:
                entry.cached = entry.active = entry.refs = 0
                entry.expires = -math.inf
                _drop_if_empty(e, i, lim.clock)
    e.rows[row].active_blocks = 0


@inner
def _prompt_blocks(e, j):
    return e.jobs[j].input // e.limits[0].block_size


@inner
def _shared_blocks(e, j, i, before):
    """Blocks of the prompt of job *j* in its node *i*, which *before* others precede; 0 if nobody else can have it."""
    job = e.jobs[j]
    if i >= job.hash_count or e.hash_ids[job.hash_start + i] >= len(e.node_entry):
        return 0
    return min(_prompt_blocks(e, j) - before, e.node_blocks[e.hash_ids[job.hash_start + i]])


@inner
def send(e, row, j, time):
    """Job *j* is sent to *row*: the blocks of its prompt are active there, and will be cached."""
    lim, before, i = e.limits[0], 0, 0
    if not lim.indexed:
        return
    full = _shared_blocks(e, j, i, before) if not lim.remote else 0
    while full > 0:
        key = e.hash_ids[e.jobs[j].hash_start + i]
        s = _find(e, key, row)
        if s == 0:
            s = _new(e, key, row)
        entry = e.entries[s]
        e.rows[row].active_blocks += max(full - entry.active, 0)
        entry.active, entry.refs = max(full, entry.active), entry.refs + 1
        if lim.predict_s > 0.0:
            entry.predicted = max(full, entry.predicted if entry.expires > time else 0)
            entry.expires = time + lim.predict_s
        before, i = before + full, i + 1
        full = _shared_blocks(e, j, i, before)
    e.rows[row].active_blocks += _prompt_blocks(e, j) - before


@inner
def leave(e, row, j):
    """Job *j* has left *row*."""
    lim, before, i = e.limits[0], 0, 0
    if not lim.indexed:
        return
    full = _shared_blocks(e, j, i, before) if not lim.remote else 0
    while full > 0:
        s = _find(e, e.hash_ids[e.jobs[j].hash_start + i], row)
        entry = e.entries[s]
        entry.refs -= 1
        if entry.refs == 0:
            e.rows[row].active_blocks -= entry.active
            entry.active = 0
            _drop_if_empty(e, s, lim.clock)
        before, i = before + full, i + 1
        full = _shared_blocks(e, j, i, before)
    e.rows[row].active_blocks -= _prompt_blocks(e, j) - before


@inner
def look_up(e, j, time):
    """Note for each row how many leading blocks of the prompt of job *j* its cache has, and how many are active."""
    e.overlap[CACHED, :] = 0
    e.overlap[REFERENCED, :] = 0
    before, i = 0, 0
    full = _shared_blocks(e, j, i, before)
    while full > 0:
        s = np.int64(e.node_entry[e.hash_ids[e.jobs[j].hash_start + i]])
        if s == 0:
            return
        while s != 0:
            entry = e.entries[s]
            known = entry.cached
            if entry.expires > time:
                known = max(known, entry.predicted)
            if e.overlap[CACHED, entry.row] == before:
                e.overlap[CACHED, entry.row] += min(known, full)
            if e.overlap[REFERENCED, entry.row] == before:
                e.overlap[REFERENCED, entry.row] += min(entry.active, full)
            s = np.int64(entry.next)
        before, i = before + full, i + 1
        full = _shared_blocks(e, j, i, before)
