"""KV tiers below the GPU: host memory (G2), local disk (G3), a shared store (G4). Compiled.

Written through: blocks of whole nodes, of prompts only where ``offload_prompt_only``, are copied to the first tier when
the pass that computed them ends, and from tier to tier as copies arrive. A prompt whose prefix goes on in a tier is
taken off the queue, its blocks are reserved and filled over the links, and it comes back to the front with that much
less to compute.
"""

from __future__ import annotations

import math

import numpy as np

from dynosim.simulation import kv_cache, links
from dynosim.simulation.compiled import inner
from dynosim.simulation.state import LOAD, LOADING, NONE, STORE

REMOTE_STORE = 2
"""Kind of the tier that all rows share."""
D2H, H2D, WRITE, READ, STORE_WRITE, STORE_READ = 0, 1, 0, 1, 6, 7
"""Columns of ``row_links``; those of tier kind k start at 2 k."""


@inner
def cache_of(e, r, tier):
    """Index of the cache that is tier *tier* of row *r*: its queue's, or the one store of all rows."""
    lim = e.limits[0]
    owner = 0 if lim.tier_kind[tier] == REMOTE_STORE else e.rows[r].queue
    return lim.tier_cache + tier * len(e.rows) + owner


@inner
def _slot(e, r, tier, key):
    cache = e.caches[cache_of(e, r, tier)]
    return kv_cache.find(e, cache, key)


@inner
def _touch(e, cache, s):
    kv_cache.dequeue(e, cache, s)
    kv_cache.enqueue(e, cache, s)


@inner
def _insert(e, c, key, count):
    """Put node *key* with at least *count* blocks at the young end of tier cache *c*, evicting the oldest."""
    cache = e.caches[c]
    s = kv_cache.find(e, cache, key)
    if count > cache.num_blocks:
        return
    if s == 0:
        kv_cache.take(e, c, count)
        s = kv_cache.new_slot(e, cache, key, count)
    else:
        kv_cache.dequeue(e, cache, s)
        kv_cache.take(e, c, max(count - e.slots[s].count, 0))
        e.slots[s].count = max(count, e.slots[s].count)
    kv_cache.enqueue(e, cache, s)


@inner
def _route(e, t, r, tier, down, gpu):
    """Send *t* over the links of a tier; *gpu* says whether one end is the GPU."""
    kind, links_of = e.limits[0].tier_kind[tier], e.row_links[r]
    if gpu:
        links.over(e, t, links_of[D2H if down else H2D])
    if kind > 0:
        links.over(e, t, links_of[2 * kind + (WRITE if down else READ)])
    if kind == 2:
        links.over(e, t, links_of[STORE_WRITE if down else STORE_READ])


# --------------------------------------------------------------------------------------------------------------- down


@inner
def _whole_in_gpu(e, r, j, i):
    job = e.jobs[j]
    key = e.hash_ids[job.hash_start + i]
    return kv_cache.blocks_from(e, kv_cache.find(e, e.caches[e.rows[r].cache], key)) >= e.node_blocks[key]


@inner
def _skip_stored(e, r, j, first, last, tier):
    """Touch the leading nodes of [first, last) that the tier has; returns the first it lacks."""
    job, cache = e.jobs[j], e.caches[cache_of(e, r, tier)]
    while first < last:
        key = e.hash_ids[job.hash_start + first]
        s = kv_cache.find(e, cache, key)
        if s == 0 or e.slots[s].count < e.node_blocks[key]:
            break
        _touch(e, cache, s)
        first += 1
    return first


@inner
def _missing_blocks(e, r, j, first, last, tier):
    job, blocks = e.jobs[j], 0
    for i in range(first, last):
        key = e.hash_ids[job.hash_start + i]
        s, full = _slot(e, r, tier, key), np.int64(e.node_blocks[key])
        if s == 0 or e.slots[s].count < full:
            blocks += full
    return blocks


@inner
def _copy_down(e, r, j, first, last, tier, time):
    t = links.begin(e, time, STORE, r, j, _missing_blocks(e, r, j, first, last, tier) * e.limits[0].block_bytes)
    t.first, t.last, t.tier = first, last, tier
    _route(e, t, r, tier, True, tier == 0)
    links.depart(e, t)


@inner
def store(e, r, j, time):
    """Start to copy what job *j* has newly completed to the first tier, unless a copy of it is still on its way."""
    job, cache = e.jobs[j], e.caches[e.rows[r].cache]
    named = min(job.named, job.offloaded)
    if e.limits[0].tiers == 0 or job.storing or named <= job.stored or not links.has_room(e):
        return
    first = last = _skip_stored(e, r, j, job.stored, named, 0)
    while last < named and _whole_in_gpu(e, r, j, last):
        last += 1
    job.stored = last if last > first else named
    if last == first:
        return
    job.storing = 1
    for i in range(first, last):
        key = e.hash_ids[job.hash_start + i]
        kv_cache.pin(e, cache, key, e.node_blocks[key])
    _copy_down(e, r, j, first, last, 0, time)


@inner
def stored(e, r, j, first, last, tier, time):
    """A copy down has arrived: the tier has the nodes [first, last) now, and passes them on."""
    job, cache = e.jobs[j], e.caches[e.rows[r].cache]
    c = cache_of(e, r, tier)
    for i in range(first, last):
        key = e.hash_ids[job.hash_start + i]
        _insert(e, c, key, e.node_blocks[key])
    if tier == 0:
        for i in range(last - 1, first - 1, -1):
            key = e.hash_ids[job.hash_start + i]
            kv_cache.unpin(e, cache, key, e.node_blocks[key])
        job.storing = 0
        store(e, r, j, time)
    if tier + 1 < e.limits[0].tiers and links.has_room(e):
        first = _skip_stored(e, r, j, first, last, tier + 1)
        if first < last:
            _copy_down(e, r, j, first, last, tier + 1, time)


# ----------------------------------------------------------------------------------------------------------------- up


@inner
def _best_tier(e, r, key, least):
    """Return (first tier that has more than *least* blocks of node *key*, those blocks), or (NONE, least)."""
    for tier in range(e.limits[0].tiers):
        s = _slot(e, r, tier, key)
        if s != 0 and e.slots[s].count > least:
            return tier, e.slots[s].count
    return NONE, least


@inner
def extend(e, r, j, nodes, tokens, touch):
    """Follow the prompt of job *j* from its first *nodes* nodes on the GPU through the tiers.

    Notes the blocks that each tier adds in ``tier_blocks``; with *touch* they become the youngest there. Returns the
    tokens of the whole prefix found, of *tokens* to compute, at least the last of which is computed again.
    """
    job, lim, gpu = e.jobs[j], e.limits[0], e.caches[e.rows[r].cache]
    e.tier_blocks[:] = 0
    most, found, i = (tokens - 1) // lim.block_size, 0, 0
    while i < job.hash_count and found < most:
        key = e.hash_ids[job.hash_start + i]
        full = min(most - found, e.node_blocks[key])
        have = min(kv_cache.blocks_from(e, kv_cache.find(e, gpu, key)), full) if i < nodes else 0
        if have < full:
            tier, count = _best_tier(e, r, key, have)
            if tier != NONE:
                e.tier_blocks[tier] += min(count, full) - have
                have = min(count, full)
                if touch:
                    _touch(e, e.caches[cache_of(e, r, tier)], _slot(e, r, tier, key))
        found += have
        i += 1
        if have < full:
            break
    return found * lim.block_size


@inner
def load(e, r, j, nodes, tokens, time):
    """Start the copies that bring the tiers' part of job *j*'s prefix up; its blocks are reserved."""
    job, lim = e.jobs[j], e.limits[0]
    job.ctx = extend(e, r, j, nodes, tokens, True)
    job.kv, job.load_from, job.loading = LOADING, time, 0
    for tier in range(lim.tiers):
        if e.tier_blocks[tier] > 0:
            t = links.begin(e, time, LOAD, r, j, e.tier_blocks[tier] * lim.block_bytes)
            _route(e, t, r, tier, False, True)
            links.depart(e, t)
            job.loading += 1
    if math.isnan(job.scheduled):
        _note_hits(e, j)


@inner
def _note_hits(e, j):
    """Record on job *j* how many tokens each kind of tier adds; the last token is computed whoever has it."""
    job, lim = e.jobs[j], e.limits[0]
    job.cached_host = job.cached_disk = job.cached_remote = 0
    left = job.ctx - job.cached
    for tier in range(lim.tiers):
        tokens = min(e.tier_blocks[tier] * lim.block_size, left)
        left -= tokens
        if lim.tier_kind[tier] == 0:
            job.cached_host = tokens
        elif lim.tier_kind[tier] == 1:
            job.cached_disk = tokens
        else:
            job.cached_remote = tokens
