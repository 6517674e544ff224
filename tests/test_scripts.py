"""Python as people write it: scripts without a guard, on standard input, in one line; with objectives of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import dynosim
from dynosim.errors import ConfigError
from dynosim.run.directory import runs

SCRIPT = """
import dynosim

FACTOR = 2.0

@dynosim.objective(direction="minimize", unit="ms")
def doubled(metrics):
    return FACTOR * metrics.value("request_latency", "p99")

study = dynosim.optimize(
    "tiny", trials=3, workers=2, sampler="random", tracking="off", objectives=["request_latency.p99", doubled],
    overrides=["workload.source.requests=60", "workload.warmup_requests=0", "slo={}"],
)
for trial in study.trials:
    single, twice = trial.outcome.values
    print(trial.number, trial.outcome.status.value, twice / single)
"""


def _run(folder: Path, *arguments: str, stdin: str = "") -> None:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, input=stdin, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{number} complete 2.0" for number in range(3)]


def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text(SCRIPT)
    _run(tmp_path, "study.py")
    with pytest.raises(ConfigError, match="put that below if __name__"):  # its objective is in the script alone
        dynosim.load_study("last", tmp_path / "runs")
    (state,) = runs(tmp_path / "runs")
    assert state.state == "finished"


@pytest.mark.parametrize("arguments", [["-"], ["-c", SCRIPT]], ids=["standard input", "one line"])
def test_an_objective_without_a_file_works_where_it_was_written(tmp_path: Path, arguments: list[str]) -> None:
    _run(tmp_path, *arguments, stdin=SCRIPT if arguments == ["-"] else "")
    with pytest.raises(ConfigError, match=r"doubled@.*put it in a \.py file"):
        dynosim.load_study("last", tmp_path / "runs")
