"""Replays every measured run of a set in a pool of processes, and reads what lies beside the set.

Beside the CSV may lie the traces and per-request logs that its notes name, and ``baseline_*.csv`` with another tool's
predictions of the same rows. The order of outcomes is the file's whatever the number of workers; what goes wrong in one
row is that row's problem.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Literal

import numpy as np

from dynosim import __version__
from dynosim.errors import ConfigError
from dynosim.fidelity.bands import BAND_COVERAGE, bands, left_out_gpus, new_gpu
from dynosim.fidelity.effects import Columns
from dynosim.fidelity.errors import TPOT, TTFT
from dynosim.fidelity.measurements import BASELINE, Measurement, files_of, read_measurements
from dynosim.fidelity.replay import Outcome
from dynosim.fidelity.replay import replay as replay_one
from dynosim.fidelity.scores import Scores, score
from dynosim.files import write_whole
from dynosim.search.workers import Workers, count_workers
from dynosim.uncertainty.model_band import BANDS

if TYPE_CHECKING:
    import pandas as pd

MEASURED = Path(__file__).with_name("measured")
"""The set that comes with the package; its README names the sources."""
MAX_REASON = 200

Replay = Callable[[Measurement], Outcome]
Listener = Callable[[Outcome, int, int], None]
"""Called with an outcome, how many are done, and how many there are."""


def find_set(name: str | Path | None) -> Path:
    """Return the set that *name* means, a CSV or a folder of some; None means the package's own.

    Raises ConfigError where there is none.
    """
    path = MEASURED if name is None else Path(name)
    if not all(file.is_file() for file in files_of(path) or [path / "*.csv"]):
        raise ConfigError(f"{name}: no such CSV of measurements, or folder of some", path="--set")
    return path


def read_rows(sets: str | Path | Sequence[Path], only: str = "*") -> list[Measurement]:
    """Return the rows of *sets*, files or folders, whose id matches the glob *only*.

    Raises ConfigError for a file that is not a set of measurements, and where no id matches.
    """
    paths = [sets] if isinstance(sets, str | Path) else sets
    rows = [row for path in paths for row in read_measurements(path) if fnmatch(row.id, only)]
    if not rows:
        raise ConfigError(f"{only}: no row has such an id", file=", ".join(map(str, paths)), path="--only")
    return rows


def validate(
    sets: str | Path | Sequence[Path],
    *,
    only: str = "*",
    workers: int | Literal["auto"] = "auto",
    listener: Listener | None = None,
    replay: Replay = replay_one,
) -> list[Outcome]:
    """Replay the rows of *sets* whose id matches the glob *only* (``read_rows``), in their order."""
    rows, outcomes = read_rows(sets, only), []
    with Workers(partial(_replay_safely, replay), count_workers(workers), _failed) as pool:
        for outcome in _replayed(rows, pool):
            outcomes.append(outcome)
            if listener is not None:
                listener(outcome, len(outcomes), len(rows))
    return outcomes


def _replayed(rows: Sequence[Measurement], pool: Workers[Measurement, Outcome]) -> Iterator[Outcome]:
    """Yield outcomes in order; a few rows per worker are in flight."""
    running: deque[Future[Outcome]] = deque()
    for row in rows:
        running.append(pool.submit(row))
        if len(running) >= 2 * pool.count - 1:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _replay_safely(replay: Replay, row: Measurement) -> Outcome:
    try:
        return replay(row)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = shorten(f"{type(error).__name__}: {error}", MAX_REASON)
        return Outcome(row, {}, problem=f"crashed at {Path(last.filename).name}:{last.lineno}: {what}")


def _failed(row: Measurement, reason: str) -> Outcome:
    return Outcome(row, {}, problem=reason)


def score_set(sets: Path | Sequence[Path], outcomes: Sequence[Outcome]) -> Scores:
    """Return the scores of *outcomes* with the logs and baselines that lie beside the sets."""
    paths = [sets] if isinstance(sets, Path) else sets
    try:
        logs = {o.measurement.id: log for o in outcomes if (log := read_log(o.measurement)) is not None}
        folders = dict.fromkeys(path if path.is_dir() else path.parent for path in paths)
        files = sorted(file for folder in folders for file in folder.glob(f"{BASELINE}*.csv"))
        baselines = {file.stem.removeprefix(BASELINE): read_baseline(file) for file in files}
    except (KeyError, AttributeError, ValueError, OSError) as error:
        raise ConfigError(f"a log or baseline beside the set cannot be read: {error}", file=str(paths[0])) from None
    return score(outcomes, logs=logs, baselines=baselines)


def write_bands(sets: Sequence[Path], outcomes: Sequence[Outcome], file: Path = BANDS) -> Path:
    """Write the bands of *outcomes*, replayed from *sets*, to *file* (by default the package's own)."""
    gpus_left_out = left_out_gpus(outcomes)
    content = {
        "version": __version__,
        "sets": [fingerprint(path) for path in sets],
        "coverage": BAND_COVERAGE,
        "gpus_left_out": gpus_left_out,
        "new_gpu": new_gpu(gpus_left_out),
        "classes": bands(outcomes),
    }
    one_line_a_band = re.sub(r"\{[^{}]*\}", lambda of: " ".join(of.group().split()), json.dumps(content, indent=1))
    return write_whole(file, one_line_a_band + "\n")


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a set's files."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files_of(path))).hexdigest()


def read_baseline(file: Path) -> dict[str, dict[str, float]]:
    """Return id -> metric -> another tool's prediction, at the mean lengths of the run where there are two.

    Columns are ``id`` and ``*_ttft_ms_mean_len``, ``*_tpot_ms_mean_len`` or the same with ``nominal_len``.
    """
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return {row["id"]: dict(_predictions(row)) for row in rows}


def _predictions(row: dict[str, str]) -> Iterator[tuple[str, float]]:
    for metric, word in ((TTFT, "ttft_ms"), (TPOT, "tpot_ms")):
        columns = sorted(name for name in row if re.search(rf"_{word}_(mean|nominal)_len$", name))
        values = [row[name] for name in columns if row[name]]
        if values:
            yield metric, float(values[0])


def read_log(row: Measurement) -> Columns | None:
    """Return the measured per-request columns that *row* names and that lie beside the set, in order of arrival."""
    import pandas as pd  # which workers need not load

    name = row.facts.get("log")
    file = row.folder / name if name else None
    if file is None or not file.is_file():
        return None
    return _timestamps(pd.read_json(file, lines=True)) if ".jsonl" in file.name else _columns(pd.read_csv(file))


def _timestamps(log: pd.DataFrame) -> Columns:
    """Return the columns of a log of timestamps (LLMServingSim's), TTFT from queueing on."""
    log = log.sort_values("queued_ts", kind="stable")
    return {
        "ttft_ms": ((log.first_token_ts - log.queued_ts) * 1e3).to_numpy(),
        "latency_ms": ((log.last_token_ts - log.queued_ts) * 1e3).to_numpy(),
        "input_tokens": log.input_toks.to_numpy(np.float64),
        "output_tokens": log.output_toks.to_numpy(np.float64),
    }


def _columns(log: pd.DataFrame) -> Columns:
    log = log.sort_values("start_s", kind="stable")
    names = ("ttft_ms", "latency_ms", "input_tokens", "output_tokens")
    return {name: log[name].to_numpy(np.float64) for name in names}


def print_progress(outcome: Outcome, done: int, total: int) -> None:
    """Write one line to stderr; on a terminal over the one before, unless the row has a problem."""
    live, problem = sys.stderr.isatty(), f": {outcome.problem}" if outcome.problem else ""
    start, end = "\r\x1b[K" if live else "", "" if live and done < total and not problem else "\n"
    print(f"{start}{done}/{total} {outcome.measurement.id}{problem}", end=end, file=sys.stderr, flush=True)
