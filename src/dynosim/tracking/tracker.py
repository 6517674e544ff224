"""The listener of a study that tells MLflow about it without ever making it wait."""

from __future__ import annotations

import importlib
import logging
import queue
from itertools import chain
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from dynosim.tracking.delivery import deliver, delivery_errors, exclusive
from dynosim.tracking.messages import finish_message, study_message, trial_message
from dynosim.tracking.outbox import FINISH, STUDY, Outbox, trial_name

if TYPE_CHECKING:
    from dynosim.search.study import Study
    from dynosim.search.trial import Trial

logger = logging.getLogger(__name__)


class MLflowTracker:
    """Listener of ``run_study``: an experiment per space, a parent run per study, a child run per trial.

    Messages go to the outbox of *run_dir* first and from there to *uri* in a background thread. The first failure stops
    the delivery for this run, is logged once and kept in ``problem``; ``tracking.sync`` delivers the rest later.
    """

    def __init__(self, uri: str, run_dir: Path, *, finish_timeout_s: float = 60.0) -> None:
        self.uri = uri
        self.problem: str | None = None
        self._outbox = Outbox(run_dir)
        self._finish_timeout_s = finish_timeout_s
        self._names: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = Thread(target=self._deliver, name="dynosim-tracking", daemon=True)

    def study_started(self, study: Study) -> None:
        """Announce the study; the trials of a resumed one are told again, which changes nothing if they are known."""
        self._tell(STUDY, study_message(study))
        for trial in study.trials:
            self._tell(trial_name(trial.number), trial_message(study, trial))
        # MLflow imports requests, which silences a warning of urllib3 for the whole process. In the thread, a
        # warnings.catch_warnings() that ends in the search meanwhile would bring it back.
        importlib.import_module("requests")
        self._thread.start()

    def trial_finished(self, study: Study, trial: Trial) -> None:
        """Store the trial's message and hand it to the thread."""
        name = trial_name(trial.number)
        self._tell(name, trial_message(study, trial))
        self._names.put(name)

    def study_finished(self, study: Study) -> None:
        """Store the end of the study and wait, up to the bound, until everything is delivered."""
        self._tell(FINISH, finish_message(study))
        self._names.put(FINISH)
        self._names.put(None)
        self._thread.join(self._finish_timeout_s)
        if self._thread.is_alive():
            self._fail(f"MLflow is still busy after {self._finish_timeout_s:g} s")

    def _tell(self, name: str, message: dict[str, Any]) -> None:
        try:
            self._outbox.put(name, message)
        except OSError as error:  # a full disk must not cost the trial
            self._fail(f"cannot write the outbox: {error}")

    def _deliver(self) -> None:
        names = chain(self._outbox.pending(), iter(self._names.get, None))
        try:
            with exclusive(self._outbox):
                deliver(self._outbox, self.uri, names)
        except delivery_errors() as error:
            self._fail(f"MLflow at {self.uri} failed: {_first_line(error)}")

    def _fail(self, problem: str) -> None:
        if self.problem is None:
            self.problem = f"{problem}; no trial is lost: `dynosim track sync {self._outbox.run_dir}` delivers them"
            logger.warning(self.problem)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
