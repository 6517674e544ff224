"""What every registered queue order must do, and the order that each one gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.policies.base import QueueView, SchedulingPolicy
from dynosim.policies.registry import make, policies
from dynosim.rng import stream

ALL = sorted(policies("scheduling_policy"))
REQUESTS = st.lists(
    st.tuples(st.integers(1, 10**6), st.integers(-3, 3), st.sampled_from([0.5, 2.0, np.inf])), min_size=1, max_size=30
)


def _make(policy: str, **options: Any) -> SchedulingPolicy:
    made: SchedulingPolicy = make("scheduling_policy", policy, options, "pool", stream(0, ""))
    return made


def _queue(requests: list[tuple[int, int, float]]) -> QueueView:
    columns = [np.array(column) for column in zip(*requests, strict=True)]
    for column in columns:
        column.flags.writeable = False
    return QueueView(*columns)


def _order(policy: SchedulingPolicy, queue: QueueView, arrival_s: Any) -> list[int]:
    """Return the requests in the order of service; they arrive in the order of the arrays."""
    keys = policy.keys(queue) + np.asarray(arrival_s) * policy.add_arrival
    return np.argsort(keys, kind="stable").tolist()


@pytest.mark.parametrize("policy", ALL)
@given(requests=REQUESTS)
def test_keys_are_finite_and_the_same_again(policy: str, requests: list[tuple[int, int, float]]) -> None:
    queue = _queue(requests)
    keys = _make(policy).keys(queue)
    assert keys.shape == (len(requests),)
    assert keys.dtype == np.float64
    assert np.isfinite(keys).all()
    np.testing.assert_array_equal(keys, _make(policy).keys(queue))


@pytest.mark.parametrize("policy", ALL)
def test_equal_requests_are_served_as_they_come(policy: str) -> None:
    assert _order(_make(policy), _queue([(100, 0, np.inf)] * 5), range(5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("policy", "options", "order"),
    [
        ("fcfs", {}, [0, 1, 2, 3]),
        ("longest_prefix", {}, [0, 1, 2, 3]),
        ("priority", {}, [3, 1, 2, 0]),
        ("shortest_prompt", {}, [2, 3, 1, 0]),
        ("shortest_prompt", {"tokens_per_s": 1e9}, [0, 1, 2, 3]),
        ("shortest_prompt", {"tokens_per_s": 250.0}, [1, 2, 0, 3]),
        ("deadline", {}, [1, 2, 3, 0]),
        ("deadline", {"default_s": 1.5}, [1, 0, 2, 3]),
    ],
)
def test_orders_as_documented(policy: str, options: dict[str, float], order: list[int]) -> None:
    queue = _queue([(900, 2, np.inf), (500, 1, 0.5), (100, 1, 2.0), (300, -1, 2.0)])
    assert _order(_make(policy, **options), queue, [0.0, 0.5, 2.5, 3.0]) == order


def test_only_one_looks_at_the_cache() -> None:
    assert [policy for policy in ALL if _make(policy).longest_prefix] == ["longest_prefix"]
