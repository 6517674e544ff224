"""Reuse bounds against a slow oracle and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.workload import Workload, describe, lru_reuse, reuse_bound


def workload(prompts: list[tuple[list[int], int]], arrival_s: list[float] | None = None) -> Workload:
    """Prompts of (block ids, tokens in the last block) with 10 tokens per block."""
    ids = [block for blocks, _ in prompts for block in blocks]
    n = len(prompts)
    return Workload(
        name="test",
        arrival_s=np.array(arrival_s or np.arange(n), np.float64),
        input_tokens=np.array([10 * (len(blocks) - 1) + last for blocks, last in prompts]),
        output_tokens=np.ones(n, np.int64),
        hash_block_tokens=10,
        hash_offsets=np.concatenate(([0], np.cumsum([len(blocks) for blocks, _ in prompts]))),
        hash_ids=np.unique(np.array(ids), return_inverse=True)[1],
    )


HAND = workload([([0, 1, 2], 10), ([0, 3], 5), ([0, 1, 4], 1), ([0, 3], 5)], [0.0, 1.0, 1.0, 90.0])


def test_by_hand() -> None:
    """Of 30 + 15 + 21 + 15 tokens the second finds 10, the third 20, the fourth 15."""
    assert reuse_bound(HAND) == pytest.approx(45 / 81)
    assert reuse_bound(HAND, workers=2) == pytest.approx((20 + 15) / 81)
    assert lru_reuse(HAND, 100) == pytest.approx(45 / 81)
    assert lru_reuse(HAND, 1) == pytest.approx(30 / 81)
    assert lru_reuse(HAND, 0) == 0.0


def test_describe_by_hand() -> None:
    measured = describe(HAND)
    assert measured["requests"] == 4
    assert measured["span_s"] == 90.0
    assert measured["mean_rps"] == pytest.approx(4 / 90)
    assert measured["peak_minute_rps"] == pytest.approx(3 / 60)
    assert measured["gap_cv"] == pytest.approx(np.std([1, 0, 89]) / 30)
    assert measured["input_tokens"]["mean"] == pytest.approx(81 / 4)
    assert (measured["blocks"], measured["unique_blocks"]) == (10, 5)
    assert measured["blocks_used_once"] == pytest.approx(2 / 5)
    assert measured["blocks_reused"] == pytest.approx(5 / 10)
    assert measured["requests_reusing_two_blocks"] == pytest.approx(2 / 4)


@st.composite
def trees(draw: st.DrawFn) -> Workload:
    """Prompts along the paths of a random tree, in which equal ids mean equal prefixes."""
    paths = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=25))
    names: dict[tuple[int, ...], int] = {}
    return workload(
        [([names.setdefault(tuple(path[: k + 1]), len(names)) for k in range(len(path))], 10) for path in paths]
    )


@given(table=trees(), workers=st.integers(1, 4))
def test_bound_is_what_a_replay_finds(table: Workload, workers: int) -> None:
    caches: list[set[int]] = [set() for _ in range(workers)]
    hits = 0
    for i, (start, end) in enumerate(zip(table.hash_offsets, table.hash_offsets[1:], strict=False)):
        blocks, cache = table.hash_ids[start:end].tolist(), caches[i % workers]
        while blocks and blocks[0] in cache:
            hits += 1
            blocks.pop(0)
        cache.update(blocks)
    assert reuse_bound(table, workers) == pytest.approx(hits * 10 / table.input_tokens.sum())


@given(table=trees())
def test_larger_caches_find_more_up_to_the_bound(table: Workload) -> None:
    """LRU is a stack algorithm (Mattson et al. 1970): a larger cache never finds less."""
    found = [lru_reuse(table, capacity) for capacity in (0, 1, 2, 4, 8, 16, 1000)]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(reuse_bound(table))


def answered() -> Workload:
    """A conversation of two turns, 15 + 9 tokens and then 30 in all: ids cover the answer's first whole block."""
    return Workload(
        name="test",
        arrival_s=np.array([0.0, 0.0, 50.0]),
        input_tokens=np.array([15, 30, 5]),
        output_tokens=np.array([9, 1, 1]),
        hash_block_tokens=10,
        hash_offsets=np.array([0, 2, 5, 6]),
        hash_ids=np.array([0, 1, 0, 1, 2, 3]),
        hashed_tokens=np.array([20, 30, 5]),
        session=np.array([0, 0, 1]),
        after_offsets=np.array([0, 0, 1, 1]),
        after_ids=np.array([0]),
        delay_s=np.array([0.0, 4.0, 0.0]),
    )


def test_answers_can_be_found_but_are_not_looked_for() -> None:
    """The second prompt finds 20 of its 30 tokens, 5 of them in the answer."""
    assert reuse_bound(answered()) == pytest.approx(20 / 50)
    assert lru_reuse(answered(), 100) == pytest.approx(20 / 50)
    measured = describe(answered())
    assert (measured["blocks"], measured["unique_blocks"]) == (6, 4)
    assert measured["blocks_reused"] == pytest.approx(2 / 6)


def test_sessions_by_hand() -> None:
    """Only first turns arrive by themselves; pauses are those of the others."""
    measured = describe(answered())
    assert (measured["sessions"], measured["requests_per_session"]) == (2, 1.5)
    assert (measured["span_s"], measured["mean_rps"]) == (50.0, 2 / 50)
    assert measured["delay_s"]["mean"] == 4.0
