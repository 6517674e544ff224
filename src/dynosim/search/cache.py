"""Results of simulations, kept across studies: what was simulated once is not simulated again.

A result is named by all that decides it: deployment, its calibration, code and cards of the user's, traffic, seed,
SLOs, prices, and dynosim's own sources and data. Objectives are not among them: they are computed from the metrics
again. One SQLite file serves any number of processes; it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from functools import cache, lru_cache
from pathlib import Path

import dynosim
from dynosim import plugins
from dynosim.config import Scenario
from dynosim.config.load import references
from dynosim.search.trial import Outcome, Status
from dynosim.timing.calibrated import profile_of
from dynosim.timing.pack import USER_FOLDER
from dynosim.workload.table import Workload

DECIDING = (
    "config", "hardware", "metrics.py", "policies", "rng.py", "search/evaluate.py", "simulation", "timing",
    "uncertainty/sampling.py", "workload"
)  # fmt: skip
"""The parts of the package whose content decides a result."""

_TABLE = "CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, result BLOB NOT NULL) WITHOUT ROWID"
_BROKEN = (sqlite3.Error, OSError, zlib.error, ValueError, KeyError, TypeError)
"""What a full disk or a damaged file raises: a cache may be of no use, but never in the way."""


def result_key(scenario: Scenario, workload: Workload, *, stopped: bool) -> str | None:
    """Return the name of a scenario's result under *workload*, with or without stopping lost runs.

    None where it cannot be known: with code of the user's that is no file.
    """
    deployment = scenario.deployment.model_dump(mode="json")
    code = [plugins.content_hash(reference) for _, reference in references(deployment)]
    if None in code:
        return None
    stopped_by = scenario.slo_of_each() if stopped and scenario.slo_over else stopped
    goals = [scenario.slo, scenario.prices.model_dump(mode="json"), scenario.seed, stopped_by]
    profile = profile_of(scenario.deployment)
    calibration = profile.content_hash() if profile else None
    parts = [deployment, code, calibration, *goals, _traffic(workload), simulator_version()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@lru_cache(maxsize=16)
def _traffic(workload: Workload) -> str:
    return workload.content_hash()


@cache
def simulator_version() -> str:
    """Return a hash of the sources and data that decide a result, timing packs of the user's included."""
    package = Path(dynosim.__file__).parent
    folders = [*(package / name for name in DECIDING), Path(USER_FOLDER)]
    folders += [Path(folder) for folder in [os.environ.get("DYNOSIM_TIMING_PACKS")] if folder]
    digest = hashlib.sha256()
    for path in _files(folders):
        digest.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        found = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (file for file in found if file.is_file() and "__pycache__" not in file.parts)


def load(path: Path, key: str) -> Outcome | None:
    """Return the result of *key*, None where there is none."""
    with suppress(*_BROKEN), closing(_connect(path)) as connection:
        row = connection.execute("SELECT result FROM results WHERE key = ?", (key,)).fetchone()
        if row:
            data = json.loads(zlib.decompress(row[0]))
            return Outcome(**{**data, "status": Status(data["status"]), "cached": True})
    return None


def save(path: Path, keys: Iterable[str], result: Outcome) -> None:
    """Keep a result under each of *keys*."""
    data = {name: getattr(result, name) for name in ("status", "constraints", "metrics", "deviations", "reason")}
    with suppress(*_BROKEN), closing(_connect(path)) as connection, connection:
        blob = zlib.compress(json.dumps(data).encode(), 1)
        connection.executemany("INSERT OR REPLACE INTO results VALUES (?, ?)", [(key, blob) for key in keys])


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=10.0)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(_TABLE)
    return connection
