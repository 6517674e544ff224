"""Result files: recognised by content, converted to dynosim's definitions, refused in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.cluster import CONFIG, REQUESTS, run
from calibration.tools import MODEL, WRITERS, guidellm, write
from dynosim.calibration import read_measured
from dynosim.calibration.readers import READERS, MeasuredRun, convert
from dynosim.config import ConcurrencyLoad, PoissonLoad
from dynosim.errors import ConfigError
from dynosim.metrics import METRICS

LOADS = (ConcurrencyLoad(concurrency=5), PoissonLoad(rate_rps=3.5))
FITTED = {"time_to_first_token", "inter_token_latency", "output_token_throughput"}


@pytest.fixture(scope="module", params=LOADS, ids=lambda load: load.type)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("config") / "mine.yaml"
    path.write_text(CONFIG)
    return *run(str(path), (), request.param), request.param


def test_every_reader_has_a_writer_to_be_tested_with() -> None:
    assert READERS.keys() == WRITERS.keys()


@pytest.mark.parametrize("tool", READERS)
def test_what_a_tool_measures_is_what_the_simulator_says(tool: str, ran: Any, tmp_path: Path) -> None:
    result, metrics, load = ran
    (found,) = read_measured(write(tmp_path / "results", tool, result, metrics, load))
    assert (found.load, found.completed, found.failed, found.model) == (load, REQUESTS, 0, MODEL)
    assert found.input_tokens == pytest.approx(result.requests["input_tokens"].mean())
    assert found.output_tokens == pytest.approx(result.requests["output_tokens"].mean())
    assert found.duration_s == pytest.approx(metrics.value("duration"), rel=1e-3)
    assert found.metrics.keys() <= METRICS.keys()
    assert found.metrics.keys() >= FITTED
    for name, stats in found.metrics.items():
        for stat, value in stats.items():
            ours = metrics.value(name, stat if METRICS[name].distribution else None)
            assert value == pytest.approx(ours, rel=1e-6), f"{name}.{stat}"


@pytest.mark.parametrize("tool", READERS)
def test_one_reader_answers_to_a_file(tool: str, ran: Any) -> None:
    documents = [json.loads(WRITERS[tool](*ran))]
    assert [name for name, reader in READERS.items() if reader.matches(documents)] == [tool]


@pytest.mark.parametrize("tool", ["vLLM bench", "SGLang bench_serving"])
def test_lines_are_runs(tool: str, ran: Any, tmp_path: Path) -> None:
    text = WRITERS[tool](*ran).strip()
    (tmp_path / "results.jsonl").write_text(f"{text}\n{text}\n")
    first, second = read_measured(tmp_path / "results.jsonl")
    assert first == second


def test_a_sample_of_requests_gives_no_means_over_requests(ran: Any, tmp_path: Path) -> None:
    """GuideLLM's summary weights requests by their gaps: it is the mean gap, and not that of requests."""
    (tmp_path / "benchmarks.json").write_text(guidellm(*ran, sampled=True))
    (found,) = read_measured(tmp_path / "benchmarks.json")
    assert "inter_token_latency" not in found.metrics
    assert found.metrics["inter_chunk_latency"]["avg"] == pytest.approx(ran[1].value("inter_chunk_latency"), rel=1e-6)


def test_units_are_followed(ran: Any, tmp_path: Path) -> None:
    data = json.loads(WRITERS["AIPerf"](*ran))
    data["time_to_first_token"] = {"unit": "ns", "avg": 12e6, "count": 60}
    data["benchmark_duration"] = {"unit": "ms", "avg": 4500.0}
    (tmp_path / "results.json").write_text(json.dumps(data))
    (found,) = read_measured(tmp_path / "results.json")
    assert found.metrics["time_to_first_token"] == {"avg": 12.0, "count": 60}
    assert found.duration_s == 4.5


def test_requests_without_gaps_are_no_zero(ran: Any, tmp_path: Path) -> None:
    data = {**json.loads(WRITERS["vLLM bench"](*ran)), "mean_tpot_ms": 0.0}
    (tmp_path / "results.json").write_text(json.dumps(data))
    assert "inter_token_latency" not in read_measured(tmp_path / "results.json")[0].metrics


@pytest.mark.parametrize(
    ("tool", "values", "says"),
    [
        ("vLLM bench", {"completed": None}, "completed: missing"),
        ("vLLM bench", {"completed": 0}, "no request was completed"),
        ("vLLM bench", {"completed": 1.5}, "whole number"),
        ("vLLM bench", {"duration": "12"}, "duration: '12': allowed: a finite number"),
        ("vLLM bench", {"request_rate": 4.0, "max_concurrency": 8}, "max_concurrency: 8 beside a request rate"),
        ("vLLM bench", {"request_rate": 4.0, "ramp_up_strategy": "linear"}, "ramps are not modelled"),
        ("vLLM bench", {"mean_ttft_ms": 0.0, "mean_tpot_ms": 0.0, "mean_itl_ms": 0.0}, "must be streamed"),
        ("vLLM bench", {"mean_ttft_ms": -5.0}, "mean_ttft_ms: -5: allowed: a number from 0"),
        ("SGLang bench_serving", {"output_throughput": float("nan")}, "output_throughput: nan"),
        ("AIPerf", {"was_cancelled": True}, "ended early"),
        ("AIPerf", {"is_complete": False}, "ended early"),
        ("AIPerf", {"input_config.phases": []}, "0 profiling phases"),
        ("AIPerf", {"input_config.phases.1.type": "poisson", "input_config.phases.1.concurrency": 3}, "one of the two"),
        ("AIPerf", {"input_config": None}, "input_config: missing"),
        ("AIPerf", {"benchmark_duration.unit": "fortnights"}, "fortnights: allowed: ns, us, ms, sec, s"),
        ("GuideLLM", {"benchmarks.0.config.strategy.type_": "sweep"}, "sweep: allowed: synchronous, concurrent"),
        ("GuideLLM", {"benchmarks.0.metrics.request_latency": None}, "benchmarks.0.metrics.request_latency: missing"),
    ],
)
def test_what_is_wrong_is_one_line(tool: str, values: dict[str, Any], says: str, ran: Any, tmp_path: Path) -> None:
    data = json.loads(WRITERS[tool](*ran))
    for path, value in values.items():
        _put(data, path.split("."), value)
    _refuses(tmp_path / "results.json", json.dumps(data), says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must hold a JSON object"),
        ("[1, 2]", "must hold a JSON object"),
        ("{}", "not a known result file: allowed are those of AIPerf, vLLM bench, GuideLLM, SGLang"),
        ('{"a": 1}\n{"b": ', "results.json:2: not JSON"),
        ('{"metadata": {"x": 1}, "metrics": {}}\n', "name profile_export_aiperf.json beside it"),
        ("\xff", "not a UTF-8 text file"),
    ],
)
def test_what_is_no_result_file_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    _refuses(tmp_path / "results.json", text, says)


def test_no_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.json: cannot be read"):
        read_measured(tmp_path / "absent.json")


@given(st.data())
@settings(max_examples=300)
def test_any_damage_is_read_or_refused(ran: Any, data: st.DataObject) -> None:
    document = json.loads(WRITERS[data.draw(st.sampled_from(sorted(WRITERS)))](*ran))
    path = data.draw(st.sampled_from(list(_paths(document))))
    _put(document, path, data.draw(st.sampled_from([None, "x", "", -1, 0, 1e30, True, [], [1], {}, {"a": 1}])))
    try:
        found = convert([document], "file")
    except ConfigError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert all(isinstance(run, MeasuredRun) for run in found)
    assert "\n" not in refusal


def _put(data: Any, path: list[str], value: Any) -> None:
    *parents, last = (int(key) if key.isdigit() else key for key in path)
    for key in parents:
        data = data[key]
    if value is None:
        del data[last]
    else:
        data[last] = value


def _paths(data: Any, path: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Yield the place of everything in *data*."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield [*path, str(key)]
        yield from _paths(value, (*path, str(key)))


def _refuses(path: Path, text: str, says: str) -> None:
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError) as error:
        read_measured(path)
    assert says in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
