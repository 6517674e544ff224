"""The slow oracle: the engine's semantics written out pass by pass and block by block in plain Python.

It takes the place of the compiled functions of ``dynosim.simulation.engine`` under the same cluster. No jumps over
passes, no runs of blocks, no linked lists: every forward pass is executed, every KV block has its own identity, every
queue is a list. What a block holds comes from the workload itself. ``oracle_kv`` has the caches, ``oracle_net`` the
links. vLLM's rules are those of 0.32 (``v1/core/sched``, ``v1/core/block_pool.py``, ``v1/engine/core.py``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from dynosim.policies.routing import kv_aware
from dynosim.simulation import state as s
from dynosim.simulation.pool import Pool
from dynosim.workload.table import Workload
from simulation.oracle_kv import Block, Cache, Key, Tier
from simulation.oracle_net import Network

T = TypeVar("T")
GOLDEN = 0x9E3779B97F4A7C15
REMOTE_KIND = 2
TIER_COLUMNS = ("cached_host", "cached_disk", "cached_remote")
CLIP = 4096  # SGLang: output tokens of one request that admission looks ahead at most
NOTHING = -1  # the queue waits for nothing but the end of the pass
UNLIMITED = 1 << 60
OWN = "own"
RETRACT_STEPS = 20  # SGLang: tokens that a retraction expects of every request that stays
FEW_TOKENS = 32  # SGLang: who finds no more may wait for others with the same prompt
REFRESH_PASSES = 32  # SGLang: what a queue by arrival would find counts as used every so often
MANY_WAITING = 128  # SGLang: longest prefix first gives way to first come, first served above


class Job:
    """One request in one pool."""

    def __init__(self, pool: Oracle, index: int, row: Any) -> None:
        self.index, self.row = index, row
        self.input, self.output = int(row["input"]), int(row["output"])
        self.keys = pool.content(index, self.input + self.output)
        self.nodes = pool.nodes_of(row)
        self.rank: Rank | None = None
        self.rounds = 0  # of speculation
        self.order = 0  # of admission
        self.arrived = 0.0  # at this pool's queue
        self.reset()

    def reset(self) -> None:
        """As if it had never run here."""
        self.forget_blocks()
        self.visible, self.key, self.kv = 0.0, 0.0, int(self.row["kv"])
        self.generated = self.named = self.stored = self.unseen = 0
        self.computing = False
        self.last_token = self.token_before = self.preempted_at = math.nan
        self.stall_mark = self.wait_from = self.load_from = 0.0

    def forget_blocks(self) -> None:
        """Nothing of it is computed or on its way any more."""
        self.blocks: list[Block] = []
        self.hashed = 0  # of them can be found
        self.ctx = self.chunk = self.loading = 0
        self.prefilling = self.storing = self.ended = False

    @property
    def tokens(self) -> int:
        return self.input + self.generated

    @property
    def decoding(self) -> bool:
        return not self.prefilling and not self.ended


@dataclass
class Room:
    """SGLang: tokens that are left for prompts of a pass."""

    chunk: int
    input: int
    now: int
    """Of the KV cache,"""
    kept: float
    """and of that, without what is kept for answers."""
    size: int
    ends: list[Job] | None = None
    """Who runs, in the order in which they will end."""

    def pages(self, tokens: int) -> int:
        return -(-tokens // self.size) * self.size

    def charge(self, job: Job, pinned: int) -> None:
        """Take what the chunk of *job* needs, and its answer if the prompt ends with it."""
        if job.chunk == 0:
            return
        pages, ends = self.pages(job.chunk), job.ctx + job.chunk == job.tokens
        self.chunk, self.input = self.chunk - pages, self.input - pages
        self.now -= pages + self.size + pinned
        self.kept -= pages + self.size + pinned + (min(job.output, CLIP) if ends else 0)


class Lane:
    """One running batch: a row of the engine."""

    def __init__(self, rank: Rank, row: int) -> None:
        self.rank, self.row = rank, row
        self.running: list[Job] = []
        self.unit: Unit  # that it is planned in
        self.planned = 0, 0, 0  # prefill tokens, decode tokens, decodes
        self.stalled = self.stall_planned = 0.0
        self.full, self.ratio_base, self.ratio_steps = False, 0.0, 0
        self.flight: list[Job] = []  # in the pass before
        self.last_end = -math.inf
        self.batch_waits = 0

    # ------------------------------------------------------------------------------------------- vLLM and TensorRT-LLM

    def schedule_together(self, now: float) -> None:
        """Running requests first, then the queue, under one token budget."""
        longest = self.longest_chunk()
        budget, preempted = self.schedule_running(longest)
        if preempted:
            self.rank.reason = s.KV_BLOCKS
        elif self.waits_for_company() or self.unit.held:
            self.rank.reason = s.TOKEN_BUDGET
        else:
            self.schedule_waiting(now, budget, longest)

    def longest_chunk(self) -> int:
        """Most tokens of one prompt in this pass: all of it for a request that is alone."""
        lim, requests = self.rank.pool.lim, len(self.rank.running()) + len(self.rank.waiting)
        if requests <= 1 or lim["long_prefill_tokens"] == 0:
            return UNLIMITED
        fair = int(lim["max_num_batched_tokens"]) // requests if lim["long_prefill_adaptive"] else 0
        return max(int(lim["long_prefill_tokens"]), fair)

    def waits_for_company(self) -> bool:
        """TensorRT-LLM: prompts wait for a fuller pass while others decode."""
        lim = self.rank.pool.lim
        tokens = sum(job.chunk for job in self.running) + sum(job.tokens for job in self.rank.waiting)
        alone = not self.rank.waiting or all(job.prefilling for job in self.running)
        alone |= len(self.running) >= lim["max_num_seqs"]
        if alone or tokens >= lim["batch_wait_tokens"] or self.batch_waits >= lim["batch_wait_iters"]:
            self.batch_waits = 0
        else:
            self.batch_waits += 1
        return self.batch_waits > 0

    def schedule_running(self, longest: int) -> tuple[int, bool]:
        """Give the running requests tokens and blocks, in order; return (tokens left, whether any was preempted)."""
        budget, preempted, i = int(self.rank.pool.lim["max_num_batched_tokens"]), False, 0
        while i < len(self.running) and budget > 0:
            job = self.running[i]
            i += 1
            if job.ended:
                continue
            wanted = min(job.tokens - job.ctx, longest) if job.prefilling else self.rank.pool.decode_tokens(job)
            chunk = min(wanted, budget)
            while self.rank.missing(job, job.ctx + chunk) > len(self.rank.cache.free):
                lane, victim = self.rank.victim()
                if lane is self:
                    budget += victim.chunk
                    i -= self.running.index(victim) < i
                lane.preempt(victim, lane.unit.now)
                preempted = True
                if victim is job:
                    return budget, preempted
            self.advance(job, chunk)
            budget -= chunk
        return budget, preempted

    def advance(self, job: Job, chunk: int) -> None:
        """Give a running request *chunk* tokens of this pass; the blocks they fill can be found from now on."""
        rank = self.rank
        job.chunk = chunk
        rank.grow(job, job.ctx + chunk)
        # Overlapped, the token that a decode computes is not known before the next pass.
        known = job.ctx if rank.pool.lim["overlap"] and not job.prefilling else job.tokens
        rank.register(job, min(job.ctx + chunk, known))

    def schedule_waiting(self, now: float, budget: int, longest: int) -> None:
        rank, lim = self.rank, self.rank.pool.lim
        while rank.waiting:
            if len(self.running) >= lim["max_num_seqs"]:
                rank.reason = s.BATCH_SLOTS
                return
            job = rank.candidate()
            if job.kv == s.REMOTE:
                if not rank.has_seat():
                    rank.reason = s.BATCH_SLOTS
                    return
                if not rank.reserve(job, now):
                    rank.reason = s.KV_BLOCKS
                    return
                continue
            if budget <= 0:
                rank.reason = s.TOKEN_BUDGET
                return
            if job.kv == s.LANDED:
                self.join(job, 1, now)
            elif job.kv == s.LOADED:
                self.join(job, min(job.tokens - job.ctx, budget), now)
            else:
                loading = rank.load(job, now)
                if loading == "blocked":
                    rank.reason = s.KV_BLOCKS
                    return
                if loading == "started":
                    continue
                hit, found = rank.match(job, job.tokens)
                chunk = rank.clip(min(job.tokens - hit, longest), budget)
                if chunk == 0:
                    rank.reason = s.TOKEN_BUDGET
                    return
                tokens = job.tokens if lim["reserve_full"] else hit + chunk
                if lim["scheduler"] == s.NO_EVICT:
                    tokens = rank.pool.whole(job)
                spare = int(lim["watermark_blocks"]) if rank.running() else 0
                if not rank.has_room(tokens, hit, found, spare):
                    rank.reason = s.KV_BLOCKS
                    return
                rank.attach(job, hit, found, hit + chunk)
                job.ctx = hit
                self.note_cached(job, hit)
                self.join(job, chunk, now)
            budget -= job.chunk

    # --------------------------------------------------------------------------------------------------------- SGLang

    def schedule_sglang(self, now: float) -> None:
        """A pass of prefills where one can be formed, else a pass of decodes; both with mixed chunks.

        Overlapped, the result of the pass before is not known yet: not its tokens, and nobody finds its prompts.
        """
        rank, lim = self.rank, self.rank.pool.lim
        flight, self.flight = self.flight, []
        fresh = [job for job in flight if job in self.running and job.computing and not job.prefilling]
        for job in self.running:
            job.unseen = int(bool(lim["overlap"]) and job in flight and not job.prefilling)
            if job.blocks and (job.prefilling or (job in fresh and not lim["overlap"])):
                rank.checkpoint(job, now)
        self.note_flags(flight, now)
        self.form_batch(now)
        for job in fresh if lim["overlap"] else ():
            if job in self.running and job.blocks:
                rank.checkpoint(job, now)

    def note_flags(self, flight: list[Job], now: float) -> None:
        """The batch is not full any more once it has merged into that of a prefill pass, or has nobody left."""
        decodes = [job for job in self.running if not job.prefilling]
        prefilled = any(job.computing for job in flight)
        merged = all(job in flight for job in self.running) or any(job.prefilling for job in self.running)
        if not decodes or (prefilled and merged):
            self.full = False
        if not self.running and now > self.last_end:
            self.ratio_base, self.ratio_steps = float(self.rank.pool.lim["init_ratio"]), 0

    def form_batch(self, now: float) -> None:
        rank, lim = self.rank, self.rank.pool.lim
        decodes = [job for job in self.running if not job.prefilling]
        self.form_prefills(now, decodes, len(decodes) if lim["mixed_chunk"] else 0)
        if lim["ordered"]:
            self.full = False
        if not self.chunks:
            if self.decode_or_retract(now) and not self.running:  # room for somebody else
                rank.reason, self.full = NOTHING, False
                self.form_batch(now)
            return
        going = [job for job in self.running if job.decoding]
        if lim["mixed_chunk"] and self.lacking(going) <= len(rank.cache.free):
            self.decode_all(going)
        else:
            for job in going:
                job.chunk = 0

    def form_prefills(self, now: float, decodes: list[Job], mixed: int) -> None:
        """The chunk of a prompt that has begun, then the queue's head, again and again."""
        rank, lim, size = self.rank, self.rank.pool.lim, int(self.rank.pool.lim["block_size"])
        free = len(rank.cache.free) * size - mixed
        room = Room(
            int(lim["max_num_batched_tokens"]) - mixed, int(lim["max_prefill_tokens"]) - mixed, free, free, size
        )
        room.kept -= self.ratio() * sum(map(to_come, decodes))
        for job in self.running:
            if job.prefilling:
                limit = int(room.kept) if 1 <= room.kept < room.chunk else max(room.chunk, 0)
                have = (len(job.blocks) + len(rank.cache.free)) * size - job.ctx
                job.chunk = min(job.tokens - job.ctx, limit, have)
                rank.grow(job, job.ctx + job.chunk)
                room.charge(job, 0)
                break
        seats = len(self.running) < lim["max_num_seqs"] or lim["ordered"]
        if self.chunks or (seats and not self.full):
            self.look_over()
        begun = bool(self.chunks)
        while rank.waiting and self.admit(rank.waiting[0], room, now, begun):
            begun = bool(self.chunks)
        chunks = self.chunks
        generous = sum(job.chunk + (size if size > 1 else 0) for job in chunks)
        taken = sum(rank.pool.blocks(job.ctx + job.chunk) - rank.pool.blocks(job.ctx) for job in chunks)
        rank.cache.make_room(rank.pool.blocks(generous) - taken)

    def look_over(self) -> None:
        """Order the queue, and use what it would find: all of it, or every so often its head last."""
        rank, lim = self.rank, self.rank.pool.lim
        if lim["longest_prefix"] and len(rank.waiting) <= MANY_WAITING:
            places: dict[Job, float] = {}
            for job in rank.waiting:
                rank.touch(job, job.tokens + 1)
                holds = job.kv in (s.LANDED, s.LOADED)
                places[job] = -math.inf if holds else -rank.match(job, job.tokens)[0]
                few = [other for other in places if -FEW_TOKENS <= places[other] <= 0 and other is not job]
                if places[job] >= -FEW_TOKENS and any(rank.shares(job, other) for other in few):
                    places[job] = math.inf
            rank.waiting.sort(key=places.__getitem__)
        elif rank.waiting:
            if rank.refreshes % REFRESH_PASSES == 0:
                for job in reversed(rank.waiting[:MANY_WAITING]):
                    rank.touch(job, job.tokens + 1)
            rank.refreshes += 1

    def admit(self, job: Job, room: Room, now: float, begun: bool) -> bool:
        """Take the queue's head into the pass; False, with the reason, where that ends the pass."""
        rank, lim = self.rank, self.rank.pool.lim
        if job.kv != s.LANDED and min(room.kept, room.now) > 0 and min(room.chunk, room.input) <= 0:
            return self.stop(s.TOKEN_BUDGET)
        if len(self.running) >= lim["max_num_seqs"]:
            self.full = True
            return self.stop(s.BATCH_SLOTS)
        if job.kv == s.LANDED:
            room.kept -= to_come(job)
            self.join(job, 0, now)
            return True
        if self.full:
            return self.stop(s.KV_BLOCKS)
        if job.kv == s.REMOTE:
            if not rank.has_seat():
                return self.stop(s.BATCH_SLOTS)
            return rank.reserve(job, now) or self.stop(s.KV_BLOCKS)
        if job.kv == s.LOCAL:
            rank.touch(job, job.tokens)
            loading = rank.load(job, now)
            if loading != "no":
                return loading == "started" or self.stop(s.KV_BLOCKS)
            if self.crowded(job, room):
                self.full = bool(self.running)
                return self.stop(s.KV_BLOCKS)
        hit, found = rank.match(job, job.tokens) if job.kv == s.LOCAL else (job.ctx, [])
        if not lim["chunked"] and begun and room.pages(job.tokens - hit) >= room.input:
            return self.stop(s.TOKEN_BUDGET)
        chunk = self.first_chunk(hit, job.tokens - hit, room)
        if chunk <= 0:
            return self.stop(s.TOKEN_BUDGET)
        pinned = rank.cache.pinned(found) * room.size
        if job.kv == s.LOCAL:
            shared = lim["lanes"] > 1 or lim["remote"] or lim["tiers"] > 0
            rank.attach(job, hit, found, job.tokens if shared else hit + chunk)
            job.ctx = hit
            self.note_cached(job, hit)
        self.join(job, chunk, now)
        room.charge(job, pinned)
        if min(room.kept, room.now) <= 0:
            self.full = True
            return self.stop(s.KV_BLOCKS)
        return True

    def stop(self, reason: int) -> bool:
        self.rank.reason = reason
        return False

    def crowded(self, job: Job, room: Room) -> bool:
        """Whether the KV cache has no room for a request and what is kept for answers."""
        rank = self.rank
        hit, found = rank.match(job, job.tokens)
        pinned = rank.cache.pinned(found)
        if rank.pool.lim["foresees"]:
            crowded = self.crowds(job, room)
        else:
            crowded = job.tokens - hit + to_come(job) + room.size + pinned * room.size >= room.kept
        return (crowded and bool(self.running)) or rank.needed(job.tokens, hit) > len(rank.cache.free) - pinned

    def crowds(self, job: Job, room: Room) -> bool:
        """Whether those that run, each until its end is known, leave too little at some time if *job* joins."""
        need = room.pages(job.tokens) + room.size
        if need > min(room.now, room.kept):
            return True
        if room.ends is None:
            others = [[other for other in self.running if other.prefilling == chunk] for chunk in (False, True)]
            room.ends = sorted([job, *others[0], *others[1]], key=left)
        else:
            later = [i for i, other in enumerate(room.ends) if left(other) >= left(job)]
            room.ends.insert(later[0] if later else len(room.ends) - 1, job)
        free = room.now - need
        for i, other in enumerate(room.ends):
            rest = len(room.ends) - i
            if free - left(other) * rest <= rest:
                return True
            free += other.tokens - other.unseen
        return False

    def first_chunk(self, begin: int, tokens: int, room: Room) -> int:
        """All if it fits; else up to the end of a page, or nothing without chunks, unless no pass could hold it."""
        lim = self.rank.pool.lim
        if (tokens if lim["foresees"] or not lim["chunked"] else room.pages(tokens)) <= room.chunk:
            return tokens
        if not lim["chunked"] and tokens <= lim["max_num_batched_tokens"]:
            return 0
        if lim["foresees"]:
            return room.chunk
        return (begin + room.chunk // room.size * room.size) // room.size * room.size - begin

    def ratio(self) -> float:
        lim = self.rank.pool.lim
        return max(self.ratio_base - self.ratio_steps * float(lim["ratio_decay"]), float(lim["min_ratio"]))

    def decode_or_retract(self, now: float) -> bool:
        """Give every decode its next tokens; say whether some were retracted because blocks ran out. While others are
        about to leave, nobody decodes instead."""
        decodes = [job for job in self.running if job.decoding]
        short = self.lacking(decodes) > len(self.rank.cache.free)
        if short and any(job.ended for job in self.running):
            return False
        if short:
            self.retract(decodes, now)
        self.decode_all(decodes)
        return short

    def decode_all(self, decodes: list[Job]) -> None:
        self.rank.cache.make_room(len(decodes))
        for job in decodes:
            job.chunk = self.rank.pool.decode_tokens(job)
            self.rank.grow(job, job.ctx + job.chunk)

    def lacking(self, decodes: list[Job]) -> int:
        """Blocks that *decodes* lack for their next pass."""
        return sum(self.rank.missing(job, job.ctx + self.rank.pool.decode_tokens(job)) for job in decodes)

    def retract(self, decodes: list[Job], now: float) -> None:
        """Until the others fit."""
        rank = self.rank
        while decodes and self.lacking(decodes) > len(rank.cache.free):
            victim = min(decodes, key=lambda job: (job.generated - job.unseen, -job.input, -self.running.index(job)))
            decodes.remove(victim)
            self.lose_token(victim)
            self.preempt(victim, now, front=False)
            rank.cache.make_room(rank.pool.blocks(RETRACT_STEPS * len(decodes)))
        done, most = sum(job.generated - job.unseen for job in decodes), sum(job.output for job in decodes)
        self.ratio_base = min(1.0, (done + RETRACT_STEPS * len(decodes)) / (most + 1))
        self.ratio_steps, self.full = -1, False

    def lose_token(self, job: Job) -> None:
        """Whose token is on its way while it is retracted never gets it."""
        if job.unseen and job.generated > 1:
            if job.index >= self.rank.pool.lim["warmup"]:
                self.rank.pool.gaps.remove(job.last_token - job.token_before)
            job.last_token = job.token_before
        job.generated -= job.unseen
        if job.unseen and job.generated < 2:
            job.row[("first", "second")[job.generated]] = math.nan
        if job.generated == 0:
            job.last_token = math.nan
        job.unseen = 0

    # ------------------------------------------------------------------------------------------------------------ both

    def note_cached(self, job: Job, hit: int) -> None:
        if math.isnan(job.row["scheduled"]):
            job.row["cached"] = hit
            for name in TIER_COLUMNS:
                job.row[name] = 0

    def join(self, job: Job, chunk: int, now: float) -> None:
        """Move a waiting request, whose blocks are there, into the batch."""
        rank = self.rank
        rank.waiting.remove(job)
        rank.bound.discard(job)
        job.chunk = chunk
        if job.kv == s.LANDED:
            job.stall_mark = self.stalled
            if rank.pool.lim["first_token"] == s.BY_TRANSFER:
                job.row["first"] = job.last_token = now
        else:
            job.prefilling = True
            if math.isnan(job.row["scheduled"]):
                job.row["scheduled"] = now
                if job.kv == s.LOADED:
                    rank.pool.e.job_waits[job.index, s.KV_LINK] += now - job.load_from
            elif job.generated == 0 and not math.isnan(job.preempted_at):
                job.row["preempted_prefill_s"] += now - job.preempted_at
                job.preempted_at = math.nan
            if not rank.pool.sglang:
                rank.register(job, job.ctx + chunk)
        job.kv = s.LOCAL
        self.running.append(job)
        rank.admissions += 1
        job.order = rank.admissions

    def preempt(self, job: Job, now: float, *, front: bool = True) -> None:
        self.running.remove(job)
        job.row["preemptions"] += 1
        if job.ended:  # it waits for nothing but its last token, which is on its way
            self.rank.release(job)
            return
        self.drop(job, now)
        job.visible = now
        if front and not self.rank.pool.lim["ordered"]:
            self.rank.waiting.insert(self.rank.holders(), job)
        else:
            self.rank.insert(job)

    def drop(self, job: Job, now: float) -> None:
        """Take the blocks of a running request away."""
        self.rank.release(job)
        job.ctx = job.chunk = 0
        job.prefilling = False
        if math.isnan(job.preempted_at):
            job.preempted_at = now
            if job.generated > 0:
                job.row["stall_s"] += self.stalled - job.stall_mark

    # ------------------------------------------------------------------------------------------------------------ pass

    @property
    def decodes(self) -> list[Job]:
        return [job for job in self.running if job.decoding and job.chunk > 0]

    @property
    def chunks(self) -> list[Job]:
        return [job for job in self.running if job.prefilling and job.chunk > 0]

    def busy(self) -> int:
        """What those wait for who come now."""
        if len(self.running) >= self.rank.pool.lim["max_num_seqs"]:
            return s.BATCH_SLOTS
        if self.full:
            return s.KV_BLOCKS
        return s.PREFILL_BUSY if self.chunks else s.DECODE_BUSY

    def decode_time(self) -> float:
        """Time of the planned pass with its decodes alone."""
        e, decodes = self.rank.pool.e, self.decodes
        if not decodes:
            return 0.0
        batch, context = len(decodes), self.padded_context(decodes)
        attention = extrapolated_line(e.decode_context[batch], e.decode_s[batch], context)
        return self.scaled(e.graph_tokens_s[batch] + attention, sum(job.chunk for job in decodes))

    def padded_context(self, decodes: list[Job]) -> int:
        contexts = [job.ctx + job.chunk for job in decodes]
        padding = len(contexts) * max(contexts) - sum(contexts)
        return sum(contexts) + int(self.rank.pool.lim["skew"] * padding)

    def pass_time(self) -> float:
        e, lim, decodes, chunks = self.rank.pool.e, self.rank.pool.lim, self.decodes, self.chunks
        if not chunks:
            return self.decode_time()
        tokens, drafted = sum(job.chunk for job in chunks), sum(job.chunk for job in decodes)
        seconds = float(e.tokens_s[tokens + (drafted if lim["fused"] else 0)])
        seconds += len(chunks) * float(lim["chunk_s"])
        shares = e.prefill_share_s[min(len(chunks), len(e.prefill_share_s) - 1)]
        for job in chunks:
            end = job.ctx + job.chunk
            seconds += extrapolated_line(e.prefill_seq, shares, end) * (1.0 - (job.ctx / end) ** 2)
        if decodes:
            batch, context = len(decodes), self.padded_context(decodes)
            seconds += extrapolated_line(e.decode_context[batch], e.decode_s[batch], context)
        return self.scaled(seconds, tokens + drafted)

    def scaled(self, seconds: float, tokens: int) -> float:
        row = self.rank.pool.e.rows[self.row]
        return float((seconds + row["crossing_s"] + row["crossing_token_s"] * tokens) * row["slowdown"])

    def account(self, seconds: float) -> None:
        """Add the planned pass to what the row has done."""
        row = self.rank.pool.e.rows[self.row]
        prefill_tokens, decode_tokens, decodes = self.planned
        row["busy_s"] += seconds
        row["passes"] += 1
        row["prefill_done_tokens"] += prefill_tokens
        row["decode_done_tokens"] += decode_tokens
        row["batch_time"] += seconds * decodes

    def apply(self, end: float) -> None:
        """Make the planned pass's tokens visible."""
        pool = self.rank.pool
        self.stalled += self.stall_planned
        for job in self.running:
            if job.chunk == 0:
                continue
            job.computing = job.prefilling
            if job.prefilling:
                job.ctx += job.chunk
                if job.ctx == job.tokens:
                    job.prefilling = False
                    job.stall_mark = self.stalled
                    self.rank.forget_prefill(job)
                    if self.rank.pool.lim["watch_prompts"] and not self.rank.pool.lim["hold"]:
                        self.rank.pool.emit(end, s.PROMPT_DONE, job)
                    self.show(job, 1, end)
            else:
                shown = pool.accepted(job)
                job.ctx += shown
                self.show(job, shown, end)

    def show(self, job: Job, count: int, end: float) -> None:
        row, pool = job.row, self.rank.pool
        for k in range(count):
            job.generated += 1
            if job.generated == 1:
                row["first"] = end
            elif job.generated == 2:
                row["second"] = end
            if k == 0 and not math.isnan(job.preempted_at):
                row["preempted_decode_s"] += end - job.preempted_at
                job.preempted_at = math.nan
            if not math.isnan(job.last_token) and job.index >= pool.lim["warmup"]:
                pool.gaps.append(end - job.last_token)
            job.token_before, job.last_token = job.last_token, end

    def finish_all(self, end: float) -> None:
        """Let requests end; overlapped, the next pass has been chosen as if they went on, so they stay until then."""
        for job in [job for job in self.running if job.generated >= job.output]:
            job.ended = True
            self.finish(job, end)
        if not self.rank.pool.lim["overlap"]:
            self.clear_out()

    def clear_out(self) -> bool:
        """Let the ended requests leave the batch; return whether there were any."""
        ended = [job for job in self.running if job.ended]
        for job in ended:
            self.running.remove(job)
            if job.blocks:  # not handed off at once
                self.rank.register(job, job.ctx)
            if self.rank.pool.sglang:
                self.full = False
                if job.blocks:
                    self.rank.pool.world.store(job, self.unit.now)
            if not self.rank.pool.lim["hold"]:
                self.rank.release(job)
        return bool(ended)

    def finish(self, job: Job, end: float) -> None:
        rank, lim = self.rank, self.rank.pool.lim
        job.row["last"] = end
        job.row["stall_s"] += self.stalled - job.stall_mark
        rank.pool.e.rows[self.row]["finished"] += 1
        if not (rank.pool.sglang and lim["overlap"]):
            self.full = False
            # Overlapped, the last token is not known yet when the next pass is chosen.
            rank.register(job, job.ctx - (lim["overlap"] > 0 and not job.computing))
        rank.pool.world.store(job, end)
        if not lim["hold"]:
            rank.count_out(job, end)
        if lim["hold"]:
            rank.pool.world.prefilled(job)
        if lim["watch"]:
            rank.pool.emit(end, s.PREFILL_DONE if lim["hold"] else s.FINISHED, job)


class Rank:
    """One scheduler: a queue and a KV cache, with one batch or, in a pipeline, several."""

    def __init__(self, pool: Oracle, row: int, lanes: int) -> None:
        self.pool, self.row = pool, row
        self.lanes = [Lane(self, row + k) for k in range(lanes)]
        self.stage_free = [0.0] * lanes
        self.admissions = self.refreshes = 0
        self.tiers = [pool.tier(row, t) for t in range(int(pool.lim["tiers"]))]
        self.clear()

    def clear(self) -> None:
        self.arrivals: list[Job] = []
        self.waiting: list[Job] = []
        self.bound: set[Job] = set()  # hold blocks without running: on their way, landed, loaded
        self.cache = Cache(int(self.pool.lim["num_blocks"]), self.pool.world, leaves=self.pool.sglang)
        self.reason = s.DECODE_BUSY
        for lane in self.lanes:
            lane.running, lane.full, lane.ratio_steps = [], False, 0

    # ----------------------------------------------------------------------------------------------------------- queue

    def visible(self) -> float:
        return min((job.visible for job in self.waiting[:1] + self.arrivals[:1]), default=math.inf)

    def insert(self, job: Job) -> None:
        """Last, or in its place where the queue has an order, but behind those that hold blocks."""
        places = range(self.holders(), len(self.waiting))
        order = (lambda job: job.key) if self.pool.sglang else precedence
        ordered = self.pool.lim["ordered"]
        later = (i for i in places if ordered and order(job) < order(self.waiting[i]))
        self.waiting.insert(next(later, len(self.waiting)), job)

    def holders(self) -> int:
        """How many at the front of the queue hold blocks: their KV has arrived."""
        return sum(job.kv in (s.LANDED, s.LOADED) for job in self.waiting)

    def look(self, now: float, seen: float | None = None) -> None:
        """Note what everybody has waited for, and let those in that have arrived by *seen*."""
        for job in self.waiting:
            self.count_wait(job, self.reason, now)
        for job in [job for job in self.arrivals if job.visible <= now]:
            job.wait_from = max(job.wait_from, job.visible)
            self.count_wait(job, self.reason, now)
            if job.visible <= (now if seen is None else seen):
                self.arrivals.remove(job)
                self.insert(job)

    def count_wait(self, job: Job, reason: int, now: float) -> None:
        if math.isnan(job.row["scheduled"]) and job.kv != s.LOADED:
            self.pool.e.job_waits[job.index, reason] += now - job.wait_from
        job.wait_from = now

    def running(self) -> list[tuple[Lane, Job]]:
        return [(lane, job) for lane in self.lanes for job in lane.running]

    def victim(self) -> tuple[Lane, Job]:
        """Who is preempted next, of all batches: the last admitted, or the largest key and latest arrival. Not one
        whose blocks are handed off."""
        held = self.pool.lim["hold"]
        running = [(lane, job) for lane, job in self.running() if not (held and job.ended)]
        if not self.pool.lim["ordered"]:
            return max(running, key=lambda pair: pair[1].order)
        return max(running, key=lambda pair: (pair[1].key, pair[1].arrived))  # the first of equals

    def candidate(self) -> Job:
        if not self.pool.lim["longest_prefix"] or len(self.waiting) > MANY_WAITING:
            return self.waiting[0]
        return max(self.waiting, key=self.prefix)  # the first of equals

    def prefix(self, job: Job) -> float:
        return math.inf if job.kv in (s.LANDED, s.LOADED) else self.match(job, job.tokens)[0]

    def clip(self, tokens: int, budget: int) -> int:
        """Tokens of a context's next chunk; without chunking all or nothing, unless no pass could hold them."""
        lim = self.pool.lim
        if tokens > budget and not lim["chunked"] and tokens <= lim["max_num_batched_tokens"]:
            return 0
        return max(min(tokens, budget), 0)

    def wake(self, time: float) -> None:
        for unit in self.pool.units:
            if any(lane.rank is self for lane in unit.lanes):
                unit.wake(time)

    # ---------------------------------------------------------------------------------------------------------- blocks

    def missing(self, job: Job, tokens: int) -> int:
        return max(self.pool.blocks(tokens) - len(job.blocks), 0)

    def needed(self, tokens: int, hit: int) -> int:
        return self.pool.blocks(tokens) - hit // int(self.pool.lim["block_size"])

    def has_room(self, tokens: int, hit: int, found: list[Block], spare: int = 0) -> bool:
        free = len(self.cache.free) - self.cache.pinned(found) - self.promised()
        return self.needed(tokens, hit) + spare <= free

    def promised(self) -> int:
        """TensorRT-LLM: blocks that admitted requests may still take."""
        if self.pool.lim["scheduler"] != s.NO_EVICT:
            return 0
        admitted = [job for lane in self.lanes for job in lane.running if not job.ended] + list(self.bound)
        return sum(self.missing(job, self.pool.whole(job)) for job in admitted)

    def grow(self, job: Job, tokens: int) -> None:
        job.blocks += self.cache.take(self.missing(job, tokens))

    def match(self, job: Job, tokens: int) -> tuple[int, list[Block]]:
        """Return (tokens hit, blocks): the longest cached prefix, at least the last token computed again."""
        found = self.follow(job, tokens, self.cache.find)
        return len(found) * int(self.pool.lim["block_size"]), found

    def follow(self, job: Job, tokens: int, find: Callable[[Key], T | None]) -> list[T]:
        """Return what *find* gives for the leading blocks of *tokens* tokens to compute."""
        found: list[T] = []
        most = (tokens - 1) // int(self.pool.lim["block_size"]) if self.pool.caching else 0
        for key in job.keys[:most]:
            block = find(key)
            if block is None:
                break
            found.append(block)
        return found

    def attach(self, job: Job, hit: int, found: list[Block], tokens: int) -> None:
        """Hold the found blocks and take new ones for the rest."""
        assert hit == len(found) * int(self.pool.lim["block_size"])
        self.cache.hold(found)
        if found:
            self.cache.part(found[-1])
        job.blocks, job.hashed = list(found), len(found)
        self.grow(job, tokens)

    def register(self, job: Job, tokens: int) -> None:
        """Let the whole blocks among the first *tokens* tokens be found."""
        if not self.pool.caching:
            return
        whole = tokens // int(self.pool.lim["block_size"])
        if self.pool.sglang:
            self.cache.insert(job.blocks, job.keys, job.hashed, whole)
        else:
            for i in range(job.hashed, whole):
                self.cache.name(job.blocks[i], job.keys[i])
        job.hashed = max(job.hashed, whole)
        job.named = max(job.named, sum(first + blocks <= job.hashed for _, first, blocks in job.nodes))

    def checkpoint(self, job: Job, now: float) -> None:
        """SGLang: what a prompt has so far goes into the tree; a leaf ends where the prompt does."""
        self.register(job, min(job.input, job.ctx))
        self.register(job, job.ctx)
        self.pool.world.store(job, now)

    def touch(self, job: Job, tokens: int) -> None:
        """SGLang: what a lookup finds was used last of all that nobody holds."""
        found = self.match(job, tokens)[1]
        if self.cache.pinned(found) and not job.blocks:
            self.cache.part(found[-1])
            self.cache.use(found)

    def shares(self, job: Job, other: Job) -> bool:
        """SGLang: whether a request would find enough once the other is computed."""
        pairs = zip(job.keys, other.keys, strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(job.keys), len(other.keys)))
        return common * int(self.pool.lim["block_size"]) >= FEW_TOKENS

    def check(self) -> None:
        """Every block is free, or held by those who say so; copies to lower tiers hold some as well."""
        holders = Counter(block for job in self.pool.jobs if job.rank is self for block in job.blocks)
        assert not self.cache.free.keys() & holders.keys(), "blocks are held and free"
        if not self.tiers:
            assert len(self.cache.free) + len(holders) == self.cache.size, "blocks are lost"
            assert all(block.refs == n for block, n in holders.items()), "blocks are held by nobody"

    def release(self, job: Job) -> None:
        """Give up all its blocks."""
        self.cache.give(job.blocks)
        job.blocks, job.hashed = [], 0

    def leave(self, job: Job, time: float) -> None:
        self.release(job)
        self.count_out(job, time)

    def count_out(self, job: Job, time: float) -> None:
        """One request less on this rank, as the router sees it."""
        self.pool.count(self.row, job, -1)
        row = self.pool.e.rows[self.row]
        row["left"] = max(row["left"], time)

    def forget_prefill(self, job: Job) -> None:
        self.pool.e.rows[self.row]["prefill_load"] -= job.row["prefill_load"]
        job.row["prefill_load"] = 0

    # -------------------------------------------------------------------------------------- hand-offs and lower tiers

    def has_seat(self) -> bool:
        """Whether one more prompt may be on its way here."""
        held = sum(len(lane.running) for lane in self.lanes) + sum(job.kv in (s.MOVING, s.LANDED) for job in self.bound)
        return held < int(self.pool.lim["most_held"])

    def reserve(self, job: Job, now: float) -> bool:
        """Reserve blocks for a prompt that will be copied in; False when short."""
        hit, found = self.match(job, job.input)
        tokens = job.input + (job.output if self.pool.lim["scheduler"] == s.NO_EVICT else 1)
        if not self.has_room(tokens, hit, found):
            return False
        self.attach(job, hit, found, job.input + 1)
        self.waiting.remove(job)
        self.bound.add(job)
        job.kv, job.row["cached"], job.row["scheduled"] = s.MOVING, hit, now
        self.pool.world.reserved(job, now)
        return True

    def load(self, job: Job, now: float) -> str:
        """Fetch what lower tiers have beyond the GPU's cache: 'no' (nothing), 'blocked' or 'started'."""
        if not self.tiers:
            return "no"
        hit, found = self.match(job, job.tokens)
        tokens, parts = self.extended(job, job.tokens, found)
        if tokens <= hit:
            return "no"
        reach = self.pool.whole(job) if self.pool.lim["scheduler"] == s.NO_EVICT else job.tokens + 1
        if not self.has_room(reach, hit, found):
            return "blocked"
        self.attach(job, hit, found, job.tokens + 1)
        self.waiting.remove(job)
        self.bound.add(job)
        job.kv, job.ctx, job.load_from = s.LOADING, tokens, now
        for tier, key, _ in parts:
            self.tiers[tier].touch(key)
        for tier in range(len(self.tiers)):
            blocks = sum(part[2] for part in parts if part[0] == tier)
            if blocks:
                job.loading += 1
                self.pool.world.start_load(job, tier, blocks, now)
        if math.isnan(job.row["scheduled"]):
            self.note_hits(job, hit, parts)
        return "started"

    def note_hits(self, job: Job, hit: int, parts: list[tuple[int, int, int]]) -> None:
        """What the GPU and each tier contribute to the prefix; the last token is computed whoever has it."""
        job.row["cached"], left = hit, job.ctx - hit
        for name in TIER_COLUMNS:
            job.row[name] = 0
        for tier in range(len(self.tiers)):
            tokens = sum(part[2] for part in parts if part[0] == tier) * int(self.pool.lim["block_size"])
            job.row[TIER_COLUMNS[int(self.pool.lim["tier_kind"][tier])]] = min(tokens, left)
            left -= min(tokens, left)

    def extended(self, job: Job, tokens: int, found: list[Block]) -> tuple[int, list[tuple[int, int, int]]]:
        """Return the tokens of the prefix on the GPU and in the tiers, and (tier, node, blocks) that the tiers add."""
        size, total, parts = int(self.pool.lim["block_size"]), 0, []
        most = (tokens - 1) // size
        for key, first, blocks in job.nodes:
            whole = min(blocks, most - first)
            have = min(max(len(found) - first, 0), whole)
            tier = next((t for t, tier in enumerate(self.tiers) if tier.count(key) > have), None)
            if have < whole and tier is not None:
                more = min(self.tiers[tier].count(key), whole)
                parts.append((tier, key, more - have))
                have = more
            total += max(have, 0)
            if have < whole or whole <= 0:
                break
        return total * size, parts


class Unit:
    """Batches that are planned and end together: one, or those of all ranks of a replica."""

    def __init__(self, lanes: list[Lane]) -> None:
        self.lanes = lanes
        for lane in lanes:
            lane.unit = self
        self.now, self.end = 0.0, math.inf
        self.last_start = 0.0
        self.unpolled = 0  # decode passes since new requests were looked for
        self.held, self.lone_passes, self.full_passes = False, 0, 0
        self.planned = False
        self.pipeline = len(lanes[0].rank.lanes) > 1

    @property
    def dormant(self) -> bool:
        return self.planned and self.end == math.inf

    def start(self) -> float:
        """When the next pass may start."""
        if self.dormant:  # nothing could be admitted: look again when somebody else arrives
            arrivals = [lane.rank.arrivals[0].visible for lane in self.lanes if lane.rank.arrivals]
            time = max(self.now, min(arrivals)) if arrivals else math.inf
        elif self.planned:
            return math.inf
        elif any(lane.running for lane in self.lanes):
            time = self.now
        else:
            time = max(self.now, min(lane.rank.visible() for lane in self.lanes))
        return max(time, self.lanes[0].rank.stage_free[0]) if self.pipeline else time

    def wake(self, time: float) -> None:
        if self.dormant:
            self.planned, self.now = False, max(self.now, time)

    def plan(self) -> None:
        self.now = self.start()
        busy, lim = any(lane.running for lane in self.lanes), self.lanes[0].rank.pool.lim
        seen = self.last_start if busy and lim["overlap"] else self.now
        if busy and self.unpolled < lim["recv_interval"]:
            seen = -math.inf
        else:
            self.unpolled = 0
        self.planned, self.end = True, math.inf
        while not self.choose(seen):
            seen, self.unpolled = self.now, 0
        if self.chosen():
            self.run()

    def choose(self, seen: float) -> bool:
        """Let every batch choose its next pass; False where there is nothing to run, but room that was not there."""
        before = sum(len(lane.running) for lane in self.lanes)
        if self.lanes[0].rank.pool.lim["balance_iters"]:
            self.hold_prompts(seen)
        for lane in self.lanes:
            for job in lane.running:
                job.chunk = 0
            lane.rank.look(self.now, seen)
            lane.rank.reason = NOTHING
            if lane.rank.pool.lim["scheduler"] == s.SGLANG:
                lane.schedule_sglang(self.now)
            else:
                lane.schedule_together(self.now)
        for lane in self.lanes:
            lane.clear_out()
            lane.rank.check()
            if lane.rank.reason == NOTHING:
                lane.rank.reason = lane.busy()
        return self.chosen() or sum(len(lane.running) for lane in self.lanes) >= before

    def hold_prompts(self, seen: float) -> None:
        """TensorRT-LLM: prompts wait until every rank has some."""
        lim, ranks = self.lanes[0].rank.pool.lim, []
        for lane in self.lanes:
            lane.rank.look(self.now, seen)
            decodes = [job for job in lane.running if not job.prefilling]
            ranks.append((len(decodes), bool(lane.rank.waiting) or len(decodes) < len(lane.running)))
        everyone_decodes = all(decodes for decodes, _ in ranks)
        if all(prompts and decodes < lim["max_num_seqs"] for decodes, prompts in ranks):
            waited, most, self.lone_passes = self.full_passes, lim["balance_wait_iters"], 0
            self.held = everyone_decodes and waited < most
            self.full_passes = waited + 1 if self.held else 0
        else:
            self.held = everyone_decodes and self.lone_passes + 1 < lim["balance_iters"]
            self.lone_passes = self.lone_passes + 1 if self.held else 0

    def chosen(self) -> bool:
        return any(job.chunk > 0 for lane in self.lanes for job in lane.running)

    def run(self) -> None:
        """Work out when the planned pass ends."""
        prefills = any(lane.chunks for lane in self.lanes)
        seconds = max(lane.pass_time() for lane in self.lanes)
        if prefills:
            carried = [sum(job.chunk for job in lane.chunks + lane.decodes) for lane in self.lanes]
            experts = [self.expert_time(tokens) for tokens in carried]
            seconds = max(lane.pass_time() - part for lane, part in zip(self.lanes, experts, strict=True))
            seconds = max(seconds, 0.0) + self.expert_time(-(-sum(carried) // len(carried)))
            seconds = max(seconds, self.launch_time())
        for lane in self.lanes:
            prefill, decode = (sum(job.chunk for job in jobs) for jobs in (lane.chunks, lane.decodes))
            lane.planned = prefill, decode, len(lane.decodes)
            lane.stall_planned = max(seconds - lane.decode_time(), 0.0) if prefills else 0.0
        self.end = self.through_stages(seconds) if self.pipeline else self.now + seconds

    def launch_time(self) -> float:
        """What the CPU needs to launch a pass with chunks that no graph covers."""
        lane = self.lanes[0]
        lim, row = lane.rank.pool.lim, lane.rank.pool.e.rows[lane.row]
        kinds = [each.chunks + (each.decodes if lim["fused"] else []) for each in self.lanes]
        largest = max(sum(job.chunk for job in jobs) for jobs in kinds)
        return float(lim["eager_s"] * row["slowdown"]) if largest > lim["eager_tokens"] else 0.0

    def expert_time(self, tokens: int) -> float:
        """The experts' part of a pass in which every rank carries *tokens*."""
        lane = self.lanes[0]
        return float(lane.rank.pool.e.expert_s[tokens] * lane.rank.pool.e.rows[lane.row]["slowdown"])

    def through_stages(self, seconds: float) -> float:
        free, time = self.lanes[0].rank.stage_free, self.now
        for k in range(len(free)):
            time = max(time, free[k]) + seconds / len(free)
            free[k] = time
        return time

    def commit(self) -> None:
        end, world = self.end, self.lanes[0].rank.pool.world
        for lane in self.lanes:
            lane.flight, lane.last_end = [job for job in lane.running if job.chunk > 0], end
            lane.account(end - self.now)
            if lane.rank.pool.lim["scheduler"] == s.SGLANG and not lane.chunks and lane.decodes:
                lane.ratio_steps += 1
            lane.apply(end)
        for lane in self.lanes:
            for job in lane.running:
                if job.chunk > 0 and job.computing:
                    world.store(job, end)
        for lane in self.lanes:
            lane.finish_all(end)
        prefills = any(lane.planned[0] for lane in self.lanes)
        self.unpolled += int(self.lanes[0].rank.pool.lim["recv_interval"]) if prefills else 1
        self.last_start = self.now
        self.now, self.end, self.planned = end, math.inf, False
        if self.pipeline:
            self.lanes[0].rank.wake(end)

    def abort(self, time: float) -> None:
        """Forget the planned pass."""
        self.planned, self.end, self.now = False, math.inf, max(self.now, time)


class Oracle:
    """One pool; keeps its results in the same job and replica arrays as the compiled engine."""

    def __init__(self, world: OracleCore, pool: Pool, workload: Workload) -> None:
        self.world, self.e, self.lim, self.handle = world, pool.engine, pool.engine.limits[0], pool.handle
        self.workload, self.caching = workload, pool.config.enable_prefix_caching
        self.sglang = bool(self.lim["scheduler"] == s.SGLANG)
        e, self.origin = self.e, s.REMOTE if self.lim["remote"] else s.LOCAL
        self.store: Tier | None = None
        self.drafts = int(self.lim["tokens_per_decode"]) - 1
        self.jobs = [Job(self, i, row) for i, row in enumerate(e.jobs)]
        lanes, ranks = int(self.lim["lanes"]), int(self.lim["ranks"])
        self.ranks = [Rank(self, row, lanes) for row in range(0, len(e.rows), lanes)]
        if lanes > 1:
            self.units = [Unit([lane]) for rank in self.ranks for lane in rank.lanes]
        else:
            self.units = [
                Unit([rank.lanes[0] for rank in self.ranks[k : k + ranks]]) for k in range(0, len(self.ranks), ranks)
            ]
        self.gaps: list[float] = []
        self.active: Counter[tuple[int, Key]] = Counter()  # (row, block) -> unfinished requests
        self.predicted: dict[tuple[int, Key], float] = {}  # until when a router expects the block there

    def replica(self, replica: int) -> list[Rank]:
        ranks = int(self.lim["ranks"])
        return self.ranks[replica * ranks : (replica + 1) * ranks]

    def rank(self, row: int) -> Rank:
        return self.ranks[row // int(self.lim["lanes"])]

    def tier(self, row: int, tier: int) -> Tier:
        """Host memory and disks belong to their rank, the remote store to all of the pool."""
        place = int(self.lim["tier_cache"]) + tier * len(self.e.rows)
        if self.lim["tier_kind"][tier] < REMOTE_KIND:
            return Tier(int(self.e.caches[place + row]["num_blocks"]))
        self.store = self.store or Tier(int(self.e.caches[place]["num_blocks"]))
        return self.store

    def blocks(self, tokens: int) -> int:
        return -(-tokens // int(self.lim["block_size"]))

    def whole(self, job: Job) -> int:
        """Tokens that a request needs room for until it ends, drafts included."""
        return job.input + job.output + int(self.lim["tokens_per_decode"]) - 1

    def content(self, i: int, tokens: int) -> list[Key]:
        """Return what each whole block of the first *tokens* tokens of request *i* holds: something that others may
        have where the trace's block ids cover it, something of its own beyond."""
        size, w = int(self.lim["block_size"]), self.workload
        ends = range(size, tokens + 1, size)
        ids = w.hash_ids[w.hash_offsets[i] : w.hash_offsets[i + 1]].tolist() if w.hash_block_tokens else []
        covered = int(w.hashed_tokens[i]) if ids else 0
        return [(ids[(end - 1) // w.hash_block_tokens], end) if end <= covered else (OWN, i, end) for end in ends]

    def nodes_of(self, row: Any) -> list[tuple[int, int, int]]:
        """Return (node, first block, blocks) of what lower tiers move as a whole."""
        if not self.lim["tiers"]:
            return []
        ids = self.e.hash_ids[row["hash_start"] : row["hash_start"] + row["hash_count"]].tolist()[:-1]  # not its own
        blocks = self.e.node_blocks[ids].tolist()
        starts = np.cumsum([0, *blocks]).tolist()
        return [(key, start, n) for key, start, n in zip(ids, starts, blocks, strict=False) if n]

    def decode_tokens(self, job: Job) -> int:
        """Tokens of a decode in one pass; drafts need a token to start from."""
        return 1 + self.drafts if job.generated > 0 else 1

    def accepted(self, job: Job) -> int:
        """Return how many tokens a decode pass of *job* shows."""
        shown = 1
        if job.chunk > 1:
            shown += accepted_drafts(
                self.e.accept.tolist(), int(self.lim["seed"]), job.index, job.rounds, job.chunk - 1
            )
            job.rounds += 1
        return min(shown, job.output - job.generated)

    def emit(self, time: float, kind: int, job: Job) -> None:
        self.e.events[self.lim["n_events"]] = (time, kind, job.index)
        self.lim["n_events"] += 1

    def count(self, row: int, job: Job, sign: int) -> None:
        self.e.rows[row]["outstanding"] += sign
        self.e.rows[row]["kv_load"] += sign * job.input
        if not self.lim["indexed"]:
            return
        blocks = [((*key, job.index) if self.lim["remote"] else key) for key in self.prompt(job)]
        blocks += [("own", job.index, n) for n in range(len(blocks), job.input // int(self.lim["block_size"]))]
        for key in blocks:
            self.active[row, key] += sign
            if sign > 0:
                self.predicted[row, key] = job.visible + float(self.lim["predict_s"])
        self.e.rows[row]["active_blocks"] = sum(refs > 0 for (r, _), refs in self.active.items() if r == row)

    def prompt(self, job: Job) -> list[Key]:
        """Return the whole blocks of the prompt that other requests can have too."""
        whole = job.input // int(self.lim["block_size"])
        return [key for key in job.keys[:whole] if key[0] != OWN] if self.caching else []

    def forget(self, row: int) -> None:
        """The router forgets what was sent to *row*."""
        for known in (self.active, self.predicted):
            for key in [key for key in known if key[0] == row]:
                del known[key]
        self.e.rows[row]["active_blocks"] = 0

    def mirror(self) -> None:
        """Show the cluster what it reads of jobs and rows."""
        for job in self.jobs:
            job.row["generated"], job.row["ctx"] = job.generated, job.ctx
            job.row["preempted_at"], job.row["kv"], job.row["rounds"] = job.preempted_at, job.kv, job.rounds
        self.e.gap_count[0], self.e.gap_sum[0] = len(self.gaps), sum(self.gaps)
        for rank in self.ranks:
            row = self.e.rows[rank.row]
            row["n_waiting"], row["n_arriving"] = len(rank.waiting), len(rank.arrivals)
            self.e.caches[self.e.rows[rank.row]["cache"]]["free_blocks"] = len(rank.cache.free)
            for lane in rank.lanes:
                self.e.rows[lane.row]["n_running"] = len(lane.running)


def precedence(job: Job) -> tuple[float, float, int]:
    """Order of a queue that has one."""
    return job.key, job.arrived, job.index


def left(job: Job) -> int:
    """Output tokens that a request still generates, as far as SGLang knows."""
    return job.output - job.generated + job.unseen


def to_come(job: Job) -> int:
    """Output tokens that SGLang keeps room for."""
    return min(left(job), CLIP)


def accepted_drafts(rates: list[float], seed: int, job: int, round_: int, most: int) -> int:
    """Return how many of *most* drafts are right: the first wrong one makes all behind it worthless."""
    state = mixed(seed * GOLDEN + job + 1)
    for k in range(most):
        draw = mixed(state + (round_ * 64 + k + 1) * GOLDEN)
        if (draw >> 11) / 2**53 >= rates[min(k, len(rates) - 1)]:
            return k
    return most


def mixed(x: int) -> int:
    """The output function of splitmix64."""
    x &= 2**64 - 1
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & 2**64 - 1
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & 2**64 - 1
    return x ^ (x >> 31)


def extrapolated_line(nodes: np.ndarray, values: np.ndarray, x: float) -> float:
    j = int(np.clip(np.searchsorted(nodes, x, side="right") - 1, 0, len(nodes) - 2))
    return float(values[j] + (values[j + 1] - values[j]) / (nodes[j + 1] - nodes[j]) * (x - nodes[j]))


class OracleCore:
    """The functions of ``dynosim.simulation.engine`` that the cluster calls, over oracles."""

    def __init__(self) -> None:
        self.oracles: dict[int, Oracle] = {}
        self.network: Network | None = None
        self.time = 0.0
        self.complete: list[Job] = []  # prefilled, and with room on the decode side, in this very event

    def __getattr__(self, name: str) -> Any:
        if not name.isupper():  # a function must not fall through to the compiled engine
            raise AttributeError(name)
        return getattr(s, name)

    def add(self, pool: Pool, workload: Workload) -> Pool:
        """Take over a pool: its handle stands for an oracle from now on."""
        self.network = self.network or Network(pool.engine.links)
        self.oracles[int(pool.handle[0, 0])] = Oracle(self, pool, workload)
        return pool

    def of(self, handle: np.ndarray) -> Oracle:
        return self.oracles[int(handle[0, 0])]

    @property
    def pools(self) -> list[Oracle]:
        return list(self.oracles.values())

    def links(self, pool: Oracle, row: int, *names: str) -> list[int]:
        columns = [int(pool.e.row_links[row, s.LINK_COLUMNS.index(name)]) for name in names]
        return [link for link in columns if link >= 0]

    # ------------------------------------------------------------------------------------------------------- the clock

    def next_event(self, handles: np.ndarray, until: float) -> tuple[int, int]:
        for o in self.pools:
            o.lim["n_events"] = 0
        while True:
            units = [unit for o in self.pools for unit in o.units]
            ending = min((unit for unit in units if unit.planned), key=lambda unit: unit.end, default=None)
            starting = min(units, key=lambda unit: unit.start())
            end, start, moving = ending.end if ending else math.inf, starting.start(), self.network.next()
            if moving <= min(end, start, until) and moving < math.inf:
                self.time = moving
                self.network.step()
            elif start < end and start < until:
                self.time = start
                starting.plan()
            elif end < math.inf and end <= until:
                self.time = end
                ending.commit()
            else:
                break
            self.hand_over()
            for p, o in enumerate(self.pools):
                if o.lim["n_events"]:
                    return self.report(p, o)
        return self.report(0, self.pools[0])

    def report(self, p: int, o: Oracle) -> tuple[int, int]:
        for other in self.pools:
            other.mirror()
        return int(o.lim["n_events"]), p

    def advance_all(self, handle: np.ndarray, until: float) -> None:
        self.next_event(handle[None], until)

    def settle_all(self, handle: np.ndarray, time: float) -> None:
        self.of(handle).mirror()

    def stop(self, handle: np.ndarray, time: float) -> None:
        """End the run: those still in a queue have waited until then."""
        for rank in self.of(handle).ranks:
            rank.look(time)
        self.of(handle).mirror()

    # -------------------------------------------------------------------------------------------------------- requests

    def submit(self, handle: np.ndarray, r: int, j: int, time: float) -> None:
        o = self.of(handle)
        rank, job = o.rank(r), o.jobs[j]
        job.kv, job.visible, job.arrived, job.rank = int(job.row["kv"]), time, time, rank
        job.key = float(job.row["static_key"]) + (time if o.lim["key_adds_time"] else 0.0)
        job.row["row"] = r
        o.count(r, job, 1)
        if job.kv == s.LOCAL and job.generated == 0:
            job.row["prefill_load"] = job.input - rank.match(job, job.input)[0]
            o.e.rows[r]["prefill_load"] += job.row["prefill_load"]
        rank.arrivals.append(job)
        rank.wake(time)
        o.mirror()

    def submit_all(self, handle: np.ndarray, row_of: np.ndarray, times: np.ndarray) -> None:
        for j, r in enumerate(row_of):
            if r != s.NONE:
                self.submit(handle, int(r), j, float(times[j]))

    def release(self, handle: np.ndarray, j: int, time: float) -> None:
        job = self.of(handle).jobs[j]
        job.rank.leave(job, time)
        job.rank.wake(time)

    def look_up(self, handle: np.ndarray, j: int, time: float) -> None:
        o = self.of(handle)
        for r in range(len(o.e.rows)):
            rank, job = o.rank(r), o.jobs[j]
            known, prompt = rank.cache.known(time - float(o.lim["lag_s"])), o.prompt(job)
            cached = [key in known or o.predicted.get((r, key), 0.0) > time for key in prompt]
            active = [o.active[r, key] > 0 for key in prompt]
            o.e.overlap[s.CACHED, r], o.e.overlap[s.REFERENCED, r] = leading(cached), leading(active)
            o.e.overlap[[s.HOST, s.DISK], r] = 0
            for tier, _, blocks in rank.extended(job, job.input, rank.match(job, job.input)[1])[1]:
                o.e.overlap[s.DISK if o.lim["tier_kind"][tier] else s.HOST, r] += blocks

    def route(self, handle: np.ndarray, rows: np.ndarray, weights: np.ndarray, draw: float, j: int, time: float) -> int:
        self.look_up(handle, j, time)
        o = self.of(handle)
        seen = (*(o.e.rows[name] for name in ("prefill_load", "active_blocks", "outstanding")), *o.e.overlap)
        costs = [0.0] * len(o.e.rows)
        return kv_aware.choose(weights, draw, o.jobs[j].input, int(o.lim["block_size"]), rows, seen, costs)

    def send(self, handle: np.ndarray, rows: np.ndarray, weights: np.ndarray, draw: float, j: int, time: float) -> None:
        self.submit(handle, int(rows[self.route(handle, rows, weights, draw, j, time)]), j, time)

    def route_to_event(
        self,
        handles: np.ndarray,
        rows: np.ndarray,
        weights: np.ndarray,
        draws: np.ndarray,
        requests: np.ndarray,
        times: np.ndarray,
        first: int,
        until: float,
    ) -> tuple[int, int, int]:
        for place in range(first, len(requests)):
            j = int(requests[place])
            if times[j] > until:
                break
            found = self.next_event(handles, float(times[j]))
            if found[0]:
                return *found, place
            self.send(handles[0], rows, weights, draws[j], j, float(times[j]))
            first = place + 1
        return *self.next_event(handles, until), first

    # -------------------------------------------------------------------------------------------------------- failures

    def boot(self, handle: np.ndarray, replica: int, time: float) -> None:
        """A replica starts with empty caches; the store of the pool keeps what it has."""
        o = self.of(handle)
        self.time = time
        for rank in o.replica(replica):
            rank.clear()
            o.forget(rank.row)
            rank.stage_free = [time] * len(rank.stage_free)
            rank.tiers = [o.tier(rank.row, k) for k in range(len(rank.tiers))]
        for unit in o.units:
            if unit.lanes[0].rank in o.replica(replica):
                unit.planned, unit.end, unit.now = False, math.inf, time

    def crash(self, handles: np.ndarray, pool: int, replica: int, time: float) -> None:
        """Everything on a replica is gone; with a prefill replica what decode replicas keep for its prompts."""
        o = self.pools[pool]
        self.time = time
        self.network.break_off(o.replica(replica), time)
        for rank in o.replica(replica):
            rank.look(time)
            for job in [job for job in o.jobs if job.rank is rank]:
                if math.isnan(job.row["last"]):
                    self.lose(job, time)
                if o.lim["hold"]:
                    self.take_off(self.pools[1].jobs[job.index], time)
                job.rank = None
            for name in ("outstanding", "prefill_load", "kv_load"):
                o.e.rows[rank.row][name] = 0
        self.boot(o.handle, replica, time)
        for each in self.pools:
            each.mirror()

    def lose(self, job: Job, time: float) -> None:
        """A job loses what its replica had of it: like a preempted one if it had begun, but in no queue."""
        for lane in job.rank.lanes:
            if job in lane.running and math.isnan(job.preempted_at):
                job.preempted_at = time
                job.row["stall_s"] += lane.stalled - job.stall_mark if job.generated > 0 else 0.0
        if job.kv == s.LANDED:
            job.kv, job.preempted_at = s.LOCAL, time
            if math.isnan(job.row["first"]):
                job.generated = 0
        elif job.kv != s.LOCAL:
            job.kv = job.rank.pool.origin
        job.row["prefill_load"] = 0
        job.forget_blocks()

    def withdraw(self, handle: np.ndarray, j: int, time: float) -> None:
        self.take_off(self.of(handle).jobs[j], time)

    def take_off(self, job: Job, time: float) -> None:
        """Take a decode job off whose prompt's KV will not come."""
        rank = job.rank
        if rank is None or job.kv not in (s.REMOTE, s.MOVING):
            return
        for queue in (rank.waiting, rank.arrivals):
            if job in queue:
                queue.remove(job)
        rank.bound.discard(job)
        rank.release(job)
        rank.pool.count(rank.row, job, -1)
        job.rank, job.kv = None, s.REMOTE
        rank.wake(time)

    def restart(self, handle: np.ndarray, j: int) -> None:
        """The job as if it had never run in its pool, but for when it was first scheduled."""
        o = self.of(handle)
        job, scheduled = o.jobs[j], float(o.jobs[j].row["scheduled"])
        for name in ("first", "second", "last", "landed"):
            job.row[name] = math.nan
        for name in ("preempted_prefill_s", "preempted_decode_s", "stall_s"):
            job.row[name] = 0.0
        job.row["kv"] = o.origin
        job.reset()
        if o.lim["remote"]:
            job.row["scheduled"] = math.nan
        else:
            job.preempted_at = scheduled
        o.mirror()

    # ------------------------------------------------------------------------------------------------------- hand-offs

    def reserved(self, job: Job, now: float) -> None:
        if job.rank.pool.lim["destination_first"]:
            job.rank.pool.emit(now, s.RESERVED, job)
        if not math.isnan(self.pools[0].jobs[job.index].row["last"]):
            self.complete.append(job)

    def prefilled(self, job: Job) -> None:
        """The prompt's KV goes to where it is awaited, if it is."""
        if len(self.pools) > 1 and self.pools[1].jobs[job.index].kv == s.MOVING:
            self.complete.append(self.pools[1].jobs[job.index])

    def hand_over(self) -> None:
        for job in self.complete:
            self.begin_hand_off(job, self.time)
        self.complete = []

    def begin_hand_off(self, job: Job, now: float) -> None:
        there = self.pools[0].jobs[job.index]
        ranks = there.rank, job.rank
        source, target = (rank.pool.e.rows[rank.row] for rank in ranks)
        kinds = ["nvlink"] if source["domain"] == target["domain"] else ["net"]
        if kinds == ["net"] and source["rack"] != target["rack"]:
            kinds.append("rack")
        path = []
        for kind in kinds:
            path += self.links(ranks[0].pool, ranks[0].row, f"{kind}_out")
            path += self.links(ranks[1].pool, ranks[1].row, f"{kind}_in")
        lim = there.rank.pool.lim
        size = (job.input - int(job.row["cached"])) * float(lim["block_bytes"]) / int(lim["block_size"])
        self.network.begin(path, size, now, lambda time: self.land(job, there, time), (job, there, *ranks))

    def land(self, job: Job, there: Job, time: float) -> None:
        """The prompt's KV has arrived: decode, and give the prefill replica's copy up."""
        rule, rank = job.rank.pool.lim["first_token"], job.rank
        job.row["landed"], job.visible, job.kv = time, time, s.LANDED
        job.generated, job.ctx = (0, job.input - 1) if rule == s.BY_DECODE else (1, job.input)
        job.last_token = math.nan
        if rule == s.BY_PREFILL:
            job.row["first"] = job.last_token = float(there.row["first"])
        rank.register(job, job.input)
        rank.waiting.insert(0, job)
        rank.wake(time)
        there.rank.leave(there, time)
        there.rank.wake(time)

    # ----------------------------------------------------------------------------------------------------- lower tiers

    def store(self, job: Job, time: float) -> None:
        """Copy what *job* has completed since the last time to the first tier, one copy at a time."""
        rank = job.rank
        named = min(job.named, int(job.row["offloaded"]))
        if not rank.tiers or job.storing or named <= job.stored:
            return
        first = self.skip(rank, job, range(job.stored, named), 0)
        held: list[list[Block]] = []
        last = first
        for _, place, count in job.nodes[first:named]:
            blocks = [rank.cache.find(key) for key in job.keys[place : place + count]]
            if None in blocks:
                break
            held.append(blocks)
            last += 1
        job.stored = last if held else named
        if not held:
            return
        rank.cache.hold(block for blocks in held for block in blocks)
        job.storing = True
        places = range(first, last)

        def arrive(time: float) -> None:
            self.insert(rank, job, places, 0)
            for blocks in reversed(held):
                rank.cache.give(blocks)
            job.storing = False
            self.store(job, time)
            self.pass_on(rank, job, places, 1, time)
            rank.wake(time)

        self.copy_down(rank, job, places, 0, time, arrive)

    def skip(self, rank: Rank, job: Job, places: range, tier: int) -> int:
        """Touch the leading nodes that the tier has; return the first that it lacks."""
        for i in places:
            node, _, blocks = job.nodes[i]
            if rank.tiers[tier].count(node) < blocks:
                return i
            rank.tiers[tier].touch(node)
        return places.stop

    def insert(self, rank: Rank, job: Job, places: range, tier: int) -> None:
        for i in places:
            rank.tiers[tier].insert(job.nodes[i][0], job.nodes[i][2])

    def pass_on(self, rank: Rank, job: Job, places: range, tier: int, time: float) -> None:
        """Copy what has arrived in one tier to the next."""
        if tier == len(rank.tiers):
            return
        rest = range(self.skip(rank, job, places, tier), places.stop)

        def arrive(time: float) -> None:
            self.insert(rank, job, rest, tier)
            self.pass_on(rank, job, rest, tier + 1, time)
            rank.wake(time)

        if rest:
            self.copy_down(rank, job, rest, tier, time, arrive)

    def copy_down(self, rank: Rank, job: Job, places: range, tier: int, time: float, arrive: Any) -> None:
        blocks = 0
        for i in places:
            node, _, whole = job.nodes[i]
            blocks += whole if rank.tiers[tier].count(node) < whole else 0
        kind = int(rank.pool.lim["tier_kind"][tier])
        names = [*(["d2h"] if tier == 0 else []), *[(), ("disk_write",), ("remote_write", "store_write")][kind]]
        path = self.links(rank.pool, rank.row, *names)
        self.network.begin(path, blocks * float(rank.pool.lim["block_bytes"]), time, arrive, (rank,))

    def start_load(self, job: Job, tier: int, blocks: int, now: float) -> None:
        rank = job.rank
        kind = int(rank.pool.lim["tier_kind"][tier])
        path = self.links(rank.pool, rank.row, "h2d", *[(), ("disk_read",), ("remote_read", "store_read")][kind])

        def arrive(time: float) -> None:
            job.loading -= 1
            if job.loading == 0:
                job.kv, job.visible = s.LOADED, time
                rank.register(job, job.ctx)
                rank.waiting.insert(0, job)
                rank.wake(time)

        self.network.begin(path, blocks * float(rank.pool.lim["block_bytes"]), now, arrive, (job, rank))


def leading(true: list[bool]) -> int:
    """Return how many of the first are true."""
    return (*true, False).index(False)
