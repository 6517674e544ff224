"""Intervals against closed forms: textbook formulas for independent requests, nominal coverage for dependent ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from dynosim.config import PriceConfig
from dynosim.metrics import Metrics, over_seeds, summarize
from dynosim.uncertainty.sampling import (
    BATCHES,
    FOLLOWS,
    LEVELS,
    MIN_BATCH,
    Sample,
    batch_edges,
    half_width,
    interval,
    of_percentiles,
    of_rates,
    of_ratio,
    relative,
    student_t,
)
from test_metrics import _make_random, _make_result

Array = NDArray[np.float64]
SEEDS = 400
T9 = 2.2622
"""Student's t with 9 degrees of freedom at 97.5 %, from the table."""


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 10, 29, 100])
def test_students_quantile_is_that_of_scipy(freedom: int) -> None:
    for confidence in (0.1, 0.5, 0.9, 0.95, 0.999):
        assert student_t(freedom, confidence) == pytest.approx(stdtrit(freedom, 0.5 + confidence / 2.0), rel=1e-11)


@pytest.mark.parametrize("n", [1, 2, 3, 100, 4001])
def test_percentiles_of_a_sample_are_numpys_to_the_last_bit(n: int) -> None:
    x = np.random.default_rng(n).lognormal(size=n)
    levels = np.array([0.0, 0.1, 1.0, 5.0, 33.3, 50.0, 90.0, 99.0, 99.9, 100.0])
    assert (Sample(x, batch_edges(n)).at(levels / 100.0) == np.percentile(x, levels)).all()


def _mean_half(x: Array) -> float:
    deviations = of_ratio(x, None, batch_edges(len(x)))
    assert deviations is not None
    return float(half_width(np.array(deviations)) * abs(x.mean()))


def _percentile(x: Array, level: float) -> tuple[float, float] | None:
    (deviations,) = of_percentiles(Sample(x, batch_edges(len(x))), np.array([level]))
    return None if deviations is None else interval({"x": deviations}, "x", float(np.quantile(x, level)))


def _ar1(rng: np.random.Generator, n: int, phi: float) -> Array:
    """A stationary autoregression around 10 with variance 1."""
    noise = rng.normal(size=n) * math.sqrt(1.0 - phi**2)
    x = np.empty(n)
    x[0] = rng.normal()
    for i in range(1, n):
        x[i] = phi * x[i - 1] + noise[i]
    return x + 10.0


def _md1(rng: np.random.Generator, n: int, load: float) -> Array:
    """Waiting times at one server with unit service (Lindley), after 2,000 requests to warm up."""
    steps = np.cumsum(1.0 - rng.exponential(1.0 / load, n + 2000))
    return np.asarray((steps - np.minimum.accumulate(np.minimum(steps, 0.0)))[2000:])


def _coverage(hit: Callable[[np.random.Generator], bool], seeds: int = SEEDS) -> float:
    return sum(hit(np.random.default_rng(seed)) for seed in range(seeds)) / seeds


def test_a_mean_of_independent_requests_has_the_textbook_interval() -> None:
    squares = [_mean_half(np.random.default_rng(seed).exponential(1.0, 2000)) ** 2 for seed in range(SEEDS)]
    assert math.sqrt(np.mean(squares)) == pytest.approx(T9 / math.sqrt(2000), rel=0.03)


def test_a_percentile_of_independent_requests_has_the_interval_of_order_statistics() -> None:
    n, level, widths = 4000, 0.9, []
    for seed in range(SEEDS):
        found = _percentile(np.random.default_rng(seed).exponential(1.0, n), level)
        assert found is not None
        widths.append(found[1] - found[0])
    share = math.sqrt(level * (1.0 - level) / n)  # standard error of the share below, over the density e^-x = 0.1
    assert math.sqrt(np.mean(np.square(widths))) == pytest.approx(2.0 * T9 * share / 0.1, rel=0.05)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_percentiles_cover_their_true_value(level: float) -> None:
    def hit(rng: np.random.Generator) -> bool:
        found = _percentile(rng.exponential(1.0, 5000), level)
        assert found is not None
        return found[0] <= -math.log(1.0 - level) <= found[1]

    assert 0.92 <= _coverage(hit) <= 0.98


def test_autocorrelation_widens_the_interval_as_theory_says() -> None:
    phi, n = 0.9, 6000
    squares = [_mean_half(_ar1(np.random.default_rng(seed), n, phi)) ** 2 for seed in range(60)]
    independent = T9 / math.sqrt(n)
    assert math.sqrt(np.mean(squares)) / independent == pytest.approx(math.sqrt((1 + phi) / (1 - phi)), rel=0.15)


def test_coverage_holds_under_autocorrelation() -> None:
    def hits(rng: np.random.Generator) -> tuple[bool, bool]:
        x = _ar1(rng, 4000, 0.9)
        found = _percentile(x, 0.9)
        assert found is not None
        return abs(x.mean() - 10.0) <= _mean_half(x), found[0] <= 10.0 + ndtri(0.9) <= found[1]

    mean, p90 = np.mean([hits(np.random.default_rng(seed)) for seed in range(150)], axis=0)
    assert 0.89 <= mean <= 0.99
    assert 0.89 <= p90 <= 0.99


def test_waiting_times_of_a_queue_cover_pollaczek_and_khinchine() -> None:
    load = 0.7

    def hit(rng: np.random.Generator) -> bool:
        x = _md1(rng, 12_000, load)
        return abs(x.mean() - load / (2.0 * (1.0 - load))) <= _mean_half(x)

    assert 0.91 <= _coverage(hit) <= 0.98


def test_rates_cover_the_rate_of_a_poisson_process() -> None:
    def hit(rng: np.random.Generator) -> bool:
        at_s = np.cumsum(rng.exponential(0.5, 3000))
        tokens = rng.exponential(200.0, 3000)
        found = of_rates(at_s, {"rate": tokens})
        low, high = interval(found, "rate", tokens.sum() / at_s[-1]) or (math.nan, math.nan)
        return low <= 400.0 <= high

    assert 0.91 <= _coverage(hit) <= 0.98


def test_the_burst_that_starts_a_closed_loop_is_no_noise() -> None:
    steady_s = np.linspace(0.01, 100.0, 1000)
    (found,) = of_rates(np.concatenate((np.zeros(200), steady_s)), {"rate": np.ones(1200)}).values()
    assert half_width(np.array(found)) < 1e-3


def test_a_small_sample_gives_no_interval_rather_than_a_wrong_one() -> None:
    x = np.random.default_rng(0).exponential(1.0, 999)
    few = x[: BATCHES * MIN_BATCH - 1]
    assert of_ratio(few, None, batch_edges(len(few))) is None
    assert of_rates(few, {"rate": few}) == {}
    assert _percentile(few, 0.5) is None
    assert _percentile(x, 0.5) is not None
    assert _percentile(x, 0.99) is None, "fewer than ten requests lie beyond"
    assert _percentile(np.sort(np.random.default_rng(0).exponential(1.0, 2000)), 0.99) is None, "all in one batch"


def test_values_that_never_vary_are_known_exactly() -> None:
    assert _percentile(np.full(1000, 7.0), 0.9) == (7.0, 7.0)
    assert _mean_half(np.full(1000, 7.0)) == 0.0


def test_a_percentile_of_zero_has_no_relative_noise() -> None:
    x = np.maximum(np.random.default_rng(0).normal(size=2000), 0.0)
    assert np.quantile(x, 0.45) == 0.0
    assert _percentile(x, 0.49) is None, "its interval reaches beyond the zeros, and is relative to zero"


def test_noise_that_two_runs_share_cancels() -> None:
    rng = np.random.default_rng(4)
    traffic = rng.exponential(1.0, 4000)
    a, b = (of_ratio(traffic * factor, None, batch_edges(4000)) for factor in (1.0, 1.3))
    assert a is not None
    assert b is not None
    assert half_width(np.array(a)) > 0.02
    assert half_width(np.array(a) - np.array(b)) < 1e-4


def test_a_share_of_all_requests_says_nothing_of_rare_failures() -> None:
    requests = _make_random(3000)
    slo = {"request_latency": {"p99": 1e9}}
    assert summarize(_make_result(requests), slo, PriceConfig()).interval("good_request_fraction") is None
    slo = {"request_latency": {"p99": 5000.0}}
    assert summarize(_make_result(requests), slo, PriceConfig()).interval("good_request_fraction") is not None


def test_costs_and_rates_per_gpu_follow_the_rate_they_are_made_of() -> None:
    known = {source: np.linspace(-0.1, 0.1, BATCHES).tolist() for source, _ in FOLLOWS.values()}
    for name, (source, sign) in FOLLOWS.items():
        np.testing.assert_array_equal(relative(known, name), sign * np.array(known[source]))
    low, high = interval(known, "usd_per_million_output_tokens", 2.0) or (0.0, 0.0)
    assert low + high == pytest.approx(4.0)
    assert interval(known, "gpus", 8.0) is None


def test_seeds_are_independent_runs() -> None:
    values = [{"gpus": v, "queue_time": {"avg": 2.0 * v, "p99": 9.0}, "goodput": None} for v in (8.0, 9.0, 13.0)]
    mean = over_seeds([Metrics(each) for each in values])
    assert mean.to_dict() == {"gpus": 10.0, "queue_time": {"avg": 20.0, "p99": 9.0}, "goodput": None}
    half = 4.3027 * math.sqrt(7.0) / math.sqrt(3.0)  # Student's t with 2 degrees of freedom
    low, high = mean.interval("gpus") or (0.0, 0.0)
    assert (high - low) / 2.0 == pytest.approx(half, rel=1e-3)
    assert mean.interval("queue_time", "p99") == (9.0, 9.0)
    assert mean.interval("goodput") is None


def test_a_run_has_intervals_around_its_own_values() -> None:
    metrics = summarize(_make_result(_make_random(3000)), {"request_latency": {"p99": 9000.0}}, PriceConfig())
    found, flat = metrics.intervals(), metrics.flat()
    expected = {"request_latency.p99", "inter_token_latency", "output_token_throughput", "good_request_fraction"}
    assert expected | set(FOLLOWS) <= set(found)
    assert {name.rpartition(".")[2] for name in found if "." in name} == set(LEVELS)
    for name, (low, high) in found.items():
        assert low <= flat[name] <= high, name
    assert metrics.interval("request_latency", "avg") == found["request_latency"]
    assert metrics.interval("usd_per_1k_requests") == found["usd_per_1k_requests"]
    assert Metrics(metrics.to_dict()).intervals() == {}, "a run without deviations has no interval"
