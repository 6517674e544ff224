"""Request rates over time: CSV with ``t_s`` (start of a window), ``rate_rps`` and, for several series, ``workload``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel, FiniteFloat

from dynosim.errors import ConfigError
from dynosim.workload.readers.records import (
    InvalidTraceError,
    Seconds,
    column_names,
    first_error,
    optional,
    read_columns,
)
from dynosim.workload.table import FloatArray

COLUMNS = ("t_s", "rate_rps")


class Line(BaseModel):
    """What a line must say."""

    t_s: FiniteFloat
    rate_rps: Seconds


def read_rate_curve(path: str, series: str | None) -> tuple[FloatArray, FloatArray]:
    """Return (edges of the windows in s, shape (k + 1,); rates in requests/s, shape (k,)).

    The last window is as long as the one before. Raises ConfigError.
    """
    try:
        names = column_names(Path(path), "csv")
    except OSError as error:
        raise ConfigError(f"cannot read the rate curve: {error.strerror or error}", file=path) from error
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise ConfigError(f"no such column; allowed is a header with {','.join(COLUMNS)}", file=path, path=missing[0])
    try:
        return _windows(*_columns(Path(path), series, "workload" in names))
    except InvalidTraceError as error:
        raise first_error(Path(path), "csv", Line, error) from error


def _columns(path: Path, series: str | None, labelled: bool) -> tuple[FloatArray, FloatArray]:
    import pyarrow as pa

    types = dict.fromkeys(COLUMNS, pa.float64()) | ({"workload": pa.string()} if labelled else {})
    columns = read_columns(path, "csv", types)
    times_s, rates_rps = (optional(columns[name]) for name in COLUMNS)
    if not (np.isfinite(times_s) & np.isfinite(rates_rps) & (rates_rps >= 0)).all():
        raise InvalidTraceError("a value is out of range")
    labels = np.array(columns["workload"].to_pylist() if labelled else [""] * len(times_s), str)
    known = np.unique(labels).tolist()
    chosen = known[0] if series is None and len(known) == 1 else series
    if chosen not in known:
        raise ConfigError(f"{series!r}: allowed are {', '.join(known)}", file=str(path), path="workload.load.series")
    return times_s[labels == chosen], rates_rps[labels == chosen]


def _windows(times_s: FloatArray, rates_rps: FloatArray) -> tuple[FloatArray, FloatArray]:
    widths_s = np.diff(times_s)
    if not len(widths_s) or (widths_s <= 0).any() or not rates_rps.any():
        raise InvalidTraceError("allowed are at least two windows at rising times, with a rate above 0 in one of them")
    return np.append(times_s, times_s[-1] + widths_s[-1]), rates_rps
