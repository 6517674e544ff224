"""Model bands and evidence marks, from bands and profiles made up here: the laws hold for any of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dynosim.config import DeploymentConfig, Scenario
from dynosim.timing.calibrated import CalibratedDeployment, Profile, Residual
from dynosim.uncertainty import model_band
from dynosim.uncertainty.evidence import EXTRAPOLATED_SHARE, evidence
from dynosim.uncertainty.model_band import SHARED, WIDENED, Band, band_of, evidence_class, is_measured, model_bands

ITL, TTFT, RATE = "inter_token_latency", "time_to_first_token", "output_token_throughput"
CLASSES = {
    "tables/nvidia/dense": {
        "gpus": ["h100_sxm", "h200_sxm"],
        "bands": {
            ITL: {"rows": 50, "low": 0.9, "high": 1.2, "spread": 0.05},
            f"{ITL}.p99": {"rows": 50, "low": 0.5, "high": 1.6, "spread": 0.3},
            RATE: {"rows": 50, "low": 0.8, "high": 1.1},
        },
    },
    "tables/nvidia/dense/disaggregated": {
        "gpus": ["h100_sxm", "h200_sxm"],
        "bands": {ITL: {"rows": 9, "low": 0.7, "high": 2.0}},
    },
    "tables/nvidia/moe": {"gpus": ["b200_sxm"], "bands": {TTFT: {"rows": 9, "low": 0.7, "high": 2.0}}},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bands.json"
    path.write_text(json.dumps({"version": "0", "coverage": 0.8, "new_gpu": 1.25, "classes": CLASSES}))
    return path


def _scenario(
    load: str = "concurrency", timing: str = "pack", profile: Profile | None = None, gpu: str = "h100_sxm"
) -> Scenario:
    loads = {"concurrency": {"type": "concurrency", "concurrency": 8}, "poisson": {"type": "poisson", "rate_rps": 1.0}}
    scenario = Scenario.model_validate(
        {
            "name": "x",
            "workload": {
                "source": {
                    "type": "synthetic",
                    "requests": 50,
                    "input_tokens": {"type": "fixed", "tokens": 100},
                    "output_tokens": {"type": "fixed", "tokens": 10},
                },
                "load": loads[load],
            },
            "deployment": {
                "model": "llama-3.1-8b",
                "gpu": gpu,
                "timing": {"type": timing},
                "aggregated": {"replicas": 1, "tensor_parallel_size": 2},
            },
        }
    )
    if profile is None:
        return scenario
    return scenario.model_copy(update={"deployment": CalibratedDeployment.of(scenario.deployment, profile)})


def _profile(**fields: object) -> Profile:
    residual = Residual(runs=6, bias=0.0, mape_before=0.2, mape=0.04, mape_left_out=0.06)
    return Profile(name="mine", generic=True, decode=1.1, residuals={ITL: residual}, **fields)


def test_the_truth_is_the_prediction_times_the_band_of_its_class(file: Path) -> None:
    assert evidence_class(_scenario().deployment) == "tables/nvidia/dense"
    bands = model_bands(_scenario(), "modelled", file=file)
    assert bands[ITL] == Band(0.9, 1.2, 0.05)
    assert bands["inter_chunk_latency"] == bands[ITL]


def test_inverses_have_inverse_bands(file: Path) -> None:
    bands = model_bands(_scenario(), "modelled", file=file)
    for inverse, direct in (("usd_per_million_output_tokens", RATE), ("output_token_throughput_per_user", ITL)):
        assert bands[inverse].low == pytest.approx(1.0 / bands[direct].high)
        assert bands[inverse].high == pytest.approx(1.0 / bands[direct].low)
        assert bands[inverse].spread == bands[direct].spread
    assert bands["output_token_throughput_per_gpu"] == bands[RATE]


@pytest.mark.parametrize(
    "changes",
    [
        {"timing": "polynomial"},
        {"timing": "fixed"},
        {"timing": "roofline"},
        {"timing": "roofline", "gpu": "mi300x"},
        {"gpu": "mi300x"},
    ],
    ids=str,
)
def test_what_was_not_measured_is_extrapolated_and_has_no_band(
    changes: dict[str, str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_band, "BANDS", file)
    scenario = _scenario(**changes)
    assert not is_measured(scenario.deployment)
    assert evidence(scenario, {}) == "extrapolated"
    assert model_bands(scenario, "extrapolated") == model_bands(scenario, "modelled") == {}
    profiled = _scenario(**changes, profile=_profile())
    assert evidence(profiled, {}) == "calibrated", "the user measured it"
    assert model_bands(profiled, "calibrated")[ITL]
    assert model_bands(profiled, "extrapolated") == {}, "beyond its ranges nothing is known"


def test_a_class_is_source_vendor_and_kind_and_how_it_is_served() -> None:
    pool = {"replicas": 1, "tensor_parallel_size": 8}
    pools = {"prefill": pool, "decode": pool}
    model = {"model": "deepseek-v3", "gpu": "mi300x", "mode": "disaggregated", "disaggregated": pools}
    timed = model | {"timing": {"type": "roofline"}, "engine": {"speculative": {"num_speculative_tokens": 1}}}
    deployment = DeploymentConfig.model_validate(timed)
    assert evidence_class(deployment) == "roofline/amd/moe/disaggregated/speculative"
    mixed = pools | {"decode": pool | {"gpu": "h200_sxm"}}
    both = DeploymentConfig.model_validate(timed | {"disaggregated": mixed})
    assert str(evidence_class(both)).startswith("roofline/amd+nvidia/moe")


def test_a_gpu_that_was_not_measured_has_the_band_of_its_vendor_s_class_as_wide_as_the_file_says(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_band, "BANDS", file)
    there = _scenario(gpu="a100_sxm")
    assert not is_measured(there.deployment)
    assert evidence(there, {}) == "extrapolated"
    near, far = model_bands(_scenario(), "modelled")[ITL], model_bands(there, "extrapolated")[ITL]
    assert far.half_width == pytest.approx(1.25 * near.half_width)


def test_tails_have_a_band_of_their_own(file: Path) -> None:
    bands = model_bands(_scenario(), "modelled", file=file)
    assert [band_of(bands, f"{ITL}{stat}") for stat in ("", ".avg", ".p50")] == [bands[ITL]] * 3
    assert [band_of(bands, f"{ITL}.{stat}") for stat in ("p90", "p95", "p99")] == [Band(0.5, 1.6, 0.3)] * 3
    assert band_of(bands, "output_token_throughput_per_user.p99") == Band(0.5, 1.6, 0.3).inverse()
    assert band_of(bands, f"{TTFT}.p99") is None


def test_a_metric_without_rows_of_its_class_has_no_band(file: Path) -> None:
    assert TTFT not in model_bands(_scenario(), "modelled", file=file)


def test_the_gpus_of_all_pools_must_be_measured(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_band, "BANDS", file)
    pool = {"replicas": 1, "tensor_parallel_size": 2}
    for gpu, known in (("h200_sxm", True), ("b200_sxm", False)):
        pools = {"prefill": pool | {"gpu": gpu}, "decode": pool}
        deployment = {"model": "llama-3.1-8b", "gpu": "h100_sxm", "mode": "disaggregated", "disaggregated": pools}
        assert is_measured(DeploymentConfig.model_validate(deployment)) == known


def test_the_package_s_bands_are_those_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "fidelity.md").read_text().splitlines()
    for name, of in json.loads(model_band.BANDS.read_text())["classes"].items():
        cells = [
            f"{band['low']:.2f} to {band['high']:.2f}{'*' if band['over'] else ''}" for band in of["bands"].values()
        ]
        assert any(line.startswith(f"| {name} |") and all(cell in line for cell in cells) for line in page), name


def test_what_is_extrapolated_is_known_less(file: Path) -> None:
    near, far = (model_bands(_scenario(), mark, file=file) for mark in ("modelled", "extrapolated"))
    for name, band in near.items():
        assert far[name].low < band.low
        assert far[name].high > band.high
        assert far[name].half_width == pytest.approx(WIDENED * band.half_width)


def test_beyond_its_ranges_a_profile_is_worth_no_more_than_its_class(file: Path) -> None:
    own, of_class = (
        model_bands(_scenario(profile=profile), "extrapolated", file=file)[ITL] for profile in (_profile(), None)
    )
    assert model_bands(_scenario(profile=_profile()), "calibrated", file=file)[ITL].half_width < of_class.half_width
    assert own == of_class


def test_a_band_without_a_spread_shares_half_of_it(file: Path) -> None:
    band = model_bands(_scenario(), "modelled", file=file)[RATE]
    assert band.spread == pytest.approx(SHARED * math.log(1.1 / 0.8) / 2.0)


def test_a_load_that_is_carried_is_no_prediction(file: Path) -> None:
    carried = model_bands(_scenario("poisson"), "modelled", file=file)
    assert ITL in carried
    assert not {RATE, "usd_per_million_output_tokens", "request_throughput"} & set(carried)
    assert RATE in model_bands(_scenario("poisson"), "modelled", saturated=True, file=file)
    assert not {"gpus", "goodput", "usd_per_hour", "good_request_fraction"} & set(model_bands(_scenario(), "modelled"))


def test_nothing_is_said_without_bands_or_a_source(file: Path, tmp_path: Path) -> None:
    assert model_bands(_scenario(), "modelled", file=tmp_path / "none.json") == {}
    assert model_bands(_scenario(timing="fixed"), "modelled", file=file) == {}


def test_a_profile_brings_its_own_band(file: Path) -> None:
    found = model_bands(_scenario(profile=_profile()), "calibrated", file=file)
    of_profile = {ITL, "inter_chunk_latency", "output_token_throughput_per_user"}
    assert set(found) == of_profile | {f"{name}.p99" for name in of_profile}
    assert found[f"{ITL}.p99"] == Band(0.5, 1.6, 0.3), "a profile says nothing of tails"
    # |error| of a normal distribution is 0.798 sd on average, and 80 % of it lie within 1.2816 sd.
    assert found[ITL].high == pytest.approx(1.06 ** (1.2816 / math.sqrt(2.0 / math.pi)), rel=1e-3)
    assert found[ITL].low == pytest.approx(1.0 / found[ITL].high)


def test_marks_say_what_a_number_rests_on() -> None:
    assert evidence(_scenario(), {}) == "modelled"
    assert evidence(_scenario(), {"extrapolated_pass_share": EXTRAPOLATED_SHARE}) == "modelled"
    assert evidence(_scenario(), {"extrapolated_pass_share": 1.1 * EXTRAPOLATED_SHARE}) == "extrapolated"


def test_a_profile_calibrates_only_within_its_ranges() -> None:
    metrics = {"effective_concurrency": 8.0, "total_token_throughput": 110.0, "request_throughput": 1.0}
    within, outside = {"requests_per_replica": (1.0, 9.0)}, {"requests_per_replica": (50.0, 90.0)}
    assert evidence(_scenario(profile=_profile(ranges=within)), metrics) == "calibrated"
    assert evidence(_scenario(profile=_profile(ranges=outside)), metrics) == "extrapolated"
    assert (
        evidence(_scenario(profile=_profile(ranges=within)), {**metrics, "extrapolated_pass_share": 0.5})
        == "extrapolated"
    )
