"""Messages of an outbox become MLflow runs. Delivering a message a second time changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from dynosim.config import Scenario
from dynosim.config.load import dump_scenario
from dynosim.errors import StudyError
from dynosim.tracking.outbox import FINISH, STUDY, Outbox
from dynosim.tracking.store import artifact_location, connect, tracking_uri
from dynosim.tracking.views import NO_PICK, VIEW_TAG, compare_link, run_link, view_key, view_link, view_value

if TYPE_CHECKING:
    from mlflow.entities import Run

PARENT = "parent"
"""Value of the tag ``dynosim.trial`` of the run that stands for the whole study."""

REPORT_FILES = (
    *("report.html", "trials.csv", "frontier.csv", "frontier.json", "environment.json", "config.resolved.yaml"),
    "recommendations",
)
"""What of a run's directory becomes artifacts of the parent run, where it is there."""

NOTE, KIND = "mlflow.note.content", "mlflow.experimentKind"
NOTE_START = "Latest study: "
"""How our description of an experiment begins; one that begins otherwise is the user's and stays."""

MAX_METRICS = 1000
"""Of one request, by MLflow's rule."""

EXPANDED = {"mlflow.runType": "evaluation"}
"""Tag of trials: MLflow's runs page expands a parent at the first visit only when its children evaluate something."""


def sync(run_dir: Path | str, tracking: str = "auto") -> int:
    """Deliver what a run's outbox still holds and return how many trials that were.

    Raises StudyError when the run was not tracked, when tracking is off, when MLflow cannot be reached, or when
    another process is delivering at the moment.
    """
    outbox = Outbox(Path(run_dir))
    uri = tracking_uri(tracking, outbox.run_dir.parent)
    if STUDY not in outbox:
        raise StudyError(f"{run_dir}: nothing to sync: the run was not tracked")
    if uri is None:
        raise StudyError("tracking is switched off")
    before = outbox.pending()
    if not before:
        return 0
    try:
        with exclusive(outbox):
            deliver(outbox, uri, before)
    except delivery_errors() as error:
        raise StudyError(f"MLflow at {uri} did not take the run: {error}") from error
    return sum(name != FINISH for name in before)


def delivery_errors() -> tuple[type[Exception], ...]:
    """Return what MLflow raises when it is down, refuses or cannot store."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, OSError)


def exclusive(outbox: Outbox) -> FileLock:
    """Return the lock under which one process delivers; entering it fails at once where another holds it."""
    return FileLock(outbox.folder / ".lock", timeout=0)


def deliver(outbox: Outbox, uri: str, names: Iterable[str]) -> None:
    """Send the messages *names* to *uri* and remove each from the outbox once it is stored there."""
    delivery = Delivery(outbox, uri)
    for name in names:
        if name in outbox:
            delivery.send(name)
            outbox.remove(name)


class Delivery:
    """One study's runs in MLflow: the parent, and one child per trial."""

    def __init__(self, outbox: Outbox, uri: str) -> None:
        study = outbox.read(STUDY)
        self._outbox = outbox
        self._client = connect(uri)
        self._experiment_id = self._experiment(study["experiment"], artifact_location(uri))
        self._study_id = study["tags"]["dynosim.study_id"]
        self._runs = {run.data.tags["dynosim.trial"]: run for run in self._search()}
        self._parent_id = self._run(PARENT, study).info.run_id
        self._client.update_run(self._parent_id, status="RUNNING")
        self._show(study)

    def send(self, name: str) -> None:
        """Deliver the message *name* of the outbox, which is a trial or the end of the study."""
        message = self._outbox.read(name)
        if name == FINISH:
            self._send_finish(message)
        else:
            self._send_trial(message)

    def _send_trial(self, message: dict[str, Any]) -> None:
        run = self._run(str(message["number"]), message, parent_id=self._parent_id)
        if run.info.status != "RUNNING":  # delivered before; the outbox had no time to forget it
            return
        run_id = run.info.run_id
        self._log_batch(run_id, message["metrics"], message["params"], message["end_ms"])
        scenario = Scenario.model_validate(message["scenario"])
        with TemporaryDirectory() as folder:  # one call for both: each asks for the run again
            Path(folder, "scenario.yaml").write_text(dump_scenario(scenario))
            Path(folder, "outcome.json").write_text(json.dumps(message["outcome"], indent=1))
            self._client.log_artifacts(run_id, folder)
        self._client.set_terminated(run_id, message["run_status"], message["end_ms"])

    def _send_finish(self, message: dict[str, Any]) -> None:
        pareto, picks = {str(number) for number in message["pareto"]}, message.get("picks", {})
        for run in self._search():
            number = run.data.tags["dynosim.trial"]
            self._retag(run, "dynosim.pareto", str(number in pareto).lower())
            if number in picks:
                self._client.set_tag(run.info.run_id, "dynosim.pick", picks[number])
            else:
                self._retag(run, "dynosim.pick", NO_PICK)
        self._log_batch(self._parent_id, message["metrics"], {}, message["end_ms"])
        self._client.set_tag(self._parent_id, NOTE, f"{self._show(message)}\n\n{message['note']}")
        for file in REPORT_FILES:
            path = self._outbox.run_dir / file
            if path.exists():
                self._client.log_artifact(self._parent_id, str(path))
        self._client.set_terminated(self._parent_id, "FINISHED", message["end_ms"])

    def _retag(self, run: Run, tag: str, value: str) -> None:
        """Set a tag of *run* that it has with another value."""
        if run.data.tags.get(tag, value) != value:
            self._client.set_tag(run.info.run_id, tag, value)

    def _show(self, message: dict[str, Any]) -> str:
        """Store the views of *message*, describe the experiment with links to them, and return the links."""
        links = self._store_views(message)
        runs = [self._runs[number].info.run_id for number in message.get("picks", ()) if number in self._runs]
        if len(runs) > 1:
            links["compare"] = compare_link(self._experiment_id, runs)
        line = " · ".join(f"[{name}]({link})" for name, link in links.items())
        self._describe(line)
        return line

    def _store_views(self, message: dict[str, Any]) -> dict[str, str]:
        """Store the views of *message* and return the link to each; none where the server does not take them."""
        study, views = self._study_id, message.get("views", {})
        time_ms = message.get("end_ms", message.get("start_ms", 0))
        tags = {VIEW_TAG + view_key(study, view): view_value(study, view, views[view], time_ms) for view in views}
        return {view: view_link(self._experiment_id, study, view) for view in views} if self._tag(tags) else {}

    def _describe(self, links: str) -> None:
        """Describe the experiment by its latest study, unless the user did, and make it open on training runs."""
        known = self._client.get_experiment(self._experiment_id).tags
        if known.get(NOTE, NOTE_START).startswith(NOTE_START):
            parent = f"[{self._study_id}]({run_link(self._experiment_id, self._parent_id)})"
            self._tag({NOTE: f"{NOTE_START}{parent} · {links}"})
        if KIND not in known:
            self._tag({KIND: "custom_model_development"})

    def _tag(self, tags: dict[str, str]) -> bool:
        """Set *tags* of the experiment; return whether the server took them: one that does not still takes trials."""
        from mlflow.exceptions import MlflowException

        try:
            for name, value in tags.items():
                self._client.set_experiment_tag(self._experiment_id, name, value)
        except MlflowException:
            return False
        return True

    def _log_batch(self, run_id: str, metrics: dict[str, float], params: dict[str, str], time_ms: int) -> None:
        from mlflow.entities import Metric, Param

        found = [Metric(name, value, time_ms, step=0) for name, value in metrics.items()]
        named = [Param(name, value) for name, value in params.items()]
        for start in range(0, max(len(found), 1), MAX_METRICS):
            self._client.log_batch(run_id, found[start : start + MAX_METRICS], named if start == 0 else [])

    def _run(self, trial: str, message: dict[str, Any], parent_id: str | None = None) -> Run:
        """Return the run of *trial*, made now unless an earlier delivery got as far as making it."""
        if trial not in self._runs:
            tags = {**message["tags"], "dynosim.trial": trial, "mlflow.source.name": "dynosim"}
            if parent_id is not None:
                tags |= {"mlflow.parentRunId": parent_id, **EXPANDED}
            self._runs[trial] = self._client.create_run(
                self._experiment_id, message["start_ms"], tags, message["run_name"]
            )
        return self._runs[trial]

    def _search(self) -> Iterator[Run]:
        token = None
        while token != "":
            page = self._client.search_runs(
                [self._experiment_id], f"tags.`dynosim.study_id` = '{self._study_id}'", page_token=token
            )
            yield from page
            token = page.token or ""

    def _experiment(self, name: str, location: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, location))
            except MlflowException:  # a rival study of the same space may have made it just now
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)
