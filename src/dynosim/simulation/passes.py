"""How long passes take: lookups in the timing tables, and closed forms over runs of decode passes. Compiled."""

from __future__ import annotations

import math

from dynosim.simulation.compiled import inner
from dynosim.simulation.gaps import record_gaps


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
def _crossing(e, r, tokens):
    """Extra time of *tokens* tokens in a tensor-parallel group that crosses nodes."""
    return e.rows[r].crossing_s + e.rows[r].crossing_token_s * tokens


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
def _jump(e, r, passes, target, weight):
    """Run up to *passes* decode passes of row *r*, until *target* seconds are reached.

    Pass i (from 0) takes g + d(context + i batch), g the padded token-wise time and d piecewise linear, so inside one
    segment the times are an arithmetic series. With *weight* > 0 each pass adds that many token gaps to the histogram.
    Returns (passes done, seconds).
    """
    rep = e.rows[r]
    batch, context, slow = rep.n_decode, rep.context, rep.slowdown
    nodes, values = e.decode_context[batch], e.decode_s[batch]
    base = e.graph_tokens_s[batch] + _crossing(e, r, rep.decode_tokens)
    j, done, total = _segment(nodes, context), 0, 0.0
    while done < passes:
        slope = (values[j + 1] - values[j]) / (nodes[j + 1] - nodes[j])
        first = (base + values[j] + slope * (context - nodes[j])) * slow
        step, m = slope * batch * slow, passes - done
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
def _decode_time(e, r, ahead):
    """Time of a decode-only pass of row *r*, *ahead* passes from now."""
    rep = e.rows[r]
    b = rep.n_decode
    if b == 0:
        return 0.0
    attention = _line(e.decode_context[b], e.decode_s[b], rep.context + ahead * b)
    return (e.graph_tokens_s[b] + _crossing(e, r, rep.decode_tokens) + attention) * rep.slowdown


@inner
def _step_together(e, g, passes, target, weight):
    """``_jump`` for ranks in lock-step: the slowest of them ends every pass."""
    done, total = 0, 0.0
    while done < passes and total < target:
        slowest = 0.0
        for r in range(g, g + e.limits[0].ranks):
            slowest = max(slowest, _decode_time(e, r, done))
        if weight > 0:
            record_gaps(e.gap_count, e.gap_sum, e.gap_range, slowest, 0.0, 1, weight)
        total, done = total + slowest, done + 1
    return done, total


@inner
def run_decodes(e, g, passes, target, weight):
    """Run up to *passes* decode passes of the rows that start at *g*, until *target* seconds are reached.

    With *weight* > 0 each pass adds that many token gaps. Returns (passes done, seconds).
    """
    if e.limits[0].ranks > 1:
        return _step_together(e, g, passes, target, weight)
    return _jump(e, g, passes, target, weight)


@inner
def _prefill_attention(e, r):
    """Sum over the planned chunks of share(k, s) (1 - (c/s)^2) + chunk_s; see ``timing.base``."""
    rep, chunks, seconds = e.rows[r], 0, 0.0
    for i in range(rep.n_running):
        job = e.jobs[e.running[r, i]]
        chunks += job.prefilling > 0 and job.chunk > 0
    shares = e.prefill_share_s[min(chunks, len(e.prefill_share_s) - 1)]
    for i in range(rep.n_running):
        job = e.jobs[e.running[r, i]]
        if job.prefilling and job.chunk > 0:
            s = job.ctx + job.chunk
            seconds += _line(e.prefill_seq, shares, s) * (1.0 - (job.ctx / s) ** 2)
    return seconds + chunks * e.limits[0].chunk_s


@inner
def pass_time(e, r):
    """Time of row *r*'s one planned pass by itself, as its GPUs need it."""
    rep = e.rows[r]
    b = rep.n_decode
    if rep.prefill_tokens == 0:
        return _decode_time(e, r, 0)
    tokens = rep.prefill_tokens + (rep.decode_tokens if e.limits[0].fused else 0)
    seconds = e.tokens_s[tokens] + _prefill_attention(e, r)
    seconds += _crossing(e, r, rep.prefill_tokens + rep.decode_tokens)
    if b > 0:
        seconds += _line(e.decode_context[b], e.decode_s[b], rep.context)
    return seconds * rep.slowdown


@inner
def pass_time_together(e, g, prefill):
    """Time of the planned pass of the ranks that start at *g*, *prefill* of its tokens prefill; see ``timing.base``."""
    ranks, slowest, tokens, largest = e.limits[0].ranks, 0.0, 0, 0
    for r in range(g, g + ranks):
        rep, seconds = e.rows[r], pass_time(e, r)
        if prefill > 0:
            carried = rep.prefill_tokens + rep.decode_tokens
            seconds, tokens = seconds - e.expert_s[carried] * rep.slowdown, tokens + carried
            largest = max(largest, carried if e.limits[0].fused else rep.prefill_tokens)
        slowest = max(slowest, seconds)
    slowest += e.expert_s[(tokens + ranks - 1) // ranks] * e.rows[g].slowdown
    return max(slowest, e.limits[0].eager_s * e.rows[g].slowdown) if largest > e.limits[0].eager_tokens else slowest


@inner
def stall(e, r, seconds):
    """How much longer a pass of *seconds* is than the decodes of row *r* alone would take."""
    return max(seconds - _decode_time(e, r, 0), 0.0)


@inner
def through_stages(e, r, start, seconds):
    """Send a pass of *seconds* (of the whole model) through the pipeline; returns when the last stage ends it."""
    lanes, free, time = e.limits[0].lanes, e.stage_free[e.rows[r].queue], start
    stage = seconds / lanes
    for s in range(lanes):
        time = max(time, free[s]) + stage
        free[s] = time
    return time
