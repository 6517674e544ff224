"""``dynosim track``, ``serve`` and ``doctor``."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dynosim.cli.arguments import add_group, add_verb, folder, input_folder, output_folder, port, runs_dir_option
from dynosim.cli.output import FAILURE, OK
from dynosim.errors import DynosimError, StudyError


def add_track(verbs: Any) -> None:
    group = add_group(verbs, "track", "experiment tracking")
    parser = add_verb(group, "sync", _track_sync, "send to MLflow what it missed", [runs_dir_option(input_folder)])
    parser.add_argument("run", metavar="RUN", help="run id, its directory, or 'last'")
    parser = add_verb(
        group, "ui", _track_ui, "MLflow's pages, and a link to the last study", [runs_dir_option(input_folder)]
    )
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1)")
    parser.add_argument("--port", type=port, default=5000, metavar="N", help="default: 5000")


def _track_sync(args: argparse.Namespace) -> int:
    from dynosim.run.directory import find_run
    from dynosim.tracking import sync

    print(f"{sync(find_run(args.run, args.runs_dir))} trials delivered")
    return OK


def _track_ui(args: argparse.Namespace) -> int:
    from dynosim.tracking import tracking_uri
    from dynosim.tracking.ui import open_ui

    return open_ui(tracking_uri("auto", Path(args.runs_dir)), args.host, args.port)


def add_serve(verbs: Any) -> None:
    parser = add_verb(verbs, "serve", _serve, "HTTP API and live frontier page", [runs_dir_option(output_folder)])
    parser.add_argument("--host", default="127.0.0.1", help="any other than loopback needs DYNOSIM_API_KEY")
    parser.add_argument("--port", type=port, default=8080, metavar="N", help="default: 8080")
    parser.add_argument("--storage", metavar="URL", help="Optuna storage of all studies; default: SQLite per run")
    parser.add_argument("--traces", type=folder, metavar="DIR", help="directory whose traces HTTP users may name")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="FILE.py:NAME",
        help="code or card they may name; repeatable",
    )


def _serve(args: argparse.Namespace) -> int:
    from dynosim.service import make_server

    traces = Path(args.traces) if args.traces else None
    server = make_server(
        args.runs_dir, host=args.host, port=args.port, storage=args.storage, traces=traces, allow=args.allow
    )
    print(f"dynosim on http://{args.host}:{args.port}, Ctrl-C ends it", file=sys.stderr)
    server.run()
    return OK


def add_doctor(verbs: Any) -> None:
    add_verb(verbs, "doctor", _doctor, "check this installation", [runs_dir_option(str)])


def _doctor(args: argparse.Namespace) -> int:
    """Print one line per check; each is a function that returns what it found or raises why not."""
    failed = 0
    for name, check in (
        ("python", _doctor_python),
        ("packages", _doctor_packages),
        ("runs", lambda: _doctor_runs(Path(args.runs_dir))),
        ("tracking", lambda: _doctor_tracking(Path(args.runs_dir))),
        ("extras", _doctor_extras),
        ("self-test", _doctor_self_test),
    ):
        try:
            print(f"ok    {name:<10} {check()}")
        except (DynosimError, OSError, PackageNotFoundError) as error:
            failed += 1
            print(f"FAIL  {name:<10} {error}")
    return FAILURE if failed else OK


def _doctor_python() -> str:
    return f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores"


def _doctor_packages() -> str:
    names = ("numpy", "numba", "simpy", "torch", "botorch", "optuna", "mlflow", "fastapi")
    return ", ".join(f"{name} {version(name)}" for name in names)


def _doctor_extras() -> str:
    extras = {"aic": "aiconfigurator_core", "postgresql": "psycopg", "dashboard": "optuna_dashboard"}
    return ", ".join(f"[{extra}] {'yes' if find_spec(module) else 'no'}" for extra, module in extras.items())


def _doctor_runs(runs_dir: Path) -> str:
    from tempfile import TemporaryFile

    runs_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=runs_dir):
        return f"{runs_dir.resolve()} can be written"


def _doctor_tracking(runs_dir: Path) -> str:
    from dynosim.tracking import tracking_uri
    from dynosim.tracking.delivery import delivery_errors
    from dynosim.tracking.store import connect

    uri = tracking_uri("auto", runs_dir)
    if uri is None:
        return "off"
    try:
        return f"{uri}, {len(connect(uri).search_experiments())} experiments"
    except delivery_errors() as error:
        raise StudyError(f"MLflow at {uri}: {error}") from error


def _doctor_self_test() -> str:
    from dynosim.run.predict import predict

    start_s = time.perf_counter()
    completed = predict("tiny").metrics.value("completed", None)
    return f"tiny: {completed:.0f} requests simulated in {time.perf_counter() - start_s:.1f} s"
