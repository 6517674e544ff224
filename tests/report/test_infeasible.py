"""Why nothing is feasible: counted reasons, the best value of each SLO, and a relaxation that is true."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.metrics import Metrics, bounds_of, slo_violations
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


SLO = {
    "time_to_first_token": {"p99": 50.0, "p50": 0.5},
    "inter_token_latency": {"avg": 7.0},
    "served_request_fraction": {"min": 0.999},
}
FEW = make_study(1)
MS = st.floats(1e-3, 1e8)
MEASURED = st.builds(
    lambda ttft, itl, served: {
        "time_to_first_token": ttft,
        "inter_token_latency": itl,
        "served_request_fraction": served,
    },
    st.fixed_dictionaries({"p99": MS, "p50": MS}),
    st.fixed_dictionaries({"avg": st.none() | MS}),
    st.floats(0.0, 1.0),
)
LOST = st.dictionaries(st.sampled_from([bound.name for bound in bounds_of(SLO)]), st.floats(1e-9, 1e3), min_size=1)


def _ended(measured: dict[str, Any] | None, lost: dict[str, float]) -> Outcome:
    if measured is None:
        return Outcome(Status.LOST, constraints=lost)
    return Outcome(Status.COMPLETE, (1.0,), slo_violations(Metrics(measured), SLO), measured)


def _bounds_said(text: str) -> dict[str, dict[str, float]]:
    """SLO with the bounds of a sentence such as ``with TTFT p99 <= 1,230 ms instead of 50.0 ms trial 3 (...)``."""
    found: dict[str, dict[str, float]] = {metric: dict(stats) for metric, stats in SLO.items()}
    for bound in bounds_of(SLO):
        if said := re.search(rf"{re.escape(bound.label)} [<>]= (\S+)", text):
            found[bound.metric][bound.stat] = float(said[1].replace(",", ""))
    return found


@given(st.lists(st.builds(_ended, st.none() | MEASURED, LOST), min_size=1, max_size=5))
def test_a_relaxation_claims_what_a_run_to_its_end_has_shown_and_no_more(outcomes: list[Outcome]) -> None:
    trials = [replace(FEW.trials[0], number=number, outcome=outcome) for number, outcome in enumerate(outcomes)]
    study = replace(FEW, slo=SLO, trials=trials)
    said = [text for text in why_infeasible(study) if text.startswith("with ")]
    misses = {t.number: max(t.outcome.constraints.values()) for t in trials if t.outcome.metrics}
    near = {number: most for number, most in misses.items() if most < math.inf}
    assert len(said) == (bool(near) and not study.feasible)
    for text in said:
        named = re.search(r"trial (\d+) \(.*\) is feasible$", text)
        assert named is not None
        shown = trials[int(named[1])].outcome
        assert max(slo_violations(shown.known_metrics(), _bounds_said(text)).values()) <= 0.0
        assert misses[int(named[1])] == min(near.values())


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
