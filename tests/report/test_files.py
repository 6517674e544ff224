"""The files of a run: they agree with each other and with the study."""

import json
from pathlib import Path

import pandas as pd
import pytest

from dynosim.config.load import load_scenario
from dynosim.report import write
from dynosim.search.study import Study
from report.fake_study import make_study


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study(80)


@pytest.fixture(scope="module")
def run_dir(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write(study, folder)
    return folder


def test_csv_and_parquet_hold_the_same_table(run_dir: Path) -> None:
    parquet = pd.read_parquet(run_dir / "trials.parquet")
    csv = pd.read_csv(run_dir / "trials.csv")
    assert list(csv.columns) == list(parquet.columns)
    for column in parquet:
        ours, theirs = parquet[column], csv[column]
        assert (ours.isna() | (ours == "")).tolist() == theirs.isna().tolist()
        assert ours[theirs.notna()].tolist() == theirs.dropna().tolist()


def test_every_trial_and_every_status_is_in_the_table(study: Study, run_dir: Path) -> None:
    table = pd.read_parquet(run_dir / "trials.parquet")
    assert table["number"].tolist() == [trial.number for trial in study.trials]
    assert set(table["status"]) == {"complete", "infeasible", "failed"}
    assert set(table.loc[table["status"] == "infeasible", "reason"]) == {
        "weights of 141 GB do not fit in 80 GB </script>"
    }
    assert {parameter.path for parameter in study.space.parameters} <= set(table.columns)


def test_frontier_json_and_csv_agree_and_are_exact(study: Study, run_dir: Path) -> None:
    exact = json.loads((run_dir / "frontier.json").read_text())
    table = pd.read_csv(run_dir / "frontier.csv")
    assert [row["number"] for row in exact] == table["number"].tolist() == [t.number for t in study.recommended()]
    for i, objective in enumerate(study.objectives):
        assert [row["values"][i] for row in exact] == table[objective.name].tolist()
    for row, trial in zip(exact, study.recommended(), strict=True):
        assert row["metrics"] == trial.outcome.metrics


def test_recommendations_are_the_scenarios_of_the_frontier(study: Study, run_dir: Path) -> None:
    front = study.recommended()
    files = sorted((run_dir / "recommendations").glob("*.yaml"))
    assert [path.name for path in files] == [f"{i:04d}.yaml" for i in range(1, len(front) + 1)] + ["baseline.yaml"]
    for path, trial in zip(files, [*front, study.baseline], strict=True):
        assert trial is not None
        assert load_scenario(path) == trial.scenario


def test_a_shorter_frontier_leaves_no_old_recommendation(study: Study, tmp_path: Path) -> None:
    write(study, tmp_path)
    shorter = make_study(1)
    write(shorter, tmp_path)
    left = {path.name for path in (tmp_path / "recommendations").iterdir()}
    assert left == {"0001.yaml", "0001.sh", "baseline.yaml", "baseline.sh"}


def test_environment_names_versions_hashes_and_seeds(study: Study, run_dir: Path) -> None:
    found = json.loads((run_dir / "environment.json").read_text())
    assert {"torch", "numpy", "optuna"} <= set(found["dependencies"])
    assert found["config_hashes"] == {str(trial.number): trial.scenario.content_hash() for trial in study.trials}
    assert found["space_hash"] == study.space.content_hash()
    assert found["seed"] == 0


def test_no_partial_file_is_left(run_dir: Path) -> None:
    assert not list(run_dir.rglob("*.tmp"))
    assert not list(run_dir.rglob(".*"))


def test_the_tables_have_the_ends_of_intervals_and_bands(study: Study, run_dir: Path) -> None:
    front = pd.read_csv(run_dir / "frontier.csv")
    name = "inter_token_latency.p99"
    assert (front[f"{name}.low"] < front[name]).all()
    assert (front[name] < front[f"{name}.high"]).all()
    assert (front[f"{name}.model_low"] < front[f"{name}.model_high"]).all()
    assert front["time_to_first_token.p99.low"].isna().all(), "it has no interval"
    assert list(front["evidence"]) == [trial.outcome.evidence for trial in study.recommended()]
    assert front["recommendation"].tolist() == list(range(1, len(front) + 1))
    assert set(front["leader"]) == {trial.number for trial in study.leaders()}
