"""The slow oracle: the engine's semantics written out pass by pass and block by block in plain Python.

It takes the place of the compiled functions of ``dynosim.simulation.engine`` under the same cluster. No jumps over
passes, no runs of blocks, no linked lists: every forward pass is executed, every KV block has its own identity.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynosim.simulation import engine as core
from dynosim.simulation.engine import LANDED, LOCAL, MOVING, REMOTE
from dynosim.simulation.pool import Pool


@dataclass
class Job:
    index: int
    row: Any
    ids: list[int]
    visible: float = 0.0
    ctx: int = 0
    generated: int = 0
    chunk: int = 0
    prefilling: bool = False
    blocks: list[int] = field(default_factory=list)
    blocks_logical: int = 0  # without the last block of a full hit, which is held beside its recomputed copy
    hit_blocks: int = 0
    kv: int = LOCAL
    last_token: float = math.nan
    preempted_at: float = math.nan
    stall_mark: float = 0.0

    @property
    def tokens(self) -> int:
        return int(self.row["input"]) + self.generated


class Replica:
    def __init__(self, oracle: Oracle, index: int) -> None:
        self.o, self.index = oracle, index
        self.now, self.end = 0.0, math.inf
        self.planned = False
        self.running: list[Job] = []
        self.waiting: deque[Job] = deque()
        self.free: OrderedDict[int, Any] = OrderedDict((b, None) for b in range(oracle.lim["num_blocks"]))
        self.by_key: dict[Any, int] = {}
        self.key_of: dict[int, Any] = {}
        self.refs: dict[int, int] = {}
        self.stalled = self.stall_planned = 0.0

    # ------------------------------------------------------------------------------------------------------ KV blocks

    def take(self, n: int) -> list[int]:
        taken = []
        for _ in range(n):
            block, _ = self.free.popitem(last=False)
            key = self.key_of.pop(block, None)
            if key is not None:
                del self.by_key[key]
            self.refs[block] = 1
            taken.append(block)
        return taken

    def key(self, job: Job, b: int) -> Any:
        size, node = int(self.o.lim["block_size"]), int(self.o.lim["hash_tokens"])
        if not self.o.lim["caching"] or (b + 1) * size > job.row["input"]:
            return None
        return job.ids[b * size // node], b * size % node

    def match(self, job: Job, tokens: int) -> tuple[int, list[int]]:
        found: list[int] = []
        while (key := self.key(job, len(found))) is not None and key in self.by_key:
            found.append(self.by_key[key])
        size = int(self.o.lim["block_size"])
        return min(len(found), (tokens - 1) // size) * size, found

    def hold(self, found: list[int]) -> None:
        for block in found:
            self.free.pop(block, None)
            self.refs[block] = self.refs.get(block, 0) + 1

    def register(self, job: Job, tokens: int, hit_blocks: int) -> None:
        for b in range(tokens // int(self.o.lim["block_size"])):
            key = self.key(job, b)
            if key is not None and key not in self.by_key:
                block = job.blocks[b + (len(job.blocks) - job.blocks_logical if b >= hit_blocks else 0)]
                self.by_key[key], self.key_of[block] = block, key

    def release(self, job: Job) -> None:
        for block in reversed(job.blocks):
            self.refs[block] -= 1
            if self.refs[block] == 0:
                self.free[block] = None
        job.blocks = []

    # ------------------------------------------------------------------------------------------------------- schedule

    def start(self) -> float:
        if self.running:
            return self.now
        return max(self.now, self.waiting[0].visible) if self.waiting else math.inf

    def preempt(self) -> None:
        job = self.running.pop()
        self.release(job)
        job.ctx = job.chunk = 0
        job.prefilling = False
        job.row["preemptions"] += 1
        job.visible = self.now
        if math.isnan(job.preempted_at):
            job.preempted_at = self.now
            if job.generated > 0:
                job.row["stall_s"] += self.stalled - job.stall_mark
        self.waiting.appendleft(job)

    def grow(self, job: Job, tokens: int) -> None:
        size = int(self.o.lim["block_size"])
        need = max(-(-tokens // size) - job.blocks_logical, 0)
        job.blocks += self.take(need)
        job.blocks_logical += need

    def schedule_running(self) -> tuple[int, bool]:
        budget, preempted, i = int(self.o.lim["max_num_batched_tokens"]), False, 0
        size = int(self.o.lim["block_size"])
        while i < len(self.running):
            job = self.running[i]
            job.chunk = min(job.tokens - job.ctx, budget)
            need = max(-(-(job.ctx + job.chunk) // size) - job.blocks_logical, 0)
            while need > len(self.free) and i < len(self.running):
                self.preempt()
                preempted = True
            if i < len(self.running):
                self.grow(job, job.ctx + job.chunk)
                if job.prefilling:
                    self.register(job, job.ctx + job.chunk, job.hit_blocks)
                budget -= job.chunk
            i += 1
        return budget, preempted

    def admit(self, job: Job, budget: int) -> bool:
        lim, size = self.o.lim, int(self.o.lim["block_size"])
        hit, found = self.match(job, job.tokens)
        chunk = job.tokens - hit
        if chunk > budget:
            if not lim["chunked"]:
                return False
            chunk = budget
        wanted = -(-(job.tokens if lim["reserve_full"] else hit + chunk) // size) - hit // size
        if wanted > len(self.free) - sum(block in self.free for block in found):
            return False
        self.attach(job, hit, found, hit + chunk)
        job.ctx, job.chunk, job.prefilling = hit, chunk, True
        if math.isnan(job.row["scheduled"]):
            job.row["scheduled"], job.row["cached"] = self.now, hit
        elif job.generated == 0 and not math.isnan(job.preempted_at):
            job.row["preempted_prefill_s"] += self.now - job.preempted_at
            job.preempted_at = math.nan
        self.register(job, hit + chunk, job.hit_blocks)
        return True

    def attach(self, job: Job, hit: int, found: list[int], tokens: int) -> None:
        """Hold the found blocks (a full hit keeps its last block too) and take new ones for the rest."""
        self.hold(found)
        job.blocks, job.hit_blocks = list(found), hit // int(self.o.lim["block_size"])
        job.blocks_logical = job.hit_blocks
        self.grow(job, tokens)

    def reserve(self, job: Job) -> bool:
        size = int(self.o.lim["block_size"])
        hit, found = self.match(job, int(job.row["input"]))
        need = -(-(int(job.row["input"]) + 1) // size) - hit // size
        if need > len(self.free) - sum(block in self.free for block in found):
            return False
        self.attach(job, hit, found, int(job.row["input"]) + 1)
        job.kv, job.row["cached"], job.row["scheduled"] = MOVING, hit, self.now
        return True

    def schedule_waiting(self, budget: int) -> None:
        while self.waiting and len(self.running) < self.o.lim["max_num_seqs"]:
            job = self.waiting[0]
            if job.visible > self.now:
                break
            if job.kv == REMOTE:
                if not self.reserve(job):
                    break
                self.waiting.popleft()
                self.o.emit(self.now, core.RESERVED, job)
                continue
            if budget <= 0:
                break
            if job.kv == LANDED:
                job.kv, job.chunk, job.stall_mark = LOCAL, 1, self.stalled
            elif not self.admit(job, budget):
                break
            self.waiting.popleft()
            self.running.append(job)
            budget -= job.chunk

    # ----------------------------------------------------------------------------------------------------------- pass

    def plan(self) -> None:
        self.now = self.start()
        budget, preempted = self.schedule_running()
        if not preempted or not self.running:
            self.schedule_waiting(budget)
        self.planned, self.end = True, math.inf
        if self.running:
            self.end = self.now + self.pass_time()

    def pass_time(self) -> float:
        e = self.o.e
        chunks = [job for job in self.running if job.prefilling and job.chunk > 0]
        decodes = [job for job in self.running if not job.prefilling]
        batch, context = len(decodes), sum(job.ctx + 1 for job in decodes)
        attention = extrapolated_line(e.decode_context[batch], e.decode_s[batch], context) if batch else 0.0
        self.stall_planned = 0.0
        if batch == len(self.running):
            return float(e.graph_tokens_s[batch] + attention)
        tokens = sum(job.chunk for job in chunks)
        seconds = float(e.tokens_s[tokens + (batch if self.o.lim["fused"] else 0)])
        shares = e.prefill_share_s[min(len(chunks), len(e.prefill_share_s) - 1)]
        for job in chunks:
            s = job.ctx + job.chunk
            seconds += extrapolated_line(e.prefill_seq, shares, s) * (1.0 - (job.ctx / s) ** 2)
        if batch:
            self.stall_planned = max(seconds - e.graph_tokens_s[batch], 0.0)
        return seconds + attention

    def commit(self) -> None:
        self.stalled += self.stall_planned
        for job in self.running:
            job.ctx += job.chunk
            if job.ctx == job.tokens:
                self.token(job)
        done = [job for job in self.running if job.generated >= job.row["output"]]
        self.running = [job for job in self.running if job.generated < job.row["output"]]
        for job in done:
            self.finish(job)
        self.now, self.end, self.planned = self.end, math.inf, False

    def token(self, job: Job) -> None:
        if job.prefilling:
            job.stall_mark, job.prefilling = self.stalled, False
        job.generated += 1
        if job.generated == 1:
            job.row["first"] = self.end
            self.o.e.replicas[self.index]["prefill_load"] -= job.row["prefill_load"]
        elif job.generated == 2:
            job.row["second"] = self.end
        if not math.isnan(job.preempted_at):
            job.row["preempted_decode_s"] += self.end - job.preempted_at
            job.preempted_at = math.nan
        if not math.isnan(job.last_token) and job.index >= self.o.lim["warmup"]:
            self.o.gaps.append(self.end - job.last_token)
        job.last_token = self.end

    def finish(self, job: Job) -> None:
        job.row["last"] = self.end
        job.row["stall_s"] += self.stalled - job.stall_mark
        if not self.o.lim["hold"]:
            self.release(job)
            self.o.count(self.index, job, -1)
        if self.o.lim["watch"]:
            self.o.emit(self.end, core.PREFILL_DONE if self.o.lim["hold"] else core.FINISHED, job)

    def wake(self, time: float) -> None:
        if self.planned and self.end == math.inf:
            self.planned, self.now = False, max(self.now, time)


class Oracle:
    """One pool; keeps its results in the same job and replica arrays as the compiled engine."""

    def __init__(self, e: core.Engine) -> None:
        self.e, self.lim = e, e.limits[0]
        self.jobs = [
            Job(
                i,
                row,
                e.hash_ids[row["hash_start"] : row["hash_start"] + row["hash_count"]].tolist(),
                kv=int(row["kv"]),
            )
            for i, row in enumerate(e.jobs)
        ]
        self.replicas = [Replica(self, i) for i in range(len(e.replicas))]
        self.gaps: list[float] = []

    def emit(self, time: float, kind: int, job: Job) -> None:
        self.e.events[self.lim["n_events"]] = (time, kind, job.index)
        self.lim["n_events"] += 1

    def count(self, replica: int, job: Job, sign: int) -> None:
        self.e.replicas[replica]["outstanding"] += sign
        self.e.replicas[replica]["kv_load"] += sign * job.row["input"]


def extrapolated_line(nodes: np.ndarray, values: np.ndarray, x: float) -> float:
    j = int(np.clip(np.searchsorted(nodes, x, side="right") - 1, 0, len(nodes) - 2))
    return float(values[j] + (values[j + 1] - values[j]) / (nodes[j + 1] - nodes[j]) * (x - nodes[j]))


class OracleCore:
    """The functions of ``dynosim.simulation.engine`` that the cluster calls, over oracles."""

    NONE, PREFILL_DONE, FINISHED, RESERVED = core.NONE, core.PREFILL_DONE, core.FINISHED, core.RESERVED

    def __init__(self) -> None:
        self.oracles: dict[int, Oracle] = {}

    def add(self, pool: Pool) -> Pool:
        """Take over a pool: its handle stands for an oracle from now on."""
        self.oracles[id(pool.handle)] = Oracle(pool.engine)
        return pool

    def of(self, handle: np.ndarray) -> Oracle:
        return self.oracles[id(handle)]

    def next_event(self, handles: np.ndarray, until: float) -> tuple[int, int]:
        oracles = list(self.oracles.values())
        for o in oracles:
            o.lim["n_events"] = 0
        while True:
            replicas = [r for o in oracles for r in o.replicas]
            ending = min((r for r in replicas if r.planned), key=lambda r: r.end, default=None)
            starting = min((r for r in replicas if not r.planned), key=lambda r: r.start(), default=None)
            end = ending.end if ending else math.inf
            if starting and starting.start() < end and starting.start() < until:
                starting.plan()
            elif ending and end < math.inf and end <= until:
                ending.commit()
            else:
                return 0, 0
            for p, o in enumerate(oracles):
                if o.lim["n_events"]:
                    return int(o.lim["n_events"]), p

    def advance_all(self, handle: np.ndarray, until: float) -> None:
        self.next_event(handle, until)

    def submit(self, handle: np.ndarray, r: int, j: int, time: float) -> None:
        o = self.of(handle)
        job = o.jobs[j]
        job.visible = time
        job.row["replica"] = r
        o.count(r, job, 1)
        if job.kv == LOCAL:
            job.row["prefill_load"] = job.row["input"] - o.replicas[r].match(job, int(job.row["input"]))[0]
            o.e.replicas[r]["prefill_load"] += job.row["prefill_load"]
        o.replicas[r].waiting.append(job)
        o.replicas[r].wake(time)

    def submit_all(self, handle: np.ndarray, replica_of: np.ndarray, times: np.ndarray) -> None:
        for j, r in enumerate(replica_of):
            if r != core.NONE:
                self.submit(handle, int(r), j, float(times[j]))

    def land(self, handle: np.ndarray, j: int, time: float, generated: int, ctx: int, shown: float) -> None:
        o = self.of(handle)
        job = o.jobs[j]
        replica = o.replicas[job.row["replica"]]
        job.visible, job.kv, job.generated, job.ctx, job.last_token = time, LANDED, generated, ctx, shown
        replica.register(job, int(job.row["input"]), job.hit_blocks)
        replica.waiting.appendleft(job)
        replica.wake(time)

    def release(self, handle: np.ndarray, j: int, time: float) -> None:
        o = self.of(handle)
        job = o.jobs[j]
        replica = o.replicas[job.row["replica"]]
        replica.release(job)
        o.count(replica.index, job, -1)
        replica.wake(time)

    def cached_tokens(self, handle: np.ndarray, j: int, time: float, out: np.ndarray) -> None:
        o = self.of(handle)
        for r, replica in enumerate(o.replicas):
            out[r] = replica.match(o.jobs[j], int(o.jobs[j].row["input"]))[0]
