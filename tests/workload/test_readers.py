"""Trace readers: what a good file becomes, and which line of a bad one is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dynosim.errors import ConfigError
from dynosim.workload import read_trace

ROWS: list[dict[str, Any]] = [
    {"timestamp": 1000, "input_length": 1030, "output_length": 5, "hash_ids": [7, 40, 41]},
    {"timestamp": 4000, "input_length": 512, "output_length": 0, "hash_ids": [7]},
    {"timestamp": 2500.5, "input_length": 513, "output_length": 9, "hash_ids": [7, 99], "model": "x"},
]
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:17:03.9799600,4808,10\r\n"
    "2023-11-16 18:17:05.2299601,3180,0"
)


def jsonl(*rows: dict[str, Any]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def written(folder: Path, name: str, content: str | bytes) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    packers = {".gz": gzip.compress, ".zst": zstandard.compress}
    path = folder / name
    path.write_bytes(packers.get(path.suffix, bytes)(raw))
    return path


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.jsonl.zst", "no_suffix"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n"])
def test_mooncake(tmp_path: Path, name: str, end: str) -> None:
    workload = read_trace(written(tmp_path, name, jsonl(*ROWS) + end))
    assert workload.arrival_s == pytest.approx([0.0, 1.5005, 3.0])
    assert workload.input_tokens.tolist() == [1030, 513, 512]
    assert workload.output_tokens.tolist() == [5, 9, 1]
    assert workload.hash_block_tokens == 512
    assert workload.hash_offsets.tolist() == [0, 3, 5, 6]
    assert workload.hash_ids.tolist() == [0, 1, 2, 0, 3, 0]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.csv.zst", "no_suffix"])
@pytest.mark.parametrize("zone", ["", "+00:00"])
def test_azure(tmp_path: Path, name: str, zone: str) -> None:
    text = AZURE.replace("9600,", f"9600{zone},").replace("9601,", f"9601{zone},")
    workload = read_trace(written(tmp_path, name, text))
    assert workload.arrival_s.tolist() == [0.0, 1.2500001]
    assert workload.input_tokens.tolist() == [4808, 3180]
    assert workload.output_tokens.tolist() == [10, 1]
    assert workload.hash_block_tokens == 0
    assert workload.hash_offsets.tolist() == [0, 0, 0]


def test_equal_times_keep_their_order(tmp_path: Path) -> None:
    times, lengths = [5, 3, 5, 3, 5], [1, 2, 3, 4, 5]
    rows = [
        {"timestamp": t, "input_length": n, "output_length": 1, "hash_ids": [n]}
        for t, n in zip(times, lengths, strict=True)
    ]
    assert read_trace(written(tmp_path, "t", jsonl(*rows))).input_tokens.tolist() == [2, 4, 1, 3, 5]


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"input_length": 0, "hash_ids": []}, "input_length: '0': Input should be greater than or equal to 1"),
    ({"input_length": 2.5}, "input_length: '2.5': "),
    ({"input_length": "513"}, "input_length: '513': "),
    ({"input_length": None}, "input_length: 'None': "),
    ({"output_length": -1}, "output_length: '-1': Input should be greater than or equal to 0"),
    ({"output_length": 2**31}, "output_length: '2147483648': "),
    ({"output_length": True}, "output_length: 'True': "),
    ({"timestamp": "now"}, "timestamp: 'now': "),
    ({"timestamp": float("nan")}, "timestamp: 'nan': "),
    (
        {"hash_ids": [7]},
        "hash_ids has 1 ids for input_length 513; allowed is one id per 512 tokens, the last block partial: 2",
    ),
    ({"hash_ids": [7, None]}, "hash_ids.1: 'None': "),
    ({"hash_ids": [7, 2**63]}, "hash_ids.1: "),
    ({"hash_ids": 7}, "hash_ids: '7': "),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_bad_mooncake_line(tmp_path: Path, name: str, change: dict[str, Any], message: str) -> None:
    path = written(tmp_path, name, jsonl(ROWS[0]) + "\n\n" + jsonl({**ROWS[2], **change}, ROWS[1]))
    with pytest.raises(ConfigError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}:3: {message}")


@pytest.mark.parametrize("name", ["timestamp", "input_length", "output_length", "hash_ids"])
def test_missing_key(tmp_path: Path, name: str) -> None:
    row = {key: value for key, value in ROWS[2].items() if key != name}
    path = written(tmp_path, "t", jsonl(ROWS[0], row))
    with pytest.raises(ConfigError) as caught:
        read_trace(path)
    assert str(caught.value) == f"{path}:2: {name}: Field required"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2023-11-16 18:17:05,abc,1", "ContextTokens: 'abc': "),
        ("2023-11-16 18:17:05,0,1", "ContextTokens: '0': "),
        ("2023-11-16 18:17:05,7,-1", "GeneratedTokens: '-1': "),
        ("2023-11-16 18:17:05,7,", "GeneratedTokens: '': "),
        ("2023-11-16 18:17:05,7", "GeneratedTokens: Field required"),
        ("yesterday,7,1", "TIMESTAMP: 'yesterday': "),
    ],
)
def test_bad_azure_line(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path, "t.csv", AZURE + "\r\n" + line)
    with pytest.raises(ConfigError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}:4: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "t:1: '': not a known trace"),
        (b"hello,world\n", "t:1: 'hello,world': not a known trace"),
        (b"TIMESTAMP,ContextTokens\n2023-11-16 18:17:05,7\n", "t:1: GeneratedTokens: no such column"),
        (b"TIMESTAMP,ContextTokens,GeneratedTokens\n", "t: the trace has no requests"),
        (b'{"timestamp": 0, "input_len', "t:1: Invalid JSON"),
    ],
)
def test_not_a_trace(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_trace(written(tmp_path, "t", content))
    assert str(caught.value).startswith(f"{tmp_path}/{message}")


def test_unreadable(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gz"
    damaged.write_bytes(gzip.compress(jsonl(*ROWS).encode())[:-20])
    for path in (tmp_path / "absent", tmp_path, damaged):
        with pytest.raises(ConfigError, match="cannot read the trace"):
            read_trace(path)


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(1, 3000), st.integers(0, 100), st.integers(0, 5)), min_size=1
    )
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int, int]]) -> None:
    """What was written comes back, in order of time, with ids equal exactly where they were equal."""
    records = [
        {
            "timestamp": time,
            "input_length": tokens,
            "output_length": output,
            "hash_ids": [1000 * start + k for k in range(-(-tokens // 512))],
        }
        for time, tokens, output, start in rows
    ]
    workload = read_trace(written(tmp_path_factory.mktemp("trace"), "t", jsonl(*records)))
    expected = sorted(records, key=lambda record: record["timestamp"])
    assert workload.input_tokens.tolist() == [record["input_length"] for record in expected]
    assert workload.output_tokens.tolist() == [max(record["output_length"], 1) for record in expected]
    first = expected[0]["timestamp"]
    np.testing.assert_allclose(workload.arrival_s, [(r["timestamp"] - first) / 1e3 for r in expected], atol=1e-9)
    ids = [block for record in expected for block in record["hash_ids"]]
    renumbered = dict(zip(ids, workload.hash_ids.tolist(), strict=True))
    assert [renumbered[block] for block in ids] == workload.hash_ids.tolist()
    assert sorted(renumbered.values()) == list(range(len(set(ids))))
