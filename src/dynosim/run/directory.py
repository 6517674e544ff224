"""What a run is on disk: ``<runs_dir>/<run id>``, with everything that a study left behind.

``run.json`` in it says what was asked; the trials are in the Optuna storage, written as each one ends, so a run
survives ``kill -9`` and the same call goes on where it stopped. A lock file keeps two processes out of one run. A
directory that was moved or renamed is the same run: its id is the one in ``run.json``.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock, Timeout

from dynosim.errors import ConfigError, StudyError, nearest
from dynosim.files import write_whole

STATE_FILE, CONFIG_FILE, LOCK_FILE = "run.json", "config.resolved.yaml", "run.lock"

RESULTS_FILE = "results.db"
"""Results of all runs of a directory, for the next ones; it may be deleted at any time."""


@dataclass(frozen=True)
class RunState:
    """What was asked of a run, and how far it got."""

    id: str
    space: str
    identity: str
    """Hash of everything that decides the trials: space, traffic, calibration, sampler, seed, proposals in flight, who
    evaluates, the user's code, storage and dynosim's version."""
    storage: str
    """Optuna's URL without its password; empty for SQLite in the run's directory."""
    created: str
    trials: int
    """Trials asked for."""
    done: int = 0
    feasible: int = 0
    """As of the last report."""
    state: Literal["new", "running", "interrupted", "finished"] = "new"
    prices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """GPU -> its price and where that is from, as of the last report."""

    @classmethod
    def read(cls, run_dir: Path) -> RunState:
        """Return the state stored in *run_dir*."""
        return cls(**json.loads((run_dir / STATE_FILE).read_text()))

    def write(self, run_dir: Path) -> None:
        """Store it in *run_dir*."""
        write_whole(run_dir / STATE_FILE, json.dumps(asdict(self), indent=2) + "\n")


def runs(runs_dir: str | Path = "runs") -> list[RunState]:
    """Return all runs under *runs_dir*, oldest first."""
    return list(_by_directory(runs_dir).values())


def _by_directory(runs_dir: str | Path) -> dict[Path, RunState]:
    """Return directory -> the run in it, of all under *runs_dir*, oldest first."""
    found = [(path.parent, RunState.read(path.parent)) for path in Path(runs_dir).glob(f"*/{STATE_FILE}")]
    return dict(sorted(found, key=lambda each: (each[1].created, each[1].id)))


def find_run(run: str | Path, runs_dir: str | Path = "runs") -> Path:
    """Return the directory of *run*: an id, a directory anywhere, or ``last``; ConfigError where there is none."""
    found = look_up(run, runs_dir)
    if found is None and run == "last":
        raise ConfigError(f"last: there is no run under {runs_dir} yet")
    if found is None:
        near = nearest(str(run), [state.id for state in runs(runs_dir)])
        raise ConfigError(f"{run}: no such run under {runs_dir}: {near}allowed: a run's id, its directory, last")
    return found


def look_up(run: str | Path, runs_dir: str | Path = "runs") -> Path | None:
    """Return the directory of *run* as ``find_run`` does, None where there is none."""
    if run == "last":
        return next(reversed(_by_directory(runs_dir)), None)
    for candidate in (Path(runs_dir) / run, Path(run)):
        if (candidate / STATE_FILE).is_file():
            return candidate if candidate.name.strip(".") else candidate.resolve()  # "." and ".." have no parent
    return next((path for path, state in _by_directory(runs_dir).items() if state.id == run), None)


def new_run_id(space: str) -> str:
    """Return a fresh id that sorts by time, such as ``20261121-1804-llama70b-7f3a``."""
    name = re.sub(r"[^\w.-]+", "-", space, flags=re.ASCII)[:40]
    return f"{datetime.now(UTC):%Y%m%d-%H%M}-{name}-{secrets.token_hex(2)}"


def without_password(url: str) -> str:
    """Return *url* as it may be stored; opened again, the driver finds the password in PGPASSWORD or ~/.pgpass."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", "@")))


def storage_of(url: str | None, run_dir: Path) -> str:
    """Return where the trials of the run in *run_dir* are: *url*, or SQLite in it."""
    return url or f"sqlite:///{(run_dir / 'study.db').resolve()}"


@contextmanager
def claimed(runs_dir: Path, wanted: RunState, *, fixed: bool, wait_s: float) -> Iterator[Path]:
    """Lock the run to go on with, or a new one, and yield its directory; a run that never started leaves nothing.

    Of a *fixed* id there is one candidate, for which to wait *wait_s*. StudyError where another process holds it.
    """
    for run_dir, state in _candidates(runs_dir, wanted, fixed):
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(run_dir / LOCK_FILE).acquire(timeout=wait_s if fixed else 0)
        except Timeout:
            continue
        with lock:
            replace(state, identity=wanted.identity, storage=wanted.storage, trials=wanted.trials).write(run_dir)
            try:
                yield run_dir
            finally:
                if RunState.read(run_dir).state == "new":
                    shutil.rmtree(run_dir)
                    with suppress(OSError):  # other runs are in it
                        runs_dir.rmdir()
            return
    raise StudyError(f"run {wanted.id} is being run by another process")


def _candidates(runs_dir: Path, wanted: RunState, fixed: bool) -> list[tuple[Path, RunState]]:
    """Return the runs that may go on, the newest first, and *wanted* itself last."""
    known, new = list(reversed(_by_directory(runs_dir).items())), (runs_dir / wanted.id, wanted)
    if fixed:
        return [each for each in known if each[1].id == wanted.id] or [new]
    return [*(each for each in known if _continues(each[1], wanted)), new]


def _continues(state: RunState, wanted: RunState) -> bool:
    return state.identity == wanted.identity and (state.state != "finished" or state.trials < wanted.trials)
