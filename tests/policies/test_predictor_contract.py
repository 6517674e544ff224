"""What every registered load predictor must do, and the series that each one gets exactly right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.policies.registry import make, policies
from dynosim.rng import stream

ALL = sorted(policies("predictor"))


def _predictions(policy: str, rates: Iterable[float], **options: Any) -> list[float]:
    """Return the prediction after each of *rates*."""
    predictor = make("predictor", policy, options, "autoscaler", stream(0, ""))
    assert predictor.predict() == 0.0
    predicted = []
    for rate in rates:
        predictor.observe(rate)
        predicted.append(predictor.predict())
    return predicted


@pytest.mark.parametrize("policy", ALL)
@given(rates=st.lists(st.floats(0.0, 1e6), min_size=1, max_size=40))
def test_no_rate_is_below_zero_or_endless(policy: str, rates: list[float]) -> None:
    assert all(0.0 <= rate <= 1e9 for rate in _predictions(policy, rates))


@pytest.mark.parametrize("policy", ALL)
@given(rate=st.floats(0.0, 1e6))
def test_a_constant_rate_is_foreseen(policy: str, rate: float) -> None:
    assert _predictions(policy, [rate] * 30) == pytest.approx([rate] * 30)


def test_last_value() -> None:
    assert _predictions("last_value", [3.0, 5.0, 0.0]) == [3.0, 5.0, 0.0]


def test_moving_average() -> None:
    assert _predictions("moving_average", [3.0, 5.0, 1.0, 6.0], window=3) == [3.0, 4.0, 3.0, 4.0]


@given(start=st.floats(0.0, 100.0), step=st.floats(0.0, 10.0), alpha=st.floats(0.0, 1.0), beta=st.floats(0.0, 1.0))
def test_holt_foresees_a_line(start: float, step: float, alpha: float, beta: float) -> None:
    line = [start + step * i for i in range(12)]
    assert _predictions("holt", line[:-1], alpha=alpha, beta=beta)[1:] == pytest.approx(line[2:])


def test_holt_smooths_level_and_trend() -> None:
    # Level 4, trend 2; then 10 against a predicted 6: level 8, trend 2 + 0.25 * (4 - 2).
    assert _predictions("holt", [2.0, 4.0, 10.0], alpha=0.5, beta=0.25)[-1] == 8.0 + 2.5
    assert _predictions("holt", [9.0, 2.0])[-1] == 0.0, "not below nothing"


@given(period=st.lists(st.floats(0.0, 100.0), min_size=1, max_size=9), cycles=st.integers(2, 4))
def test_seasonal_foresees_a_periodic_series(period: list[float], cycles: int) -> None:
    series = period * cycles
    known = len(period)
    assert _predictions("seasonal", series[:-1], period=known)[known - 1 :] == series[known:]


def test_seasonal_takes_the_last_rate_until_it_knows_a_period() -> None:
    assert _predictions("seasonal", [1.0, 2.0, 3.0, 9.0], period=3) == [1.0, 2.0, 1.0, 2.0]
