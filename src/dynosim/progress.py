"""How far a study is: counts and pace, a line of them while it runs, and stopping after the running trial."""

from __future__ import annotations

import signal
import time
from dataclasses import asdict, dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from dynosim.report.numbers import number
from dynosim.search.trial import Status
from dynosim.search.workers import count_workers

if TYPE_CHECKING:
    from rich.console import Console

    from dynosim.objectives import Objective
    from dynosim.search.study import Study
    from dynosim.search.trial import Trial

LINE_EVERY_S = 5.0
"""Without a terminal, a log gets one line this often."""
LIVE_EVERY_S = 0.25


@dataclass(frozen=True)
class Progress:
    """How far a study is."""

    done: int
    total: int
    feasible: int
    infeasible: int
    lost: int
    failed: int
    reused: int
    """Taken from earlier runs."""
    hypervolume: float
    eta_s: float | None
    """At the pace of this process so far; None before its first trial."""

    def to_dict(self) -> dict[str, float | None]:
        """Return a JSON object."""
        return asdict(self)


class ProgressMeter:
    """Measures progress from the moment a study starts in this process."""

    def start(self, study: Study) -> None:
        """Remember the time and the trials that were there already."""
        self._start_s, self._before = time.monotonic(), len(study.trials)

    def measure(self, study: Study) -> Progress:
        """Return how far *study* is now."""
        done, total = len(study.trials), study.budget
        statuses = [trial.outcome.status for trial in study.trials]
        pace_s = (time.monotonic() - self._start_s) / (done - self._before) if done > self._before else None
        return Progress(
            done=done,
            total=total,
            feasible=len(study.feasible),
            infeasible=statuses.count(Status.INFEASIBLE),
            lost=statuses.count(Status.LOST),
            failed=statuses.count(Status.FAILED),
            reused=sum(trial.outcome.cached for trial in study.trials),
            hypervolume=study.hypervolume(),
            eta_s=None if pace_s is None else pace_s * max(total - done, 0),
        )


class ProgressLine:
    """Listener that shows progress on *console*: a live line on a terminal, a plain line now and then elsewhere."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        from rich.live import Live

        self._console, self._quiet = console, quiet
        shown = console.is_terminal and not quiet
        self._live = Live("preparing the search", console=console, transient=True) if shown else None
        self.study: Study | None = None
        self._meter = ProgressMeter()
        self._printed_s = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def study_started(self, study: Study) -> None:
        """Say what starts or goes on."""
        self.study = study
        self._meter.start(study)
        progress = self._meter.measure(study)
        if not self._quiet:
            verb = f"goes on after {progress.done}" if progress.done else "starts"
            fewer = progress.total < study.space.reference.optimizer.trials
            total = f"{progress.total} trials in all{': the space has no more valid points' if fewer else ''}"
            self._console.print(f"{study.id} {verb}, {total}", highlight=False)
            workers = count_workers(study.space.reference.optimizer.workers)
            if study.in_flight is not None and min(workers, progress.total) > study.in_flight:
                said = f"{study.in_flight} of {workers} workers can be busy: --in-flight is {study.in_flight}"
                self._console.print(said, highlight=False)

    def trial_finished(self, study: Study, trial: Trial) -> None:
        """Bring the line up to date, now and then: measuring looks at all trials."""
        every_s = LINE_EVERY_S if self._live is None else LIVE_EVERY_S
        if self._quiet or (time.monotonic() < self._printed_s + every_s and len(study.trials) < study.budget):
            return
        self._printed_s = time.monotonic()
        lines = describe(self._meter.measure(study), study)
        if self._live is None:
            self._console.print(" · ".join(lines), highlight=False, soft_wrap=True)
            return
        from rich.text import Text

        self._live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"))

    def study_finished(self, study: Study) -> None:
        """Nothing: the summary follows."""


def describe(progress: Progress, study: Study) -> list[str]:
    """Return the counts of *study* and, once there is one, the best feasible value of each objective."""
    eta = "–" if progress.eta_s is None else f"{int(progress.eta_s) // 60}:{int(progress.eta_s) % 60:02d}"
    counts = (
        f"{progress.done}/{progress.total} trials, ETA {eta}, {progress.feasible} feasible, {progress.failed} failed,"
        f"{f' {progress.reused} from earlier runs,' if progress.reused else ''} hypervolume {progress.hypervolume:.4g}"
    )
    values = [trial.outcome.values for trial in study.feasible if trial.outcome.values is not None]
    if not values:
        return [counts]
    best = [_best(o, column) for o, column in zip(study.objectives, zip(*values, strict=True), strict=True)]
    return [counts, "best " + ", ".join(best)]


def _best(objective: Objective, values: tuple[float, ...]) -> str:
    value = max(values) if objective.direction == "maximize" else min(values)
    return f"{objective.display} {number(value)} {objective.unit}"


class GracefulStop:
    """Listener for Ctrl-C: once ends the study after the running trial, twice ends the process at once."""

    def __enter__(self) -> Self:
        self._asked = False
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, number: int, frame: FrameType | None) -> Any:
        if self._asked:
            raise SystemExit(128 + signal.SIGINT)
        self._asked = True

    def study_started(self, study: Study) -> None:
        """Nothing."""

    def trial_finished(self, study: Study, trial: Trial) -> None:
        """Raise KeyboardInterrupt when asked to stop."""
        if self._asked:
            raise KeyboardInterrupt

    def study_finished(self, study: Study) -> None:
        """Nothing."""
