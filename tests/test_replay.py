"""``benchmarks/replay.py``: one run as one JSON line, and the table with its verdicts, both on a few requests."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "replay.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("replay", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["replay"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


replay = _load()
RUN = ["--replicas=2", "--requests=20", "--repeat=1"]


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Three requests, 1 s apart, that share their first block."""
    lines = [{"timestamp": 1000 * i, "input_length": 700, "output_length": 8, "hash_ids": [0, i + 1]} for i in range(3)]
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    return str(path)


@pytest.mark.parametrize("more", [[], ["--router=kv_aware"], ["--split"]])
def test_one_run_is_one_json_line(capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    replay.main([*RUN, *more, "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["requests"] == 20
    assert found["simulate_us"] == pytest.approx(found["simulate_s"] / 20 * 1e6)
    assert found["ttft_ms"] > 0.0


def test_a_speed_up_divides_arrivals_and_copies_have_prompts_of_their_own(trace: str) -> None:
    usual, fast = (replay.Run(speedup=speedup).workload(trace, 7) for speedup in (1.0, 4.0))
    assert usual.arrival_s[:4].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert fast.arrival_s[:3].tolist() == [0.0, 0.25, 0.5]
    assert len(np.unique(usual.hash_ids)) == 4 + 4 + 2


def test_the_peer_gets_the_same_run(trace: str) -> None:
    given = replay.Run(8, "kv_aware", 2.0, split=True).of_peer(trace, None)
    assert (given["num_prefill_workers"], given["num_decode_workers"]) == (4, 4)
    assert given["router_mode"] == "kv_router"
    assert given["arrival_speedup_ratio"] == 2.0
    assert given["decode_engine_args"]["engine"]["num_gpu_blocks"] == replay.POOL["num_gpu_blocks_override"]


def test_the_table_says_what_was_reached(capsys: pytest.CaptureFixture[str]) -> None:
    row = "8 round robin"
    replay.main([f"--row={row}", "--requests=20", "--repeat=1"])
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["measured", "to", "reach", "peer"]
    assert line.startswith(row)
    assert line.split()[-1] in ("ok", "MISSED")  # as fast as the machine is at the moment
    rows = [{"row": row, "value": 3.0, "goal": 2.0, "unit": "s", "met": False, "peer_s": 5.25}]
    assert replay.table(rows).splitlines()[1].split()[-3:] == ["MISSED", "5.25", "s"]


def test_a_peer_needs_a_trace(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        replay.main(["--peer=python"])
    assert "--trace" in capsys.readouterr().err
