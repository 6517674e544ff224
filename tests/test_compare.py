"""Tuning for one workload, judged by the other: laws of the losses, the command, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynosim import compare_workloads
from dynosim.cli import main
from dynosim.compare import ALL, Comparison
from dynosim.errors import ConfigError

SPACE = """\
name: both
workloads:
  short:
    source:
      type: synthetic
      requests: 80
      input_tokens: {type: fixed, tokens: 200}
      output_tokens: {type: fixed, tokens: 80}
    load: {type: poisson, rate_rps: 4}
  long:
    source:
      type: synthetic
      requests: 80
      input_tokens: {type: fixed, tokens: 3000}
      output_tokens: {type: fixed, tokens: 5}
    load: {type: poisson, rate_rps: 4}
slo: {time_to_first_token: {p99: 3000}}
objectives: [{metric: usd_per_hour}, {metric: time_to_first_token, stat: p99}]
deployment:
  model: llama-3.1-8b
  gpu: h100_sxm
  timing: {type: polynomial}
  aggregated: {replicas: {choices: [1, 2, 4]}, max_num_seqs: {choices: [2, 64]}, num_gpu_blocks_override: 4000}
optimizer: {trials: 6, sampler: exhaustive}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compared")
    (path / "both.yaml").write_text(SPACE)
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> Comparison:
    return compare_workloads(folder / "both.yaml", runs_dir=folder / "runs", tracking="off", workers=1)


def test_every_front_is_judged_by_every_workload(found: Comparison) -> None:
    assert [*found.studies] == ["short", "long"]
    assert {row.tuned_for for row in found.rows} == {"short", "long", ALL}
    assert all([*row.judged] == ["short", "long"] for row in found.rows)


def test_a_whole_front_loses_nothing_on_its_own_workload(found: Comparison) -> None:
    for name in found.studies:
        regret = found.regret(name, name)
        assert regret["miss_slo"] == 0
        assert set(regret["behind"].values()) == {0.0}
        assert regret["hypervolume"] == pytest.approx(1.0)
        own = [row.judged[name].loss for row in found.rows if row.tuned_for == name]
        assert own == [(0.0, 0.0)] * len(own)


def test_no_front_is_ahead_of_the_best_where_all_points_were_tried(found: Comparison) -> None:
    for tuned_for in (*found.studies, ALL):
        for judged_by, study in found.studies.items():
            regret = found.regret(tuned_for, judged_by)
            for objective, behind in zip(study.objectives, regret["behind"].values(), strict=True):
                assert behind is None or behind >= -objective.same_within
            assert regret["hypervolume"] <= 1.0 + 1e-6


def test_the_compromise_meets_the_slo_of_both(found: Comparison) -> None:
    row = found.compromise
    assert row is not None
    assert row.tuned_for == ALL
    assert all(judged.outcome.feasible for judged in row.judged.values())


def test_files_and_command_say_the_same(
    found: Comparison, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found.joint is not None
    run_dir = folder / "runs" / found.joint.id
    assert json.loads((run_dir / "comparison.json").read_text()) == json.loads(json.dumps(found.view()))
    page = (run_dir / "comparison.html").read_text()
    assert "judged by long" in page
    assert 'src="http' not in page
    monkeypatch.chdir(folder)
    common = ["--tracking", "off", "--quiet", "--workers", "1"]
    assert main(["compare-workloads", "both.yaml", "--format", "json", *common]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["regret"] == found.view()["regret"]
    monkeypatch.chdir(folder.parent)  # runs of another directory
    runs = [str(folder / "runs" / found.studies[name].id) for name in ("short", "long")]
    assert main(["compare-workloads", *runs, *common]) == 0
    assert "what is lost" in capsys.readouterr().out


def test_what_cannot_be_compared_is_one_line(folder: Path) -> None:
    with pytest.raises(ConfigError, match="tiny: one workload: allowed is a space with several"):
        compare_workloads("tiny", runs_dir=folder / "none")
    (folder / "other.yaml").write_text(SPACE.replace("usd_per_hour", "gpus").replace("name: both", "name: other"))
    spaces = (folder / "both.yaml", folder / "other.yaml")
    with pytest.raises(ConfigError, match=r"the objectives of other are gpus, .* of both usd_per_hour"):
        compare_workloads(*spaces, trials=1, runs_dir=folder / "two", tracking="off", workers=1)
