"""What is told to MLflow about a study, its trials and its end, as plain JSON values.

Metric keys follow AIPerf's upload: the bare tag is the average, a dotted suffix the statistic
(``time_to_first_token.p99``), so that a verification run on hardware lines up in MLflow's compare view.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dynosim.search.trial import Status, Trial
from dynosim.search.view import lossless
from dynosim.tracking.views import saved_views
from dynosim.workload import traffic_hash

if TYPE_CHECKING:
    from dynosim.search.study import Study

RUN_STATUS = {status: "FAILED" if status is Status.FAILED else "FINISHED" for status in Status}
"""Infeasible is a result of the search, not a crash of it."""

MAX_TAG_CHARS = 4000


def study_message(study: Study) -> dict[str, Any]:
    """Return the parent run: experiment, name and tags."""
    return {
        "experiment": study.space.name,
        "run_name": study.id,
        "start_ms": _now_ms(),
        "tags": {
            "dynosim.study_id": study.id,
            "dynosim.space_hash": study.space.content_hash(),
            "dynosim.objectives": ", ".join(f"{o.direction} {o.name}" for o in study.objectives),
        },
        "views": saved_views(study),
    }


def trial_message(study: Study, trial: Trial) -> dict[str, Any]:
    """Return the child run of *trial*: tags, the searched knobs as params, all metrics, scenario and result."""
    outcome, deployment, known = trial.outcome, trial.scenario.deployment, lossless(trial)
    end_ms = _now_ms()
    return {
        "number": trial.number,
        "run_name": f"{trial.number:04d} {deployment.label()}",
        "start_ms": end_ms - round(outcome.wall_s * 1000),
        "end_ms": end_ms,
        "run_status": RUN_STATUS[outcome.status],
        "tags": {
            "dynosim.study_id": study.id,
            "dynosim.trial": str(trial.number),
            "dynosim.config_hash": trial.scenario.content_hash(),
            "dynosim.workload_hash": traffic_hash(trial.scenario),
            "dynosim.status": outcome.status.value,
            "dynosim.feasible": str(outcome.feasible).lower(),
            "dynosim.pareto": "false",
            "dynosim.label": deployment.label(),
            **({"dynosim.evidence": outcome.evidence} if outcome.evidence else {}),
            **({"dynosim.reason": outcome.reason[-MAX_TAG_CHARS:]} if outcome.reason else {}),
        },
        "params": {path: str(value) for path, value in trial.point.items()},
        "metrics": _metrics(study, trial),
        "scenario": known.pop("scenario"),
        "outcome": known,
    }


def finish_message(study: Study) -> dict[str, Any]:
    """Return the end of the study: who is on the frontier, what the parent run says and measures."""
    statuses = [trial.outcome.status for trial in study.trials]
    return {
        "end_ms": _now_ms(),
        "pareto": [trial.number for trial in study.frontier()],
        "note": _note(study),
        "views": saved_views(study),
        "picks": _picks(study),
        "metrics": {
            "hypervolume": study.hypervolume(),
            "trials": len(statuses),
            "feasible": sum(trial.outcome.feasible for trial in study.trials),
            **{status.value: statuses.count(status) for status in Status},
        },
    }


def _picks(study: Study) -> dict[str, str]:
    """Return trial number -> what it is picked for, the baseline first."""
    shown = [*([("baseline", study.baseline)] if study.baseline else ()), *study.picks().items()]
    named: dict[str, list[str]] = {}
    for name, trial in shown:
        named.setdefault(str(trial.number), []).append(name)
    return {number: ", ".join(names) for number, names in named.items()}


def _metrics(study: Study, trial: Trial) -> dict[str, float]:
    outcome = trial.outcome
    named = dict(outcome.flat_metrics())
    named.update(zip((o.name for o in study.objectives), outcome.values or (), strict=False))
    named.update({f"slo_violation.{name}": value for name, value in outcome.constraints.items()})
    told = zip((o.name for o in study.objectives), outcome.noise or (), strict=False)
    named.update({f"noise.{name}": sd for name, sd in told if sd is not None})
    named["wall_s"] = outcome.wall_s
    return {name: _shown(value) for name, value in _finite(named).items()}


def _shown(value: float) -> float:
    """Return *value* to six digits, whole numbers as they are: MLflow shows all sixteen, outcome.json has them."""
    return value if value == round(value) else float(f"{value:.6g}")


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """Return what JSON and MLflow can hold; a violation is infinite where its metric is missing."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _note(study: Study) -> str:
    """Return the frontier as a Markdown table, for the description of the parent run."""
    heads = [f"{o.display} ({o.unit})" for o in study.objectives]
    rows = [
        [f"{t.number}", t.scenario.deployment.label(), *(f"{v:.4g}" for v in t.outcome.values or ())]
        for t in study.leaders()
    ]
    table = [["trial", "deployment", *heads], ["---"] * (len(heads) + 2), *rows]
    lines = ["| " + " | ".join(row) + " |" for row in table]
    picks = [f"- **{name}**: trial {t.number}, {t.scenario.deployment.label()}" for name, t in study.picks().items()]
    return "\n".join([f"Pareto frontier of `{study.id}`, {study.origin}", "", *lines, "", *picks, ""])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
