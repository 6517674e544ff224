"""The histogram of token gaps against numpy on the gaps themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dynosim.simulation import gaps
from dynosim.simulation.records import TokenGaps
from simulation.histogram import Series, make_gaps

WIDTH = 1.002
"""Upper over lower edge of a bin."""


def _expand(series: list[Series]) -> NDArray[np.float64]:
    """Every gap of *series*, one by one."""
    parts = [np.repeat(first + step * np.arange(n), weight) for first, step, n, weight in series]
    return np.concatenate(parts)


def _assert_percentiles(histogram: TokenGaps, seconds: NDArray[np.float64]) -> None:
    for q in (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100):
        assert gaps.percentile(histogram, q) == pytest.approx(np.percentile(seconds, q), rel=WIDTH - 1.0 + 1e-6), q


@st.composite
def _series(draw: st.DrawFn) -> Series:
    """Rising, falling or constant durations, all positive, across as many bins as may be."""
    n = draw(st.integers(1, 300))
    first, last = (draw(st.floats(2e-6, 100.0)) for _ in range(2))
    step = 0.0 if n == 1 or draw(st.booleans()) else (last - first) / (n - 1)
    return first, step, n, draw(st.integers(1, 5))


@given(st.lists(_series(), min_size=1, max_size=6))
@settings(max_examples=150)
def test_any_series_has_exact_count_sum_and_limits_and_percentiles_within_a_bin(series: list[Series]) -> None:
    histogram, seconds = make_gaps(series), _expand(series)
    assert histogram.count.sum() == len(seconds)
    assert histogram.sum_s.sum() == pytest.approx(seconds.sum(), rel=1e-9)
    assert histogram.min_s == pytest.approx(seconds.min(), rel=1e-9)
    assert histogram.max_s == pytest.approx(seconds.max(), rel=1e-9)
    _assert_percentiles(histogram, seconds)


@given(_series())
@settings(max_examples=100)
def test_each_bin_holds_what_lies_in_it(series: Series) -> None:
    """The closed form of a series crosses bins where a loop over its gaps does, up to rounding at an edge."""
    first, step, n, weight = series
    whole, single = make_gaps([series]), make_gaps([(first + step * i, 0.0, 1, weight) for i in range(n)])
    moved = np.abs(np.cumsum(whole.count - single.count)).max()
    assert moved <= weight
    filled = np.flatnonzero(whole.count)
    means = whole.sum_s[filled] / whole.count[filled]
    edges = gaps.LOWEST_S * WIDTH**filled
    assert (means >= edges * (1 - 1e-9)).all()
    assert (means <= edges * WIDTH * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    "series",
    [
        [(0.010, 2e-6, 20_000, 3)],  # 10 to 50 ms, as a growing context makes them: about 800 bins
        [(0.050, -2e-6, 20_000, 3)],
        [(0.010 + 1e-5 * i, 1e-6, 400, 7) for i in range(300)],
        [(0.010, 0.0, 900, 1), (0.050, 0.0, 100, 1)],  # decode passes, and passes with a prompt chunk
    ],
)
def test_percentiles_of_what_a_server_does_are_numpys_within_a_fifth_of_a_percent(series: list[Series]) -> None:
    _assert_percentiles(make_gaps(series), _expand(series))


def test_gaps_beyond_the_bins_keep_the_mean_and_the_limits() -> None:
    histogram = make_gaps([(1e-9, 0.0, 1, 1), (5e4, 0.0, 1, 1), (0.0, 0.0, 1, 2)])
    assert histogram.count.sum() == 4
    assert histogram.sum_s.sum() == pytest.approx(5e4 + 1e-9, rel=1e-12)
    assert (histogram.min_s, histogram.max_s) == (0.0, 5e4)
    assert gaps.percentile(histogram, 100) == 5e4


def test_merging_is_recording_together() -> None:
    parts = [(0.01, 1e-5, 100, 2)], [(0.5, 0.0, 7, 1)], []
    merged, together = gaps.merge([make_gaps(part) for part in parts]), make_gaps([*parts[0], *parts[1]])
    np.testing.assert_array_equal(merged.count, together.count)
    np.testing.assert_allclose(merged.sum_s, together.sum_s, rtol=1e-12)
    assert (merged.min_s, merged.max_s) == (together.min_s, together.max_s)


def test_no_gaps_have_no_percentile() -> None:
    assert math.isnan(gaps.percentile(make_gaps([]), 50.0))
