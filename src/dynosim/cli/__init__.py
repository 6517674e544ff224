"""The command line: parses, calls the functions of ``dynosim.run``, prints, and maps errors to exit codes.

The result goes to stdout; progress and errors go to stderr. Exit codes: 0 done, 1 execution failure, 2 usage or
configuration, 3 done but nothing feasible, 130 interrupted and resumable. Heavy packages are imported inside the
verbs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from dynosim import __version__
from dynosim.cli import arguments, evaluators, files, operation, results, search, timing
from dynosim.cli.output import FAILURE, INTERRUPTED, NOTHING_FEASIBLE, OK, USAGE
from dynosim.errors import ConfigError, DynosimError, InfeasibleError

__all__ = ["FAILURE", "INTERRUPTED", "NOTHING_FEASIBLE", "OK", "USAGE", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    try:
        args = _parser().parse_args(argv)
        return int(args.verb(args))
    except ConfigError as error:
        return _complain(error, USAGE)
    except InfeasibleError as error:
        return _complain(error, NOTHING_FEASIBLE)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except (DynosimError, OSError) as error:
        return _complain(error, FAILURE)
    except KeyboardInterrupt:
        return INTERRUPTED


def _complain(error: Exception, code: int) -> int:
    print(f"dynosim: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = arguments.Parser(
        prog="dynosim", description="Map the Pareto frontier of LLM serving: Bayesian search over simulation."
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"dynosim {__version__} (independent project, not affiliated with NVIDIA)",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    search.add_optimize(verbs)
    evaluators.add_ask(verbs)
    results.add_predict(verbs)
    search.add_compare(verbs)
    results.add_show(verbs)
    results.add_launch(verbs)
    files.add_config(verbs)
    files.add_spaces(verbs)
    files.add_trace(verbs)
    timing.add_timing(verbs)
    timing.add_validate(verbs)
    timing.add_calibrate(verbs)
    operation.add_track(verbs)
    operation.add_serve(verbs)
    operation.add_doctor(verbs)
    return parser
