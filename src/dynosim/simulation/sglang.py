"""What goes into the next pass under SGLang: prefill batches first, decodes otherwise. Compiled.

Under overlapped scheduling a pass is chosen before the result of the one on its way is known: its tokens are not
counted yet (``unseen``), its prompts are found by nobody, and who ends with it keeps place and blocks. Sources: SGLang
0.5.23, ``managers/{scheduler,schedule_policy,schedule_batch}.py`` and ``mem_cache/prefill_budget.py``.
"""

from __future__ import annotations

import math

import numpy as np

from dynosim.simulation import admission, kv_cache, queues, tiers
from dynosim.simulation.compiled import inner
from dynosim.simulation.gaps import record_gaps
from dynosim.simulation.state import BATCH_SLOTS, KV_BLOCKS, LANDED, LOADED, LOCAL, NONE, REMOTE, TOKEN_BUDGET

CLIP_OUTPUT_TOKENS = 4096
"""Room is kept for at most this many tokens still to come of one request (CLIP_MAX_NEW_TOKENS)."""
RETRACT_STEPS = 20
"""Tokens that a retraction supposes of all that stay, and evicts for (SGLANG_RETRACT_DECODE_STEPS)."""
FEW_CACHED_TOKENS = 32
"""A request that finds at most these waits behind all others if it shares at least
``IN_BATCH_TOKENS`` with an earlier such one, and so will find them (IN_BATCH_PREFIX_CACHING_CHECK_THRESHOLD)."""
IN_BATCH_TOKENS = 32
"""IN_BATCH_PREFIX_CACHING_DEPRIORITIZE_THRESHOLD."""
REFRESH_PASSES = 32
"""Passes after which what waiting requests would find counts as used again (WAITING_PREFIX_REFRESH_INTERVAL)."""
LAST_PLACE = 1 << 30
UNKNOWN = -2


@inner
def _pages(e, tokens):
    """Tokens of the whole pages that hold *tokens* tokens."""
    return admission.blocks_of(e, tokens) * e.limits[0].block_size


@inner
def _generated(job):
    return job.generated - job.unseen


# ------------------------------------------------------------------------------------------------- what has come before


@inner
def _look_back(e, r):
    """Take the pass before out of the batch, and note what this choice cannot know of it; returns the decodes."""
    rep, decodes, unfinished, others = e.rows[r], 0, 0, 0
    for i in range(rep.n_running):
        job = e.jobs[e.running[r, i]]
        job.unseen = e.limits[0].overlap > 0 and job.chunk > 0 and not job.prefilling
        unfinished += job.prefilling
        others += job.chunk == 0
        decodes += not job.prefilling
        job.chunk = 0
    if decodes == 0 or (rep.prefill_tokens > 0 and (unfinished > 0 or others == 0)):
        rep.full = 0  # of the batch that the prefilled ones have joined, unless it was there before them
    if rep.n_running == 0 and (rep.now > rep.last_end or rep.passes == 0):
        rep.ratio_base, rep.ratio_steps = e.limits[0].init_ratio, 0
    return decodes


@inner
def _checkpoint(e, r, ended):
    """Let others find what prompts have so far, and with *ended* those whose prefill ended in the last pass."""
    rep = e.rows[r]
    for i in range(rep.n_running):
        j = e.running[r, i]
        if e.jobs[j].blocks > 0 and (e.jobs[j].prefilling or (ended and e.jobs[j].fresh)):
            kv_cache.register(e, rep.cache, j, min(e.jobs[j].input, e.jobs[j].ctx))  # a leaf ends with the prompt
            kv_cache.register(e, rep.cache, j, e.jobs[j].ctx)
            e.jobs[j].fresh = 0
            tiers.store(e, r, j, rep.now)


@inner
def _to_come(e, j):
    return min(e.jobs[j].output - _generated(e.jobs[j]), CLIP_OUTPUT_TOKENS)


@inner
def _kept(e, r):
    """Tokens kept for what the decodes still generate: the share of it that decays with every decode pass."""
    lim, rep, to_come = e.limits[0], e.rows[r], 0
    for i in range(rep.n_running):
        if not e.jobs[e.running[r, i]].prefilling:
            to_come += _to_come(e, e.running[r, i])
    return max(rep.ratio_base - rep.ratio_steps * lim.ratio_decay, lim.min_ratio) * to_come


# ---------------------------------------------------------------------------------------------- the order of the queue


@inner
def _waits_for_prefix(e, q, j):
    """Whether job *j*, which finds hardly anything, would find more after an earlier one of its kind."""
    i = e.rows[q].wait_head
    while i != j:
        if -FEW_CACHED_TOKENS <= e.jobs[i].place <= 0 and kv_cache.common(e, i, j) >= IN_BATCH_TOKENS:
            return True
        i = e.jobs[i].next
    return False


@inner
def _look_over(e, q):
    """Put the queue in order, and keep what it would find in the cache (``calc_priority``)."""
    queue = e.rows[q]
    if e.limits[0].longest_prefix and queue.n_waiting <= queues.LONGEST_PREFIX_LIMIT:
        _longest_prefix_first(e, q)
    elif queue.n_waiting > 0:
        if queue.refreshes % REFRESH_PASSES == 0:
            _refresh(e, q)
        queue.refreshes += 1


@inner
def _refresh(e, q):
    """Use what the first that wait would find, that of the very first last (``_touch_waiting_prefixes``)."""
    j, before, n = e.rows[q].wait_head, np.int64(NONE), 0
    while j != NONE and n < queues.LONGEST_PREFIX_LIMIT:
        e.jobs[j].later = before
        j, before, n = np.int64(e.jobs[j].next), j, n + 1
    while before != NONE:
        job = e.jobs[before]
        kv_cache.touch(e, e.rows[q].cache, before, job.input + job.generated + 1)
        before = np.int64(job.later)


@inner
def _longest_prefix_first(e, q):
    """Sort the queue (``_sort_by_longest_prefix``)."""
    j = e.rows[q].wait_head
    while j != NONE:
        job = e.jobs[j]
        kv_cache.touch(e, e.rows[q].cache, j, job.input + job.generated + 1)
        job.place = -kv_cache.match(e, e.rows[q].cache, j, job.input + job.generated)[0]
        if job.kv == LANDED or job.kv == LOADED:
            job.place = -LAST_PLACE
        elif job.place >= -FEW_CACHED_TOKENS and _waits_for_prefix(e, q, j):
            job.place = LAST_PLACE
        j = job.next
    queues.sort(e, q)


# ----------------------------------------------------------------------------------- room without a cache of prefixes


@inner
def _tokens_left(e, j):
    return e.jobs[j].output - _generated(e.jobs[j])


@inner
def _by_end(e, first, j, later):
    """Insert job *j* where it ends in the list of those that end before or after it; returns its first. One that comes
    *later* and ends last is put before the last (so does ``add_req_state``)."""
    left, before, last, i = _tokens_left(e, j), np.int64(NONE), np.int64(NONE), first
    while i != NONE and _tokens_left(e, i) + later <= left:
        before, last, i = last, i, np.int64(e.jobs[i].later)
    if later and i == NONE and last != NONE:
        i, last = last, before
    e.jobs[j].later = i
    if last == NONE:
        return j
    e.jobs[last].later = j
    return first


@inner
def _all_by_end(e, r, j):
    """Return the first of job *j* and all that run, in the order in which they end."""
    rep, first = e.rows[r], _by_end(e, np.int64(NONE), j, 0)
    for prefilling in range(2):
        for i in range(rep.n_running):
            if e.jobs[e.running[r, i]].prefilling == prefilling:
                first = _by_end(e, first, e.running[r, i], 0)
    return first


@inner
def _fits_until_all_end(e, first, room):
    """Whether *room* tokens are enough for those from *first* on, as each frees its own when it ends."""
    i, n, freed = first, 0, 0
    while i != NONE:
        i, n = np.int64(e.jobs[i].later), n + 1
    i = first
    while i != NONE:
        if room + freed - _tokens_left(e, i) * n <= n:
            return False
        freed += e.jobs[i].input + _generated(e.jobs[i])
        i, n = np.int64(e.jobs[i].later), n - 1
    return True


@inner
def _foreseen(e, r, j, first, left, left_now):
    """Without a cache of prefixes, and where lengths are known: whether job *j* fits beside those that run, of whom
    *first* ends first (``add_one_req_ignore_eos``). Returns (whether, who ends first now)."""
    need = _pages(e, e.jobs[j].input + e.jobs[j].generated) + e.limits[0].block_size
    if need > min(left, left_now):
        return False, first
    first = _all_by_end(e, r, j) if first == UNKNOWN else _by_end(e, first, j, 1)
    return _fits_until_all_end(e, first, left_now - need), first


# ----------------------------------------------------------------------------------------------------------- prefills


@inner
def _cut(e, begin, tokens, room):
    """Tokens of the first chunk of *tokens* behind *begin*: all if their pages have room, else to the end of one."""
    lim = e.limits[0]
    if (tokens if lim.foresees or not lim.chunked else _pages(e, tokens)) <= room:
        return tokens
    if not lim.chunked and tokens <= lim.max_num_batched_tokens:
        return 0
    if lim.foresees:
        return room
    return (begin + room // lim.block_size * lim.block_size) // lim.block_size * lim.block_size - begin


@inner
def _go_on_with_chunks(e, r, room, left):
    """Give the prompt that is in the middle of its chunks the next one, as far as *room* and the *left* tokens of KV
    cache go; returns (its tokens, those kept for its answer)."""
    rep, free = e.rows[r], admission.cache_of(e, r).free_blocks
    if 1 <= left < room:
        room = np.int64(left)
    for i in range(rep.n_running):
        j = e.running[r, i]
        job = e.jobs[j]
        if job.prefilling:
            rest = job.input + job.generated - job.ctx
            job.chunk = min(rest, max(room, 0), (job.blocks + free) * e.limits[0].block_size - job.ctx)
            admission.grow(e, r, j, job.ctx + job.chunk)
            return np.int64(job.chunk), min(np.int64(job.output), CLIP_OUTPUT_TOKENS) if job.chunk == rest else 0
    return 0, 0


@inner
def _admit(e, r, j, room, most, left, fits):
    """Admit job *j* if its context and the outputs to come fit into *left* tokens and its first chunk into *room*.
    Returns (its tokens or 0, what is short, pinned tokens)."""
    lim, job, rep = e.limits[0], e.jobs[j], e.rows[r]
    total, free = job.input + job.generated, admission.cache_of(e, r).free_blocks
    kv_cache.touch(e, rep.cache, j, total)
    hit, matched, pinned = kv_cache.match(e, rep.cache, j, total)
    coming = admission.load(e, r, j, hit, matched, pinned)
    if coming != NONE:
        return coming, KV_BLOCKS, 0
    needs = total - hit + _to_come(e, j) + lim.block_size + pinned * lim.block_size
    crowded = rep.n_running > 0 and (not fits if lim.foresees else needs >= left)
    if crowded or admission.blocks_of(e, total) - hit // lim.block_size > free - pinned:
        rep.full = rep.n_running > 0
        return 0, KV_BLOCKS, 0
    if not lim.chunked and _pages(e, total - hit) >= most:
        return 0, TOKEN_BUDGET, 0
    chunk = _cut(e, hit, total - hit, room)
    if chunk > 0:
        # Where others may take blocks between its chunks, a context has them all from the start: it must not get stuck.
        shared = lim.lanes > 1 or lim.remote or lim.tiers > 0
        admission.hold(e, r, j, matched, hit, total if shared else hit + chunk)
        admission.start(e, r, j, hit, chunk)
    return max(chunk, 0), TOKEN_BUDGET, pinned * lim.block_size


@inner
def _go_on(e, r, j, room, most):
    """Put a job whose KV has arrived into the batch; returns its prefill tokens."""
    job = e.jobs[j]
    if job.kv == LOADED:
        rest = job.input + job.generated - job.ctx
        room = _cut(e, job.ctx, rest, room)
        if room <= 0 or (not e.limits[0].chunked and _pages(e, rest) >= most):
            return 0
    chunk = admission.go_on(e, r, j, room)
    return chunk if job.prefilling else 0


@inner
def _fill(e, r, room, room_input, left, left_now, begun):
    """Admit from the queue until something is short; returns what. *room* and *room_input* are what the pass has left
    of the chunk and of ``max_prefill_tokens``; *left* is what the KV cache has without the tokens kept for outputs to
    come, *left_now* with them; *begun* is whether a prompt is in the pass already."""
    rep, lim, first, q = e.rows[r], e.limits[0], np.int64(UNKNOWN), e.rows[r].queue
    while e.rows[q].wait_head != NONE:
        j = e.rows[q].wait_head
        job, kv, chunk, short, pinned, answer = e.jobs[j], e.jobs[j].kv, 0, KV_BLOCKS, 0, 0
        if kv != LANDED and min(left, left_now) > 0 and (room <= 0 or room_input <= 0):
            return TOKEN_BUDGET
        if rep.n_running >= lim.max_num_seqs:
            rep.full = 1
            return BATCH_SLOTS
        if rep.full and kv != LANDED:
            return KV_BLOCKS
        if kv == REMOTE:
            if not admission.has_seat(e, r):
                return BATCH_SLOTS
            if not admission.reserve(e, r, j):
                return KV_BLOCKS
        elif kv == LOCAL:
            fits = True
            if lim.foresees:
                fits, first = _foreseen(e, r, j, first, left, left_now)
            chunk, short, pinned = _admit(e, r, j, room, room_input if begun else 1 << 60, left, fits)
            if chunk == 0:
                return short
        else:
            chunk = _go_on(e, r, j, room, room_input if begun else 1 << 60)
            if chunk == 0 and kv == LOADED:
                return TOKEN_BUDGET
            left -= _to_come(e, j) if kv == LANDED else 0
        queues.leave(e, q, NONE, j)
        chunk = admission.enter(e, r, j, chunk)
        if chunk > 0:
            begun, pages = True, _pages(e, chunk)
            if job.ctx + chunk == job.input + job.generated:
                answer = min(job.output, CLIP_OUTPUT_TOKENS)
            room, room_input = room - pages, room_input - pages
            left, left_now = left - pages - lim.block_size - pinned - answer, left_now - pages - lim.block_size - pinned
            if min(left, left_now) <= 0:
                rep.full = 1
                return KV_BLOCKS
    return NONE


@inner
def _prefill(e, r, decodes):
    """Form a prefill batch; returns (its tokens, what the head of the queue is short of)."""
    lim, rep = e.limits[0], e.rows[r]
    mixed = decodes if lim.mixed_chunk else 0
    room, room_input = lim.max_num_batched_tokens - mixed, lim.max_prefill_tokens - mixed
    free = admission.cache_of(e, r).free_blocks * lim.block_size - mixed
    left = free - _kept(e, r)
    chunk, answer = _go_on_with_chunks(e, r, room, left)
    if chunk > 0 or (not rep.full and (lim.ordered or rep.n_running < lim.max_num_seqs)):
        _look_over(e, rep.queue)
    taken = _pages(e, chunk) + (lim.block_size if chunk > 0 else 0)
    short = _fill(
        e, r, room - _pages(e, chunk), room_input - _pages(e, chunk), left - taken - answer, free - taken, chunk > 0
    )
    return _evict_for(e, r), short


@inner
def _evict_for(e, r):
    """Evict what SGLang evicts for the prefill batch, a page more than needed for each of its prompts; returns its
    tokens."""
    tokens, generous, taken, size = 0, 0, 0, e.limits[0].block_size
    for i in range(e.rows[r].n_running):
        job = e.jobs[e.running[r, i]]
        if job.prefilling and job.chunk > 0:
            tokens += job.chunk
            generous += job.chunk + (size if size > 1 else 0)
            taken += admission.blocks_of(e, job.ctx + job.chunk) - admission.blocks_of(e, job.ctx)
    kv_cache.make_room(e, e.rows[r].cache, admission.blocks_of(e, generous) - taken)
    return tokens


# ------------------------------------------------------------------------------------------------------------ decodes


@inner
def _decodes(job):
    return not job.prefilling and not job.ended


@inner
def _n_decodes(e, r):
    decodes = 0
    for i in range(e.rows[r].n_running):
        decodes += _decodes(e.jobs[e.running[r, i]])
    return decodes


@inner
def _missing_blocks(e, r):
    """Blocks that the decodes of row *r* lack for their next pass."""
    need = 0
    for i in range(e.rows[r].n_running):
        j = e.running[r, i]
        if _decodes(e.jobs[j]):
            tokens = e.jobs[j].ctx + admission.decode_tokens(e, j)
            need += max(admission.blocks_of(e, tokens) - e.jobs[j].blocks, 0)
    return need


@inner
def _fewest_generated(e, r):
    """Index of the decode that loses least: fewest tokens generated, then longest prompt, then last; NONE without."""
    rep, v = e.rows[r], NONE
    for i in range(rep.n_running):
        job = e.jobs[e.running[r, i]]
        best = e.jobs[e.running[r, v]]
        if _decodes(job) and (v == NONE or (_generated(job), -job.input) <= (_generated(best), -best.input)):
            v = i
    return v


@inner
def _forget_unseen(e, r, j):
    """The token of a pass on its way is lost on who is retracted meanwhile, and with it its gap."""
    job, rep = e.jobs[j], e.rows[r]
    if job.unseen and job.generated > 1:
        gap_s = rep.last_end - rep.last_start if math.isnan(job.gap_s) else job.gap_s
        job.gap_from = rep.last_end - gap_s
        if j >= e.limits[0].warmup:
            record_gaps(e.gap_count, e.gap_sum, e.gap_range, gap_s, 0.0, 1, -1)
    job.generated -= job.unseen
    if job.unseen and job.generated == 0:
        job.first = math.nan
    elif job.unseen and job.generated == 1:
        job.second = math.nan
    job.unseen = 0


@inner
def _retract(e, r, decodes):
    """Take decodes out until the others have blocks for their next pass."""
    cache = admission.cache_of(e, r)
    while decodes > 0 and _missing_blocks(e, r) > cache.free_blocks:
        v = _fewest_generated(e, r)
        _forget_unseen(e, r, e.running[r, v])
        queues.insert(e, e.rows[r].queue, admission.preempt(e, r, v, 0))
        decodes -= 1
        kv_cache.make_room(e, e.rows[r].cache, admission.blocks_of(e, RETRACT_STEPS * decodes))


@inner
def _raise_ratio(e, r):
    """Estimate the share of outputs to come anew after a retraction, whose pass does not count yet."""
    rep, done, most, n = e.rows[r], 0, 0, 0
    for i in range(rep.n_running):
        job = e.jobs[e.running[r, i]]
        if _decodes(job):
            done, most, n = done + _generated(job), most + job.output, n + 1
    rep.ratio_base, rep.ratio_steps, rep.full = min(1.0, (done + RETRACT_STEPS * n) / (most + 1)), -1, 0


@inner
def _decode(e, r):
    """Form a decode pass; returns whether somebody is retracted for it. Where blocks are short and others end with the
    pass before, nobody decodes until those have left."""
    rep = e.rows[r]
    short = _missing_blocks(e, r) > admission.cache_of(e, r).free_blocks
    if short and rep.n_ended > 0:
        return False
    if short:
        _retract(e, r, _n_decodes(e, r))
        _raise_ratio(e, r)
    _decode_all(e, r)
    return short


@inner
def _decode_all(e, r):
    """Give every decode its tokens and blocks; SGLang evicts a whole page for each of them."""
    rep = e.rows[r]
    kv_cache.make_room(e, rep.cache, _n_decodes(e, r))
    for i in range(rep.n_running):
        j = e.running[r, i]
        job = e.jobs[j]
        if _decodes(job):
            job.chunk = admission.decode_tokens(e, j)
            admission.grow(e, r, j, job.ctx + job.chunk)


@inner
def evict_for_last(e, r, passes):
    """Evict what SGLang evicts in a run of *passes* decode passes, the last of which asks for most."""
    rep = e.rows[r]
    if admission.cache_of(e, r).empty >= rep.n_decode * (admission.blocks_of(e, passes) + 1):
        return
    for i in range(rep.n_running):
        j = e.running[r, i]
        admission.grow(e, r, j, e.jobs[j].ctx + passes - 1)
    kv_cache.make_room(e, rep.cache, rep.n_decode)


@inner
def _pause_decodes(e, r):
    rep = e.rows[r]
    for i in range(rep.n_running):
        job = e.jobs[e.running[r, i]]
        job.chunk = job.chunk if job.prefilling else 0


# -------------------------------------------------------------------------------------------------------------- batch


@inner
def schedule(e, r):
    """Choose the tokens of row *r*'s next pass; returns (retracted, what the head of the queue is short of)."""
    overlap = e.limits[0].overlap > 0
    _checkpoint(e, r, not overlap)
    retracted, short = _form_batch(e, r)
    again = retracted
    while (
        again and e.rows[r].n_running == 0
    ):  # nobody is left: those that retraction has made room for take their place
        again, short = _form_batch(e, r)
    if overlap:
        _checkpoint(e, r, True)
    return retracted, short


@inner
def _form_batch(e, r):
    """A prefill batch if one can be formed, else a decode pass; with mixed chunks both together where KV allows."""
    prefill, short = _prefill(e, r, _look_back(e, r))
    if e.limits[0].ordered:
        e.rows[r].full = 0  # priorities are looked at in every pass
    if prefill == 0:
        return _decode(e, r), short
    if e.limits[0].mixed_chunk and _missing_blocks(e, r) <= admission.cache_of(e, r).free_blocks:
        _decode_all(e, r)
    else:
        _pause_decodes(e, r)
    return False, short
