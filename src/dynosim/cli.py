"""The command line: parses, calls the functions of ``dynosim.run``, prints, and maps errors to exit codes.

The result goes to stdout; progress and errors go to stderr. Exit codes: 0 done, 1 execution failure, 2 usage or
configuration, 3 done but nothing feasible, 130 interrupted and resumable. Heavy packages are imported inside the
verbs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim import __version__
from dynosim.errors import ConfigError, DynosimError, InfeasibleError, StudyError

if TYPE_CHECKING:
    from rich.console import Console

OK, FAILURE, USAGE, NOTHING_FEASIBLE, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    args = _parser().parse_args(argv)
    try:
        return int(args.verb(args))
    except (ConfigError, StudyError) as error:
        return _complain(error, USAGE)
    except InfeasibleError as error:
        return _complain(error, NOTHING_FEASIBLE)
    except (DynosimError, OSError) as error:
        return _complain(error, FAILURE)
    except KeyboardInterrupt:
        return INTERRUPTED


def _complain(error: Exception, code: int) -> int:
    print(f"dynosim: {error}", file=sys.stderr)
    return code


# ---- arguments ----------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dynosim", description="Map the Pareto frontier of LLM serving: Bayesian search over simulation."
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"dynosim {__version__} (independent project, not affiliated with NVIDIA)",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _add_optimize(verbs)
    _add_predict(verbs)
    _add_show(verbs)
    _add_config(verbs)
    _add_spaces(verbs)
    _add_trace(verbs)
    _add_timing(verbs)
    _add_track(verbs)
    _add_serve(verbs)
    _verb(verbs, "doctor", _doctor, "check this installation", [_runs_dir()])
    return parser


def _verb(
    verbs: Any, name: str, function: Any, summary: str, parents: Sequence[argparse.ArgumentParser] = ()
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary, parents=parents)
    parser.set_defaults(verb=function)
    return parser


def _group(verbs: Any, name: str, summary: str) -> Any:
    group = verbs.add_parser(name, help=summary, description=summary)
    return group.add_subparsers(metavar="VERB", required=True)


def _options() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(add_help=False)


def _overrides() -> argparse.ArgumentParser:
    options = _options()
    options.add_argument(
        "--set",
        dest="overrides",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        help="set a field to a YAML value or domain; repeatable, left to right",
    )
    return options


def _trace_option() -> argparse.ArgumentParser:
    options = _options()
    options.add_argument("--trace", metavar="FILE", help="replay this trace instead of the workload's source")
    return options


def _format(*extra: str) -> argparse.ArgumentParser:
    options = _options()
    options.add_argument("--format", choices=("table", "json", *extra), default="table", help="what stdout gets")
    return options


def _runs_dir() -> argparse.ArgumentParser:
    options = _options()
    options.add_argument("--runs-dir", default="runs", metavar="DIR", help="where runs are kept (default: runs)")
    return options


def _add_optimize(verbs: Any) -> None:
    parents = [_overrides(), _trace_option(), _format(), _runs_dir()]
    parser = _verb(verbs, "optimize", _optimize, "search a space for its Pareto frontier", parents)
    parser.add_argument("space", metavar="SPACE", help="bundled name (dynosim spaces) or YAML file")
    parser.add_argument("--trials", type=_positive, metavar="N", help="trials in all, those of a resumed run included")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the search; the traffic has its own: --set seed=N")
    parser.add_argument("--workers", type=_positive, metavar="N", help="simulations at a time (default: all cores)")
    parser.add_argument("--storage", metavar="URL", help="Optuna storage; default: SQLite in the run's directory")
    parser.add_argument("--sampler", metavar="NAME", help="how points are proposed (default: the space's)")
    parser.add_argument(
        "--objective",
        dest="objectives",
        metavar="OBJECTIVE",
        action="append",
        default=[],
        help="METRIC[.STAT] or path.py:function; repeatable; replaces the space's objectives",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved space and its size, run nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _add_predict(verbs: Any) -> None:
    parents = [_overrides(), _trace_option(), _format()]
    parser = _verb(verbs, "predict", _predict, "simulate one configuration", parents)
    parser.add_argument("config", metavar="CONFIG", help="YAML file of one configuration; of a space: its baseline")
    parser.add_argument("--capture-requests", metavar="FILE.parquet", help="also write one row per request")


def _add_show(verbs: Any) -> None:
    parser = _verb(verbs, "show", _show, "show a run again", [_format("csv"), _runs_dir()])
    parser.add_argument("run", metavar="RUN", help="run id, its directory, or 'last'")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--frontier", action="store_true", help="only the frontier, without picks and next steps")
    what.add_argument("--trial", type=int, metavar="N", help="one trial with all its metrics")


def _add_config(verbs: Any) -> None:
    group = _group(verbs, "config", "check, expand and start configuration files")
    for name, function, summary in (
        ("validate", _config_validate, "check a space or configuration file"),
        ("expand", _config_expand, "print the file with every default filled in"),
    ):
        parser = _verb(group, name, function, summary, [_overrides()])
        parser.add_argument("config", metavar="CONFIG", help="bundled name or YAML file")
    _verb(group, "schema", _config_schema, "print the JSON Schema of all YAML files")
    parser = _verb(group, "init", _config_init, "print a bundled space as the start of your own")
    parser.add_argument("space", metavar="SPACE", nargs="?", default="tiny", help="bundled name (default: tiny)")


def _add_spaces(verbs: Any) -> None:
    _verb(verbs, "spaces", _spaces, "list the bundled search spaces", [_format()])


def _add_trace(verbs: Any) -> None:
    group = _group(verbs, "trace", "look at traces")
    parser = _verb(group, "stats", _trace_stats, "rate, burstiness, lengths and reuse of a trace", [_format()])
    parser.add_argument("path", metavar="PATH", help="Mooncake JSONL or Azure CSV, .gz and .zst too")


def _add_timing(verbs: Any) -> None:
    group = _group(verbs, "timing", "measured kernel times")
    _verb(group, "list", _timing_list, "list the timing packs at hand", [_format()])
    parser = _verb(group, "build", _timing_build, "make timing packs from aiconfigurator-core (extra [aic])")
    parser.add_argument("model", help="model name, for example llama-3.1-70b")
    parser.add_argument("gpu", help="GPU name, for example h100_sxm")


def _add_track(verbs: Any) -> None:
    group = _group(verbs, "track", "experiment tracking")
    parser = _verb(group, "sync", _track_sync, "send to MLflow what it missed", [_runs_dir()])
    parser.add_argument("run", metavar="RUN", help="run id, its directory, or 'last'")


def _add_serve(verbs: Any) -> None:
    parser = _verb(verbs, "serve", _serve, "HTTP API and live frontier page", [_runs_dir()])
    parser.add_argument("--host", default="127.0.0.1", help="any other than loopback needs DYNOSIM_API_KEY")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--storage", metavar="URL", help="Optuna storage of all studies; default: SQLite per run")
    parser.add_argument("--traces", metavar="DIR", help="directory whose traces HTTP users may name")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number
