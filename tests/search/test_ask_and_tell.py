"""Trials that others evaluate: a mock cluster, what an answer may say, and functions in place of the simulator."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynosim.config import Scenario
from dynosim.errors import ConfigError, InfeasibleError, StudyError
from dynosim.metrics import Metrics
from dynosim.search.answer import Answer, answered, name_of
from dynosim.search.evaluate import evaluate as simulate_and_score
from dynosim.search.loop import ASKED, OpenStudy, run_study
from dynosim.search.samplers import BayesSampler
from dynosim.search.study import load_study
from dynosim.search.trial import Outcome, Status
from search import cluster
from search.analytic import evaluate
from search.problems import serving, small

SLOS = {"time_to_first_token.p99": -0.5, "inter_token_latency.p99": 0.25}


def _sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'study.db'}"


def _outcomes(study: Any) -> dict[int, Outcome]:
    return {trial.number: trial.outcome for trial in study.trials}


def test_a_killed_cluster_goes_on_without_losing_or_doubling_a_trial(tmp_path: Path) -> None:
    url = _sqlite(tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-m", "search.cluster", url]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    before = _outcomes(load_study(serving(), storage=url, study_id="study"))
    assert len(before) >= 10
    with OpenStudy(serving(), storage=url, trials=cluster.TRIALS, seed=3) as study:
        waiting = [proposal.number for proposal in study.pending]
        assert not before.keys() & set(waiting)
        first = study.ask()
        assert first is not None
        assert first.number == min(waiting), "offered again, under its number"
        study.tell(first, failed="node 3 ran out of memory")
        cluster.run_cluster(study)
        assert study.ask() is None
    numbers = [trial.number for trial in study.trials]
    assert len(set(numbers)) == len(numbers) == cluster.TRIALS
    assert {*before, *waiting} <= set(numbers)
    after = _outcomes(load_study(serving(), storage=url, study_id="study"))
    assert after == _outcomes(study)
    assert {number: after[number] for number in before} == before
    failed = {number for number, outcome in after.items() if outcome.status is Status.FAILED}
    assert failed == {number for number in numbers if number % 5 == cluster.FAILS} | {first.number}
    assert all(outcome.noise == (0.1, None, 2.0) for number, outcome in after.items() if number not in failed)


def test_a_trial_that_is_never_answered_stays_pending(tmp_path: Path) -> None:
    with OpenStudy(small(), storage=_sqlite(tmp_path), trials=5) as study:
        asked = [study.ask() for _ in range(6)]
        assert asked.pop() is None, "the budget is spent on what is pending"
        for proposal in asked[:0:-1]:
            assert proposal is not None
            study.tell(proposal.number, infeasible="does not fit")
    with OpenStudy(small(), storage=_sqlite(tmp_path), trials=6) as again:
        assert [proposal.number for proposal in again.pending] == [0]
        new = again.ask(new=True)
        assert new is not None
        assert new.number == 5
        assert again.ask() == asked[0]
        assert again.ask() is None


def test_trials_follow_from_the_order_of_asks_and_tells(tmp_path: Path) -> None:
    """So the loop is an ask and tell like any other, interrupted or not."""
    whole = run_study(serving(), trials=14, seed=3, in_flight=3, evaluate=evaluate)
    url, running = _sqlite(tmp_path), []
    for _ in range(4):  # sessions
        with OpenStudy(serving(), storage=url, trials=14, seed=3, in_flight=3) as study:
            running = []
            for _ in range(4):
                while len(running) < 3 and (proposal := study.ask()) is not None:
                    running.append(proposal)
                if running:
                    study.end(running[0].number, evaluate(running.pop(0).scenario))
    assert [(t.number, t.point, t.outcome) for t in study.trials] == [
        (t.number, t.point, t.outcome) for t in whole.trials
    ]


def test_unknown_told_and_closed_trials_are_refused_in_one_line() -> None:
    study = OpenStudy(serving(), trials=5)
    first, second = study.ask(), study.ask()
    assert first is not None
    assert second is not None
    study.tell(first, failed="x")
    with pytest.raises(ConfigError, match=r"^trial 0 of study was told already; pending: 1$"):
        study.tell(first, failed="x")
    with pytest.raises(ConfigError, match=r"^trial 7 of study was never asked for; pending: 1$"):
        study.tell(7, failed="x")
    study.close()
    study.close()
    for late in (study.ask, lambda: study.tell(second, failed="x")):
        with pytest.raises(StudyError, match="study study is closed"):
            late()


def test_who_evaluates_is_part_of_the_study(tmp_path: Path) -> None:
    run_study(small(), storage=_sqlite(tmp_path), trials=1, evaluate=evaluate)
    with pytest.raises(StudyError, match=f"started with evaluator simulation, not {ASKED}"):
        OpenStudy(small(), storage=_sqlite(tmp_path))
    assert load_study(small(), storage=_sqlite(tmp_path), study_id="study").origin == "simulated"


def _scenario() -> Scenario:
    return serving().scenario(serving().baseline_point() or {})


def test_measured_metrics_give_the_objectives_and_slos_of_a_simulation() -> None:
    scenario, simulated = _scenario(), simulate_and_score(_scenario())
    metrics = {name: value for name, value in (simulated.metrics or {}).items() if "usd" not in name}
    told = Answer(metrics=metrics).outcome(scenario)
    assert told.values == pytest.approx(simulated.values, rel=1e-6)
    assert told.constraints == pytest.approx(simulated.constraints)
    flat = {name: value for name, value in Metrics(metrics).flat().items() if name != "gpus"}
    assert Answer(metrics=flat).outcome(scenario).values == pytest.approx(simulated.values, rel=1e-6)
    short = {"throughput": metrics["output_token_throughput"], "ttft": {"p99": 80.0}, "itl.p99": 7.0, "completed": 3}
    few = Answer(metrics={**short, "failed": 1, "accuracy": 0.8}).outcome(scenario)
    assert few.values == (pytest.approx(simulated.values[0], rel=1e-6), 80.0, 7.0)  # type: ignore[index]
    assert few.constraints["served_request_fraction.min"] > 0.2
    assert few.known_metrics().value("accuracy") == 0.8
    assert few.known_metrics().value("request_latency", "p50") is None


def test_values_are_metrics_too_and_told_constraints_win() -> None:
    told = Answer([2.0, 6000.0, 30.0], constraints={"inter_token_latency.p99": 0.25}, noise=[0.1, None, 1.0])
    outcome = told.outcome(_scenario())
    assert outcome.known_metrics().value("time_to_first_token", "p99") == 6000.0
    assert outcome.constraints["served_request_fraction.min"] < 0.0, "all are served unless it says otherwise"
    assert {name: x for name, x in outcome.constraints.items() if "served" not in name} == SLOS
    assert outcome.noise == (0.1, None, 1.0)
    assert not outcome.feasible


WRONG: list[tuple[Mapping[str, Any], str]] = [
    ({}, "allowed: values or metrics, or failed"),
    ({"values": [1, 2, 3], "failed": "x"}, "allowed: values or metrics, or failed"),
    ({"values": [1, 2]}, "^values: 2 numbers: allowed: 3, one for each of usd_per_million_output_tokens, "),
    ({"values": "123"}, "^values: '123': allowed: a list of numbers"),
    ({"values": [1, 2, math.nan]}, "^values: nan: allowed: a finite number"),
    ({"values": [1, 2, True]}, "^values: True: allowed: a finite number"),
    ({"values": [1, 2, 3], "noise": [1, 2]}, "^noise: 2 numbers"),
    ({"values": [1, 2, 3], "noise": [1, 2, -1]}, "allowed: standard deviations, at least 0"),
    ({"values": [1, 2, 3], "constraints": {"ttft.p99": 1}}, "no such SLO: .*allowed: served_request_fraction.min, "),
    ({"values": [1, 2, 3], "constraints": [1]}, "^constraints: "),
    ({"metrics": {"ttft": {"p99": "80 ms"}}}, "^metrics.ttft: '80 ms': allowed: a finite number"),
    ({"metrics": {"ttft.p99": 80}}, "^objective usd_per_million_output_tokens does not follow from the metrics"),
    ({"valuez": [1]}, "'valuez': did you mean 'values'"),
]


@pytest.mark.parametrize(("said", "line"), WRONG)
def test_a_wrong_answer_is_one_line_and_nothing_is_stored(said: Mapping[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as error:
        Answer.of(said).outcome(_scenario())
    assert "\n" not in str(error.value)


def test_an_slo_that_nothing_is_known_of_is_asked_for() -> None:
    scenario = serving("slo={request_latency: {p99: 9000}}").scenario(serving().baseline_point() or {})
    with pytest.raises(ConfigError, match=r"request_latency\.p99 has an SLO: give it in metrics, or its violation"):
        Answer([1.0, 2.0, 3.0]).outcome(scenario)


def test_several_scenarios_are_told_case_by_case() -> None:
    objectives = "[{metric: request_latency, stat: p99, over: worst}, {metric: output_token_throughput}]"
    slo = "slo={request_latency: {p99: 100}}"
    space = small("scenarios={busy: {load: 2.0}}", f"objectives={objectives}", slo)
    scenario = space.scenario(space.sample(np.random.default_rng(0)))
    told = {
        "unvaried": {"request_latency.p99": 80.0, "throughput": 10.0},
        "busy": {"request_latency.p99": 120.0, "throughput": 6.0},
    }
    outcome = Answer(cases=told, noise=[1.0, None]).outcome(scenario)
    assert outcome.values == (120.0, 8.0)
    assert outcome.constraints["request_latency.p99"] == pytest.approx(0.2)
    assert outcome.cases.keys() == told.keys()
    assert outcome.noise == (1.0, None)
    with pytest.raises(ConfigError, match=r"^cases: busy: allowed: each of unvaried, busy$"):
        Answer(cases={"busy": told["busy"]}).outcome(scenario)
    with pytest.raises(ConfigError, match=r"^metrics: give cases, with the metrics of each of unvaried, busy$"):
        Answer(metrics=told["busy"]).outcome(scenario)
    with pytest.raises(ConfigError, match=r"request_latency\.p99 has an SLO"):
        Answer([1.0, 2.0]).outcome(scenario)
    with pytest.raises(ConfigError, match="there is one: give metrics"):
        Answer(cases=told).outcome(_scenario())


def test_samplers_see_the_noise_that_was_told(tmp_path: Path) -> None:
    with OpenStudy(serving(), storage=_sqlite(tmp_path), trials=4) as study:
        for noise in (None, [0.5, None, 2.0]):
            proposal = study.ask()
            assert proposal is not None
            study.tell(proposal, [1.0, 2.0, 3.0], noise=noise)
    for each in (study, OpenStudy(serving(), storage=_sqlite(tmp_path), trials=4)):
        history = BayesSampler(serving()).read(each._store.study, serving())
        assert history.noise is not None
        np.testing.assert_array_equal(history.noise, [[np.nan] * 3, [0.5, np.nan, 2.0]])
    assert BayesSampler(serving()).read(OpenStudy(serving())._store.study, serving()).noise is None


def test_trials_that_differ_by_less_than_their_noise_are_one_group() -> None:
    groups = []
    for noise in (None, [0.2, 0.0, 0.0]):
        with OpenStudy(serving(), trials=4) as study:
            for values in ([1.0, 500.0, 30.0], [1.1, 400.0, 30.0]):
                proposal = study.ask()
                assert proposal is not None
                study.tell(proposal, values, noise=noise)
        groups.append([len(group) for group in study.groups()])
    assert groups == [[1, 1], [2]]
    assert study.trials[0].interval("usd_per_million_output_tokens", 1.0) == pytest.approx((0.608, 1.392), abs=1e-3)


def _measure(scenario: Scenario) -> Any:
    """Answer in every way that a function may, by the number of replicas."""
    replicas = scenario.deployment.pools()["mixed"].replicas
    match replicas:
        case 1:
            os._exit(1)
        case 2:
            raise InfeasibleError("not enough nodes")
        case 3:
            return {"values": [1.0, 2.0]}
        case 4:
            return simulate_and_score(scenario)
        case 5:
            return Metrics((simulate_and_score(scenario).metrics) or {})
    return {"values": [1.0, 2.0, 3.0], "noise": [0.1, 0.2, 0.3]}


def test_a_function_takes_the_place_of_the_simulator_and_fails_alone() -> None:
    space = small("deployment.aggregated.tensor_parallel_size=1")
    study = run_study(space, trials=6, evaluate=partial(answered, _measure), evaluator="f", sampler="exhaustive")
    found = {t.scenario.deployment.pools()["mixed"].replicas: t.outcome for t in study.trials}
    assert [found[n].status.value for n in range(1, 7)] == ["failed", "infeasible", "failed", *["complete"] * 3]
    assert "died twice" in found[1].reason
    assert "2 numbers: allowed: 3" in found[3].headline
    assert found[4].values is not None
    assert found[6].noise == (0.1, 0.2, 0.3)
    assert found[5].wall_s > 0.0


def test_functions_go_by_their_file_and_name(tmp_path: Path) -> None:
    name, code = name_of(_measure)
    assert name == "test_ask_and_tell.py:_measure"
    assert code
    (tmp_path / "bench.py").write_text("def measure(scenario):\n    return {'values': [1, 2, 3]}\nx = 3\n")
    reference = f"{tmp_path / 'bench.py'}:measure"
    assert name_of(reference)[0] == "bench.py:measure"
    assert answered(reference, _scenario()).values == (1.0, 2.0, 3.0)
    with pytest.raises(ConfigError, match=r"evaluate: .*allowed: a function of a Scenario"):
        name_of(f"{tmp_path / 'bench.py'}:x")
    study = OpenStudy(small())  # which holds a lock
    with pytest.raises(ConfigError, match=r"evaluate: .*cannot be sent to worker processes"):
        name_of(lambda scenario: study)
