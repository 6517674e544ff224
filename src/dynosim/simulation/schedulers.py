"""What goes into the next pass: the schedulers of vLLM V1, TensorRT-LLM and SGLang. Compiled.

As in vLLM V1 there is no prefill phase and no decode phase: a request knows ``input + generated`` tokens and has
computed ``ctx`` of them; a pass moves ``ctx`` forward, and when it has caught up a token comes out.

Sources: vLLM ``v1/core/sched/scheduler.py``; TensorRT-LLM ``capacityScheduler`` (GUARANTEED_NO_EVICT); SGLang
``managers/{scheduler,schedule_policy,schedule_batch}.py``. SGLang's engine takes the blocks of a whole context at
admission.
"""

from __future__ import annotations

import math

from dynosim.simulation import kv_cache, queues, tiers
from dynosim.simulation.compiled import inner
from dynosim.simulation.state import (
    BATCH_SLOTS,
    KV_BLOCKS,
    KV_LINK,
    LANDED,
    LOADED,
    LOCAL,
    MOVING,
    NO_EVICT,
    NONE,
    REMOTE,
    RESERVED,
    SGLANG,
    TOKEN_BUDGET,
)

CLIP_OUTPUT_TOKENS = 4096
"""SGLang keeps room for at most this many tokens still to come of one request (CLIP_MAX_NEW_TOKENS)."""
RETRACT_STEPS = 20
"""SGLang retracts until the others can decode this many steps (SGLANG_RETRACT_DECODE_STEPS)."""


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
def _remove(e, r, i):
    """Take the *i*-th running job out of the batch."""
    rep = e.rows[r]
    for k in range(i, rep.n_running - 1):
        e.running[r, k] = e.running[r, k + 1]
    rep.n_running -= 1


@inner
def preempt(e, r, i):
    """Take the blocks of the *i*-th running job away: all of it is to be computed again. Returns the job."""
    rep = e.rows[r]
    j = e.running[r, i]
    job = e.jobs[j]
    _remove(e, r, i)
    kv_cache.register(e, rep.cache, j, job.ctx)
    kv_cache.release(e, rep.cache, j)
    job.ctx = job.chunk = job.prefilling = 0
    job.preemptions += 1
    job.visible = rep.now
    if math.isnan(job.preempted_at):
        job.preempted_at = rep.now
        if job.generated > 0:
            job.stall_s += rep.stalled - job.stall_mark
    if job.generated > 0 and math.isnan(job.gap_from):
        job.gap_from = rep.last_end
    return j


@inner
def _decode_tokens(e, j):
    """Tokens of a decode in one pass: the drafts need a token to start from."""
    return e.limits[0].tokens_per_decode if e.jobs[j].generated > 0 else 1


# ---------------------------------------------------------------------------------------------------------- admission


@inner
def _whole(e, job):
    """Tokens that job *job* needs blocks for until it ends, the drafts of its last pass included."""
    return job.input + job.output + e.limits[0].tokens_per_decode - 1


@inner
def _promised(e, r):
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
def _wanted(e, j, tokens):
    """Tokens that must have blocks before job *j* is admitted with *tokens* of them."""
    job, lim = e.jobs[j], e.limits[0]
    if lim.scheduler == NO_EVICT:
        return _whole(e, job)
    if lim.scheduler == SGLANG or lim.reserve_full:
        return max(tokens, job.input + job.generated)
    return tokens


@inner
def _hold(e, r, j, matched, hit, tokens):
    """Give job *j* the matched nodes and new blocks up to *tokens* tokens."""
    job, c = e.jobs[j], e.rows[r].cache
    kv_cache.hold(e, c, j, matched)
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
def reserve(e, r, j):
    """Reserve the blocks of a prompt that will be copied in, one generated token included; False when short."""
    job, rep = e.jobs[j], e.rows[r]
    hit, matched, pinned = kv_cache.match(e, rep.cache, j, job.input)
    wanted = blocks_of(e, _wanted(e, j, job.input + 1)) - hit // e.limits[0].block_size
    if wanted > cache_of(e, r).free_blocks - pinned - _promised(e, r):
        return False
    _hold(e, r, j, matched, hit, job.input + 1)
    job.cached, job.kv, job.scheduled = hit, MOVING, rep.now
    set_aside(e, r, j, 1)
    return True


@inner
def _load(e, r, j, hit, matched, pinned):
    """Send for the part of the prompt that lower tiers have; returns NONE if they have none, 0 when blocks are short,
    else the tokens that will be there."""
    job, rep = e.jobs[j], e.rows[r]
    total = job.input + job.generated
    if e.limits[0].tiers == 0 or tiers.extend(e, r, j, matched, total, False) <= hit:
        return NONE
    wanted = blocks_of(e, _wanted(e, j, total + 1)) - hit // e.limits[0].block_size
    if wanted > cache_of(e, r).free_blocks - pinned - _promised(e, r):
        return 0
    _hold(e, r, j, matched, hit, total + 1)
    if math.isnan(job.scheduled):
        job.cached = hit
    tiers.load(e, r, j, matched, total, rep.now)
    set_aside(e, r, j, 1)
    return job.ctx


@inner
def _start(e, r, j, hit, chunk):
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
    job.ctx, job.chunk, job.prefilling, job.kv = hit, chunk, 1, LOCAL
    kv_cache.register(e, rep.cache, j, hit + chunk)


@inner
def _continue(e, r, j, budget):
    """Put a job whose KV has arrived into the batch; returns its tokens."""
    rep, job = e.rows[r], e.jobs[j]
    set_aside(e, r, j, -1)
    if job.kv == LANDED:
        job.kv, job.chunk, job.stall_mark = LOCAL, 1, rep.stalled
    else:
        _start(e, r, j, job.ctx, min(job.input + job.generated - job.ctx, budget))
    return job.chunk


@inner
def _admit(e, r, j, budget):
    """Admit job *j* with its first chunk if blocks and budget allow; returns (its tokens or 0, what is short)."""
    lim, job, rep = e.limits[0], e.jobs[j], e.rows[r]
    total = job.input + job.generated
    hit, matched, pinned = kv_cache.match(e, rep.cache, j, total)
    coming = _load(e, r, j, hit, matched, pinned)
    if coming != NONE:
        return coming, KV_BLOCKS
    chunk = total - hit
    if chunk > budget:
        if not lim.chunked and chunk <= lim.max_num_batched_tokens:
            return 0, TOKEN_BUDGET
        chunk = budget
    wanted = blocks_of(e, _wanted(e, j, hit + chunk)) - hit // lim.block_size
    if wanted > cache_of(e, r).free_blocks - pinned - _promised(e, r):
        return 0, KV_BLOCKS
    _hold(e, r, j, matched, hit, hit + chunk)
    _start(e, r, j, hit, chunk)
    return chunk, 0


# --------------------------------------------------------------------------------------------------- vLLM, TensorRT-LLM


@inner
def _victim(e, r):
    """Return (row, index) of the running job that is preempted first: of the largest key, the latest admitted.

    The lanes of a pipeline are one batch here, as in vLLM: if each preempted its own, they could do so in turns for
    ever. Who was admitted first is safe from all others, so that somebody always gets on.
    """
    q, lim = e.rows[r].queue, e.limits[0]
    row, v = r, e.rows[r].n_running - 1
    if not lim.ordered and lim.lanes == 1:
        return row, v
    for lane in range(q, q + lim.lanes):
        for i in range(e.rows[lane].n_running):
            job, worst = e.jobs[e.running[lane, i]], e.jobs[e.running[row, v]]
            if job.key > worst.key or (job.key == worst.key and job.order > worst.order):
                row, v = lane, i
    return row, v


@inner
def _leave_pass(e, row, v):
    """A job that is preempted while its pass is on its way does not get its token."""
    j = e.running[row, v]
    job = e.jobs[j]
    alone = job.generated == 0 or not math.isnan(job.gap_from)
    if job.chunk > 0 and not job.prefilling and not alone and j >= e.limits[0].warmup:
        e.rows[row].n_measured -= 1


@inner
def _schedule_running(e, r):
    """Give every running job its tokens and blocks, in order; returns (tokens left in the budget, preempted)."""
    rep, lim, preempted, i = e.rows[r], e.limits[0], False, 0
    budget = lim.max_num_batched_tokens
    while i < rep.n_running:
        j = e.running[r, i]
        job = e.jobs[j]
        wanted = job.input + job.generated - job.ctx if job.prefilling else _decode_tokens(e, j)
        job.chunk = min(wanted, budget)
        if blocks_of(e, job.ctx + job.chunk) - job.blocks > cache_of(e, r).free_blocks:
            row, v = _victim(e, r)
            if row != r:
                _leave_pass(e, row, v)
            elif v < i:
                budget += e.jobs[e.running[r, v]].chunk
                i -= 1
            queues.push_preempted(e, rep.queue, preempt(e, row, v))
            preempted = True
            continue
        grow(e, r, j, job.ctx + job.chunk)
        if job.prefilling:
            kv_cache.register(e, rep.cache, j, job.ctx + job.chunk)
        budget -= job.chunk
        i += 1
    return budget, preempted


@inner
def _schedule_waiting(e, r, budget):
    """Move the head of the queue into the batch, again and again; returns what is short, or NONE."""
    rep = e.rows[r]
    q = rep.queue
    while e.rows[q].wait_head != NONE:
        if rep.n_running >= e.limits[0].max_num_seqs:
            return BATCH_SLOTS
        before, j = queues.candidate(e, q)
        kv, chunk = e.jobs[j].kv, 0
        if kv == REMOTE:
            if not reserve(e, r, j):
                return KV_BLOCKS
        elif budget <= 0:
            return TOKEN_BUDGET
        elif kv == LOCAL:
            chunk, short = _admit(e, r, j, budget)
            if chunk == 0:
                return short
        else:
            chunk = _continue(e, r, j, budget)
        queues.leave(e, q, before, j)
        budget -= _enter(e, r, j, chunk)
    return NONE


@inner
def _enter(e, r, j, chunk):
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


@inner
def schedule(e, r):
    """Choose the tokens of row *r*'s next pass; returns (preempted, what the head of the queue is short of)."""
    if e.limits[0].scheduler == SGLANG:
        return _schedule_sglang(e, r)
    budget, preempted = _schedule_running(e, r)
    if preempted and e.rows[r].n_running > 0:
        return True, KV_BLOCKS
    if e.limits[0].batch_wait_iters > 0 and _waits_for_company(e, r):
        return preempted, TOKEN_BUDGET
    return preempted, _schedule_waiting(e, r, budget)


@inner
def _waits_for_company(e, r):
    """Whether prompts stay in the queue while others decode, until there are tokens for a full pass or they have waited
    long enough (TensorRT-LLM's ``PyExecutor._waiting_requests``)."""
    rep, lim = e.rows[r], e.limits[0]
    queue, tokens, decodes = e.rows[rep.queue], 0, 0
    for i in range(rep.n_running):
        decodes += not e.jobs[e.running[r, i]].prefilling
        tokens += e.jobs[e.running[r, i]].chunk
    j = queue.wait_head
    while j != NONE:
        tokens += e.jobs[j].input + e.jobs[j].generated
        j = e.jobs[j].next
    full = rep.n_running >= lim.max_num_seqs
    if queue.wait_head == NONE or decodes == 0 or full or tokens >= lim.batch_wait_tokens:
        rep.batch_waits = 0
        return False
    rep.batch_waits = 0 if rep.batch_waits >= lim.batch_wait_iters else rep.batch_waits + 1
    return rep.batch_waits > 0


# ------------------------------------------------------------------------------------------------------------- SGLang


@inner
def _ratio(e, r):
    """Share of the outputs to come that admission keeps tokens for; decays with every decode pass."""
    lim, rep = e.limits[0], e.rows[r]
    return max(rep.ratio_base - rep.ratio_steps * lim.ratio_decay, lim.min_ratio)


@inner
def _output_to_come(e, j):
    return min(e.jobs[j].output - e.jobs[j].generated, CLIP_OUTPUT_TOKENS)


@inner
def _count_decodes(e, r):
    """Return (decodes in the batch, tokens kept for what they still generate); nobody has tokens in the pass yet."""
    rep, decodes, to_come = e.rows[r], 0, 0
    for i in range(rep.n_running):
        j = e.running[r, i]
        e.jobs[j].chunk = 0
        if not e.jobs[j].prefilling:
            decodes += 1
            to_come += _output_to_come(e, j)
    return decodes, _ratio(e, r) * to_come


@inner
def _whole_pages(e, tokens, room):
    """Tokens of a chunk: all if there is room, else what fills blocks."""
    return tokens if tokens <= room else room // e.limits[0].block_size * e.limits[0].block_size


@inner
def _go_on_with_chunks(e, r, room):
    """Give the prompt that is in the middle of its chunks the next one; returns its tokens."""
    rep = e.rows[r]
    for i in range(rep.n_running):
        j = e.running[r, i]
        job = e.jobs[j]
        if job.prefilling:
            job.chunk = _whole_pages(e, job.input + job.generated - job.ctx, room)
            kv_cache.register(e, rep.cache, j, job.ctx + job.chunk)
            return job.chunk
    return 0


@inner
def _admit_sglang(e, r, j, room, most, kept_free):
    """Admit job *j* if its context and the outputs to come have room; returns (its tokens or 0, what is short, tokens
    that are gone from *kept_free*)."""
    lim, job, rep = e.limits[0], e.jobs[j], e.rows[r]
    total, free = job.input + job.generated, cache_of(e, r).free_blocks
    hit, matched, pinned = kv_cache.match(e, rep.cache, j, total)
    coming = _load(e, r, j, hit, matched, pinned)
    if coming != NONE:
        return coming, KV_BLOCKS, 0
    needs = total - hit + _output_to_come(e, j) + pinned * lim.block_size
    short = rep.n_running > 0 and needs >= kept_free
    if short or blocks_of(e, total) - hit // lim.block_size > free - pinned:
        rep.full = 1
        return 0, KV_BLOCKS, 0
    if total - hit >= most:
        return 0, TOKEN_BUDGET, 0
    chunk = _whole_pages(e, total - hit, room)
    if chunk < total - hit and not lim.chunked and total - hit <= lim.max_num_batched_tokens:
        chunk = 0
    if chunk > 0:
        _hold(e, r, j, matched, hit, total)
        _start(e, r, j, hit, chunk)
    return chunk, TOKEN_BUDGET, needs


@inner
def _go_on_sglang(e, r, j, room, most):
    """Put a job whose KV has arrived into the batch; returns (its prefill tokens, tokens gone from those kept free)."""
    job = e.jobs[j]
    if job.kv == LOADED:
        rest = job.input + job.generated - job.ctx
        room = _whole_pages(e, rest, room)
        if room == 0 or rest >= most:
            return 0, 0
    chunk = _continue(e, r, j, room)
    return (chunk if job.prefilling else 0), _output_to_come(e, j)


@inner
def _fill_sglang(e, r, room, room_input, kept_free, begun):
    """Admit from the queue until something is short; returns what. *begun* is what the pass holds of prompts already:
    its first one may be longer than *room_input*, which is ``max_prefill_tokens`` less that."""
    rep = e.rows[r]
    q = rep.queue
    while e.rows[q].wait_head != NONE:
        if rep.n_running >= e.limits[0].max_num_seqs:
            rep.full = 1
            return BATCH_SLOTS
        before, j = queues.candidate(e, q)
        job = e.jobs[j]
        kv, chunk, short, gone = job.kv, 0, KV_BLOCKS, 0.0
        if rep.full and kv != LANDED:
            return KV_BLOCKS
        most = room_input if begun > 0 else 1 << 60
        if kv == REMOTE:
            if not reserve(e, r, j):
                return KV_BLOCKS
        elif kv != LANDED and (room <= 0 or most <= 0):
            return TOKEN_BUDGET
        elif kv == LOCAL:
            chunk, short, gone = _admit_sglang(e, r, j, room, most, kept_free)
            if chunk == 0:
                return short
        else:
            chunk, gone = _go_on_sglang(e, r, j, room, most)
            if chunk == 0 and kv == LOADED:
                return TOKEN_BUDGET
        queues.leave(e, q, before, j)
        chunk = _enter(e, r, j, chunk)
        room, room_input, kept_free, begun = room - chunk, room_input - chunk, kept_free - gone, begun + chunk
        if job.prefilling and job.ctx + job.chunk < job.input + job.generated:
            return TOKEN_BUDGET
    return NONE


@inner
def _decode_needs(e, r, steps):
    """Blocks that the decodes of row *r* lack for their next pass (*steps* 0) or for *steps* more tokens."""
    rep, need = e.rows[r], 0
    for i in range(rep.n_running):
        j = e.running[r, i]
        job = e.jobs[j]
        if not job.prefilling:
            need += max(blocks_of(e, job.ctx + (steps if steps > 0 else _decode_tokens(e, j))) - job.blocks, 0)
    return need


@inner
def _fewest_generated(e, r):
    """Index of the decode that loses least: fewest tokens generated, then longest prompt, then last; NONE without."""
    rep, v = e.rows[r], NONE
    for i in range(rep.n_running):
        job = e.jobs[e.running[r, i]]
        if job.prefilling:
            continue
        best = e.jobs[e.running[r, v]]
        if v == NONE or (job.generated, -job.input) <= (best.generated, -best.input):
            v = i
    return v


@inner
def _retract(e, r, decodes):
    """Take decodes out until the others have blocks; returns whether any was."""
    rep, cache, retracted = e.rows[r], cache_of(e, r), False
    while decodes > 0:
        enough = _decode_needs(e, r, 0) <= cache.free_blocks
        if enough and (not retracted or decodes == 1 or _decode_needs(e, r, RETRACT_STEPS) <= cache.free_blocks):
            break
        queues.insert(e, rep.queue, preempt(e, r, _fewest_generated(e, r)))
        retracted, decodes = True, decodes - 1
    return retracted


@inner
def _raise_ratio(e, r):
    """Estimate the share of outputs to come anew after a retraction (``retract_decode``)."""
    rep, done, most, n = e.rows[r], 0, 0, 0
    for i in range(rep.n_running):
        job = e.jobs[e.running[r, i]]
        if not job.prefilling:
            done, most, n = done + job.generated, most + job.output, n + 1
    rep.ratio_base, rep.ratio_steps, rep.full = min(1.0, (done + RETRACT_STEPS * n) / (most + 1)), 0, 0


@inner
def _schedule_sglang(e, r):
    """Form a batch; where retraction leaves nobody in it, those that it has made room for form another."""
    retracted, short = _form_batch(e, r)
    again = retracted
    while again and e.rows[r].n_running == 0:
        again, short = _form_batch(e, r)
    return retracted, short


@inner
def _form_batch(e, r):
    """A prefill batch if one can be formed, else a decode pass; with mixed chunks both together."""
    lim, rep = e.limits[0], e.rows[r]
    if rep.n_running == 0:
        rep.ratio_base, rep.ratio_steps, rep.full = lim.init_ratio, 0, 0
    decodes, kept = _count_decodes(e, r)
    mixed = decodes if lim.mixed_chunk else 0
    room, free = lim.max_num_batched_tokens - mixed, cache_of(e, r).free_blocks * lim.block_size
    chunk = _go_on_with_chunks(e, r, room)
    short = _fill_sglang(e, r, room - chunk, lim.max_prefill_tokens - mixed - chunk, free - kept, chunk)
    prefill, decodes = 0, 0
    for i in range(rep.n_running):
        job = e.jobs[e.running[r, i]]
        prefill += job.chunk if job.prefilling else 0
        decodes += not job.prefilling
    retracted = False
    if prefill == 0 or lim.mixed_chunk:
        retracted = _retract(e, r, decodes)
        if retracted:
            _raise_ratio(e, r)
        _decode_all(e, r)
    else:
        _pause_decodes(e, r)
    return retracted, short


@inner
def _decode_all(e, r):
    """Give every decode its tokens and blocks."""
    rep = e.rows[r]
    for i in range(rep.n_running):
        j = e.running[r, i]
        job = e.jobs[j]
        if not job.prefilling:
            job.chunk = _decode_tokens(e, j)
            grow(e, r, j, job.ctx + job.chunk)


@inner
def _pause_decodes(e, r):
    rep = e.rows[r]
    for i in range(rep.n_running):
        job = e.jobs[e.running[r, i]]
        job.chunk = job.chunk if job.prefilling else 0
