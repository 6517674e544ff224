"""The files of a run: tables, the frontier, runnable recommendations, the page, and where it all came from.

Every file is whole or absent. Tables hold the main statistics; ``frontier.json`` is lossless.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim import __version__
from dynosim.config.load import dump_scenario
from dynosim.files import write_whole
from dynosim.report.analysis import engine_rules, leader_of, prices, recommendation_numbers
from dynosim.report.html import html
from dynosim.report.launch import launch_script
from dynosim.search.trial import is_main
from dynosim.search.view import lossless, trial_view
from dynosim.workload import traffic_hash

if TYPE_CHECKING:
    import pandas as pd

    from dynosim.search.study import Study
    from dynosim.search.trial import Trial

OUTCOME = ("number", "status", "feasible", "saturated", "evidence")
LAYOUT = ("label", "engine", "precision", "router", "gpu", "gpus")
"""Columns from ``search.view.trial_view``."""
ENDS = ("low", "high", "model_low", "model_high")
"""Columns of an objective's 95 % sampling interval and of its model band."""


def write(study: Study, run_dir: Path) -> dict[str, Path]:
    """Write all files of *study* into *run_dir* and return name -> path; earlier ones are replaced."""
    origin = environment(study)
    front = study.recommended()
    trials, frontier = table(study, study.trials), table(study, front)
    contents: dict[str, str | bytes] = {
        "environment.json": json.dumps(origin, indent=1),
        "trials.csv": trials.to_csv(index=False),
        "trials.parquet": trials.to_parquet(index=False),
        "frontier.csv": frontier.to_csv(index=False),
        "frontier.json": json.dumps([lossless(trial) for trial in front], indent=1),
        "report.html": html(study, _footer(origin), run_dir),
        **recommendations(study),
    }
    _remove_stale(run_dir / "recommendations", contents)
    return {name: write_whole(run_dir / name, content) for name, content in contents.items()}


def table(study: Study, trials: Sequence[Trial]) -> pd.DataFrame:
    """Return one row per trial: outcome, searched knobs by path, objectives, SLO violations, main metrics."""
    import pandas as pd

    places = {"recommendation": recommendation_numbers(study), "leader": leader_of(study)}
    rows = [{**_row(study, trial), **{name: of.get(trial.number) for name, of in places.items()}} for trial in trials]
    paths = [parameter.path for parameter in study.space.parameters]
    heads = [*OUTCOME, *places, *LAYOUT, *paths]
    heads += [objective.name for objective in study.objectives]
    heads += [f"{objective.name}.{end}" for objective in study.objectives for end in ENDS]
    # An objective may be one of the columns that are always there.
    columns = list(dict.fromkeys([*heads, *(key for row in rows for key in row)]))
    return pd.DataFrame(rows, columns=columns).convert_dtypes()


def _row(study: Study, trial: Trial) -> dict[str, Any]:
    outcome, view = trial.outcome, trial_view(trial)
    flat = outcome.flat_metrics()
    return {
        **{key: value for key, value in flat.items() if is_main(key)},
        **{key: view[key] for key in (*OUTCOME, *LAYOUT)},
        **{path: _cell(value) for path, value in trial.point.items()},
        **{f"slo_violation.{name}": violation for name, violation in outcome.constraints.items()},
        **dict(zip((o.name for o in study.objectives), outcome.values or (), strict=False)),
        **_ends(study, trial),
        "reason": outcome.reason,
        "wall_s": outcome.wall_s,
    }


def _ends(study: Study, trial: Trial) -> dict[str, float]:
    """Return the ends of the objectives' sampling intervals and model bands, those that are known."""
    found = dict[str, float]()
    for objective, value in zip(study.objectives, trial.outcome.values or (), strict=False):
        sampling, model = trial.ends(objective.name, value)
        ends = (*(sampling or (None, None)), *(model or (None, None)))
        found |= {f"{objective.name}.{end}": at for end, at in zip(ENDS, ends, strict=True) if at is not None}
    return found


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)


def recommendations(study: Study) -> dict[str, str]:
    """Return two files each of the frontier and its leaders, by first objective, and of the baseline.

    The YAML is what ``dynosim predict`` runs, the script is how real servers are started like it.
    """
    named = {f"{place:04d}": trial for place, trial in enumerate(study.recommended(), start=1)}
    if study.baseline is not None:
        named["baseline"] = study.baseline
    files = {f"recommendations/{name}.yaml": dump_scenario(trial.scenario) for name, trial in named.items()}
    return files | {f"recommendations/{name}.sh": launch_script(trial.scenario) for name, trial in named.items()}


def _remove_stale(folder: Path, keep: Mapping[str, Any]) -> None:
    """Remove recommendations of an earlier, longer frontier of the same run."""
    for path in (*folder.glob("*.yaml"), *folder.glob("*.sh")):
        if f"{folder.name}/{path.name}" not in keep:
            path.unlink()


def environment(study: Study) -> dict[str, Any]:
    """Return what is needed to get the same numbers again: versions, source state, content hashes, seeds."""
    reference = study.space.reference
    return {
        "study": study.id,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "dynosim": __version__,
        **_source_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "dependencies": {name: version(name) for name in _dependencies()},
        "engine_rules": engine_rules(study),
        "space": study.space.name,
        "space_hash": study.space.content_hash(),
        "seed": reference.seed,
        "optimizer_seed": reference.optimizer.seed,
        "price_hash": reference.prices.content_hash(),
        "prices": prices(study),
        "workload_hash": traffic_hash(reference),
        "config_hashes": {str(trial.number): trial.scenario.content_hash() for trial in study.trials},
    }


def _dependencies() -> list[str]:
    """Return the installed run-time requirements by name."""
    needed = [line for line in requires("dynosim") or () if "extra ==" not in line]
    return sorted(line.split(";")[0].split(">")[0].split("=")[0].split("<")[0].split("[")[0].strip() for line in needed)


def _source_state() -> dict[str, Any]:
    """Return the commit of a source checkout and whether files in it differ; nothing for an installed package."""
    source = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(source), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        tracked = git("ls-files", "--", Path(__file__).name)
        return {"git_sha": git("rev-parse", "HEAD"), "git_dirty": bool(git("status", "--porcelain"))} if tracked else {}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _footer(origin: Mapping[str, Any]) -> dict[str, str]:
    """Return the part of the origin that a reader of the page needs."""
    versions = ("study", "written", "dynosim", "git_sha", "engine_rules", "python", "platform")
    keys = (*versions, "seed", "space_hash", "workload_hash", "price_hash")
    shown = {key.replace("_", " "): str(origin[key]) for key in keys if origin.get(key) is not None}
    if origin.get("git_dirty"):
        shown["git sha"] += " (with local changes)"
    return shown
