"""The loop: known fronts, how trials end, storage, resuming, workers."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest

from dynosim.config import Scenario
from dynosim.errors import ConfigError, InfeasibleError, StudyError
from dynosim.search import pareto, workers
from dynosim.search.distributions import key
from dynosim.search.evaluate import evaluate as simulate_and_score
from dynosim.search.loop import run_study
from dynosim.search.study import Study, load_study
from dynosim.search.trial import Outcome, Status, Trial
from search.analytic import evaluate
from search.problems import serving, small


def _sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'study.db'}"


def _summary(study: Study) -> list[object]:
    return [(trial.number, key(trial.point), trial.outcome) for trial in study.trials]


class _Recorder:
    def __init__(self) -> None:
        self.events: list[object] = []

    def study_started(self, study: Study) -> None:
        self.events.append(("started", len(study.trials)))

    def trial_finished(self, study: Study, trial: Trial) -> None:
        assert study.trials[-1] is trial
        self.events.append(trial.number)

    def study_finished(self, study: Study) -> None:
        self.events.append("finished")


def test_finds_the_whole_front_of_an_enumerable_space() -> None:
    study = run_study(small(), trials=100, evaluate=evaluate)
    values = np.array([evaluate(trial.scenario).values for trial in study.trials])
    expected = values[pareto.nondominated(values)]
    front = np.array([trial.outcome.values for trial in study.frontier()])
    assert sorted(map(tuple, front)) == sorted(map(tuple, expected))
    assert (np.diff(front[:, 0]) >= 0.0).all()


def test_picks_are_leaders_and_mean_what_they_say() -> None:
    study = run_study(serving(), trials=30, evaluate=evaluate)
    picks, leaders = study.picks(), study.leaders()
    cost = [trial.outcome.values[0] for trial in leaders if trial.outcome.values]
    assert list(picks) == ["cheapest", "fastest", "balanced"]
    assert all(pick in leaders for pick in picks.values())
    assert picks["cheapest"].outcome.values[0] == min(cost)  # type: ignore[index]
    slow, fast = picks["cheapest"].outcome.values, picks["fastest"].outcome.values
    assert fast is not None
    assert slow is not None
    assert min(fast[1] / slow[1], fast[2] / slow[2]) <= 1.0
    assert study.baseline is not None
    assert study.baseline.point == serving().baseline_point()


def test_picks_are_named_by_what_they_are_best_at() -> None:
    """Without a cost, throughput is not called cheap, and its best is not the fastest."""
    metrics = "{metric: time_to_first_token, stat: p99}, {metric: output_token_throughput_per_gpu}, {metric: gpus}"
    space = serving(f"objectives=[{metrics}]")
    known = [(100.0, 10.0, 8.0), (200.0, 30.0, 4.0), (300.0, 20.0, 2.0)]
    study = run_study(space, trials=1, evaluate=lambda _: Outcome(Status.COMPLETE, known[0], {}))
    first = study.trials[0]
    study.trials = [replace(first, number=i, outcome=replace(first.outcome, values=v)) for i, v in enumerate(known)]
    numbers = {name: trial.number for name, trial in study.picks().items()}
    assert numbers.pop("balanced") in range(3)
    assert numbers == {"fastest": 0, "highest throughput": 1, "fewest GPUs": 2}


def test_reference_point_and_hypervolume_by_hand() -> None:
    space = serving("slo={time_to_first_token: {p99: 100.0}}")
    study = run_study(space, trials=1, evaluate=lambda _: Outcome(Status.COMPLETE, (4.0, 50.0, 8.0), {}))
    assert study.bounds == (None, 100.0, None)
    assert study.reference_point == (4.0, 100.0, 8.0)
    assert study.hypervolume(reference=(8.0, 100.0, 16.0)) == pytest.approx(0.125)


def test_listeners_hear_everything_in_order() -> None:
    recorder = _Recorder()
    run_study(serving(), trials=3, evaluate=evaluate, listeners=[recorder])
    assert recorder.events == [("started", 0), 0, 1, 2, "finished"]


def test_equal_configurations_are_evaluated_once() -> None:
    calls = []

    def counting(scenario: Scenario) -> Outcome:
        calls.append(scenario.content_hash())
        return evaluate(scenario)

    study = run_study(small(), trials=15, sampler="nsga2", evaluate=counting)
    assert len(study.trials) == 15
    assert len(calls) == len(set(calls)) == len({key(trial.point) for trial in study.trials})


def _moody(scenario: Scenario) -> Outcome:
    """End in every way there is, by the number of replicas."""
    replicas = scenario.deployment.pools()["mixed"].replicas
    if replicas == 1:
        return Outcome(Status.INFEASIBLE, reason="does not fit")
    return Outcome(Status.FAILED, reason="Traceback ...") if replicas == 2 else evaluate(scenario)


@pytest.mark.parametrize("sampler", ["bayes", "tpe"])
def test_infeasible_is_told_as_a_violated_constraint_and_a_crash_as_failed(tmp_path: Path, sampler: str) -> None:
    url = _sqlite(tmp_path)
    study = run_study(small(), storage=url, study_id="s", trials=15, sampler=sampler, evaluate=_moody)
    assert {trial.outcome.status for trial in study.trials} == set(Status) - {Status.LOST}
    stored = optuna.load_study(study_name="s", storage=url)
    for frozen in stored.trials:
        outcome = frozen.user_attrs.get("outcome")
        if outcome is None:
            assert "GPUs" in frozen.user_attrs["infeasible"]
        elif outcome["status"] == "failed":
            assert frozen.state is optuna.trial.TrialState.FAIL
        else:
            assert frozen.state is optuna.trial.TrialState.COMPLETE
            assert (max(frozen.constraints.values(), default=0.0) > 0.0) is (outcome["status"] == "infeasible")
    assert all(trial.outcome.status is Status.COMPLETE for trial in study.frontier())
    assert stored.metric_names == [objective.name for objective in study.objectives]


def test_maximised_objective_of_an_infeasible_trial_is_told_as_minus_infinity(tmp_path: Path) -> None:
    space = small("objectives=[{metric: output_token_throughput}]")
    run_study(space, storage=_sqlite(tmp_path), trials=1, evaluate=lambda _: Outcome(Status.INFEASIBLE, reason="no"))
    (frozen, *_) = optuna.load_study(study_name="study", storage=_sqlite(tmp_path)).trials
    assert frozen.values == [-math.inf]


def test_study_is_rebuilt_from_storage_alone(tmp_path: Path) -> None:
    url = _sqlite(tmp_path)
    study = run_study(serving(), storage=url, study_id="s", trials=12, evaluate=evaluate)
    loaded = load_study(serving(), storage=url, study_id="s")
    assert _summary(loaded) == _summary(study)
    assert [t.scenario for t in loaded.trials] == [t.scenario for t in study.trials]
    assert loaded.hypervolume() == study.hypervolume()


def test_another_space_seed_or_name_is_refused(tmp_path: Path) -> None:
    url = _sqlite(tmp_path)
    run_study(serving(), storage=url, study_id="s", trials=1, seed=1, evaluate=evaluate)
    with pytest.raises(StudyError, match="seed 1, not 2"):
        run_study(serving(), storage=url, study_id="s", trials=1, seed=2, evaluate=evaluate)
    with pytest.raises(StudyError, match="was started with space"):
        run_study(small(), storage=url, study_id="s", trials=1, seed=1, evaluate=evaluate)
    with pytest.raises(StudyError, match="no study t"):
        load_study(serving(), storage=url, study_id="t")
    with pytest.raises(ConfigError, match="storage: "):
        run_study(serving(), storage="sqlite:////no/such/folder/x.db", trials=1, evaluate=evaluate)


def test_more_trials_continue_as_if_asked_for_at_once(tmp_path: Path) -> None:
    """With one proposal at a time: of more, the first new ones know trials that were in flight otherwise."""
    whole = run_study(serving(), trials=18, seed=3, in_flight=1, evaluate=evaluate)
    for trials in (1, 12, 18):
        parts = run_study(serving(), storage=_sqlite(tmp_path), trials=trials, seed=3, in_flight=1, evaluate=evaluate)
    assert _summary(parts) == _summary(whole)


@pytest.mark.parametrize("count", [1, 8])
def test_killed_study_continues_exactly_on_any_number_of_workers(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_Process", _InThread)
    whole = run_study(serving(), trials=16, seed=3, evaluate=evaluate)
    child = Path(__file__).with_name("resume_child.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(child.parents[1]), *sys.path])}
    for where, die_at in (("evaluate", 4), ("tell", 16)):
        command = [sys.executable, str(child), _sqlite(tmp_path), "16", str(die_at), where]
        assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    options = {"trials": 16, "seed": 3, "workers": count, "evaluate": _at_random_speed}
    resumed = run_study(serving(), storage=_sqlite(tmp_path), **options)  # type: ignore[arg-type]
    assert _summary(resumed) == _summary(whole)


def _dies_at_4xtp2(scenario: Scenario) -> Outcome:
    if scenario.deployment.label() == "4xTP2":
        os.kill(os.getpid(), signal.SIGKILL)
    return evaluate(scenario)


def test_workers_give_reproducible_trials_and_survive_their_own_death() -> None:
    runs = [run_study(small(), trials=15, workers=2, evaluate=_dies_at_4xtp2) for _ in range(2)]
    assert _summary(runs[0]) == _summary(runs[1])
    (failed,) = [trial for trial in runs[0].trials if trial.outcome.status is Status.FAILED]
    assert failed.scenario.deployment.label() == "4xTP2"
    assert "died twice" in failed.outcome.reason
    assert len(runs[0].trials) == 15


class _InThread:
    """Stands for a worker process."""

    def __init__(self, do: Callable[[Scenario], Outcome], limit_s: float | None) -> None:
        self._do = do

    def __call__(self, task: Scenario) -> Outcome:
        return self._do(task)

    def close(self) -> None: ...


def _at_random_speed(scenario: Scenario) -> Outcome:
    time.sleep(random.SystemRandom().uniform(0.0, 0.02))
    return evaluate(scenario)


class _Interrupt(_Recorder):
    """Raises after some trials, as Ctrl-C does."""

    def __init__(self, trials: int) -> None:
        super().__init__()
        self._trials = trials

    def trial_finished(self, study: Study, trial: Trial) -> None:
        if len(study.trials) == self._trials:
            raise KeyboardInterrupt


@pytest.mark.parametrize("sampler", ["random", "exhaustive", "bayes", "tpe", "nsga2"])
def test_trials_depend_neither_on_the_number_of_workers_nor_on_their_speed(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_Process", _InThread)  # as parallel as processes, and there at once
    space = small() if sampler == "exhaustive" else serving()
    options = {"trials": 15, "seed": 3, "sampler": sampler, "evaluate": _at_random_speed}
    runs = [run_study(space, workers=count, **options) for count in (1, 2, 8)]  # type: ignore[arg-type]
    assert _summary(runs[0]) == _summary(runs[1]) == _summary(runs[2])


def test_trials_depend_on_the_proposals_in_flight_which_are_part_of_the_study(tmp_path: Path) -> None:
    url = _sqlite(tmp_path)
    few = run_study(serving(), storage=url, trials=12, in_flight=1, evaluate=evaluate)
    many = run_study(serving(), trials=12, in_flight=8, evaluate=evaluate)
    assert _summary(few)[:1] == _summary(many)[:1]
    assert _summary(few) != _summary(many)
    with pytest.raises(StudyError, match="started with in_flight 1, not 4"):
        run_study(serving(), storage=url, trials=13, evaluate=evaluate)


@pytest.mark.parametrize("sampler", ["random", "bayes"])
def test_an_interrupted_study_goes_on_with_what_was_in_flight(
    tmp_path: Path, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_Process", _InThread)

    def run(**options: object) -> Study:
        arguments = {"trials": 20, "seed": 3, "workers": 2, "sampler": sampler, "evaluate": _at_random_speed}
        return run_study(serving(), **(arguments | options))  # type: ignore[arg-type]

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(storage=_sqlite(tmp_path), listeners=[_Interrupt(8)])
    left = optuna.load_study(study_name="study", storage=_sqlite(tmp_path)).get_trials(
        states=(optuna.trial.TrialState.RUNNING,)
    )
    assert [trial.number for trial in left] == list(range(8, 8 + 4 - 1))
    assert _summary(run(storage=_sqlite(tmp_path))) == _summary(whole)


def test_no_valid_configuration_is_said() -> None:
    space = serving("budget.max_gpus=1", "baseline={}", "deployment.aggregated.replicas={range: {min: 2, max: 9}}")
    with pytest.raises(InfeasibleError, match="no valid configuration"):
        run_study(space, trials=2, evaluate=evaluate)


def test_evaluate_ends_in_one_of_three_ways() -> None:
    space = small()
    point = space.sample(np.random.default_rng(0))
    fine = simulate_and_score(space.scenario(point))
    assert fine.status is Status.COMPLETE
    assert fine.values is not None
    assert len(fine.values) == 3
    assert fine.metrics is not None
    assert fine.wall_s > 0.0
    tight = small("deployment.aggregated.gpu_memory_utilization=0.01").scenario(point)
    assert simulate_and_score(tight).status is Status.INFEASIBLE


def test_a_custom_objective_that_raises_or_is_nan_fails_the_trial(tmp_path: Path) -> None:
    file = tmp_path / "goals.py"
    file.write_text(
        "from dynosim.objectives import objective\n"
        "@objective(direction='minimize', unit='1')\n"
        "def bad(metrics):\n    return 1 / 0\n"
        "@objective(direction='minimize', unit='1')\n"
        "def missing(metrics):\n    return float('nan')\n"
    )
    for name, reason in (("bad", "ZeroDivisionError"), ("missing", "missing is NaN")):
        study = run_study(small(f"objectives=[{{python: '{file}:{name}'}}]"), trials=2)
        assert [trial.outcome.status for trial in study.trials] == [Status.FAILED] * 2
        assert reason in study.trials[0].outcome.reason
        assert study.frontier() == []
        assert study.picks() == {}
