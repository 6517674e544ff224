"""KV blocks: allocation, sharing by prompt prefix, LRU eviction. Compiled.

vLLM hashes every full block of ``block_size`` tokens together with the block before it. Traces name larger nodes
(often 512 tokens), whose blocks share one fate, so a *slot* stands for a run of blocks:

    key >= 0   the blocks of one prompt node, in order; ``count`` of them are still there
    key == -1  blocks without content, in the free queue only

A slot with references is in use. A slot without lies in the free queue, oldest first. Taking blocks eats the queue from
the head, and a node from its tail (as vLLM, which frees a request's blocks last block first), so what is left of a
node is always a prefix of it. Blocks of a request that nobody else can use are only counted (``own``). Always, in the
cache of a row:

    sum of all slots' counts + sum of all requests' own blocks = num_blocks
    free_blocks = sum of the counts in the queue

Lower tiers (``tiers``) are caches of the same kind without references. Slots are numbered through all caches; slot 0 is
the null slot. What is found where, the router hears by ``index.note``.
"""

from __future__ import annotations

import numpy as np

from dynosim.simulation.compiled import inner
from dynosim.simulation.index import note

# -------------------------------------------------------------------------------------------------------------- slots


@inner
def _bucket(cache, key):
    # Fibonacci hashing spreads the dense ids of neighbouring nodes.
    return cache.bucket_base + ((key * 0x9E3779B97F4A7C1) & cache.bucket_mask)


@inner
def find(e, cache, key):
    """Return the slot of node *key*, or 0."""
    s = np.int64(e.buckets[_bucket(cache, key)])
    while s != 0 and e.slots[s].key != key:
        s = e.slots[s].chain
    return s


@inner
def new_slot(e, cache, key, count):
    """Return a slot of *count* blocks, outside the queue; node *key* is found there if it is not -1."""
    s = cache.slot_head
    if s != 0:
        cache.slot_head = e.slots[s].next
    else:
        cache.slots_used += 1
        s = cache.slots_used
    slot = e.slots[s]
    slot.key, slot.count, slot.refs, slot.prev, slot.next = key, count, 0, 0, 0
    if key >= 0:
        b = _bucket(cache, key)
        slot.chain = e.buckets[b]
        e.buckets[b] = s
    return s


@inner
def drop_slot(e, cache, s):
    """Forget an empty slot that is out of the queue."""
    slot = e.slots[s]
    if slot.key >= 0:
        b = _bucket(cache, slot.key)
        if e.buckets[b] == s:
            e.buckets[b] = slot.chain
        else:
            p = e.buckets[b]
            while e.slots[p].chain != s:
                p = e.slots[p].chain
            e.slots[p].chain = slot.chain
    slot.next = cache.slot_head
    cache.slot_head = s


@inner
def enqueue(e, cache, s):
    """Append slot *s* to the free queue."""
    slot = e.slots[s]
    slot.prev, slot.next = cache.lru_tail, 0
    if cache.lru_tail != 0:
        e.slots[cache.lru_tail].next = s
    else:
        cache.lru_head = s
    cache.lru_tail = s
    cache.free_blocks += slot.count


@inner
def _unlink(e, cache, s):
    slot = e.slots[s]
    if slot.prev != 0:
        e.slots[slot.prev].next = slot.next
    else:
        cache.lru_head = slot.next
    if slot.next != 0:
        e.slots[slot.next].prev = slot.prev
    else:
        cache.lru_tail = slot.prev


@inner
def dequeue(e, cache, s):
    """Take slot *s* out of the free queue. Runs without content that now touch become one, which bounds the slots."""
    slot = e.slots[s]
    before, after = slot.prev, slot.next
    _unlink(e, cache, s)
    cache.free_blocks -= slot.count
    if before != 0 and after != 0 and e.slots[before].key < 0 and e.slots[after].key < 0:
        e.slots[before].count += e.slots[after].count
        _unlink(e, cache, after)
        drop_slot(e, cache, after)


# ------------------------------------------------------------------------------------------------------------- blocks


@inner
def give(e, cache, blocks):
    """Return *blocks* without content to the free queue."""
    if blocks == 0:
        return
    tail = cache.lru_tail
    if tail != 0 and e.slots[tail].key < 0:
        e.slots[tail].count += blocks
        cache.free_blocks += blocks
    else:
        enqueue(e, cache, new_slot(e, cache, -1, blocks))


@inner
def take(e, c, blocks):
    """Take *blocks* from the head of the free queue of cache *c*, evicting what they held. They exist."""
    cache = e.caches[c]
    while blocks > 0:
        s = cache.lru_head
        slot = e.slots[s]
        n = min(slot.count, blocks)
        blocks -= n
        if slot.key >= 0:
            cache.evicted += n
            note(e, c, slot.key, slot.count - n)
        if n < slot.count:
            slot.count -= n
            cache.free_blocks -= n
        else:
            dequeue(e, cache, s)
            drop_slot(e, cache, s)


# ------------------------------------------------------------------------------------------------------------- prompts


@inner
def node_blocks(e, tokens, i):
    """Full blocks of node *i* within the first *tokens* tokens."""
    lim = e.limits[0]
    return max(min(lim.hash_tokens, tokens - i * lim.hash_tokens), 0) // lim.block_size


@inner
def match(e, c, j, tokens):
    """Longest prefix of job *j* in cache *c*, of *tokens* tokens to compute, at least the last of which is computed
    again.

    Returns (tokens hit, nodes matched, blocks that holding them would take out of the free queue).
    """
    job, lim, cache, hit, pinned, i = e.jobs[j], e.limits[0], e.caches[c], 0, 0, 0
    if not lim.caching:
        return 0, 0, 0
    limit = min(tokens, job.hashed)
    while i < job.hash_count:
        s = find(e, cache, e.hash_ids[job.hash_start + i])
        if s == 0:
            break
        slot, full = e.slots[s], node_blocks(e, limit, i)
        if full == 0:
            break
        hit += min(slot.count, full) * lim.block_size
        pinned += slot.count if slot.refs == 0 else 0
        i += 1
        if slot.count < full:
            break
    return min(hit, (tokens - 1) // lim.block_size * lim.block_size), i, pinned


@inner
def hold(e, c, j, nodes):
    """Reference the first *nodes* matched nodes; the last may have lost its tail."""
    job, cache = e.jobs[j], e.caches[c]
    for i in range(nodes):
        s = find(e, cache, e.hash_ids[job.hash_start + i])
        slot = e.slots[s]
        if slot.refs == 0:
            dequeue(e, cache, s)
        slot.refs += 1
        e.held[job.hash_start + i] = s
    job.nodes = nodes
    if nodes > 0:
        last = e.slots[e.held[job.hash_start + nodes - 1]]
        job.nodes -= last.count < node_blocks(e, job.hashed, nodes - 1)


@inner
def register(e, c, j, tokens):
    """Share the full blocks among the first *tokens* tokens of job *j*, unless equal ones are there already."""
    job, lim, cache = e.jobs[j], e.limits[0], e.caches[c]
    if not lim.caching:
        return
    while job.nodes < job.hash_count and job.nodes * lim.hash_tokens < tokens:
        i, full = job.hash_start + job.nodes, node_blocks(e, job.hashed, job.nodes)
        done = min((tokens - job.nodes * lim.hash_tokens) // lim.block_size, full)
        s = np.int64(e.held[i])
        if s == 0 and done > 0 and find(e, cache, e.hash_ids[i]) == 0:
            s = new_slot(e, cache, e.hash_ids[i], np.int64(0))
            e.held[i], e.slots[s].refs = s, 1
        if s != 0 and done > e.slots[s].count:
            job.own -= done - e.slots[s].count
            e.slots[s].count = done
            note(e, c, e.hash_ids[i], done)
        if done < full:
            break
        job.nodes += 1
    job.named = max(job.named, job.nodes)


@inner
def release(e, c, j):
    """Give up all blocks of job *j*: its own first, then its nodes from the last to the first."""
    job, cache = e.jobs[j], e.caches[c]
    give(e, cache, job.own)
    for i in range(job.hash_start + job.hash_count - 1, job.hash_start - 1, -1):
        s = np.int64(e.held[i])
        if s != 0:
            e.held[i] = 0
            unpin(e, cache, s)
    job.own = job.blocks = job.nodes = 0


@inner
def unpin(e, cache, s):
    """Take one reference of slot *s* away."""
    e.slots[s].refs -= 1
    if e.slots[s].refs == 0:
        enqueue(e, cache, s)
