"""Plain lengths, with times or without: CSV, Parquet or JSONL with a column for each, and Azure's LLM inference CSV.

Recognised are the column names of vLLM's and SGLang's benchmarks, Vidur, BurstGPT, Splitwise and Azure; case and spaces
do not matter. A time is seconds, or a date. Nothing is said about content, so nothing is shared.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, create_model

from dynosim.errors import ConfigError
from dynosim.workload.readers.graph import NO_PAIRS, arranged
from dynosim.workload.readers.records import (
    InputTokens,
    InvalidTraceError,
    Kind,
    OutputTokens,
    column_names,
    in_range,
    optional,
    read_columns,
    records,
    token_counts,
    values,
)
from dynosim.workload.table import FloatArray, IntArray, Workload

INPUT_NAMES: Final = (
    "input_tokens",
    "input_length",
    "input_len",
    "prompt_tokens",
    "prompt_len",
    "prompt_length",
    "prompt_size",
    "num_prefill_tokens",
    "context_tokens",
    "contexttokens",
    "request_tokens",
    "isl",
)
OUTPUT_NAMES: Final = (
    "output_tokens",
    "output_length",
    "output_len",
    "completion_tokens",
    "generated_tokens",
    "generatedtokens",
    "token_size",
    "num_decode_tokens",
    "response_tokens",
    "osl",
)
TIME_NAMES: Final = {
    "timestamp": 1.0,
    "arrival_s": 1.0,
    "arrival_time_s": 1.0,
    "arrival_timestamp": 1.0,
    "arrival_time": 1.0,
    "arrived_at": 1.0,
    "time_s": 1.0,
    "timestamp_ms": 1e-3,
    "arrival_ms": 1e-3,
    "arrival_time_ns": 1e-9,
}
"""Seconds per unit."""
AZURE: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class Names(NamedTuple):
    """The file's names of the columns."""

    input: str
    output: str
    time: str | None = None
    seconds: float = 1.0
    """Per unit of a time that is a number."""


def is_lengths(columns: list[str]) -> bool:
    """Return whether these columns give a length of prompts and one of answers."""
    found = {_plain(name) for name in columns}
    return not found.isdisjoint(INPUT_NAMES) and not found.isdisjoint(OUTPUT_NAMES)


def azure_names(path: Path) -> Names:
    """Return Azure's columns; raises ConfigError naming one that is missing."""
    columns = column_names(path, "csv")
    missing = [name for name in AZURE if name not in columns]
    if missing:
        allowed = ",".join(AZURE)
        raise ConfigError(
            f"no such column; allowed is a header with {allowed}", file=str(path), line=1, path=missing[0]
        )
    time, input, output = AZURE
    return Names(input, output, time)


def plain_names(path: Path, kind: Kind) -> Names:
    """Return the columns to read; raises ConfigError where there is none of prompts or answers."""
    by_plain = {_plain(name): name for name in column_names(path, kind)}

    def found(what: str, names: tuple[str, ...]) -> str:
        for name in names:
            if name in by_plain:
                return by_plain[name]
        raise ConfigError(f"no column of {what} tokens; allowed are {', '.join(names)}", file=str(path), line=1)

    lengths = found("prompt", INPUT_NAMES), found("answer", OUTPUT_NAMES)
    time = next((name for name in TIME_NAMES if name in by_plain), None)
    return Names(*lengths) if time is None else Names(*lengths, by_plain[time], TIME_NAMES[time])


def line_model(path: Path, kind: Kind, names: Names) -> type[BaseModel]:
    """Return what a record must say; whether times are dates is taken from the first."""
    fields: dict[str, Any] = {
        "input": (InputTokens, Field(alias=names.input)),
        "output": (OutputTokens, Field(alias=names.output)),
    }
    if names.time is not None:
        _, first = next(records(path, kind), (0, {}))
        value = first.get(names.time) if isinstance(first, dict) else 0.0
        fields["time"] = (FiniteFloat if _is_number(value) else datetime, Field(alias=names.time))
    return create_model("Line", **fields)


def read(path: Path, kind: Kind, names: Names) -> Workload:
    """Return the requests of *path*; raises InvalidTraceError."""
    import pyarrow as pa

    types = {names.input: pa.int64(), names.output: pa.int64()}
    columns = read_columns(path, kind, types | ({names.time: None} if names.time else {}))
    input_tokens, output_tokens = token_counts(columns[names.input], columns[names.output])
    n = len(input_tokens)
    time_s = np.full(n, np.nan) if names.time is None else _seconds(columns[names.time], names.seconds)
    return arranged(
        time_s,
        np.arange(n),
        NO_PAIRS,
        name=path.name,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        hash_block_tokens=0,
        hash_offsets=np.zeros(n + 1, np.int64),
        hash_ids=np.empty(0, np.int64),
    )


def _seconds(column: Any, unit_s: float) -> FloatArray:
    import pyarrow as pa

    if pa.types.is_timestamp(column.type):
        time_ns = values(column.cast(pa.timestamp("ns", column.type.tz)).view("int64"))
        since_ns: IntArray = time_ns - time_ns[:1]  # before the division: dates in ns have no exact float
        return since_ns / 1e9
    if not (pa.types.is_null(column.type) or pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise InvalidTraceError(f"times of type {column.type}; allowed are numbers and dates")
    time_s = optional(column.cast(pa.float64())) * unit_s
    in_range(np.isfinite(time_s))
    return time_s


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
