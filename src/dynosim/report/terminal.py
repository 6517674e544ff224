"""What a study says in the terminal, as rich renderables; the caller prints them."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dynosim.config.load import show
from dynosim.metrics import METRICS
from dynosim.objectives import resolve
from dynosim.report.analysis import (
    difference,
    engine_rules,
    factors,
    folded,
    frontier_line,
    gpu_text,
    health,
    percent,
    plus_minus,
    prices,
    priors_line,
    recommendation_numbers,
    rests_on,
    same_row,
    served,
    short,
    tradeoff,
    values,
)
from dynosim.report.numbers import number
from dynosim.search.trial import Status
from dynosim.search.view import layout
from dynosim.timing.calibrated import FOLDER, Profile, ServerFact
from dynosim.uncertainty.model_band import band_of

if TYPE_CHECKING:
    from dynosim.calibration import Calibration
    from dynosim.config import Scenario
    from dynosim.objectives import Objective
    from dynosim.search.study import Study
    from dynosim.search.trial import Outcome, Trial

MAX_ROWS = 15
"""Rows of the frontier that a screen takes; the files have all of them."""
MAX_KNOBS = 3
"""Columns that tell rows of one layout apart; the files have every knob."""


def summary(study: Study, run_dir: Path, tracking_uri: str | None = None) -> Group:
    """Return the whole summary: frontier, picks, trade-off, health, where to look next."""
    parts: list[RenderableType] = []
    if study.frontier():
        parts += [frontier_table(study), "", picks_table(study), ""]
        if sentence := tradeoff(study):
            parts += [Text(sentence), ""]
    return Group(*parts, health_lines(study), "", next_steps(study, run_dir, tracking_uri))


def frontier_table(study: Study, *, whole: bool = False) -> Table:
    """Return what can be told apart, by the first objective: one row a layout, at most ``MAX_ROWS``; or the *whole*.

    What all rows have in common stands in the title instead of a column.
    """
    rows = [(trial, 0) for trial in study.recommended()] if whole else _spread(study)
    shown = [trial for trial, _ in rows]
    common, varying = _layouts(shown)
    title = f"Pareto frontier of {', '.join([study.space.name, *common])} ({study.origin})"
    table = Table(title=title, title_justify="left", caption=_caption(study, rows), caption_justify="left")
    columns: dict[str, Sequence[str | Text]] = {
        **_named(study, shown),
        "more": [f"+{more}" if more else "" for _, more in rows] if any(more for _, more in rows) else [],
        **varying,
        **_knobs(shown),
        **{_head(o): _with_noise(study, shown, place) for place, o in enumerate(study.objectives)},
        **_beside(study, shown),
    }
    whole_words = {"#", "trial", "deployment", "more", "GPUs", *map(_head, study.objectives)}
    for head, cells in columns.items():
        if cells:
            width = max(map(len, [*cells, *head.split()])) if head in whole_words else None
            table.add_column(head, justify="left" if head in _TEXT else "right", width=width)
    for row in zip(*filter(None, columns.values()), strict=True):
        table.add_row(*row)
    return table


_TEXT = ("deployment", "engine", "precision", "router", "evidence")


def _named(study: Study, trials: Sequence[Trial]) -> dict[str, Sequence[str]]:
    """Return the columns that name a trial: its recommendation file, its number, its deployment."""
    numbers = recommendation_numbers(study)
    return {
        "#": [str(numbers.get(trial.number, "–")) for trial in trials],
        "trial": [str(trial.number) for trial in trials],
        "deployment": [trial.scenario.deployment.label() for trial in trials],
    }


def _layouts(trials: Sequence[Trial]) -> tuple[list[str], dict[str, Sequence[str]]]:
    """Return what the layouts of *trials* have in common, and a column for everything else."""
    layouts = [layout(trial) for trial in trials]
    of = {name: [texts[name] for texts in layouts] for name in ("gpu", "engine", "precision", "router")}
    common = [texts[0] for texts in of.values() if len(set(texts)) == 1]
    counts, types = list(map(gpu_text, trials)), of.pop("gpu")
    columns: dict[str, Sequence[str]] = {name: texts for name, texts in of.items() if len(set(texts)) > 1}
    columns["GPUs"] = list(map(" ".join, zip(counts, types, strict=True))) if len(set(types)) > 1 else counts
    return common, columns


def _knobs(trials: Sequence[Trial]) -> dict[str, Sequence[str]]:
    """Return a column for each of the first knobs that tell trials of one layout apart."""
    alike: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        alike.setdefault(same_row(trial), []).append(trial)
    paths = [path for group in alike.values() for other in group[1:] for path in difference(other, group[0])]
    cells = {path: [show(trial.point[path]) if path in trial.point else "–" for trial in trials] for path in paths}
    return {short(path): cells[path] for path in list(cells)[:MAX_KNOBS]}


def _beside(study: Study, trials: Sequence[Trial]) -> dict[str, Sequence[str | Text]]:
    """Return the columns beside the objectives that are worth their width."""
    flat = [trial.outcome.flat_metrics() for trial in trials]
    speed, attained = ([of.get(name) for of in flat] for name in (f"{_SPEED}.p50", "good_request_fraction"))
    marks = [_evidence(trial) for trial in trials]
    wanted: dict[str, tuple[Sequence[str | Text], bool]] = {
        "tok/s/user\np50": (list(map(_known, speed)), f"{_SPEED}.p50" not in [o.name for o in study.objectives]),
        "requests\nserved": (list(map(_served, trials)), any(served(trial) < 0.9995 for trial in trials)),
        "SLO\nattained": (list(map(_known, attained)), any(share is not None and share < 0.99 for share in attained)),
        "evidence": (marks, len(set(map(str, marks))) > 1),
    }
    return {head: cells for head, (cells, of_use) in wanted.items() if of_use}


_SPEED = "output_token_throughput_per_user"


def _served(trial: Trial) -> Text:
    return Text(f"{served(trial):.1%}", style="" if served(trial) >= 0.99 else "red")


def _with_noise(study: Study, trials: Sequence[Trial], place: int) -> list[Text]:
    """Return one objective of each trial with its sampling interval, one below the other."""
    name, column = study.objectives[place].name, [values(trial)[place] for trial in trials]
    noise = [plus_minus(value, trial.interval(name, value)) for trial, value in zip(trials, column, strict=True)]
    width = max(map(len, noise)) + 1 if any(noise) else 0
    return [Text(number(v)).append(n.rjust(width), style="dim") for v, n in zip(column, noise, strict=True)]


def _evidence(trial: Trial) -> Text:
    mark = trial.outcome.evidence or "–"
    text = Text(mark, style="yellow" if mark == "extrapolated" else "")
    return text.append(", saturated", style="red") if trial.saturated else text


def _caption(study: Study, rows: Sequence[tuple[Trial, int]]) -> str:
    """Return what the marks of the table mean, those that are in it."""
    shown, folded_in = [trial for trial, _ in rows], sum(more for _, more in rows)
    left = len(study.recommended()) - len(rows) - folded_in
    noisy = any(t.interval(o.name, v) for t in shown for o, v in zip(study.objectives, values(t), strict=True))
    lines = [
        "#: number of the file in recommendations/" + (f"; {left} more in frontier.csv" if left else ""),
        "+: more of the frontier, of the same layout or not told apart by the simulation" if folded_in else "",
        "±: 95 % sampling interval" if noisy else "",
        *dict.fromkeys(_bands(study, trial) for trial in shown),
    ]
    return "\n".join(filter(None, lines))


def _bands(study: Study, trial: Trial) -> str:
    """Return the evidence of a trial and the model bands of the objectives, which trials of one mark have in common."""
    bands = trial.model_bands()
    known = {o.display: band for o in study.objectives if (band := band_of(bands, o.name))}
    said = ", ".join(f"{display} {factors(band)}" for display, band in known.items())
    if said:
        return f"{rests_on(trial)}: a real server gives {said} of the number (80 % of those measured)"
    return f"{rests_on(trial)}: how far a real server is from it is not known" if trial.outcome.evidence else ""


def _spread(study: Study) -> list[tuple[Trial, int]]:
    """Return one leader a layout with the number of points like it: the picks, and rows evenly spread over the rest."""
    rows, picked = folded(study), {trial.number for trial in study.picks().values()}
    free = [row for row in rows if row[0].number not in picked]
    places = np.linspace(0, len(free) - 1, max(MAX_ROWS - (len(rows) - len(free)), 0)).round().astype(int)
    kept = picked | {free[place][0].number for place in places if free}
    return [row for row in rows if row[0].number in kept]


def picks_table(study: Study) -> Table:
    """Return the named picks, each objective with its difference to the baseline."""
    baseline = study.baseline if study.baseline and study.baseline.outcome.values else None
    rows = study.picks() | ({"baseline": baseline} if baseline else {})
    trials = list(rows.values())
    table = Table(title="Picks" + (", compared with the baseline" if baseline else ""), title_justify="left")
    columns: dict[str, Sequence[str | Text]] = {
        "pick": list(rows),
        **_named(study, trials),
        **_layouts(trials)[1],
        **{_head(o): [_compared(study, t, baseline, i) for t in trials] for i, o in enumerate(study.objectives)},
    }
    for head in columns:
        table.add_column(head, justify="left" if head in ("pick", *_TEXT) else "right", no_wrap=True)
    for trial, row in zip(trials, zip(*columns.values(), strict=True), strict=True):
        table.add_row(*row, style="dim" if trial is baseline else "")
    return table


def cases_table(scenario: Scenario, outcome: Outcome) -> Table:
    """Return objectives and missed SLOs of each case, and of all together as the objectives say."""
    objectives = [resolve(config) for config in scenario.objectives]
    table = Table("case", *map(_head, objectives), "SLO", title="cases", title_justify="left")
    for name, case in outcome.cases.items():
        missed = [bound for bound, violation in case["constraints"].items() if violation > 0.0]
        table.add_row(name, *map(number, case["values"]), ", ".join(missed) or "met")
    if outcome.values is not None:
        missed = [bound for bound, violation in outcome.constraints.items() if violation > 0.0]
        table.add_row("together", *map(number, outcome.values), ", ".join(missed) or "met", style="bold")
    return table


def calibration_summary(calibration: Calibration, path: Path) -> Group:
    """Return the numbers that a profile was fitted to, its multipliers, what it is worth, and how to use it."""
    profile = calibration.profile
    table = Table(title=f"{profile.label}: errors of the simulation", title_justify="left")
    for head in ("file", "deployment", "load", "metric"):
        table.add_column(head, no_wrap=True)
    for head in ("measured", "uncalibrated", "calibrated", "left out"):
        table.add_column(head, justify="right")
    for row in calibration.comparisons:
        errors = (_error(row.measured, value) for value in (row.before, row.after, row.left_out))
        known = METRICS[row.metric]
        cells = Path(row.file).name, row.deployment, row.load, known.display, f"{number(row.measured)} {known.unit}"
        table.add_row(*cells, *errors)
    for name, found in profile.residuals.items():
        means = (found.mape_before, found.mape, found.mape_left_out)
        shown = ("–" if mean is None else f"{mean:.1%}" for mean in means)
        table.add_row("mean absolute error", "", "", METRICS[name].display, "", *shown, style="bold")
    return Group(table, "", Text("\n".join(_calibration_lines(profile, path)), no_wrap=True, overflow="ignore"))


def _error(measured: float, predicted: float | None) -> str:
    return "–" if predicted is None else f"{predicted / measured - 1.0:+.1%}"


def _calibration_lines(profile: Profile, path: Path) -> list[str]:
    verdicts = {
        None: "one run only: nothing tells whether the profile holds elsewhere",
        True: f"better than without on every {profile.left_out} that was left out in turn, taken together",
        False: f"NOT RECOMMENDED: no better than without where a {profile.left_out} was left out",
    }
    bounds = f"; at a bound, look for another cause: {', '.join(profile.at_bounds)}" if profile.at_bounds else ""
    fitted = [name for name in profile.standard_errors if name not in profile.not_determined]
    kept = [f"{name} (+-{_standard_error(profile, name)})" for name in profile.not_determined]
    return [
        f"fitted       {', '.join(_parameter(profile, name) for name in fitted) or 'nothing'}{bounds}",
        *([f"as modelled  not determined by these runs: {', '.join(kept)}"] if kept else []),
        *(_server_line(fact) for fact in profile.server),
        f"worth        {verdicts[profile.recommended if profile.left_out else None]}",
        f"written      {path}",
        f"use          --set deployment.calibration={profile.label if path.parent == FOLDER else path}",
    ]


PARAMETER_UNITS = {"overhead_ms": "ms", "request_us": "us", "frontend_ms": "ms"}


def _parameter(profile: Profile, name: str) -> str:
    value, unit = getattr(profile, name), PARAMETER_UNITS.get(name)
    return f"{name} {f'{value:.4g} {unit}' if unit else f'x{value:.3f}'} (+-{_standard_error(profile, name)})"


def _standard_error(profile: Profile, name: str) -> str:
    """Return a standard error with its unit."""
    error, unit = profile.standard_errors[name], PARAMETER_UNITS.get(name)
    return f"{error:.2g} {unit}" if unit else f"{error:.1%}"


def _server_line(fact: ServerFact) -> str:
    stated, simulated = (x if isinstance(x, str) else f"{x:.6g}" for x in (fact.stated, fact.simulated))
    told = f"server       {fact.name} {stated}, simulated {simulated}"
    return f"{told}: DIFFERS" if fact.differs else told


def health_lines(study: Study) -> Text:
    """Return one PASS or WARN line per finding about the search."""
    text = Text()
    for check in health(study):
        text.append(check.level.upper().ljust(6), style="green" if check.level == "pass" else "yellow")
        text.append(check.text + "\n")
    text.rstrip()
    return text


def next_steps(study: Study, run_dir: Path, tracking_uri: str | None) -> Text:
    """Return where to look and what to run next."""
    lines = [f"trials    {effort(study)}", f"frontier  {frontier_line(study)}"]
    if study.priors:
        lines.append(f"models    {priors_line(study)}")
    if study.trials:
        lines.append(f"prices    {prices_line(prices(study))}")
        lines.append(f"engines   {engine_rules(study)}")
    lines.append(f"report    {run_dir / 'report.html'}")
    if tracking_uri is not None:
        elsewhere = ["--runs-dir", str(run_dir.parent)] if run_dir.parent != Path("runs") else []
        serve = shlex.join([command("dynosim"), "track", "ui", *elsewhere])
        lines.append(f"MLflow    {serve if tracking_uri.startswith('sqlite:') else tracking_uri}")
    for pick in list(study.picks().values())[-1:]:
        config = str(run_dir / "recommendations" / f"{recommendation_numbers(study)[pick.number]:04d}.yaml")
        lines.append(f"next      {shlex.join([command('dynosim'), 'predict', config])}")
    return Text("\n".join(lines), no_wrap=True, overflow="ignore")


def prices_line(prices: Mapping[str, Mapping[str, Any]]) -> str:
    """Return ``hardware.prices.price_list`` in words, GPUs of one source together."""
    of: dict[str, list[str]] = {}
    for gpu, price in prices.items():
        of.setdefault(price["source"], []).append(f"{gpu} {price['usd_per_gpu_hour']:g}")
    return "; ".join(f"{', '.join(gpus)} USD/h ({source})" for source, gpus in of.items())


def effort(study: Study) -> str:
    """Return how many trials there are, and how many of them took no whole simulation."""
    outcomes = [trial.outcome for trial in study.trials]
    reused = sum(outcome.cached for outcome in outcomes)
    lost = sum(outcome.status is Status.LOST for outcome in outcomes)
    parts = [f"{reused} from earlier runs"] * (reused > 0) + [f"{lost} ended early, an SLO was lost"] * (lost > 0)
    return f"{len(outcomes)}{': ' if parts else ''}{'; '.join(parts)}"


def command(program: str) -> str:
    """Return what to type for *program* of this installation: its name if PATH leads to it, else its path."""
    ours, found = Path(sys.executable).with_name(program), shutil.which(program)
    if not ours.exists() or (found and ours.samefile(found)):
        return program
    return str(ours.relative_to(Path.cwd()) if ours.is_relative_to(Path.cwd()) else ours)


def _compared(study: Study, trial: Trial, baseline: Trial | None, column: int) -> Text:
    value = values(trial)[column]
    text = Text(number(value))
    if baseline is None or trial is baseline:
        return text
    reference = values(baseline)[column]
    lower_is_better = study.objectives[column].direction == "minimize"
    style = "dim" if value == reference else "green" if (value < reference) == lower_is_better else "red"
    return text.append(f"  {percent(value, reference):>6}", style=style)


def _head(objective: Objective) -> str:
    return f"{objective.display}\n{objective.unit}"


def _known(value: float | None) -> str:
    return "–" if value is None else number(value)
