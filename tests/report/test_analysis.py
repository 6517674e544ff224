"""Sentences and findings against studies small enough to check by hand."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import pytest

from dynosim.config import Scenario
from dynosim.report.analysis import (
    AXES,
    LATENCY_PARTS,
    data,
    difference,
    gpu_text,
    health,
    hypervolume_curve,
    percent,
    plus_minus,
    short,
    tradeoff,
)
from dynosim.report.infeasible import why_infeasible
from dynosim.report.numbers import number
from dynosim.search.samplers.base import Gap
from dynosim.search.study import Study
from dynosim.search.trial import Outcome, Status, Trial
from dynosim.search.view import gpu_counts
from dynosim.uncertainty.model_band import Evidence
from report.fake_study import OBJECTIVES, SPACE, make_study, make_trial, make_twin


def _trial(number: int, cost: float, ttft: float, violation: float = -0.1) -> Trial:
    outcome = Outcome(Status.COMPLETE, (cost, ttft), {"time_to_first_token.p99": violation}, metrics={})
    return replace(make_trial(number), outcome=outcome)


def _study(*trials: Trial) -> Study:
    return Study("s", SPACE, OBJECTIVES[:2], {"time_to_first_token": {"p99": 4000.0}}, list(trials))


def _texts(study: Study, level: str) -> str:
    return " | ".join(check.text for check in health(study) if check.level == level)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1840.4, "1,840"),
        (0.924, "0.924"),
        (12.34, "12.3"),
        (3.0, "3.00"),
        (-0.05, "-0.0500"),
        (2e9, "2.00e+09"),
    ],
)
def test_number_has_three_significant_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_percent_is_relative_to_the_size_of_the_reference() -> None:
    assert [percent(1.1, 1.0), percent(0.7, 1.0), percent(-1.5, -1.0), percent(1.0, 0.0)] == [
        "+10 %",
        "−30 %",
        "−50 %",
        "n/a",
    ]


def test_a_percentage_near_a_hundred_is_a_factor() -> None:
    assert [percent(2.0, 1000.0), percent(0.5, 1.0e4), percent(0.011, 1.0), percent(0.0, 1.0)] == [
        "500 x lower",
        "20,000 x lower",
        "−99 %",
        "−100 %",
    ]


def test_short_paths_keep_the_role() -> None:
    assert short("deployment.disaggregated.decode.tensor_parallel_size") == "decode.TP"
    assert short("deployment.aggregated.max_num_seqs") == "aggregated.max_num_seqs"


def test_tradeoff_names_the_bargain_and_then_the_flat_part() -> None:
    study = _study(_trial(0, 1.0, 1000.0), _trial(1, 1.1, 300.0), _trial(2, 2.2, 270.0), _trial(3, 3.0, 2000.0))
    assert tradeoff(study) == (
        "From 4xTP4 (trial 0) to 1xTP2+4xTP2 (trial 1), +10 % cost buys −70 % TTFT p99; "
        "beyond trial 1, another +100 % cost buys −10 % TTFT p99."
    )


def test_tradeoff_of_one_point_and_of_none() -> None:
    assert (
        tradeoff(_study(_trial(0, 1.0, 1000.0))) == "No trade-off between cost and TTFT p99: trial 0 is best in both."
    )
    assert tradeoff(_study(_trial(0, 1.0, 1000.0, violation=0.5))) == ""


def test_difference_lists_only_what_changed_and_marks_the_absent() -> None:
    study = make_study(10)
    other = next(trial for trial in study.trials if trial.scenario.deployment.disaggregated)
    changed = difference(other, study.trials[0])
    assert changed["deployment.mode"] == ("aggregated", "disaggregated")
    assert changed["deployment.aggregated.replicas"] == (4, None)
    assert difference(other, other) == {}


def test_gpus_are_counted_over_all_pools() -> None:
    for trial in make_study(20).trials:
        assert sum(gpu_counts(trial).values()) == trial.scenario.deployment.num_gpus()


def test_a_constraint_that_rejects_nearly_all_is_a_warning() -> None:
    study = _study(_trial(0, 1.0, 1000.0), *(_trial(n, 1.0, 1.0, violation=1.0) for n in range(1, 20)))
    assert "SLO time_to_first_token.p99 rejects 95% of the trials that ran" in _texts(study, "warn")


def test_a_constraint_that_never_binds_is_said() -> None:
    assert "time_to_first_token.p99 never binds" in _texts(_study(_trial(0, 1.0, 1000.0)), "pass")


def test_nothing_is_said_of_bounds_that_nobody_wrote_or_without_a_feasible_trial() -> None:
    met = _trial(0, 1.0, 1000.0)
    both = replace(met.outcome, constraints={"time_to_first_token.p99": -0.1, "served_request_fraction.min": -0.001})
    study = replace(_study(replace(met, outcome=both)), slo=SPACE.reference.slo)
    assert "served_request_fraction" not in _texts(study, "pass")
    written = replace(study, slo={**study.slo, "served_request_fraction": {"min": 0.5}})
    assert "served_request_fraction.min never binds" in _texts(written, "pass")
    none = replace(both, constraints={"time_to_first_token.p99": -0.1, "inter_token_latency.p99": 0.5})
    assert "never binds" not in _texts(_study(replace(met, outcome=none)), "pass")


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        (None, ""),
        (Gap(0.002, 0.0, 0.009), "settled"),
        (Gap(0.002, 0.0, 0.009, untried=3), "not settled: 3 neighbours of the frontier with rare values are untried"),
        (Gap(0.008, 0.0, 0.02), "not settled: up to 2% of the frontier may be missing"),
        (Gap(math.nan, math.nan, math.nan, unknown="an objective does not vary"), ""),
    ],
)
def test_only_a_search_that_misses_little_has_settled(gap: Gap | None, said: str) -> None:
    trials = [_trial(number, 1.0 + (number == 0), 1000.0) for number in range(20)]
    level = "warn" if "not" in said else "pass"
    assert "settled" not in _texts(replace(_study(*trials[:19]), gap=gap), level)
    assert said in _texts(replace(_study(*trials), gap=gap), level)
    assert ("settled" in _texts(replace(_study(*trials), gap=gap), level)) is bool(said)


def test_the_gpus_of_a_scaled_pool_are_a_ceiling() -> None:
    trial = make_trial(0)
    assert gpu_text(trial) == "16"
    config = trial.scenario.model_dump()
    config["deployment"]["aggregated"] |= {"replicas": 1, "autoscaler": {"max_replicas": 3}}
    scaled = replace(trial, scenario=Scenario.model_validate(config))
    assert gpu_text(scaled) == "up to 12"
    assert [shown["autoscaled"] for shown in data(replace(make_study(1), trials=[trial, scaled]))["trials"]] == [
        False,
        True,
    ]


def test_the_baseline_is_beaten_only_by_a_point_that_is_no_worse_anywhere() -> None:
    assert "1 on the frontier match or beat" in _texts(_study(_trial(0, 1.0, 1000.0), _trial(1, 0.9, 900.0)), "pass")
    assert "it is the whole frontier" in _texts(_study(_trial(0, 1.0, 1000.0)), "warn")
    assert "each one trades something" in _texts(_study(_trial(0, 1.0, 1000.0), _trial(1, 0.9, 1100.0)), "warn")


def test_a_frontier_point_that_turns_requests_away_is_a_warning() -> None:
    trial = _trial(0, 1.0, 1000.0)
    counts = {"completed": 30.0, "rejected": 60.0, "incomplete": 10.0}
    study = _study(replace(trial, outcome=replace(trial.outcome, metrics=counts)))
    assert "1 on the frontier serve under 99 % of the requests (trial 0: 30%)" in _texts(study, "warn")
    assert "serve under" not in _texts(_study(trial), "warn")


def test_nothing_feasible_is_the_first_warning() -> None:
    study = _study(_trial(0, 1.0, 1000.0, violation=0.5))
    assert health(study)[0].text == why_infeasible(study)[0]


def test_picks_on_the_bounds_of_the_space_are_named() -> None:
    trial = _trial(0, 1.0, 1000.0)
    at_edge = replace(trial, point={**trial.point, "deployment.aggregated.replicas": 8})
    assert "aggregated.replicas = 8 (most; cheapest, fastest, balanced)" in _texts(_study(at_edge), "warn")


def test_hypervolume_never_falls_and_ends_at_the_studys() -> None:
    study = make_study(60)
    curve = hypervolume_curve(study)
    assert len(curve) == 60
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(curve))
    assert curve[-1] == pytest.approx(study.hypervolume())


@pytest.mark.parametrize("objectives", [2, 3, 4, 5])
def test_data_has_every_axis_and_parts_that_sum_to_the_latency(objectives: int) -> None:
    study = make_study(40, objectives)
    page = data(study)
    assert [axis["name"] for axis in page["axes"]][:objectives] == [o.name for o in study.objectives]
    assert set(AXES) <= {axis["name"] for axis in page["axes"]}
    for shown, trial in zip(page["trials"], study.trials, strict=True):
        assert (shown["parts"] is None) == (trial.outcome.status is not Status.COMPLETE)
        if shown["parts"]:
            assert len(shown["parts"]) == len(LATENCY_PARTS)
            assert sum(shown["parts"]) == pytest.approx(trial.outcome.flat_metrics()["request_latency"])


def test_a_scalar_slo_is_bounded_from_its_side() -> None:
    bounds = {slo["name"]: slo["direction"] for slo in data(make_study(1))["slo"]}
    assert bounds == {
        "time_to_first_token.p99": "minimize",
        "inter_token_latency.p99": "minimize",
        "good_request_fraction.min": "maximize",
        "served_request_fraction.min": "maximize",
    }


def test_what_is_extrapolated_or_has_no_interval_is_a_warning() -> None:
    said = [check.text for check in health(make_study(60)) if check.level == "warn"]
    assert any("TTFT p99 has no sampling interval" in text and "1,000 requests" in text for text in said)
    mixed = next(text for text in said if text.startswith("the frontier compares different evidence"))
    assert "modelled (tables/nvidia/dense)" in mixed
    assert "extrapolated (tables/nvidia/dense, beyond the tables or the profile)" in mixed
    study = make_study(60)
    one_class = [trial for trial in study.trials if trial.scenario.deployment.disaggregated is None]
    study.trials = [trial for trial in one_class if trial.outcome.evidence == "extrapolated"]
    assert any(check.text.startswith("the whole frontier is extrapolated") for check in health(study))
    study = make_study(60)
    study.trials = [trial for trial in study.trials if trial.outcome.evidence == "modelled"]
    assert not any("extrapolated" in check.text for check in health(study))
    assert not any("ITL p99 has no" in text for text in said)


def test_page_data_hold_the_ends_of_what_they_show() -> None:
    study = make_study(60)
    study.trials.append(make_twin(study.frontier()[1], 60))
    page = data(study)
    for trial in (trial for trial in page["trials"] if trial["axes"]):
        assert trial["evidence"] in get_args(Evidence)
        for key, (low, high) in trial["intervals"].items():
            assert low <= trial["axes"][key] <= high
        assert all(low < high for low, high in trial["model_bands"].values())
        assert "time_to_first_token.p99" not in trial["intervals"]
    shown = {trial["number"]: trial for trial in page["trials"] if trial["leader"] is not None}
    assert sorted(trial["recommendation"] for trial in shown.values()) == list(range(1, len(study.recommended()) + 1))
    assert {trial["leader"] for trial in shown.values()} == set(page["leaders"])
    assert set(page["frontier"]) | set(page["leaders"]) == set(shown)
    assert page["best_at"] == {"cheapest": [0], "fastest": [1, 2], "balanced": [0, 1, 2]}
    assert page["tradeoff_pair"] == (0, 1)


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [(200.0, (186.0, 214.0), "±7 %"), (1.0, (0.996, 1.004), "±0.4 %"), (1.0, (1.0, 1.0), ""), (1.0, None, "")],
)
def test_an_interval_is_shown_relative_to_its_value(value: float, interval: Any, text: str) -> None:
    assert plus_minus(value, interval) == text
