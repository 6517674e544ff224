"""What servers say of themselves is read, and compared with what is simulated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calibration.cluster import LOADS, config_file, measured
from dynosim.calibration import calibrate, read_manifest
from dynosim.calibration.server import counter_facts, log_facts
from dynosim.cli import main
from dynosim.errors import ConfigError
from dynosim.hardware.plan import PoolPlan
from dynosim.space import SearchSpace
from dynosim.timing.calibrated import ServerFact

LOGS = {
    "vllm": (
        "INFO 11-30 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='m', cuda=12.8\n"
        "INFO 11-30 [kv_cache_utils.py:2327] GPU KV cache size: 1,065,536 tokens, Maximum concurrency ...\n",
        {"version": "0.32.0", "kv_cache_tokens": 1065536.0},
    ),
    "sglang": (
        "[2026-11-30] max_total_num_tokens=1180423, chunked_prefill_size=8192, max_running_requests=2048\n",
        {"kv_cache_tokens": 1180423.0},
    ),
    "trtllm": (
        "[TensorRT-LLM] TensorRT LLM version: 1.2.0\n"
        "[MemUsageChange] Allocated 2.10 GiB for max tokens in paged KV cache (34496).\n"
        "[MemUsageChange] Allocated 43.80 GiB for max tokens in paged KV cache (717888).\n",
        {"version": "1.2.0", "kv_cache_tokens": 717888.0},
    ),
}
BEFORE = 'vllm:prefix_cache_queries_total{engine="0"} 1000.0\nvllm:prefix_cache_hits_total{engine="0"} 900.0\n'
AFTER = (
    "# TYPE vllm:prefix_cache_hits counter\n"
    'vllm:prefix_cache_queries_total{engine="0"} 3000.0\nvllm:prefix_cache_queries_total{engine="1"} 1000.0\n'
    'vllm:prefix_cache_hits_total{engine="0"} 1650.0\nvllm:num_preemptions_total{engine="0"} 3.0\n'
)


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("engine", LOGS)
def test_version_and_capacity_are_read_from_the_log(engine: str, tmp_path: Path) -> None:
    text, says = LOGS[engine]
    assert log_facts(written(tmp_path / "server.log", text)) == says


def test_counters_are_what_grew_between_two_readings(tmp_path: Path) -> None:
    before, after = written(tmp_path / "before", BEFORE), written(tmp_path / "after", AFTER)
    assert counter_facts([before, after]) == {"prefix_cache_hit_rate": 0.25, "preemptions": 3.0}
    assert counter_facts([before]) == {"prefix_cache_hit_rate": 0.9}


@pytest.mark.parametrize(
    ("text", "says"),
    [("nothing", "no counter that is known"), ("vllm:prefix_cache_hits_total many", "'many' is no number")],
)
def test_counters_of_something_else_are_one_line(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        counter_facts([written(tmp_path / "metrics", text)])


def test_a_log_of_something_else_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no version and no KV capacity"):
        log_facts(written(tmp_path / "server.log", "listening on 8000\n"))
    with pytest.raises(ConfigError, match="cannot be read"):
        log_facts(str(tmp_path / "absent"))


@pytest.mark.parametrize("factor", [1.0, 0.7])
def test_the_profile_says_where_the_server_differs(factor: float, tmp_path: Path) -> None:
    given = measured(tmp_path, loads=LOADS[:1])
    capacity = PoolPlan.of(SearchSpace.load(given.config).deployed().deployment, "mixed").capacity.tokens
    log = written(tmp_path / "server.log", f"GPU KV cache size: {round(factor * capacity):,} tokens\n")
    metrics = written(tmp_path / "metrics", AFTER)
    found = calibrate([given.model_copy(update={"server_log": log, "metrics": (metrics,)})], name="mine").profile
    facts = {fact.name: fact for fact in found.server}
    assert facts["kv_cache_tokens"].simulated == capacity
    assert facts["kv_cache_tokens"].differs == (factor < 1.0)
    assert (facts["prefix_cache_hit_rate"].simulated, facts["prefix_cache_hit_rate"].differs) == (0.0, True)
    assert facts["preemptions"].differs


def test_the_command_prints_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = measured(tmp_path, loads=LOADS[:1])
    log, metrics = written(tmp_path / "server.log", LOGS["vllm"][0]), written(tmp_path / "metrics", AFTER)
    assert main(["calibrate", given.config, *given.measured, "--server-log", log, "--metrics", metrics]) == 0
    told = capsys.readouterr().out
    assert "version 0.32.0, simulated current\n" in told
    assert "kv_cache_tokens 1.06554e+06, simulated" in told
    assert "preemptions 3, simulated 0: DIFFERS" in told
    assert main(["calibrate", given.config, *given.measured, *["--metrics", metrics] * 3]) == 2
    assert "--metrics: given 3 times" in capsys.readouterr().err


def test_a_manifest_names_them_beside_the_runs(tmp_path: Path) -> None:
    run = {"config": "mine.yaml", "measured": ["a.json"], "server_log": "server.log", "metrics": ["before", "after"]}
    config_file(tmp_path)
    (found,) = read_manifest(written(tmp_path / "cluster.yaml", json.dumps({"runs": [run]})))
    assert found.server_log == str(tmp_path / "server.log")
    assert found.metrics == (str(tmp_path / "before"), str(tmp_path / "after"))


@pytest.mark.parametrize(
    ("stated", "simulated", "differs"),
    [
        ("0.18.0", "0.18.0", False),
        ("0.18.0+cu128", "v0.18.0", False),
        ("0.18.1", "0.18.0", True),
        ("1", "current", False),
    ],
)
def test_builds_of_one_version_are_that_version(stated: str, simulated: str, differs: bool) -> None:
    assert ServerFact(name="version", stated=stated, simulated=simulated).differs == differs
