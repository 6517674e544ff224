"""Studies run one after another, each in a process of its own: the server stays responsive and a crash stays contained.

A worker ends after its running trial when it is told to stop or when the server is gone; what is left of the study
goes on when the service is started again.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
from multiprocessing.synchronize import Event as Flag
from pathlib import Path
from threading import Thread

from dynosim.errors import DynosimError
from dynosim.files import write_whole
from dynosim.progress import ProgressMeter
from dynosim.run.study import optimize
from dynosim.search.study import Study
from dynosim.search.trial import Trial
from dynosim.search.view import objective_view, trial_view
from dynosim.service.guard import SPACE_FILE, Allowed, anchored_text, read_space
from dynosim.service.store import FINAL_STATES, Store

STOP_TIMEOUT_S = 30.0


class Runner:
    """Takes queued studies in order and runs them."""

    def __init__(self, store: Store, runs_dir: Path, storage: str | None, allowed: Allowed) -> None:
        self._store, self._runs_dir, self._storage, self._allowed = store, runs_dir, storage, allowed
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._spawn = multiprocessing.get_context("spawn")
        self._current: tuple[str, Flag] | None = None
        self._stopping = False
        self._thread = Thread(target=self._work, name="dynosim-runner", daemon=True)

    def start(self) -> None:
        """Queue again what an earlier server left unfinished, and begin."""
        for study in reversed(self._store.studies()):
            if study.state == "cancelling":
                self._store.finish(study.id, "cancelled")
            elif study.state not in FINAL_STATES:
                self.submit(study.id)
        self._thread.start()

    def submit(self, study_id: str) -> None:
        """Queue a stored study."""
        self._store.move(study_id, "queued", only_from=("running", "interrupted", *FINAL_STATES))
        self._queue.put(study_id)

    def cancel(self, study_id: str) -> None:
        """Stop a running study after its trial, or never start a queued one."""
        if self._store.move(study_id, "cancelling", only_from=("running",)):
            if self._current is not None and self._current[0] == study_id:
                self._current[1].set()
        elif self._store.move(study_id, "cancelling", only_from=("queued",)):
            self._store.finish(study_id, "cancelled")

    def stop(self) -> None:
        """Let the running trial finish, then end; the study goes on at the next start."""
        self._stopping = True
        self._queue.put(None)
        if self._current is not None:
            self._current[1].set()
        self._thread.join(STOP_TIMEOUT_S)

    def _work(self) -> None:
        while (study_id := self._queue.get()) is not None and not self._stopping:
            stop = self._spawn.Event()
            self._current = (study_id, stop)
            if self._store.move(study_id, "running", only_from=("queued",)):
                self._run(study_id, stop)
            self._current = None

    def _run(self, study_id: str, stop: Flag) -> None:
        args = (self._runs_dir, self._storage, self._allowed, study_id, stop)
        process = self._spawn.Process(target=work, args=args)
        process.start()
        process.join()
        if self._store.get(study_id).state in ("running", "cancelling"):
            self._store.finish(study_id, "failed", f"the worker process ended with exit code {process.exitcode}")


def work(runs_dir: Path, storage: str | None, allowed: Allowed, study_id: str, stop: Flag) -> None:
    """Run the stored study in this process, if it asks for what is *allowed* today, and store how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server says when to stop
    store = Store(runs_dir)
    request = dict(store.get(study_id).request)
    given = request.pop("space")
    try:
        read_space(given, request.get("overrides", ()), allowed)
        space = write_whole(runs_dir / study_id / SPACE_FILE, anchored_text(given))
        optimize(
            space,
            **request,
            storage=storage,
            runs_dir=runs_dir,
            run_id=study_id,
            listeners=[Publisher(store, study_id, stop)],
        )
    except KeyboardInterrupt:
        if not store.move(study_id, "interrupted", only_from=("running",)):
            store.finish(study_id, "cancelled")
    except DynosimError as error:
        store.finish(study_id, "failed", str(error))
    else:
        store.finish(study_id, "completed")


class Publisher:
    """Listener that turns what happens in a study into stored events, and stops it when asked."""

    def __init__(self, store: Store, study_id: str, stop: Flag) -> None:
        self._store, self._id, self._stop = store, study_id, stop
        self._meter = ProgressMeter()
        self._frontier: list[int] = []

    def study_started(self, study: Study) -> None:
        """Announce the study and the trials that a killed worker stored but did not announce."""
        self._meter.start(study)
        known = {e.data["number"] for e in self._store.events(self._id) if e.type == "trial.completed"}
        self._store.publish(
            self._id,
            "study.started",
            {"name": study.space.name, "objectives": [objective_view(o) for o in study.objectives]},
        )
        for trial in study.trials:
            if trial.number not in known:
                self._publish_trial(study, trial)

    def trial_finished(self, study: Study, trial: Trial) -> None:
        """Publish the trial, then raise KeyboardInterrupt when the study is to stop."""
        self._publish_trial(study, trial)
        server = multiprocessing.parent_process()
        if self._stop.is_set() or (server is not None and not server.is_alive()):
            raise KeyboardInterrupt

    def study_finished(self, study: Study) -> None:
        """Nothing: ``work`` says how the study ended, once its report is written."""

    def _publish_trial(self, study: Study, trial: Trial) -> None:
        self._store.publish(self._id, "trial.completed", trial_view(trial))
        frontier = [t.number for t in study.frontier()]
        if frontier != self._frontier:
            self._store.publish(self._id, "front.changed", {"trials": frontier, "hypervolume": study.hypervolume()})
        self._frontier = frontier
        self._store.set_progress(self._id, self._meter.measure(study).to_dict())
