"""Runs that others evaluate: in Python and from the shell, what they leave behind, and who may go on with them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import dynosim
from dynosim import cli
from dynosim.cli import NOTHING_FEASIBLE, OK, USAGE, evaluators
from dynosim.config import Scenario
from dynosim.errors import ConfigError, StudyError
from dynosim.run.directory import LOCK_FILE, runs
from dynosim.search.loop import OpenStudy
from dynosim.search.trial import Status

FAST = ("workload.source.requests=60", "workload.warmup_requests=0")


@pytest.fixture(autouse=True)
def _in_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DYNOSIM_TRACKING", "off")


def _open(**options: Any) -> OpenStudy:
    return dynosim.open_study("tiny", trials=4, overrides=FAST, sampler="random", **options)


def _answer(study: OpenStudy, count: int) -> None:
    for _ in range(count):
        proposal = study.ask()
        assert proposal is not None
        study.tell(proposal, [1.0 + proposal.number, 300.0 - 20.0 * proposal.number, 20.0])


def test_a_told_run_is_held_while_open_and_leaves_what_any_run_does() -> None:
    with _open() as study:
        _answer(study, 2)
        assert study.ask() is not None
        with pytest.raises(StudyError, match="another process"):
            _open(run_id=study.id)
    (state,) = runs()
    assert (state.state, state.done) == ("interrupted", 2)
    left = {path.name for path in (Path("runs") / study.id).iterdir()}
    assert {"report.html", "trials.csv", "frontier.json", "recommendations", "study.db"} <= left
    with _open() as again:
        assert again.id == study.id
        _answer(again, 2)
        assert again.ask() is None
    (state,) = runs()
    assert (state.state, state.done) == ("finished", 4)
    assert [trial.number for trial in dynosim.load_study("last").leaders()] == [0, 1, 2, 3]
    assert dynosim.load_study("last").origin == "evaluated by ask and tell"


def test_a_run_that_could_not_be_opened_leaves_nothing() -> None:
    with pytest.raises(ConfigError):
        dynosim.open_study("tiny", sampler="nope")
    assert not Path("runs").exists()


def test_no_simulation_goes_on_with_a_told_run_and_the_other_way_round() -> None:
    with _open() as study:
        _answer(study, 1)
    simulated = dynosim.optimize("tiny", trials=1, overrides=[*FAST, "optimizer.workers=1"], sampler="random")
    assert simulated.id != study.id
    for run_id, how in ((study.id, dynosim.optimize), (simulated.id, dynosim.open_study)):
        with pytest.raises(StudyError, match="was started with evaluator"):
            how("tiny", trials=3, overrides=FAST, sampler="random", run_id=run_id)


def _measured(scenario: Scenario) -> dict[str, Any]:
    if scenario.deployment.mode == "disaggregated":
        raise RuntimeError("no such cluster")
    return {"values": [1.0, 2.0, 3.0], "noise": [0.1, 0.1, 0.1]}


def test_optimize_takes_a_function_in_place_of_the_simulator() -> None:
    options = {"trials": 6, "overrides": [*FAST, "optimizer.workers=1"], "sampler": "random"}
    study = dynosim.optimize("tiny", evaluate=_measured, **options)  # type: ignore[arg-type]
    assert {trial.outcome.status for trial in study.trials} == {Status.COMPLETE, Status.FAILED}
    for trial in study.trials:
        failed = trial.scenario.deployment.mode == "disaggregated"
        assert trial.outcome.headline == ("RuntimeError: no such cluster" if failed else "")
    assert study.origin == "evaluated by test_evaluators.py:_measured"
    with pytest.raises(ConfigError, match=r"evaluate: .*no_such.py cannot be read"):
        dynosim.optimize("tiny", evaluate="no_such.py:measure", **options)  # type: ignore[arg-type]


# ---- the shell ----------------------------------------------------------------------------------------------------


def _main(*words: str) -> int:
    return cli.main(list(words))


def _lines(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def _asked(capsys: pytest.CaptureFixture[str], *words: str) -> list[Any]:
    assert _main("ask", *words) == OK
    return _lines(capsys)


SPACE = ("tiny", "--trials", "5", "--sampler", "random", "--set", "workload.source.requests=60")


def test_ask_and_tell_from_the_shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    proposals = _asked(capsys, *SPACE, "--count", "2")
    (name,) = {proposal["run"] for proposal in proposals}
    assert [proposal["number"] for proposal in proposals] == [0, 1]
    Path("0.yaml").write_text(json.dumps(proposals[0]["scenario"]))
    assert _main("launch", "0.yaml") == OK
    assert "vllm serve" in capsys.readouterr().out
    assert [proposal["number"] for proposal in _asked(capsys, name)] == [2], "what is pending is not asked for again"

    assert _main("tell", name, "1", "--values", "1.5", "300", "20", "--noise", "0.1", "5", "1") == OK
    assert capsys.readouterr().out == "trial 1: complete, feasible; 1 of 5 told\n"
    assert _main("tell", "last", "0", "--failed", "node 3 died") == OK
    Path("metrics.json").write_text(json.dumps({"throughput": 400, "ttft": {"p99": 2000}, "itl.p99": 20}))
    answers = [{"number": 2, "metrics": "metrics.json"}, {"number": 2, "infeasible": "again"}]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(map(json.dumps, answers))))
    assert _main("tell", name) == USAGE
    captured = capsys.readouterr()
    assert captured.out.endswith("trial 2: complete, not feasible; 3 of 5 told\n"), "lines before a wrong one are told"
    assert captured.err == f"dynosim: trial 2 of {name} was told already; pending: none\n"

    assert [proposal["number"] for proposal in _asked(capsys, *SPACE, "--count", "9")] == [3, 4]
    assert [proposal["number"] for proposal in _asked(capsys, name, "--pending")] == [3, 4]
    assert _asked(capsys, name) == []
    study = dynosim.load_study(name)
    assert [trial.outcome.status.value for trial in study.trials] == ["failed", "complete", "complete"]
    assert study.trials[1].outcome.noise == (0.1, 5.0, 1.0)


def test_who_tells_needs_no_model_and_any_path_of_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = _asked(capsys, "tiny", "--trials", "2")
    (Path("runs") / first["run"]).rename("moved")
    assert [proposal["number"] for proposal in _asked(capsys, "moved")] == [1]
    with monkeypatch.context() as patched:
        patched.setattr("dynosim.search.loop.make_sampler", lambda *args, **options: pytest.fail("a sampler"))
        for number in ("0", "1"):
            assert _main("tell", "moved", number, "--values", "1.5", "300", "20") == OK
    assert "2 of 2 told" in capsys.readouterr().out
    assert Path("moved/report.html").is_file()
    assert _asked(capsys, "moved") == []
    assert dynosim.load_study("moved").id == first["run"]


def test_a_result_file_of_a_load_generator_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    (proposal,) = _asked(capsys, *SPACE)
    counts = {"completed": 60, "num_prompts": 60, "duration": 30.0, "request_rate": 2.0, "max_concurrency": None}
    tokens = {"total_input_tokens": 60_000, "total_output_tokens": 6_000, "output_throughput": 200.0}
    times = {"mean_ttft_ms": 80.0, "p99_ttft_ms": 140.0, "mean_tpot_ms": 9.0, "p99_tpot_ms": 12.0}
    result = {**counts, **tokens, **times, "total_token_throughput": 2_200.0, "model_id": "m", "backend": "vllm"}
    Path("result.json").write_text(json.dumps(result))
    assert _main("tell", "last", "0", "--metrics", "result.json") == OK
    (trial,) = dynosim.load_study("last").trials
    assert trial.outcome.values is not None
    assert trial.outcome.values[1:] == (140.0, 12.0)
    metrics = trial.outcome.known_metrics()
    assert metrics.value("total_token_throughput") == pytest.approx(2_200.0)
    assert metrics.value("request_throughput") == pytest.approx(2.0)
    assert proposal["number"] == 0


def test_many_jobs_that_tell_at_a_time_wait_for_each_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (proposal,) = _asked(capsys, *SPACE)
    monkeypatch.setattr(evaluators, "ASK_TIMEOUT_S", 0.0)
    with FileLock(Path("runs") / proposal["run"] / LOCK_FILE):
        assert _main("tell", "last", "0", "--failed", "x") == 1
    assert "is being run by another process" in capsys.readouterr().err


MISTAKES = [
    (("tell", "last", "7", "--failed", "x"), "trial 7 of .* was never asked for; pending: 0"),
    (("tell", "last", "0"), "allowed: values or metrics, or failed with a reason"),
    (("tell", "last", "0", "--values", "1", "2"), "values: 2 numbers: allowed: 3, one for each of"),
    (("tell", "last", "0", "--constraint", "ttft"), "--constraint: ttft: allowed: SLO=NUMBER"),
    (("tell", "last", "0", "--metrics", "none.json"), "none.json: cannot be read"),
    (("tell", "nope", "0", "--failed", "x"), "nope: no such run"),
    (("ask", "nope"), "nope"),
    (("ask", "tiny", "--count", "0"), "--count: 0: allowed: a whole number >= 1"),
]


@pytest.mark.parametrize(("words", "line"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_mistakes_are_one_line(words: Sequence[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    _asked(capsys, *SPACE)
    assert _main(*words) == USAGE
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("dynosim: ")
    assert re.search(line, error)


@pytest.mark.parametrize("line", ["x", "[]", '{"values": [1, 2, 3]}', '{"number": "0", "failed": "x"}'])
def test_a_line_that_is_no_answer_is_named(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _asked(capsys, *SPACE)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{line}\n"))
    assert _main("tell", "last") == USAGE
    assert f"standard input:1: {line}: allowed: a JSON object" in capsys.readouterr().err


def test_a_space_without_a_valid_point_has_nothing_to_ask(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("ask", "tiny", "--set", "deployment.aggregated.gpu_memory_utilization=0.01", "--set", "baseline={}",
                 "--set", "deployment.mode=aggregated") == NOTHING_FEASIBLE  # fmt: skip
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("runs").exists()
