"""Files of records: decompressed and parsed by Arrow's vectorised readers into columns.

Only a file with something wrong in it is read a second time, record by record, to name the line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from dynosim.errors import ConfigError
from dynosim.workload.table import FloatArray, IntArray

_ARROW_BLOCK_BYTES: Final = 1 << 24
"""Arrow's unit of parsing: no line may be longer."""
MAX_TOKENS: Final = 2**31 - 1

Kind = Literal["jsonl", "csv", "parquet"]
InputTokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
OutputTokens = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class InvalidTraceError(Exception):
    """The file has a record that is not valid; *row* is its number from 0 where that is known."""

    def __init__(self, message: str, row: int | None = None, field: str = "") -> None:
        super().__init__(message)
        self.row, self.field = row, field


def open_decompressed(path: Path) -> IO[bytes]:
    """Return the decompressed bytes of *path*; Arrow takes the codec from the suffix."""
    import pyarrow as pa

    stream: IO[bytes] = pa.input_stream(str(path), compression="detect")
    return stream


def _open_text(path: Path) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_decompressed(path), encoding="utf-8-sig", errors="replace", newline="")


def kind_of(head: bytes) -> Kind:
    """Return the kind of file that starts with *head*."""
    if head.startswith(b"PAR1"):
        return "parquet"
    return "jsonl" if head.lstrip().startswith(b"{") else "csv"


def read_columns(path: Path, kind: Kind, types: Mapping[str, Any]) -> dict[str, Any]:
    """Return the named columns as Arrow arrays; type None is Arrow's choice, an absent key of JSON a null.

    Raises InvalidTraceError where the file has no such columns or they have other types.
    """
    import pyarrow as pa

    try:
        table = {"jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet}[kind](path, types)
    except (pa.ArrowInvalid, KeyError) as error:
        raise InvalidTraceError(str(error)) from error
    return {name: table.column(name).combine_chunks() for name in types}


def _read_jsonl(path: Path, types: Mapping[str, Any]) -> Any:
    import pyarrow as pa
    from pyarrow import json as arrow_json

    free = [name for name, type in types.items() if type is None]
    schema = pa.schema({name: type for name, type in types.items() if type is not None})
    parse = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="infer" if free else "ignore")
    with open_decompressed(path) as stream:
        return arrow_json.read_json(stream, arrow_json.ReadOptions(block_size=_ARROW_BLOCK_BYTES), parse)


def _read_csv(path: Path, types: Mapping[str, Any]) -> Any:
    from pyarrow import csv as arrow_csv

    known = {name: type for name, type in types.items() if type is not None}
    convert = arrow_csv.ConvertOptions(column_types=known, include_columns=list(types))
    with open_decompressed(path) as stream:
        return arrow_csv.read_csv(stream, convert_options=convert)


def _read_parquet(path: Path, types: Mapping[str, Any]) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    with open_decompressed(path) as stream:
        table = parquet.read_table(io.BytesIO(stream.read()), columns=list(types))
    schema = pa.schema({name: type or table.schema.field(name).type for name, type in types.items()})
    return table.select(list(types)).cast(schema)


def column_names(path: Path, kind: Kind) -> list[str]:
    """Return the names of the columns, of JSON the keys of the first record."""
    if kind == "parquet":
        from pyarrow import parquet

        with open_decompressed(path) as stream:
            return list(parquet.read_schema(io.BytesIO(stream.read())).names)
    if kind == "csv":
        with _open_text(path) as text:
            return next(csv.reader(text), [])
    line, first = next(records(path, kind), (1, "{}"))
    try:
        return list(json.loads(str(first)))
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}", file=str(path), line=line) from error


def records(path: Path, kind: Kind) -> Iterator[tuple[int, str | dict[str, Any]]]:
    """Yield (line, record) one by one; a record is the JSON text or the values by column; Parquet counts rows."""
    if kind == "parquet":
        from pyarrow import parquet

        with open_decompressed(path) as stream:
            yield from enumerate(parquet.read_table(io.BytesIO(stream.read())).to_pylist(), start=1)
        return
    with _open_text(path) as text:
        if kind == "jsonl":
            yield from ((number, line) for number, line in enumerate(text, start=1) if line.strip())
        else:
            reader = csv.DictReader(text)
            for row in reader:
                yield reader.line_num, {key: value for key, value in row.items() if key and value is not None}


def first_error(
    path: Path, kind: Kind, model: type[BaseModel], error: InvalidTraceError, context: dict[str, Any] | None = None
) -> ConfigError:
    """Return *error* as what the user can act on: with the line of the first record that is not valid."""
    for row, (line, record) in enumerate(records(path, kind)):
        try:
            with _located(path, line):
                if isinstance(record, str):
                    model.model_validate_json(record, context=context)
                else:
                    model.model_validate(record, context=context)
        except ConfigError as found:
            return found
        if row == error.row:
            return ConfigError(str(error), file=str(path), line=line, path=error.field)
    return ConfigError(str(error), file=str(path), path=error.field)


@contextmanager
def _located(path: Path, line: int) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        value = f"{str(first['input'])[:60]!r}: " if field and first["type"] != "missing" else ""
        message = value + first["msg"].removeprefix("Value error, ")
        raise ConfigError(message, file=str(path), line=line, path=field) from error


def values(column: Any) -> NDArray[Any]:
    """Return an Arrow array as NumPy's, without a copy; raises InvalidTraceError where a value is missing.

    DLPack and not ``to_numpy``, which imports pandas (0.2 s).
    """
    if column.null_count:
        raise InvalidTraceError("a value is missing")
    return np.from_dlpack(column)


def optional(column: Any) -> FloatArray:
    """Return an Arrow array of floats with NaN where a value is missing."""
    import pyarrow.compute as pc

    return values(pc.fill_null(column, float("nan")))


def codes(column: Any) -> IntArray:
    """Return labels as numbers from 0 in order of first appearance, -1 where one is missing."""
    import pyarrow.compute as pc

    return values(pc.fill_null(column.dictionary_encode().indices, -1)).astype(np.int64)


def lists(column: Any) -> tuple[IntArray, NDArray[Any]]:
    """Return (offsets, values) of an Arrow array of lists."""
    lengths = values(column.value_lengths())
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64), values(column.flatten())


def token_counts(input_tokens: Any, output_tokens: Any) -> tuple[IntArray, IntArray]:
    """Return prompt and answer tokens."""
    prompts = values(input_tokens)
    in_range((prompts >= 1) & (prompts <= MAX_TOKENS))
    return prompts, answers(output_tokens)


def answers(column: Any) -> IntArray:
    """Return answer tokens; an answer of none counts as one, because a served request yields a token."""
    tokens: IntArray = values(column)
    in_range((tokens >= 0) & (tokens <= MAX_TOKENS))
    return np.maximum(tokens, 1)


def in_range(valid: NDArray[np.bool_]) -> None:
    """Raise InvalidTraceError where something is not valid by a rule of the line's model."""
    if not valid.all():
        raise InvalidTraceError("a value is out of range")


def each(valid: NDArray[np.bool_], message: str, field: str = "") -> None:
    """Raise InvalidTraceError for the first row that breaks a rule between rows."""
    if not valid.all():
        raise InvalidTraceError(message, int(np.argmin(valid)), field)
