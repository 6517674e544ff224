"""The engine as the cluster sees it: requests go in, time goes on, events come out; replicas start and fail. Compiled.

One ``Engine`` holds all replicas of one pool. ``next_event`` runs all pools and the links in time order. At equal times
copies end first, then passes, then passes start, so that whatever an end causes can still join.
"""

from __future__ import annotations

import math

from dynosim.simulation import index, kv_cache, links, queues, routing, tiers
from dynosim.simulation.admission import leave_batch, set_aside
from dynosim.simulation.batching import (
    commit,
    growth_evicts,
    leader,
    let_go,
    next_arrival,
    plan,
    some_more,
    start_together,
    wake,
)
from dynosim.simulation.compiled import Floats, Handle, Handles, Ints, entry, inner
from dynosim.simulation.passes import run_decodes
from dynosim.simulation.state import (
    BY_DECODE,
    BY_PREFILL,
    DISK,
    FINISHED,
    HAND_OFF,
    HOST,
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
    RACK_IN,
    RACK_OUT,
    REMOTE,
    RESERVED,
    STORE,
    open_engine,
)

# -------------------------------------------------------------------------------------------------- between the passes


@inner
def _replica_rows(e):
    return max(e.limits[0].ranks, e.limits[0].lanes)


@inner
def _look_again(e, r):
    """The replica of row *r* may have something to do at any time."""
    e.due[r // _replica_rows(e)] = -math.inf


@inner
def _interrupt(e, q, time, ahead):
    """Cut a run of decode passes *ahead* passes after the last one that starts before *time*, so that queue *q* is
    looked at."""
    wake(e, q, time)
    lim, g = e.limits[0], leader(e, q)
    rep = e.rows[g]
    _look_again(e, q)
    if rep.planned and rep.passes_planned > 1 and rep.end < math.inf:
        passes, seconds = run_decodes(e, g, rep.passes_planned, max(time - rep.now, 0.0), 0)
        passes, seconds = some_more(e, g, passes, ahead, rep.passes_planned, seconds)
        for r in range(g, g + lim.ranks):
            e.rows[r].passes_planned, e.rows[r].end = passes, rep.now + seconds


@inner
def _plan_again(e, r, time):
    """A pass that was planned to start at this very *time* takes in what has come since: a copy that took no time."""
    g = leader(e, r)
    if e.rows[g].planned and e.rows[g].now == time and e.limits[0].lanes == 1:
        for row in range(g, g + e.limits[0].ranks):
            e.rows[row].planned, e.rows[row].end = 0, math.inf


@inner
def _queue(e, r, j, time):
    rep, job, lim = e.rows[r], e.jobs[j], e.limits[0]
    job.visible = job.arrived = time
    job.row = r
    job.key = job.static_key + (time if lim.key_adds_time else 0.0)
    rep.outstanding += 1
    rep.kv_load += job.input
    index.send(e, r, j, time)
    queues.arrive(e, r, j)
    _look_again(e, r)
    if next_arrival(e, r) < math.inf or rep.n_running == 0 or lim.lanes > 1:
        _interrupt(e, r, time, lim.overlap)


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
    if lim.first_token == BY_PREFILL:
        job.first = job.gap_from = there.first
    r = job.row
    kv_cache.register(e, e.rows[r].cache, j, job.input)
    queues.push_front(e, e.rows[r].queue, j)
    _interrupt(e, e.rows[r].queue, time, 0)
    _plan_again(e, r, time)
    let_go(prefill, j, time)
    _interrupt(prefill, prefill.rows[there.row].queue, time, 0)


@inner
def _send(e, prefill, j, time):
    """Start to copy what the decode row lacks of job *j*'s prompt KV."""
    job = e.jobs[j]
    source, target = prefill.rows[prefill.jobs[j].row], e.rows[job.row]
    tokens = job.input - job.cached
    t = links.begin(
        e, time, HAND_OFF, job.row, j, tokens * prefill.limits[0].block_bytes / prefill.limits[0].block_size
    )
    ports = e.row_links[job.row]
    source_ports = prefill.row_links[prefill.jobs[j].row]
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
        _interrupt(e, e.rows[r].queue, time, 0)
    elif kind == LOAD:
        job = e.jobs[j]
        job.loading -= 1
        if job.loading == 0:
            job.kv, job.visible = LOADED, time
            kv_cache.register(e, e.rows[r].cache, j, job.ctx)
            queues.push_front(e, e.rows[r].queue, j)
            _interrupt(e, e.rows[r].queue, time, 0)


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
        rep = e.rows[g]
        if rep.planned:
            if rep.end < end:
                end, committer = rep.end, g
        else:
            time = start_together(e, g)
            if time < start:
                start, planner = time, g
    return end, committer, start, planner


@inner
def _advance(e, first, until):
    """Run the replica whose rows start with *first* up to *until*: passes that end by then, and start before."""
    last = first + _replica_rows(e)
    while True:
        end, committer, start, planner = _earliest(e, first, last)
        if start < end and start < until:
            plan(e, planner)
        elif end < math.inf and end <= until:
            commit(e, committer)
        else:
            e.due[first // _replica_rows(e)] = min(end, start)
            return


@inner
def _advance_alone(handles, until):
    """Run one replica after the other up to *until* if none affects another and nobody watches; says whether it did."""
    e = open_engine(handles[0])
    lim = e.limits[0]
    if len(handles) > 1 or lim.watch or lim.watch_prompts or lim.tiers > 0 or lim.lag_s > 0.0:
        return False
    rows = _replica_rows(e)
    for replica in range(len(e.rows) // rows):
        if e.due[replica] <= until:
            _advance(e, replica * rows, until)
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
def next_event(handles: Handles, until: float) -> tuple[int, int]:
    """Run all pools and links in time order until a pass reports events, or to *until*.

    A pass that would start at *until* is left to the next call, so that whatever happens then can still join. Returns
    (number of events, index of their pool).
    """
    return _next_event(handles, until)


@inner
def _next_event(handles, until):
    if _advance_alone(handles, until):
        return 0, 0
    net = open_engine(handles[0]).net
    while True:
        end, committer, ending, start, planner, starting = math.inf, NONE, 0, math.inf, NONE, 0
        for p in range(len(handles)):
            e = open_engine(handles[p])
            pool_end, c, pool_start, s = _earliest(e, 0, len(e.rows))
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
            plan(e, planner)
        else:
            commit(e, committer)
        _hand_over(handles, e, min(start, end))
        if e.limits[0].n_events > 0:
            return e.limits[0].n_events, pool


@entry
def submit(handle: Handle, r: int, j: int, time: float) -> None:
    """Queue job *j* on row *r* at *time*, up to which the row has been run."""
    _submit(open_engine(handle), r, j, time)


@inner
def _submit(e, r, j, time):
    job = e.jobs[j]
    if job.kv == LOCAL and job.generated == 0:
        job.prefill_load = job.input - kv_cache.match(e, e.rows[r].cache, j, job.input)[0]
        e.rows[r].prefill_load += job.prefill_load
    _queue(e, r, j, time)


@entry
def submit_all(handle: Handle, row_of: Ints, times: Floats) -> None:
    """Queue all jobs on their rows at their times, which do not decrease; those on row NONE are left out."""
    e = open_engine(handle)
    for j in range(len(row_of)):
        if row_of[j] != NONE:
            _queue(e, row_of[j], j, times[j])


@entry
def release(handle: Handle, j: int, time: float) -> None:
    """Free the blocks of a finished prefill that hands nothing off."""
    e = open_engine(handle)
    r = e.jobs[j].row
    let_go(e, j, time)
    _interrupt(e, e.rows[r].queue, time, 0)


# ------------------------------------------------------------------------------------------------------------ looking


@inner
def _settle(e, g, time):
    """Split a run of decode passes at *time* when its growth evicts, so that the cache is seen as it is then."""
    rep = e.rows[g]
    if rep.planned and rep.passes_planned > 1 and rep.end < math.inf and growth_evicts(e, g, rep.passes_planned):
        _split(e, g, time)


@inner
def _split(e, g, time):
    """Commit those of a run of decode passes that have ended by *time*; the others go on as they were planned, and so
    does the last one: ``next_event`` reports what it ends."""
    rep, lim, planned = e.rows[g], e.limits[0], e.rows[g].passes_planned
    passes, seconds = run_decodes(e, g, planned, time - rep.now, 0)
    if rep.now + seconds > time or passes == planned:
        passes -= 1
    if passes <= 0:
        return
    end = rep.now + run_decodes(e, g, passes, math.inf, 0)[1]
    for r in range(g, g + lim.ranks):
        e.rows[r].passes_planned, e.rows[r].end = passes, end
    commit(e, g)
    for r in range(g, g + lim.ranks):
        e.rows[r].context += passes * e.rows[r].n_decode
    end = rep.now + run_decodes(e, g, planned - passes, math.inf, 0)[1]
    for r in range(g, g + lim.ranks):
        e.rows[r].planned, e.rows[r].passes_planned, e.rows[r].end = 1, planned - passes, end
    _look_again(e, g)


@entry
def settle_all(handle: Handle, time: float) -> None:
    """Bring every row to *time*: what the passes that have ended by then have done can be read."""
    _settle_all(open_engine(handle), time)


@entry
def stop(handle: Handle, time: float) -> None:
    """End the run at *time*: those still in a queue have waited until then."""
    e = open_engine(handle)
    _settle_all(e, time)
    for r in range(len(e.rows)):
        queues.look(e, e.rows[r].queue, time, time)
    for j in range(len(e.jobs)):
        if e.jobs[j].marked:
            queues.settle_waits(e, e.rows[e.jobs[j].row].queue, j)


@inner
def _settle_all(e, time):
    for g in range(0, len(e.rows), e.limits[0].ranks):
        rep = e.rows[g]
        if rep.planned and rep.passes_planned > 1 and rep.end < math.inf:
            _split(e, g, time)


@inner
def _look_up(e, j, time):
    """Note the blocks of the prompt of job *j* that every row has at *time*, as far as the router knows."""
    for g in range(0, len(e.rows), e.limits[0].ranks):
        if e.evicts[g]:
            _settle(e, g, time)
    index.catch_up(e, time)
    index.look_up(e, j, time)
    if e.limits[0].tiers > 0:
        for r in range(len(e.rows)):
            _look_below(e, r, j)


@inner
def _look_below(e, r, j):
    """Note what the lower tiers of row *r* add to what its cache has."""
    tokens, lim = e.jobs[j].input, e.limits[0]
    nodes = kv_cache.match(e, e.rows[r].cache, j, tokens)[1]
    tiers.extend(e, r, j, nodes, tokens, False)
    e.overlap[HOST, r] = e.overlap[DISK, r] = 0
    for tier in range(lim.tiers):
        e.overlap[HOST if lim.tier_kind[tier] == 0 else DISK, r] += e.tier_blocks[tier]


@entry
def look_up(handle: Handle, j: int, time: float) -> None:
    """Fill ``overlap`` with the blocks of the prompt of job *j* that every row has at *time*."""
    _look_up(open_engine(handle), j, time)


@entry
def route(handle: Handle, rows: Ints, weights: Floats, draw: float, j: int, time: float) -> int:
    """Return the position in *rows* of the one that ``kv_aware`` sends job *j* to."""
    e = open_engine(handle)
    _look_up(e, j, time)
    return routing.kv_aware(e, rows, weights, draw, j)


@inner
def _route(e, rows, weights, draw, j, time):
    _look_up(e, j, time)
    _submit(e, rows[routing.kv_aware(e, rows, weights, draw, j)], j, time)


@entry
def send(handle: Handle, rows: Ints, weights: Floats, draw: float, j: int, time: float) -> None:
    """Queue job *j* where ``route`` says."""
    _route(open_engine(handle), rows, weights, draw, j, time)


@entry
def route_to_event(
    handles: Handles,
    rows: Ints,
    weights: Floats,
    draws: Floats,
    requests: Ints,
    times: Floats,
    first: int,
    until: float,
) -> tuple[int, int, int]:
    """Like ``next_event``, and send those of *requests*, from the *first* on, that come to the first pool by then, as
    ``route`` does. Returns the next request too."""
    e = open_engine(handles[0])
    while first < len(requests) and times[requests[first]] <= until:
        j = requests[first]
        count, pool = _next_event(handles, times[j])
        if count > 0:
            return count, pool, first
        _route(e, rows, weights, draws[j], j, times[j])
        first += 1
    count, pool = _next_event(handles, until)
    return count, pool, first


# ------------------------------------------------------------------------------------------------ starting and failing


@inner
def _empty(e, c):
    """Cache *c* holds nothing."""
    cache = e.caches[c]
    e.buckets[cache.bucket_base : cache.bucket_base + cache.bucket_mask + 1] = 0
    cache.lru_head = cache.lru_tail = cache.slot_head = cache.copies = 0
    cache.slots_used = cache.slot_base
    cache.empty = cache.free_blocks = cache.num_blocks


@inner
def _rows_of(e, replica):
    size = _replica_rows(e)
    return replica * size, (replica + 1) * size


@inner
def _boot(e, replica, time):
    first, end = _rows_of(e, replica)
    for r in range(first, end):
        rep = e.rows[r]
        rep.now, rep.planned, rep.end = time, 0, math.inf
        if rep.queue == r:
            _empty(e, rep.cache)
            index.forget(e, r)
            for k in range(e.limits[0].tiers):
                if e.limits[0].tier_kind[k] != tiers.REMOTE_STORE:
                    _empty(e, tiers.cache_of(e, r, k))
    e.stage_free[first] = time
    _look_again(e, first)


@entry
def boot(handle: Handle, replica: int, time: float) -> None:
    """A replica starts at *time* with empty caches."""
    _boot(open_engine(handle), replica, time)


@inner
def _lose(e, r, j, time):
    """Job *j* has lost what row *r* had of it: like a preempted one if it had begun, but in no queue."""
    job, rep = e.jobs[j], e.rows[r]
    if job.kv == LOCAL and job.blocks > 0 and math.isnan(job.preempted_at):
        job.preempted_at = time
        if job.generated > 0:
            job.stall_s += rep.stalled - job.stall_mark
    if job.generated > 0 and math.isnan(job.gap_from):
        job.gap_from = rep.last_end
    e.held[job.hash_start : job.hash_start + job.hash_count] = 0
    job.ctx = job.chunk = job.prefilling = job.prefill_load = 0
    job.blocks = job.own = job.nodes = job.before = job.filled = 0
    job.storing = job.loading = 0
    if job.kv == LANDED:
        job.kv, job.preempted_at = LOCAL, time
        if math.isnan(job.first):
            job.generated = 0  # nobody has seen its token
    elif job.kv != LOCAL:
        job.kv = REMOTE if e.limits[0].remote else LOCAL


@inner
def _withdraw(e, j):
    """Take job *j*, whose prompt KV will not come, off its decode row."""
    job = e.jobs[j]
    rep = e.rows[job.row]
    if job.kv == REMOTE:
        queues.withdraw(e, job.row, j)
    elif job.kv == MOVING:
        set_aside(e, job.row, j, -1)
        kv_cache.release(e, rep.cache, j)
        job.kv = REMOTE
        e.rows[rep.queue].n_coming -= 1
    index.leave(e, job.row, j)
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
            e.limits[0].hold and t.kind == HAND_OFF and first <= e.jobs[t.job].row < end
        ):
            links.remove(e, i)


@inner
def _off(e, r, time):
    """Row *r* stops: nothing planned, nothing running, nobody in its queue."""
    rep = e.rows[r]
    if rep.queue == r:
        queues.look(e, r, time, time)
        while rep.wait_head != NONE:
            queues.leave(e, r, NONE, rep.wait_head)
    rep.n_running = rep.n_ended = rep.n_waiting = rep.n_arriving = rep.n_coming = rep.planned = rep.full = 0
    rep.arrive_head = rep.arrive_tail = rep.wait_tail = NONE
    rep.outstanding = rep.prefill_load = rep.kv_load = rep.reserved_blocks = 0
    rep.now, rep.end = time, math.inf


@entry
def crash(handles: Handles, pool: int, replica: int, time: float) -> None:
    """A replica stops at *time*: its batch, queue, cache and copies are gone, and so are hand-offs that have not landed
    of prompts it holds. The cluster sends the requests again."""
    e = open_engine(handles[pool])
    first, end = _rows_of(e, replica)
    _break_off(handles, pool, first, end, time)
    for r in range(first, end):
        for i in range(e.rows[r].n_running):
            if e.jobs[e.running[r, i]].ended:
                e.jobs[e.running[r, i]].ended = 0
            else:
                _lose(e, r, e.running[r, i], time)
        _off(e, r, time)
    for j in range(len(e.jobs)):
        job = e.jobs[j]
        if not first <= job.row < end:
            continue
        if math.isnan(job.last):
            _lose(e, job.row, j, time)  # those in no batch
        if e.limits[0].hold:
            decode = open_engine(handles[1])
            if decode.jobs[j].row != NONE and math.isnan(decode.jobs[j].landed) and decode.jobs[j].kv != LOCAL:
                _withdraw(decode, j)
                _interrupt(decode, decode.jobs[j].row, time, 0)
    _boot(e, replica, time)


@entry
def withdraw(handle: Handle, j: int, time: float) -> None:
    """Take job *j*, whose prompt will not be prefilled, off its decode row."""
    e = open_engine(handle)
    _withdraw(e, j)
    _interrupt(e, e.rows[e.jobs[j].row].queue, time, 0)


@inner
def _leave_early(e, j):
    """Job *j*, which has ended, does not stay in its batch until the next pass is chosen."""
    first = e.jobs[j].row
    for r in range(first, first + e.limits[0].lanes):
        for i in range(e.rows[r].n_running - 1, -1, -1):
            if e.running[r, i] == j:
                leave_batch(e, r, i)
                e.rows[r].n_ended -= 1
    e.jobs[j].ended = 0


@entry
def restart(handle: Handle, j: int) -> None:
    """Job *j*, in no queue and no batch, is as if it had never run here; if it had begun, all since is preemption."""
    e = open_engine(handle)
    job, begun = e.jobs[j], e.jobs[j].scheduled
    if job.ended:
        _leave_early(e, j)
    e.held[job.hash_start : job.hash_start + job.hash_count] = 0
    job.generated = job.ctx = job.chunk = job.prefilling = job.prefill_load = 0
    job.blocks = job.own = job.nodes = job.before = job.filled = 0
    job.named = job.stored = job.storing = job.loading = 0
    job.preempted_prefill_s = job.preempted_decode_s = job.stall_s = 0.0
    job.first = job.second = job.last = job.landed = job.gap_from = job.preempted_at = math.nan
    job.kv = REMOTE if e.limits[0].remote else LOCAL
    if e.limits[0].remote:
        job.scheduled = math.nan
    elif not math.isnan(begun):
        job.preempted_at = begun
