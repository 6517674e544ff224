"""The replica engine: vLLM V1's continuous batching on flat arrays, compiled, with exact jumps over decode passes.

One ``Engine`` holds all replicas of one pool. A replica alternates ``_plan`` and ``_commit``: plan schedules the next
forward pass as vLLM V1 does (running requests first, then the waiting queue, under one token budget) and knows when it
ends; commit makes its effects visible. While a batch only decodes, nothing is decided between passes: plan then covers
k passes at once, up to the first finish, arrival or block shortage. Their total time is closed form because a pass is
piecewise linear in the batch's total context (``timing.base``).

As in vLLM V1 there is no prefill phase and no decode phase: a request knows ``input + generated`` tokens and has
computed ``ctx`` of them; a pass moves ``ctx`` forward, and when it has caught up a token comes out.

Left out: pipeline stages, attention data parallelism, speculative decoding, KV tiers, other queue orders.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynosim.simulation import kv_cache
from dynosim.simulation.compiled import FLOAT64, INT32, INT64, entry, inner, view, view2
from dynosim.simulation.gaps import record_gaps

NONE = np.int64(-1)  # a typed constant: a literal would compile every function twice
LOCAL, REMOTE, MOVING, LANDED = 0, 1, 2, 3
"""Where a job's prompt KV is: computed here; on another replica; on its way; arrived, about to decode."""
PREFILL_DONE, FINISHED, RESERVED = 0, 1, 2
"""Kinds of events the cluster may watch."""

REPLICA = np.dtype(
    [
        ("now", "f8"),  # start of the planned pass, or of the next one
        ("end", "f8"),  # end of the planned passes; inf when there is nothing to do
        ("planned", "i8"),
        ("passes_planned", "i8"),
        ("n_running", "i8"),
        ("n_decode", "i8"),  # in the planned pass
        ("n_measured", "i8"),  # decodes whose gap counts: after the warm-up, not resumed from preemption
        ("prefill_tokens", "i8"),  # in the planned pass
        ("context", "i8"),  # total context of the planned pass's decodes
        ("wait_head", "i8"),
        ("wait_tail", "i8"),
        ("lru_head", "i8"),
        ("lru_tail", "i8"),
        ("slot_head", "i8"),
        ("slots_used", "i8"),
        ("free_blocks", "i8"),
        ("outstanding", "i8"),  # what a router sees: requests sent here and not finished,
        ("prefill_load", "i8"),  # their uncached prompt tokens before the first token,
        ("kv_load", "i8"),  # and their prompt tokens
        ("busy_s", "f8"),
        ("passes", "i8"),
        ("prefill_done_tokens", "i8"),
        ("decode_done_tokens", "i8"),
        ("batch_time", "f8"),
        ("block_time", "f8"),
        ("stall_planned", "f8"),  # what prefill chunks add to the planned pass, and
        ("stalled", "f8"),  # have added to all passes with decodes so far
        ("extrapolated_s", "f8"),
    ]
)

JOB = np.dtype(
    [
        ("visible", "f8"),  # in the queue from then on
        ("scheduled", "f8"),
        ("first", "f8"),
        ("second", "f8"),
        ("last", "f8"),
        ("gap_from", "f8"),  # when the last token was shown, if not one pass ago
        ("preempted_at", "f8"),  # NaN unless it has lost its blocks and not caught up yet
        ("preempted_prefill_s", "f8"),  # without blocks before the first token,
        ("preempted_decode_s", "f8"),  # and after it, until the next one
        ("stall_mark", "f8"),  # the replica's ``stalled`` when this job's decoding last began
        ("stall_s", "f8"),
        ("hash_start", "i8"),
        ("hash_count", "i4"),
        ("nodes", "i4"),  # leading prompt nodes whose blocks are settled as shared or own
        ("input", "i4"),
        ("output", "i4"),
        ("generated", "i4"),
        ("ctx", "i4"),
        ("chunk", "i4"),  # tokens in the planned pass
        ("prefilling", "i4"),
        ("blocks", "i4"),  # held, shared ones included
        ("own", "i4"),  # held and not shared
        ("cached", "i4"),
        ("preemptions", "i4"),
        ("replica", "i4"),
        ("next", "i4"),
        ("kv", "i4"),  # LOCAL, REMOTE, MOVING or LANDED
        ("prefill_load", "i4"),
    ]
)

EVENT = np.dtype([("time", "f8"), ("kind", "i4"), ("job", "i4")])

LIMITS = np.dtype(
    [
        ("max_num_seqs", "i8"),
        ("max_num_batched_tokens", "i8"),
        ("chunked", "i4"),
        ("caching", "i4"),
        ("reserve_full", "i4"),
        ("hold", "i4"),  # prefill pool: blocks stay until released, outputs end after one token
        ("watch", "i4"),  # whether finishes are reported as events
        ("fused", "i4"),
        ("block_size", "i8"),
        ("num_blocks", "i8"),
        ("hash_tokens", "i8"),
        ("warmup", "i8"),
        ("measured_tokens", "f8"),
        ("measured_context", "f8"),
        ("n_events", "i8"),
    ]
)


class Engine(NamedTuple):
    """All state of one pool. Row r of a two-dimensional array is replica r's."""

    limits: NDArray[Any]
    replicas: NDArray[Any]
    jobs: NDArray[Any]
    running: NDArray[np.int32]
    slots: NDArray[Any]
    buckets: NDArray[np.int32]
    hash_ids: NDArray[np.int64]
    held: NDArray[np.int32]
    events: NDArray[Any]
    gap_count: NDArray[np.float64]
    gap_sum: NDArray[np.float64]
    gap_range: NDArray[np.float64]
    tokens_s: NDArray[np.float64]
    graph_tokens_s: NDArray[np.float64]
    decode_context: NDArray[np.float64]
    decode_s: NDArray[np.float64]
    prefill_seq: NDArray[np.float64]
    prefill_share_s: NDArray[np.float64]


@inner
def _open(handle):
    """Return the Engine behind a handle; see ``compiled.handle_of``."""
    return Engine(
        view(handle, 0, LIMITS), view(handle, 1, REPLICA), view(handle, 2, JOB), view2(handle, 3, INT32),
        view2(handle, 4, kv_cache.SLOT), view2(handle, 5, INT32), view(handle, 6, INT64), view(handle, 7, INT32),
        view(handle, 8, EVENT), view(handle, 9, FLOAT64), view(handle, 10, FLOAT64), view(handle, 11, FLOAT64),
        view(handle, 12, FLOAT64), view(handle, 13, FLOAT64), view2(handle, 14, FLOAT64), view2(handle, 15, FLOAT64),
        view(handle, 16, FLOAT64), view2(handle, 17, FLOAT64),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- time


@inner
def _segment(nodes, x):
    """Index j of the segment [nodes[j], nodes[j+1]) that *x* lies in; the outer ones reach to infinity."""
    low, high = 0, len(nodes) - 1
    while high - low > 1:
        mid = (low + high) >> 1
        if nodes[mid] <= x:
            low = mid
        else:
            high = mid
    return low


@inner
def _line(nodes, values, x):
    j = _segment(nodes, x)
    return values[j] + (values[j + 1] - values[j]) / (nodes[j + 1] - nodes[j]) * (x - nodes[j])


@inner
def _first_reaching(first, step, count, target):
    """Smallest m in [1, count] whose first m terms of first, first + step, ... sum to at least *target*."""
    a, b = 0.5 * step, first - 0.5 * step
    root = 2.0 * target / (b + math.sqrt(max(b * b + 4.0 * a * target, 0.0)))
    m = min(max(math.ceil(root), 1), count)
    while m > 1 and (m - 1) * first + step * (m - 1) * (m - 2) * 0.5 >= target:
        m -= 1
    while m < count and m * first + step * m * (m - 1) * 0.5 < target:
        m += 1
    return m


@inner
def _jump(e, batch, context, passes, target, weight):
    """Run up to *passes* decode passes of *batch* requests from total *context*, until *target* seconds are reached.

    Pass i (from 0) takes g + d(context + i batch), g the padded token-wise time and d piecewise linear, so inside one
    segment the times are an arithmetic series. With *weight* > 0 each pass adds that many token gaps to the histogram.
    Returns (passes done, seconds).
    """
    nodes, values, base = e.decode_context[batch], e.decode_s[batch], e.graph_tokens_s[batch]
    j, done, total = _segment(nodes, context), 0, 0.0
    while done < passes:
        slope = (values[j + 1] - values[j]) / (nodes[j + 1] - nodes[j])
        first, step, m = base + values[j] + slope * (context - nodes[j]), slope * batch, passes - done
        if j + 2 < len(nodes):
            m = min(m, max(math.ceil((nodes[j + 1] - context) / batch), 1))
        seconds = m * first + step * m * (m - 1) * 0.5
        reached = total + seconds >= target
        if reached:
            m = _first_reaching(first, step, m, target - total)
            seconds = m * first + step * m * (m - 1) * 0.5
        if weight > 0:
            record_gaps(e.gap_count, e.gap_sum, e.gap_range, first, step, m, weight)
        total, done, context = total + seconds, done + m, context + m * batch
        if reached:
            break
        while j + 2 < len(nodes) and nodes[j + 1] <= context:
            j += 1
    return done, total


@inner
def _prefill_attention(e, r):
    """Sum over the planned chunks of share(k, s) (1 - (c/s)^2); see ``timing.base``."""
    rep, chunks, seconds = e.replicas[r], 0, 0.0
    for i in range(rep.n_running):
        chunks += e.jobs[e.running[r, i]].prefilling > 0 and e.jobs[e.running[r, i]].chunk > 0
    shares = e.prefill_share_s[min(chunks, len(e.prefill_share_s) - 1)]
    for i in range(rep.n_running):
        job = e.jobs[e.running[r, i]]
        if job.prefilling and job.chunk > 0:
            s = job.ctx + job.chunk
            seconds += _line(e.prefill_seq, shares, s) * (1.0 - (job.ctx / s) ** 2)
    return seconds


@inner
def _pass_time(e, r):
    """Time of one planned pass with prefill chunks in it, and how much longer it is than its decodes alone."""
    rep, b = e.replicas[r], e.replicas[r].n_decode
    seconds = e.tokens_s[rep.prefill_tokens + (b if e.limits[0].fused else 0)] + _prefill_attention(e, r)
    if b == 0:
        return seconds, 0.0
    attention = _line(e.decode_context[b], e.decode_s[b], rep.context)
    return seconds + attention, max(seconds - e.graph_tokens_s[b], 0.0)


# --------------------------------------------------------------------------------------------------------------- queue


@inner
def _push(e, r, j, front):
    """Put job *j* at the front or the back of the waiting queue."""
    rep = e.replicas[r]
    e.jobs[j].next = rep.wait_head if front else NONE
    if rep.wait_head == NONE:
        rep.wait_head = rep.wait_tail = j
    elif front:
        rep.wait_head = j
    else:
        e.jobs[rep.wait_tail].next = j
        rep.wait_tail = j


@inner
def _pop(e, r):
    rep = e.replicas[r]
    rep.wait_head = e.jobs[rep.wait_head].next
    if rep.wait_head == NONE:
        rep.wait_tail = NONE


@inner
def _emit(e, time, kind, j):
    event = e.events[e.limits[0].n_events]
    event.time, event.kind, event.job = time, kind, j
    e.limits[0].n_events += 1


# ---------------------------------------------------------------------------------------------------------------- plan


@inner
def _blocks(e, tokens):
    return (tokens + e.limits[0].block_size - 1) // e.limits[0].block_size


@inner
def _preempt_last(e, r):
    """Take the blocks of the last running request away; it goes to the front of the queue to be computed again."""
    rep = e.replicas[r]
    rep.n_running -= 1
    j = e.running[r, rep.n_running]
    job = e.jobs[j]
    kv_cache.release(e, r, j)
    job.ctx = job.chunk = job.prefilling = 0
    job.preemptions += 1
    job.visible = rep.now
    if math.isnan(job.preempted_at):
        job.preempted_at = rep.now
        if job.generated > 0:
            job.stall_s += rep.stalled - job.stall_mark
    _push(e, r, j, True)


@inner
def _schedule_running(e, r):
    """Give every running request its tokens and blocks, in order; returns (tokens left in the budget, preempted)."""
    rep, budget, preempted, i = e.replicas[r], e.limits[0].max_num_batched_tokens, False, 0
    while i < rep.n_running:
        job = e.jobs[e.running[r, i]]
        job.chunk = min(job.input + job.generated - job.ctx, budget)
        need = max(_blocks(e, job.ctx + job.chunk) - job.blocks, 0)
        while need > rep.free_blocks and i < rep.n_running:
            _preempt_last(e, r)
            preempted = True
        if i < rep.n_running:
            kv_cache.take(e, r, need)
            job.own += need
            job.blocks += need
            if job.prefilling:
                kv_cache.register(e, r, e.running[r, i], job.ctx + job.chunk)
            budget -= job.chunk
        i += 1
    return budget, preempted


@inner
def _admit(e, r, j, budget):
    """Admit the head of the queue with its first chunk if blocks and budget allow; returns its tokens, or 0."""
    rep, lim, job = e.replicas[r], e.limits[0], e.jobs[j]
    total = job.input + job.generated
    hit, matched, pinned = kv_cache.match(e, r, j, total)
    chunk = total - hit
    if chunk > budget:
        if not lim.chunked:
            return 0
        chunk = budget
    wanted = _blocks(e, total if lim.reserve_full else hit + chunk) - hit // lim.block_size
    if wanted > rep.free_blocks - pinned:
        return 0
    kv_cache.hold(e, r, j, matched)
    need = _blocks(e, hit + chunk) - hit // lim.block_size
    kv_cache.take(e, r, need)
    job.own, job.blocks = need, need + hit // lim.block_size
    job.ctx, job.chunk, job.prefilling = hit, chunk, 1
    if math.isnan(job.scheduled):
        job.scheduled, job.cached = rep.now, hit
    elif job.generated == 0 and not math.isnan(job.preempted_at):
        job.preempted_prefill_s += rep.now - job.preempted_at
        job.preempted_at = math.nan
    kv_cache.register(e, r, j, hit + chunk)
    return chunk


@inner
def _reserve(e, r, j):
    """Reserve the blocks of a prompt that will be copied in, one generated token included; False when short."""
    rep, lim, job = e.replicas[r], e.limits[0], e.jobs[j]
    hit, matched, pinned = kv_cache.match(e, r, j, job.input)
    need = _blocks(e, job.input + 1) - hit // lim.block_size
    if need > rep.free_blocks - pinned:
        return False
    kv_cache.hold(e, r, j, matched)
    kv_cache.take(e, r, need)
    job.own, job.blocks, job.cached, job.kv = need, need + hit // lim.block_size, hit, MOVING
    job.scheduled = rep.now
    return True


@inner
def _schedule_waiting(e, r, budget):
    """Move the head of the queue into the batch, again and again, until something is short."""
    rep, lim = e.replicas[r], e.limits[0]
    while rep.wait_head != NONE and rep.n_running < lim.max_num_seqs:
        j = rep.wait_head
        job = e.jobs[j]
        if job.visible > rep.now:
            break
        if job.kv == REMOTE:
            if not _reserve(e, r, j):
                break
            _pop(e, r)
            _emit(e, rep.now, RESERVED, j)
            continue
        if budget <= 0:
            break
        if job.kv == LANDED:
            job.kv, job.chunk, job.stall_mark = LOCAL, 1, rep.stalled
        elif _admit(e, r, j, budget) == 0:
            break
        _pop(e, r)
        budget -= job.chunk
        e.running[r, rep.n_running] = j
        rep.n_running += 1


@inner
def _count_batch(e, r):
    """Sum up the planned pass; returns the passes until a decode finishes, or 1 if a gap is to be noted by itself."""
    rep, warmup = e.replicas[r], e.limits[0].warmup
    rep.n_decode = rep.n_measured = 0
    rep.prefill_tokens = rep.context = 0
    left = 1 << 60
    for i in range(rep.n_running):
        j = e.running[r, i]
        job = e.jobs[j]
        if job.prefilling:
            rep.prefill_tokens += job.chunk
        else:
            rep.n_decode += 1
            alone = job.generated == 0 or not math.isnan(job.gap_from)
            rep.n_measured += j >= warmup and not alone
            rep.context += job.ctx + 1
            left = min(left, 1 if alone else job.output - job.generated)
    return left


@inner
def _blocks_after(e, r, passes):
    """Blocks that *passes* decode passes take beyond those held."""
    rep, total = e.replicas[r], 0
    for i in range(rep.n_running):
        job = e.jobs[e.running[r, i]]
        total += max(_blocks(e, job.ctx + passes) - job.blocks, 0)
    return total


@inner
def _passes_with_blocks(e, r, passes):
    """Largest number of decode passes, up to *passes*, for which the free blocks suffice."""
    rep = e.replicas[r]
    if rep.n_decode * _blocks(e, passes) <= rep.free_blocks:
        return passes
    low, high = 1, passes + 1
    while high - low > 1:
        mid = (low + high) >> 1
        if _blocks_after(e, r, mid) <= rep.free_blocks:
            low = mid
        else:
            high = mid
    return low


@inner
def _next_arrival(e, r):
    """When a queued request may change the batch: never while it is full or the head is blocked."""
    rep = e.replicas[r]
    if rep.wait_head == NONE or rep.n_running >= e.limits[0].max_num_seqs:
        return math.inf
    visible = e.jobs[rep.wait_head].visible
    return visible if visible > rep.now else math.inf


@inner
def _plan(e, r):
    """Schedule the next pass, or the next run of pure decode passes."""
    rep = e.replicas[r]
    rep.now = _start(e, r)
    budget, preempted = _schedule_running(e, r)
    if not preempted or rep.n_running == 0:
        _schedule_waiting(e, r, budget)
    rep.planned, rep.end = 1, math.inf
    left = _count_batch(e, r)
    if rep.n_decode < rep.n_running:
        seconds, rep.stall_planned = _pass_time(e, r)
        rep.passes_planned, rep.end = 1, rep.now + seconds
    elif rep.n_decode > 0:
        passes = _passes_with_blocks(e, r, 1 if preempted else left)
        target = _next_arrival(e, r) - rep.now
        rep.passes_planned, seconds = _jump(e, rep.n_decode, rep.context, passes, target, 0)
        rep.end = rep.now + seconds


# -------------------------------------------------------------------------------------------------------------- commit


@inner
def _finish(e, r, j):
    rep, lim, job = e.replicas[r], e.limits[0], e.jobs[j]
    job.last = rep.end
    job.stall_s += rep.stalled - job.stall_mark
    if not lim.hold:
        kv_cache.release(e, r, j)
        rep.outstanding -= 1
        rep.kv_load -= job.input
    if lim.watch:
        _emit(e, rep.end, PREFILL_DONE if lim.hold else FINISHED, j)


@inner
def _token(e, r, j):
    """A prompt (or a recomputed context) has caught up: its token comes out at the end of the pass."""
    rep, job = e.replicas[r], e.jobs[j]
    job.prefilling = 0
    job.stall_mark = rep.stalled
    job.generated += 1
    if job.generated == 1:
        job.first = rep.end
        rep.prefill_load -= job.prefill_load
    elif job.generated == 2:
        job.second = rep.end
    if not math.isnan(job.preempted_at):
        job.gap_from = job.preempted_at if math.isnan(job.gap_from) else job.gap_from
        job.preempted_decode_s += rep.end - job.preempted_at
        job.preempted_at = math.nan
    _show_gap(e, j, rep.end)


@inner
def _early_tokens(e, r, j):
    """Note when the first token (then the run is one pass long) or the second comes out of the planned decodes."""
    rep, job = e.replicas[r], e.jobs[j]
    if job.generated == 0:
        job.first = rep.end
    else:
        job.second = rep.now + _jump(e, rep.n_decode, rep.context, 1, math.inf, 0)[1]
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
def _commit_decodes(e, r):
    """Apply k decode passes to every running request."""
    rep, k = e.replicas[r], e.replicas[r].passes_planned
    for i in range(rep.n_running):
        j = e.running[r, i]
        job = e.jobs[j]
        if job.generated < 2:
            _early_tokens(e, r, j)
        job.ctx += k
        job.generated += k
        if job.ctx > job.blocks * e.limits[0].block_size:
            need = _blocks(e, job.ctx) - job.blocks
            kv_cache.take(e, r, need)
            job.own += need
            job.blocks += need
    _jump(e, rep.n_decode, rep.context, k, math.inf, rep.n_measured)


@inner
def _commit_mixed(e, r):
    """Apply one pass with prefill chunks in it."""
    rep = e.replicas[r]
    rep.stalled += rep.stall_planned
    for i in range(rep.n_running):
        j = e.running[r, i]
        job = e.jobs[j]
        job.ctx += job.chunk
        if job.prefilling == 0:
            job.generated += 1
            if job.generated == 1:
                job.first = rep.end
            elif job.generated == 2:
                job.second = rep.end
                _show_gap(e, j, rep.end)
        elif job.ctx == job.input + job.generated:
            _token(e, r, j)
    if rep.n_measured > 0:
        record_gaps(e.gap_count, e.gap_sum, e.gap_range, rep.end - rep.now, 0.0, 1, rep.n_measured)


@inner
def _account(e, r):
    """Add the planned passes to what the replica has done."""
    rep, lim = e.replicas[r], e.limits[0]
    seconds = rep.end - rep.now
    rep.busy_s += seconds
    rep.passes += rep.passes_planned
    rep.prefill_done_tokens += rep.prefill_tokens
    rep.decode_done_tokens += rep.n_decode * rep.passes_planned
    rep.batch_time += seconds * rep.n_decode
    rep.block_time += seconds * (lim.num_blocks - rep.free_blocks)
    if rep.prefill_tokens + rep.n_decode > lim.measured_tokens or rep.context > lim.measured_context * rep.n_decode:
        rep.extrapolated_s += seconds


@inner
def _commit(e, r):
    """Make the planned passes' effects visible at their end; finished requests leave in batch order."""
    rep = e.replicas[r]
    _account(e, r)
    if rep.n_decode < rep.n_running:
        _commit_mixed(e, r)
    else:
        _commit_decodes(e, r)
    kept = 0
    for i in range(rep.n_running):
        j = e.running[r, i]
        if e.jobs[j].generated >= e.jobs[j].output:
            _finish(e, r, j)
        else:
            e.running[r, kept] = j
            kept += 1
    rep.n_running = kept
    rep.now, rep.planned, rep.end = rep.end, 0, math.inf


# ---------------------------------------------------------------------------------------------------------- from Python


@inner
def _start(e, r):
    """When the next pass of replica *r* may start: inf when there is nothing to do."""
    rep = e.replicas[r]
    if rep.n_running > 0:
        return rep.now
    return max(rep.now, e.jobs[rep.wait_head].visible) if rep.wait_head != NONE else math.inf


@inner
def _advance(e, r, until):
    """Run replica *r* up to *until*: commit what ends by then, plan only passes that start before."""
    rep = e.replicas[r]
    while True:
        if not rep.planned:
            if _start(e, r) >= until:
                return
            _plan(e, r)
        if rep.end > until or rep.end == math.inf:
            return
        _commit(e, r)


@entry
def advance_all(handle, until):
    """Run every replica up to *until*."""
    e = _open(handle)
    for r in range(len(e.replicas)):
        _advance(e, r, until)


@inner
def _earliest(e):
    """Return (earliest end of a planned pass, its replica, earliest start of one to plan, its replica)."""
    end, committer, start, planner = math.inf, NONE, math.inf, NONE
    for r in range(len(e.replicas)):
        rep = e.replicas[r]
        if rep.planned:
            if rep.end < end:
                end, committer = rep.end, r
        elif _start(e, r) < start:
            start, planner = _start(e, r), r
    return end, committer, start, planner


@entry
def next_event(handles, until):
    """Run all pools in time order until a pass reports events, or to *until*.

    At equal times every pass ends before any starts, so that whatever the ends cause (a client's next request) can
    still join; a pass that would start at *until* is left to the next call for the same reason.
    Returns (number of events, index of their pool).
    """
    while True:
        end, committer, ending, start, planner, starting = math.inf, NONE, 0, math.inf, NONE, 0
        for p in range(len(handles)):
            pool_end, c, pool_start, s = _earliest(_open(handles[p]))
            if pool_end < end:
                end, committer, ending = pool_end, c, p
            if pool_start < start:
                start, planner, starting = pool_start, s, p
        if start < end and start < until:
            pool = starting
        elif end < math.inf and end <= until:
            pool = ending
        else:
            return 0, 0
        e = _open(handles[pool])
        e.limits[0].n_events = 0
        if start < end:
            _plan(e, planner)
        else:
            _commit(e, committer)
        if e.limits[0].n_events > 0:
            return e.limits[0].n_events, pool


@inner
def _interrupt(e, r, time):
    """Cut a run of decode passes after the last one that starts before *time*, so that the queue is looked at."""
    rep = e.replicas[r]
    if rep.planned and rep.end == math.inf:
        rep.planned = 0
        rep.now = max(rep.now, time)
    elif rep.planned and rep.passes_planned > 1:
        rep.passes_planned, seconds = _jump(
            e, rep.n_decode, rep.context, rep.passes_planned, max(time - rep.now, 0.0), 0
        )
        rep.end = rep.now + seconds


@inner
def _queue(e, r, j, time):
    rep, job = e.replicas[r], e.jobs[j]
    job.visible, job.replica = time, r
    rep.outstanding += 1
    rep.kv_load += job.input
    waited_for = rep.wait_head == NONE and rep.n_running < e.limits[0].max_num_seqs
    _push(e, r, j, False)
    if waited_for or rep.n_running == 0:
        _interrupt(e, r, time)


@entry
def submit(handle, r, j, time):
    """Queue job *j* on replica *r* at *time*, up to which the replica has been run."""
    e = _open(handle)
    job = e.jobs[j]
    if job.kv == LOCAL:
        job.prefill_load = job.input - kv_cache.match(e, r, j, job.input)[0]
        e.replicas[r].prefill_load += job.prefill_load
    _queue(e, r, j, time)


@entry
def submit_all(handle, replica_of, times):
    """Queue all jobs on their replicas at their times, which do not decrease; those on replica NONE are left out."""
    e = _open(handle)
    for j in range(len(replica_of)):
        if replica_of[j] != NONE:
            _queue(e, replica_of[j], j, times[j])


@entry
def land(handle, j, time, generated, ctx, shown):
    """The prompt KV of job *j* has arrived: it decodes from *ctx* computed and *generated* known tokens.

    *shown* is when the client got the first token, or NaN if this replica generates it.
    """
    e = _open(handle)
    job = e.jobs[j]
    job.visible, job.kv, job.generated, job.ctx, job.gap_from = time, LANDED, generated, ctx, shown
    e.replicas[job.replica].prefill_load -= job.prefill_load
    job.prefill_load = 0
    kv_cache.register(e, job.replica, j, job.input)
    _push(e, job.replica, j, True)
    _interrupt(e, job.replica, time)


@entry
def release(handle, j, time):
    """Free the blocks of a finished prefill whose KV has been copied away."""
    e = _open(handle)
    r = e.jobs[j].replica
    rep = e.replicas[r]
    kv_cache.release(e, r, j)
    rep.outstanding -= 1
    rep.kv_load -= e.jobs[j].input
    _interrupt(e, r, time)


@inner
def _settle(e, r, time):
    """Split a run of decode passes at *time* when its growth evicts, so that the cache is seen as it is then."""
    rep = e.replicas[r]
    if not rep.planned or rep.passes_planned == 1 or rep.end == math.inf:
        return
    head = e.slots[r, rep.lru_head]
    if head.key < 0 and head.count >= rep.n_decode * _blocks(e, rep.passes_planned):
        return
    passes, seconds = _jump(e, rep.n_decode, rep.context, rep.passes_planned, time - rep.now, 0)
    if rep.now + seconds > time:
        passes -= 1
    if passes > 0:
        rep.passes_planned = passes
        rep.end = rep.now + _jump(e, rep.n_decode, rep.context, passes, math.inf, 0)[1]
        _commit(e, r)
        _advance(e, r, time)


@entry
def cached_tokens(handle, j, time, out):
    """Fill *out* with the prompt tokens of job *j* that each replica has in its cache at *time*."""
    e = _open(handle)
    for r in range(len(e.replicas)):
        _settle(e, r, time)
        out[r] = kv_cache.match(e, r, j, e.jobs[j].input)[0]
