"""What tuning for one workload costs on another: a search for each, one for all, and every front judged by each.

The searches share results, so a configuration is simulated once per case, whoever proposes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dynosim.errors import ConfigError
from dynosim.files import write_whole
from dynosim.run.directory import RESULTS_FILE, find_run, look_up
from dynosim.run.spaces import load_space
from dynosim.run.study import load_study, optimize
from dynosim.search import pareto
from dynosim.search.evaluate import evaluate
from dynosim.search.view import layout, objective_view

if TYPE_CHECKING:
    from dynosim.search.study import Listener, Study
    from dynosim.search.trial import Outcome, Trial

Array = NDArray[np.float64]

ALL = "all"
"""What the search for all workloads together is called."""


@dataclass(frozen=True)
class Judged:
    """A configuration under the goals of one workload."""

    outcome: Outcome
    loss: tuple[float, ...] | None
    """By objective: how much worse it is, relatively, than a configuration of the workload's own front that is at least
    as good in all of them, the one that is better by most on average; zeros without one. None where it misses an SLO
    or cannot run."""


@dataclass(frozen=True)
class Row:
    """A configuration of a front."""

    tuned_for: str
    trial: Trial
    picked: tuple[str, ...]
    """What its own study picks it for."""
    judged: Mapping[str, Judged]
    """By every workload."""


@dataclass(frozen=True)
class Comparison:
    """Fronts of several workloads, as far as their points can be told apart, each judged by all."""

    studies: Mapping[str, Study]
    """Of each workload alone."""
    joint: Study | None
    """Of all together; None where runs were compared that have no such search."""
    rows: tuple[Row, ...]

    @property
    def compromise(self) -> Row | None:
        """The balanced pick of the search for all workloads, its only one where objectives are of one kind."""
        found = [row for row in self.rows if row.tuned_for == ALL and row.picked]
        return next((row for row in found if "balanced" in row.picked), found[0] if found else None)

    def regret(self, tuned_for: str, judged_by: str) -> dict[str, Any]:
        """Return how a whole front does under another workload.

        ``configurations`` there are, how many ``miss_slo`` or cannot run, by how much the best of the others in each
        objective is worse than the best of the workload's own front (``behind``, relative; None without any), and the
        ``hypervolume`` of the own front that they reach, as a share.
        """
        judge = self.studies[judged_by]
        judged = [row.judged[judged_by] for row in self.rows if row.tuned_for == tuned_for]
        known = np.array([each.outcome.values for each in judged if each.loss is not None])
        names = [objective.name for objective in judge.objectives]
        return {
            "configurations": len(judged),
            "miss_slo": len(judged) - len(known),
            "behind": dict(zip(names, _behind(known, judge) if len(known) else [None] * len(names), strict=True)),
            "hypervolume": _share(known, judge) if len(known) else 0.0,
        }

    def view(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        searches = {**self.studies, **({ALL: self.joint} if self.joint else {})}
        return {
            "workloads": list(self.studies),
            "objectives": [objective_view(o) for o in next(iter(self.studies.values())).objectives],
            "runs": {name: study.id for name, study in searches.items()},
            "regret": {name: {by: self.regret(name, by) for by in self.studies} for name in searches},
            "compromise": _row_view(self.compromise) if self.compromise else None,
            "configurations": [_row_view(row) for row in self.rows],
        }


def _row_view(row: Row) -> dict[str, Any]:
    judged = {
        name: {
            "status": str(each.outcome.status),
            "feasible": each.outcome.feasible,
            "values": each.outcome.values,
            "loss": each.loss,
            "reason": each.outcome.headline,
        }
        for name, each in row.judged.items()
    }
    about = {"tuned_for": row.tuned_for, "trial": row.trial.number, "picked": list(row.picked)}
    return {**about, "label": row.trial.scenario.deployment.label(), **layout(row.trial), "judged": judged}


def compare_workloads(
    *spaces: str | Path,
    trials: int | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    runs_dir: str | Path = "runs",
    tracking: str = "auto",
    workers: int | None = None,
    listeners: Sequence[Listener] = (),
) -> Comparison:
    """Search for every workload of a space alone and for all together, and judge each front by every workload.

    Several *spaces*, or runs of some, are compared as they are. *trials* are of each search. ``comparison.json`` and
    ``comparison.html`` are left in the directory of the search for all, or of the last one. Raises ConfigError for a
    space without several workloads, and for spaces with different objectives.
    """
    given: dict[str, Any] = {"trials": trials, "seed": seed, "runs_dir": runs_dir, "tracking": tracking}
    given |= {"workers": workers, "listeners": listeners}
    joint: Study | None = None
    studies: dict[str, Study] = {}
    if len(spaces) == 1:
        for name, override in _alone(spaces[0], overrides).items():
            studies[name] = optimize(spaces[0], overrides=[*overrides, override], **given)
        joint = optimize(spaces[0], overrides=overrides, **given)
    else:
        for space in spaces:
            study = _study(space, overrides, given)
            studies[study.space.name if study.space.name not in studies else study.id] = study
    found = compare(studies, joint, Path(runs_dir) / RESULTS_FILE)
    last = joint or list(studies.values())[-1]
    _write(found, look_up(spaces[-1], runs_dir) or find_run(last.id, runs_dir))
    return found


def _alone(space: str | Path, overrides: Sequence[str]) -> dict[str, str]:
    """Return workload -> the override that leaves it alone in *space*."""
    workloads = load_space(space, overrides=overrides).fields.get("workloads", {})
    if len(workloads) < 2:
        raise ConfigError(
            f"{space}: one workload: allowed is a space with several workloads, or several spaces or runs"
        )
    return {name: f"workloads={json.dumps({name: said})}" for name, said in workloads.items()}


def _study(space: str | Path, overrides: Sequence[str], given: Mapping[str, Any]) -> Study:
    """Return the study of a run, or of a search of the space of that name."""
    run_dir = look_up(space, given["runs_dir"])
    if run_dir is not None:
        return load_study(run_dir)
    return optimize(space, overrides=overrides, **given)


def compare(studies: Mapping[str, Study], joint: Study | None, results: Path | None = None) -> Comparison:
    """Judge the leaders of every study by each workload of *studies*; known *results* are taken from there."""
    named = {name: [objective.name for objective in study.objectives] for name, study in studies.items()}
    (first, wanted), *rest = named.items()
    for name, objectives in rest:
        if objectives != wanted:
            said = f"{', '.join(objectives)}, and of {first} {', '.join(wanted)}"
            raise ConfigError(f"the objectives of {name} are {said}: allowed are the same ones")
    rows = []
    for tuned_for, study in {**studies, **({ALL: joint} if joint else {})}.items():
        picks = study.picks()
        for trial in study.leaders():
            picked = tuple(name for name, pick in picks.items() if pick.number == trial.number)
            judged = {by: _judged(trial, study, judge, results) for by, judge in studies.items()}
            rows.append(Row(tuned_for, trial, picked, judged))
    return Comparison(studies, joint, tuple(rows))


def _judged(trial: Trial, of: Study, judge: Study, results: Path | None) -> Judged:
    """Return *trial*, a configuration of the study *of*, under the workload and goals of *judge*."""
    asked = judge.space.reference.model_copy(update={"deployment": trial.scenario.deployment})
    outcome = trial.outcome if of is judge else evaluate(asked, results)
    return Judged(outcome, _loss(outcome.values, judge) if outcome.values and outcome.feasible else None)


def _loss(values: tuple[float, ...], judge: Study) -> tuple[float, ...]:
    front = judge.losses(judge.leaders())
    directions = [objective.direction for objective in judge.objectives]
    worse = pareto.losses(np.array([values]), directions) - front
    worse = worse / np.where(front == 0.0, 1.0, np.abs(front))
    same = np.array([objective.same_within for objective in judge.objectives])
    better = worse[(worse >= -same).all(axis=1)]
    found = better[better.mean(axis=1).argmax()] if len(better) else np.zeros(len(values))
    return tuple(np.where(found > same, found, 0.0).tolist())


def _behind(values: Array, judge: Study) -> list[float]:
    directions = [objective.direction for objective in judge.objectives]
    best, own = pareto.losses(values, directions).min(axis=0), judge.losses(judge.leaders()).min(axis=0)
    return list(((best - own) / np.where(own == 0.0, 1.0, np.abs(own))).tolist())


def _share(values: Array, judge: Study) -> float | None:
    """Return the hypervolume of *values* over that of the study's own leaders; None where that is none."""
    directions, corner = [objective.direction for objective in judge.objectives], np.array(judge.reference_point)
    scale, reference = np.where(corner == 0.0, 1.0, np.abs(corner)), pareto.losses(corner, directions)
    reached, whole = (
        pareto.hypervolume(losses / scale, reference / scale)
        for losses in (pareto.losses(values, directions), judge.losses(judge.leaders()))
    )
    return reached / whole if whole else None


def _write(found: Comparison, folder: Path) -> None:
    from dynosim.report import comparison

    view = found.view()
    write_whole(folder / "comparison.json", json.dumps(view, indent=1))
    write_whole(folder / "comparison.html", comparison.html(view))
