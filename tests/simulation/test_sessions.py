"""Sessions: who is sent when, and the end of a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.config import DeploymentConfig
from dynosim.simulation import simulate
from dynosim.simulation.records import COMPLETED, INCOMPLETE, REJECTED, UNSENT
from dynosim.workload.table import Workload
from simulation.tables import DECODE_S, PREFILL_S, assert_time_adds_up, deployment, make_table

TURN_S = 1000 * PREFILL_S + 10 * DECODE_S
"""Alone, a request of 1,000 prompt tokens and 11 output tokens."""
SPLIT = {"prefill": {}, "decode": {}, "kv_transfer": {"bandwidth_gb_s": 20.0}}
DEPLOYMENTS = {
    "aggregated": deployment(pool={"replicas": 2}),
    **{engine: deployment(engine={"name": engine}, disaggregated=SPLIT) for engine in ("vllm", "sglang", "trtllm")},
}


def test_a_turn_is_sent_its_delay_after_the_turn_before_ended() -> None:
    workload = make_table([1000] * 3, [11] * 3, after=[[], [0], [1]], session=[0] * 3, delay_s=[0.0, 2.0, 0.5])
    requests = simulate(deployment(), workload).requests
    np.testing.assert_allclose(requests["arrival_s"], [0.0, TURN_S + 2.0, 2 * TURN_S + 2.5], atol=1e-12)
    np.testing.assert_allclose(requests["last_token_s"] - requests["arrival_s"], TURN_S, atol=1e-12)


def test_turns_that_are_not_sent_yet_keep_nobody_in_the_frontend() -> None:
    workload = make_table(
        [10] * 4, [2] * 4, arrival_s=[0.0, 0.0, 0.0, 1.0], after=[[], [0], [1], []], session=[0, 0, 0, 1],
        delay_s=[0.0, 50.0, 50.0, 0.0],
    )  # fmt: skip
    requests = simulate(deployment(engine={"frontend_request_us": 1e6}), workload).requests
    np.testing.assert_allclose(requests["wait_frontend_s"], 0.0, atol=1e-12)


def test_a_join_waits_for_the_last_of_its_predecessors() -> None:
    workload = make_table(
        [1000] * 4, [11, 21, 51, 11], after=[[], [0], [0], [1, 2]], session=[0] * 4, delay_s=[0, 0, 0, 1.0]
    )
    requests = simulate(deployment(pool={"replicas": 2}), workload).requests
    assert requests["last_token_s"][2] > requests["last_token_s"][1]
    assert requests["arrival_s"][3] == requests["last_token_s"][2] + 1.0


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_client_takes_the_next_session_when_all_requests_of_its_last_have_ended(name: str) -> None:
    """Three sessions: two roots and a join; two turns; one request. Two clients."""
    workload = make_table(
        [1000] * 6, [31, 11, 11, 11, 11, 11], after=[[], [], [0, 1], [], [3], []], session=[0, 0, 0, 1, 1, 2],
        delay_s=[0, 0, 1.0, 0, 5.0, 0], concurrency=2,
    )  # fmt: skip
    requests = simulate(DEPLOYMENTS[name], workload).requests
    sent, ended = requests["arrival_s"], requests["last_token_s"]
    assert sent[0] == sent[1] == sent[3] == 0.0
    assert sent[2] == max(ended[0], ended[1]) + 1.0
    assert sent[4] == ended[3] + 5.0
    assert sent[5] == min(ended[2], ended[4])


def _random_graph(draw: st.DrawFn, requests: int) -> list[list[int]]:
    return [sorted(draw(st.sets(st.integers(0, i - 1), max_size=2))) if i else [] for i in range(requests)]


@st.composite
def _workloads(draw: st.DrawFn) -> Workload:
    """Up to three sessions of random graphs; some requests can never fit."""
    after: list[list[int]] = []
    session: list[int] = []
    for number in range(draw(st.integers(1, 3))):
        first, graph = len(after), _random_graph(draw, draw(st.integers(1, 6)))
        after += [[first + i for i in one] for one in graph]
        session += [number] * len(graph)
    n = len(after)
    tokens = st.sampled_from([1, 300, 1000, 40_000])
    return make_table(
        draw(st.lists(tokens, min_size=n, max_size=n)), draw(st.lists(st.integers(1, 60), min_size=n, max_size=n)),
        arrival_s=sorted(draw(st.lists(st.floats(0, 3), min_size=n, max_size=n))), after=after, session=session,
        delay_s=draw(st.lists(st.sampled_from([0.0, 0.1, 2.0]), min_size=n, max_size=n)),
        concurrency=draw(st.sampled_from([None, 1, 2])),
    )  # fmt: skip


@settings(max_examples=60)
@given(workload=_workloads(), name=st.sampled_from(sorted(DEPLOYMENTS)))
def test_any_graph_is_sent_as_it_says(workload: Workload, name: str) -> None:
    pool = {"num_gpu_blocks_override": {"sglang": 32_000, "trtllm": 1000}.get(name, 2000)}
    shape = {"disaggregated": SPLIT | {"prefill": pool, "decode": pool}} if name in ("vllm", "sglang", "trtllm") else {}
    config = deployment(pool=pool, engine={"name": name if shape else "vllm"}, **shape)
    result = simulate(config, workload)
    requests = result.requests
    assert_time_adds_up(result)
    assert set(requests["status"]) <= {COMPLETED, REJECTED}
    ended = np.fmax(requests["last_token_s"], requests["arrival_s"])  # what is rejected ends at once
    for i in range(len(workload)):
        before = workload.after_ids[workload.after_offsets[i] : workload.after_offsets[i + 1]]
        if len(before):
            assert requests["arrival_s"][i] == ended[before].max() + workload.delay_s[i]
        elif workload.concurrency is None:
            assert requests["arrival_s"][i] == workload.arrival_s[i]
    if workload.concurrency is not None:
        _assert_at_most_so_many_sessions(workload, requests["arrival_s"], ended)


def _assert_at_most_so_many_sessions(workload: Workload, sent: np.ndarray, ended: np.ndarray) -> None:
    first = np.array([sent[workload.session == s].min() for s in range(workload.session.max() + 1)])
    last = np.array([ended[workload.session == s].max() for s in range(workload.session.max() + 1)])
    for time in first:
        assert ((first <= time) & (last > time)).sum() <= (workload.concurrency or 0)
    order = np.sort(last)
    for k, time in enumerate(first[workload.concurrency or 0 :]):
        assert time == order[k]  # the k-th session that ends makes room


def test_a_run_stops_at_its_end_and_says_so() -> None:
    workload = make_table([1000] * 40, [101] * 40, arrival_s=[0.5 * i for i in range(40)])
    whole = simulate(deployment(), workload)
    part = simulate(deployment(), replace(workload, end_s=10.2))
    done, sent = part.requests["status"] == COMPLETED, workload.arrival_s <= 10.2
    assert (done == (whole.requests["last_token_s"] <= 10.2)).all()
    assert (part.requests["last_token_s"][done] == whole.requests["last_token_s"][done]).all()
    assert (part.requests["status"][sent & ~done] == INCOMPLETE).all()
    assert (part.requests["status"][~sent] == UNSENT).all()
    assert 0 < done.sum() < sent.sum() < 40
    assert (whole.stopped, part.stopped) == ("", "duration")
    assert part.duration_s == 10.2
    assert part.pools[0].gpu_seconds == pytest.approx(4 * 10.2)


@pytest.mark.parametrize("config", DEPLOYMENTS.values(), ids=DEPLOYMENTS)
def test_turns_that_were_not_reached_are_unsent(config: DeploymentConfig) -> None:
    workload = make_table([1000] * 3, [11] * 3, after=[[], [0], [1]], session=[0] * 3, delay_s=[0, 0, 9.0], end_s=5.0)
    requests = simulate(config, workload).requests
    assert requests["status"].tolist() == [COMPLETED, COMPLETED, UNSENT]
    assert np.isnan(requests["arrival_s"][2])


def test_a_million_tokens_of_sessions_end_the_same_in_bulk_and_on_the_clock() -> None:
    """A router that looks does not change when a single replica serves what."""
    rng = np.random.default_rng(1)
    workload = make_table(
        rng.integers(10, 3000, 600).tolist(),
        rng.integers(1, 200, 600).tolist(),
        np.cumsum(rng.exponential(0.2, 600)).tolist(),
    )
    bulk, clock = (
        simulate(deployment("roofline", router={"policy": policy}), workload).requests
        for policy in ("round_robin", "least_outstanding")
    )
    for name in ("scheduled_s", "first_token_s", "last_token_s", "queue_s", "stall_s"):
        np.testing.assert_allclose(bulk[name], clock[name], atol=1e-9)
