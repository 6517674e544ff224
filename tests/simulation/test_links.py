"""Transfers against closed forms, and the laws that any set of them obeys."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from dynosim.simulation import build, links, state
from dynosim.simulation.compiled import handle_of

BANDWIDTH = {"prefill": 100.0, "decode": 50.0}
"""Bytes per second of one replica's port."""
REPLICAS = 3
Port = tuple[str, int]


@dataclass(frozen=True)
class Job:
    """One transfer to be made."""

    start_s: float
    source: int
    target: int
    size_bytes: float

    @property
    def ports(self) -> tuple[Port, Port]:
        return ("prefill", self.source), ("decode", self.target)


@njit
def _drive(handle, start_s, source, target, size_bytes, end_s):  # type: ignore[no-untyped-def]
    """Begin the transfers in the order of their starts and fill in when each ends."""
    e = state.open_engine(handle)
    begun = 0
    while begun < len(start_s) or e.net[0].active > 0:
        if begun < len(start_s) and start_s[begun] <= e.net[0].next:
            transfer = links.begin(e, start_s[begun], 0, 0, begun, size_bytes[begun])
            links.over(e, transfer, source[begun])
            links.over(e, transfer, target[begun])
            links.depart(e, transfer)
            begun += 1
            continue
        i = links.step(e)
        if i >= 0:
            end_s[e.transfers[i].job] = e.net[0].now
            links.remove(e, i)


def _run(*jobs: Job, latency_s: float = 0.0) -> list[float]:
    """Return when each transfer ended."""
    order = sorted(range(len(jobs)), key=lambda i: jobs[i].start_s)
    arrays = {name: np.zeros((1, 1) if name in state._TABLES else 1) for name in state.Engine._fields}
    arrays |= {
        "limits": np.zeros(1, state.LIMITS),
        "net": np.zeros(1, state.NET),
        "links": np.zeros(2 * REPLICAS * 4, state.LINK),
        "transfers": np.zeros(len(jobs) + 1, state.TRANSFER),
    }
    arrays["net"]["next"], arrays["links"]["latency_s"] = math.inf, latency_s
    arrays["links"]["bytes_s"][0::2], arrays["links"]["bytes_s"][1::2] = BANDWIDTH["prefill"], BANDWIDTH["decode"]
    columns = [[jobs[i].start_s, 2 * jobs[i].source, 2 * jobs[i].target + 1, jobs[i].size_bytes] for i in order]
    start, source, target, size = np.array(columns).T
    ends = np.zeros(len(jobs))
    build.to_numba()
    _drive(handle_of(list(arrays.values())), start, source.astype(np.int64), target.astype(np.int64), size, ends)
    return [float(ends[order.index(i)]) for i in range(len(jobs))]


def test_alone_a_transfer_runs_at_its_slower_port() -> None:
    assert _run(Job(3.0, 0, 0, 100.0)) == pytest.approx([3.0 + 100.0 / 50.0])


def test_latency_comes_first_and_takes_no_bandwidth() -> None:
    jobs = (Job(0.0, 0, 0, 100.0), Job(2.0, 0, 0, 100.0))
    assert _run(*jobs, latency_s=0.5) == pytest.approx([2.5, 4.5])


def test_nothing_to_send_takes_the_latency_and_slows_nobody() -> None:
    jobs = (Job(0.0, 0, 0, 100.0), Job(1.0, 0, 0, 0.0))
    assert _run(*jobs, latency_s=0.25) == pytest.approx([2.25, 1.25])


def test_transfers_on_different_ports_do_not_meet() -> None:
    assert _run(Job(0.0, 0, 0, 100.0), Job(0.0, 1, 1, 100.0)) == pytest.approx([2.0, 2.0])


def test_two_that_enter_one_port_share_it() -> None:
    assert _run(Job(0.0, 0, 0, 100.0), Job(0.0, 1, 0, 100.0)) == pytest.approx([4.0, 4.0])


def test_three_that_leave_one_port_share_it_until_the_first_ends() -> None:
    """100 / 3 bytes/s each; the short one ends at 3 s, the others then go at 50, which is their other port's rate."""
    ends = _run(Job(0.0, 0, 0, 100.0), Job(0.0, 0, 1, 200.0), Job(0.0, 0, 2, 200.0))
    assert ends == pytest.approx([3.0, 5.0, 5.0])


def test_a_late_joiner_slows_what_is_on_its_way() -> None:
    """50 bytes/s for 1 s, then 25 each: the first has 50 bytes left (2 s), the second 50 at 3 s, then alone again."""
    assert _run(Job(0.0, 0, 0, 100.0), Job(1.0, 1, 0, 100.0)) == pytest.approx([3.0, 4.0])


def test_what_a_busier_other_port_leaves_unused_is_not_given_away() -> None:
    """Port decode 0 gives each of two 25; the one from the idle source could not use more anyway, the third gets 50."""
    ends = _run(Job(0.0, 0, 0, 100.0), Job(0.0, 1, 0, 100.0), Job(0.0, 0, 1, 100.0))
    assert ends == pytest.approx([4.0, 4.0, 2.0])


_jobs = st.lists(
    st.builds(
        Job,
        start_s=st.floats(0.0, 20.0),
        source=st.integers(0, 2),
        target=st.integers(0, 2),
        size_bytes=st.one_of(st.just(0.0), st.floats(1e-3, 1e4)),
    ),
    min_size=1,
    max_size=12,
)


@given(_jobs, st.sampled_from([0.0, 0.3]))
@settings(max_examples=150)
def test_every_transfer_ends_in_time_and_no_port_carries_more_than_its_bandwidth(
    jobs: list[Job], latency_s: float
) -> None:
    ends = _run(*jobs, latency_s=latency_s)
    users = Counter(port for job in jobs for port in job.ports)
    for job, end_s in zip(jobs, ends, strict=True):
        took_s = end_s - job.start_s - latency_s
        rates = [BANDWIDTH[role] for role, _ in job.ports]
        assert took_s >= job.size_bytes / min(rates) - 1e-6
        # Never less than the share that is left if all jobs of its ports are there all the time.
        worst = min(BANDWIDTH[port[0]] / users[port] for port in job.ports)
        assert took_s <= job.size_bytes / worst + 1e-6
    by_port: dict[Port, list[int]] = defaultdict(list)
    for index, job in enumerate(jobs):
        for port in job.ports:
            by_port[port].append(index)
    for (role, _), on_it in by_port.items():
        first_s = min(jobs[i].start_s + latency_s for i in on_it)
        carried = sum(jobs[i].size_bytes for i in on_it)
        assert max(ends[i] for i in on_it) >= first_s + carried / BANDWIDTH[role] - 1e-6


@given(_jobs)
@settings(max_examples=100)
def test_one_bottleneck_is_work_conserving(jobs: list[Job]) -> None:
    """All into one port whose bandwidth is what each could use alone: busy without a break while there is work."""
    jobs = [Job(0.0, index, 0, job.size_bytes) for index, job in enumerate(jobs)]
    ends = _run(*jobs)
    assert max(ends) == pytest.approx(sum(job.size_bytes for job in jobs) / BANDWIDTH["decode"], abs=1e-6)
    assert [job.size_bytes for _, job in sorted(zip(ends, jobs, strict=True), key=lambda pair: pair[0])] == (
        pytest.approx(sorted(job.size_bytes for job in jobs), abs=1e-3)
    )
