"""Warm start: earlier trials in the terms of another space, and what they are worth to a search."""

import numpy as np
import pytest

from dynosim.search.distributions import key
from dynosim.search.loop import run_study
from dynosim.search.warm import history_of
from search.analytic import evaluate
from search.problems import serving

GOALS = "objectives=[{metric: usd_per_million_output_tokens}]"


def _study(trials, *overrides, **more):  # type: ignore[no-untyped-def]
    return run_study(serving(GOALS, "slo={}", *overrides), trials=trials, evaluate=_cost, **more)


def _cost(scenario):  # type: ignore[no-untyped-def]
    outcome = evaluate(scenario)
    return type(outcome)(outcome.status, outcome.values[:1], {}, {**outcome.metrics, "served_request_fraction": 1.0})


def test_points_of_the_other_space_with_its_own_goals() -> None:
    space = serving(GOALS, "slo={}")
    earlier = _study(12)
    found = history_of(earlier.trials, space)
    assert found.points == [dict(trial.point) for trial in earlier.trials]
    np.testing.assert_array_equal(found.values[:, 0], [trial.outcome.values[0] for trial in earlier.trials])
    assert found.directions == ("minimize",)


def test_a_field_that_was_fixed_is_a_value_and_what_lies_outside_is_left_out() -> None:
    earlier = _study(10, "deployment.gpu=h100_sxm")
    assert {p["deployment.gpu"] for p in history_of(earlier.trials, serving(GOALS, "slo={}")).points} == {"h100_sxm"}
    narrow = serving(GOALS, "slo={}", "deployment.gpu={choices: [l40s, b200_sxm]}", "baseline=null")
    assert history_of(earlier.trials, narrow).points == []


def test_a_search_that_starts_from_an_earlier_one_is_ahead_at_once() -> None:
    earlier = _study(30, seed=5)
    best = min(trial.outcome.values[0] for trial in earlier.trials)
    warm = _study(4, seed=1, earlier=[earlier])
    assert min(trial.outcome.values[0] for trial in warm.trials) <= best
    known = {key(trial.point) for trial in earlier.frontier()}
    assert key(warm.trials[1].point) in known, "after the baseline comes the earlier front"


@pytest.mark.parametrize("count", [0, 1])
def test_too_little_to_learn_from_changes_nothing(count: int) -> None:
    earlier = _study(10)
    earlier.trials = earlier.trials[:count]
    points = [dict(trial.point) for trial in _study(8, earlier=[earlier]).trials]
    assert points == [dict(trial.point) for trial in _study(8).trials]
