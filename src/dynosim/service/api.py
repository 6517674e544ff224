"""The routes under ``/v1``: check what came in, call the function that the command line calls, answer JSON."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field

from dynosim.files import write_whole
from dynosim.report import data
from dynosim.run.directory import new_run_id, runs
from dynosim.run.predict import predict
from dynosim.run.study import load_study
from dynosim.search.study import Study
from dynosim.search.view import trial_view
from dynosim.service.guard import MAX_TRIALS, Allowed, anchored_text, read_space
from dynosim.service.store import FINAL_STATES, Store, StoredStudy
from dynosim.service.worker import Runner
from dynosim.views import explained, frontier_view, prediction_view

POLL_S = 0.25
"""How often an event stream looks for news, which come from another process."""

router = APIRouter(prefix="/v1")


@dataclass(frozen=True)
class Service:
    """What the routes share."""

    store: Store
    runner: Runner
    runs_dir: Path
    storage: str | None
    allowed: Allowed


def service(request: Request) -> Service:
    """Return what ``create_app`` made."""
    return request.app.state.service  # type: ignore[no-any-return]


Shared = Annotated[Service, Depends(service)]


def known_study(study_id: str, shared: Shared) -> StoredStudy:
    """Return the study of the path, run by the service or not; StudyError, answered as 404, where there is none."""
    outside = (run for run in runs_of_others(shared) if run.id == study_id)
    return shared.store.find(study_id) or next(outside, None) or shared.store.get(study_id)


def runs_of_others(shared: Service) -> list[StoredStudy]:
    """Return the runs in the directory that the service did not start, newest first: it shows them, no more."""
    known = {study.id for study in shared.store.studies()}
    states = {"finished": "completed", "interrupted": "cancelled"}
    return [
        StoredStudy(
            id=run.id,
            state=states.get(run.state, "running"),
            request={},
            created_s=datetime.fromisoformat(run.created).timestamp(),
            progress={"done": run.done, "total": run.trials, "feasible": run.feasible} if run.done else {},
            error="",
        )
        for run in reversed(runs(shared.runs_dir))
        if run.id not in known
    ]


Known = Annotated[StoredStudy, Depends(known_study)]


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid")

    overrides: list[str] = Field(default=[], max_length=100)
    """``PATH=YAML_VALUE``, applied left to right."""


class Submission(_Input):
    """A study to run."""

    space: str | dict[str, Any]
    """Name of a bundled space, the text of a YAML file, or the same as JSON."""
    trials: int | None = Field(default=None, ge=1, le=MAX_TRIALS)
    seed: int | None = None


class Question(_Input):
    """A configuration to simulate."""

    config: str | dict[str, Any]
    """Name of a bundled space (its baseline), the text of a YAML file, or the same as JSON."""


def study_view(study: StoredStudy) -> dict[str, Any]:
    """Return the state of a study, its counts and what was asked."""
    return {
        "id": study.id,
        "state": study.state,
        "error": study.error,
        "created": datetime.fromtimestamp(study.created_s, UTC).isoformat(timespec="seconds"),
        "request": study.request,
        "progress": study.progress,
    }


@router.post("/studies", status_code=202)
def submit(
    submission: Submission,
    shared: Shared,
    response: Response,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> dict[str, Any]:
    """Queue a study. A repeated Idempotency-Key answers with the study that it named before."""
    space = read_space(submission.space, submission.overrides, shared.allowed)
    request = submission.model_dump(exclude_none=True)
    study = shared.store.add(new_run_id(space.name), request, idempotency_key)
    if study.request != request:
        raise HTTPException(409, "this Idempotency-Key was used for another submission")
    if study.state == "queued":
        shared.runner.submit(study.id)
    response.headers["Location"] = f"/v1/studies/{study.id}"
    return study_view(study)


@router.get("/studies")
def list_studies(
    shared: Shared, state: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> list[dict[str, Any]]:
    """Return the newest studies first, those that the command line ran in the same directory included."""
    both = [*shared.store.studies(), *runs_of_others(shared)]
    chosen = [study for study in both if state in (None, study.state)]
    return [study_view(study) for study in sorted(chosen, key=lambda study: -study.created_s)[:limit]]


@router.get("/studies/{study_id}")
def status(study: Known) -> dict[str, Any]:
    """Return the state, the counts and what was asked."""
    return study_view(study)


@router.post("/studies/{study_id}/cancel", status_code=202)
def cancel(study: Known, shared: Shared) -> dict[str, Any]:
    """Stop after the running trial and keep the results; a study that has ended stays as it is."""
    shared.runner.cancel(study.id)
    return study_view(shared.store.get(study.id))


@router.post("/studies/{study_id}/resume", status_code=202)
def resume(study: Known, shared: Shared) -> dict[str, Any]:
    """Go on with a cancelled or failed study; one that is running or complete stays as it is."""
    if study.state in ("cancelled", "failed"):
        shared.runner.submit(study.id)
    return study_view(shared.store.get(study.id))


@router.get("/studies/{study_id}/events", response_class=EventSourceResponse)
async def events(
    study: Known, shared: Shared, last_event_id: Annotated[int, Header()] = 0
) -> AsyncIterator[ServerSentEvent]:
    """Stream ``study.started``, ``trial.completed``, ``front.changed`` and ``study.finished`` from the first one on.

    Ids grow by time; after Last-Event-ID only what followed it is sent. The stream ends when the study has ended.
    """
    seen, ended = last_event_id, False
    while not ended:
        # The state is read first: a final one is stored together with the last event. Runs of others have no events.
        current = shared.store.find(study.id)
        ended = current is None or current.state in FINAL_STATES
        for event in shared.store.events(study.id, after=seen):
            yield ServerSentEvent(data=event.data, event=event.type, id=str(event.id))
            seen = event.id
        if not ended:
            await asyncio.sleep(POLL_S)


def stored_trials(study: Known, shared: Shared) -> Study:
    """Return the study in the path with its trials; 404 before the first one."""
    if not study.progress:
        raise HTTPException(404, f"study {study.id} has no trial yet")
    return _load(study, shared)


def _load(study: StoredStudy, shared: Service) -> Study:
    return load_study(study.id, shared.runs_dir, storage=shared.storage if study.request else None)


Trials = Annotated[Study, Depends(stored_trials)]


@router.get("/studies/{study_id}/trials")
def trials(study: Trials) -> list[dict[str, Any]]:
    """Return all trials without their metrics."""
    return [trial_view(trial) for trial in study.trials]


@router.get("/studies/{study_id}/trials/{number}")
def trial(number: int, study: Trials) -> dict[str, Any]:
    """Return one trial with its metrics, scenario and reason."""
    for candidate in study.trials:
        if candidate.number == number:
            return explained(candidate)
    raise HTTPException(404, f"study {study.id} has no trial {number}")


@router.get("/studies/{study_id}/frontier")
def frontier(study: Trials) -> dict[str, Any]:
    """Return the frontier, the named picks and the baseline."""
    return frontier_view(study)


@router.get("/studies/{study_id}/page", include_in_schema=False)
def page_data(study: Known, shared: Shared) -> dict[str, Any]:
    """Return what the live page draws."""
    state = "ended" if study.state in FINAL_STATES else "running"
    if not study.progress:
        return {"space": study.id, "trials": [], "state": state}
    written = shared.runs_dir / study.id if state == "ended" else None
    return {**data(_load(study, shared), written), "state": state}


@router.get("/studies/{study_id}/report", response_class=FileResponse)
def report(study: Known, shared: Shared) -> FileResponse:
    """Return ``report.html``, which is there when the study has ended."""
    file = shared.runs_dir / study.id / "report.html"
    if not file.is_file():
        raise HTTPException(404, f"study {study.id} has no report yet")
    return FileResponse(file, media_type="text/html")


@router.post("/predict")
def predict_one(question: Question, shared: Shared) -> dict[str, Any]:
    """Simulate one configuration."""
    read_space(question.config, question.overrides, shared.allowed)
    with tempfile.TemporaryDirectory() as folder:
        file = write_whole(Path(folder) / "config.yaml", anchored_text(question.config))
        return prediction_view(predict(file, overrides=question.overrides))
