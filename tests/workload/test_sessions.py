"""Synthetic sessions: what waits for what, what is shared, and that the table is valid whatever is asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.config import (
    Arrivals,
    Delay,
    ExponentialDelay,
    FanOut,
    FixedDelay,
    FixedLength,
    LognormalDelay,
    PrefixGroups,
    PrefixTree,
    QuantileDelay,
    Sessions,
    SyntheticSource,
    UniformLength,
)
from dynosim.rng import stream
from dynosim.workload import Workload, reuse_bound
from dynosim.workload.sessions import sample_delays
from dynosim.workload.synthetic import generate

UNIT = st.floats(0.0, 1.0)
SHORT = st.integers(1, 300).map(lambda n: FixedLength(tokens=n)) | st.integers(1, 300).map(
    lambda n: UniformLength(min=1, max=n)
)
FEW = st.integers(1, 4).map(lambda n: UniformLength(min=1, max=n))
DELAYS = st.sampled_from([FixedDelay(), FixedDelay(seconds=2.5), ExponentialDelay(mean_s=3.0)])
SESSIONS = st.builds(
    Sessions,
    block_tokens=st.integers(1, 100),
    groups=st.none() | st.builds(PrefixGroups, groups=st.integers(1, 4), prefix_tokens=SHORT, skew=st.floats(0, 2)),
    turns=FEW,
    new_tokens=st.lists(SHORT, min_size=1, max_size=3).map(tuple),
    think_s=DELAYS,
    fan_out=st.none()
    | st.builds(
        FanOut,
        probability=UNIT,
        calls=FEW,
        new_tokens=SHORT,
        output_tokens=SHORT,
        shares_context=st.booleans(),
        delay_s=DELAYS,
    ),
    output_persistence=UNIT,
    max_input_tokens=st.integers(300, 3000),
)
SOURCES = st.builds(
    SyntheticSource,
    requests=st.integers(1, 40),
    input_tokens=SHORT,
    output_tokens=SHORT,
    sessions=SESSIONS,
    arrivals=st.none() | st.just(Arrivals(rates_rps=(2.0,))),
)


def waits_for(workload: Workload) -> list[list[int]]:
    return [ids.tolist() for ids in np.split(workload.after_ids, workload.after_offsets[1:-1])]


def blocks(workload: Workload) -> list[list[int]]:
    return [ids.tolist() for ids in np.split(workload.hash_ids, workload.hash_offsets[1:-1])]


def source(requests: int, **changes: Any) -> SyntheticSource:
    """Prompts of 30 tokens, answers of 10, new messages of 5, blocks of 10."""
    rule: dict[str, Any] = {"block_tokens": 10, "new_tokens": (FixedLength(tokens=5),), **changes}
    return SyntheticSource(
        requests=requests,
        input_tokens=FixedLength(tokens=30),
        output_tokens=FixedLength(tokens=10),
        sessions=Sessions(**rule),
    )


@settings(max_examples=200)
@given(source=SOURCES, seed=st.integers(0, 2**32))
def test_table_is_valid(source: SyntheticSource, seed: int) -> None:
    assert source.sessions is not None
    workload = generate(source, seed)
    n, block_tokens = source.requests, source.sessions.block_tokens
    assert len(workload) == n
    assert (np.diff(workload.session) >= 0).all()
    assert np.unique(workload.session).tolist() == list(range(workload.session.max() + 1))
    assert (np.diff(workload.arrival_s) >= 0).all()
    for row, before in enumerate(waits_for(workload)):
        assert len(set(before)) == len(before)
        assert all(other < row and workload.session[other] == workload.session[row] for other in before)
        assert workload.delay_s[row] == 0 or before
    firsts = np.flatnonzero(np.diff(workload.session, prepend=-1))
    roots = np.flatnonzero(np.diff(workload.after_offsets) == 0)
    assert roots.tolist() == firsts.tolist()
    assert (workload.hashed_tokens >= workload.input_tokens).all()
    assert (workload.hashed_tokens <= workload.input_tokens + workload.output_tokens).all()
    assert np.diff(workload.hash_offsets).tolist() == (-(-workload.hashed_tokens // block_tokens)).tolist()
    assert np.unique(workload.hash_ids).tolist() == list(range(len(np.unique(workload.hash_ids))))


@settings(max_examples=100)
@given(source=SOURCES, seed=st.integers(0, 2**32))
def test_equal_ids_mean_equal_prefixes(source: SyntheticSource, seed: int) -> None:
    assert source.sessions is not None
    workload = generate(source, seed)
    before: dict[int, tuple[list[int], int]] = {}
    for ids, tokens in zip(blocks(workload), workload.hashed_tokens.tolist(), strict=True):
        for k, block in enumerate(ids):
            end = min((k + 1) * source.sessions.block_tokens, tokens)
            assert before.setdefault(block, (ids[:k], end)) == (ids[:k], end)


@settings(max_examples=60)
@given(source=SOURCES, seed=st.integers(0, 2**32), fewer=st.integers(1, 40))
def test_more_requests_begin_with_the_same_ones(source: SyntheticSource, seed: int, fewer: int) -> None:
    fewer = min(fewer, source.requests)
    short, long = generate(source.model_copy(update={"requests": fewer}), seed), generate(source, seed).head(fewer)
    for name in ("arrival_s", "input_tokens", "output_tokens", "session", "after_offsets", "after_ids", "delay_s"):
        assert np.array_equal(getattr(short, name), getattr(long, name))


def test_turns_wait_for_each_other_and_repeat_the_history() -> None:
    workload = generate(source(5, turns=FixedLength(tokens=3), think_s=FixedDelay(seconds=7.0)), seed=0)
    assert workload.session.tolist() == [0, 0, 0, 1, 1]
    assert workload.input_tokens.tolist() == [30, 45, 60, 30, 45]
    assert waits_for(workload) == [[], [0], [1], [], [3]]
    assert workload.delay_s.tolist() == [0, 7, 7, 0, 7]
    assert workload.hashed_tokens.tolist() == [40, 50, 60, 40, 45]
    ids = blocks(workload)
    assert (ids[1][:4], ids[2][:5]) == (ids[0], ids[1])
    assert not set(ids[3]) & {*ids[0], *ids[1], *ids[2]}


def test_sessions_end_at_the_longest_prompt() -> None:
    workload = generate(source(6, turns=FixedLength(tokens=9), max_input_tokens=45), seed=0)
    assert workload.input_tokens.tolist() == [30, 45, 30, 45, 30, 45]


def test_only_what_is_asked_for_is_made() -> None:
    """A planner with a billion calls, in sessions of a billion turns."""
    many, one = FixedLength(tokens=10**9), FixedLength(tokens=1)
    workload = generate(source(20, turns=many, fan_out=FanOut(calls=many, new_tokens=one, output_tokens=one)), seed=0)
    assert workload.session.tolist() == [0] * 20
    assert waits_for(workload) == [[]] + [[0]] * 19


@pytest.mark.parametrize("shares_context", [True, False])
def test_fan_out(shares_context: bool) -> None:
    """A planner, two calls that wait for it, a join that waits for both and holds their answers."""
    calls = FanOut(
        calls=FixedLength(tokens=2),
        new_tokens=FixedLength(tokens=8),
        output_tokens=FixedLength(tokens=3),
        shares_context=shares_context,
        delay_s=FixedDelay(seconds=0.5),
    )
    workload = generate(source(4, turns=FixedLength(tokens=2), fan_out=calls, think_s=FixedDelay(seconds=2)), seed=0)
    call = 48 if shares_context else 8
    assert workload.session.tolist() == [0, 0, 0, 0]
    assert workload.input_tokens.tolist() == [30, call, call, 30 + 10 + 2 * 3 + 5]
    assert workload.output_tokens.tolist() == [10, 3, 3, 10]
    assert waits_for(workload) == [[], [0], [0], [1, 2]]
    assert workload.delay_s.tolist() == [0, 0.5, 0.5, 2]
    plan, *branches, join = blocks(workload)
    assert join[:4] == plan
    assert all((branch[:4] == plan) == shares_context for branch in branches)


def test_groups_share_their_texts() -> None:
    """Half of each prompt of 60 tokens is the text of one of two groups."""
    groups = PrefixGroups(groups=2, prefix_tokens=FixedLength(tokens=30))
    workload = generate(source(400, groups=groups), seed=0)
    assert set(workload.input_tokens.tolist()) == {60}
    texts = {tuple(ids[:3]) for ids in blocks(workload)}
    assert len(texts) == 2
    assert len({block for ids in blocks(workload) for block in ids[3:]}) == 3 * 400
    assert reuse_bound(workload) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("skew", "share"), [(0.0, 1 / 4), (1.0, 1 / (1 + 1 / 2 + 1 / 3 + 1 / 4)), (2.0, 144 / 205)])
def test_skew_of_groups(skew: float, share: float) -> None:
    groups = PrefixGroups(groups=4, prefix_tokens=FixedLength(tokens=10), skew=skew)
    workload = generate(source(4000, groups=groups), seed=0)
    first = workload.hash_ids[workload.hash_offsets[:-1]]
    assert np.unique(first, return_counts=True)[1].max() / 4000 == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("persistence", [0.0, 0.5, 1.0])
def test_output_persistence(persistence: float) -> None:
    """Two turns of a session have its own draw with probability persistence^2; the distribution stays."""
    case = source(
        20000, turns=FixedLength(tokens=2), output_persistence=persistence, max_input_tokens=10**8, block_tokens=10**4
    )
    case = case.model_copy(update={"output_tokens": UniformLength(min=1, max=10**6)})
    outputs = generate(case, seed=1).output_tokens.reshape(-1, 2)
    assert np.mean(outputs[:, 0] == outputs[:, 1]) == pytest.approx(persistence**2, abs=0.02)
    assert outputs.mean() == pytest.approx(5e5, rel=0.02)


@pytest.mark.parametrize(
    ("delay", "quantiles"),
    [
        (FixedDelay(seconds=3.0), {0.1: 3.0, 0.9: 3.0}),
        (ExponentialDelay(mean_s=2.0), {0.5: 2 * np.log(2), 0.9: 2 * np.log(10)}),
        (LognormalDelay(median_s=5.0, sigma=1.0, max_s=10.0), {0.1587: 5 / np.e, 0.5: 5.0, 0.95: 10.0}),
        (QuantileDelay(quantiles={0.0: 0.0, 0.5: 1.0, 1.0: 9.0}), {0.25: 0.5, 0.75: 5.0}),
    ],
)
def test_delays(delay: Delay, quantiles: dict[float, float]) -> None:
    drawn = sample_delays(delay, 20000, stream(0, "test"))
    for probability, value in quantiles.items():
        assert np.quantile(drawn, probability) == pytest.approx(value, rel=0.05)


def test_one_model_of_conversations() -> None:
    with pytest.raises(ValueError, match="prefix and sessions are two models of conversations"):
        SyntheticSource(
            input_tokens=FixedLength(tokens=1),
            output_tokens=FixedLength(tokens=1),
            prefix=PrefixTree(),
            sessions=Sessions(),
        )
