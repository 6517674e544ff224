"""Blocks and admission: what every scheduler shares. Compiled."""

from __future__ import annotations

import math

from dynosim.simulation import kv_cache, tiers
from dynosim.simulation.compiled import inner
from dynosim.simulation.state import (
    BY_TRANSFER,
    KV_LINK,
    LANDED,
    LOADED,
    LOCAL,
    MOVING,
    NO_EVICT,
    NONE,
    RESERVED,
    SGLANG,
)


@inner
def blocks_of(e, tokens):
    """Return the blocks that hold *tokens* tokens."""
    return (tokens + e.limits[0].block_size - 1) // e.limits[0].block_size


@inner
def emit(e, time, kind, j):
    """Report an event to the cluster."""
    event = e.events[e.limits[0].n_events]
    event.time, event.kind, event.job = time, kind, j
    e.limits[0].n_events += 1


@inner
def cache_of(e, r):
    """Return the KV cache of row *r*."""
    return e.caches[e.rows[r].cache]


@inner
def grow(e, r, j, tokens):
    """Take the blocks that job *j* lacks for its first *tokens* tokens."""
    job = e.jobs[j]
    need = blocks_of(e, tokens) - job.blocks
    if need > 0:
        kv_cache.take(e, e.rows[r].cache, need)
        job.own += need
        job.blocks += need


@inner
def running(e, r):
    """Running requests of all lanes of row *r*'s queue."""
    requests, queue = 0, e.rows[r].queue
    for lane in range(queue, queue + e.limits[0].lanes):
        requests += e.rows[lane].n_running
    return requests


@inner
def leave_batch(e, r, i):
    """Take the *i*-th running job out of the batch."""
    rep = e.rows[r]
    for k in range(i, rep.n_running - 1):
        e.running[r, k] = e.running[r, k + 1]
    rep.n_running -= 1


@inner
def known_tokens(e, j):
    """Computed tokens of job *j* that its engine knows: one that chooses ahead has not seen the last decode's yet."""
    job = e.jobs[j]
    if e.limits[0].scheduler == SGLANG and e.limits[0].overlap:
        return 0  # more than its prompt is found only when it has left
    return job.ctx - (e.limits[0].overlap > 0 and not job.prefilling and not job.fresh)


@inner
def preempt(e, r, i, tokens):
    """Take the blocks of the *i*-th running job away, *tokens* tokens of which are hashed: all of it is to be computed
    again, unless it has ended. Returns the job."""
    rep = e.rows[r]
    j = e.running[r, i]
    job = e.jobs[j]
    leave_batch(e, r, i)
    kv_cache.register(e, rep.cache, j, tokens)
    kv_cache.release(e, rep.cache, j)
    job.preemptions += 1
    if job.ended:
        job.ended = 0
        rep.n_ended -= 1
        return j
    job.ctx = job.chunk = job.prefilling = 0
    job.visible = rep.now
    if math.isnan(job.preempted_at):
        job.preempted_at = rep.now
        if job.generated > 0:
            job.stall_s += rep.stalled - job.stall_mark
    if job.generated > 0 and math.isnan(job.gap_from):
        job.gap_from = rep.last_end
    return j


@inner
def decode_tokens(e, j):
    """Tokens of a decode in one pass: the drafts need a token to start from."""
    return e.limits[0].tokens_per_decode if e.jobs[j].generated > 0 else 1


# ---------------------------------------------------------------------------------------------------------- admission


@inner
def _whole(e, job):
    """Tokens that job *job* needs blocks for until it ends, the drafts of its last pass included."""
    return job.input + job.output + e.limits[0].tokens_per_decode - 1


@inner
def promised(e, r):
    """Blocks that requests of row *r*'s cache will still take until they end, all at their full length (no-evict)."""
    lim, q = e.limits[0], e.rows[r].queue
    if lim.scheduler != NO_EVICT:
        return 0
    total = e.rows[q].reserved_blocks
    for lane in range(q, q + lim.lanes):
        for i in range(e.rows[lane].n_running):
            job = e.jobs[e.running[lane, i]]
            total += blocks_of(e, _whole(e, job)) - job.blocks
    return total


@inner
def wanted(e, j, tokens):
    """Tokens that must have blocks before job *j* is admitted with *tokens* of them."""
    job, lim = e.jobs[j], e.limits[0]
    if lim.scheduler == NO_EVICT:
        return _whole(e, job)
    if lim.scheduler == SGLANG or lim.reserve_full:
        return max(tokens, job.input + job.generated)
    return tokens


@inner
def hold(e, r, j, matched, hit, tokens):
    """Give job *j* the matched nodes and new blocks up to *tokens* tokens."""
    job, c = e.jobs[j], e.rows[r].cache
    kv_cache.hold(e, c, j, matched, hit // e.limits[0].block_size)
    need = blocks_of(e, tokens) - hit // e.limits[0].block_size
    kv_cache.take(e, c, need)
    job.own, job.blocks = need, need + hit // e.limits[0].block_size


@inner
def set_aside(e, r, j, sign):
    """No-evict: what job *j* will take beyond the blocks it holds while it is in no batch."""
    job = e.jobs[j]
    if e.limits[0].scheduler == NO_EVICT:
        e.rows[e.rows[r].queue].reserved_blocks += sign * (blocks_of(e, _whole(e, job)) - job.blocks)


@inner
def has_seat(e, r):
    """Whether one more prompt computed elsewhere may be on its way to row *r*'s queue."""
    return running(e, r) + e.rows[e.rows[r].queue].n_coming < e.limits[0].most_held


@inner
def reserve(e, r, j):
    """Reserve the blocks of a prompt that will be copied in, one generated token included; False when short."""
    job, rep = e.jobs[j], e.rows[r]
    hit, matched, pinned = kv_cache.match(e, rep.cache, j, job.input)
    need = blocks_of(e, wanted(e, j, job.input + 1)) - hit // e.limits[0].block_size
    if need > cache_of(e, r).free_blocks - pinned - promised(e, r):
        return False
    hold(e, r, j, matched, hit, job.input + 1)
    job.cached, job.kv, job.scheduled = hit, MOVING, rep.now
    e.rows[rep.queue].n_coming += 1
    set_aside(e, r, j, 1)
    return True


@inner
def load(e, r, j, hit, matched, pinned):
    """Send for the part of the prompt that lower tiers have; returns NONE if they have none, 0 when blocks are short,
    else the tokens that will be there."""
    job, rep = e.jobs[j], e.rows[r]
    total = job.input + job.generated
    if e.limits[0].tiers == 0 or tiers.extend(e, r, j, matched, total, False) <= hit:
        return NONE
    need = blocks_of(e, wanted(e, j, total + 1)) - hit // e.limits[0].block_size
    if need > cache_of(e, r).free_blocks - pinned - promised(e, r):
        return 0
    hold(e, r, j, matched, hit, total + 1)
    if math.isnan(job.scheduled):
        job.cached = hit
    tiers.load(e, r, j, matched, total, rep.now)
    set_aside(e, r, j, 1)
    return job.ctx


@inner
def start(e, r, j, hit, chunk):
    """Job *j* begins, or begins again, to compute its prompt behind *hit* tokens."""
    rep, job = e.rows[r], e.jobs[j]
    if math.isnan(job.scheduled):
        job.scheduled = rep.now
        if job.kv == LOADED:
            e.job_waits[j, KV_LINK] += rep.now - job.load_from
        else:
            job.cached = hit
            job.cached_host = job.cached_disk = job.cached_remote = 0  # of a load that a crash has cut off
    elif job.generated == 0 and not math.isnan(job.preempted_at):
        job.preempted_prefill_s += rep.now - job.preempted_at
        job.preempted_at = math.nan
    job.ctx, job.chunk, job.prefilling, job.fresh, job.kv = hit, chunk, 1, 0, LOCAL
    if e.limits[0].scheduler != SGLANG:
        kv_cache.register(e, rep.cache, j, hit + chunk)


@inner
def go_on(e, r, j, budget):
    """Put a job whose KV has arrived into the batch; returns its tokens."""
    rep, job = e.rows[r], e.jobs[j]
    set_aside(e, r, j, -1)
    if job.kv == LANDED:
        job.kv, job.chunk, job.stall_mark = LOCAL, 1, rep.stalled
        e.rows[rep.queue].n_coming -= 1
        if e.limits[0].first_token == BY_TRANSFER:
            job.first = job.gap_from = rep.now
    else:
        start(e, r, j, job.ctx, min(job.input + job.generated - job.ctx, budget))
    return job.chunk


@inner
def enter(e, r, j, chunk):
    """Put a job that was taken off the queue where it belongs; returns the tokens it takes of this pass."""
    kv = e.jobs[j].kv
    if kv == MOVING:
        emit(e, e.rows[r].now, RESERVED, j)
    if kv != LOCAL:
        return 0
    e.running[r, e.rows[r].n_running] = j
    e.rows[r].n_running += 1
    queue = e.rows[e.rows[r].queue]
    e.jobs[j].order = queue.orders
    queue.orders += 1
    return chunk
