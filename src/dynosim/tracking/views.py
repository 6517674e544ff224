"""Saved views of a study: what a link into MLflow's runs page shows in rows, columns and charts.

A view is an experiment tag, as the page's own "Views" menu writes it: name, time and the page's state, deflated. Field
names are those of MLflow 3.17's page; nothing but the links depends on them.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    from dynosim.search.study import Study
    from dynosim.search.trial import Trial

State = dict[str, Any]
"""The runs page's search, columns and charts."""

NO_PICK = "none"
"""Value of the tag ``dynosim.pick`` of trials that were a pick before better ones came; others have no such tag."""

VIEW_TAG = "mlflow.sharedViewState."
TRIALS, FRONTIER, KNOBS, PICKS = "trials", "frontier", "knobs", "picks"
CHARTS = (FRONTIER, KNOBS, PICKS)
"""Views that open on charts instead of the table."""

REST = {"uuid": "rest", "name": "Model metrics", "display": False}
"""The section in which the page puts a chart of every other metric; open, it would bury ours."""


def saved_views(study: Study) -> dict[str, State]:
    """Return the views of what *study* has so far, by name."""
    views = {TRIALS: _state(study, "tags.`dynosim.trial` != 'parent'")}
    if study.frontier():
        pairs = combinations(_objectives(study), 2)
        scatters = _charts([_scatter(x, y) for x, y in pairs], columns=2)
        views[FRONTIER] = _state(study, "tags.`dynosim.pareto` = 'true'", scatters)
        views[KNOBS] = _state(study, "tags.`dynosim.feasible` = 'true'", _charts(_parallels(study), columns=1))
        bars = _charts([{"type": "BAR", "metricKey": name} for name in (*_objectives(study), "gpus")], columns=2)
        views[PICKS] = _state(study, f"tags.`dynosim.pick` != '{NO_PICK}'", bars)
    return views


def view_key(study_id: str, view: str) -> str:
    """Return the key under which *view* of a study is stored and linked."""
    return f"{study_id}-{view}"


def view_value(study_id: str, view: str, state: State, created_ms: int) -> str:
    """Return the value of a view's tag."""
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    return json.dumps({"name": f"{view} of {study_id}", "createdAt": created_ms, "state": f"deflate;{packed}"})


def view_link(experiment_id: str, study_id: str, view: str) -> str:
    """Return the link to a saved view, relative to MLflow's address."""
    mode = {"compareRunsMode": "CHART"} if view in CHARTS else {}
    return _link(f"experiments/{experiment_id}/runs", {**mode, "viewStateShareKey": view_key(study_id, view)})


def run_link(experiment_id: str, run_id: str) -> str:
    """Return the link to a run's own page, relative to MLflow's address."""
    return _link(f"experiments/{experiment_id}/runs/{run_id}", {})


def compare_link(experiment_id: str, run_ids: Sequence[str]) -> str:
    """Return the link to the comparison of runs, relative to MLflow's address."""
    return _link("compare-runs", {"runs": json.dumps(run_ids), "experiments": json.dumps([experiment_id])})


def _link(page: str, query: Mapping[str, str]) -> str:
    # Without the type, MLflow 3.17 shows its pages for language models' traces, whatever the experiment's kind says.
    # It is last because the comparison finds its runs only where they are the first of the query.
    return f"#/{page}?{urlencode({**query, 'workflowType': 'machine_learning'})}"


def _state(study: Study, where: str, charts: State | None = None) -> State:
    objectives = _objectives(study)
    metrics = dict.fromkeys(["gpus", *objectives, "good_request_fraction"])
    tags = ["dynosim.pick", "dynosim.pareto", "dynosim.feasible", "dynosim.label"]
    columns = {_column("metrics", name): name for name in metrics} | {_column("tags", name): name for name in tags}
    return {
        "searchFilter": f"tags.`dynosim.study_id` = '{study.id}' and {where}",
        "orderByKey": _column("metrics", objectives[0]),
        "orderByAsc": study.objectives[0].direction == "minimize",
        "selectedColumns": list(columns),
        "columnOrder": list(columns),
        "columnWidths": {column: 40 + 7 * len(name) for column, name in columns.items()},  # pixels
        "runsHiddenMode": "SHOW_ALL",
        **(charts or {}),
    }


def _objectives(study: Study) -> list[str]:
    return [objective.name for objective in study.objectives]


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _charts(charts: Sequence[State], columns: int) -> State:
    shown = {"uuid": "dynosim", "name": "dynosim", "display": True, "columns": columns}
    cards = [{"uuid": f"chart{i}", "metricSectionId": shown["uuid"], **chart} for i, chart in enumerate(charts)]
    return {"compareRunCharts": cards, "compareRunSections": [shown, REST], "isAccordionReordered": True}


def _scatter(x: str, y: str) -> State:
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return {"type": "SCATTER", "runsCountToCompare": 100, **axes}


def _parallels(study: Study) -> list[State]:
    """Return a chart per mode: MLflow leaves out runs without one of the knobs, and each mode has its own."""
    modes: dict[str, list[Trial]] = {}
    for trial in study.feasible:
        modes.setdefault(trial.scenario.deployment.mode, []).append(trial)
    objectives = _objectives(study)
    return [
        {"type": "PARALLEL", "displayName": mode, "selectedParams": _varying(trials), "selectedMetrics": objectives}
        for mode, trials in modes.items()
    ]


def _varying(trials: Sequence[Trial]) -> list[str]:
    """Return the knobs that all *trials* have and that are not the same in all."""
    shared = [path for path in trials[0].point if all(path in trial.point for trial in trials)]
    return [path for path in shared if len({str(trial.point[path]) for trial in trials}) > 1]
