"""``dynosim optimize`` and ``compare-workloads``."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING, Any

from dynosim.cli.arguments import (
    add_verb,
    format_option,
    natural,
    output_folder,
    overrides_option,
    positive,
    runs_dir_option,
    study_options,
    trace_option,
    tracking_option,
)
from dynosim.cli.output import INTERRUPTED, NOTHING_FEASIBLE, OK, console, print_json, print_study

if TYPE_CHECKING:
    from dynosim.space import SearchSpace


def add_optimize(verbs: Any) -> None:
    parents = [
        overrides_option(),
        trace_option(),
        study_options(),
        tracking_option(),
        format_option(),
        runs_dir_option(output_folder),
    ]
    parser = add_verb(verbs, "optimize", _optimize, "search a space for its Pareto frontier", parents)
    parser.add_argument("space", metavar="SPACE", help="bundled name (dynosim spaces) or YAML file")
    parser.add_argument("--workers", type=positive, metavar="N", help="worker processes (default: all cores)")
    parser.add_argument(
        "--in-flight", type=positive, metavar="N", help="proposals at a time, a part of the study (default: 4)"
    )
    parser.add_argument(
        "--evaluate", metavar="FILE.py:FUNCTION", help="evaluate with this function instead of the simulator"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved space and its size, run nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _optimize(args: argparse.Namespace) -> int:
    from dynosim.progress import GracefulStop, ProgressLine
    from dynosim.report import terminal
    from dynosim.run.directory import find_run
    from dynosim.run.spaces import load_space
    from dynosim.run.study import optimize

    overrides = [*args.overrides, *([f"optimizer.sampler={args.sampler}"] if args.sampler else [])]
    asked = {"overrides": overrides, "trace": args.trace, "objectives": args.objectives}
    if args.dry_run:
        return _dry_run(load_space(args.space, **asked))
    with GracefulStop() as stop, ProgressLine(console(sys.stderr), quiet=args.quiet) as line:
        try:
            study = optimize(
                args.space,
                **asked,
                trials=args.trials,
                seed=args.seed,
                workers=args.workers,
                in_flight=args.in_flight,
                storage=args.storage,
                runs_dir=args.runs_dir,
                tracking=args.tracking,
                listeners=[line, stop],
                evaluate=args.evaluate,
            )
        except KeyboardInterrupt:
            command = shlex.join([terminal.command("dynosim"), *sys.argv[1:]])
            kept = (
                f"; {len(line.study.trials)} trials and a report are in {args.runs_dir}/{line.study.id}"
                if line.study
                else ""
            )
            print(f"interrupted{kept}\nto go on: {command}", file=sys.stderr)
            return INTERRUPTED
    print_study(study, find_run(study.id, args.runs_dir), args)
    return OK if study.frontier() else NOTHING_FEASIBLE


def _dry_run(space: SearchSpace) -> int:
    from rich.table import Table

    from dynosim.rng import stream
    from dynosim.space import reasons

    print(space.to_yaml(), end="")
    table = Table(title=f"{space.name}: {space.size():.3g} points")
    for head in ("parameter", "domain", "values", "when", "baseline"):
        table.add_column(head, overflow="fold")
    for row in space.describe():
        table.add_row(*("" if cell is None else str(cell) for cell in row.values()))
    console(sys.stderr).print(table)
    found = reasons.sampled(space, stream(0, "dry run"))
    impossible = [reason for reason in found if reason is not None]
    if impossible:
        share = f"{len(impossible):,} of {len(found):,} random points"
        print(f"{share} cannot be deployed: {reasons.summary(impossible)}", file=sys.stderr)
    return NOTHING_FEASIBLE if len(impossible) == len(found) else OK


def add_compare(verbs: Any) -> None:
    summary = (
        "tune for each workload of a space and for all: fronts, what each loses on the others, the best compromise"
    )
    parser = add_verb(
        verbs,
        "compare-workloads",
        _compare,
        summary,
        [overrides_option(), format_option(), runs_dir_option(output_folder)],
    )
    parser.add_argument("spaces", nargs="+", metavar="SPACE", help="one with several workloads; or several, or runs")
    parser.add_argument("--trials", type=positive, metavar="N", help="trials of each search")
    parser.add_argument("--seed", type=natural, metavar="N", help="seed of each search")
    parser.add_argument("--workers", type=positive, metavar="N", help="simulations at a time (default: all cores)")
    parser.add_argument("--tracking", default="auto", metavar="auto|off|URI", help="where MLflow keeps the runs")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _compare(args: argparse.Namespace) -> int:
    from dynosim.compare import compare_workloads
    from dynosim.progress import GracefulStop, ProgressLine
    from dynosim.report import comparison

    with GracefulStop() as stop, ProgressLine(console(sys.stderr), quiet=args.quiet) as line:
        found = compare_workloads(
            *args.spaces,
            trials=args.trials,
            seed=args.seed,
            overrides=args.overrides,
            runs_dir=args.runs_dir,
            tracking=args.tracking,
            workers=args.workers,
            listeners=[line, stop],
        )
    view = found.view()
    if args.format == "json":
        print_json(view)
    else:
        for table in comparison.tables(view):
            console(sys.stdout).print(table)
        print(f"page and data: comparison.html and comparison.json of {list(view['runs'].values())[-1]}")
    return OK if found.rows else NOTHING_FEASIBLE
