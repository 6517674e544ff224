"""The record of each request: what the pools know of it joined, and its time split by what it was spent on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.simulation.pool_runtime import PoolRuntime
from dynosim.simulation.records import REQUEST_DTYPE, WAIT_REASONS
from dynosim.simulation.sessions import Sessions
from dynosim.simulation.state import NONE, REASONS
from dynosim.workload.table import FloatArray, IntArray, Workload

Columns = NDArray[Any]
COLUMNS = {
    "scheduled_s": "scheduled",
    "prefill_done_s": "first",
    "cached_tokens": "cached",
    "cached_host_tokens": "cached_host",
    "cached_disk_tokens": "cached_disk",
    "cached_remote_tokens": "cached_remote",
}
"""Column of a record -> of the pool's jobs that has computed the prompt."""
OF_PROMPT = (
    *COLUMNS.values(), "second", "preemptions", "row", "preempted_prefill_s", "preempted_decode_s", "stall_s",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Served:
    """What serves the requests of a run, and which way each went."""

    workload: Workload
    runtimes: Sequence[PoolRuntime]
    local: NDArray[np.bool_]
    """Shape (n,): whether a decode replica computes the prompt itself."""

    def ways(self, rows: IntArray | slice) -> tuple[Columns, Columns]:
        """Return which of *rows* a decode replica serves alone, and which it takes over from a prefill replica."""
        local = self.local[rows]
        moves = (self.workload.output_tokens[rows] > 1) & (len(self.runtimes) > 1)
        return local, moves & ~local

    def token_times(self, rows: IntArray | slice) -> tuple[FloatArray, FloatArray]:
        """Return when the requests *rows* showed their first and their last token; NaN where they have not."""
        jobs = [runtime.pool.engine.jobs for runtime in self.runtimes]
        if len(jobs) == 1:
            return jobs[0]["first"][rows], jobs[0]["last"][rows]
        local, moved = self.ways(rows)
        computed = np.where(local, jobs[1]["first"][rows], jobs[0]["first"][rows])
        by = self.runtimes[0].pool.plan.rules.first_token
        shown = computed if by == "prefill" else jobs[1]["first"][rows]
        last = np.where(moved | local, jobs[1]["last"][rows], jobs[0]["last"][rows])
        return np.where(moved, shown, computed), last


def request_records(served: Served, sessions: Sessions, retries: NDArray[np.int32]) -> Columns:
    """Return shape (n,) of REQUEST_DTYPE, all but the status.

    The prompt was computed by the first pool, or by the decode pool itself (*local*). Tokens after the first come from
    the same pool, or from the decode pool after a hand-off (*moved*).
    """
    workload, runtimes = served.workload, served.runtimes
    first, last = runtimes[0].pool.engine, runtimes[-1].pool.engine
    local, moved = served.ways(slice(None))
    prompt, waits = first.jobs, [first.job_waits]
    if len(runtimes) > 1:
        prompt = _prompt(local, first.jobs, last.jobs)
        waits = [np.where(local[:, None], last.job_waits, first.job_waits), last.job_waits * moved[:, None]]
    out = np.zeros(len(workload), REQUEST_DTYPE)
    out["arrival_s"], out["retries"] = sessions.sent_s, retries
    out["input_tokens"], out["output_tokens"] = workload.input_tokens, workload.output_tokens
    for name, column in COLUMNS.items():
        out[name] = prompt[column]
    out["preemptions"] = prompt["preemptions"] + np.where(moved, last.jobs["preemptions"], 0)
    for name, runtime, jobs in (("prefill_replica", runtimes[0], prompt), ("decode_replica", runtimes[-1], last.jobs)):
        out[name] = np.where(jobs["row"] == NONE, NONE, jobs["row"] // len(runtime.dispatcher.rows_of(0)))
    out["kv_landed_s"] = np.where(moved, last.jobs["landed"], prompt["first"])
    out["second_token_s"] = np.where(moved, last.jobs["second"], prompt["second"])
    out["first_token_s"], out["last_token_s"] = served.token_times(slice(None))
    _parts(out, prompt, last.jobs, moved)
    out["wait_cold_start_s"] = sum(runtime.dispatcher.cold_start_s for runtime in runtimes)
    out["wait_frontend_s"] = np.nan_to_num(sessions.arrival_s - sessions.sent_s)
    _waits(out, waits)
    return out


def _prompt(local: Columns, first: Columns, last: Columns) -> Columns:
    """Return those columns that a record is made of, of the jobs that have computed each prompt."""
    out = np.empty(len(local), [(name, first.dtype[name]) for name in OF_PROMPT])
    for name in OF_PROMPT:
        out[name] = np.where(local, last[name], first[name])
    return out


def _parts(out: Columns, prompt: Columns, decode: Columns, moved: Columns) -> None:
    """Cut the latency at the phase borders and take preempted and stalled time out of the phase it fell in.

    A hand-off first waits for blocks of the decode replica (queue), unless they were reserved before, and then for the
    KV itself. All that a crash has cost a request between its first pass and the one that serves it is preempted.
    """
    done, landed = out["prefill_done_s"], out["kv_landed_s"]
    reserved = np.where(moved, np.maximum(decode["scheduled"], done), done)
    lost = np.where(moved, decode["preempted_prefill_s"] + decode["preempted_decode_s"], prompt["preempted_decode_s"])
    out["stall_s"] = np.where(moved, decode["stall_s"], prompt["stall_s"])
    out["decode_queue_s"] = reserved - done
    out["queue_s"] = out["scheduled_s"] - out["arrival_s"] + out["decode_queue_s"]
    out["prefill_s"] = done - out["scheduled_s"] - prompt["preempted_prefill_s"]
    out["kv_transfer_s"] = landed - reserved
    out["decode_s"] = out["last_token_s"] - landed - lost - out["stall_s"]
    out["preempted_s"] = prompt["preempted_prefill_s"] + lost


def _waits(out: Columns, waits: list[Columns]) -> None:
    """Split the queue time by what was waited for.

    A request that was sent again may have waited more often than its queue time counts, and for a crash to be noticed:
    its reasons fill its queue time up in their order, and an outage is the rest.
    """
    for k, reason in enumerate(REASONS):
        out[f"wait_{reason}_s"] = sum(each[:, k] for each in waits)
    left, retried = out["queue_s"].copy(), out["retries"] > 0
    for reason in WAIT_REASONS:
        column = out[f"wait_{reason}_s"]
        column[retried] = np.minimum(column, left)[retried]
        left -= column
    out["wait_outage_s"][retried] = left[retried]
