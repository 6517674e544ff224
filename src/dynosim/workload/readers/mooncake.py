"""Mooncake JSONL: plain rows, sessions (``session_id``) and request graphs (``wait_for``).

Times are in ms. The key names are those of the FAST'25 trace release, of NVIDIA Dynamo's replay (sessions, ``delay``)
and of its agentic rows (``request_id``, ``wait_for``, ``tool_wait_ms``). A turn of a session is sent ``delay`` after
the one before ended, or without a delay the difference of their timestamps. An agentic row is sent ``delay`` plus
``tool_wait_ms`` after all it waits for have ended.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, FiniteFloat, ValidationInfo, model_validator

from dynosim.workload.readers.graph import NO_PAIRS, arranged, turns_after
from dynosim.workload.readers.records import (
    InputTokens,
    InvalidTraceError,
    OutputTokens,
    codes,
    each,
    in_range,
    lists,
    open_decompressed,
    optional,
    read_columns,
    token_counts,
    values,
)
from dynosim.workload.table import FloatArray, IntArray, Workload, numbered

BLOCK_TOKENS: Final = 512
"""Prompt tokens per hash id (Mooncake trace release, FAST'25)."""
NAMES: Final = {
    "timestamp": ("timestamp", "created_time"),
    "input_length": ("input_length", "input_tokens"),
    "output_length": ("output_length", "output_tokens"),
    "delay": ("delay", "delay_ms"),
}
"""Keys with more than one name."""
_DETECT_BYTES: Final = 1 << 20

HashId = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Milliseconds = Annotated[FiniteFloat, Field(ge=0)]
Label = str | int


def _either(name: str, **changes: Any) -> Any:
    return Field(validation_alias=AliasChoices(*NAMES[name]), **changes)


class Line(BaseModel):
    """What a line must say."""

    model_config = ConfigDict(strict=True)

    timestamp: FiniteFloat | None = _either("timestamp", default=None)
    input_length: InputTokens = _either("input_length")
    output_length: OutputTokens = _either("output_length")
    hash_ids: list[HashId] | None = None
    session_id: Label | None = None
    delay: Milliseconds | None = _either("delay", default=None)
    request_id: Label | None = None
    wait_for: list[Label] | None = None
    tool_wait_ms: Milliseconds | None = None
    priority: int | None = None

    @model_validator(mode="after")
    def _one_id_per_block(self, info: ValidationInfo) -> Line:
        block_tokens = (info.context or {}).get("block_tokens", BLOCK_TOKENS)
        blocks = -(-self.input_length // block_tokens)
        if self.hash_ids is not None and len(self.hash_ids) != blocks:
            raise ValueError(
                f"hash_ids has {len(self.hash_ids)} ids for input_length {self.input_length}; "
                f"allowed is one id per {block_tokens} tokens, the last block partial: {blocks}"
            )
        return self


def read(path: Path, block_tokens: int) -> Workload:
    """Return the requests of *path*; raises InvalidTraceError."""
    import pyarrow.compute as pc

    columns = read_columns(path, "jsonl", _types(path))
    for name, (first, second) in NAMES.items():
        columns[name] = pc.coalesce(columns[first], columns[second])
    input_tokens, output_tokens = token_counts(columns["input_length"], columns["output_length"])
    time_s, session, after, delay_s = _order(columns)
    return arranged(
        time_s,
        session,
        after,
        name=path.name,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        delay_s=delay_s,
        priority=values(columns["priority"].fill_null(0)),
        **_hashes(columns["hash_ids"], input_tokens, block_tokens),
    )


def _types(path: Path) -> dict[str, Any]:
    """Return the Arrow type of every key; an id is a number where the first one of the file is."""
    import pyarrow as pa

    with open_decompressed(path) as stream:
        head = stream.read(_DETECT_BYTES)

    def label(name: str) -> Any:
        return pa.int64() if re.search(rf'"{name}"\s*:\s*-?\d'.encode(), head) else pa.string()

    floats = (*NAMES["timestamp"], *NAMES["delay"], "tool_wait_ms")
    integers = (*NAMES["input_length"], *NAMES["output_length"], "priority")
    return {
        **dict.fromkeys(floats, pa.float64()),
        **dict.fromkeys(integers, pa.int64()),
        "hash_ids": pa.list_(pa.int64()),
        "session_id": label("session_id"),
        "request_id": label("request_id"),
        "wait_for": pa.list_(label("request_id")),
    }


def _hashes(column: Any, input_tokens: IntArray, block_tokens: int) -> dict[str, Any]:
    n = len(input_tokens)
    if column.null_count == n:
        return {"hash_block_tokens": 0, "hash_offsets": np.zeros(n + 1, np.int64), "hash_ids": np.zeros(0, np.int64)}
    each(values(column.is_valid().cast("int8")) == 1, "Field required", "hash_ids")
    offsets, ids = lists(column)
    in_range(np.diff(offsets) == -(-input_tokens // block_tokens))
    return {
        "hash_block_tokens": block_tokens,
        "hash_offsets": offsets,
        "hash_ids": np.unique(ids, return_inverse=True)[1].astype(np.int64, copy=False),
    }


def _order(columns: dict[str, Any]) -> tuple[FloatArray, IntArray, IntArray, FloatArray]:
    """Return (time_s of roots, session, pairs of what waits for what, delay_s)."""
    time_s, delay_s = optional(columns["timestamp"]) / 1e3, optional(columns["delay"]) / 1e3
    tool_s = optional(columns["tool_wait_ms"]) / 1e3
    in_range(~(np.isinf(time_s) | (delay_s < 0) | (tool_s < 0)))
    session, after = _sessions(codes(columns["session_id"])), _graph(columns)
    if len(after):
        session, waits = _workflows(after, len(time_s)), np.isin(np.arange(len(time_s)), after[:, 0])
        delay_s = np.where(waits, np.nan_to_num(delay_s) + np.nan_to_num(tool_s), 0.0)
    else:
        after = turns_after(session)
        delay_s = _turn_delays(time_s, delay_s, after)
        waits = np.isin(np.arange(len(time_s)), after[:, 0])
    if np.isfinite(time_s).any():
        each(waits | np.isfinite(time_s), "Field required", "timestamp")
    return time_s, session, after, delay_s


def _sessions(code: IntArray) -> IntArray:
    """Return sessions as numbers; a row without a session is one of its own."""
    return numbered(np.where(code >= 0, code, code.max(initial=0) + 1 + np.arange(len(code))))


def _turn_delays(time_s: FloatArray, delay_s: FloatArray, after: IntArray) -> FloatArray:
    turn, before = after.T
    since_s = time_s[turn] - time_s[before]
    told = np.isfinite(delay_s[turn])
    wrong = np.zeros(len(time_s), bool)
    wrong[turn] = ~told & (since_s < 0)
    each(~wrong, "is before the session's turn in front of it", "timestamp")
    result = np.zeros(len(time_s))
    result[turn] = np.where(told, delay_s[turn], np.nan_to_num(since_s))
    return result


def _graph(columns: dict[str, Any]) -> IntArray:
    """Return the pairs (row, row it waits for)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wait_for, ids = columns["wait_for"], columns["request_id"]
    if wait_for.null_count == len(wait_for):
        return NO_PAIRS
    offsets = np.concatenate(([0], np.cumsum(values(pc.fill_null(wait_for.value_lengths(), 0)))))
    wanted = wait_for.flatten()
    code = codes(ids)
    named = code >= 0
    each(~named | (code == np.cumsum(named) - 1), "another request has this id", "request_id")
    found = values(pc.fill_null(pc.index_in(wanted, pa.array(ids)), -1)).astype(np.int64)
    row = np.repeat(np.arange(len(ids)), np.diff(offsets))
    unknown = found < 0
    if unknown.any():
        first = int(np.argmax(unknown))
        raise InvalidTraceError(f"{wanted[first].as_py()!r}: no such request_id", int(row[first]), "wait_for")
    return np.unique(np.column_stack((row, found)), axis=0)


def _workflows(after: IntArray, n: int) -> IntArray:
    """Return the connected parts of the graph."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(after)), (after[:, 0], after[:, 1])), shape=(n, n))
    return numbered(connected_components(links, directed=False)[1])
