"""Exit codes, and what is printed: tables for people, JSON and CSV for programs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from dynosim.fidelity.document import Section
    from dynosim.search.study import Study
    from dynosim.search.trial import Trial

OK, FAILURE, USAGE, NOTHING_FEASIBLE, INTERRUPTED = 0, 1, 2, 3, 130

PLAIN_WIDTH = 160
"""Columns of a table that goes to a file or a pipe."""


def console(stream: TextIO) -> Console:
    """Return a console that is plain where *stream* is no terminal (or NO_COLOR is set: rich reads that itself)."""
    from rich.console import Console

    return Console(file=stream, width=None if stream.isatty() else PLAIN_WIDTH)


def print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, allow_nan=False)
    print()


def print_csv(study: Study, trials: Sequence[Trial]) -> None:
    from dynosim.report.files import table

    table(study, trials).to_csv(sys.stdout, index=False)


def print_study(study: Study, run_dir: Path, args: argparse.Namespace) -> None:
    from dynosim.report import terminal
    from dynosim.tracking import tracking_uri
    from dynosim.tracking.outbox import Outbox
    from dynosim.views import frontier_view

    if args.format == "json":
        print_json({**frontier_view(study), "run_dir": str(run_dir)})
    elif getattr(args, "frontier", False):
        console(sys.stdout).print(terminal.frontier_table(study, whole=True))
    else:
        tracked = "auto" if Outbox(run_dir).folder.is_dir() else "off"
        uri = tracking_uri(getattr(args, "tracking", tracked), run_dir.parent)
        console(sys.stdout).print(terminal.summary(study, run_dir, uri), crop=False)


def print_section(section: Section) -> None:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    table = Table(*section.head, title=section.title, caption=section.note or None, box=SIMPLE)
    table.title_justify = table.caption_justify = "left"
    for row in section.rows:
        table.add_row(*map(Text, row))
    console(sys.stdout).print(table if section.rows else f"{section.title}: {section.empty}", highlight=False)


def print_rows(rows: list[dict[str, Any]], form: str) -> None:
    from rich.table import Table

    if form == "json":
        return print_json(rows)
    table = Table(*(rows[0] if rows else ()))
    for row in rows:
        table.add_row(
            *("" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in row.values())
        )
    console(sys.stdout).print(table)


def print_metrics(title: str, view: Mapping[str, Any]) -> None:
    """Print one row per metric of a prediction or a trial; a scalar stands in the first column."""
    from rich.table import Table

    from dynosim.metrics import METRICS
    from dynosim.report.analysis import plus_minus
    from dynosim.report.numbers import number
    from dynosim.uncertainty.model_band import TAIL

    stats, bands = ("avg", "p50", "p90", "p99"), view["model_bands"]
    noise = [f"evidence: {view['evidence']}"] * bool(view["evidence"])
    noise += ["±: 95 % sampling interval"] * bool(view["intervals"])
    table = Table(
        "metric", "unit", title=title, title_justify="left", caption="; ".join(noise) or None, caption_justify="left"
    )
    for stat in stats:
        table.add_column(stat, justify="right")
    for what in (f"real / this\n({view['evidence']})", "of p99") if bands else ():
        table.add_column(what, justify="right")
    for name, value in (view["metrics"] or {}).items():
        found = value if isinstance(value, Mapping) else {"avg": value}
        cells = []
        for stat in stats if isinstance(value, Mapping) else ("avg",):
            known = found.get(stat)
            ends = view["intervals"].get(name if stat == "avg" else f"{name}.{stat}")
            cells.append("–" if known is None else f"{number(known)} {plus_minus(known, ends)}".strip())
        factors = [
            "{:.2f}-{:.2f}".format(*bands[key]) if key in bands and value is not None else ""
            for key in ((name, name + TAIL) if bands else ())
        ]
        unit = METRICS[name].unit if name in METRICS else ""
        table.add_row(name, unit, *cells, *[""] * (len(stats) - len(cells)), *factors)
    console(sys.stdout).print(table)
