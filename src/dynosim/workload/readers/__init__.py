"""Trace files into request tables, one module per format.

Rules of every format: ``.gz`` and ``.zst`` open directly; rows are sorted by time (stably) and times count from the
first; a prompt has at least one token; an output of zero tokens counts as one, because a served request yields at least
one token; block ids are renumbered densely; a session's requests stand behind each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from pydantic import BaseModel

from dynosim import plugins
from dynosim.errors import ConfigError
from dynosim.workload.readers import inferencex, lengths, llmservingsim, mooncake, rate_curve
from dynosim.workload.readers.records import (
    InvalidTraceError,
    Kind,
    column_names,
    first_error,
    kind_of,
    open_decompressed,
)
from dynosim.workload.table import Workload

_HEAD_BYTES: Final = 1 << 16

__all__ = ["custom_reader", "file_version", "read_trace"]


class _Reader(NamedTuple):
    kind: Kind
    read: Callable[[], Workload]
    line: Callable[[], type[BaseModel]]
    """What a line must say, to find one that does not."""
    context: dict[str, Any] | None = None
    """What the line's rules need to know."""


def read_trace(
    path: str | Path,
    format: str = "auto",
    *,
    block_tokens: int | None = None,
    max_delay_s: float | None = None,
) -> Workload:
    """Read a trace file by a format or a reader of the user's; ``auto`` recognises the format by content.

    Raises ConfigError, naming file and line, when the file cannot be opened or a line is not valid.
    """
    try:
        workload = _read(Path(path), format, block_tokens)
    except OSError as error:
        raise ConfigError(f"cannot read the trace: {error.strerror or error}", file=str(path)) from error
    if max_delay_s is None:
        return workload
    return replace(workload, delay_s=np.minimum(workload.delay_s, max_delay_s))


def file_version(path: str) -> tuple[int, int]:
    """Return what changes when the file does: (mtime in ns, size in bytes). Raises ConfigError when there is none."""
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise ConfigError(f"cannot read the trace: {error.strerror}", file=path) from error
    return stat.st_mtime_ns, stat.st_size


def custom_reader(reference: str) -> Callable[[Path], Workload]:
    """Return the user's reader, a function of a path, which gives a ``Workload``; ConfigError where it is none."""
    where = "workload.source.format"
    found = plugins.load(reference, path=where)
    if not callable(found):
        raise ConfigError(
            f"{plugins.short(reference)}: allowed: a function of a path that returns a Workload", path=where
        )

    def read(path: Path) -> Workload:
        workload = plugins.call(reference, lambda: found(path), where)
        if not isinstance(workload, Workload):
            raise ConfigError(f"{plugins.short(reference)}: returned no dynosim.Workload", path=where)
        return plugins.call(reference, workload.checked, where)

    return read


def _read(path: Path, format: str, block_tokens: int | None) -> Workload:
    if plugins.is_reference(format):
        return custom_reader(format)(path)
    with open_decompressed(path) as stream:
        head = stream.read(_HEAD_BYTES)
    kind = kind_of(head)
    known = _detect(path, kind, head) if format == "auto" else format
    if block_tokens is not None and known != "mooncake":
        raise ConfigError(
            f"{block_tokens}: only Mooncake traces name blocks, this is {known}", path="workload.source.block_tokens"
        )
    reader = _reader(path, known, kind, block_tokens or mooncake.BLOCK_TOKENS)
    try:
        workload = reader.read()
    except InvalidTraceError as error:
        raise first_error(path, reader.kind, reader.line(), error, reader.context) from error
    if not len(workload):
        raise ConfigError("the trace has no requests", file=str(path))
    return workload


def _reader(path: Path, format: str, kind: Kind, block_tokens: int) -> _Reader:
    match format:
        case "mooncake":
            read = partial(mooncake.read, path, block_tokens)
            return _Reader("jsonl", read, lambda: mooncake.Line, {"block_tokens": block_tokens})
        case "llmservingsim":
            return _Reader("jsonl", partial(llmservingsim.read, path), lambda: llmservingsim.Line)
        case "inferencex" if "trace" in column_names(path, "csv"):
            return _Reader("csv", partial(inferencex.read_agentic, path), lambda: inferencex.AgenticLine)
        case "inferencex":
            return _Reader("csv", partial(inferencex.read_conversations, path), lambda: inferencex.ConversationLine)
        case "azure" | "lengths":
            names = lengths.azure_names(path) if format == "azure" else lengths.plain_names(path, kind)
            kind = "csv" if format == "azure" else kind
            line = partial(lengths.line_model, path, kind, names)
            return _Reader(kind, partial(lengths.read, path, kind, names), line)
    raise ConfigError(f"{format!r}: no such format", path="workload.source.format")


def _detect(path: Path, kind: Kind, head: bytes) -> str:
    columns = _names(path, kind, head)
    if kind == "jsonl" and "input_toks" in columns:
        return "llmservingsim"
    if kind == "jsonl" and ({"hash_ids", "timestamp", "created_time", "session_id", "request_id"} & set(columns)):
        return "mooncake"
    if lengths.AZURE[0] in columns and not set(lengths.AZURE[1:]).isdisjoint(columns):
        return "azure"
    if {"input_tokens", "history_tokens"} <= set(columns) or {"input_tokens", "cached_blocks_64"} <= set(columns):
        return "inferencex"
    if lengths.is_lengths(columns):
        return "lengths"
    if set(rate_curve.COLUMNS) <= set(columns):
        raise ConfigError("a rate curve, not a trace: allowed is load {type: rate_curve, path: ...}", file=str(path))
    start = head[:40].splitlines()[0].decode(errors="replace") if head.strip() else ""
    raise ConfigError(
        f"{start!r}: not a known trace; allowed are JSONL, CSV and Parquet with one column of prompt tokens and one of "
        f"answer tokens, such as input_tokens and output_tokens (docs/workloads.md lists the formats)",
        file=str(path),
        line=1,
    )


def _names(path: Path, kind: Kind, head: bytes) -> list[str]:
    """Return the columns; of JSON the keys near the start, because a record may be long, or broken."""
    if kind == "jsonl":
        return [key.decode(errors="replace") for key in re.findall(rb'"([^"]+)"\s*:', head)]
    return column_names(path, kind)
