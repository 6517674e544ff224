"""Where runs are tracked, and a client for it: an SQLite file by default, else any MLflow tracking server."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from filelock import FileLock

if TYPE_CHECKING:
    from mlflow import MlflowClient

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A server that is down should be noticed in seconds: the outbox keeps what was not sent.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""MLflow's own switches, which it reads from the environment; what the user has set there wins."""


_STORE_TIMEOUT_S = 120.0
"""How long to wait for another process that is making the store, which takes seconds; then ``filelock.Timeout``."""


def tracking_uri(tracking: str, runs_dir: Path) -> str | None:
    """Return the MLflow URI that *tracking* (``auto``, ``off`` or a URI) means, or None when tracking is off.

    ``auto`` is ``DYNOSIM_TRACKING_URI``, else ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in *runs_dir*.
    ``DYNOSIM_TRACKING=off`` switches tracking off whatever the argument says.
    """
    if "off" in (tracking, os.environ.get("DYNOSIM_TRACKING")):
        return None
    if tracking != "auto":
        return tracking
    configured = os.environ.get("DYNOSIM_TRACKING_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    return configured or f"sqlite:///{(runs_dir / 'mlflow.db').resolve()}"


def artifact_location(uri: str) -> str | None:
    """Return the folder for artifacts beside an SQLite store; None leaves the choice to the server."""
    path = _sqlite_path(uri)
    return None if path is None else (path.parent / "mlartifacts").resolve().as_uri()


def connect(uri: str) -> MlflowClient:
    """Return a client for *uri*, making a fresh SQLite store where there is none."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    path = _sqlite_path(uri)
    if path is not None:
        _ensure_store(path)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _ensure_store(path: Path) -> None:
    """Build the schema aside and rename it into place: MLflow's own creation is not safe under a kill or a rival."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock"), timeout=_STORE_TIMEOUT_S):
        if path.exists():
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        with TemporaryDirectory(dir=path.parent, prefix=".mlflow-") as folder:
            fresh = Path(folder) / path.name
            artifacts = (path.parent / "mlartifacts").resolve().as_uri()
            store = SqlAlchemyStore(f"sqlite:///{fresh}", artifacts)  # type: ignore[no-untyped-call]
            store.engine.dispose()
            with closing(sqlite3.connect(fresh)) as database:  # readers such as the UI then block no writer
                database.execute("PRAGMA journal_mode = WAL")
            os.replace(fresh, path)
