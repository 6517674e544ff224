"""Laws of the queue of prompts that estimates play the traffic through."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.estimates.demand import demand_of
from dynosim.estimates.queue import STATS, Queue
from dynosim.search.features import ServingEstimates
from dynosim.search.rows import Rows
from dynosim.simulation import queueing
from search.problems import small

Array = np.ndarray
P99 = STATS.index("p99")


def _met(
    arrival_s: Array,
    tokens: Array,
    *,
    replicas: Array | int = 1,
    batches: int = 1,
    cyclic: bool = False,
    output: Array | float = 2.0,
    step_s: float = 0.02,
    pass_s: float = 0.1,
    width_s: float = 0.0,
) -> Array:
    """Return ``2 x STATS`` of a pool that takes a second per token."""
    queue = Queue(arrival_s, tokens[None], tokens[None] * 0.0, np.broadcast_to(output, tokens.shape).copy(), 0)
    numbers = np.zeros(8)
    numbers[[queueing.BATCHES, queueing.CYCLIC, queueing.TOKEN_S, queueing.SPACING]] = batches, cyclic, 1.0, 1.0
    numbers[[queueing.STEP_S, queueing.PASS_S, queueing.WIDTH_S]] = step_s, pass_s, width_s
    there = np.atleast_1d(np.asarray(replicas, float))[None]
    return queue(numbers[None], np.zeros(1), np.zeros(1, np.int64), there)[0]


traffic = st.lists(st.tuples(st.floats(0.0, 5.0), st.floats(0.01, 5.0)), min_size=1, max_size=40)


@given(traffic)
@settings(deadline=None)
def test_one_server_is_lindleys_recursion(requests: list[tuple[float, float]]) -> None:
    gaps_s, work_s = np.array(requests).T
    arrival_s, free_s, expected = np.cumsum(gaps_s), 0.0, []
    for time, work in zip(arrival_s, work_s, strict=True):
        free_s = max(time, free_s) + work
        expected.append(free_s - time)
    assert _met(arrival_s, work_s)[0, 0] == pytest.approx(np.mean(expected))


@given(traffic, st.integers(1, 6), st.booleans())
@settings(deadline=None)
def test_replicas_never_make_anyone_wait_longer_and_none_waits_before_enough(
    requests: list[tuple[float, float]], replicas: int, cyclic: bool
) -> None:
    gaps_s, work_s = np.array(requests).T
    arrival_s = np.cumsum(gaps_s)
    looks = _met(arrival_s, work_s, replicas=replicas)[0]
    assert (_met(arrival_s, work_s, replicas=replicas + 1)[0] <= looks + 1e-9).all()
    assert (looks >= np.min(work_s) - 1e-9).all()
    alone = _met(arrival_s, work_s, replicas=len(work_s), cyclic=cyclic)[0]
    assert alone[0] == pytest.approx(work_s.mean())
    # A replica of two batches is two servers.
    np.testing.assert_allclose(_met(arrival_s, work_s, replicas=1, batches=replicas)[0], looks)


def test_poisson_traffic_waits_as_pollaczek_and_khinchine_say() -> None:
    rng = np.random.default_rng(0)
    work_s, load = rng.exponential(1.0, 4_000), 0.5
    waits = []
    for _ in range(20):
        arrival_s = np.cumsum(rng.exponential(1.0 / load, 4_000))
        waits.append(_met(arrival_s, work_s)[0, 0] - work_s.mean())
    assert np.mean(waits) == pytest.approx(load / (1.0 - load), rel=0.1)  # M/M/1


def test_taking_turns_is_worse_than_looking() -> None:
    rng = np.random.default_rng(1)
    arrival_s, work_s = np.cumsum(rng.exponential(0.4, 2_000)), rng.exponential(1.0, 2_000)
    assert _met(arrival_s, work_s, replicas=4, cyclic=True)[0, P99] > _met(arrival_s, work_s, replicas=4)[0, P99]


def test_replicas_that_come_later_serve_later() -> None:
    arrival_s, work_s = np.arange(10.0), np.full(10, 2.0)
    late = _met(arrival_s, work_s, replicas=np.array([1.0, 2.0]), width_s=5.0)[0, 0]
    assert _met(arrival_s, work_s, replicas=2)[0, 0] < late < _met(arrival_s, work_s, replicas=1)[0, 0]


@given(traffic, st.floats(2.0, 200.0), st.sampled_from([0.05, 0.5, np.inf]))
@settings(deadline=None)
def test_gaps_are_those_of_walking_through_the_prompts_of_the_batch(
    requests: list[tuple[float, float]], output: float, pass_s: float
) -> None:
    gaps_s, work_s = np.array(requests).T
    arrival_s, step_s, free_s, spans = np.cumsum(gaps_s), 0.02, 0.0, []
    for time, work in zip(arrival_s, work_s, strict=True):
        spans.append((max(time, free_s), max(time, free_s) + work))
        free_s = spans[-1][1]
    expected = []
    for i, (_, end) in enumerate(spans):
        time, left = end, output - 1.0
        for begin, until in spans[i + 1 :]:
            idle = min((begin - time) / step_s, left)
            time, left = time + idle * step_s, left - idle
            if left < 1e-9:
                break
            chunks = min((until - begin) / pass_s, left)
            left -= chunks
            time = until if left > 1e-9 else begin + chunks * pass_s
        expected.append((time + left * step_s - end) / (output - 1.0))
    found = _met(arrival_s, work_s, output=output, step_s=step_s, pass_s=pass_s)[1, 0]
    assert found == pytest.approx(np.mean(expected), rel=1e-6)


def test_later_turns_come_after_the_turns_that_they_wait_for() -> None:
    sessions = (
        "{block_tokens: 16, groups: {groups: 2, prefix_tokens: {type: fixed, tokens: 64}, skew: 1.0},"
        " turns: {type: fixed, tokens: 5}, new_tokens: [{type: fixed, tokens: 32}],"
        " think_s: {type: lognormal, median_s: 20.0, sigma: 0.1, max_s: 30.0}, max_input_tokens: 4096}"
    )
    space = small(f"workload.source.sessions={sessions}", "workload.load={type: poisson, rate_rps: 10.0}")
    demand = demand_of(space.reference)
    assert demand.span_s > 60.0  # four waits of some 20 s
    assert demand.independent < 0.5
    assert 0.0 < demand.unshared < 1.0


def test_more_prompt_tokens_per_pass_cost_those_who_decode() -> None:
    tokens = "workload.source.{}_tokens={{type: fixed, tokens: {}}}"
    half_busy = "workload.load={type: poisson, rate_rps: 2.5}", "workload.source.requests=200"
    space = small(
        *half_busy, tokens.format("input", 2_000), tokens.format("output", 100), "deployment.timing={type: fixed}",
        "deployment.aggregated.max_num_batched_tokens={choices: [256, 4096]}",
    )  # fmt: skip
    rows = Rows(space)
    points = [
        space.complete({"deployment.aggregated.max_num_batched_tokens": n, "deployment.aggregated.replicas": 1})
        for n in (256, 4096)
    ]
    few, many = ServingEstimates(rows)(rows.of(points)).times_s[:, 1, P99]
    assert few < many
