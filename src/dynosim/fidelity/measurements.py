"""Measured serving runs: rows of a CSV, what their notes say about engine flags, and the logs beside them.

One row is one run of a real engine: a configuration under one load with the latencies that a client saw. Any CSV with
the columns REQUIRED reads, from any folder; ``measured/`` holds the rows that come with the package.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dynosim.errors import ConfigError
from dynosim.fidelity.notes import Notes, read_notes

COLUMNS = (
    "id", "source", "commit", "licence", "model", "precision", "gpu", "n_gpus", "tp", "engine", "engine_version", "isl",
    "osl", "concurrency_or_rate", "load_kind", "output_tok_s_total", "output_tok_s_per_gpu", "ttft_ms_mean",
    "ttft_ms_p99", "tpot_ms_mean", "tpot_ms_p99", "notes",
)  # fmt: skip
REQUIRED = ("id", "model", "gpu", "n_gpus", "engine", "isl", "osl", "concurrency_or_rate", "load_kind")
"""Columns without which nothing can be replayed; any other one may be absent, and is empty then."""

MEASURED = ("tpot_ms_mean", "tpot_ms_p99", "ttft_ms_mean", "ttft_ms_p99", "output_tok_s_per_gpu")
"""Columns with what was measured; more stands in the notes."""

NOTED = ("e2e_ms_mean", "e2e_ms_p99", "kv_transfer_ms", "prefix_hit_percent", "host_hit_percent")
"""Facts of the notes that were measured."""

METRICS = (*MEASURED, *NOTED)

BASELINE = "baseline_"
"""Beginning of the name of a file with another tool's predictions."""


@dataclass(frozen=True)
class Measurement:
    """One row."""

    id: str
    source: str
    model: str
    precision: str | None
    gpu: str
    n_gpus: int
    tp: int | None
    engine: str
    engine_version: str | None
    isl: float
    osl: float
    load: float | None
    """Concurrency, or requests per second; infinite where all requests were there at once; none if one at a time."""
    load_kind: str
    notes: str
    folder: Path
    """Of the file, with the traces and per-request logs that the notes name."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """The keys of METRICS that the row or its notes state."""
    commit: str = ""
    """Of the source, or its release."""
    licence: str = ""

    @property
    def flagged(self) -> bool:
        """Whether the notes call the numbers disturbed."""
        return "QUALITY:" in self.notes

    @cached_property
    def _read(self) -> Notes:
        return read_notes(self.notes)

    @property
    def facts(self) -> Mapping[str, str]:
        """What the notes state beside settings, by name (``fidelity.notes``)."""
        return self._read.facts

    @property
    def flags(self) -> Mapping[str, str]:
        """The settings of the server that the notes state, by name."""
        return self._read.flags

    @property
    def unread(self) -> tuple[str, ...]:
        """Phrases of the notes that nobody knows."""
        return self._read.unread

    @property
    def disaggregated(self) -> bool:
        """Whether prompts and answers had pools of their own."""
        return "disaggregated" in self.facts or "decode_workers" in self.facts

    @property
    def concurrency(self) -> int:
        """Requests in flight: all where all were there at once, one where there was one at a time."""
        if self.load is not None and math.isinf(self.load):
            return int(self.facts.get("num_requests", 1))
        return int(self.load or 1)

    @property
    def measured_on(self) -> str:
        """ISO date, empty where the notes do not say it."""
        return re.sub(r"^(\d{4})-?(\d{2})-?(\d{2})$", r"\1-\2-\3", self.facts.get("measured_on", ""))


def files_of(path: str | Path) -> list[Path]:
    """Return the files of a set: the CSV itself, or every CSV of a folder but another tool's predictions."""
    folder = Path(path)
    if not folder.is_dir():
        return [folder]
    return sorted(file for file in folder.glob("*.csv") if not file.name.startswith(BASELINE))


def read_measurements(path: str | Path) -> list[Measurement]:
    """Return the rows of a CSV file, or of every CSV in a folder; ConfigError for a file that is not a set of rows."""
    seen: set[str] = set()
    return [row for file in files_of(path) for row in _read(file, seen)]


def _read(file: Path, seen: set[str]) -> list[Measurement]:
    """Return the rows of *file*, whose ids are not among *seen*, and are then."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            missing = [name for name in REQUIRED if name not in (reader.fieldnames or ())]
            if missing:
                raise ConfigError(f"no column {', '.join(missing)}: needed: {', '.join(REQUIRED)}", file=str(file))
            rows = list(_rows(reader, file, seen))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot be read: {getattr(error, 'strerror', error)}", file=str(file)) from None
    if not rows:
        raise ConfigError("no row below the column names", file=str(file))
    return rows


def _rows(reader: csv.DictReader[str], file: Path, seen: set[str]) -> Iterator[Measurement]:
    for row in reader:
        if row["id"] in seen:
            raise ConfigError(f"{row['id']}: a second row of this id", file=str(file), line=reader.line_num, path="id")
        seen.add(row["id"])
        if None in row.values() or None in row:
            raise ConfigError("not as many cells as columns", file=str(file), line=reader.line_num, path=row["id"])
        try:
            yield _row(dict.fromkeys(COLUMNS, "") | row, file.parent)
        except ValueError as error:
            raise ConfigError(str(error), file=str(file), line=reader.line_num, path=row["id"]) from None


def _row(row: Mapping[str, str], folder: Path) -> Measurement:
    measured = {name: _number(row[name], name) for name in MEASURED if row[name]}
    facts = read_notes(row["notes"]).facts
    measured |= {name: float(facts[name]) for name in NOTED if name in facts}
    load = re.match(r"inf|[\d.]+", row["concurrency_or_rate"])
    n_gpus = _count(row["n_gpus"], "n_gpus")
    if row["output_tok_s_total"] and "output_tok_s_per_gpu" not in measured:
        measured["output_tok_s_per_gpu"] = _number(row["output_tok_s_total"], "output_tok_s_total") / n_gpus
    if not (row["id"] and measured):
        raise ValueError(f"allowed: an id, and at least one of {', '.join(MEASURED)}")
    return Measurement(
        id=row["id"],
        source=row["source"],
        model=row["model"],
        precision=row["precision"] or None,
        gpu=row["gpu"],
        n_gpus=n_gpus,
        tp=_count(row["tp"], "tp") if row["tp"] else None,
        engine=row["engine"],
        engine_version=row["engine_version"] or None,
        isl=_number(row["isl"], "isl"),
        osl=_number(row["osl"], "osl"),
        load=float(load.group()) if load else None,
        load_kind=row["load_kind"],
        notes=row["notes"],
        folder=folder,
        measured=measured,
        commit=row["commit"],
        licence=row["licence"],
    )


def _count(text: str, column: str) -> int:
    value = _number(text, column)
    if value != int(value):
        raise ValueError(f"{column} {text!r}: allowed: a whole number of at least 1")
    return int(value)


def _number(text: str, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0.0 and math.isfinite(value)):
        raise ValueError(f"{column} {text!r}: allowed: a number above 0")
    return value
