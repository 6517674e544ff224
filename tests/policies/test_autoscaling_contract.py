"""What every registered autoscaler must do: want more under more load, and rest between its thresholds."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.policies.base import ScalingView
from dynosim.policies.registry import make, policies
from dynosim.policies.sizing import replicas_for
from dynosim.rng import stream

ALL = sorted(policies("autoscaler"))
LOADS = st.floats(0.0, 12.0)
REPLICAS = st.integers(1, 12)


def _view(load: float, replicas: int, starting: int = 0, **fields: Any) -> ScalingView:
    """Return a pool whose load is *load* times what one replica carries in comfort, evenly spread."""
    share = load / max(replicas, 1)
    given: dict[str, Any] = {
        "queue_requests": round(load * 1000),
        "queued_prefill_tokens": round(load * 8192),
        "running_requests": round(load * 256),
        "kv_utilization": min(share, 1.0),
        "outstanding_requests": round(load * 256),
        "ttft_ms": share * 500.0,
        "itl_ms": share * 50.0,
        "rate_rps": load,
        "replica_rps": 1.0,
    }
    return ScalingView(
        time_s=0.0,
        replicas=replicas,
        starting=starting,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        context_tokens=1000.0,
        **{**given, **fields},
    )


def _desired(policy: str, view: ScalingView, **options: Any) -> int:
    wanted = make("autoscaler", policy, options, "autoscaler", stream(0, "")).desired(view)
    assert type(wanted) is int
    assert wanted >= 1
    return wanted


@pytest.mark.parametrize("policy", ALL)
@given(one=LOADS, other=LOADS, replicas=REPLICAS)
def test_more_load_never_wants_fewer_replicas(policy: str, one: float, other: float, replicas: int) -> None:
    less, more = (_desired(policy, _view(load, replicas)) for load in sorted((one, other)))
    assert less <= more


@pytest.mark.parametrize("policy", ALL)
@given(load=LOADS, replicas=REPLICAS)
def test_under_constant_load_it_moves_one_way_and_then_rests(policy: str, load: float, replicas: int) -> None:
    path = [replicas]
    for _ in range(40):
        path.append(_desired(policy, _view(load, path[-1])))
    assert path in (sorted(path), sorted(path, reverse=True))
    assert path[-1] == path[-2]


@pytest.mark.parametrize("policy", ALL)
@given(load=LOADS, replicas=st.integers(0, 12), starting=st.integers(1, 5))
def test_nothing_goes_while_something_starts(policy: str, load: float, replicas: int, starting: int) -> None:
    assert _desired(policy, _view(load, replicas, starting)) >= replicas + starting


@pytest.mark.parametrize("policy", ALL)
def test_an_idle_pool_shrinks_and_an_overloaded_one_grows(policy: str) -> None:
    assert _desired(policy, _view(0.0, 4)) < 4
    assert _desired(policy, _view(40.0, 4)) > 4


@pytest.mark.parametrize(
    ("policy", "options", "band"),
    [
        ("queue_depth", {}, (0.1, 1.0)),
        ("queue_depth", {"up": 3.0, "down": 0.5}, (0.5, 3.0)),
        ("queue_depth", {"up": 2000, "down": 500, "unit": "requests"}, (0.5, 2.0)),
        ("kv_utilization", {}, (0.7, 0.9)),
        ("concurrency", {}, (0.5, 0.7)),
        ("concurrency", {"up": 1.5, "down": 0.25}, (0.25, 1.5)),
        # Three replicas do with four's load what they would do with 4/3 of it.
        ("slo", {}, (0.8 * 3 / 4, 1.0)),
        ("slo", {"ttft_ms": 1000, "itl_ms": 100, "sensitivity": 0.5}, (3 / 4, 2.0)),
    ],
)
def test_thresholds_are_where_they_are_documented(
    policy: str, options: dict[str, Any], band: tuple[float, float]
) -> None:
    down, up = (4 * edge for edge in band)
    slack = 0.01
    assert _desired(policy, _view(up + slack, 4), **options) > 4
    assert _desired(policy, _view(up - slack, 4), **options) == 4
    assert _desired(policy, _view(down + slack, 4), **options) == 4
    # Far enough below the edge that three fit; near it, rounding up may keep the fourth.
    assert _desired(policy, _view(down * 0.7, 4), **options) == 3


def test_proportional_targets() -> None:
    """ceil(load / up) upwards, ceil(load / down) downwards."""
    assert _desired("concurrency", _view(7.0, 4)) == 10
    assert _desired("concurrency", _view(1.0, 10)) == 2
    assert _desired("queue_depth", _view(9.5, 4)) == 10
    assert _desired("queue_depth", _view(0.0, 9)) == 8, "an empty queue releases one at a time"


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"ttft_ms": 501.0}, 5),
        ({"itl_ms": 51.0}, 5),
        ({"ttft_ms": 100.0, "itl_ms": 10.0}, 3),
        ({"ttft_ms": 100.0, "itl_ms": 45.0}, 4),
        ({"ttft_ms": math.nan, "itl_ms": 51.0}, 5),
        ({"ttft_ms": math.nan, "itl_ms": math.nan, "queue_requests": 3}, 4),
        ({"ttft_ms": math.nan, "itl_ms": math.nan, "queue_requests": 0}, 3),
    ],
)
def test_slo_needs_headroom_on_both_latencies(fields: dict[str, Any], wanted: int) -> None:
    assert _desired("slo", _view(2.0, 4, **{"ttft_ms": 250.0, "itl_ms": 25.0, **fields})) == wanted


@pytest.mark.parametrize(
    ("rate_rps", "replica_rps", "replicas"),
    [(0.0, 2.0, 0), (4.0, 2.0, 2), (4.1, 2.0, 3), (0.3, 0.1, 3), (5.0, math.nan, 0), (5.0, 0.0, 0)],
)
def test_the_slow_loop_sizes_by_rate(rate_rps: float, replica_rps: float, replicas: int) -> None:
    assert replicas_for(rate_rps, replica_rps) == replicas
