"""The KV block pool of one replica: allocation, sharing by prompt prefix, LRU eviction. Compiled.

vLLM hashes every full block of ``block_size`` tokens together with the block before it. Traces name larger nodes
(often 512 tokens), whose blocks share one fate, so a *slot* stands for a run of blocks:

    key >= 0   the blocks of one prompt node, in order; ``count`` of them are still there
    key == -1  blocks without content, in the free queue only

A slot with references is in use. A slot without lies in the free queue, oldest first. Taking blocks eats the queue from
the head, and a node from its tail (as vLLM, which frees a request's blocks last block first), so what is left of a
node is always a prefix of it. Blocks of a request that nobody else can use are only counted (``own``). Always:

    sum of all slots' counts + sum of all requests' own blocks = num_blocks
    free_blocks = sum of the counts in the queue

Slot 0 is the null slot.
"""

from __future__ import annotations

import numpy as np

from dynosim.simulation.compiled import inner

SLOT = np.dtype([("key", "i8"), ("refs", "i4"), ("count", "i4"), ("prev", "i4"), ("next", "i4"), ("chain", "i4")])


@inner
def _bucket(e, key):
    # Fibonacci hashing spreads the dense ids of neighbouring nodes.
    return (key * 0x9E3779B97F4A7C1) & (e.buckets.shape[1] - 1)


@inner
def _find(e, r, key):
    s = e.buckets[r, _bucket(e, key)]
    while s != 0 and e.slots[r, s].key != key:
        s = e.slots[r, s].chain
    return s


@inner
def _new_slot(e, r, key, count):
    rep = e.replicas[r]
    s = rep.slot_head
    if s != 0:
        rep.slot_head = e.slots[r, s].next
    else:
        rep.slots_used += 1
        s = rep.slots_used
    slot = e.slots[r, s]
    slot.key, slot.count, slot.refs, slot.prev, slot.next = key, count, 0, 0, 0
    if key >= 0:
        b = _bucket(e, key)
        slot.chain = e.buckets[r, b]
        e.buckets[r, b] = s
    return s


@inner
def _drop_slot(e, r, s):
    """Forget an empty slot that is out of the queue."""
    slot = e.slots[r, s]
    if slot.key >= 0:
        b = _bucket(e, slot.key)
        if e.buckets[r, b] == s:
            e.buckets[r, b] = slot.chain
        else:
            p = e.buckets[r, b]
            while e.slots[r, p].chain != s:
                p = e.slots[r, p].chain
            e.slots[r, p].chain = slot.chain
    slot.next = e.replicas[r].slot_head
    e.replicas[r].slot_head = s


@inner
def _enqueue(e, r, s):
    """Append slot *s* to the free queue."""
    rep, slot = e.replicas[r], e.slots[r, s]
    slot.prev, slot.next = rep.lru_tail, 0
    if rep.lru_tail != 0:
        e.slots[r, rep.lru_tail].next = s
    else:
        rep.lru_head = s
    rep.lru_tail = s
    rep.free_blocks += slot.count


@inner
def _dequeue(e, r, s):
    """Take slot *s* out of the free queue."""
    rep, slot = e.replicas[r], e.slots[r, s]
    if slot.prev != 0:
        e.slots[r, slot.prev].next = slot.next
    else:
        rep.lru_head = slot.next
    if slot.next != 0:
        e.slots[r, slot.next].prev = slot.prev
    else:
        rep.lru_tail = slot.prev
    rep.free_blocks -= slot.count


@inner
def give(e, r, blocks):
    """Return *blocks* without content to the free queue."""
    if blocks == 0:
        return
    tail = e.replicas[r].lru_tail
    if tail != 0 and e.slots[r, tail].key < 0:
        e.slots[r, tail].count += blocks
        e.replicas[r].free_blocks += blocks
    else:
        _enqueue(e, r, _new_slot(e, r, -1, blocks))


@inner
def take(e, r, blocks):
    """Take *blocks* from the head of the free queue, evicting what they held. The caller knows they exist."""
    rep = e.replicas[r]
    while blocks > 0:
        s = rep.lru_head
        slot = e.slots[r, s]
        n = min(slot.count, blocks)
        blocks -= n
        if n < slot.count:
            slot.count -= n
            rep.free_blocks -= n
        else:
            _dequeue(e, r, s)
            _drop_slot(e, r, s)


@inner
def _node_blocks(e, job, i):
    """Full blocks of the prompt's node *i*."""
    lim = e.limits[0]
    return min(lim.hash_tokens, job.input - i * lim.hash_tokens) // lim.block_size


@inner
def match(e, r, j, tokens):
    """Longest cached prefix of job *j*, of *tokens* tokens to compute, at least the last of which is computed again.

    Returns (tokens hit, nodes matched, blocks that holding them would take out of the free queue).
    """
    job, lim, hit, pinned, i = e.jobs[j], e.limits[0], 0, 0, 0
    if not lim.caching:
        return 0, 0, 0
    while i < job.hash_count:
        s = _find(e, r, e.hash_ids[job.hash_start + i])
        if s == 0:
            break
        slot, full = e.slots[r, s], _node_blocks(e, job, i)
        if full == 0:
            break
        hit += min(slot.count, full) * lim.block_size
        pinned += slot.count if slot.refs == 0 else 0
        i += 1
        if slot.count < full:
            break
    return min(hit, (tokens - 1) // lim.block_size * lim.block_size), i, pinned


@inner
def hold(e, r, j, nodes):
    """Reference the first *nodes* matched nodes; the last may have lost its tail."""
    job = e.jobs[j]
    for i in range(nodes):
        s = _find(e, r, e.hash_ids[job.hash_start + i])
        slot = e.slots[r, s]
        if slot.refs == 0:
            _dequeue(e, r, s)
        slot.refs += 1
        e.held[job.hash_start + i] = s
    complete = nodes > 0 and e.slots[r, e.held[job.hash_start + nodes - 1]].count >= _node_blocks(e, job, nodes - 1)
    job.nodes = nodes if complete else max(nodes - 1, 0)


@inner
def register(e, r, j, tokens):
    """Share the full prompt blocks among the first *tokens* tokens of job *j*, unless equal ones are there already."""
    job, lim = e.jobs[j], e.limits[0]
    if not lim.caching:
        return
    while job.nodes < job.hash_count and job.nodes * lim.hash_tokens < tokens:
        i, full = job.hash_start + job.nodes, _node_blocks(e, job, job.nodes)
        done = min((tokens - job.nodes * lim.hash_tokens) // lim.block_size, full)
        s = e.held[i]
        if s == 0 and done > 0 and _find(e, r, e.hash_ids[i]) == 0:
            s = e.held[i] = _new_slot(e, r, e.hash_ids[i], 0)
            e.slots[r, s].refs = 1
        if s != 0:
            grown = max(done - e.slots[r, s].count, 0)
            e.slots[r, s].count += grown
            job.own -= grown
        if done < full:
            break
        job.nodes += 1


@inner
def release(e, r, j):
    """Give up all blocks of job *j*: its own first, then its nodes from the last to the first."""
    job = e.jobs[j]
    give(e, r, job.own)
    for i in range(job.hash_start + job.hash_count - 1, job.hash_start - 1, -1):
        s = e.held[i]
        if s != 0:
            e.held[i] = 0
            e.slots[r, s].refs -= 1
            if e.slots[r, s].refs == 0:
                _enqueue(e, r, s)
    job.own = job.blocks = job.nodes = 0
