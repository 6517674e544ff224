"""What goes into the next pass under vLLM V1, and under TensorRT-LLM, which shares its token budget. Compiled.

As in vLLM V1 there is no prefill phase and no decode phase: a request knows ``input + generated`` tokens and has
computed ``ctx`` of them; a pass moves ``ctx`` forward, and when it has caught up a token comes out.

Sources: vLLM 0.32 ``v1/core/sched/scheduler.py``; TensorRT-LLM ``capacityScheduler`` (GUARANTEED_NO_EVICT).
"""

from __future__ import annotations

import math

import numpy as np

from dynosim.simulation import admission, kv_cache, queues
from dynosim.simulation.compiled import inner
from dynosim.simulation.state import BATCH_SLOTS, KV_BLOCKS, LOCAL, NONE, REMOTE, TOKEN_BUDGET


@inner
def _longest_chunk(e, r):
    """Most prompt tokens of one request in row *r*'s next pass: all of it for one that is alone."""
    lim, requests = e.limits[0], e.rows[e.rows[r].queue].n_waiting + admission.running(e, r)
    if lim.long_prefill_tokens == 0 or requests <= 1:
        return np.int64(1 << 60)
    fair = lim.max_num_batched_tokens // requests if lim.long_prefill_adaptive else np.int64(0)
    return max(lim.long_prefill_tokens, fair)


@inner
def _admit(e, r, j, budget, longest):
    """Admit job *j* with its first chunk if blocks and budget allow; returns (its tokens or 0, what is short)."""
    lim, job, rep = e.limits[0], e.jobs[j], e.rows[r]
    total = job.input + job.generated
    hit, matched, pinned = kv_cache.match(e, rep.cache, j, total)
    coming = admission.load(e, r, j, hit, matched, pinned)
    if coming != NONE:
        return coming, KV_BLOCKS
    chunk = min(total - hit, longest)
    if chunk > budget:
        if not lim.chunked and chunk <= lim.max_num_batched_tokens:
            return 0, TOKEN_BUDGET
        chunk = budget
    wanted = admission.blocks_of(e, admission.wanted(e, j, hit + chunk)) - hit // lim.block_size
    wanted += lim.watermark_blocks if admission.running(e, r) > 0 else 0
    if wanted > admission.cache_of(e, r).free_blocks - pinned - admission.promised(e, r):
        return 0, KV_BLOCKS
    admission.hold(e, r, j, matched, hit, hit + chunk)
    admission.start(e, r, j, hit, chunk)
    return chunk, 0


# --------------------------------------------------------------------------------------------------- vLLM, TensorRT-LLM


@inner
def _victim(e, r):
    """Return (row, index) of the running job that is preempted first: the last admitted, or that of the largest (key,
    arrival), the first such.

    The lanes of a pipeline are one batch here, as in vLLM: if each preempted its own, they could do so in turns for
    ever. Who was admitted first is safe from all others, so that somebody always gets on.
    """
    q, lim = e.rows[r].queue, e.limits[0]
    row, v = r, e.rows[r].n_running - 1
    if not lim.ordered and lim.lanes == 1:
        return row, v
    row, v = NONE, NONE
    for lane in range(q, q + lim.lanes):
        for i in range(e.rows[lane].n_running):
            if v == NONE or _goes_after(e, e.running[lane, i], e.running[row, v]):
                row, v = lane, np.int64(i)
    return row, v


@inner
def _goes_after(e, i, j):
    """Whether job *i* is a better victim than job *j*."""
    a, b = e.jobs[i], e.jobs[j]
    if not e.limits[0].ordered:
        return a.order > b.order
    return a.key > b.key or (a.key == b.key and a.arrived > b.arrived)


@inner
def _leave_pass(e, row, v):
    """A job that is preempted while its pass is on its way does not get its token."""
    j = e.running[row, v]
    job = e.jobs[j]
    alone = job.generated == 0 or not math.isnan(job.gap_from)
    if job.chunk > 0 and not job.prefilling and not alone and j >= e.limits[0].warmup:
        e.rows[row].n_measured -= 1


@inner
def _hashed_tokens(e, j):
    """Tokens of job *j* that are hashed once its tokens of the next pass are chosen: all but those not known yet."""
    job = e.jobs[j]
    return min(job.ctx + job.chunk, job.input + job.generated - (e.limits[0].overlap > 0 and not job.prefilling))


@inner
def _make_room(e, r, i):
    """Preempt somebody for the *i*-th running job, those before which have their tokens of the pass; returns (the
    job's place now, or NONE if it was the victim itself; tokens that are free again)."""
    row, v = _victim(e, r)
    victim = e.jobs[e.running[row, v]]
    tokens, freed, itself = admission.known_tokens(e, e.running[row, v]), np.int64(0), row == r and v == i
    if row != r:
        _leave_pass(e, row, v)
    elif v < i:
        freed = np.int64(victim.chunk)
        tokens = _hashed_tokens(e, e.running[row, v])
    ended = victim.ended
    j = admission.preempt(e, row, v, tokens)
    if not ended:
        queues.push_preempted(e, e.rows[r].queue, j)
    return (NONE if itself else i - (row == r and v < i)), freed


@inner
def _lacks_blocks(e, r, j, tokens):
    """Whether row *r* has too few free blocks for *tokens* more tokens of job *j*."""
    job = e.jobs[j]
    return admission.blocks_of(e, job.ctx + tokens) - job.blocks > admission.cache_of(e, r).free_blocks


@inner
def _schedule_running(e, r, longest):
    """Give every running job its tokens and blocks, in order; returns (tokens left in the budget, preempted)."""
    rep, preempted, i = e.rows[r], False, np.int64(0)
    for k in range(rep.n_running):
        e.jobs[e.running[r, k]].chunk = 0
    budget = e.limits[0].max_num_batched_tokens
    while i < rep.n_running:
        j = e.running[r, i]
        job = e.jobs[j]
        if not job.ended:
            wanted = job.input + job.generated - job.ctx
            chunk = min(min(wanted, longest) if job.prefilling else admission.decode_tokens(e, j), budget)
            while i != NONE and _lacks_blocks(e, r, j, chunk):
                i, freed = _make_room(e, r, i)
                budget, preempted = budget + freed, True
            if i == NONE:
                break  # vLLM 0.32: the others have no tokens in this pass
            job.chunk = chunk
            admission.grow(e, r, j, job.ctx + chunk)
            kv_cache.register(e, rep.cache, j, _hashed_tokens(e, j))
            budget -= chunk
        i += 1
    return budget, preempted


@inner
def _schedule_waiting(e, r, budget, longest):
    """Move the head of the queue into the batch, again and again; returns what is short, or NONE."""
    rep = e.rows[r]
    q = rep.queue
    while e.rows[q].wait_head != NONE:
        if rep.n_running >= e.limits[0].max_num_seqs:
            return BATCH_SLOTS
        before, j = queues.candidate(e, q)
        kv, chunk = e.jobs[j].kv, 0
        if kv == REMOTE:
            if not admission.has_seat(e, r):
                return BATCH_SLOTS
            if not admission.reserve(e, r, j):
                return KV_BLOCKS
        elif budget <= 0:
            return TOKEN_BUDGET
        elif kv == LOCAL:
            chunk, short = _admit(e, r, j, budget, longest)
            if chunk == 0:
                return short
        else:
            chunk = admission.go_on(e, r, j, budget)
        queues.leave(e, q, before, j)
        budget -= admission.enter(e, r, j, chunk)
    return NONE


@inner
def schedule(e, r):
    """Choose the tokens of row *r*'s next pass; returns (preempted, what the head of the queue is short of)."""
    longest = _longest_chunk(e, r)
    budget, preempted = _schedule_running(e, r, longest)
    if preempted:
        return True, KV_BLOCKS
    if e.limits[0].batch_wait_iters > 0 and _waits_for_company(e, r):
        return preempted, TOKEN_BUDGET
    if e.rows[r - r % e.limits[0].ranks].held:
        return preempted, TOKEN_BUDGET
    return preempted, _schedule_waiting(e, r, budget, longest)


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


@inner
def hold_prompts(e, g):
    """Decide whether prompts stay in the queues of the rows that start with *g*, so that all ranks compute some in one
    pass (TensorRT-LLM's ``PyExecutor._balance_adp_requests``). The wait counts passes, with or without prompts."""
    lim, first, prompts, decodes, seats = e.limits[0], e.rows[g], 0, 0, 0
    for r in range(g, g + lim.ranks):
        rep, decoding = e.rows[r], 0
        for i in range(rep.n_running):
            decoding += not e.jobs[e.running[r, i]].prefilling
        prompts += rep.n_running > decoding or e.rows[rep.queue].wait_head != NONE
        decodes += decoding > 0
        seats += decoding < lim.max_num_seqs
    if prompts == lim.ranks and seats == lim.ranks:
        first.batch_waits = 0
        first.held = decodes == lim.ranks and first.rank_waits < lim.balance_wait_iters
        first.rank_waits = first.rank_waits + 1 if first.held else 0
        return
    first.batch_waits += 1
    first.held = decodes == lim.ranks and first.batch_waits < lim.balance_iters
    if not first.held:
        first.batch_waits = 0
