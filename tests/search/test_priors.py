"""Priors: estimates through the user's own objectives and SLOs, and how they compare with the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from dynosim.metrics import Metrics, slo_violations
from dynosim.objectives import resolve
from dynosim.search.evaluate import evaluate
from dynosim.search.features import ServingEstimates
from dynosim.search.priors import Prior, ServingPriors
from dynosim.search.rows import Rows
from dynosim.search.trial import Status
from dynosim.space import SearchSpace
from search.problems import serving, small

GOALS = """
import os
from dynosim.objectives import objective

@objective(direction="minimize", unit="1")
def arithmetic(metrics):
    return metrics.value("time_to_first_token", "p99") * metrics.value("usd_per_hour") ** 0.5

@objective(direction="minimize", unit="1")
def branches(metrics):
    first = metrics.value("time_to_first_token", "p99")
    return max(first, 100.0) if first < 1e4 else first + float(metrics.value("usd_per_hour"))

@objective(direction="minimize", unit="1")
def raises(metrics):
    raise RuntimeError("no")

@objective(direction="minimize", unit="1")
def exits(metrics):
    os._exit(0)

@objective(direction="minimize", unit="1")
def unknown(metrics):
    return metrics.value("prefix_cache_hit_rate") + 1.0

@objective(direction="minimize", unit="1")
def missing(metrics):
    return float("nan")

@objective(direction="minimize", unit="1")
def constant(metrics):
    return 1.0

@objective(direction="minimize", unit="1")
def sometimes(metrics):
    if metrics.value("usd_per_hour") > 20.0:
        raise ValueError("too dear")
    return metrics.value("usd_per_hour")
"""


def _estimated(space: SearchSpace, rows: np.ndarray) -> Metrics:
    return ServingEstimates(Rows(space))(rows).metrics()


def _prior(space: SearchSpace, rows: np.ndarray) -> Prior:
    metrics = _estimated(space, rows)
    return ServingPriors(space, metrics, len(rows))(metrics, len(rows))


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    return Rows(serving()).sample(40, np.random.default_rng(0))


def test_columns_are_the_rows_one_by_one(drawn: np.ndarray) -> None:
    """Objectives and violations of columns equal those of the plain numbers of every row."""
    slo = "slo={time_to_first_token: {p99: 12000}, inter_token_latency: {p99: 60}, output_token_throughput: {min: 5}}"
    space = serving(slo)
    together = _prior(space, drawn)
    bounds = {metric: bound for metric, bound in space.reference.slo.items() if metric != "served_request_fraction"}
    assert set(together.violations) == {f"{metric}.{stat}" for metric, stats in bounds.items() for stat in stats}
    objectives = [resolve(config) for config in space.reference.objectives]
    for i, row in enumerate(drawn):
        metrics = _plain(_estimated(space, row[None]))
        expected = [objective(metrics) for objective in objectives]
        np.testing.assert_allclose([c[i] for c in together.objectives if c is not None], expected, rtol=1e-12)
        violated = slo_violations(metrics, bounds)
        for name, column in together.violations.items():
            assert column[i] == pytest.approx(violated[name], rel=1e-12, nan_ok=True)


def _plain(metrics: Metrics) -> Metrics:
    def number(x: Any) -> Any:
        return {stat: float(v[0]) for stat, v in x.items()} if isinstance(x, dict) else float(x[0])

    return Metrics({name: number(x) for name, x in metrics.to_dict().items()})


@pytest.fixture
def goals(tmp_path: Path) -> Path:
    file = tmp_path / "goals.py"
    file.write_text(GOALS)
    return file


def _of_goal(goals: Path, name: str, drawn: np.ndarray) -> np.ndarray | None:
    (values,) = _prior(serving(f"objectives=[{{python: '{goals}:{name}'}}]"), drawn).objectives
    return values


def test_an_objective_in_python_has_a_prior(goals: Path, drawn: np.ndarray) -> None:
    metrics = _estimated(serving(), drawn)
    first, usd = np.array(metrics.value("time_to_first_token", "p99")), np.array(metrics.value("usd_per_hour"))
    np.testing.assert_allclose(_of_goal(goals, "arithmetic", drawn), first * usd**0.5)
    expected = np.where(first < 1e4, np.fmax(first, 100.0), first + usd)
    np.testing.assert_allclose(_of_goal(goals, "branches", drawn), expected)


@pytest.mark.parametrize("name", ["raises", "exits", "unknown", "missing"])
def test_an_objective_without_an_estimate_has_no_prior(goals: Path, drawn: np.ndarray, name: str) -> None:
    assert _of_goal(goals, name, drawn) is None


def test_an_objective_that_fails_for_some_rows_has_a_prior_for_the_others(goals: Path, drawn: np.ndarray) -> None:
    usd = np.array(_estimated(serving(), drawn).value("usd_per_hour"))
    assert (usd > 20.0).any()
    np.testing.assert_allclose(_of_goal(goals, "sometimes", drawn), np.where(usd > 20.0, np.nan, usd))


def test_a_constant_objective_is_harmless(goals: Path, drawn: np.ndarray) -> None:
    values = _of_goal(goals, "constant", drawn)
    assert values is not None
    assert (values == 1.0).all()


def test_what_cannot_be_deployed_has_no_estimate() -> None:
    space = small("deployment.model=llama-3.1-70b")
    rows = Rows(space)
    array = rows.of(list(space.points()))
    possible = np.array(
        [space.infeasible_reason(p) is None or "GPUs" in str(space.infeasible_reason(p)) for p in space.points()]
    )
    for values in _prior(space, array).objectives:
        assert values is not None
        np.testing.assert_array_equal(np.isfinite(values), possible)


SPACES = Path(__file__).parents[2] / "benchmarks" / "spaces"


def _correlations(name: str, count: int, requests: int) -> list[float]:
    """Return the rank correlation of estimated and simulated values, per objective, over random valid points."""
    limits = [f"workload.max_requests={requests}", "workload.warmup_requests=20", "optimizer.stop_lost_runs=false"]
    space = SearchSpace.load(SPACES / f"{name}.yaml", limits)
    rows = Rows(space)
    drawn = [row for row in rows.sample(400, np.random.default_rng(0)) if not space.infeasible_reason(rows.point(row))]
    outcomes = [evaluate(space.scenario(rows.point(row))) for row in drawn[:count]]
    whole = np.array([outcome.status is Status.COMPLETE for outcome in outcomes])
    assert whole.sum() > 15
    simulated = np.array([outcome.values for outcome in np.array(outcomes, object)[whole]])
    estimated = [np.array(c)[whole] for c in _prior(space, np.array(drawn[:count])).objectives]
    return [float(spearmanr(c, simulated[:, j]).statistic) for j, c in enumerate(estimated)]


def test_estimates_order_deployments_as_the_simulator_does() -> None:
    cost, first, gap = _correlations("moe", 40, 400)
    assert cost > 0.85  # of what saturates, the simulated cost includes the backlog's
    assert first > 0.88
    assert gap > 0.85


def test_estimates_order_autoscalers_under_waves_as_the_simulator_does() -> None:
    cost, first = _correlations("autoscaling", 30, 1200)
    assert cost > 0.85
    assert first > 0.85
