"""Trace files into request tables: Mooncake JSONL and Azure LLM inference CSV.

Files are decompressed (``.gz``, ``.zst``) and parsed as a stream by Arrow's vectorised readers, then checked as whole
columns. Only a file with something wrong in it is read a second time, line by line, to name the line.

Rules of every format: rows are sorted by time (stably) and times count from the first; a prompt has at least one token;
an output of zero tokens counts as one, because a served request yields at least one token; block ids are renumbered
densely. Left out: closed-loop turns (``session_id``, ``delay``) and request graphs (``wait_for``).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Annotated, Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator

from dynosim.errors import ConfigError
from dynosim.workload.table import FloatArray, IntArray, Workload, take_ragged

MOONCAKE_BLOCK_TOKENS: Final = 512
"""Prompt tokens per hash id (Mooncake trace release, FAST'25)."""
AZURE_COLUMNS: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_ARROW_BLOCK_BYTES: Final = 1 << 24
"""Arrow's unit of parsing: no line may be longer."""
_MAX_TOKENS: Final = 2**31 - 1

Format = Literal["mooncake", "azure"]
TraceFormat = Literal["auto", "mooncake", "azure"]
InputTokens = Annotated[int, Field(ge=1, le=_MAX_TOKENS)]
OutputTokens = Annotated[int, Field(ge=0, le=_MAX_TOKENS)]
HashId = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class _MooncakeLine(BaseModel, strict=True):
    """What a line of Mooncake JSONL must say."""

    timestamp: FiniteFloat
    input_length: InputTokens
    output_length: OutputTokens
    hash_ids: list[HashId]

    @model_validator(mode="after")
    def _one_id_per_block(self) -> _MooncakeLine:
        blocks = -(-self.input_length // MOONCAKE_BLOCK_TOKENS)
        if len(self.hash_ids) != blocks:
            raise ValueError(
                f"hash_ids has {len(self.hash_ids)} ids for input_length {self.input_length}; "
                f"allowed is one id per {MOONCAKE_BLOCK_TOKENS} tokens, the last block partial: {blocks}"
            )
        return self


class _AzureLine(BaseModel):
    """What a line of Azure CSV must say."""

    TIMESTAMP: datetime
    ContextTokens: InputTokens
    GeneratedTokens: OutputTokens


class _Columns(NamedTuple):
    """A trace in file order; without block ids ``hash_block_tokens`` is 0 and ``hash_ids`` is empty."""

    time_s: FloatArray
    input_tokens: IntArray
    output_tokens: IntArray
    hash_block_tokens: int
    hash_offsets: IntArray
    hash_ids: IntArray


class _InvalidTraceError(Exception):
    """The file has a line that is not valid; which one is not known yet."""


class _InvalidLineError(Exception):
    """This line is not valid."""

    def __init__(self, line: int, field: str, message: str) -> None:
        self.line, self.field, self.message = line, field, message


def read_trace(path: str | Path, format: TraceFormat = "auto") -> Workload:
    """Read a trace file; ``auto`` recognises the format by content.

    Raises ConfigError, naming file and line, when the file cannot be opened or a line is not valid.
    """
    try:
        return _read(Path(path), format)
    except OSError as error:
        raise ConfigError(f"cannot read the trace: {error.strerror or error}", file=str(path)) from error


def file_version(path: str) -> tuple[int, int]:
    """Return what changes when the file does: (mtime in ns, size in bytes). Raises ConfigError when there is none."""
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise ConfigError(f"cannot read the trace: {error.strerror}", file=path) from error
    return stat.st_mtime_ns, stat.st_size


def _read(path: Path, format: TraceFormat) -> Workload:
    kind = _detect(path) if format == "auto" else format
    try:
        columns = _read_mooncake(path) if kind == "mooncake" else _read_azure(path)
    except _InvalidTraceError as error:
        raise (_first_error(path, kind) or ConfigError(str(error), file=str(path))) from error
    if not len(columns.time_s):
        raise ConfigError("the trace has no requests", file=str(path))
    return _table(path.name, columns)


def _table(name: str, columns: _Columns) -> Workload:
    order = np.argsort(columns.time_s, kind="stable")
    offsets, ids = take_ragged(columns.hash_offsets, columns.hash_ids, order)
    time_s = columns.time_s[order]
    return Workload(
        name=name,
        arrival_s=time_s - time_s[0],
        input_tokens=columns.input_tokens[order],
        output_tokens=np.maximum(columns.output_tokens[order], 1),
        hash_block_tokens=columns.hash_block_tokens,
        hash_offsets=offsets,
        hash_ids=np.unique(ids, return_inverse=True)[1].astype(np.int64, copy=False),
    )


def _open(path: Path) -> IO[bytes]:
    """Return the decompressed bytes of *path*; Arrow takes the codec from the suffix."""
    import pyarrow as pa

    stream: IO[bytes] = pa.input_stream(str(path), compression="detect")
    return stream


def _detect(path: Path) -> Format:
    with _open(path) as stream:
        head = stream.read(4096).lstrip()
    if head.startswith(b"{"):
        return "mooncake"
    if AZURE_COLUMNS[0].encode() in head.partition(b"\n")[0]:
        return "azure"
    start = head[:40].splitlines()[0].decode(errors="replace") if head else ""
    raise ConfigError(
        f"{start!r}: not a known trace; allowed are Mooncake JSONL (lines start with '{{') "
        f"and Azure CSV (header {','.join(AZURE_COLUMNS)})",
        file=str(path),
        line=1,
    )


def _read_mooncake(path: Path) -> _Columns:
    import pyarrow as pa
    from pyarrow import json

    schema = pa.schema(
        {
            "timestamp": pa.float64(),
            "input_length": pa.int64(),
            "output_length": pa.int64(),
            "hash_ids": pa.list_(pa.int64()),
        }
    )
    parse = json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        with _open(path) as stream:
            table = json.read_json(stream, json.ReadOptions(block_size=_ARROW_BLOCK_BYTES), parse)
    except pa.ArrowInvalid as error:
        raise _InvalidTraceError(str(error)) from error
    times_ms, input_tokens, output_tokens, hash_ids = (column.combine_chunks() for column in table.columns)
    blocks = _values(hash_ids.value_lengths())
    columns = _Columns(
        time_s=_values(times_ms) / 1e3,
        input_tokens=_values(input_tokens),
        output_tokens=_values(output_tokens),
        hash_block_tokens=MOONCAKE_BLOCK_TOKENS,
        hash_offsets=np.concatenate(([0], np.cumsum(blocks))).astype(np.int64),
        hash_ids=_values(hash_ids.flatten()),
    )
    _check_ranges(columns)
    if np.any(blocks != -(-columns.input_tokens // MOONCAKE_BLOCK_TOKENS)):
        raise _InvalidTraceError("the number of hash_ids is not the number of blocks")
    return columns


def _read_azure(path: Path) -> _Columns:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    with _open(path) as stream:
        zoned = b"+" in stream.read(4096)  # the 2024 files write +00:00, the 2023 files no zone
    types = (pa.timestamp("ns", "UTC" if zoned else None), pa.int64(), pa.int64())
    convert = arrow_csv.ConvertOptions(
        column_types=dict(zip(AZURE_COLUMNS, types, strict=True)), include_columns=AZURE_COLUMNS
    )
    try:
        with _open(path) as stream:
            table = arrow_csv.read_csv(stream, convert_options=convert)
    except (pa.ArrowInvalid, KeyError) as error:
        raise _InvalidTraceError(str(error)) from error
    times, input_tokens, output_tokens = (column.combine_chunks() for column in table.columns)
    time_ns = _values(times.view("int64"))
    columns = _Columns(
        time_s=(time_ns - time_ns[:1]) / 1e9,  # before the division: 2023 in ns has no exact float
        input_tokens=_values(input_tokens),
        output_tokens=_values(output_tokens),
        hash_block_tokens=0,
        hash_offsets=np.zeros(len(time_ns) + 1, np.int64),
        hash_ids=np.empty(0, np.int64),
    )
    _check_ranges(columns)
    return columns


def _values(array: Any) -> NDArray[Any]:
    """Return an Arrow array as NumPy's, without a copy; raises _InvalidTraceError where a value is missing.

    DLPack and not ``to_numpy``, which imports pandas (0.2 s).
    """
    if array.null_count:
        raise _InvalidTraceError("a value is missing")
    return np.from_dlpack(array)


def _check_ranges(columns: _Columns) -> None:
    tokens = np.stack((columns.input_tokens, columns.output_tokens + 1))
    if not np.isfinite(columns.time_s).all() or np.any((tokens < 1) | (tokens > _MAX_TOKENS)):
        raise _InvalidTraceError("a value is out of range")


def _first_error(path: Path, kind: Format) -> ConfigError | None:
    """Return the error of the first line that is not valid, or None when every line by itself is."""
    with _open(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
        try:
            _check_mooncake(text) if kind == "mooncake" else _check_azure(text)
        except _InvalidLineError as error:
            return ConfigError(error.message, file=str(path), line=error.line, path=error.field)
    return None


def _check_mooncake(text: io.TextIOBase) -> None:
    for number, line in enumerate(text, start=1):
        if line.strip():
            with _at_line(number):
                _MooncakeLine.model_validate_json(line)


def _check_azure(text: io.TextIOBase) -> None:
    reader = csv.DictReader(text)
    missing = [column for column in AZURE_COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise _InvalidLineError(1, missing[0], f"no such column; allowed is a header with {','.join(AZURE_COLUMNS)}")
    for row in reader:
        with _at_line(reader.line_num):
            _AzureLine.model_validate({key: value for key, value in row.items() if value is not None})


@contextmanager
def _at_line(number: int) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        value = f"{str(first['input'])[:60]!r}: " if field and first["type"] != "missing" else ""
        raise _InvalidLineError(number, field, value + first["msg"].removeprefix("Value error, ")) from error
