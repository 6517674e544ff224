"""The listeners that every run has: the first writes its report, the last stores how it ended and gives it free."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from dynosim import report
from dynosim.report.analysis import prices
from dynosim.run.directory import RunState
from dynosim.search.study import Study
from dynosim.search.trial import Trial


class Reporter:
    """Writes the report of a run when its study ends, unless the last one says all that is known."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def study_started(self, study: Study) -> None:
        """Store that the run has begun."""
        replace(RunState.read(self._run_dir), state="running").write(self._run_dir)

    def trial_finished(self, study: Study, trial: Trial) -> None:
        """Nothing: the trial is in the storage."""

    def study_finished(self, study: Study) -> None:
        """Write the report."""
        if study.gap is not None or len(study.trials) != RunState.read(self._run_dir).done:
            report.write(study, self._run_dir)


class Last:
    """Stores how far a run got once all others have heard that its study ends, and gives the run free."""

    def __init__(self, run_dir: Path, held: ExitStack) -> None:
        self._run_dir, self._held = run_dir, held

    def study_started(self, study: Study) -> None:
        """Nothing."""

    def trial_finished(self, study: Study, trial: Trial) -> None:
        """Nothing."""

    def study_finished(self, study: Study) -> None:
        """Store the state, and end the claim on the run."""
        known = replace(RunState.read(self._run_dir), state="finished" if study.ended else "interrupted")
        known = replace(known, done=len(study.trials), feasible=len(study.feasible), prices=prices(study))
        known.write(self._run_dir)
        self._held.close()
