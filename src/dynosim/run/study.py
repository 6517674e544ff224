"""Studies that leave a run behind: ``optimize``, ``open_study`` and ``load_study``."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from dynosim import __version__, plugins
from dynosim.errors import ConfigError
from dynosim.files import write_whole
from dynosim.objectives import Objective
from dynosim.run.directory import (
    CONFIG_FILE,
    RESULTS_FILE,
    RunState,
    claimed,
    find_run,
    new_run_id,
    runs,
    storage_of,
    without_password,
)
from dynosim.run.keeper import Last, Reporter
from dynosim.run.spaces import load_space
from dynosim.search import study
from dynosim.search.answer import ASKED, Evaluator, answered, name_of
from dynosim.search.evaluate import evaluate as simulate
from dynosim.search.loop import OpenStudy, run_study
from dynosim.search.study import Listener, Study
from dynosim.space import SearchSpace
from dynosim.timing.calibrated import load_profile
from dynosim.tracking import MLflowTracker, tracking_uri
from dynosim.workload import traffic_hash

P = ParamSpec("P")
Asked = TypeVar("Asked")
Result = TypeVar("Result")


def _takes(arguments: Callable[P, Asked]) -> Callable[[Callable[[Asked], Result]], Callable[P, Result]]:
    """Give a function of one *arguments* object its fields as arguments, which editors and ``help`` show."""

    def decorate(function: Callable[[Asked], Result]) -> Callable[P, Result]:
        @wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> Result:
            return function(arguments(*args, **options))

        call.__signature__ = inspect.signature(arguments).replace(  # type: ignore[attr-defined]
            return_annotation=inspect.signature(function).return_annotation
        )
        return call

    return decorate


@dataclass(frozen=True, kw_only=True)
class _Opening:
    """The arguments of ``open_study``; ``optimize`` says what they mean."""

    space: str | Path = field(kw_only=False)
    trials: int | None = None
    seed: int | None = None
    trace: str | Path | None = None
    overrides: Sequence[str] = ()
    storage: str | None = None
    runs_dir: str | Path = "runs"
    tracking: str = "auto"
    in_flight: int | None = None
    sampler: str | None = None
    objectives: Sequence[str | Objective] = ()
    listeners: Sequence[Listener] = ()
    run_id: str | None = None
    wait_s: float = 0.0

    def resolved(self, **plan: int | None) -> SearchSpace:
        """Return the space with everything that was asked for, *plan* of its optimizer included."""
        plugins.check_not_imported()
        asked = {"trials": self.trials, "seed": self.seed, "in_flight": self.in_flight, "sampler": self.sampler, **plan}
        planned = [f"optimizer.{key}={value}" for key, value in asked.items() if value is not None]
        overrides = [*self.overrides, *planned]
        return load_space(self.space, overrides=overrides, trace=self.trace, objectives=self.objectives)

    def begin(self, space: SearchSpace, evaluate: Evaluator | None, held: ExitStack) -> dict[str, Any]:
        """Hold the run that goes on, or a new one, and return the arguments of its ``OpenStudy``."""
        evaluator, code = name_of(evaluate)
        wanted = RunState(
            id=self.run_id or new_run_id(space.name),
            space=space.name,
            identity=identity(space, without_password(self.storage or ""), evaluator, code),
            storage=without_password(self.storage or ""),
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            trials=space.reference.optimizer.trials,
        )
        claim = claimed(Path(self.runs_dir), wanted, fixed=self.run_id is not None, wait_s=self.wait_s)
        run_dir = held.enter_context(claim)
        write_whole(run_dir / CONFIG_FILE, space.to_yaml())
        return {
            "storage": storage_of(self.storage, run_dir),
            "study_id": RunState.read(run_dir).id,
            "evaluator": evaluator,
            # The report comes first: the tracker uploads its files.
            "listeners": [Reporter(run_dir), *_trackers(self.tracking, run_dir), *self.listeners, Last(run_dir, held)],
            "earlier": _earlier(space.reference.optimizer.warm_start, run_dir),
        }


@dataclass(frozen=True, kw_only=True)
class _Search(_Opening):
    """The arguments of ``optimize``."""

    workers: int | None = None
    evaluate: Evaluator | None = None
    wait_s: float = 60.0
    """Another process may be finishing its last trial."""


@_takes(_Search)
def optimize(asked: _Search) -> Study:
    """Search *space* for its Pareto frontier and leave a run directory behind; return the study.

    *space* is a bundled name or a YAML file. *trials* counts those of a resumed run too: an unfinished run of the
    same space, traffic, seed, storage and version goes on, a finished one goes on when more trials are asked for, and
    anything else starts a new run. *run_id* names the run to start or go on with instead, and *wait_s* is how long to
    wait for another process that holds it. *objectives* replace the space's: ``metric``, ``metric.stat``,
    ``file.py:function``, or a function made by ``@objective``, in a notebook too. *tracking* is ``auto``, ``off`` or
    the URI of an MLflow server. *evaluate*, a function or ``file.py:function``, takes the place of the simulator: from
    a Scenario to what ``search.answer.answered`` says, in worker processes.

    Raises ConfigError for wrong input, StudyError when the run is taken or the storage refuses, and KeyboardInterrupt
    after the report of what was done so far is written.
    """
    space = asked.resolved(workers=asked.workers)
    with ExitStack() as held:
        options = asked.begin(space, asked.evaluate, held)
        plan, results = space.reference.optimizer, Path(asked.runs_dir) / RESULTS_FILE
        simulator = partial(simulate, results=results if plan.reuse_results else None)
        evaluates = partial(answered, asked.evaluate) if asked.evaluate is not None else simulator
        return run_study(space, workers=plan.workers, evaluate=evaluates, **options)


@_takes(_Opening)
def open_study(asked: _Opening) -> OpenStudy:
    """Open a run whose trials someone else evaluates: the study's ``ask`` proposes, its ``tell`` takes the answers.

    Arguments, the run directory and which run goes on are those of ``optimize``; no simulated run goes on here. The run
    is held until ``close``, which writes the report. Raises ConfigError for wrong input, StudyError when the run is
    taken or the storage refuses.
    """
    space, held = asked.resolved(), ExitStack()
    try:
        return OpenStudy(space, **asked.begin(space, ASKED, held))
    except BaseException:
        held.close()
        raise


def load_study(run: str | Path, runs_dir: str | Path = "runs", *, storage: str | None = None) -> Study:
    """Return the study of *run*, an id, a directory anywhere or ``last``, with its trials so far.

    Raises ConfigError for no such run, StudyError where its storage has no study.
    """
    run_dir = find_run(run, runs_dir)
    state, space = RunState.read(run_dir), SearchSpace.load(run_dir / CONFIG_FILE)
    return study.load_study(space, storage=storage_of(storage or state.storage, run_dir), study_id=state.id)


def identity(space: SearchSpace, storage: str, evaluator: str, code: str | None) -> str:
    """Return ``RunState.identity``."""
    scenario, plan = space.reference, space.reference.optimizer
    asked = [plan.sampler, plan.seed, plan.in_flight, plan.stop_lost_runs, plan.warm_start, evaluator, code]
    if scenario.deployment.calibration is not None:
        asked.append(load_profile(scenario.deployment.calibration).label)
    parts = [space.content_hash(), traffic_hash(scenario), *asked, space.code_hash(), storage, __version__]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _earlier(wanted: Sequence[str], run_dir: Path) -> list[Study]:
    """Return the studies that the one in *run_dir* starts from; ``last`` is the newest run that is older than it."""
    known = [state.id for state in runs(run_dir.parent)]
    before = known[: known.index(RunState.read(run_dir).id)]
    if "last" in wanted and not before:
        raise ConfigError(f"optimizer.warm_start: last: there is no earlier run under {run_dir.parent}")
    return [load_study(before[-1] if run == "last" else run, run_dir.parent) for run in wanted]


def _trackers(tracking: str, run_dir: Path) -> list[Listener]:
    uri = tracking_uri(tracking, run_dir.parent)
    return [] if uri is None else [MLflowTracker(uri, run_dir)]
