"""Trace readers: what a good file becomes, and which line of a bad one is named."""

from __future__ import annotations

import gzip
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from dynosim import workload
from dynosim.errors import ConfigError
from dynosim.workload import Workload, read_trace, reuse_bound

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


def test_mooncake_sessions(tmp_path: Path) -> None:
    """Turns follow their session in file order: a delay counts from the end of the turn before, and where there is none
    the difference of the timestamps does. Sessions come in order of their first turns."""
    rows = [
        {"session_id": "b", "created_time": 5000, "input_tokens": 10, "output_tokens": 1},
        {"session_id": "a", "created_time": 2000, "input_tokens": 20, "output_tokens": 2},
        {"session_id": "b", "delay_ms": 1500, "input_tokens": 11, "output_tokens": 1, "priority": 2},
        {"session_id": "a", "created_time": 2750, "input_tokens": 21, "output_tokens": 2},
        {"session_id": "b", "delay": 0, "created_time": 9999, "input_tokens": 12, "output_tokens": 1},
        {"created_time": 4000, "input_tokens": 30, "output_tokens": 3},
    ]
    workload = read_trace(written(tmp_path, "t.jsonl", jsonl(*rows)))
    assert workload.input_tokens.tolist() == [20, 21, 30, 10, 11, 12]
    assert workload.session.tolist() == [0, 0, 1, 2, 2, 2]
    assert workload.arrival_s.tolist() == [0, 0, 2, 3, 3, 3]
    assert workload.delay_s.tolist() == [0, 0.75, 0, 0, 1.5, 0]
    assert before(workload) == [[], [0], [], [], [3], [4]]
    assert workload.priority.tolist() == [0, 0, 0, 0, 2, 0]
    assert workload.hash_block_tokens == 0


def before(workload: Workload) -> list[list[int]]:
    """Return what each request waits for."""
    return [sorted(ids.tolist()) for ids in np.split(workload.after_ids, workload.after_offsets[1:-1])]


GRAPH = [
    {"request_id": "join", "wait_for": ["left", "right"], "delay": 10, "tool_wait_ms": 90},
    {"request_id": "plan", "timestamp": 1000, "session_id": 7},
    {"request_id": "left", "wait_for": ["plan"], "tool_wait_ms": 500, "session_id": 7},
    {"request_id": "right", "wait_for": ["plan"], "delay": 20, "branches": ["x"]},
    {"request_id": "other", "timestamp": 400},
]


def graph(*changes: tuple[int, dict[str, Any]]) -> str:
    rows = [{"input_length": 10 + i, "output_length": 1, **row} for i, row in enumerate(GRAPH)]
    for i, change in changes:
        rows[i] = {**rows[i], **change}
    return jsonl(*rows)


@pytest.mark.parametrize("number", [False, True])
def test_agentic_mooncake(tmp_path: Path, number: bool) -> None:
    """A planner, two parallel calls and a join; ids are texts or numbers."""
    text = graph()
    if number:
        for k, row in enumerate(GRAPH):
            text = text.replace(f'"{row["request_id"]}"', str(k))
    workload = read_trace(written(tmp_path, "t.jsonl", text))
    assert workload.input_tokens.tolist() == [14, 11, 12, 13, 10]
    assert workload.session.tolist() == [0, 1, 1, 1, 1]
    assert workload.arrival_s.tolist() == [0, 0.6, 0.6, 0.6, 0.6]
    assert before(workload) == [[], [], [1], [1], [2, 3]]
    assert workload.delay_s == pytest.approx([0, 0, 0.5, 0.02, 0.1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((1, {"wait_for": ["join"]}), "1: waits for itself, through others or not"),
        ((3, {"wait_for": ["nobody"]}), "4: wait_for: 'nobody': no such request_id"),
        ((4, {"request_id": "left"}), "5: request_id: another request has this id"),
        ((2, {"tool_wait_ms": -1}), "3: tool_wait_ms: '-1': Input should be greater than or equal to 0"),
        ((4, {"timestamp": None}), "5: timestamp: Field required"),
    ],
)
def test_bad_graph(tmp_path: Path, change: tuple[int, dict[str, Any]], message: str) -> None:
    path = written(tmp_path, "t.jsonl", graph(change))
    with pytest.raises(ConfigError) as caught:
        read_trace(path)
    assert str(caught.value) == f"{path}:{message}"


def test_turn_before_its_predecessor(tmp_path: Path) -> None:
    row = {"session_id": 1, "input_length": 5, "output_length": 1}
    path = written(tmp_path, "t", jsonl({**row, "timestamp": 10}, {**row, "timestamp": 9}))
    with pytest.raises(ConfigError, match="t:2: timestamp: is before the session's turn in front of it"):
        read_trace(path)


def test_block_tokens_and_longest_delay(tmp_path: Path) -> None:
    rows = [
        {"session_id": 1, "timestamp": 0, "input_length": 100, "output_length": 1, "hash_ids": [5, 6]},
        {"session_id": 1, "delay": 90000, "input_length": 128, "output_length": 1, "hash_ids": [5, 8]},
    ]
    path = written(tmp_path, "t", jsonl(*rows))
    workload = read_trace(path, block_tokens=64, max_delay_s=60.0)
    assert (workload.hash_block_tokens, workload.hash_ids.tolist()) == (64, [0, 1, 0, 2])
    assert workload.delay_s.tolist() == [0, 60]
    with pytest.raises(ConfigError, match=r"t:1: hash_ids has 2 ids for input_length 100; .* per 32 tokens, .*: 4"):
        read_trace(path, block_tokens=32)
    with pytest.raises(ConfigError, match="only Mooncake traces name blocks, this is azure"):
        read_trace(written(tmp_path, "a", AZURE), block_tokens=64)


LENGTHS = [
    ("num_prefill_tokens,num_decode_tokens,pd_ratio\n7,1,7.0\n3,0,inf\n", None),
    ("Timestamp,Model,Request tokens,Response tokens\n5,x,7,1\n6.5,y,3,0\n", [0, 1.5]),
    ("arrival_time_ns,prompt_len,output_len\n1000000000,7,1\n2500000000,3,0\n", [0, 1.5]),
    ("arrived_at,ISL,OSL\n2024-01-01 10:00:00,7,1\n2024-01-01 10:00:01.500,3,0\n", [0, 1.5]),
    ("TIMESTAMP,prompt_tokens,completion_tokens\n5,7,1\n6.5,3,0\n", [0, 1.5]),
    ('{"arrival_s": 5, "prompt_tokens": 7, "completion_tokens": 1}\n'
     '{"arrival_s": 6.5, "prompt_tokens": 3, "completion_tokens": 0}\n', [0, 1.5]),
]  # fmt: skip


@pytest.mark.parametrize("name", ["t", "t.gz", "t.zst"])
@pytest.mark.parametrize(("text", "times_s"), LENGTHS)
def test_lengths(tmp_path: Path, name: str, text: str, times_s: list[float] | None) -> None:
    workload = read_trace(written(tmp_path, name, text))
    assert workload.input_tokens.tolist() == [7, 3]
    assert workload.output_tokens.tolist() == [1, 1]
    assert workload.timed == (times_s is not None)
    assert workload.arrival_s.tolist() == (times_s or [0, 0])


@pytest.mark.parametrize("compressed", [False, True])
def test_lengths_in_parquet(tmp_path: Path, compressed: bool) -> None:
    table = pa.table({"prompt_tokens": [7, 3], "output_tokens": pa.array([1, 0], pa.int32()), "timestamp": [2.0, 1.0]})
    path = tmp_path / "t.parquet"
    parquet.write_table(table, path)
    if compressed:
        path = written(tmp_path, "t.parquet.gz", path.read_bytes())
    workload = read_trace(path)
    assert (workload.input_tokens.tolist(), workload.arrival_s.tolist()) == ([3, 7], [0.0, 1.0])


def test_bad_lengths(tmp_path: Path) -> None:
    table = pa.table({"prompt_tokens": [7, 0], "output_tokens": [1, 1]})
    parquet.write_table(table, tmp_path / "t.parquet")
    for path, message in [
        (tmp_path / "t.parquet", "2: prompt_tokens: '0': Input should be greater than or equal to 1"),
        (written(tmp_path, "a", "ISL,OSL\n5,1\n5,x\n"), "3: OSL: 'x': "),
        (written(tmp_path, "b", "ISL,OSL,time_s\n5,1,0\n5,1,nan\n"), "3: time_s: 'nan': "),
        (written(tmp_path, "c", "ISL,OSL,time_s\n5,1,0\n5,1,later\n"), "3: time_s: 'later': "),
    ]:
        with pytest.raises(ConfigError) as caught:
            read_trace(path)
        assert str(caught.value).startswith(f"{path}:{message}")
    with pytest.raises(ConfigError, match="a:1: no column of prompt tokens; allowed are input_tokens, "):
        read_trace(written(tmp_path, "a", "x,OSL\n5,1\n"), format="lengths")


def test_token_ids(tmp_path: Path) -> None:
    """Blocks of 16 tokens are equal where they and all before them are; a partial block only equals itself."""
    prompts = [list(range(40)), [*range(32), 99, 98], list(range(32)), [0] * 16 + list(range(16)), list(range(40))]
    rows = [
        {"input_toks": len(ids), "output_toks": 2, "arrival_time_ns": 10**9 * i, "input_tok_ids": ids}
        for i, ids in enumerate(prompts)
    ]
    workload = read_trace(written(tmp_path, "t.jsonl", jsonl(*rows)))
    ids = [block.tolist() for block in np.split(workload.hash_ids, workload.hash_offsets[1:-1])]
    assert workload.hash_block_tokens == 16
    assert workload.arrival_s.tolist() == [0, 1, 2, 3, 4]
    assert [len(block) for block in ids] == [3, 3, 2, 2, 3]
    assert ids[0] == ids[4]
    assert ids[0][:2] == ids[1][:2] == ids[2]
    assert len({ids[0][2], ids[1][2], *ids[3], *ids[2]}) == 6
    path = written(tmp_path, "bad", jsonl(rows[0], {**rows[1], "input_toks": 5}))
    with pytest.raises(ConfigError, match="bad:2: input_tok_ids has 34 ids for input_toks 5"):
        read_trace(path)


def test_conversations(tmp_path: Path) -> None:
    """Of the second turn 40 + 24 of the 68 tokens are history: four blocks of 16, so the first turn's ids cover its
    answer. The third forgets all but 20."""
    header = "conversation,turn,input_tokens,output_tokens,history_tokens"
    text = header + "\n9,0,40,24,0\n9,1,68,5,64\n9,2,50,5,20\n4,0,0,7,0\n"
    workload = read_trace(written(tmp_path, "t.csv", text))
    assert not workload.timed
    assert workload.session.tolist() == [0, 0, 0, 1]
    assert before(workload) == [[], [0], [1], []]
    assert workload.input_tokens.tolist() == [40, 68, 50, 1]
    assert workload.hashed_tokens.tolist() == [64, 68, 50, 1]
    ids = [block.tolist() for block in np.split(workload.hash_ids, workload.hash_offsets[1:-1])]
    assert [len(block) for block in ids] == [4, 5, 4, 1]
    assert (ids[1][:4], ids[2][:1]) == (ids[0], ids[0][:1])
    assert len(set(ids[2][1:]) & {*ids[0], *ids[1]}) == 0
    path = written(tmp_path, "bad", text.replace("68,5,64", "68,5,69"))
    with pytest.raises(ConfigError, match="bad:3: history_tokens 69 is above input_tokens 68"):
        read_trace(path)
    path = written(tmp_path, "bad", text.replace("9,2,", "9,1,"))
    with pytest.raises(ConfigError, match="bad:4: turn: is not above the session's turn in front of it"):
        read_trace(path)


def test_agentic_sessions(tmp_path: Path) -> None:
    """The second prompt has room for the answer, the third does not, the fourth kept one block only."""
    text = (
        "trace,request_idx,input_tokens,output_tokens_expected,cached_blocks_64,new_blocks_64,delay_s\n"
        "x,4,128,64,1,1,9\nx,5,200,30,2,1,3.5\nx,8,220,30,3,0,0\nx,9,256,1,1,3,2\n"
    )
    workload = read_trace(written(tmp_path, "t.csv", text))
    assert before(workload) == [[], [0], [1], [2]]
    assert workload.delay_s.tolist() == [0, 3.5, 0, 2]
    assert workload.hashed_tokens.tolist() == [192, 200, 220, 256]
    ids = [block.tolist() for block in np.split(workload.hash_ids, workload.hash_offsets[1:-1])]
    shared = [len(set(a) & set(b)) for a, b in pairwise(ids)]
    assert shared == [3, 3, 1]
    path = written(tmp_path, "bad", text.replace("200,30,2", "200,30,4"))
    with pytest.raises(ConfigError, match=r"bad:3: cached_blocks_64 4 is above input_tokens 200 / 64"):
        read_trace(path)


def test_a_rate_curve_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a rate curve, not a trace: allowed is load \{type: rate_curve"):
        read_trace(written(tmp_path, "t", "workload,t_s,rate_rps\na,0,1\n"))


PACKAGED = Path(workload.__file__).parents[1] / "fidelity" / "measured"
PUBLIC = Path(os.environ.get("DYNOSIM_TRACES", "traces"))
"""A folder with the public traces that docs/workloads.md names; the two that measured runs sent are in the package."""


def _public(name: str, block_tokens: int | None = None) -> Workload:
    path = next((path for path in (PACKAGED / name, PUBLIC / name) if path.is_file()), None)
    if path is None:
        pytest.skip(f"{name} is not in DYNOSIM_TRACES")
    return read_trace(path, block_tokens=block_tokens)


@pytest.mark.parametrize(
    ("name", "requests", "sessions", "input_mean"),
    [
        ("AzureLLMInferenceTrace_code_2023.csv.gz", 8819, 8819, 2048),
        ("AzureLLMInferenceTrace_conv_2023.csv.gz", 19366, 19366, 1155),
        ("arxiv_summarization_lengths.csv.gz", 28257, 28257, 2588),
        ("inferencex_agentic_coding_turns.csv.gz", 745, 264, 71869),
        ("inferencex_multiturn_wildchat_turns.csv.gz", 5737, 1221, 1945),
        ("llmservingsim_sharegpt_qwen3_300_sps10.jsonl.gz", 300, 300, 862),
        ("mooncake_conversation_trace.jsonl.gz", 12031, 12031, 12035),
        ("mooncake_synthetic_trace.jsonl.gz", 3993, 3993, 15325),
    ],
)
def test_public_traces(name: str, requests: int, sessions: int, input_mean: float) -> None:
    workload = _public(name)
    assert (len(workload), workload.session.max() + 1) == (requests, sessions)
    assert workload.input_tokens.mean() == pytest.approx(input_mean, abs=0.6)


@pytest.mark.parametrize(
    ("name", "block_tokens", "published", "points"),
    [
        ("inferencex_multiturn_wildchat_turns.csv.gz", None, 88.5, 0.4),  # of tokens; blocks of 16 lose some
        ("llmservingsim_sharegpt_llama31_8b.jsonl.gz", 16, 7.6, 0.05),
        ("llmservingsim_sharegpt_qwen3_300_sps10.jsonl.gz", None, 7.9, 0.05),
        ("mooncake_conversation_trace.jsonl.gz", None, 37.36, 0.01),
        ("mooncake_synthetic_trace.jsonl.gz", None, 65.12, 0.01),
    ],
)
def test_reuse_of_public_traces(name: str, block_tokens: int | None, published: float, points: float) -> None:
    assert 100 * reuse_bound(_public(name, block_tokens)) == pytest.approx(published, abs=points)
