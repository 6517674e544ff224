"""Every trial exactly once in MLflow, whatever happens to MLflow or to us."""

import base64
import json
import logging
import re
import shutil
import subprocess
import sys
import time
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from dynosim.config.load import load_scenario
from dynosim.errors import StudyError
from dynosim.report import write
from dynosim.search.study import Study
from dynosim.search.trial import Outcome, Status
from dynosim.tracking import MLflowTracker, sync, tracking_uri
from dynosim.tracking.ui import open_ui
from dynosim.tracking.views import CHARTS, VIEW_TAG
from report.fake_study import make_study, make_trial

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow's own

NOBODY = "http://127.0.0.1:9"
"""The discard port: nothing listens there."""


def _uri(runs_dir: Path) -> str:
    return f"sqlite:///{runs_dir / 'mlflow.db'}"


def _runs(runs_dir: Path) -> dict[str, Run]:
    """All runs of the fake space by their trial tag; fails on a duplicate."""
    client = MlflowClient(_uri(runs_dir))
    experiment = client.get_experiment_by_name("fake70b")
    assert experiment is not None
    runs = list(client.search_runs([experiment.experiment_id], max_results=1000))
    counts = Counter(run.data.tags["dynosim.trial"] for run in runs)
    assert set(counts.values()) == {1}
    return {run.data.tags["dynosim.trial"]: run for run in runs}


def _assert_metrics(run: Run, outcome: Outcome) -> None:
    known = outcome.flat_metrics()
    assert {name: run.data.metrics[name] for name in known} == pytest.approx(known, rel=1e-5)


def _track(study: Study, run_dir: Path, uri: str, **options: Any) -> MLflowTracker:
    tracker = MLflowTracker(uri, run_dir, **options)
    told = make_study(0)
    tracker.study_started(told)
    for trial in study.trials:
        told.trials.append(trial)
        tracker.trial_finished(told, trial)
    write(told, run_dir)
    tracker.study_finished(told)
    return tracker


@pytest.fixture(scope="module")
def tracked(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, dict[str, Run], Path]:
    study, runs_dir = make_study(40), tmp_path_factory.mktemp("tracked")
    shutil.copy(empty_store, runs_dir)
    assert _track(study, runs_dir / "run", _uri(runs_dir)).problem is None
    return study, _runs(runs_dir), runs_dir


def test_a_study_becomes_a_parent_and_a_child_per_trial(tracked: tuple[Study, dict[str, Run], Path]) -> None:
    study, runs, runs_dir = tracked
    parent = runs["parent"]
    assert set(runs) == {"parent", *(str(trial.number) for trial in study.trials)}
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["feasible"] == len(study.feasible)
    assert "| trial | deployment | cost (USD/M output tokens) |" in parent.data.tags["mlflow.note.content"]
    front = {str(trial.number) for trial in study.frontier()}
    for trial in study.trials:
        run = runs[str(trial.number)]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.params == {path: str(value) for path, value in trial.point.items()}
        assert run.data.tags["dynosim.config_hash"] == trial.scenario.content_hash()
        assert run.data.tags["dynosim.pareto"] == str(str(trial.number) in front).lower()
    assert {path.name for path in (runs_dir / "run" / "outbox").glob("*.json")} == {"study.json"}


def test_statuses_metrics_and_reasons(tracked: tuple[Study, dict[str, Run], Path]) -> None:
    study, runs, _ = tracked
    statuses = set()
    for trial in study.trials:
        run, outcome = runs[str(trial.number)], trial.outcome
        statuses.add((outcome.status.value, run.info.status))
        assert run.data.tags["dynosim.status"] == outcome.status.value
        assert run.data.tags.get("dynosim.reason", "") == outcome.reason
        assert run.data.tags.get("dynosim.evidence", "") == outcome.evidence
        _assert_metrics(run, outcome)
        if outcome.status is Status.COMPLETE:
            assert run.data.metrics["time_to_first_token.p99"] == pytest.approx((outcome.values or ())[1], rel=1e-5)
    assert statuses == {("complete", "FINISHED"), ("infeasible", "FINISHED"), ("failed", "FAILED")}


def test_cases_are_metrics_with_their_name_in_front_however_many(runs_dir: Path) -> None:
    study = make_study(1)
    (trial,) = study.trials
    case = {"metrics": trial.outcome.metrics, "values": (), "constraints": {}}
    cases = {f"chat/{number}": case for number in range(40)}
    study.trials[0] = replace(trial, outcome=replace(trial.outcome, cases=cases))
    assert _track(study, runs_dir / "run", _uri(runs_dir)).problem is None
    run = _runs(runs_dir)["0"]
    assert len(run.data.metrics) > 1000
    assert run.data.metrics["chat/39/time_to_first_token.p99"] == run.data.metrics["time_to_first_token.p99"]


def test_artifacts_are_beside_the_store_and_runnable(tracked: tuple[Study, dict[str, Run], Path]) -> None:
    study, runs, runs_dir = tracked
    folder = runs_dir / "mlartifacts"
    scenario = folder / runs["0"].info.run_id / "artifacts" / "scenario.yaml"
    assert load_scenario(scenario) == study.trials[0].scenario
    assert (folder / runs["parent"].info.run_id / "artifacts" / "report.html").stat().st_size > 1_000_000


def _experiment_tags(runs_dir: Path) -> dict[str, str]:
    experiment = MlflowClient(_uri(runs_dir)).get_experiment_by_name("fake70b")
    assert experiment is not None
    return dict(experiment.tags)


def _views(runs_dir: Path) -> dict[str, dict[str, Any]]:
    """The states of the saved views by their key, unpacked as MLflow's page does it."""
    found = {}
    for key, value in _experiment_tags(runs_dir).items():
        if key.startswith(VIEW_TAG):
            kind, _, packed = json.loads(value)["state"].partition(";")
            assert kind == "deflate"
            found[key.removeprefix(VIEW_TAG)] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return found


def _links(note: str) -> dict[str, dict[str, str]]:
    """Text -> page and query of the links of a description."""
    found = re.findall(r"\[([^]]+)\]\(#(/[^)]+)\)", note)
    return {text: {"page": urlsplit(link).path} | {k: v[0] for k, v in parse_qs(urlsplit(link).query).items()}
            for text, link in found}  # fmt: skip


def test_the_parent_has_what_is_needed_to_run_the_recommendations(tracked: tuple[Study, dict[str, Run], Path]) -> None:
    study, runs, runs_dir = tracked
    folder = runs_dir / "mlartifacts" / runs["parent"].info.run_id / "artifacts" / "recommendations"
    assert {path.name for path in folder.iterdir()} == {
        f"{n + 1:04d}.{kind}" for n in range(len(study.frontier())) for kind in ("yaml", "sh")
    } | {"baseline.yaml", "baseline.sh"}
    assert load_scenario(folder / "0001.yaml") == study.frontier()[0].scenario


def test_views_show_columns_and_knobs_that_were_logged(tracked: tuple[Study, dict[str, Run], Path]) -> None:
    study, runs, runs_dir = tracked
    objectives = [objective.name for objective in study.objectives]
    best = runs[str(study.frontier()[0].number)].data
    logged = {"metrics": best.metrics, "tags": best.tags}
    for view in _views(runs_dir).values():
        columns = [re.fullmatch(r"(\w+)\.`(.+)`", column) for column in view["selectedColumns"]]
        shown = [column.groups() for column in columns if column]
        wanted = {("metrics", name) for name in (*objectives, "good_request_fraction", "gpus")}
        assert wanted | {("tags", "dynosim.label")} <= {*shown}
        assert all(name in logged[kind] for kind, name in shown)
        charted = [chart["selectedParams"] for chart in view.get("compareRunCharts", ()) if "selectedParams" in chart]
        for knobs in charted:
            assert any(set(knobs) <= run.data.params.keys() for run in runs.values())


def test_a_view_finds_its_trials(tracked: tuple[Study, dict[str, Run], Path]) -> None:
    study, _, runs_dir = tracked
    client, found = MlflowClient(_uri(runs_dir)), {}
    for key, view in _views(runs_dir).items():
        order = f"{view['orderByKey']} {'ASC' if view['orderByAsc'] else 'DESC'}"
        runs = client.search_runs(["1"], view["searchFilter"], order_by=[order], max_results=1000)
        found[key.removeprefix(f"{study.id}-")] = [int(run.data.tags["dynosim.trial"]) for run in runs]
    assert len(found["trials"]) == len(study.trials)
    assert {*found["frontier"]} == {trial.number for trial in study.frontier()}
    first = {trial.number: (trial.outcome.values or (0.0,))[0] for trial in study.trials}
    assert [first[n] for n in found["knobs"]] == pytest.approx(sorted(first[n] for n in found["knobs"]), rel=1e-5)
    assert {*found["knobs"]} == {trial.number for trial in study.feasible}
    assert study.baseline is not None
    assert {*found["picks"]} == {study.baseline.number, *(trial.number for trial in study.picks().values())}


def test_descriptions_link_the_views_and_the_comparison(tracked: tuple[Study, dict[str, Run], Path]) -> None:
    study, runs, runs_dir = tracked
    parent = runs["parent"]
    for note in (parent.data.tags["mlflow.note.content"], _experiment_tags(runs_dir)["mlflow.note.content"]):
        links = _links(note.partition("\n")[0])  # MLflow shows the first line of an experiment's
        for name in ("trials", "frontier", "knobs", "picks"):
            assert links[name]["viewStateShareKey"] in _views(runs_dir)
            assert links[name]["page"] == f"/experiments/{parent.info.experiment_id}/runs"
            assert (links[name].get("compareRunsMode") == "CHART") == (name in CHARTS)
        assert study.baseline is not None
        compared = {study.baseline.number, *(trial.number for trial in study.picks().values())}
        assert {*json.loads(links["compare"]["runs"])} == {runs[str(n)].info.run_id for n in compared}
        assert "#/compare-runs?runs=" in note  # MLflow takes them only as the first of the query


def test_the_experiment_opens_on_training_runs_and_keeps_what_the_user_wrote(runs_dir: Path) -> None:
    client = MlflowClient(_uri(runs_dir))
    experiment = client.create_experiment("fake70b")  # as an earlier version left it
    client.set_experiment_tag(experiment, "mlflow.note.content", "Ours since May")
    _track(make_study(3), runs_dir / "run", _uri(runs_dir))
    tags = _experiment_tags(runs_dir)
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags["mlflow.note.content"] == "Ours since May"


def test_a_server_without_views_still_takes_the_trials(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise MlflowException("no such tag")

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refuse)
    tracker = _track(make_study(5), runs_dir / "run", _uri(runs_dir))
    assert tracker.problem is None
    assert len(_runs(runs_dir)) == 6


def test_the_ui_is_served_with_a_link_to_the_last_study(
    tracked: tuple[Study, dict[str, Run], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, _, runs_dir = tracked
    monkeypatch.setattr("dynosim.tracking.ui._serve", lambda uri, host, port: 7)
    assert open_ui(_uri(runs_dir), "127.0.0.1", 5001) == 7
    link = capsys.readouterr().err.splitlines()[-1]
    assert link.startswith("last study: http://127.0.0.1:5001/#/experiments/1/runs?")
    assert f"viewStateShareKey={study.id}-trials" in link
    with pytest.raises(StudyError, match="switched off"):
        open_ui(None, "127.0.0.1", 5001)
    with pytest.raises(StudyError, match=NOBODY):
        open_ui(NOBODY, "127.0.0.1", 5001)


def test_telling_everything_again_changes_nothing(tracked: tuple[Study, dict[str, Run], Path]) -> None:
    study, before, runs_dir = tracked
    again = MLflowTracker(_uri(runs_dir), runs_dir / "run")
    again.study_started(study)
    again.study_finished(study)
    after = _runs(runs_dir)
    assert again.problem is None
    assert {k: (r.info.run_id, r.data.metrics) for k, r in after.items() if k != "parent"} == {
        k: (r.info.run_id, r.data.metrics) for k, r in before.items() if k != "parent"
    }


def test_a_run_that_was_made_but_not_filled_is_completed(runs_dir: Path) -> None:
    study = make_study(3)
    _track(study, runs_dir / "run", _uri(runs_dir))
    client = MlflowClient(_uri(runs_dir))
    run = _runs(runs_dir)["2"]
    client.delete_tag(run.info.run_id, "dynosim.label")
    client.update_run(run.info.run_id, status="RUNNING")  # as a kill between create_run and set_terminated leaves it
    again = MLflowTracker(_uri(runs_dir), runs_dir / "run")
    again.study_started(study)
    again.study_finished(study)
    assert _runs(runs_dir)["2"].info.status == "FINISHED"


def test_who_is_no_pick_any_more_says_so(runs_dir: Path) -> None:
    run_dir, early, late = runs_dir / "run", make_study(12), make_study(40)
    before = {str(trial.number) for trial in early.picks().values()}
    after = {str(trial.number): name for name, trial in late.picks().items()}
    assert before - after.keys()  # else this tests nothing
    _track(early, run_dir, _uri(runs_dir))
    _track(late, run_dir, _uri(runs_dir))
    runs = _runs(runs_dir)
    assert {runs[number].data.tags["dynosim.pick"] for number in before - after.keys()} <= {"none", "baseline"}
    assert all(name in runs[number].data.tags["dynosim.pick"] for number, name in after.items())


def test_mlflow_down_costs_no_trial_and_is_said_once(runs_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = make_study(10)
    with caplog.at_level(logging.WARNING, "dynosim.tracking"):
        tracker = _track(study, runs_dir / "run", NOBODY)
    assert tracker.problem is not None
    assert NOBODY in tracker.problem
    assert [record.name for record in caplog.records if record.name.startswith("dynosim")] == [
        "dynosim.tracking.tracker"
    ]
    assert sync(runs_dir / "run") == 10
    assert set(_runs(runs_dir)) == {"parent", *(str(n) for n in range(10))}
    assert sync(runs_dir / "run") == 0


def test_a_slow_mlflow_is_waited_for_only_so_long(runs_dir: Path) -> None:
    tracker = _track(make_study(12), runs_dir / "run", _uri(runs_dir), finish_timeout_s=0.0)
    assert tracker.problem is not None
    assert "still busy" in tracker.problem
    tracker._thread.join()
    assert len(_runs(runs_dir)) == 13


def test_a_full_disk_costs_no_trial(runs_dir: Path) -> None:
    (runs_dir / "run").mkdir()
    (runs_dir / "run" / "outbox").write_text("in the way")
    tracker = MLflowTracker(_uri(runs_dir), runs_dir / "run")
    tracker.study_started(make_study(0))
    tracker.trial_finished(make_study(1), make_trial(0))
    assert "cannot write the outbox" in (tracker.problem or "")


def test_kill_nine_loses_and_doubles_nothing(runs_dir: Path) -> None:
    run_dir, told = runs_dir / "run", 0
    for _ in range(2):  # the second one resumes the first
        command = [sys.executable, str(Path(__file__).parent / "child.py"), str(run_dir), _uri(runs_dir), str(told)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                told = int(line) + 1
                pending = len(list((run_dir / "outbox").glob("0*.json")))
                if told - pending > 3 and told % 5 == 0:  # delivery is under way
                    child.kill()
                    break
            told += len(child.stdout.readlines())
    assert sync(run_dir) > 0
    runs = _runs(runs_dir)
    assert runs.keys() >= {"parent", *(str(number) for number in range(told))}
    for number in range(told):
        outcome = make_trial(number).outcome
        assert runs[str(number)].info.status == ("FAILED" if outcome.status is Status.FAILED else "FINISHED")
        _assert_metrics(runs[str(number)], outcome)


def test_the_thread_does_not_import_what_changes_the_warnings_of_the_process(tmp_path: Path) -> None:
    code = (
        "import sys, threading; from pathlib import Path; from dynosim.tracking import MLflowTracker;"
        "from report.fake_study import make_study;"
        "threading.Thread.start = lambda thread: print('requests' in sys.modules);"
        f"MLflowTracker({NOBODY!r}, Path({str(tmp_path)!r})).study_started(make_study(0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); {code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_fresh_store_leaves_nothing_half_built_beside_it(empty_store: Path) -> None:
    left = {path.name for path in empty_store.parent.iterdir()} - {"mlflow.db-wal", "mlflow.db-shm"}
    assert left == {"mlflow.db", "mlflow.lock"}


def test_where_runs_are_tracked(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking_uri("auto", runs_dir) == _uri(runs_dir)
    assert tracking_uri("http://server", runs_dir) == "http://server"
    assert tracking_uri("off", runs_dir) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow")
    assert tracking_uri("auto", runs_dir) == "http://mlflow"
    monkeypatch.setenv("DYNOSIM_TRACKING_URI", "http://dynosim")
    assert tracking_uri("auto", runs_dir) == "http://dynosim"
    monkeypatch.setenv("DYNOSIM_TRACKING", "off")
    assert tracking_uri("http://server", runs_dir) is None


def test_sync_says_why_it_cannot(runs_dir: Path) -> None:
    with pytest.raises(StudyError, match="not tracked"):
        sync(runs_dir / "run")
    _track(make_study(1), runs_dir / "run", NOBODY)
    with pytest.raises(StudyError, match="switched off"):
        sync(runs_dir / "run", "off")
    with pytest.raises(StudyError, match="did not take the run"):
        sync(runs_dir / "run", NOBODY)


def test_mlflow_leaves_no_process_behind_when_told_to_end(tmp_path: Path) -> None:
    server = tmp_path / "server"
    server.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {tmp_path}/child\nsleep 1\nkill -TERM $PPID\nwait\n")
    server.chmod(0o755)
    # In a process of its own: the signal is for the one that serves.
    code = f"import sys; from dynosim.tracking.ui import _serve; sys.executable = {str(server)!r}; "
    code += "sys.exit(_serve('sqlite:///unused', '127.0.0.1', 5001))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    child = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")
    gone = (not child.exists() or child.read_text().split()[2] == "Z" for _ in range(100) if not time.sleep(0.05))
    assert any(gone)
