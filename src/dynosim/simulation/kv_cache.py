"""KV blocks: allocation, sharing by prefix, LRU eviction, as vLLM's ``BlockPool`` and ``KVCacheManager``. Compiled.

vLLM hashes every full block of ``block_size`` tokens together with the block before it. Blocks of one prefix node
(``nodes``) share one fate, so a *slot* stands for a run of them:

    key >= 0   blocks of node *key* that a lookup finds
    key < 0    copies of blocks of node -2 - *key*, from its block ``at`` on: computed although equal ones were there,
               hashed as well, found once those are evicted

A node has one slot as a rule. Where a request holds only the first blocks of a node, those and the rest are slots of
their own, linked in order by ``more``; so are the copies of a node. A request remembers how many leading blocks of each
of its nodes it holds (``held``); what it has computed beyond them belongs to it as ``owner``.

A slot with references is in use. A slot without lies in the free queue, oldest first, behind all blocks without
content (``empty``): blocks are freed to the queue's head when they have no hash and to its tail when they have one, a
request's last block first. Taking blocks eats the queue from its head, and a slot from its tail. Blocks of a request
that have no hash yet are only counted (``own``). Always, in the cache of a row:

    empty + sum of all slots' counts + sum of all requests' own blocks = num_blocks
    free_blocks = empty + sum of the counts in the queue

Lower tiers (``tiers``) are caches of the same kind without references. Slots are numbered through all caches; slot 0 is
the null slot. What is found where, the router hears by ``index.note``.
"""

from __future__ import annotations

import numpy as np

from dynosim.simulation.compiled import inner
from dynosim.simulation.index import note
from dynosim.simulation.state import NONE, SGLANG

# -------------------------------------------------------------------------------------------------------------- slots


@inner
def _bucket(cache, key):
    # Fibonacci hashing spreads the dense ids of neighbouring nodes.
    return cache.bucket_base + ((key * 0x9E3779B97F4A7C1) & cache.bucket_mask)


@inner
def _copies(key):
    """Key of the copies of node *key*."""
    return -2 - key


@inner
def find(e, cache, key):
    """Return the first slot of *key*, or 0."""
    s = np.int64(e.buckets[_bucket(cache, key)])
    while s != 0 and e.slots[s].key != key:
        s = e.slots[s].chain
    return s


@inner
def blocks_from(e, s):
    """Blocks of slot *s* and those that follow it in its node."""
    blocks = 0
    while s != 0:
        blocks += e.slots[s].count
        s = e.slots[s].more
    return blocks


@inner
def _unused_slot(e, cache, count, refs):
    s = cache.slot_head
    if s != 0:
        cache.slot_head = e.slots[s].next
    else:
        cache.slots_used += 1
        s = cache.slots_used
    slot = e.slots[s]
    slot.count, slot.refs, slot.prev, slot.next, slot.at, slot.owner = count, refs, 0, 0, 0, NONE
    slot.joint = slot.joined = 0
    return s


@inner
def _link(e, cache, key, s):
    """Make slot *s* the last one of *key*."""
    slot, last = e.slots[s], find(e, cache, key)
    slot.key, slot.more = key, 0
    cache.copies += key < 0
    if last == 0:
        b = _bucket(cache, key)
        slot.chain = e.buckets[b]
        e.buckets[b] = s
        return
    while e.slots[last].more != 0:
        last = np.int64(e.slots[last].more)
    e.slots[last].more = s


@inner
def _unlink(e, cache, s):
    """Take slot *s* out of those of its key."""
    slot = e.slots[s]
    first = find(e, cache, slot.key)
    cache.copies -= slot.key < 0
    if first != s:
        while e.slots[first].more != s:
            first = np.int64(e.slots[first].more)
        e.slots[first].more = slot.more
        return
    after = np.int64(slot.chain)
    if slot.more != 0:
        after = np.int64(slot.more)
        e.slots[after].chain = slot.chain
    _point(e, cache, s, after)


@inner
def _point(e, cache, first, s):
    """Let what leads to slot *first*, the first of its key, lead to slot *s*."""
    b = _bucket(cache, e.slots[first].key)
    if e.buckets[b] == first:
        e.buckets[b] = s
        return
    p = np.int64(e.buckets[b])
    while e.slots[p].chain != first:
        p = np.int64(e.slots[p].chain)
    e.slots[p].chain = s


@inner
def _link_first(e, cache, key, s):
    """Make slot *s* the first one of *key*."""
    first = find(e, cache, key)
    if first == 0:
        _link(e, cache, key, s)
        return
    slot = e.slots[s]
    slot.key, slot.more, slot.chain = key, first, e.slots[first].chain
    cache.copies += key < 0
    _point(e, cache, first, s)


@inner
def new_slot(e, cache, key, count):
    """Return a slot of *count* blocks, the last one of *key*, outside the queue."""
    s = _unused_slot(e, cache, count, np.int64(0))
    _link(e, cache, key, s)
    return s


@inner
def drop_slot(e, cache, s):
    """Forget slot *s*, which is out of the queue."""
    _unlink(e, cache, s)
    e.slots[s].next = cache.slot_head
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
def dequeue(e, cache, s):
    """Take slot *s* out of the free queue."""
    slot = e.slots[s]
    if slot.prev != 0:
        e.slots[slot.prev].next = slot.next
    else:
        cache.lru_head = slot.next
    if slot.next != 0:
        e.slots[slot.next].prev = slot.prev
    else:
        cache.lru_tail = slot.prev
    cache.free_blocks -= slot.count


@inner
def _split(e, cache, s, count):
    """Make two slots of slot *s*, the first of *count* blocks; in the queue the second stands just before it."""
    slot = e.slots[s]
    t = _unused_slot(e, cache, slot.count - count, slot.refs)
    rest = e.slots[t]
    rest.key, rest.owner, rest.at, rest.more = slot.key, slot.owner, slot.at + count, slot.more
    slot.count, slot.more = count, t
    rest.joint, slot.joint = slot.joint, 0
    if rest.joint != 0:
        e.slots[np.int64(rest.joint)].joined = t
    cache.copies += slot.key < 0
    if slot.refs == 0:
        rest.prev, rest.next, slot.prev = slot.prev, s, t
        if rest.prev != 0:
            e.slots[rest.prev].next = t
        else:
            cache.lru_head = t


# ------------------------------------------------------------------------------------------------------------- blocks


@inner
def give(cache, blocks):
    """Return *blocks* without content to the head of the free queue."""
    cache.empty += blocks
    cache.free_blocks += blocks


@inner
def make_room(e, c, blocks):
    """SGLang: evict whole leaves of its tree until *blocks* blocks have no content, or all have none."""
    cache = e.caches[c]
    while cache.empty < blocks and cache.lru_head != 0:
        leaf = np.int64(cache.lru_head)
        while leaf != 0:
            before, count = np.int64(e.slots[leaf].joined), np.int64(e.slots[leaf].count)
            _part(e, before)
            _part(e, leaf)
            _evict(e, c, leaf, count)
            give(cache, count)
            leaf = before if before == cache.lru_head else np.int64(0)


@inner
def take(e, c, blocks):
    """Take *blocks* from the head of the free queue of cache *c*, evicting what they held. They exist."""
    cache = e.caches[c]
    if e.limits[0].scheduler == SGLANG and c < len(e.rows):
        make_room(e, c, blocks)
    n = min(cache.empty, blocks)
    cache.empty -= n
    cache.free_blocks -= n
    blocks -= n
    while blocks > 0:
        n = min(np.int64(e.slots[cache.lru_head].count), blocks)
        blocks -= n
        _evict(e, c, cache.lru_head, n)


@inner
def _evict(e, c, s, blocks):
    """Take the last *blocks* blocks of slot *s*, which is in the free queue."""
    cache, slot = e.caches[c], e.slots[s]
    key = np.int64(slot.key)
    if slot.more != 0 and key >= 0:
        _detach(e, cache, s)
    if blocks < slot.count:
        slot.count -= blocks
        cache.free_blocks -= blocks
    else:
        dequeue(e, cache, s)
        drop_slot(e, cache, s)
    if key >= 0:
        _promote(e, cache, key)
        note(e, c, key, blocks_from(e, find(e, cache, key)))


@inner
def _detach(e, cache, s):
    """The slots that follow slot *s* in its node are copies from now on: no lookup gets there. They go before the other
    copies, as equal blocks are found in the order in which they were hashed."""
    key = np.int64(e.slots[s].key)
    at = blocks_from(e, find(e, cache, key)) - blocks_from(e, s) + e.slots[s].count
    while e.slots[s].more != 0:
        t = np.int64(e.slots[s].more)
        _unlink(e, cache, t)
        _link_first(e, cache, _copies(key), t)
        e.slots[t].at = at
        at += e.slots[t].count


@inner
def _promote(e, cache, key):
    """Let lookups of node *key* go on in copies of the blocks that follow what they find."""
    while cache.copies > 0:
        blocks, s, end = blocks_from(e, find(e, cache, key)), find(e, cache, _copies(key)), np.int64(1 << 60)
        while s != 0 and not e.slots[s].at <= blocks < e.slots[s].at + e.slots[s].count:
            if e.slots[s].at > blocks:
                end = min(end, np.int64(e.slots[s].at))  # from there on an earlier copy is found
            s = np.int64(e.slots[s].more)
        if s == 0:
            return
        if e.slots[s].at + e.slots[s].count > end:
            _split(e, cache, s, end - e.slots[s].at)
        if e.slots[s].at < blocks:
            _split(e, cache, s, blocks - e.slots[s].at)
            s = np.int64(e.slots[s].more)
        _unlink(e, cache, s)
        _link(e, cache, key, s)


@inner
def pin(e, cache, key, blocks):
    """Take one reference to the first *blocks* blocks of node *key*; returns their last slot, or 0."""
    s, last = find(e, cache, key), np.int64(0)
    while blocks > 0:
        if e.slots[s].count > blocks:
            _split(e, cache, s, blocks)
        if e.slots[s].refs == 0:
            dequeue(e, cache, s)
        e.slots[s].refs += 1
        blocks -= e.slots[s].count
        s, last = np.int64(e.slots[s].more), s
    return last


@inner
def _join(e, last, s):
    """Slot *s* goes on where slot *last* ends, of the same leaf."""
    if last != 0 and s != 0:
        e.slots[last].joint, e.slots[s].joined = s, last


@inner
def _part(e, s):
    """A leaf ends with slot *s*: somebody goes on in another way, or no further."""
    if s != 0:
        e.slots[np.int64(e.slots[s].joint)].joined = 0
        e.slots[s].joint = 0


@inner
def unpin(e, cache, key, blocks):
    """Give one reference to the first *blocks* blocks of node *key* up, the last block first."""
    first = find(e, cache, key)
    while blocks > 0:
        s, before = first, np.int64(e.slots[first].count)
        while before < blocks:
            s = np.int64(e.slots[s].more)
            before += e.slots[s].count
        blocks -= e.slots[s].count
        _let_go(e, cache, s)


@inner
def _let_go(e, cache, s):
    e.slots[s].refs -= 1
    if e.slots[s].refs == 0:
        enqueue(e, cache, s)


# ------------------------------------------------------------------------------------------------------------ prefixes


@inner
def match(e, c, j, tokens):
    """Longest prefix of job *j* in cache *c*, of *tokens* tokens to compute, at least the last of which is computed
    again.

    Returns (tokens hit, nodes matched, blocks that holding them would take out of the free queue).
    """
    job, lim, cache, hit, pinned, i = e.jobs[j], e.limits[0], e.caches[c], 0, 0, 0
    most = (tokens - 1) // lim.block_size
    while i < job.hash_count and hit < most:
        key, found = e.hash_ids[job.hash_start + i], 0
        s = find(e, cache, key)
        while s != 0 and hit < most:
            slot = e.slots[s]
            n = min(slot.count, most - hit)
            pinned += n if slot.refs == 0 else 0
            hit, found, s = hit + n, found + n, np.int64(slot.more)
        i += found > 0
        if found < e.node_blocks[key]:
            break
    return hit * lim.block_size, i, pinned


@inner
def hold(e, c, j, nodes, blocks):
    """Reference the first *blocks* blocks of job *j*, which *nodes* nodes were found to have."""
    job, cache = e.jobs[j], e.caches[c]
    job.nodes = job.before = job.filled = 0
    last = np.int64(0)
    for i in range(nodes):
        key = e.hash_ids[job.hash_start + i]
        n = min(blocks - job.before, e.node_blocks[key])
        last = pin(e, cache, key, n)
        e.held[job.hash_start + i] = n
        _fill(e, j, n)
    _part(e, last)


@inner
def touch(e, c, j, tokens):
    """SGLang: what job *j* finds of its *tokens* tokens was used last of all that nobody holds."""
    hit, nodes, free = match(e, c, j, tokens)
    if free == 0 or e.jobs[j].blocks > 0:
        return
    job, cache, blocks, last = e.jobs[j], e.caches[c], hit // e.limits[0].block_size, np.int64(0)
    for i in range(job.hash_start, job.hash_start + nodes):
        e.held[i] = min(blocks, e.node_blocks[e.hash_ids[i]])
        blocks -= e.held[i]
        last = pin(e, cache, e.hash_ids[i], e.held[i])
    _part(e, last)
    for i in range(job.hash_start + nodes - 1, job.hash_start - 1, -1):
        unpin(e, cache, e.hash_ids[i], e.held[i])
        e.held[i] = 0


@inner
def _fill(e, j, blocks):
    """Job *j* has computed, or found, *blocks* blocks of its current node."""
    job = e.jobs[j]
    full = e.node_blocks[e.hash_ids[job.hash_start + job.nodes]]
    job.filled = blocks
    if blocks == full:
        job.nodes += 1
        job.before += full
        job.filled = 0


@inner
def register(e, c, j, tokens):
    """Hash the full blocks among the first *tokens* tokens of job *j*."""
    job, lim, found, last = e.jobs[j], e.limits[0], np.int64(0), np.int64(0)
    while job.nodes < job.hash_count:
        i = job.hash_start + job.nodes
        full = np.int64(e.node_blocks[e.hash_ids[i]])
        done = min(tokens // lim.block_size - job.before, full)
        if done < job.filled or (done == job.filled and done < full):
            break
        if done > job.filled and lim.scheduler == SGLANG:
            found = _adopt(e, c, j, i, done, found)
        if done > job.filled:
            s = _hash(e, c, j, i, done)
            if lim.scheduler == SGLANG:
                _join(e, last, s)
            last = s
        _fill(e, j, done)
        if job.filled > 0:
            break
    _part(e, found)
    job.named = max(job.named, job.nodes)


@inner
def _adopt(e, c, j, i, blocks, found):
    """SGLang: take what others have computed of the first *blocks* blocks of a node in place of job *j*'s own. Returns
    the last slot of it, or *found* without."""
    cache, key, held = e.caches[c], e.hash_ids[i], np.int64(e.held[i])
    blocks = min(blocks, blocks_from(e, find(e, cache, key)))
    if blocks > held:
        found = pin(e, cache, key, blocks)
        unpin(e, cache, key, held)
        e.jobs[j].own -= blocks - held
        e.jobs[j].filled = e.held[i] = blocks
        give(cache, blocks - held)
    return found


@inner
def common(e, i, j):
    """Return the tokens of whole blocks that jobs *i* and *j* begin with both."""
    a, b, n, blocks = e.jobs[i], e.jobs[j], 0, 0
    while n < min(a.hash_count, b.hash_count) and e.hash_ids[a.hash_start + n] == e.hash_ids[b.hash_start + n]:
        blocks += e.node_blocks[e.hash_ids[a.hash_start + n]]
        n += 1
    return blocks * e.limits[0].block_size


@inner
def _hash(e, c, j, i, blocks):
    """Hash what job *j* has computed of its *i*-th node up to *blocks* blocks: found from now on, or copies where
    equal blocks are found already. Returns the slot of those that are found."""
    cache, key, job = e.caches[c], np.int64(e.hash_ids[i]), e.jobs[j]
    first, new, s = find(e, cache, key), blocks - job.filled, np.int64(0)
    job.own -= new
    if e.held[i] == job.filled and blocks_from(e, first) == job.filled:
        s = _extend(e, cache, key, first, new, NONE)
        e.held[i] = blocks
    else:
        _extend(e, cache, _copies(key), np.int64(0), new, j)
    _promote(e, cache, key)
    note(e, c, key, blocks_from(e, find(e, cache, key)))
    return s


@inner
def _extend(e, cache, key, s, blocks, owner):
    """Add *blocks* blocks to the last slot from *s* on if nobody else uses it, or behind it in one of their own.
    Returns the slot."""
    while s != 0 and e.slots[s].more != 0:
        s = np.int64(e.slots[s].more)
    alone = s != 0 and e.slots[s].refs == 1 and e.slots[s].owner == NONE
    if alone and e.limits[0].scheduler != SGLANG:  # which evicts what each pass has added by itself
        e.slots[s].count += blocks
        return s
    s = _unused_slot(e, cache, blocks, np.int64(1))
    _link(e, cache, key, s)
    if owner != NONE:
        e.slots[s].owner, e.slots[s].at = owner, e.jobs[owner].filled
    return s


@inner
def _last_owned(e, s, j, last):
    """Return what job *j* owns from slot *s* on, or slot *last*: the one whose blocks come last in the node."""
    while s != 0:
        if e.slots[s].owner == j and (last == 0 or e.slots[s].at > e.slots[last].at):
            last = s
        s = np.int64(e.slots[s].more)
    return last


@inner
def _release_owned(e, cache, key, j):
    """Give up what job *j* has computed of node *key* beside what it holds, the last block first."""
    while True:
        s = _last_owned(e, find(e, cache, key), j, np.int64(0))
        s = _last_owned(e, find(e, cache, _copies(key)), j, s)
        if s == 0:
            return
        e.slots[s].owner = NONE
        _let_go(e, cache, s)


@inner
def release(e, c, j):
    """Give up all blocks of job *j*, the last first."""
    job, cache = e.jobs[j], e.caches[c]
    for i in range(min(job.nodes, job.hash_count - 1), -1, -1):
        key, held = np.int64(e.hash_ids[job.hash_start + i]), np.int64(e.held[job.hash_start + i])
        if (e.node_blocks[key] if i < job.nodes else job.filled) > held:
            _release_owned(e, cache, key, j)
        if held > 0:
            unpin(e, cache, key, held)
            e.held[job.hash_start + i] = 0
    give(cache, job.own)
    job.own = job.blocks = job.nodes = job.before = job.filled = 0
