"""The request table: taking rows, and what its hash covers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dynosim.workload import Workload
from dynosim.workload.table import numbered, ragged


def graph() -> Workload:
    """Two sessions: 0 -> (1, 2) -> 4, and 3 -> 5."""
    after = np.array([[1, 0], [2, 0], [4, 1], [4, 2], [5, 3]])
    offsets, ids = ragged(after[:, 0], after[:, 1], 6)
    return Workload(
        name="test",
        arrival_s=np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]),
        input_tokens=np.arange(10, 16),
        output_tokens=np.arange(1, 7),
        hash_block_tokens=10,
        hash_offsets=np.array([0, 1, 3, 5, 6, 8, 10]),
        hash_ids=np.array([0, 0, 1, 0, 2, 3, 0, 4, 3, 5]),
        session=np.array([0, 0, 0, 1, 0, 1]),
        after_offsets=offsets,
        after_ids=ids,
        delay_s=np.array([0, 0.1, 0.2, 0, 0.4, 0.5]),
    )


def test_head_keeps_what_its_rows_wait_for() -> None:
    part = graph().head(4)
    assert part.session.tolist() == [0, 0, 0, 1]
    assert (part.after_offsets.tolist(), part.after_ids.tolist()) == ([0, 0, 1, 2, 2], [0, 0])
    assert (part.hash_offsets.tolist(), part.hash_ids.tolist()) == ([0, 1, 3, 5, 6], [0, 0, 1, 0, 2, 3])
    assert part.delay_s.tolist() == [0, 0.1, 0.2, 0]
    assert len(graph().head(100)) == 6


def test_take_renumbers() -> None:
    """The other session first."""
    taken = graph().take(np.array([3, 5, 0, 1, 2, 4]))
    assert taken.input_tokens.tolist() == [13, 15, 10, 11, 12, 14]
    assert taken.session.tolist() == [0, 0, 1, 1, 1, 1]
    assert (taken.after_offsets.tolist(), taken.after_ids.tolist()) == ([0, 0, 1, 1, 2, 3, 5], [0, 2, 2, 3, 4])
    assert taken.hash_ids.tolist() == [3, 3, 5, 0, 0, 1, 0, 2, 0, 4]


@pytest.mark.parametrize(
    "change",
    [
        {"arrival_s": np.array([0, 0, 0, 1, 1, 2.0])},
        {"input_tokens": np.arange(11, 17)},
        {"output_tokens": np.arange(6) + 2},
        {"hash_ids": np.arange(10)},
        {"hashed_tokens": np.arange(12, 18)},
        {"session": np.arange(6)},
        {"after_ids": np.array([0, 0, 1, 0, 3])},
        {"delay_s": np.zeros(6)},
        {"priority": np.ones(6, np.int64)},
        {"deadline_s": np.ones(6)},
        {"hash_block_tokens": 20},
        {"concurrency": 1},
        {"warmup_requests": 1},
        {"end_s": 5.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_hash_covers_what_the_simulator_sees(change: dict[str, Any]) -> None:
    assert graph().content_hash() == graph().content_hash()
    assert replace(graph(), **change).content_hash() != graph().content_hash()


def test_defaults_are_plain_requests() -> None:
    one = np.ones(2, np.int64)
    plain = Workload("plain", np.array([0.0, 1.0]), 5 * one, one, 0, np.zeros(3, np.int64), np.zeros(0, np.int64))
    assert plain.session.tolist() == [0, 1]
    assert plain.hashed_tokens.tolist() == [5, 5]
    assert plain.after_offsets.tolist() == [0, 0, 0]
    assert (plain.delay_s.tolist(), plain.priority.tolist()) == ([0, 0], [0, 0])
    assert plain.deadline_s.tolist() == [math.inf] * 2
    assert plain.end_s == math.inf


def test_numbered() -> None:
    assert numbered(np.array([7, 3, 7, 9, 3])).tolist() == [0, 1, 0, 2, 1]
