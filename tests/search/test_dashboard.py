"""optuna-dashboard opens what a study leaves behind."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from dynosim.search.loop import run_study
from search.analytic import evaluate
from search.problems import serving

dashboard = pytest.importorskip("optuna_dashboard")


def _get(app: Any, path: str) -> Any:
    """Return the JSON that the WSGI application answers."""
    statuses: list[str] = []
    request = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "test", "SERVER_PORT": "80"}
    request |= {"wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(), "wsgi.url_scheme": "http"}  # type: ignore[dict-item]
    body = b"".join(app(request, lambda status, headers, error=None: statuses.append(status)))
    assert statuses == ["200 OK"], body
    return json.loads(body)


def test_a_study_opens_in_the_dashboard(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = run_study(serving(), storage=url, study_id="mine", trials=6, sampler="random", evaluate=evaluate)
    app = dashboard.wsgi(url)
    (summary,) = _get(app, "/api/studies")["study_summaries"]
    assert summary["study_name"] == "mine"
    shown = _get(app, f"/api/studies/{summary['study_id']}")
    assert [trial["state"] for trial in shown["trials"]] == ["Complete"] * 6
    first = study.trials[0]
    assert first.outcome.values is not None
    assert shown["trials"][0]["values"] == pytest.approx(list(first.outcome.values))
    assert {param["name"] for param in shown["trials"][0]["params"]} == set(first.point)
