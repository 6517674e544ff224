"""A study whose trials are in PostgreSQL, on a throw-away server of Debian's package ``postgresql``."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

import dynosim
from dynosim.run.study import load_study

BINARIES = Path("/usr/lib/postgresql")
PASSWORD = "opensesame"
FAST = ("workload.source.requests=60", "workload.warmup_requests=0", "optimizer.sampler=random")


def _run(binary: Path, *arguments: str) -> None:
    """Run a PostgreSQL program as somebody it accepts: it refuses root."""
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    command = [*as_postgres, str(binary), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, cwd="/")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of an empty database; the server listens on 127.0.0.1 only and is gone afterwards."""
    pytest.importorskip("psycopg", reason="needs the extra [postgresql]")
    found = sorted(BINARIES.glob("*/bin/pg_ctl"))
    if not found:
        pytest.skip(f"needs the package postgresql: no pg_ctl under {BINARIES}/*/bin")
    pg_ctl, port = found[-1], _free_port()
    folder = Path(mkdtemp(prefix="dynosim-postgresql-"))  # tmp_path is closed to user postgres
    try:
        password = folder / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
            shutil.chown(password, "postgres")
        data = str(folder / "data")
        _run(
            pg_ctl.with_name("initdb"), "-D", data, "-U", "tester", "-A", "scram-sha-256", f"--pwfile={password}", "-N"
        )
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        _run(pg_ctl, "-D", data, "-w", "-o", options, "-l", str(folder / "log"), "start")
        try:
            yield f"postgresql://tester:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            _run(pg_ctl, "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def test_a_study_in_postgresql_goes_on_and_keeps_its_password_to_itself(server: str, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    options = {"storage": server, "overrides": FAST, "runs_dir": runs, "tracking": "off", "workers": 1}
    first = dynosim.optimize("tiny", trials=5, **options)
    both = dynosim.optimize("tiny", trials=8, **options)
    assert both.id == first.id
    assert [trial.number for trial in both.trials] == list(range(8))
    assert [trial.outcome.values for trial in both.trials[:5]] == [trial.outcome.values for trial in first.trials]
    assert [trial.point for trial in load_study("last", runs, storage=server).trials] == [t.point for t in both.trials]
    assert not (runs / both.id / "study.db").exists()
    for path in runs.rglob("*"):
        assert path.is_dir() or PASSWORD.encode() not in path.read_bytes(), path
