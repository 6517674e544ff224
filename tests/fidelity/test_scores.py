"""Scores of constructed outcomes: laws of the errors, rankings, saturation steps, effects and targets."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.fidelity.bands import Held, bands
from dynosim.fidelity.effects import Effect
from dynosim.fidelity.errors import E2E, LOAD_THROUGHPUT, THROUGHPUT, TPOT, TTFT, UNSATURATED, Errors, pairs_of
from dynosim.fidelity.replay import Outcome
from dynosim.fidelity.scores import PROMISED, score
from dynosim.fidelity.sweeps import rankings, saturation_step, sweeps, tau
from dynosim.uncertainty.model_band import class_bands
from fidelity.rows import MOE, outcome, sweep

TIMES = st.floats(1.0, 1e4)
FACTORS = st.lists(st.floats(0.2, 5.0), min_size=1, max_size=8)


def _off_by(factors: list[float], measured: float = 10.0) -> list[Outcome]:
    return [outcome(f"r{i}", {TPOT: measured}, {TPOT: measured * f}) for i, f in enumerate(factors)]


def _total(outcomes: list[Outcome]) -> Errors:
    return score(outcomes).totals[0].errors[TPOT]


# ---- errors -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=5))
def test_an_exact_prediction_has_no_error(values: list[tuple[float, float]]) -> None:
    rows = [outcome(f"r{i}", {TTFT: a, TPOT: b}) for i, (a, b) in enumerate(values)]
    for errors in score(rows).totals[0].errors.values():
        assert (errors.rows, errors.mape, errors.median, errors.bias) == (errors.rows, 0.0, 0.0, 0.0)


@given(FACTORS, st.floats(0.01, 100.0))
def test_errors_are_those_of_the_definition_at_any_scale(factors: list[float], scale: float) -> None:
    errors, size = _total(_off_by(factors, 10.0 * scale)), np.abs(np.array(factors) - 1.0)
    assert errors.mape == pytest.approx(size.mean())
    assert errors.median == pytest.approx(np.median(size))
    assert errors.bias == pytest.approx(np.mean(factors) - 1.0, abs=1e-12)


@given(FACTORS, st.randoms(use_true_random=False))
def test_the_order_of_rows_is_irrelevant(factors: list[float], rng: random.Random) -> None:
    rows = [*_off_by(factors), *sweep([100.0, 120.0, 3_000.0, 9_000.0]), outcome("moe", evidence="roofline/amd/moe")]
    shuffled = rng.sample(rows, len(rows))
    assert score(shuffled) == score(rows)
    assert bands(sorted(shuffled, key=lambda o: o.measurement.id)) == bands(
        sorted(rows, key=lambda o: o.measurement.id)
    )


def test_flagged_rows_count_in_nothing_but_their_own_line() -> None:
    rows = [*sweep([100.0, 120.0, 150.0], evidence=MOE), outcome("dense")]
    bad = [replace(o.measurement, notes="QUALITY: odd", id=f"bad-{o.measurement.id}", load=1e3) for o in rows]
    wrong = [replace(o, measurement=row, predicted={TTFT: 1e6, TPOT: 1e6}) for o, row in zip(rows, bad, strict=True)]
    clean, mixed = score(rows), score([*rows, *wrong, replace(wrong[0], problem="does not fit")])
    assert replace(mixed, rows=0, flagged=clean.flagged, problems={}) == replace(clean, rows=0)
    assert mixed.flagged.errors[TPOT].rows == len(wrong) + 1
    assert bands([*rows, *wrong]) == bands(rows)


def test_classes_share_the_rows() -> None:
    rows = [
        outcome("a", evidence=MOE),
        outcome("b"),
        outcome("c", evidence="roofline/amd/dense/disaggregated/speculative"),
    ]
    assert {g.labels[0]: g.rows for g in score(rows).totals} == {
        "all": 3, "dense": 2, "MoE": 1, "AMD": 1, "disaggregated": 1, "speculative": 1, "tables": 2, "roofline": 1,
    }  # fmt: skip


def test_long_queues_are_in_ttft_but_not_in_unsaturated_ttft() -> None:
    errors = score([outcome("a", {TTFT: 4_999.0}), outcome("b", {TTFT: 5_000.0})]).totals[0].errors
    assert (errors[TTFT].rows, errors[UNSATURATED].rows) == (2, 1)


def test_e2e_and_throughput_follow_from_ttft_and_tpot_on_both_sides() -> None:
    row = outcome("a", {TTFT: 100.0, TPOT: 10.0}, {TTFT: 300.0, TPOT: 20.0, E2E: 1.0, THROUGHPUT: 1.0}, n_gpus=2)
    pairs = {pair.metric: (pair.measured, pair.predicted) for pair in pairs_of(row)}
    assert pairs[E2E] == (100 + 10 * 10, 300 + 10 * 20)
    assert pairs[LOAD_THROUGHPUT] == pytest.approx((4 * 11 / 0.2 / 2, 4 * 11 / 0.5 / 2))
    assert THROUGHPUT not in pairs


def test_what_a_row_states_is_not_derived() -> None:
    row = outcome("a", {TTFT: 100.0, TPOT: 10.0, E2E: 250.0, THROUGHPUT: 7.0})
    pairs = {pair.metric: pair.measured for pair in pairs_of(row)}
    assert (pairs[E2E], pairs[LOAD_THROUGHPUT]) == (250.0, 7.0)


def test_an_open_loop_implies_no_throughput() -> None:
    row = outcome("a", load_kind="open-loop trace")
    assert LOAD_THROUGHPUT not in {pair.metric for pair in pairs_of(row)}


def test_a_baseline_is_compared_on_common_rows_only() -> None:
    rows = [outcome("a", {TPOT: 10.0}, {TPOT: 11.0}), outcome("b", {TPOT: 10.0}, {TPOT: 20.0})]
    (line,) = score(rows, baselines={"tool": {"a": {TPOT: 15.0}, "z": {TPOT: 1.0}}}).baselines
    assert (line.theirs.mape, line.ours.mape, line.ours.rows) == (pytest.approx(0.5), pytest.approx(0.1), 1)


# ---- ranking ------------------------------------------------------------------------------------------------------


@given(st.lists(TIMES, min_size=2, max_size=8, unique=True))
def test_tau_of_the_same_order_is_1_and_of_the_reverse_minus_1(values: list[float]) -> None:
    assert tau(values, [3.0 * v for v in values]) == pytest.approx(1.0)
    assert tau(values, [-v for v in values]) == pytest.approx(-1.0)


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0]])
def test_tau_without_an_order_is_undefined(values: list[float]) -> None:
    assert tau(values, values) is None


def test_of_repeats_of_a_load_the_newest_makes_the_sweep() -> None:
    rows = sweep([100.0, 120.0, 9_000.0], notes="measured 2026-01-02")
    old = [
        replace(o, measurement=replace(o.measurement, id=f"{o.measurement.id}-old", notes="measured 2025-12-31"))
        for o in sweep([9e3] * 3)
    ]
    assert sweeps([*old, *rows]) == sweeps(rows)


def test_a_sweep_needs_three_loads_of_one_setting() -> None:
    rows = sweep([100.0, 120.0, 150.0])
    assert len(sweeps(rows)) == 1
    assert not sweeps(rows[:2])
    assert not sweeps([*rows[:2], replace(rows[2], problem="crashed")])


def test_configurations_of_one_task_are_ranked_together() -> None:
    fast = sweep([10.0, 20.0, 30.0], gpu="fast")
    slow = sweep([100.0, 200.0, 300.0], gpu="slow")
    (ranking,) = rankings([*fast, *slow])
    assert (ranking.configurations, ranking.rows, ranking.tau[TTFT]) == (2, 6, pytest.approx(1.0))
    swapped = sweep([10.0, 20.0, 30.0], [1000.0, 2000.0, 3000.0], gpu="fast")
    (ranking,) = rankings([*swapped, *slow])
    assert ranking.tau[TTFT] == pytest.approx((3 + 3 - 9) / 15)  # in order within, all nine pairs across reversed
    assert not rankings(fast)


# ---- saturation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttft_ms", "throughput", "step"),
    [
        ([100, 200, 400], [1, 2, 4], None),
        ([100, 400, 2_100], [1, 2, 4], 2),  # over five times, over 2 s
        ([100, 100, 1_900], [1, 2, 4], None),  # below 2 s
        ([1_000, 2_000, 4_500], [1, 2, 4], None),  # no jump
        ([100, 200, 400], [1, 2, 2.1], 2),  # growth of 5 %
        ([100, 3_000, 4_000], [1, 2, 2], 1),  # the first of both
        ([], [], None),
        ([100, 3_000], [], 1),
    ],
)
def test_saturation_step(ttft_ms: list[float], throughput: list[float], step: int | None) -> None:
    assert saturation_step(ttft_ms, throughput) == step


@given(TIMES, st.floats(1.0, 4.9), st.integers(0, 6))
def test_growing_throughput_and_steady_ttft_do_not_saturate(ttft_ms: float, factor: float, steps: int) -> None:
    steady = [ttft_ms * factor**step for step in range(steps)]
    assert saturation_step(steady, [2.0**step for step in range(steps)]) is None


@pytest.mark.parametrize(
    ("predicted_ms", "verdict"),
    [
        ([100.0, 110.0, 120.0, 9_000.0, 20_000.0], "found"),
        ([100.0, 110.0, 120.0, 140.0, 9_000.0], "one step off"),
        ([100.0, 9_000.0, 10_000.0, 11_000.0, 12_000.0], "missed"),
        ([100.0, 110.0, 120.0, 130.0, 140.0], "missed"),
    ],
)
def test_saturation_of_a_sweep_is_found_or_missed(predicted_ms: list[float], verdict: str) -> None:
    (found,) = sweeps(sweep([100.0, 110.0, 120.0, 8_000.0, 20_000.0], predicted_ms))
    assert (found.saturation, found.measured_load) == (verdict, 16.0)


def test_a_saturation_that_is_only_predicted_is_missed_and_no_saturation_is_none() -> None:
    calm = [100.0, 110.0, 120.0, 130.0]
    (false,) = sweeps(sweep(calm, [100.0, 110.0, 120.0, 9_000.0]))
    assert (false.saturation, false.falsely_saturated) == ("missed", True)
    (unseen,) = sweeps(sweep([100.0, 110.0, 120.0, 9_000.0], calm))
    assert (unseen.saturation, unseen.falsely_saturated) == ("missed", False)
    assert sweeps(sweep(calm))[0].saturation == "none"


# ---- effects ------------------------------------------------------------------------------------------------------


@given(TIMES, st.sampled_from([-1.0, 1.0]), st.floats(-2.0, 3.0))
def test_an_effect_is_kept_if_its_sign_is_right_and_its_size_within_a_third(
    size: float, sign: float, ratio: float
) -> None:
    effect = Effect("e", "w", "ms", sign * size, ratio * sign * size)
    assert effect.ratio == pytest.approx(ratio)
    assert effect.kept == (abs(ratio - 1.0) <= 1 / 3) or abs(abs(ratio - 1.0) - 1 / 3) < 1e-9


def test_the_cliff_is_the_largest_fall_of_hits() -> None:
    hits = [(88.0, 85.0), (87.0, 50.0), (32.0, 30.0)]
    rows = [
        outcome(f"own-c{2**i}", {"prefix_hit_percent": a}, {"prefix_hit_percent": b}, load=2.0**i)
        for i, (a, b) in enumerate(hits)
    ]
    (cliff,) = score(rows).effects
    assert (cliff.measured, cliff.predicted) == (-55.0, -20.0)
    assert not score(rows[:2]).effects


def test_the_host_tier_is_judged_between_two_rows_of_one_deployment() -> None:
    on = outcome("x-offloadon", {TPOT: 8.0}, {TPOT: 9.0})
    off = outcome("x-offloadoff", {TPOT: 10.0}, {TPOT: 10.0})
    (gain,) = score([on, off]).effects
    assert (gain.measured, gain.predicted) == (pytest.approx(-0.2), pytest.approx(-0.1))
    assert not score([on]).effects


def test_requests_are_correlated_only_where_they_are_the_same_ones() -> None:
    times = np.array([1.0, 2.0, 4.0])
    log = {"ttft_ms": times, "latency_ms": 2 * times, "input_tokens": times, "output_tokens": times}
    (same,) = score([outcome("a", requests=log)], logs={"a": log | {"ttft_ms": 10 * times}}).requests
    assert same.correlation == pytest.approx(1.0)
    assert same.ttft_ms["p50"] == (20.0, 2.0)
    queueing = score([outcome("a", requests=log)], logs={"a": log | {"ttft_ms": 10 * times}}).effects
    assert [effect.ratio for effect in queueing] == [pytest.approx(0.1)] * 2
    (other,) = score([outcome("a", requests=log)], logs={"a": log | {"input_tokens": times + 1}}).requests
    assert other.correlation is None


# ---- targets ------------------------------------------------------------------------------------------------------


def test_targets_are_met_by_exact_predictions_and_missed_by_bad_ones() -> None:
    every = {"tpot_ms_p99": 3.0, "ttft_ms_p99": 30.0, "kv_transfer_ms": 2.0}
    rows = [
        *sweep([100.0, 110.0, 120.0]),
        outcome("moe", evidence="roofline/amd/moe/disaggregated"),
        outcome("t", {THROUGHPUT: 5.0, **every}),
    ]
    errors = slice(len(PROMISED))
    assert all(target.met for target in score(rows).targets[errors])
    halved = [replace(o, predicted={name: value / 2 for name, value in o.predicted.items()}) for o in rows]
    assert not any(target.met for target in score(halved).targets[errors])
    refused = [
        t
        for t in score([*rows, outcome("no", predicted={}, problem="does not fit")]).targets
        if "no prediction" in t.name
    ]
    assert [t.value for t in refused] == [1]
    assert score([outcome("t", {THROUGHPUT: 5.0})]).targets[0].met is None


def test_rows_are_counted_in_the_bands_that_the_package_states() -> None:
    band = class_bands(MOE)["inter_token_latency"]
    factors = [band.low, band.high, 2.0 * band.high]
    rows = [
        outcome(f"r{i}", {TPOT: 10.0 * f}, {TPOT: 10.0}, evidence=MOE, gpu="H100-SXM") for i, f in enumerate(factors)
    ]
    rows += [outcome("unknown", {TPOT: 1.0}, evidence="tables/own/moe")]
    assert score(rows).held[TPOT] == Held(inside=2, rows=3, bandless=1)
