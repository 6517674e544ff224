"""Continuous batching: a row plans its next pass and commits it; pure decode passes are jumped over exactly. Compiled.

``plan`` lets the scheduler choose the next forward pass (``vllm``, ``sglang``) and knows when it ends; ``commit`` makes
its effects visible. While a batch only decodes, nothing is decided between passes: plan then covers k passes at once,
up to the first finish, arrival or block shortage. Their total time is closed form because a pass is piecewise linear in
the batch's total context (``timing.base``). Ranks step through their passes one by one, as the slowest may change;
pipelines and speculative decoding plan every pass.
"""

from __future__ import annotations

import math

import numpy as np

from dynosim.simulation import admission, index, kv_cache, queues, sglang, tiers, vllm
from dynosim.simulation.admission import blocks_of, cache_of, emit, grow
from dynosim.simulation.compiled import inner
from dynosim.simulation.gaps import record_gaps
from dynosim.simulation.passes import pass_time_together, run_decodes, stall, through_stages
from dynosim.simulation.state import (
    BATCH_SLOTS,
    DECODE_BUSY,
    FINISHED,
    KV_BLOCKS,
    NONE,
    PREFILL_BUSY,
    PREFILL_DONE,
    PROMPT_DONE,
    SGLANG,
)

# ---------------------------------------------------------------------------------------------------------------- plan


@inner
def leader(e, r):
    """First of the rows that plan and commit together with row *r*."""
    return r - r % e.limits[0].ranks


@inner
def _start(e, r):
    """When row *r* may start its next pass: inf when there is nothing to do."""
    rep = e.rows[r]
    queue = e.rows[rep.queue]
    if rep.n_running > 0:
        start = rep.now
    elif queue.wait_head != NONE:
        start = max(rep.now, e.jobs[queue.wait_head].visible)
    else:
        start = max(rep.now, queues.next_arrival(e, rep.queue))
    if e.limits[0].lanes > 1:
        start = max(start, e.stage_free[rep.queue, 0])
    return start


@inner
def start_together(e, g):
    """When the rows that start with *g* may start their next pass."""
    start = math.inf
    for r in range(g, g + e.limits[0].ranks):
        start = min(start, _start(e, r))
    return start


@inner
def _count_batch(e, r):
    """Sum up the planned pass; returns the passes until a decode finishes, or 1 if a gap is to be noted by itself."""
    rep, warmup = e.rows[r], e.limits[0].warmup
    rep.n_decode = rep.n_measured = rep.decode_tokens = 0
    rep.prefill_tokens = rep.context = longest = 0
    left = 1 << 60
    for i in range(rep.n_running):
        j = e.running[r, i]
        job = e.jobs[j]
        if job.prefilling:
            rep.prefill_tokens += job.chunk
        elif job.chunk > 0:
            rep.n_decode += 1
            rep.decode_tokens += job.chunk
            alone = job.generated == 0 or not math.isnan(job.gap_from)
            rep.n_measured += j >= warmup and not alone
            rep.context += job.ctx + job.chunk
            longest = max(longest, job.ctx + job.chunk)
            left = min(left, 1 if alone else job.output - job.generated)
    # Every pass adds a token to each context, so the padded total grows by as much as the total.
    rep.context += int(e.limits[0].skew * (rep.n_decode * longest - rep.context))
    return left


@inner
def _blocks_after(e, r, passes):
    """Blocks that *passes* decode passes take beyond those held."""
    rep, total = e.rows[r], 0
    for i in range(rep.n_running):
        job = e.jobs[e.running[r, i]]
        total += max(blocks_of(e, job.ctx + passes) - job.blocks, 0)
    return total


@inner
def _passes_with_blocks(e, r, passes):
    """Largest number of decode passes, up to *passes*, for which the free blocks suffice."""
    free = cache_of(e, r).free_blocks
    if e.rows[r].n_decode * blocks_of(e, passes) <= free:
        return passes
    low, high = 1, passes + 1
    while high - low > 1:
        mid = (low + high) >> 1
        if _blocks_after(e, r, mid) <= free:
            low = mid
        else:
            high = mid
    return low


@inner
def _row_growth_evicts(e, r, passes):
    """Whether *passes* decode passes of row *r* may take blocks that hold a prefix."""
    return cache_of(e, r).empty < e.rows[r].n_decode * blocks_of(e, passes)


@inner
def growth_evicts(e, g, passes):
    evicts = False
    for r in range(g, g + e.limits[0].ranks):
        evicts |= e.rows[r].n_decode > 0 and _row_growth_evicts(e, r, passes)
    return evicts


@inner
def next_arrival(e, r):
    """When an arrival may change the batch: never while it is full or the head of the queue is blocked, unless it then
    asks for less."""
    rep, lim = e.rows[r], e.limits[0]
    blocked = rep.wait_head != NONE and not lim.ordered and not lim.longest_prefix and not lim.long_prefill_adaptive
    if blocked or rep.full or rep.n_running >= lim.max_num_seqs:
        return math.inf
    return queues.next_arrival(e, r)


@inner
def _wait_reason(e, r, short):
    """Note what those who wait in the queue of row *r* wait for from now on."""
    rep = e.rows[r]
    queue = e.rows[rep.queue]
    if short != NONE:
        queue.reason = short
    elif rep.n_running >= e.limits[0].max_num_seqs:
        queue.reason = BATCH_SLOTS
    elif rep.full:
        queue.reason = KV_BLOCKS
    else:
        queue.reason = PREFILL_BUSY if rep.prefill_tokens > 0 else DECODE_BUSY


@inner
def _let_ended_leave(e, r):
    """Those that the pass before has ended leave now that the next one is chosen (vLLM ``step_with_batch_queue``)."""
    rep, kept = e.rows[r], 0
    if rep.n_ended == 0:
        return
    for i in range(rep.n_running):
        j = e.running[r, i]
        if e.jobs[j].ended:
            e.jobs[j].ended = 0
            if e.jobs[j].blocks > 0:  # not handed off at once
                kv_cache.register(e, rep.cache, j, e.jobs[j].ctx)
            if e.jobs[j].blocks > 0 and e.limits[0].scheduler == SGLANG:
                tiers.store(e, r, j, rep.now)
            if not e.limits[0].hold:
                kv_cache.release(e, rep.cache, j)
        else:
            e.running[r, kept] = j
            kept += 1
    rep.full = 0
    rep.n_left += rep.n_ended
    rep.n_running, rep.n_ended = kept, 0


@inner
def _choose(e, r, now, seen):
    """Let row *r*, to which those who came by *seen* are known, choose its next pass; returns how many decode passes
    nothing can change in, as far as it knows."""
    rep = e.rows[r]
    rep.now = now
    e.limits[0].clock = now
    queues.look(e, rep.queue, now, seen)
    preempted, short = sglang.schedule(e, r) if e.limits[0].scheduler == SGLANG else vllm.schedule(e, r)
    rep.n_left = preempted
    _let_ended_leave(e, r)
    left = _count_batch(e, r)
    _wait_reason(e, r, short)
    if rep.n_left > 0 and e.rows[rep.queue].wait_head != NONE:
        return 1  # who waits may have their places in the pass after this one
    if rep.n_decode == 0 or rep.prefill_tokens > 0:
        return left
    if preempted or e.limits[0].lanes > 1 or e.limits[0].tokens_per_decode > 1 or rep.n_decode < rep.n_running:
        return 1
    counts = e.limits[0].batch_wait_iters > 0 and e.rows[rep.queue].wait_head != NONE
    if counts or e.limits[0].balance_iters > 0:
        return 1  # it counts passes
    if e.limits[0].scheduler == SGLANG and e.limits[0].ordered and e.rows[rep.queue].wait_head != NONE:
        return 1  # priorities are looked at in every pass
    looks = e.limits[0].lag_s > 0.0 or (e.limits[0].longest_prefix and rep.wait_head != NONE)
    if looks and _row_growth_evicts(e, r, left):
        return 1  # the router's index, or the choice of who is next, depends on what is evicted when
    if short != NONE and short != BATCH_SLOTS and _computes_for_head(e, r):
        return 1
    return _passes_with_blocks(e, r, left)


@inner
def _computes_for_head(e, r):
    """Whether a running request of row *r* computes what the head of the queue begins with: it may find more each pass
    and fit then."""
    first = e.rows[e.rows[r].queue].wait_head
    if first == NONE:
        return False
    head = e.jobs[first]
    for i in range(e.rows[r].n_running):
        job = e.jobs[e.running[r, i]]
        both = job.nodes < min(job.hash_count, head.hash_count)
        if both and e.hash_ids[job.hash_start + job.nodes] == e.hash_ids[head.hash_start + job.nodes]:
            return True
    return False


@inner
def _seen_until(e, g, now):
    """Up to when those who came are known to the rows that start with *g*: overlapped scheduling chooses a pass while
    the one before runs, and SGLang may look only every few passes; an idle engine looks at once."""
    lim, rep, running = e.limits[0], e.rows[g], 0
    for r in range(g, g + lim.ranks):
        running += e.rows[r].n_running
    if running > 0 and rep.unpolled < lim.recv_interval:
        return -math.inf
    rep.unpolled = 0
    return rep.last_start if lim.overlap and running > 0 else now


@inner
def some_more(e, g, passes, ahead, most, seconds):
    """Lengthen a run of *passes* decode passes of *seconds* by *ahead*, up to *most*; returns both."""
    if ahead == 0 or passes >= most:
        return passes, seconds
    passes = min(passes + ahead, most)
    return passes, run_decodes(e, g, passes, math.inf, 0)[1]


@inner
def _choose_together(e, g, now, seen):
    """Let the rows that start with *g* choose. Returns (decode passes nothing can change in, decodes, prompt tokens,
    whether to choose again: nothing is in the pass, but somebody has left. vLLM then waits for the pass on its way)."""
    passes, decodes, prefill, left = np.int64(1 << 60), np.int64(0), np.int64(0), np.int64(0)
    if e.limits[0].balance_iters > 0:
        e.limits[0].clock = now
        for r in range(g, g + e.limits[0].ranks):
            queues.look(e, e.rows[r].queue, now, seen)
        vllm.hold_prompts(e, g)
    for r in range(g, g + e.limits[0].ranks):
        passes = min(passes, _choose(e, r, now, seen))
        rep = e.rows[r]
        decodes, prefill, left = decodes + rep.n_decode, prefill + rep.prefill_tokens, left + rep.n_left
    return passes, decodes, prefill, decodes + prefill == 0 and left > 0


@inner
def _has_requests(e, g):
    """Whether somebody runs or waits on the rows that start with *g*: without, the next arrival starts their pass."""
    requests = False
    for r in range(g, g + e.limits[0].ranks):
        requests |= e.rows[r].n_running > 0 or e.rows[e.rows[r].queue].wait_head != NONE
    return requests


@inner
def plan(e, g):
    """Schedule the next pass of the rows that start with *g*, or their next run of pure decode passes."""
    now, lim = start_together(e, g), e.limits[0]
    passes, decodes, prefill, again = _choose_together(e, g, now, _seen_until(e, g, now))
    while again:
        passes, decodes, prefill, again = _choose_together(e, g, now, now)
    slowest, arrival, end = 0.0, math.inf, math.inf
    for r in range(g, g + lim.ranks):
        arrival = min(arrival, next_arrival(e, r))
    if prefill > 0 or (decodes > 0 and (lim.lanes > 1 or lim.tokens_per_decode > 1)):
        slowest = pass_time_together(e, g, prefill)
        passes, end = 1, through_stages(e, g, now, slowest) if lim.lanes > 1 else now + slowest
    elif decodes > 0:
        if lim.recv_interval > 0:
            passes = min(passes, lim.recv_interval - e.rows[g].unpolled)
        most = passes
        passes, seconds = run_decodes(e, g, passes, max(arrival - now, 1e-300), 0)
        passes, seconds = some_more(e, g, passes, lim.overlap if arrival > now else 0, most, seconds)
        end = now + seconds
    for r in range(g, g + lim.ranks):
        rep = e.rows[r]
        rep.planned, rep.passes_planned, rep.end = end < math.inf or _has_requests(e, g), passes, end
        rep.stall_planned = stall(e, r, slowest) if prefill > 0 else 0.0
    if lim.indexed:
        e.evicts[g] = passes > 1 and end < math.inf and growth_evicts(e, g, passes)


# -------------------------------------------------------------------------------------------------------------- commit


@inner
def _finish(e, r, j):
    rep, lim, job = e.rows[r], e.limits[0], e.jobs[j]
    job.last = rep.end
    job.stall_s += rep.stalled - job.stall_mark
    rep.full &= lim.overlap > 0
    rep.finished += 1
    kv_cache.register(e, rep.cache, j, admission.known_tokens(e, j))
    tiers.store(e, r, j, rep.end)
    if not lim.hold:
        _answered(e, r, j, rep.end)
        if not lim.overlap:
            kv_cache.release(e, rep.cache, j)
    if lim.watch:
        emit(e, rep.end, PREFILL_DONE if lim.hold else FINISHED, j)


@inner
def _answered(e, r, j, time):
    """The router counts job *j* to row *r* no more."""
    owner = e.rows[e.rows[r].queue]
    index.leave(e, e.rows[r].queue, j)
    owner.outstanding -= 1
    owner.kv_load -= e.jobs[j].input
    owner.left = max(owner.left, time)


@inner
def let_go(e, j, time):
    """Job *j* of a pool that holds what it has computed needs nothing of its row any more."""
    r = e.jobs[j].row
    _answered(e, r, j, time)
    kv_cache.release(e, e.rows[r].cache, j)


@inner
def _token(e, r, j):
    """A prompt (or a recomputed context) has caught up: its token comes out at the end of the pass."""
    rep, job = e.rows[r], e.jobs[j]
    job.prefilling, job.fresh = 0, 1
    job.stall_mark = rep.stalled
    job.generated += 1
    e.rows[rep.queue].prefill_load -= job.prefill_load
    job.prefill_load = 0
    if e.limits[0].watch_prompts and not e.limits[0].hold:
        emit(e, rep.end, PROMPT_DONE, j)
    if job.generated == 1:
        job.first = rep.end
    elif job.generated == 2:
        job.second = rep.end
    if not math.isnan(job.preempted_at):
        job.preempted_decode_s += rep.end - job.preempted_at
        job.preempted_at = math.nan
    _show_gap(e, j, rep.end)


@inner
def _show_gap(e, j, time):
    """Record a token gap that is longer than one pass: after a hand-off or a preemption."""
    job = e.jobs[j]
    job.gap_s = time - job.gap_from
    if not math.isnan(job.gap_from):
        if j >= e.limits[0].warmup:
            record_gaps(e.gap_count, e.gap_sum, e.gap_range, time - job.gap_from, 0.0, 1, 1)
        job.gap_from = math.nan


@inner
def _early_tokens(e, r, j):
    """Note when the first token (then the run is one pass long) or the second comes out of the planned decodes."""
    rep, job = e.rows[r], e.jobs[j]
    if job.generated == 0:
        job.first = rep.end
    else:
        job.second = rep.now + run_decodes(e, leader(e, r), 1, math.inf, 0)[1]
        _show_gap(e, j, rep.end)


@inner
def _commit_decodes(e, r):
    """Apply the planned decode passes to every running request of row *r*."""
    rep, k = e.rows[r], e.rows[r].passes_planned
    if e.limits[0].scheduler == SGLANG and k > 1:
        sglang.evict_for_last(e, r, k)
    for i in range(rep.n_running):
        j = e.running[r, i]
        job = e.jobs[j]
        if job.generated < 2:
            _early_tokens(e, r, j)
        else:
            _show_gap(e, j, rep.end)
        job.ctx += k
        job.generated += k
        job.fresh = 0
        grow(e, r, j, job.ctx)
    rep.ratio_steps += k


@inner
def _mix(x):
    """One step of splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@inner
def accepted(rates, seed, j, round, most):
    """Draft tokens of job *j* that are accepted in a round, up to *most*: independent of everything else."""
    state = _mix(np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(j + 1))
    for k in range(most):
        draw = _mix(state + np.uint64(round * 64 + k + 1) * np.uint64(0x9E3779B97F4A7C15))
        if (draw >> np.uint64(11)) * (1.0 / 9007199254740992.0) >= rates[min(k, len(rates) - 1)]:
            return k
    return most


@inner
def _decode_once(e, r, j):
    """Apply one pass to a decode: a token, and the drafts that were right."""
    rep, lim, job = e.rows[r], e.limits[0], e.jobs[j]
    tokens = 1
    if job.chunk > 1:
        tokens += accepted(e.accept, lim.seed, j, job.rounds, job.chunk - 1)
        job.rounds += 1
    tokens = min(tokens, job.output - job.generated)
    if job.generated == 0:
        job.first = rep.end
    else:
        _show_gap(e, j, rep.end)
    if job.generated < 2 <= job.generated + tokens:
        job.second = rep.end
    if tokens > 1 and j >= lim.warmup:
        record_gaps(e.gap_count, e.gap_sum, e.gap_range, 0.0, 0.0, 1, tokens - 1)
    job.ctx += tokens
    job.generated += tokens
    job.fresh = 0


@inner
def _commit_pass(e, r):
    """Apply one pass, with whatever is in it."""
    rep = e.rows[r]
    rep.stalled += rep.stall_planned
    rep.ratio_steps += rep.prefill_tokens == 0
    for i in range(rep.n_running):
        j = e.running[r, i]
        job = e.jobs[j]
        if job.prefilling and job.chunk > 0:
            job.ctx += job.chunk
            if job.ctx == job.input + job.generated:
                _token(e, r, j)
            tiers.store(e, r, j, rep.end)
        elif job.chunk > 0:
            _decode_once(e, r, j)
        elif not job.prefilling and job.generated > 0 and math.isnan(job.gap_from):
            job.gap_from = rep.last_end
    if rep.n_measured > 0:
        record_gaps(e.gap_count, e.gap_sum, e.gap_range, rep.end - rep.last_end, 0.0, 1, rep.n_measured)


@inner
def _account(e, r):
    """Add the planned passes to what the row has done."""
    rep, lim, cache = e.rows[r], e.limits[0], cache_of(e, r)
    seconds = rep.end - rep.now
    rep.busy_s += seconds
    rep.passes += rep.passes_planned
    rep.prefill_done_tokens += rep.prefill_tokens
    rep.decode_done_tokens += rep.decode_tokens * rep.passes_planned
    rep.batch_time += seconds * rep.n_decode
    rep.block_time += seconds * (lim.num_blocks - cache.free_blocks)
    if (
        rep.prefill_tokens + rep.decode_tokens > lim.measured_tokens
        or rep.context > lim.measured_context * rep.n_decode
    ):
        rep.extrapolated_s += seconds


@inner
def _record_run(e, g):
    """Note the token gaps of a run of decode passes."""
    weight = 0
    for r in range(g, g + e.limits[0].ranks):
        weight += e.rows[r].n_measured
    if weight > 0:
        run_decodes(e, g, e.rows[g].passes_planned, math.inf, weight)


@inner
def _is_run(e, g):
    """Whether the planned passes are pure decodes, one token each."""
    lim = e.limits[0]
    if lim.lanes > 1 or lim.tokens_per_decode > 1:
        return False
    for r in range(g, g + lim.ranks):
        if e.rows[r].prefill_tokens > 0 or e.rows[r].n_decode < e.rows[r].n_running:
            return False
    return True


@inner
def _clear_out(e, r):
    """Let finished requests leave, in batch order, or stay until the next pass is chosen; get ready for it."""
    rep, kept, late = e.rows[r], 0, e.limits[0].overlap
    for i in range(rep.n_running):
        j = e.running[r, i]
        ended = e.jobs[j].generated >= e.jobs[j].output
        if ended:
            _finish(e, r, j)
            e.jobs[j].ended = late
            rep.n_ended += late
        if late or not ended:
            e.running[r, kept] = j
            kept += 1
    rep.n_running = kept
    rep.now = rep.last_end = rep.end
    rep.planned, rep.end = 0, math.inf


@inner
def commit(e, g):
    """Make the planned passes' effects visible at their end."""
    e.limits[0].clock = e.rows[g].end
    run, last_start = _is_run(e, g), e.rows[g].now
    if e.limits[0].overlap and e.rows[g].passes_planned > 1:
        last_start += run_decodes(e, g, e.rows[g].passes_planned - 1, math.inf, 0)[1]
    if run:
        _record_run(e, g)
    prefill = 0
    for r in range(g, g + e.limits[0].ranks):
        prefill += e.rows[r].prefill_tokens
    e.rows[g].unpolled += e.limits[0].recv_interval if prefill > 0 else e.rows[g].passes_planned
    for r in range(g, g + e.limits[0].ranks):
        _account(e, r)
        if run:
            _commit_decodes(e, r)
        else:
            _commit_pass(e, r)
    for r in range(g, g + e.limits[0].ranks):
        _clear_out(e, r)
        e.rows[r].last_start = last_start
    if e.limits[0].lanes > 1:
        wake(e, e.rows[g].queue, e.rows[g].now)


@inner
def wake(e, q, time):
    """Let the rows of queue *q* that found nothing to do look again."""
    lim = e.limits[0]
    first = leader(e, q)
    for r in range(first, first + max(lim.ranks, lim.lanes)):
        rep = e.rows[r]
        if rep.planned and rep.end == math.inf:
            rep.planned = 0
            rep.now = max(rep.now, time)
