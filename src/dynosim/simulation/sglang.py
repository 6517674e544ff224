"""What goes into the next pass under SGLang: prefill batches first, decodes otherwise. Compiled.

A request gets the blocks of its whole context at admission. Sources: SGLang
``managers/{scheduler,schedule_policy,schedule_batch}.py``.
"""

from __future__ import annotations

from dynosim.simulation import admission, kv_cache, queues
from dynosim.simulation.compiled import inner
from dynosim.simulation.state import BATCH_SLOTS, KV_BLOCKS, LANDED, LOADED, LOCAL, NONE, REMOTE, TOKEN_BUDGET

CLIP_OUTPUT_TOKENS = 4096
"""Room is kept for at most this many tokens still to come of one request (CLIP_MAX_NEW_TOKENS)."""
RETRACT_STEPS = 20
"""Retraction goes on until the others can decode this many steps (SGLANG_RETRACT_DECODE_STEPS)."""


@inner
def _ratio(e, r):
    """Share of the outputs to come that admission keeps tokens for; decays with every decode pass."""
    lim, rep = e.limits[0], e.rows[r]
    return max(rep.ratio_base - rep.ratio_steps * lim.ratio_decay, lim.min_ratio)


@inner
def _output_to_come(e, j):
    return min(e.jobs[j].output - e.jobs[j].generated, CLIP_OUTPUT_TOKENS)


@inner
def _decodes(e, j):
    return not e.jobs[j].prefilling and not e.jobs[j].ended


@inner
def _count_decodes(e, r):
    """Return (decodes in the batch, tokens kept for what they still generate); nobody has tokens in the pass yet."""
    rep, decodes, to_come = e.rows[r], 0, 0
    for i in range(rep.n_running):
        j = e.running[r, i]
        e.jobs[j].chunk = 0
        if _decodes(e, j):
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
def _admit(e, r, j, room, most, kept_free):
    """Admit job *j* if its context and the outputs to come have room; returns (its tokens or 0, what is short, tokens
    that are gone from *kept_free*)."""
    lim, job, rep = e.limits[0], e.jobs[j], e.rows[r]
    total, free = job.input + job.generated, admission.cache_of(e, r).free_blocks
    hit, matched, pinned = kv_cache.match(e, rep.cache, j, total)
    coming = admission.load(e, r, j, hit, matched, pinned)
    if coming != NONE:
        return coming, KV_BLOCKS, 0
    needs = total - hit + _output_to_come(e, j) + pinned * lim.block_size
    short = rep.n_running > 0 and needs >= kept_free
    if short or admission.blocks_of(e, total) - hit // lim.block_size > free - pinned:
        rep.full = 1
        return 0, KV_BLOCKS, 0
    if total - hit >= most:
        return 0, TOKEN_BUDGET, 0
    chunk = _whole_pages(e, total - hit, room)
    if chunk < total - hit and not lim.chunked and total - hit <= lim.max_num_batched_tokens:
        chunk = 0
    if chunk > 0:
        admission.hold(e, r, j, matched, hit, total)
        admission.start(e, r, j, hit, chunk)
    return chunk, TOKEN_BUDGET, needs


@inner
def _go_on(e, r, j, room, most):
    """Put a job whose KV has arrived into the batch; returns (its prefill tokens, tokens gone from those kept free)."""
    job = e.jobs[j]
    if job.kv == LOADED:
        rest = job.input + job.generated - job.ctx
        room = _whole_pages(e, rest, room)
        if room == 0 or rest >= most:
            return 0, 0
    chunk = admission.go_on(e, r, j, room)
    return (chunk if job.prefilling else 0), _output_to_come(e, j)


@inner
def _fill(e, r, room, room_input, kept_free, begun):
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
            if not admission.reserve(e, r, j):
                return KV_BLOCKS
        elif kv != LANDED and (room <= 0 or most <= 0):
            return TOKEN_BUDGET
        elif kv == LOCAL:
            chunk, short, gone = _admit(e, r, j, room, most, kept_free)
            if chunk == 0:
                return short
        else:
            chunk, gone = _go_on(e, r, j, room, most)
            if chunk == 0 and kv == LOADED:
                return TOKEN_BUDGET
        queues.leave(e, q, before, j)
        chunk = admission.enter(e, r, j, chunk)
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
        if _decodes(e, j):
            need += max(
                admission.blocks_of(e, job.ctx + (steps if steps > 0 else admission.decode_tokens(e, j))) - job.blocks,
                0,
            )
    return need


@inner
def _fewest_generated(e, r):
    """Index of the decode that loses least: fewest tokens generated, then longest prompt, then last; NONE without."""
    rep, v = e.rows[r], NONE
    for i in range(rep.n_running):
        job = e.jobs[e.running[r, i]]
        if not _decodes(e, e.running[r, i]):
            continue
        best = e.jobs[e.running[r, v]]
        if v == NONE or (job.generated, -job.input) <= (best.generated, -best.input):
            v = i
    return v


@inner
def _retract(e, r, decodes):
    """Take decodes out until the others have blocks; returns whether any was."""
    rep, cache, retracted = e.rows[r], admission.cache_of(e, r), False
    while decodes > 0:
        enough = _decode_needs(e, r, 0) <= cache.free_blocks
        if enough and (not retracted or decodes == 1 or _decode_needs(e, r, RETRACT_STEPS) <= cache.free_blocks):
            break
        v = _fewest_generated(e, r)
        queues.insert(e, rep.queue, admission.preempt(e, r, v, e.jobs[e.running[r, v]].ctx))
        retracted, decodes = True, decodes - 1
    return retracted


@inner
def _raise_ratio(e, r):
    """Estimate the share of outputs to come anew after a retraction (``retract_decode``)."""
    rep, done, most, n = e.rows[r], 0, 0, 0
    for i in range(rep.n_running):
        job = e.jobs[e.running[r, i]]
        if _decodes(e, e.running[r, i]):
            done, most, n = done + job.generated, most + job.output, n + 1
    rep.ratio_base, rep.ratio_steps, rep.full = min(1.0, (done + RETRACT_STEPS * n) / (most + 1)), 0, 0


@inner
def schedule(e, r):
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
    room, free = lim.max_num_batched_tokens - mixed, admission.cache_of(e, r).free_blocks * lim.block_size
    chunk = _go_on_with_chunks(e, r, room)
    short = _fill(e, r, room - chunk, lim.max_prefill_tokens - mixed - chunk, free - kept, chunk)
    prefill, decodes = 0, 0
    for i in range(rep.n_running):
        job = e.jobs[e.running[r, i]]
        prefill += job.chunk if job.prefilling else 0
        decodes += _decodes(e, e.running[r, i])
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
        if _decodes(e, j):
            job.chunk = admission.decode_tokens(e, j)
            admission.grow(e, r, j, job.ctx + job.chunk)


@inner
def _pause_decodes(e, r):
    rep = e.rows[r]
    for i in range(rep.n_running):
        job = e.jobs[e.running[r, i]]
        job.chunk = job.chunk if job.prefilling else 0
