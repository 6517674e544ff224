"""Trials that others evaluate are MLflow runs like any, session by session."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

import dynosim

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow's own


def test_told_trials_are_tracked_once_with_values_noise_and_reasons(runs_dir: Path) -> None:
    for session in range(2):
        with dynosim.open_study("tiny", trials=4, sampler="random", runs_dir=runs_dir) as study:
            first, second = study.ask(), study.ask()
            assert first is not None
            assert second is not None
            study.tell(second, [1.0 + session, 300.0, 20.0], noise=[0.1, None, 2.0])
            study.tell(first, failed="node 3 ran out of memory")
    client = MlflowClient(f"sqlite:///{runs_dir / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = list(client.search_runs([experiment.experiment_id]))
    found = {each.data.tags["dynosim.trial"]: each for each in runs}
    assert sorted(found) == sorted(each.data.tags["dynosim.trial"] for each in runs) == ["0", "1", "2", "3", "parent"]
    assert [found[number].info.status for number in ("0", "1", "parent")] == ["FAILED", "FINISHED", "FINISHED"]
    assert found["2"].data.tags["dynosim.reason"] == "node 3 ran out of memory"
    metrics = found["1"].data.metrics
    assert (metrics["usd_per_million_output_tokens"], metrics["time_to_first_token.p99"]) == (1.0, 300.0)
    assert metrics["noise.usd_per_million_output_tokens"] == 0.1
    assert "noise.time_to_first_token.p99" not in metrics
    assert [found[number].data.tags["dynosim.pareto"] for number in ("1", "3")] == ["true", "false"]
    assert "evaluated by ask and tell" in found["parent"].data.tags["mlflow.note.content"]
