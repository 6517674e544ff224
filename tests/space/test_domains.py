"""Domains: every value they give is one they contain, and draws are uniform where they should be."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.rng import stream
from dynosim.space import Choices, Range

INTEGERS = st.tuples(st.integers(1, 50), st.integers(0, 50), st.integers(1, 7)).map(
    lambda t: Range(t[0], t[0] + t[1] * t[2], t[2], integer=True)
)
LOG_INTEGERS = st.tuples(st.integers(1, 50), st.integers(0, 999)).map(
    lambda t: Range(t[0], t[0] + t[1], None, "log", integer=True)
)
STEPPED = st.tuples(st.integers(-50, 50), st.integers(1, 30), st.sampled_from([0.05, 0.1, 0.25, 1.0])).map(
    lambda t: Range(round(t[0] * t[2], 12), round((t[0] + t[1]) * t[2], 12), t[2])
)
CONTINUOUS = st.builds(
    lambda low, width, scale: Range(low, low + width, None, scale),
    st.floats(0.01, 100), st.floats(0.1, 1000), st.sampled_from(["linear", "log"]),
)  # fmt: skip
CHOICES = st.lists(st.integers() | st.text(max_size=3) | st.booleans(), min_size=1, unique_by=repr).map(
    lambda values: Choices(tuple(values))
)


@given(INTEGERS | LOG_INTEGERS | STEPPED | CONTINUOUS | CHOICES, st.integers(0, 2**32))
def test_domain_contains_what_it_gives(domain, seed):
    rng = stream(seed, "test")
    for value in [domain.first(), *(domain.sample(rng) for _ in range(5))]:
        near = domain.neighbours(value)
        assert domain.contains(value)
        assert all(domain.contains(other) and other != value for other in near)
        assert len(near) <= (6 if domain.values is None else 2) or isinstance(domain, Choices)
        assert not isinstance(value, np.generic)


@given(INTEGERS | STEPPED)
def test_neighbour_of_a_neighbour_is_the_value(domain):
    for value in domain.values:
        assert all(value in domain.neighbours(other) for other in domain.neighbours(value))


@given(INTEGERS | STEPPED)
def test_stepped_range_is_connected_by_neighbours(domain):
    reached, frontier = set(), [domain.first()]
    while frontier:
        value = frontier.pop()
        if value not in reached:
            reached.add(value)
            frontier += domain.neighbours(value)
    assert reached == set(domain.values)


def test_a_step_on_a_log_scale_of_integers_doubles_or_halves():
    assert Range(8, 100, None, "log", integer=True).neighbours(32) == [16, 64]
    assert Range(8, 100, None, "log", integer=True).neighbours(64) == [32, 100]


def test_neighbours_of_numbers_are_adjacent_and_of_names_all_others():
    assert Choices((8, 2, 4)).neighbours(4) == [2, 8]
    assert Choices((8, 2, 4)).neighbours(2) == [4]
    assert Choices(("a", "b", "c")).neighbours("b") == ["a", "c"]
    assert Choices((False, True)).neighbours(True) == [False]


def test_one_and_true_are_different_choices():
    assert not Choices((1, 2)).contains(True)
    assert Choices((1.0, 2.0)).contains(1)
    assert not Range(0, 1, 1, integer=True).contains(True)
    assert not Range(1, 4, 1, integer=True).contains(2.0)


def test_float_steps_are_exact():
    assert list(Range(0.8, 0.95, 0.05).values) == [0.8, 0.85, 0.9, 0.95]


@pytest.mark.parametrize(
    ("domain", "probability"),
    [
        (Range(3, 6, 1, integer=True), lambda k: 1 / 4),
        (Choices((3, 4, 5, 6)), lambda k: 1 / 4),
        (Range(3, 6, None, "log", integer=True), lambda k: math.log((k + 1) / k) / math.log(7 / 3)),
    ],
)
def test_draws_have_the_stated_distribution(domain, probability):
    rng, n = stream(0, "test"), 20_000
    drawn = [domain.sample(rng) for _ in range(n)]
    for value in (3, 4, 5, 6):
        p = probability(value)
        # Five standard deviations of a binomial count.
        assert abs(drawn.count(value) - n * p) < 5 * math.sqrt(n * p * (1 - p))


def test_log_scale_draws_every_octave_equally_often():
    rng, domain = stream(0, "test"), Range(1.0, 16.0, None, "log")
    octaves = np.floor(np.log2([domain.sample(rng) for _ in range(20_000)]))
    assert np.all(np.abs(np.bincount(octaves.astype(int)) - 5_000) < 5 * math.sqrt(20_000 * 0.25 * 0.75))
