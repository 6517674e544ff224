"""Why nothing is feasible: counted reasons, the best value of each SLO, and a relaxation that is true."""

from dataclasses import replace

import pytest

from dynosim.metrics import slo_violations
from dynosim.report.analysis import health
from dynosim.report.infeasible import why_infeasible
from dynosim.search.study import Study
from dynosim.search.trial import Outcome, Status
from dynosim.space import SearchSpace, reasons
from dynosim.views import frontier_view
from report.fake_study import make_study


def _bounded(study: Study, slo: dict[str, dict[str, float]]) -> Study:
    """The same trials judged by *slo*."""
    trials = [
        replace(t, outcome=replace(t.outcome, constraints=slo_violations(t.outcome.known_metrics(), slo)))
        for t in study.trials
        if t.outcome.status is Status.COMPLETE
    ]
    return replace(study, slo=slo, trials=trials)


def test_a_feasible_study_has_no_reason() -> None:
    assert why_infeasible(make_study(20)) == []


@pytest.mark.parametrize("bounds", [{"p99": 1.0}, {"p99": 50.0, "p50": 1.0}])
def test_the_best_value_and_the_smallest_relaxation_are_true(bounds: dict[str, float]) -> None:
    study = _bounded(make_study(40), {"time_to_first_token": bounds})
    *reached, relaxed = why_infeasible(study)
    best = min(t.outcome.flat_metrics()["time_to_first_token.p99"] for t in study.trials)
    assert reached[0].startswith("TTFT p99: best ")
    assert float(reached[0].split()[3].replace(",", "")) == pytest.approx(best, rel=0.01)
    wider = {
        stat: float(relaxed.split(f"TTFT {stat} <= ")[1].split()[0].replace(",", ""))
        if f"{stat} <=" in relaxed
        else bound
        for stat, bound in bounds.items()
    }
    assert _bounded(study, {"time_to_first_token": wider}).feasible
    narrower = {stat: wide if wide == bounds[stat] else 0.97 * wide for stat, wide in wider.items()}
    assert not _bounded(study, {"time_to_first_token": narrower}).feasible


def test_a_budget_that_leaves_hardly_anything_is_named_before_the_slo() -> None:
    study = _bounded(make_study(20), {"time_to_first_token": {"p99": 1.0}})
    assert not any("random points" in said for said in why_infeasible(study))
    narrow = replace(study, space=SearchSpace.load("llama70b", ["budget.max_gpus=1"]))
    assert "random points of the space cannot be deployed: " in why_infeasible(narrow)[0]
    assert "needs 2 GPUs, budget.max_gpus is 1" in why_infeasible(narrow)[0]


def test_a_bound_in_seconds_is_suspected() -> None:
    study = _bounded(make_study(20), {"time_to_first_token": {"p99": 0.8}})
    assert "bounds are in ms: 0.800 s would be 800" in why_infeasible(study)[0]
    near = _bounded(study, {"time_to_first_token": {"p99": 100.0}})
    assert not any("bounds are in ms" in said for said in why_infeasible(near))


def test_failures_and_refusals_are_counted_and_no_slo_is_blamed() -> None:
    study = make_study(6)
    failed = Outcome(Status.FAILED, reason="Traceback (most recent call last):\nValueError: negative price")
    study = replace(study, trials=[replace(trial, outcome=failed) for trial in study.trials])
    assert why_infeasible(study) == ["6 of 6 trials failed, 6 with ValueError: negative price (`reason` in trials.csv)"]
    refused = Outcome(Status.INFEASIBLE, reason="no request fits: a replica's KV blocks hold 10 tokens")
    study = replace(study, trials=[replace(trial, outcome=refused) for trial in study.trials])
    assert why_infeasible(study) == [f"6 of 6 trials could not run: 6 such as: {refused.reason}"]


def test_a_lost_trial_gives_no_value_and_no_relaxation() -> None:
    study = make_study(3)
    lost = Outcome(Status.LOST, constraints={"time_to_first_token.p99": 0.6})
    study = replace(study, trials=[replace(trial, outcome=lost) for trial in study.trials])
    (said,) = why_infeasible(study)
    assert said.startswith("TTFT p99: no complete trial has a value; those that ended early reach at least ")


def test_reasons_that_differ_in_numbers_are_one_kind_and_budgets_name_the_least() -> None:
    found = [f"needs {n} GPUs, budget.max_gpus is 1" for n in (12, 2, 40)]
    found += [f"deployment.{role}: llama does not fit on {n} x l40s" for role, n in (("prefill", 1), ("decode", 1))]
    assert reasons.summary(found) == (
        "3 such as: needs 2 GPUs, budget.max_gpus is 1; 2 such as: deployment.prefill: llama does not fit on 1 x l40s"
    )


def test_health_and_json_say_the_same() -> None:
    study = _bounded(make_study(20), {"time_to_first_token": {"p99": 1.0}})
    said = why_infeasible(study)
    assert frontier_view(study)["infeasible"] == said
    assert [check.text for check in health(study)][: len(said)] == said
