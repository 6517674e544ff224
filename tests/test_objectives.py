"""Objectives by metric, by module and by file; their direction; and what a wrong reference says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dynosim.config import ObjectiveConfig
from dynosim.errors import ConfigError
from dynosim.metrics import METRICS, Metrics
from dynosim.objectives import Objective, load_python, objective, resolve

GOALS = """
from dynosim.objectives import objective

@objective(direction="maximize", unit="req/s", display="good")
def goodness(metrics):
    return metrics.value("goodput")

@objective(direction="minimize", unit="1")
def missing(metrics):
    return float("nan")

@objective(direction="minimize", unit="1")
def wrong(metrics):
    return metrics.value("duration") / 0

def plain(metrics):
    return 1.0
"""

METRICS_OF_A_RUN = Metrics({"goodput": 3.0, "duration": 10.0, "time_to_first_token": {"p99": 5.0}, "gpus": None})


@pytest.fixture
def goals(tmp_path: Path) -> Path:
    path = tmp_path / "my_goals.py"
    path.write_text(GOALS)
    return path


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_goes_its_better_way(name: str) -> None:
    info, stat = METRICS[name], "p99" if METRICS[name].distribution else None
    config = ObjectiveConfig(metric=name, stat=stat)
    if info.better is None:
        with pytest.raises(ConfigError, match=f"{name} has no better direction: set goal"):
            resolve(config)
    else:
        found = resolve(config)
        assert found.direction == {"lower": "minimize", "higher": "maximize"}[info.better]
        assert found.unit == info.unit
    for goal in ("minimize", "maximize"):
        assert resolve(ObjectiveConfig(metric=name, stat=stat, goal=goal)).direction == goal


@pytest.mark.parametrize(
    ("unit", "kind"),
    [
        *((METRICS[name].unit, "cost") for name in METRICS if "usd" in name),
        *((METRICS[name].unit, "latency") for name in METRICS if METRICS[name].distribution),
        *(
            (METRICS[name].unit, "throughput")
            for name in METRICS
            if name.endswith(("n_throughput", "t_throughput", "_per_gpu")) and not METRICS[name].distribution
        ),
        *((METRICS[name].unit, "share") for name in METRICS if name.endswith(("_fraction", "_share", "_rate"))),
        *((METRICS[name].unit, "count") for name in ("gpus", "replicas", "preemptions")),
        *((unit, "cost") for unit in ("EUR/h", "$", "USD/kWh")),
        *((unit, "energy") for unit in ("J/token", "Wh", "kWh/M tokens", "tok/s/W", "tok/J")),
        *((unit, "latency") for unit in ("s", "ms/token", "us")),
        *((unit, "throughput") for unit in ("req/min", "tokens/s")),
        *((unit, "share") for unit in ("%", "ratio")),
        *((unit, "other") for unit in ("1", "", "GPUs * ms", "stars")),
    ],
)
def test_the_unit_says_what_an_objective_measures(unit: str, kind: str) -> None:
    assert Objective("x", "x", unit, "minimize", lambda _: 1.0).kind == kind


def test_a_metric_is_named_read_and_nan_where_it_is_missing() -> None:
    found = resolve(ObjectiveConfig(metric="time_to_first_token", stat="p99"))
    assert (found.name, found.display, found.unit) == ("time_to_first_token.p99", "TTFT p99", "ms")
    assert found(METRICS_OF_A_RUN) == 5.0
    scalar = resolve(ObjectiveConfig(metric="gpus"))
    assert scalar.name == "gpus"
    assert math.isnan(scalar(METRICS_OF_A_RUN))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"metric": "goodputt"}, "objectives: 'goodputt': no such metric: did you mean 'goodput'"),
        (
            {"metric": "time_to_first_token"},
            "objectives: time_to_first_token needs a statistic, such as time_to_first_token.p99; allowed: avg",
        ),
        ({"metric": "goodput", "stat": "p99"}, "objectives: 'p99': goodput is one number"),
    ],
)
def test_a_wrong_metric_is_one_line(config: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(ObjectiveConfig.model_validate(config))


def test_an_objective_by_file(goals: Path) -> None:
    found = resolve(ObjectiveConfig(python=f"{goals}:goodness"))
    assert (found.name, found.display, found.unit, found.direction) == ("goodness", "good", "req/s", "maximize")
    assert found(METRICS_OF_A_RUN) == 3.0


def test_an_objective_by_module(goals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(goals.parent)
    assert resolve(ObjectiveConfig(python="my_goals:goodness"))(METRICS_OF_A_RUN) == 3.0


def test_nan_and_exceptions_reach_the_caller_who_counts_the_trial_as_failed(goals: Path) -> None:
    """``Objective.function`` documents it; tests/search/test_study.py has the failed trials."""
    assert math.isnan(load_python(f"{goals}:missing")(METRICS_OF_A_RUN))
    with pytest.raises(ZeroDivisionError):
        load_python(f"{goals}:wrong")(METRICS_OF_A_RUN)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("goodness", r"objectives.python: 'goodness': allowed: file.py:Name or package.module:Name"),
        (":goodness", "allowed: file.py:Name"),
        (".relative:goodness", "allowed: file.py:Name"),
        ("no.such.module:goodness", "No module named 'no'"),
        ("json:goodness", "json has no 'goodness'"),
        ("json:dumps", "allowed: a function under @dynosim.objective"),
        ("{folder}/none.py:goodness", "none.py cannot be read: No such file"),
        ("{folder}/my_goals.py:goodnes", "has no 'goodnes': did you mean 'goodness'"),
        ("{folder}/my_goals.py:", "allowed: file.py:Name"),
        ("{folder}/my_goals.py:plain", "allowed: a function under @dynosim.objective"),
        ("{folder}/broken.py:goodness", r"broken.py, line 1"),
    ],
)
def test_a_bad_reference_is_one_line(reference: str, message: str, goals: Path) -> None:
    (goals.parent / "broken.py").write_text("def goodness(:\n")
    with pytest.raises(ConfigError, match=message):
        load_python(reference.format(folder=goals.parent))


def test_the_decorator_names_it_after_the_function_and_refuses_other_directions() -> None:
    @objective(direction="minimize", unit="ms")
    def steadiness(metrics: Metrics) -> float:
        return 1

    assert isinstance(steadiness, Objective)
    assert (steadiness.name, steadiness.display) == ("steadiness", "steadiness")
    assert isinstance(steadiness(METRICS_OF_A_RUN), float)
    with pytest.raises(ConfigError, match="'up': direction is 'minimize' or 'maximize'"):
        objective(direction="up", unit="ms")  # type: ignore[arg-type]
