"""Fronts of several workloads side by side: tables for the terminal, and a page that works with the network off.

Both are made of ``Comparison.view``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from dynosim.report.analysis import percent
from dynosim.report.numbers import number

View = Mapping[str, Any]

COLORS = ("#3b6fb6", "#c8643c", "#5b8f4e", "#8a5ba6", "#a38a2e", "#4a9a9a")


def tables(view: View) -> Iterator[Table]:
    """Yield every configuration under each workload, the regret matrix, and the best compromise."""
    yield _configurations(view, "fronts", view["configurations"])
    yield _matrix(view)
    if view["compromise"]:
        yield _configurations(view, "best compromise", [view["compromise"]])


def _configurations(view: View, title: str, rows: list[View]) -> Table:
    table = Table("tuned for", "pick", "deployment", "engine", "precision", title=title, title_justify="left")
    for name in view["workloads"]:
        for objective in view["objectives"]:
            table.add_column(f"{name}\n{objective['display']}\n{objective['unit']}", justify="right")
    for row in rows:
        cells = [cell for name in view["workloads"] for cell in _cells(view, row["judged"][name])]
        table.add_row(row["tuned_for"], ", ".join(row["picked"]), row["label"], row["engine"], row["precision"], *cells)
    return table


def _cells(view: View, judged: View) -> list[str]:
    """Return the value of each objective and how much of it is lost; what is the matter where there is none."""
    if judged["loss"] is None:
        what = "misses SLO" if judged["status"] in ("lost", "complete") else "cannot run"
        return [what, *[""] * (len(view["objectives"]) - 1)]
    pairs = zip(judged["values"], judged["loss"], strict=True)
    return [f"{number(value)} {_percent(loss)}".strip() for value, loss in pairs]


def _percent(loss: float | None) -> str:
    return f"({100.0 * loss:.0f} %)" if loss and loss >= 0.005 else ""


def _matrix(view: View) -> Table:
    """How each front does under each workload."""
    said = (
        "in brackets: how much worse than a configuration of the workload's own front that is as good in everything\n"
        "best: of each objective, against the best of the own front; hypervolume: what is reached of the own front's"
    )
    table = Table("tuned for", title="what is lost", caption=said, title_justify="left", caption_justify="left")
    for name in view["workloads"]:
        table.add_column(f"judged by {name}")
    for tuned_for, by in view["regret"].items():
        table.add_row(tuned_for, *(_cell(view, by[name]) for name in view["workloads"]))
    return table


def _cell(view: View, regret: View) -> str:
    count, missing = regret["configurations"], regret["miss_slo"]
    lines = [f"{missing} of {count} miss the SLO"] if missing else []
    shown = {objective["name"]: objective["display"] for objective in view["objectives"]}
    behind = {name: loss for name, loss in regret["behind"].items() if loss is not None}
    lines += [f"best {shown[name]} {percent(1.0 + loss, 1.0)}" for name, loss in behind.items()]
    reached = regret["hypervolume"]
    return "\n".join([*lines, *([f"{100.0 * reached:.1f} % of the hypervolume"] if reached is not None else [])])


def html(view: View) -> str:
    """Return a page with a plot per workload: the first two objectives of every configuration that meets its SLO."""
    from plotly.graph_objects import Figure
    from plotly.subplots import make_subplots

    workloads, axes = view["workloads"], (view["objectives"] * 2)[:2]
    figure: Figure = make_subplots(cols=len(workloads), subplot_titles=[f"judged by {name}" for name in workloads])
    for column, name in enumerate(workloads, start=1):
        for place, tuned_for in enumerate(view["regret"]):
            figure.add_trace(_points(view, name, tuned_for, place, legend=column == 1), row=1, col=column)
    for axis, update in zip(axes, (figure.update_xaxes, figure.update_yaxes), strict=True):
        update(title=f"{axis['display']} ({axis['unit']})", type="log")
    figure.update_layout(
        template="plotly_white", height=520, legend_title="tuned for", title=" against ".join(workloads)
    )
    return str(figure.to_html(include_plotlyjs=True, full_html=True))


def _points(view: View, judged_by: str, tuned_for: str, place: int, *, legend: bool) -> Any:
    from plotly.graph_objects import Scatter

    rows = [row for row in view["configurations"] if row["tuned_for"] == tuned_for]
    known = [(row, row["judged"][judged_by]["values"]) for row in rows if row["judged"][judged_by]["loss"] is not None]
    known.sort(key=lambda each: each[1][0])
    return Scatter(
        x=[values[0] for _, values in known],
        y=[values[min(1, len(values) - 1)] for _, values in known],
        text=[f"{row['label']} {row['engine']} {row['precision']}" for row, _ in known],
        name=f"{tuned_for}" + (" (own front)" if tuned_for == judged_by else ""),
        mode="lines+markers" if tuned_for == judged_by else "markers",
        marker={"color": COLORS[place % len(COLORS)], "size": 9},
        legendgroup=tuned_for,
        showlegend=legend,
    )
