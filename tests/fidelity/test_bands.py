"""Bands of constructed outcomes: configurations count, not rows, and what is left out is held as promised."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.fidelity.bands import (
    BAND_CONFIGURATIONS,
    BAND_COVERAGE,
    GPU_FACTORS,
    IN_SIGHT,
    Share,
    bands,
    interval,
    left_out_gpus,
    new_gpu,
)
from dynosim.fidelity.errors import TPOT, TPOT_P99
from dynosim.fidelity.replay import Outcome
from fidelity.rows import DENSE, MOE, outcome

ITL = "inter_token_latency"


def _sweeps(factors: list[list[float]], name: str = "m", **changes: object) -> list[Outcome]:
    """Return one configuration per list of measured / predicted."""
    return [
        outcome(f"{name}{i}-{j}", {TPOT: 10.0 * f}, {TPOT: 10.0}, model=f"{name}{i}", **changes)
        for i, of in enumerate(factors)
        for j, f in enumerate(of)
    ]


def _band(rows: list[Outcome], name: str = DENSE, metric: str = ITL) -> dict[str, float]:
    return bands(rows)[name]["bands"][metric]  # type: ignore[return-value]


FACTORS = st.lists(st.floats(0.5, 2.0), min_size=BAND_CONFIGURATIONS, max_size=12)


@settings(max_examples=20)
@given(FACTORS, st.integers(2, 6))
def test_a_row_measured_again_is_no_evidence(factors: list[float], times: int) -> None:
    once, again = _band(_sweeps([[f] for f in factors])), _band(_sweeps([[f] * times for f in factors]))
    assert {n: once[n] for n in ("configurations", "low", "high")} == {
        n: again[n] for n in ("configurations", "low", "high")
    }
    assert again["rows"] == times * once["rows"]


@settings(max_examples=20)
@given(FACTORS, st.floats(0.5, 2.0))
def test_a_common_bias_moves_a_band_and_leaves_its_width(factors: list[float], bias: float) -> None:
    plain, biased = _band(_sweeps([[f] for f in factors])), _band(_sweeps([[bias * f] for f in factors]))
    assert biased["low"] / plain["low"] == pytest.approx(bias, rel=2e-3)
    assert biased["high"] / plain["high"] == pytest.approx(bias, rel=2e-3)


def test_the_half_width_is_the_quantile_of_left_out_residuals() -> None:
    logs = np.array([0.0, 0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8])
    apart = sorted(abs(log - np.quantile(np.delete(logs, i), 0.5, method="inverted_cdf")) for i, log in enumerate(logs))
    half = IN_SIGHT * apart[math.ceil((len(logs) + 1) * BAND_COVERAGE) - 1]
    band = _band(_sweeps([[math.exp(log)] for log in logs]))
    assert (band["low"], band["high"]) == (
        pytest.approx(math.exp(-half), abs=1e-4),
        pytest.approx(math.exp(half), abs=1e-4),
    )


@pytest.mark.parametrize(("between", "within"), [(0.1, 0.05), (0.1, 0.01), (0.01, 0.1)])
def test_a_band_holds_what_it_promises_of_a_configuration_not_seen(between: float, within: float) -> None:
    """Of 400 worlds with biases of 20 configurations and noise of rows: rows of a further configuration are inside."""
    rng, inside = np.random.default_rng(0), []
    for _ in range(400):
        logs = rng.normal(0.0, between, (21, 1)) + rng.normal(0.0, within, (21, 4))
        low, high = interval([*logs[:20]])
        inside.append(np.mean((low <= logs[20]) & (logs[20] <= high)))
    assert BAND_COVERAGE - 0.03 <= np.mean(inside) <= BAND_COVERAGE + 0.08


def test_left_out_configurations_are_judged_by_the_others() -> None:
    same, odd = _sweeps([[1.0]] * 9), outcome("odd", {TPOT: 30.0}, {TPOT: 10.0}, model="odd")
    assert _band(same)["inside"] == 1.0
    assert _band([*same, odd])["inside"] == pytest.approx(0.9)


def test_a_class_without_enough_configurations_has_the_band_of_the_smallest_pool_with_enough() -> None:
    few, many = [[1.0]] * (BAND_CONFIGURATIONS - 1), [[1.0]] * BAND_CONFIGURATIONS
    assert bands(_sweeps(few)) == {}
    both = [*_sweeps(few, "d"), *_sweeps(many, "e", evidence=MOE)]
    assert (_band(both, MOE)["over"], _band(both, MOE)["rows"]) == ([], BAND_CONFIGURATIONS)
    assert (_band(both)["over"], _band(both)["rows"]) == (["kind"], 2 * BAND_CONFIGURATIONS - 1)
    assert _band(both, f"{MOE}/speculative")["over"] == ["speculation"]
    assert _band(both, f"{MOE}/disaggregated/speculative")["over"] == ["disaggregation", "speculation"]
    assert not any(name.startswith(("roofline", "tables/amd")) for name in bands(both)), "no rows, no band"


def test_tails_have_rows_and_bands_of_their_own() -> None:
    rows = [
        outcome(f"r{i}", {TPOT: 10.0, TPOT_P99: 20.0 + i}, {TPOT: 10.0, TPOT_P99: 10.0}, model=f"m{i}")
        for i in range(9)
    ]
    assert _band(rows)["high"] == 1.0
    assert _band(rows, metric=f"{ITL}.p99")["low"] > 1.0


def test_spread_leaves_out_what_a_configuration_shares() -> None:
    biases = [1.0, 3.0, 0.5, 2.0, 0.8]
    assert _band(_sweeps([[bias] * 3 for bias in biases]))["spread"] == 0.0
    assert "spread" not in _band(_sweeps([[bias] for bias in biases]))


def test_flagged_rows_and_those_without_a_prediction_make_no_band() -> None:
    rows = _sweeps([[1.0]] * 6)
    bad = [*_sweeps([[9.0]] * 6, "x", notes="QUALITY: odd"), *_sweeps([[9.0]] * 6, "y", problem="does not fit")]
    assert bands([*rows, *bad]) == bands(rows)


def test_gpus_are_left_out_as_a_whole() -> None:
    here, there = _sweeps([[1.0]] * 6, "h", gpu="H100-SXM"), _sweeps([[1.0], [2.0]], "b", gpu="B200-SXM")
    found = left_out_gpus([*here, *there])
    assert found["1"][ITL] == Share(pytest.approx(0.5), 2), "without the H100 two are too few"
    assert list(found) == [f"{factor:g}" for factor in GPU_FACTORS]


def test_the_least_factor_that_suffices_is_taken() -> None:
    held = {"1": 0.7, "1.5": 0.81, "2": 0.9}
    assert new_gpu({factor: {ITL: Share(share, 9)} for factor, share in held.items()}) == 1.5
    assert new_gpu({"1": {ITL: Share(0.1, 9)}}) == GPU_FACTORS[-1]
