"""Runs on disk: what is left behind, what goes on, what starts anew; and that predictions repeat themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock

import dynosim
from dynosim.cli import NOTHING_FEASIBLE, OK, main
from dynosim.errors import ConfigError, InfeasibleError, StudyError
from dynosim.run import study
from dynosim.run.directory import LOCK_FILE, find_run, runs, without_password
from dynosim.run.predict import write_requests
from dynosim.search.study import Study
from dynosim.search.trial import Status, Trial
from dynosim.search.workers import DIED, LATE

FAST = (
    "workload.source.requests=60",
    "workload.warmup_requests=0",
    "optimizer.sampler=random",
    "optimizer.workers=1",
)


@pytest.fixture(autouse=True)
def _in_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DYNOSIM_TRACKING", "off")


def _optimize(trials: int, overrides: Sequence[str] = FAST, **options: object) -> Study:
    return dynosim.optimize("tiny", trials=trials, overrides=overrides, **options)  # type: ignore[arg-type]


class _StopAfter:
    """Listener that stands for Ctrl-C after *trials* trials."""

    def __init__(self, trials: int) -> None:
        self._trials = trials

    def study_started(self, study: Study) -> None: ...

    def study_finished(self, study: Study) -> None: ...

    def trial_finished(self, study: Study, trial: Trial) -> None:
        if len(study.trials) == self._trials:
            raise KeyboardInterrupt


def _numbers(study: Study) -> list[int]:
    return [trial.number for trial in study.trials]


def test_a_run_leaves_files_from_which_it_can_be_read_repeated_and_predicted() -> None:
    study = _optimize(6)
    run_dir = Path("runs") / study.id
    expected = {"config.resolved.yaml", "study.db", "trials.parquet", "trials.csv", "frontier.csv", "frontier.json"}
    assert expected | {"report.html", "environment.json"} <= {path.name for path in run_dir.iterdir()}

    loaded = dynosim.load_study("last")
    assert [t.outcome.values for t in loaded.trials] == [t.outcome.values for t in study.trials]
    again = dynosim.optimize(run_dir / "config.resolved.yaml", tracking="off")
    assert [t.outcome.values for t in again.trials] == [t.outcome.values for t in study.trials]
    for place, trial in enumerate(study.frontier(), start=1):
        prediction = dynosim.predict(run_dir / f"recommendations/{place:04d}.yaml")
        assert json.dumps(prediction.metrics.to_dict()) == json.dumps(trial.outcome.metrics)


def test_an_interrupted_run_has_a_report_and_the_same_call_goes_on() -> None:
    with pytest.raises(KeyboardInterrupt):
        _optimize(6, listeners=[_StopAfter(3)])
    (state,) = runs()
    assert state.state == "interrupted"
    assert len((Path("runs") / state.id / "trials.csv").read_text().splitlines()) == 1 + 3

    study = _optimize(6)
    assert study.id == state.id
    assert _numbers(study) == sorted(set(_numbers(study)))
    assert len(study.trials) == 6
    assert [state.state for state in runs()] == ["finished"]


def test_a_killed_run_goes_on_without_losing_or_repeating_a_trial() -> None:
    options = [argument for override in FAST for argument in ("--set", override)]
    command = [sys.executable, "-m", "dynosim", "optimize", "tiny", "--trials", "400", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while " trials, " not in process.stderr.readline():
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    (state,) = runs()
    assert state.state == "running"
    before = dynosim.load_study(state.id)
    assert before.trials

    with pytest.raises(KeyboardInterrupt):
        _optimize(400, listeners=[_StopAfter(len(before.trials) + 3)])
    after = dynosim.load_study(state.id)
    assert len(runs()) == 1
    assert len(set(_numbers(after))) == len(before.trials) + 3
    assert [t.outcome.values for t in after.trials[: len(before.trials)]] == [t.outcome.values for t in before.trials]


def test_only_an_identical_run_that_wants_more_trials_goes_on() -> None:
    first = _optimize(2)
    assert _optimize(4).id == first.id
    assert _optimize(4).id != first.id, "nothing is left to do: a new run"
    assert _optimize(6, seed=1).id != first.id
    assert _optimize(6, (*FAST, "seed=1")).id != first.id, "other traffic"
    assert _optimize(6, (*FAST, "slo.inter_token_latency.p99=80")).id != first.id


def test_a_run_that_another_process_holds_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        _optimize(4, listeners=[_StopAfter(1)])
    (state,) = runs()
    with FileLock(Path("runs") / state.id / LOCK_FILE):
        assert _optimize(2).id != state.id
        with pytest.raises(StudyError, match="another process"):
            _optimize(4, run_id=state.id, wait_s=0.0)
    assert len(_optimize(4, run_id=state.id).trials) == 4


def test_a_run_that_cannot_start_leaves_nothing_and_spoils_nothing() -> None:
    with pytest.raises(ConfigError, match="baies"):
        _optimize(2, (*FAST, "optimizer.sampler=baies"))
    assert runs() == []
    study = _optimize(2)
    with pytest.raises(StudyError):
        _optimize(2, seed=8, run_id=study.id)
    assert len(dynosim.load_study(study.id).trials) == 2


def test_last_in_a_warm_start_is_the_newest_run_before_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    warm = (*FAST, "workload.load.rate_rps=9", "optimizer.warm_start=[last]")
    with pytest.raises(ConfigError, match="no earlier run"):
        _optimize(2, warm)
    first, load, asked = _optimize(2), study.load_study, []
    monkeypatch.setattr(study, "load_study", lambda name, runs_dir: asked.append(name) or load(name, runs_dir))
    with pytest.raises(KeyboardInterrupt):
        _optimize(4, warm, listeners=[_StopAfter(1)])
    _optimize(4, warm)
    assert asked == [first.id, first.id], "a run that goes on starts from the same one"


def test_objectives_are_metrics_or_functions_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tail.py"
    file.write_text(
        "import dynosim.objectives as objectives\n"
        "@objectives.objective(direction='minimize', unit='ms')\n"
        "def tail(metrics):\n"
        "    return metrics.value('request_latency', 'p99')\n"
    )
    study = _optimize(2, objectives=["usd_per_hour", "request_latency.p99", f"{file}:tail"])
    assert [objective.name for objective in study.objectives] == ["usd_per_hour", "request_latency.p99", "tail"]
    for trial in study.trials:
        assert trial.outcome.values is not None
        assert trial.outcome.values[1] == trial.outcome.values[2]

    from dynosim.objectives import load_python

    as_object = _optimize(1, objectives=["usd_per_hour", load_python(f"{file}:tail")])
    assert [objective.name for objective in as_object.objectives] == ["usd_per_hour", "tail"]


PARTLY = """
import math
from dynosim import objective

@objective(direction="minimize", unit="1")
def partly(metrics):
    gpus = round(metrics.value("gpus"))
    if gpus == 1:
        raise ValueError("one GPU has no spare")
    return {2: math.nan, 3: math.inf}.get(gpus, 1 / gpus)

@objective(direction="minimize", unit="1")
def never(metrics):
    return metrics.value("no such metric")
"""


def test_an_objective_that_fails_somewhere_fails_those_trials_and_the_search_goes_on(tmp_path: Path) -> None:
    (tmp_path / "goals.py").write_text(PARTLY)
    study = _optimize(
        24, (*FAST, "slo={}", "optimizer.sampler=bayes"), objectives=["usd_per_hour", f"{tmp_path}/goals.py:partly"]
    )
    assert len(study.trials) == 24
    reasons = {
        1: "ValueError: one GPU has no spare",
        2: "ValueError: objective partly is NaN",
        3: "ValueError: objective partly is inf",
    }
    for trial in study.trials:
        reason = reasons.get(trial.scenario.deployment.num_gpus())
        assert trial.outcome.status is (Status.FAILED if reason else Status.COMPLETE)
        assert trial.outcome.headline == (reason or "")
        assert trial.outcome.reason.startswith("Traceback") is bool(reason)
    assert {trial.scenario.deployment.num_gpus() for trial in study.trials} == {1, 2, 3, 4}
    assert {trial.scenario.deployment.num_gpus() for trial in study.frontier()} == {4}


ENDS = """
import os, signal, time
from dynosim import objective

@objective(direction="minimize", unit="1")
def ends(metrics):
    gpus = round(metrics.value("gpus"))
    if gpus == 1:
        raise SystemExit("not on one GPU")
    if gpus == 2:
        os._exit(0)
    if gpus == 3:
        while True:
            pass
    return 1 / gpus
"""


def test_an_objective_that_exits_or_hangs_fails_those_trials_and_the_search_goes_on(tmp_path: Path) -> None:
    (tmp_path / "goals.py").write_text(ENDS)
    points = (
        "deployment={model: llama-3.1-8b, gpu: h100_sxm, timing: {type: roofline},"
        " aggregated: {replicas: {choices: [1, 2, 3, 4]}}}"
    )
    fixed = (*FAST, points, "slo={}", "baseline={}", "optimizer.sampler=exhaustive", "optimizer.trial_timeout_s=15")
    study = _optimize(4, fixed, objectives=["usd_per_hour", f"{tmp_path}/goals.py:ends"])
    ends = {trial.scenario.deployment.num_gpus(): trial.outcome.headline for trial in study.trials}
    assert ends == {1: "SystemExit: not on one GPU", 2: DIED, 3: LATE.format(15), 4: ""}
    assert [trial.outcome.values for trial in study.frontier()] == [study.trials[3].outcome.values]


def test_a_study_and_its_trials_introduce_themselves_in_one_line() -> None:
    study = _optimize(2)
    assert repr(study) == str(study)
    assert repr(study).startswith(f"<Study {study.id}: 2 trials, ")
    assert repr(study.trials[0]).startswith("<Trial 0: 2xTP1, ")


def test_pages_of_mlflow_are_named_for_runs_that_were_tracked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DYNOSIM_TRACKING")
    study = _optimize(2, tracking="off")
    assert main(["show", study.id]) == OK
    assert "track ui" not in capsys.readouterr().out


def test_a_search_in_which_everything_fails_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "goals.py").write_text(PARTLY)
    options = [argument for override in FAST for argument in ("--set", override)]
    command = ["optimize", "tiny", "--trials", "3", *options, "--objective", f"{tmp_path}/goals.py:never"]
    assert main(command) == NOTHING_FEASIBLE
    said = " ".join(capsys.readouterr().out.split())
    assert "3 of 3 trials failed, 3 with KeyError: 'no such metric'" in said
    assert "relax" not in said
    assert said.count("trials failed") == 1
    assert "frontier none: no trial is feasible" in said


def test_results_of_earlier_runs_are_used_unless_switched_off() -> None:
    first, second = _optimize(8), _optimize(8, objectives=["gpus", "request_latency.p99"])
    assert not any(trial.outcome.cached for trial in first.trials)
    assert second.id != first.id
    assert [trial.outcome.cached for trial in second.trials] == [True] * 8
    assert [t.outcome.metrics for t in second.trials] == [t.outcome.metrics for t in first.trials]
    off = _optimize(8, (*FAST, "optimizer.reuse_results=false"), objectives=["gpus"])
    assert not any(trial.outcome.cached for trial in off.trials)


def test_lost_runs_end_early_but_never_the_baseline_and_never_a_good_one() -> None:
    hard = (*FAST, "slo.time_to_first_token.p99=300")
    stopped, whole = _optimize(24, hard), _optimize(24, (*hard, "optimizer.stop_lost_runs=false"))
    lost = [trial for trial in stopped.trials if trial.outcome.status is Status.LOST]
    assert lost
    assert stopped.trials[0].point == stopped.space.baseline_point()
    assert stopped.trials[0].outcome.status is Status.COMPLETE
    for trial, full in zip(stopped.trials, whole.trials, strict=True):
        assert trial.outcome.feasible is full.outcome.feasible
        for name, bound in trial.outcome.constraints.items():
            assert (
                0.0 < bound <= full.outcome.constraints[name]
                if trial in lost
                else bound == full.outcome.constraints[name]
            )


def test_a_trace_replaces_the_source(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 100 * i, "input_length": 600, "output_length": 7, "hash_ids": [i, i + 1]} for i in range(9)]
    trace.write_text("\n".join(map(json.dumps, rows)))
    prediction = dynosim.predict("tiny", trace=trace, overrides=FAST[1:])
    assert len(prediction.result.requests) == 9
    assert set(prediction.result.requests["output_tokens"]) == {7}


def test_seeds_are_averaged_and_a_trace_has_none(tmp_path: Path) -> None:
    each = [dynosim.predict("tiny", overrides=[*FAST, f"seed={seed}"]).metrics.flat() for seed in (0, 1)]
    both = dynosim.predict("tiny", overrides=FAST, seeds=2)
    assert both.seeds == 2
    assert both.evidence == "extrapolated", "nothing was measured of the roofline"
    for name, value in both.metrics.flat().items():
        assert value == pytest.approx((each[0][name] + each[1][name]) / 2.0), name
    assert both.metrics.interval("request_latency", "p99") is not None
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 600, "output_length": 7, "hash_ids": [1, 2]}')
    with pytest.raises(ConfigError, match="the same with every seed"):
        dynosim.predict("tiny", trace=trace, overrides=[*FAST[1:], "workload.load={type: trace_timestamps}"], seeds=2)


def test_requests_are_written_one_row_each(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    result = dynosim.predict("tiny", overrides=FAST).result
    write_requests(result, tmp_path / "requests.parquet")
    table = pq.read_table(tmp_path / "requests.parquet")
    assert table.column_names == list(result.requests.dtype.names or ())
    assert table["last_token_s"].to_pylist() == result.requests["last_token_s"].tolist()


def test_a_deployment_that_cannot_run_is_infeasible() -> None:
    model = "deployment.model=llama-3.1-70b"
    with pytest.raises(InfeasibleError):
        dynosim.predict("tiny", overrides=[*FAST, model])


def test_runs_are_found_by_id_directory_and_last() -> None:
    with pytest.raises(ConfigError, match="there is no run"):
        find_run("last")
    study = _optimize(1)
    directory = Path("runs") / study.id
    assert find_run("last") == find_run(study.id) == find_run(str(directory)) == directory
    with pytest.raises(ConfigError, match=f"did you mean '{study.id}'"):
        find_run(study.id[:-1])


def test_a_run_that_was_moved_and_renamed_is_shown_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        _optimize(4, listeners=[_StopAfter(2)])
    (state,) = runs()
    moved = (Path("runs") / state.id).rename(Path("kept").absolute())
    for words in (("--format", "json"), ("--format", "csv"), ("--frontier",), ("--trial", "0"), ()):
        assert main(["show", "kept", *words]) == OK
        said = capsys.readouterr().out
        if words == ("--format", "json"):
            assert json.loads(said)["run_dir"] == "kept"
    assert find_run("last", ".") == find_run(state.id, ".") == Path("kept")
    assert _optimize(4, runs_dir=moved.parent).id == state.id
    os.chdir(moved)
    assert find_run(".") == find_run("recommendations/..") == moved
    assert len(dynosim.load_study(".").trials) == 4


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("postgresql://me:s3cret@db:5432/studies", "postgresql://me@db:5432/studies"),
        ("postgresql+psycopg://me:p%40ss@[::1]/s?sslmode=require", "postgresql+psycopg://me@[::1]/s?sslmode=require"),
        ("sqlite:////tmp/study.db", "sqlite:////tmp/study.db"),
        ("", ""),
    ],
)
def test_a_password_is_not_stored(given: str, stored: str) -> None:
    assert without_password(given) == stored
