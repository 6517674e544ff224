"""The replica engine: continuous batching on flat arrays, compiled, with exact jumps over decode passes.

One ``Engine`` holds all replicas of one pool. A row alternates ``_plan`` and ``_commit``: plan lets the scheduler
choose the next forward pass (``schedulers``) and knows when it ends; commit makes its effects visible. While a batch
only decodes, nothing is decided between passes: plan then covers k passes at once, up to the first finish, arrival or
block shortage. Their total time is closed form because a pass is piecewise linear in the batch's total context
(``timing.base``). Ranks step through their passes one by one, as the slowest may change; pipelines and speculative
decoding plan every pass.

``next_event`` runs all pools and the links in time order. At equal times copies end first, then passes, then passes
start, so that whatever an end causes can still join.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types

from dynosim.simulation import kv_cache, links, queues, tiers
from dynosim.simulation.compiled import entry, inner, unit
from dynosim.simulation.gaps import record_gaps
from dynosim.simulation.passes import pass_time_together, run_decodes, stall, through_stages
from dynosim.simulation.schedulers import blocks_of, cache_of, emit, grow, schedule, set_aside
from dynosim.simulation.state import (
    BATCH_SLOTS,
    BY_DECODE,
    BY_TRANSFER,
    DECODE_BUSY,
    ENGINE,
    FINISHED,
    HAND_OFF,
    KV_BLOCKS,
    LANDED,
    LOAD,
    LOADED,
    LOCAL,
    MOVING,
    NET_IN,
    NET_OUT,
    NONE,
    NVLINK_IN,
    NVLINK_OUT,
    PREFILL_BUSY,
    PREFILL_DONE,
    RACK_IN,
    RACK_OUT,
    REMOTE,
    RESERVED,
    STORE,
    open_engine,
)

# ---------------------------------------------------------------------------------------------------------------- plan


@inner
def _leader(e, r):
    """First of the rows that plan and commit together with row *r*."""
    return r - r % e.limits[0].ranks


@inner
def _start(e, r):
    """When row *r* may start its next pass: inf when there is nothing to do."""
    rep = e.replicas[r]
    queue = e.replicas[rep.queue]
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
def _start_together(e, g):
    """When the rows that start with *g* may start their next pass."""
    start = math.inf
    for r in range(g, g + e.limits[0].ranks):
        start = min(start, _start(e, r))
    return start


@inner
def _count_batch(e, r):
    """Sum up the planned pass; returns the passes until a decode finishes, or 1 if a gap is to be noted by itself."""
    rep, warmup = e.replicas[r], e.limits[0].warmup
    rep.n_decode = rep.n_measured = rep.decode_tokens = 0
    rep.prefill_tokens = rep.context = 0
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
            left = min(left, 1 if alone else job.output - job.generated)
    return left


@inner
def _blocks_after(e, r, passes):
    """Blocks that *passes* decode passes take beyond those held."""
    rep, total = e.replicas[r], 0
    for i in range(rep.n_running):
        job = e.jobs[e.running[r, i]]
        total += max(blocks_of(e, job.ctx + passes) - job.blocks, 0)
    return total


@inner
def _passes_with_blocks(e, r, passes):
    """Largest number of decode passes, up to *passes*, for which the free blocks suffice."""
    free = cache_of(e, r).free_blocks
    if e.replicas[r].n_decode * blocks_of(e, passes) <= free:
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
def _growth_evicts(e, r, passes):
    """Whether so many decode passes of row *r* may take blocks that hold a prefix."""
    head = e.slots[cache_of(e, r).lru_head]
    return head.key >= 0 or head.count < e.replicas[r].n_decode * blocks_of(e, passes)


@inner
def _growth_evicts_any(e, g, passes):
    evicts = False
    for r in range(g, g + e.limits[0].ranks):
        evicts |= e.replicas[r].n_decode > 0 and _growth_evicts(e, r, passes)
    return evicts


@inner
def _next_arrival(e, r):
    """When an arrival may change the batch: never while it is full or the head of the queue is blocked."""
    rep, lim = e.replicas[r], e.limits[0]
    blocked = rep.wait_head != NONE and not lim.ordered and not lim.longest_prefix
    if blocked or rep.full or rep.n_running >= lim.max_num_seqs:
        return math.inf
    return queues.next_arrival(e, r)


@inner
def _wait_reason(e, r, short):
    """Note what those who wait in the queue of row *r* wait for from now on."""
    rep = e.replicas[r]
    queue = e.replicas[rep.queue]
    if short != NONE:
        queue.reason = short
    elif rep.n_running >= e.limits[0].max_num_seqs:
        queue.reason = BATCH_SLOTS
    elif rep.full:
        queue.reason = KV_BLOCKS
    else:
        queue.reason = PREFILL_BUSY if rep.prefill_tokens > 0 else DECODE_BUSY


@unit(types.int64(ENGINE, types.int64, types.float64))
def _choose(e, r, now):
    """Let row *r* choose its next pass; returns how many decode passes nothing can change in, as far as it knows."""
    rep = e.replicas[r]
    rep.now = now
    e.limits[0].clock = now
    queues.look(e, rep.queue, now)
    preempted, short = schedule(e, r)
    left = _count_batch(e, r)
    _wait_reason(e, r, short)
    if rep.n_decode == 0 or rep.prefill_tokens > 0:
        return left
    if preempted or e.limits[0].lanes > 1 or e.limits[0].tokens_per_decode > 1 or rep.n_decode < rep.n_running:
        return 1
    looks = e.limits[0].lag_s > 0.0 or (e.limits[0].longest_prefix and rep.wait_head != NONE)
    if looks and _growth_evicts(e, r, left):
        return 1  # the router's index, or the choice of who is next, depends on what is evicted when
    return _passes_with_blocks(e, r, left)


@unit(types.void(ENGINE, types.int64))
def _plan(e, g):
    """Schedule the next pass of the rows that start with *g*, or their next run of pure decode passes."""
    now, lim = _start_together(e, g), e.limits[0]
    passes, decodes, prefill, slowest, arrival = 1 << 60, 0, 0, 0.0, math.inf
    for r in range(g, g + lim.ranks):
        passes = min(passes, _choose(e, r, now))
        decodes, prefill = decodes + e.replicas[r].n_decode, prefill + e.replicas[r].prefill_tokens
        arrival = min(arrival, _next_arrival(e, r))
    end = math.inf
    if prefill > 0 or (decodes > 0 and (lim.lanes > 1 or lim.tokens_per_decode > 1)):
        slowest = pass_time_together(e, g, prefill)
        passes, end = 1, through_stages(e, g, now, slowest) if lim.lanes > 1 else now + slowest
    elif decodes > 0:
        passes, seconds = run_decodes(e, g, passes, arrival - now, 0)
        end = now + seconds
    for r in range(g, g + lim.ranks):
        rep = e.replicas[r]
        rep.planned, rep.passes_planned, rep.end = 1, passes, end
        rep.stall_planned = stall(e, r, slowest) if prefill > 0 else 0.0


# -------------------------------------------------------------------------------------------------------------- commit


@inner
def _finish(e, r, j):
    rep, lim, job = e.replicas[r], e.limits[0], e.jobs[j]
    job.last = rep.end
    job.stall_s += rep.stalled - job.stall_mark
    rep.full = 0
    rep.finished += 1
    kv_cache.register(e, rep.cache, j, job.ctx)
    tiers.store(e, r, j, rep.end)
    if not lim.hold:
        _let_go(e, r, j, rep.end)
    if lim.watch:
        emit(e, rep.end, PREFILL_DONE if lim.hold else FINISHED, j)


@inner
def _let_go(e, r, j, time):
    """Job *j* needs nothing of its row any more."""
    owner = e.replicas[e.replicas[r].queue]
    kv_cache.release(e, owner.cache, j)
    owner.outstanding -= 1
    owner.kv_load -= e.jobs[j].input
    owner.left = max(owner.left, time)


@inner
def _token(e, r, j):
    """A prompt (or a recomputed context) has caught up: its token comes out at the end of the pass."""
    rep, job = e.replicas[r], e.jobs[j]
    job.prefilling = 0
    job.stall_mark = rep.stalled
    job.generated += 1
    e.replicas[rep.queue].prefill_load -= job.prefill_load
    job.prefill_load = 0
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
    if not math.isnan(job.gap_from):
        if j >= e.limits[0].warmup:
            record_gaps(e.gap_count, e.gap_sum, e.gap_range, time - job.gap_from, 0.0, 1, 1)
        job.gap_from = math.nan


@inner
def _early_tokens(e, r, j):
    """Note when the first token (then the run is one pass long) or the second comes out of the planned decodes."""
    rep, job = e.replicas[r], e.jobs[j]
    if job.generated == 0:
        job.first = rep.end
    else:
        job.second = rep.now + run_decodes(e, _leader(e, r), 1, math.inf, 0)[1]
        _show_gap(e, j, rep.end)


@inner
def _commit_decodes(e, r):
    """Apply the planned decode passes to every running request of row *r*."""
    rep, k = e.replicas[r], e.replicas[r].passes_planned
    for i in range(rep.n_running):
        j = e.running[r, i]
        job = e.jobs[j]
        if job.generated < 2:
            _early_tokens(e, r, j)
        elif not math.isnan(job.gap_from):
            _show_gap(e, j, rep.end)
        job.ctx += k
        job.generated += k
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
    rep, lim, job = e.replicas[r], e.limits[0], e.jobs[j]
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


@inner
def _commit_pass(e, r):
    """Apply one pass, with whatever is in it."""
    rep = e.replicas[r]
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
    rep, lim, cache = e.replicas[r], e.limits[0], cache_of(e, r)
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
        weight += e.replicas[r].n_measured
    if weight > 0:
        run_decodes(e, g, e.replicas[g].passes_planned, math.inf, weight)


@inner
def _is_run(e, g):
    """Whether the planned passes are pure decodes, one token each."""
    lim = e.limits[0]
    if lim.lanes > 1 or lim.tokens_per_decode > 1:
        return False
    for r in range(g, g + lim.ranks):
        if e.replicas[r].prefill_tokens > 0 or e.replicas[r].n_decode < e.replicas[r].n_running:
            return False
    return True


@inner
def _clear_out(e, r):
    """Let finished requests leave, in batch order, and get ready for the next plan."""
    rep, kept = e.replicas[r], 0
    for i in range(rep.n_running):
        j = e.running[r, i]
        if e.jobs[j].generated >= e.jobs[j].output:
            _finish(e, r, j)
        else:
            e.running[r, kept] = j
            kept += 1
    rep.n_running = kept
    rep.now = rep.last_end = rep.end
    rep.planned, rep.end = 0, math.inf


@unit(types.void(ENGINE, types.int64))
def _commit(e, g):
    """Make the planned passes' effects visible at their end."""
    e.limits[0].clock = e.replicas[g].end
    run = _is_run(e, g)
    if run:
        _record_run(e, g)
    for r in range(g, g + e.limits[0].ranks):
        _account(e, r)
        if run:
            _commit_decodes(e, r)
        else:
            _commit_pass(e, r)
    for r in range(g, g + e.limits[0].ranks):
        _clear_out(e, r)
    if e.limits[0].lanes > 1:
        _wake(e, e.replicas[g].queue, e.replicas[g].now)


@inner
def _wake(e, q, time):
    """Let the rows of queue *q* that found nothing to do look again."""
    lim = e.limits[0]
    first = _leader(e, q)
    for r in range(first, first + max(lim.ranks, lim.lanes)):
        rep = e.replicas[r]
        if rep.planned and rep.end == math.inf:
            rep.planned = 0
            rep.now = max(rep.now, time)


# -------------------------------------------------------------------------------------------------- between the passes


@inner
def _interrupt(e, q, time):
    """Cut a run of decode passes after the last one that starts before *time*, so that queue *q* is looked at."""
    _wake(e, q, time)
    lim, g = e.limits[0], _leader(e, q)
    rep = e.replicas[g]
    if rep.planned and rep.passes_planned > 1 and rep.end < math.inf:
        passes, seconds = run_decodes(e, g, rep.passes_planned, max(time - rep.now, 0.0), 0)
        for r in range(g, g + lim.ranks):
            e.replicas[r].passes_planned, e.replicas[r].end = passes, rep.now + seconds


@inner
def _queue(e, r, j, time):
    rep, job, lim = e.replicas[r], e.jobs[j], e.limits[0]
    job.visible, job.replica = time, r
    job.key = job.static_key + (time if lim.key_adds_time else 0.0)
    rep.outstanding += 1
    rep.kv_load += job.input
    queues.arrive(e, r, j)
    if _next_arrival(e, r) < math.inf or rep.n_running == 0 or lim.lanes > 1:
        _interrupt(e, r, time)


@inner
def _land(e, prefill, j, time):
    """The prompt KV of job *j* has arrived on its decode row: it decodes, and the prefill replica's blocks are free."""
    job, lim, there = e.jobs[j], e.limits[0], prefill.jobs[j]
    job.landed = job.visible = time
    job.kv, job.gap_from = LANDED, math.nan
    if lim.first_token == BY_DECODE:
        job.generated, job.ctx = 0, job.input - 1
    else:
        job.generated, job.ctx = 1, job.input
        job.gap_from = time if lim.first_token == BY_TRANSFER else there.first
    r = job.replica
    kv_cache.register(e, e.replicas[r].cache, j, job.input)
    queues.push_front(e, e.replicas[r].queue, j)
    _interrupt(e, e.replicas[r].queue, time)
    _let_go(prefill, there.replica, j, time)
    _interrupt(prefill, prefill.replicas[there.replica].queue, time)


@inner
def _send(e, prefill, j, time):
    """Start to copy what the decode row lacks of job *j*'s prompt KV."""
    job = e.jobs[j]
    source, target = prefill.replicas[prefill.jobs[j].replica], e.replicas[job.replica]
    tokens = job.input - job.cached
    t = links.begin(
        e, time, HAND_OFF, job.replica, j, tokens * prefill.limits[0].block_bytes / prefill.limits[0].block_size
    )
    ports = e.row_links[job.replica]
    source_ports = prefill.row_links[prefill.jobs[j].replica]
    if source.domain == target.domain:
        links.over(e, t, source_ports[NVLINK_OUT])
        links.over(e, t, ports[NVLINK_IN])
    else:
        links.over(e, t, source_ports[NET_OUT])
        links.over(e, t, ports[NET_IN])
        if source.rack != target.rack:
            links.over(e, t, source_ports[RACK_OUT])
            links.over(e, t, ports[RACK_IN])
    links.depart(e, t)


@inner
def _arrived(e, kind, r, j, first, last, tier, time):
    """A copy between the tiers of row *r* has ended."""
    if kind == STORE:
        tiers.stored(e, r, j, first, last, tier, time)
        _interrupt(e, e.replicas[r].queue, time)
    elif kind == LOAD:
        job = e.jobs[j]
        job.loading -= 1
        if job.loading == 0:
            job.kv, job.visible = LOADED, time
            kv_cache.register(e, e.replicas[r].cache, j, job.ctx)
            queues.push_front(e, e.replicas[r].queue, j)
            _interrupt(e, e.replicas[r].queue, time)


@inner
def _step_links(handles):
    """Move the links to their next change."""
    e = open_engine(handles[0])
    i = links.step(e)
    if i < 0:
        return
    t, time = e.transfers[i], e.net[0].now
    kind, pool, r, j, first, last, tier = t.kind, t.pool, t.row, t.job, t.first, t.last, t.tier
    links.remove(e, i)
    owner = open_engine(handles[pool])
    owner.limits[0].clock = time
    if kind == HAND_OFF:
        prefill = open_engine(handles[0])
        prefill.limits[0].clock = time
        _land(owner, prefill, j, time)
    else:
        _arrived(owner, kind, r, j, first, last, tier, time)


# ------------------------------------------------------------------------------------------------------- from Python


@inner
def _earliest(e, first, last):
    """Return (earliest end of a planned pass, its row, earliest start of one to plan, its row)."""
    end, committer, start, planner = math.inf, NONE, math.inf, NONE
    for g in range(first, last, e.limits[0].ranks):
        rep = e.replicas[g]
        if rep.planned:
            if rep.end < end:
                end, committer = rep.end, g
        else:
            time = _start_together(e, g)
            if time < start:
                start, planner = time, g
    return end, committer, start, planner


@inner
def _advance(e, first, until):
    """Run the replica whose rows start with *first* up to *until*: passes that end by then, and start before."""
    last = first + max(e.limits[0].ranks, e.limits[0].lanes)
    while True:
        end, committer, start, planner = _earliest(e, first, last)
        if start < end and start < until:
            _plan(e, planner)
        elif end < math.inf and end <= until:
            _commit(e, committer)
        else:
            return


@inner
def _advance_alone(handles, until):
    """Run one replica after the other up to *until* if none affects another and nobody watches; says whether it did."""
    e = open_engine(handles[0])
    lim = e.limits[0]
    if len(handles) > 1 or lim.watch or lim.tiers > 0 or lim.lag_s > 0.0:
        return False
    for first in range(0, len(e.replicas), max(lim.ranks, lim.lanes)):
        _advance(e, first, until)
    return True


@inner
def _hand_over(handles, e, time):
    """Start the transfers of prompts that are computed and have their blocks reserved, now that one of both is new."""
    if len(handles) == 1 or e.limits[0].n_events == 0:
        return
    prefill, decode = open_engine(handles[0]), open_engine(handles[1])
    for i in range(e.limits[0].n_events):
        j = e.events[i].job
        ready = decode.jobs[j].kv == MOVING and not math.isnan(prefill.jobs[j].last)
        if ready and e.events[i].kind != FINISHED:
            _send(decode, prefill, j, time)
    if e.events[0].kind == RESERVED and not decode.limits[0].destination_first:
        e.limits[0].n_events = 0


@entry
def next_event(handles, until):
    """Run all pools and links in time order until a pass reports events, or to *until*.

    A pass that would start at *until* is left to the next call, so that whatever happens then can still join. Returns
    (number of events, index of their pool).
    """
    if _advance_alone(handles, until):
        return 0, 0
    net = open_engine(handles[0]).net
    while True:
        end, committer, ending, start, planner, starting = math.inf, NONE, 0, math.inf, NONE, 0
        for p in range(len(handles)):
            e = open_engine(handles[p])
            pool_end, c, pool_start, s = _earliest(e, 0, len(e.replicas))
            if pool_end < end:
                end, committer, ending = pool_end, c, p
            if pool_start < start:
                start, planner, starting = pool_start, s, p
        if net[0].next <= min(end, start) and net[0].next <= until and net[0].next < math.inf:
            _step_links(handles)
            continue
        if start < end and start < until:
            pool = starting
        elif end < math.inf and end <= until:
            pool = ending
        else:
            return 0, 0
        e = open_engine(handles[pool])
        e.limits[0].n_events = 0
        if start < end:
            _plan(e, planner)
        else:
            _commit(e, committer)
        _hand_over(handles, e, min(start, end))
        if e.limits[0].n_events > 0:
            return e.limits[0].n_events, pool


@entry
def submit(handle, r, j, time):
    """Queue job *j* on row *r* at *time*, up to which the row has been run."""
    e = open_engine(handle)
    job = e.jobs[j]
    if job.kv == LOCAL and job.generated == 0:
        job.prefill_load = job.input - kv_cache.match(e, e.replicas[r].cache, j, job.input)[0]
        e.replicas[r].prefill_load += job.prefill_load
    _queue(e, r, j, time)


@entry
def submit_all(handle, row_of, times):
    """Queue all jobs on their rows at their times, which do not decrease; those on row NONE are left out."""
    e = open_engine(handle)
    for j in range(len(row_of)):
        if row_of[j] != NONE:
            _queue(e, row_of[j], j, times[j])


@entry
def release(handle, j, time):
    """Free the blocks of a finished prefill that hands nothing off."""
    e = open_engine(handle)
    r = e.jobs[j].replica
    _let_go(e, r, j, time)
    _interrupt(e, e.replicas[r].queue, time)


# ------------------------------------------------------------------------------------------------------------ looking


@inner
def _settle(e, g, time):
    """Split a run of decode passes at *time* when its growth evicts, so that the cache is seen as it is then."""
    rep = e.replicas[g]
    if rep.planned and rep.passes_planned > 1 and rep.end < math.inf and _growth_evicts_any(e, g, rep.passes_planned):
        _split(e, g, time)


@inner
def _split(e, g, time):
    """Commit those of a run of decode passes that have ended by *time*."""
    rep, lim = e.replicas[g], e.limits[0]
    passes, seconds = run_decodes(e, g, rep.passes_planned, time - rep.now, 0)
    if rep.now + seconds > time:
        passes -= 1
    if passes > 0:
        end = rep.now + run_decodes(e, g, passes, math.inf, 0)[1]
        for r in range(g, g + lim.ranks):
            e.replicas[r].passes_planned, e.replicas[r].end = passes, end
        _commit(e, g)
        _advance(e, g, time)


@entry
def settle_all(handle, time):
    """Bring every row to *time*: what the passes that have ended by then have done can be read."""
    _settle_all(open_engine(handle), time)


@entry
def stop(handle, time):
    """End the run at *time*: those still in a queue have waited until then."""
    e = open_engine(handle)
    _settle_all(e, time)
    for r in range(len(e.replicas)):
        queues.look(e, e.replicas[r].queue, time)
    for j in range(len(e.jobs)):
        if e.jobs[j].marked:
            queues.settle_waits(e, e.replicas[e.jobs[j].replica].queue, j)


@inner
def _settle_all(e, time):
    for g in range(0, len(e.replicas), e.limits[0].ranks):
        rep = e.replicas[g]
        if rep.planned and rep.passes_planned > 1 and rep.end < math.inf:
            _split(e, g, time)


@entry
def cached_tokens(handle, j, time, out):
    """Fill *out* with the prompt tokens of job *j* that the router knows to be in each row's cache at *time*."""
    e = open_engine(handle)
    lim = e.limits[0]
    for g in range(0, len(e.replicas), lim.ranks):
        _settle(e, g, time)
    while lim.log_head < lim.log_tail and e.log[lim.log_head % len(e.log)].time <= time - lim.lag_s:
        kv_cache.apply_oldest(e)
    for r in range(len(e.replicas)):
        c = e.replicas[r].cache
        out[r] = kv_cache.match(e, lim.index_cache + c if lim.lag_s > 0.0 else c, j, e.jobs[j].input)[0]


@entry
def tier_cached_tokens(handle, j, time, out):
    """Fill *out* with the further prompt tokens of job *j* that each row has in its lower tiers at *time*."""
    e = open_engine(handle)
    for g in range(0, len(e.replicas), e.limits[0].ranks):
        _settle(e, g, time)
    for r in range(len(e.replicas)):
        hit, nodes, _ = kv_cache.match(e, e.replicas[r].cache, j, e.jobs[j].input)
        out[r] = tiers.extend(e, r, j, nodes, e.jobs[j].input, False) - hit


# ------------------------------------------------------------------------------------------------ starting and failing


@inner
def _empty(e, c):
    """Cache *c* holds nothing: one slot of all its blocks, without content."""
    cache = e.caches[c]
    e.buckets[cache.bucket_base : cache.bucket_base + cache.bucket_mask + 1] = 0
    cache.lru_head = cache.lru_tail = cache.slot_head = cache.free_blocks = 0
    cache.slots_used = cache.slot_base
    kv_cache.give(e, cache, cache.num_blocks)


@inner
def _forget(e, c):
    """The router's index of cache *c* is empty too, and what it has not heard of yet is not to come."""
    lim = e.limits[0]
    if lim.lag_s > 0.0:
        _empty(e, lim.index_cache + c)
        for i in range(lim.log_head, lim.log_tail):
            if e.log[i % len(e.log)].cache == c:
                e.log[i % len(e.log)].count = 0


@inner
def _rows_of(e, replica):
    size = max(e.limits[0].ranks, e.limits[0].lanes)
    return replica * size, (replica + 1) * size


@inner
def _boot(e, replica, time):
    first, end = _rows_of(e, replica)
    for r in range(first, end):
        rep = e.replicas[r]
        rep.now, rep.planned, rep.end = time, 0, math.inf
        if rep.queue == r:
            _empty(e, rep.cache)
            _forget(e, rep.cache)
            for k in range(e.limits[0].tiers):
                if e.limits[0].tier_kind[k] != tiers.REMOTE_STORE:
                    _empty(e, tiers.cache_of(e, r, k))
    e.stage_free[first] = time


@entry
def boot(handle, replica, time):
    """A replica starts at *time* with empty caches."""
    _boot(open_engine(handle), replica, time)


@inner
def _lose(e, r, j, time):
    """Job *j* has lost what row *r* had of it: like a preempted one if it had begun, but in no queue."""
    job, rep = e.jobs[j], e.replicas[r]
    if job.kv == LOCAL and job.blocks > 0 and math.isnan(job.preempted_at):
        job.preempted_at = time
        if job.generated > 0:
            job.stall_s += rep.stalled - job.stall_mark
    if job.generated > 0 and math.isnan(job.gap_from):
        job.gap_from = rep.last_end
    e.held[job.hash_start : job.hash_start + job.hash_count] = 0
    job.ctx = job.chunk = job.prefilling = job.blocks = job.own = job.nodes = job.prefill_load = 0
    job.storing = job.loading = 0
    if job.kv == LANDED:
        job.kv, job.preempted_at = LOCAL, time
    elif job.kv != LOCAL:
        job.kv = REMOTE if e.limits[0].remote else LOCAL


@inner
def _withdraw(e, j):
    """Take job *j*, whose prompt KV will not come, off its decode row."""
    job = e.jobs[j]
    rep = e.replicas[job.replica]
    if job.kv == REMOTE:
        queues.withdraw(e, job.replica, j)
    elif job.kv == MOVING:
        set_aside(e, job.replica, j, -1)
        kv_cache.release(e, rep.cache, j)
        job.kv = REMOTE
    rep.outstanding -= 1
    rep.kv_load -= job.input


@inner
def _break_off(handles, pool, first, end, time):
    """End the transfers from and to rows [first, end) of a pool at *time*, wherever they are."""
    e = open_engine(handles[pool])
    links.progress(e, time)
    for i in range(e.net[0].active - 1, -1, -1):
        t = e.transfers[i]
        if (t.pool == pool and first <= t.row < end) or (
            e.limits[0].hold and t.kind == HAND_OFF and first <= e.jobs[t.job].replica < end
        ):
            links.remove(e, i)


@inner
def _off(e, r, time):
    """Row *r* stops: nothing planned, nothing running, nobody in its queue."""
    rep = e.replicas[r]
    if rep.queue == r:
        queues.look(e, r, time)
        while rep.wait_head != NONE:
            queues.leave(e, r, NONE, rep.wait_head)
    rep.n_running = rep.n_waiting = rep.n_arriving = rep.planned = rep.full = 0
    rep.arrive_head = rep.arrive_tail = rep.wait_tail = NONE
    rep.outstanding = rep.prefill_load = rep.kv_load = rep.reserved_blocks = 0
    rep.now, rep.end = time, math.inf


@entry
def crash(handles, pool, replica, time):
    """A replica stops at *time*: its batch, queue, cache and copies are gone, and so are hand-offs that have not landed
    of prompts it holds. The cluster sends the requests again."""
    e = open_engine(handles[pool])
    first, end = _rows_of(e, replica)
    _break_off(handles, pool, first, end, time)
    for r in range(first, end):
        for i in range(e.replicas[r].n_running):
            _lose(e, r, e.running[r, i], time)
        _off(e, r, time)
    for j in range(len(e.jobs)):
        job = e.jobs[j]
        if not first <= job.replica < end:
            continue
        if math.isnan(job.last):
            _lose(e, job.replica, j, time)  # those in no batch
        if e.limits[0].hold:
            decode = open_engine(handles[1])
            if decode.jobs[j].replica != NONE and math.isnan(decode.jobs[j].landed) and decode.jobs[j].kv != LOCAL:
                _withdraw(decode, j)
                _interrupt(decode, decode.jobs[j].replica, time)
    _boot(e, replica, time)


@entry
def withdraw(handle, j, time):
    """Take job *j*, whose prompt will not be prefilled, off its decode row."""
    e = open_engine(handle)
    _withdraw(e, j)
    _interrupt(e, e.replicas[e.jobs[j].replica].queue, time)


@entry
def restart(handle, j):
    """Job *j*, in no queue and no batch, is as if it had never run here; if it had begun, all since is preemption."""
    e = open_engine(handle)
    job, begun = e.jobs[j], e.jobs[j].scheduled
    e.held[job.hash_start : job.hash_start + job.hash_count] = 0
    job.generated = job.ctx = job.chunk = job.prefilling = job.blocks = job.own = job.nodes = job.prefill_load = 0
    job.named = job.stored = job.storing = job.loading = 0
    job.preempted_prefill_s = job.preempted_decode_s = job.stall_s = 0.0
    job.first = job.second = job.last = job.landed = job.gap_from = job.preempted_at = math.nan
    job.kv = REMOTE if e.limits[0].remote else LOCAL
    if e.limits[0].remote:
        job.scheduled = math.nan
    elif not math.isnan(begun):
        job.preempted_at = begun
