"""Every verb as a user calls it: what goes to stdout and stderr, and the exit code."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import dynosim
from dynosim import cli
from dynosim.progress import GracefulStop
from dynosim.run.directory import runs
from dynosim.space import SearchSpace

FAST = [
    "--set", "workload.source.requests=60",
    "--set", "workload.warmup_requests=0",
    "--set", "optimizer.sampler=random",
]  # fmt: skip
PACK = ["--set", "deployment.timing={type: pack}"]
OPTIMIZE = ["optimize", "tiny", "--workers", "1", "--quiet", *FAST]


@pytest.fixture(autouse=True)
def _in_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DYNOSIM_TRACKING", "off")


def _json(capsys: pytest.CaptureFixture[str]) -> dict:  # type: ignore[type-arg]
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dynosim: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_help_lists_every_verb_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, dynosim.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    verbs = "optimize ask tell predict show config spaces trace timing track serve doctor"
    for verb in verbs.split():
        assert f"    {verb} " in done.stdout
    heavy = {"pydantic", "numpy", "numba", "torch", "optuna", "mlflow", "pandas", "plotly", "fastapi", "rich", "simpy"}
    assert not heavy & set(done.stderr.split())


def test_a_prediction_imports_nothing_of_the_search() -> None:
    code = "import sys, dynosim.cli as c; c.main(['predict', 'tiny']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {
        "scipy.optimize",
        "torch",
        "optuna",
        "sqlalchemy",
        "moocore",
        "loky",
        "mlflow",
        "pandas",
        "pyarrow",
        "plotly",
    }
    assert "TTFT" in done.stdout
    assert not heavy & set(done.stderr.split())


def test_every_verb_and_exit_code_is_documented() -> None:
    text = (Path(__file__).parents[1] / "docs" / "cli.md").read_text()
    parser = cli._parser()
    for line in parser.format_help().splitlines():
        if line.startswith("    ") and line[4] != " ":
            assert f"`dynosim {line.split()[0]}" in text, line
    for code in (cli.OK, cli.FAILURE, cli.USAGE, cli.NOTHING_FEASIBLE, cli.INTERRUPTED):
        assert f"| {code} |" in text


def test_version_says_whose_it_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert "independent project, not affiliated with NVIDIA" in capsys.readouterr().out


def test_optimize_show_and_predict_tell_the_same_story(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*OPTIMIZE, "--trials", "5", "--format", "json"]) == cli.OK
    captured = capsys.readouterr()
    assert captured.err == ""
    told = json.loads(captured.out)
    assert told["trials"] == 5
    assert told["baseline"]["number"] == 0
    assert set(told["picks"].values()) <= {trial["number"] for trial in told["frontier"]}

    assert cli.main(["show", "last", "--format", "json"]) == cli.OK
    assert _json(capsys) == told

    best = told["frontier"][0]
    assert cli.main(["show", told["study"], "--trial", str(best["number"]), "--format", "json"]) == cli.OK
    detail = _json(capsys)
    assert cli.main(["predict", f"{told['run_dir']}/recommendations/0001.yaml", "--format", "json"]) == cli.OK
    prediction = _json(capsys)
    assert prediction["metrics"] == detail["metrics"]
    assert prediction["feasible"]
    assert {"avg", "p50", "p99"} <= set(prediction["metrics"]["time_to_first_token"])

    assert cli.main(["show", "last", "--format", "csv"]) == cli.OK
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [int(row["number"]) for row in rows] == [0, 1, 2, 3, 4]
    assert cli.main(["show", "last", "--trial", "9"]) == cli.USAGE
    assert "no such trial" in _error(capsys)


def test_tables_are_plain_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*OPTIMIZE[:4], *FAST, "--trials", "3"]) == cli.OK
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert "Pareto frontier of tiny" in captured.out
    assert "report.html" in captured.out
    assert "1/3 trials" in captured.err
    assert "3/3 trials" in captured.err
    for arguments in (["show", "last", "--frontier"], ["show", "last", "--trial", "0"], ["predict", "tiny", *FAST]):
        assert cli.main(arguments) == cli.OK
        output = capsys.readouterr().out
        assert "2xTP1" in output
        assert "\x1b" not in output


def test_nothing_feasible_exits_3(capsys: pytest.CaptureFixture[str]) -> None:
    impossible = ["--set", "slo.time_to_first_token.p99=0.001"]
    assert cli.main([*OPTIMIZE, *impossible, "--trials", "2"]) == cli.NOTHING_FEASIBLE
    assert "report.html" in capsys.readouterr().out
    assert cli.main(["predict", "tiny", *FAST, "--set", "deployment.model=llama-3.1-70b"]) == cli.NOTHING_FEASIBLE
    assert "GiB" in _error(capsys)


def test_a_failure_of_the_machine_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*OPTIMIZE, "--trials", "2"]) == cli.OK
    capsys.readouterr()
    next(Path("runs").glob("*/study.db")).unlink()
    assert cli.main(["show", "last"]) == cli.FAILURE
    assert "no study" in _error(capsys)


def test_ctrl_c_ends_the_run_after_its_trial_and_says_how_to_go_on() -> None:
    command = [sys.executable, "-m", "dynosim", *OPTIMIZE, "--trials", "500"]
    command.remove("--quiet")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while " trials, " not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == cli.INTERRUPTED
    assert re.search(rf"to go on: \S*dynosim {re.escape(' '.join(command[3:]))}\n", rest)
    (state,) = runs()
    assert state.state == "interrupted"
    assert f"{len(dynosim.load_study('last').trials)} trials and a report are in runs/{state.id}" in rest


def test_the_second_ctrl_c_ends_the_process() -> None:
    with GracefulStop() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop.trial_finished(None, None)  # type: ignore[arg-type]
        with pytest.raises(SystemExit) as exit_:
            signal.raise_signal(signal.SIGINT)
    assert exit_.value.code == cli.INTERRUPTED


def test_dry_run_prints_the_space_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["optimize", "tiny", "--dry-run", "--set", "deployment.gpu=h100_sxm"]) == cli.OK
    captured = capsys.readouterr()
    space = SearchSpace.load("tiny", ["deployment.gpu=h100_sxm"])
    assert SearchSpace.parse(captured.out).content_hash() == space.content_hash()
    assert "deployment.aggregated.replicas" in captured.err
    assert not Path("runs").exists()


def test_captured_requests_are_one_row_each() -> None:
    import pyarrow.parquet as pq

    assert cli.main(["predict", "tiny", *FAST, "--capture-requests", "requests.parquet"]) == cli.OK
    assert len(pq.read_table("requests.parquet")) == 60


def test_config_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "init"]) == cli.OK
    Path("mine.yaml").write_text(capsys.readouterr().out)
    assert "$schema=space.schema.json\n" in Path("mine.yaml").read_text()
    assert cli.main(["config", "validate", "mine.yaml"]) == cli.OK
    assert "mine.yaml: valid space of 12 parameters" in capsys.readouterr().out

    assert cli.main(["config", "expand", "mine.yaml"]) == cli.OK
    expanded = capsys.readouterr().out
    data = yaml.safe_load(expanded)
    assert data["deployment"]["aggregated"]["enable_chunked_prefill"] is True
    assert data["deployment"]["aggregated"]["replicas"] == {"choices": [1, 2, 3, 4]}
    again = SearchSpace.parse(expanded)
    space = SearchSpace.load("tiny")
    assert again.scenario(space.baseline_point() or {}) == space.reference
    assert [p.path for p in again.parameters] == [p.path for p in space.parameters]

    assert cli.main(["config", "schema"]) == cli.OK
    assert "deployment" in _json(capsys)["properties"]


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["spaces", "--format", "json"]) == cli.OK
    assert {"tiny", "llama8b", "llama70b", "qwen3-32b"} <= {row["space"] for row in json.loads(capsys.readouterr().out)}
    assert cli.main(["timing", "list", "--format", "json"]) == cli.OK
    assert {"pack", "folder", "kB"} <= set(json.loads(capsys.readouterr().out)[0])


def test_trace_stats(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"timestamp": 100 * i, "input_length": 600, "output_length": 7, "hash_ids": [0, i]} for i in range(1, 9)]
    Path("trace.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert cli.main(["trace", "stats", "trace.jsonl", "--format", "json"]) == cli.OK
    assert _json(capsys)["requests"] == 8
    assert cli.main(["trace", "stats", "trace.jsonl"]) == cli.OK
    output = capsys.readouterr().out
    assert re.search(r"input_tokens\.p50 +│ 600 ", output)
    assert not re.search(r"[{}]|\d\.\d{7}", output)


def test_doctor_finds_this_installation_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == cli.OK
    output = capsys.readouterr().out
    assert "FAIL" not in output
    assert "requests simulated" in output
