"""What the service must not forget: submitted studies and their events, in one SQLite file in WAL mode.

Trials are not here: they live in the Optuna storage, which is the one truth about them. The server and the worker
processes write to the same file; every call opens its own connection, so a store may be shared by threads and is
cheap to make in any process.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynosim.errors import StudyError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS studies (
    id TEXT PRIMARY KEY, state TEXT NOT NULL, request TEXT NOT NULL, idempotency_key TEXT UNIQUE,
    created_s REAL NOT NULL, progress TEXT NOT NULL DEFAULT '{}', error TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, study_id TEXT NOT NULL REFERENCES studies(id),
    type TEXT NOT NULL, data TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_of_study ON events (study_id, id);
"""

FINAL_STATES = frozenset({"completed", "cancelled", "failed"})
"""The others are queued, running, cancelling, and interrupted: the service stopped, and will go on when it is back."""


@dataclass(frozen=True)
class StoredStudy:
    """One row of the studies table."""

    id: str
    state: str
    request: Mapping[str, Any]
    created_s: float
    progress: Mapping[str, Any]
    error: str


@dataclass(frozen=True)
class Event:
    """One event of a study; ``id`` grows by time over all studies."""

    id: int
    type: str
    data: Mapping[str, Any]


class Store:
    """The service's memory in ``<runs_dir>/service.db``."""

    def __init__(self, runs_dir: Path) -> None:
        runs_dir.mkdir(parents=True, exist_ok=True)
        self._path = runs_dir / "service.db"
        with self._connect() as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(_SCHEMA)

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, timeout=30.0)
        connection.row_factory = sqlite3.Row
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    def add(self, study_id: str, request: Mapping[str, Any], idempotency_key: str | None) -> StoredStudy:
        """Insert a queued study; with a known *idempotency_key* return the study it named before."""
        row = (study_id, "queued", json.dumps(request), idempotency_key, time.time())
        with self._connect() as db:
            db.execute(
                "INSERT INTO studies (id, state, request, idempotency_key, created_s) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (idempotency_key) DO NOTHING",
                row,
            )
            found = db.execute(
                "SELECT * FROM studies WHERE id = ? OR idempotency_key = ?", (study_id, idempotency_key)
            ).fetchone()
        return _stored_study(found)

    def find(self, study_id: str) -> StoredStudy | None:
        """Return the study, if there is one."""
        with self._connect() as db:
            row = db.execute("SELECT * FROM studies WHERE id = ?", (study_id,)).fetchone()
        return None if row is None else _stored_study(row)

    def get(self, study_id: str) -> StoredStudy:
        """Return the study; StudyError where there is none."""
        study = self.find(study_id)
        if study is None:
            raise StudyError(f"no study {study_id!r}")
        return study

    def studies(self) -> list[StoredStudy]:
        """Return all studies, the newest first."""
        with self._connect() as db:
            rows = db.execute("SELECT * FROM studies ORDER BY created_s DESC").fetchall()
        return [_stored_study(row) for row in rows]

    def move(self, study_id: str, to: str, *, only_from: Collection[str]) -> bool:
        """Change the state where it is one of *only_from*; return whether it was."""
        marks = ", ".join("?" * len(only_from))
        with self._connect() as db:
            cursor = db.execute(
                f"UPDATE studies SET state = ?, error = '' WHERE id = ? AND state IN ({marks})",
                (to, study_id, *only_from),
            )
        return cursor.rowcount == 1

    def finish(self, study_id: str, state: str, error: str = "") -> None:
        """Set a final state and append the event that says so, together."""
        with self._connect() as db:
            db.execute("UPDATE studies SET state = ?, error = ? WHERE id = ?", (state, error, study_id))
            _append(db, study_id, "study.finished", {"state": state, "error": error})

    def set_progress(self, study_id: str, progress: Mapping[str, Any]) -> None:
        """Replace the counts that the status shows."""
        with self._connect() as db:
            db.execute("UPDATE studies SET progress = ? WHERE id = ?", (json.dumps(progress), study_id))

    def publish(self, study_id: str, event_type: str, data: Mapping[str, Any]) -> None:
        """Append an event."""
        with self._connect() as db:
            _append(db, study_id, event_type, data)

    def events(self, study_id: str, *, after: int = 0) -> list[Event]:
        """Return the study's events with an id above *after*, oldest first."""
        with self._connect() as db:
            rows = db.execute(
                "SELECT id, type, data FROM events WHERE study_id = ? AND id > ? ORDER BY id", (study_id, after)
            ).fetchall()
        return [Event(row["id"], row["type"], json.loads(row["data"])) for row in rows]


def _append(db: sqlite3.Connection, study_id: str, event_type: str, data: Mapping[str, Any]) -> None:
    db.execute("INSERT INTO events (study_id, type, data) VALUES (?, ?, ?)", (study_id, event_type, json.dumps(data)))


def _stored_study(row: sqlite3.Row) -> StoredStudy:
    return StoredStudy(
        id=row["id"],
        state=row["state"],
        request=json.loads(row["request"]),
        created_s=row["created_s"],
        progress=json.loads(row["progress"]),
        error=row["error"],
    )
