"""What the verbs' parsers are made of: options that several share, and types of values."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dynosim.errors import ConfigError, nearest


class Parser(argparse.ArgumentParser):
    """Refuses wrong usage in one line, without the usage of the whole verb."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError, with the nearest of the choices that there are."""
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice:
            word, choices = choice[1], re.findall(r"[\w.-]+", choice[2])
            message = f"{message[: choice.start()]}{word!r}: {nearest(word, choices)}allowed: {', '.join(choices)}"
        raise ConfigError(f"{message.removeprefix('argument ')} (usage: {self.prog} --help)")


def add_verb(
    verbs: Any, name: str, function: Any, summary: str, parents: Sequence[argparse.ArgumentParser] = ()
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary, parents=parents)
    parser.set_defaults(verb=function)
    return parser


def add_group(verbs: Any, name: str, summary: str) -> Any:
    group = verbs.add_parser(name, help=summary, description=summary)
    return group.add_subparsers(metavar="VERB", required=True)


def _options() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(add_help=False)


def overrides_option() -> argparse.ArgumentParser:
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


def trace_option() -> argparse.ArgumentParser:
    options = _options()
    options.add_argument("--trace", metavar="FILE", help="replay this trace instead of the workload's source")
    return options


def format_option(*extra: str) -> argparse.ArgumentParser:
    options = _options()
    options.add_argument("--format", choices=("table", "json", *extra), default="table", help="what stdout gets")
    return options


def runs_dir_option(kind: Callable[[str], str]) -> argparse.ArgumentParser:
    options = _options()
    options.add_argument(
        "--runs-dir", type=kind, default="runs", metavar="DIR", help="where runs are kept (default: runs)"
    )
    return options


def study_options() -> argparse.ArgumentParser:
    options = _options()
    options.add_argument("--trials", type=positive, metavar="N", help="trials in all, those of a resumed run included")
    options.add_argument(
        "--seed", type=natural, metavar="N", help="seed of the search; the traffic has its own: --set seed=N"
    )
    options.add_argument("--storage", metavar="URL", help="Optuna storage; default: SQLite in the run's directory")
    options.add_argument("--sampler", metavar="NAME", help="how points are proposed (default: the space's)")
    options.add_argument(
        "--objective",
        dest="objectives",
        metavar="OBJECTIVE",
        action="append",
        default=[],
        help="METRIC[.STAT] or path.py:function; repeatable; replaces the space's objectives",
    )
    return options


def tracking_option() -> argparse.ArgumentParser:
    options = _options()
    options.add_argument(
        "--tracking", default="auto", metavar="auto|off|URI", help="where MLflow keeps the run (default: auto)"
    )
    return options


def _whole(text: str, low: int, high: float = math.inf) -> int:
    """Return the whole number that *text* says, from *low* to *high*."""
    allowed = f"a whole number from {low} to {high}" if high < math.inf else f"a whole number >= {low}"
    if not re.fullmatch(r"[-+]?\d+", text) or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"{text}: allowed: {allowed}")
    return int(text)


def positive(text: str) -> int:
    return _whole(text, 1)


def natural(text: str) -> int:
    return _whole(text, 0)


def named_number(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: allowed: SLO=NUMBER") from None


def port(text: str) -> int:
    return _whole(text, 0, 65535)


def folder(text: str) -> str:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: not a directory")
    return text


def input_folder(text: str) -> str:
    """Return *text* unless something else than a directory has that name: before the first run there is none."""
    return folder(text) if Path(text).exists() else text


def output_folder(text: str) -> str:
    """Return *text* if it is, or can become, a directory to write into."""
    parent = next(path for path in (Path(text), *Path(text).absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{text}: {parent} is not a directory that can be written")
    return text


def output_file(text: str) -> str:
    """Return *text* if a file of that name can be written into a directory that exists."""
    if Path(text).is_dir() or not Path(text).parent.is_dir() or not os.access(Path(text).parent, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{text}: allowed: a file in an existing directory that can be written")
    return text
