"""What the command line, Python and the service call: ``optimize``, ``open_study``, ``predict``, ``load_study``.

A run is a directory ``<runs_dir>/<run id>`` with everything that a study left behind. ``run.json`` in it says what was
asked; the trials are in the Optuna storage, written as each one ends, so a run survives ``kill -9`` and the same
call goes on where it stopped. A lock file keeps two processes out of one run.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock, Timeout

from dynosim import __version__, plugins
from dynosim.errors import ConfigError, StudyError, nearest
from dynosim.files import write_whole

if TYPE_CHECKING:
    from dynosim.config import Scenario
    from dynosim.metrics import Metrics
    from dynosim.objectives import Objective
    from dynosim.search.answer import Evaluator
    from dynosim.search.loop import OpenStudy
    from dynosim.search.study import Listener, Study
    from dynosim.search.trial import Outcome, Trial
    from dynosim.simulation.records import SimulationResult
    from dynosim.space import SearchSpace
    from dynosim.uncertainty.model_band import Band, Evidence

STATE_FILE, CONFIG_FILE, LOCK_FILE = "run.json", "config.resolved.yaml", "run.lock"

RESULTS_FILE = "results.db"
"""Results of all runs of a directory, for the next ones; it may be deleted at any time."""

TAKEOVER_TIMEOUT_S = 60.0
"""How long a run named by its id waits for a process that is finishing its last trial."""


@dataclass(frozen=True)
class Prediction:
    """One simulated scenario."""

    scenario: Scenario
    metrics: Metrics
    result: SimulationResult
    """Of the first seed and the first case."""
    evidence: Evidence
    """What the metrics rest on."""
    seeds: int = 1
    """Simulations with different traffic that the metrics are means of."""
    outcome: Outcome | None = None
    """Of several workloads or scenarios: objectives, SLOs and every case; ``metrics`` are then means over them."""

    def model_bands(self) -> dict[str, Band]:
        """Return metric -> factors between which the truth lies; metrics for which that is not known are absent."""
        from dynosim.uncertainty.model_band import model_bands

        return model_bands(self.scenario, self.evidence, saturated=bool(self.metrics.value("saturated")))


@dataclass(frozen=True)
class RunState:
    """What was asked of a run, and how far it got."""

    id: str
    space: str
    identity: str
    """Hash of everything that decides the trials: space, traffic, calibration, sampler, seed, proposals in flight, who
    evaluates, the user's code, storage and dynosim's version."""
    storage: str
    """Optuna's URL without its password; empty for SQLite in the run's directory."""
    created: str
    trials: int
    """Trials asked for."""
    done: int = 0
    feasible: int = 0
    """As of the last report."""
    state: Literal["new", "running", "interrupted", "finished"] = "new"
    prices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """GPU -> its price and where that is from, as of the last report."""

    @classmethod
    def read(cls, run_dir: Path) -> RunState:
        """Return the state stored in *run_dir*."""
        return cls(**json.loads((run_dir / STATE_FILE).read_text()))

    def write(self, run_dir: Path) -> None:
        """Store it in *run_dir*."""
        write_whole(run_dir / STATE_FILE, json.dumps(asdict(self), indent=2) + "\n")


def runs(runs_dir: str | Path = "runs") -> list[RunState]:
    """Return all runs under *runs_dir*, oldest first."""
    states = [RunState.read(path.parent) for path in Path(runs_dir).glob(f"*/{STATE_FILE}")]
    return sorted(states, key=lambda state: (state.created, state.id))


def find_run(run: str, runs_dir: str | Path = "runs") -> Path:
    """Return the directory of *run*: an id, a directory, or ``last``; ConfigError where there is none."""
    if run == "last":
        known = runs(runs_dir)
        if not known:
            raise ConfigError(f"last: there is no run under {runs_dir} yet")
        return Path(runs_dir) / known[-1].id
    for candidate in (Path(runs_dir) / run, Path(run)):
        if (candidate / STATE_FILE).is_file():
            return candidate
    near = nearest(run, [state.id for state in runs(runs_dir)])
    raise ConfigError(f"{run}: no such run under {runs_dir}: {near}allowed: a run's id, its directory, last")


def optimize(
    space: str | Path,
    *,
    trials: int | None = None,
    seed: int | None = None,
    trace: str | Path | None = None,
    overrides: Sequence[str] = (),
    storage: str | None = None,
    runs_dir: str | Path = "runs",
    tracking: str = "auto",
    workers: int | None = None,
    in_flight: int | None = None,
    sampler: str | None = None,
    objectives: Sequence[str | Objective] = (),
    listeners: Sequence[Listener] = (),
    evaluate: Evaluator | None = None,
    run_id: str | None = None,
) -> Study:
    """Search *space* for its Pareto frontier and leave a run directory behind; return the study.

    *space* is a bundled name or a YAML file. *trials* counts those of a resumed run too: an unfinished run of the
    same space, traffic, seed, storage and version goes on, a finished one goes on when more trials are asked for, and
    anything else starts a new run. *run_id* names the run to start or go on with instead. *objectives* replace the
    space's: ``metric``, ``metric.stat``, ``file.py:function``, or a function made by ``@objective``, in a notebook too.
    *tracking* is ``auto``, ``off`` or the URI of an MLflow server. *evaluate*, a function or ``file.py:function``,
    takes the place of the simulator: from a Scenario to what ``search.answer.answered`` says, in worker processes.

    Raises ConfigError for wrong input, StudyError when the run is taken or the storage refuses, and KeyboardInterrupt
    after the report of what was done so far is written.
    """
    from dynosim.search.answer import answered
    from dynosim.search.evaluate import evaluate as simulate
    from dynosim.search.loop import run_study

    asked = {"trials": trials, "seed": seed, "workers": workers, "in_flight": in_flight, "sampler": sampler}
    resolved = _resolved(space, overrides, trace, objectives, asked)
    with ExitStack() as held:
        options = _begin(resolved, held, evaluate, run_id, storage, runs_dir, tracking, listeners)
        plan, results = resolved.reference.optimizer, Path(runs_dir) / RESULTS_FILE
        simulator = partial(simulate, results=results if plan.reuse_results else None)
        evaluates = partial(answered, evaluate) if evaluate is not None else simulator
        return run_study(resolved, workers=plan.workers, evaluate=evaluates, **options)


def open_study(
    space: str | Path,
    *,
    trials: int | None = None,
    seed: int | None = None,
    trace: str | Path | None = None,
    overrides: Sequence[str] = (),
    storage: str | None = None,
    runs_dir: str | Path = "runs",
    tracking: str = "auto",
    sampler: str | None = None,
    objectives: Sequence[str | Objective] = (),
    listeners: Sequence[Listener] = (),
    run_id: str | None = None,
    wait_s: float = 0.0,
) -> OpenStudy:
    """Open a run whose trials someone else evaluates: the study's ``ask`` proposes, its ``tell`` takes the answers.

    Arguments, the run directory and which run goes on are those of ``optimize``; no simulated run goes on here. The run
    is held until ``close``, which writes the report; *wait_s* is how long to wait for another process that holds the
    run *run_id*. Raises ConfigError for wrong input, StudyError when the run is taken or the storage refuses.
    """
    from dynosim.search.answer import ASKED
    from dynosim.search.loop import OpenStudy

    asked = {"trials": trials, "seed": seed, "sampler": sampler}
    resolved = _resolved(space, overrides, trace, objectives, asked)
    held = ExitStack()
    try:
        return OpenStudy(
            resolved, **_begin(resolved, held, ASKED, run_id, storage, runs_dir, tracking, listeners, wait_s)
        )
    except BaseException:
        held.close()
        raise


def _resolved(
    space: str | Path,
    overrides: Sequence[str],
    trace: str | Path | None,
    objectives: Sequence[str | Objective],
    plan: Mapping[str, Any],
) -> SearchSpace:
    plugins.check_not_imported()
    planned = [f"optimizer.{key}={value}" for key, value in plan.items() if value is not None]
    return load_space(space, overrides=[*overrides, *planned], trace=trace, objectives=objectives)


def load_space(
    space: str | Path,
    *,
    overrides: Sequence[str] = (),
    trace: str | Path | None = None,
    objectives: Sequence[str | Objective] = (),
) -> SearchSpace:
    """Return *space* with the arguments of ``optimize`` applied; raises ConfigError.

    A profile asked for by its name is named with its hash from here on: what is written down means the same forever.
    What aliases of metrics resolved to is said on stderr.
    """
    from dynosim.space import SearchSpace
    from dynosim.timing.calibrated import pinned

    given = [*overrides, *_trace_override(trace)]
    if objectives:
        given.append(f"objectives={json.dumps([_objective_field(objective) for objective in objectives])}")
    found = SearchSpace.load(space, given)
    if found.aliases:
        print(", ".join(f"{alias} -> {metric}" for alias, metric in found.aliases.items()), file=sys.stderr)
    profile = found.fields["deployment"].get("calibration")
    if isinstance(profile, str) and pinned(profile) != profile:
        return SearchSpace.load(space, [*given, f"deployment.calibration={pinned(profile)}"])
    return found


def _trace_override(trace: str | Path | None) -> list[str]:
    return [] if trace is None else [f"workload.source={json.dumps({'type': 'trace', 'path': str(trace)})}"]


def _objective_field(objective: str | Objective) -> dict[str, str]:
    """Return *objective* as a field of the space file, which worker processes can read too."""
    from dynosim.config.goals import canonical
    from dynosim.metrics import check_metric
    from dynosim.objectives import refer

    if not isinstance(objective, str):
        return {"python": refer(objective)}
    if ":" in objective:
        return {"python": objective}
    if not objective or objective.endswith(".py"):
        raise ConfigError(f"objective {objective!r}: allowed: METRIC, METRIC.STAT or file.py:function")
    metric, _, stat = objective.partition(".")
    check_metric(canonical(metric), stat or None, f"objective {objective!r}")
    return {"metric": metric, **({"stat": stat} if stat else {})}


def predict(
    config: str | Path, *, overrides: Sequence[str] = (), trace: str | Path | None = None, seeds: int = 1
) -> Prediction:
    """Simulate the one configuration of a YAML file, or the baseline of a space.

    With *seeds* above 1 the metrics are means over as many runs, from the file's seed on, and their intervals are those
    of independent runs. Raises ConfigError (also for seeds that change no traffic), InfeasibleError when the deployment
    cannot run, and TimingError when its pass times are unknown.
    """
    from dynosim.config import cases_of
    from dynosim.space import feasibility
    from dynosim.uncertainty.evidence import evidence

    scenario = load_space(config, overrides=overrides, trace=trace).deployed()
    feasibility.check_start(scenario)
    cases = cases_of(scenario)
    found = [_mean(case.scenario, seeds) for case in cases]
    result, metrics = found[0]
    if len(cases) == 1:
        return Prediction(scenario, metrics, result, evidence(scenario, metrics.flat()), seeds)
    outcome = _combined(scenario, [metrics for _, metrics in found])
    return Prediction(scenario, outcome.known_metrics(), result, outcome.evidence or "extrapolated", seeds, outcome)


def _mean(scenario: Scenario, seeds: int) -> tuple[SimulationResult, Metrics]:
    """Return the run of the first seed, and the metrics over all."""
    from dynosim.metrics import over_seeds

    results, runs = zip(*_simulated(scenario, seeds), strict=True)
    return results[0], runs[0] if seeds == 1 else over_seeds(runs)


def _combined(scenario: Scenario, found: Sequence[Metrics]) -> Outcome:
    from dynosim.config import cases_of
    from dynosim.errors import InfeasibleError
    from dynosim.search.cases import combined
    from dynosim.search.evaluate import score
    from dynosim.search.trial import Outcome, Status

    cases, outcomes = cases_of(scenario), []
    for case, metrics in zip(cases, found, strict=True):
        run = Outcome(Status.COMPLETE, metrics=metrics.to_dict(), deviations=metrics.deviations)
        try:
            outcomes.append(score(case.scenario, run))
        except ValueError as error:
            raise InfeasibleError(f"{case.name}: {error}") from error
    return combined(scenario, cases, outcomes)


def _simulated(scenario: Scenario, seeds: int) -> Iterator[tuple[SimulationResult, Metrics]]:
    """Yield a run for each seed from the scenario's on."""
    from dynosim.metrics import summarize
    from dynosim.simulation import simulate
    from dynosim.workload import load_workload

    workloads = [load_workload(scenario.workload, scenario.seed + i) for i in range(seeds)]
    if len({workload.content_hash() for workload in workloads}) < seeds:
        raise ConfigError(
            "the workload is the same with every seed: one run, and a sampling interval over its requests"
        )
    for i, workload in enumerate(workloads):
        result = simulate(scenario.deployment, workload, seed=scenario.seed + i)
        yield result, summarize(result, scenario.slo, scenario.prices)


def _identity(space: SearchSpace, storage: str, evaluator: str, code: str | None) -> str:
    from dynosim.timing.calibrated import load_profile
    from dynosim.workload import traffic_hash

    scenario, plan = space.reference, space.reference.optimizer
    traffic = traffic_hash(scenario)
    asked = [plan.sampler, plan.seed, plan.in_flight, plan.stop_lost_runs, plan.warm_start, evaluator, code]
    if scenario.deployment.calibration is not None:
        asked.append(load_profile(scenario.deployment.calibration).label)
    parts = [space.content_hash(), traffic, *asked, space.code_hash(), storage, __version__]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def new_run_id(space: str) -> str:
    """Return a fresh id that sorts by time, such as ``20261121-1804-llama70b-7f3a``."""
    name = re.sub(r"[^\w.-]+", "-", space, flags=re.ASCII)[:40]
    return f"{datetime.now(UTC):%Y%m%d-%H%M}-{name}-{secrets.token_hex(2)}"


def _without_password(url: str) -> str:
    """Return *url* as it may be stored; opened again, the driver finds the password in PGPASSWORD or ~/.pgpass."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", "@")))


@contextmanager
def _claimed(runs_dir: Path, wanted: RunState, *, fixed: bool, wait_s: float) -> Iterator[Path]:
    """Lock the run to go on with, or a new one, and yield its directory; a run that never started leaves nothing."""
    for state in _candidates(runs_dir, wanted, fixed):
        run_dir = runs_dir / state.id
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(run_dir / LOCK_FILE).acquire(timeout=wait_s if fixed else 0)
        except Timeout:
            continue
        with lock:
            replace(state, identity=wanted.identity, storage=wanted.storage, trials=wanted.trials).write(run_dir)
            try:
                yield run_dir
            finally:
                if RunState.read(run_dir).state == "new":
                    shutil.rmtree(run_dir)
                    with suppress(OSError):  # other runs are in it
                        runs_dir.rmdir()
            return
    raise StudyError(f"run {wanted.id} is being run by another process")


def _candidates(runs_dir: Path, wanted: RunState, fixed: bool) -> list[RunState]:
    """Return the runs that may go on, the newest first, and *wanted* itself last."""
    known = list(reversed(runs(runs_dir)))
    if fixed:
        return [state for state in known if state.id == wanted.id] or [wanted]
    return [*(state for state in known if _continues(state, wanted)), wanted]


def _continues(state: RunState, wanted: RunState) -> bool:
    return state.identity == wanted.identity and (state.state != "finished" or state.trials < wanted.trials)


class _Keeper:
    """Keeps the study at hand, the state of the run, and its report, which it writes when the study ends."""

    study: Study | None = None

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def study_started(self, study: Study) -> None:
        self.study = study
        self.store("running")

    def trial_finished(self, study: Study, trial: Trial) -> None:
        pass

    def study_finished(self, study: Study) -> None:
        from dynosim import report

        report.write(study, self._run_dir)

    def store(self, state: Literal["running", "interrupted", "finished"]) -> None:
        from dynosim.report.analysis import prices

        if self.study is not None:
            done, feasible = len(self.study.trials), len(self.study.feasible)
            known = replace(RunState.read(self._run_dir), state=state, done=done, feasible=feasible)
            replace(known, prices=prices(self.study)).write(self._run_dir)


class _Last:
    """The last listener of a run: it stores its state once all others have heard that it ends, and gives it free."""

    def __init__(self, keeper: _Keeper, held: ExitStack) -> None:
        self._keeper, self._held = keeper, held

    def study_started(self, study: Study) -> None:
        pass

    def trial_finished(self, study: Study, trial: Trial) -> None:
        pass

    def study_finished(self, study: Study) -> None:
        self._keeper.store("finished" if len(study.trials) >= study.budget else "interrupted")
        self._held.close()


def _begin(
    space: SearchSpace,
    held: ExitStack,
    evaluate: Evaluator | None,
    run_id: str | None,
    storage: str | None,
    runs_dir: str | Path,
    tracking: str,
    listeners: Sequence[Listener],
    wait_s: float | None = None,
) -> dict[str, Any]:
    """Hold the run that goes on, or a new one, and return the arguments of its ``OpenStudy``."""
    from dynosim.search.answer import name_of

    evaluator, code = name_of(evaluate)
    wanted = RunState(
        id=run_id or new_run_id(space.name),
        space=space.name,
        identity=_identity(space, _without_password(storage or ""), evaluator, code),
        storage=_without_password(storage or ""),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        trials=space.reference.optimizer.trials,
    )
    wait_s = TAKEOVER_TIMEOUT_S if wait_s is None else wait_s
    run_dir = held.enter_context(_claimed(Path(runs_dir), wanted, fixed=run_id is not None, wait_s=wait_s))
    write_whole(run_dir / CONFIG_FILE, space.to_yaml())
    keeper = _Keeper(run_dir)
    return {
        "storage": _storage(storage, run_dir),
        "study_id": run_dir.name,
        "evaluator": evaluator,
        # The keeper comes first: the tracker uploads the files of its report.
        "listeners": [keeper, *_trackers(tracking, run_dir), *listeners, _Last(keeper, held)],
        "earlier": _earlier(space.reference.optimizer.warm_start, run_dir),
    }


def _earlier(wanted: Sequence[str], run_dir: Path) -> list[Study]:
    """Return the studies that the one in *run_dir* starts from; ``last`` is the newest run that is older than it."""
    known = [state.id for state in runs(run_dir.parent)]
    before = known[: known.index(run_dir.name)]
    if "last" in wanted and not before:
        raise ConfigError(f"optimizer.warm_start: last: there is no earlier run under {run_dir.parent}")
    return [load_study(before[-1] if run == "last" else run, run_dir.parent) for run in wanted]


def _storage(url: str | None, run_dir: Path) -> str:
    return url or f"sqlite:///{(run_dir / 'study.db').resolve()}"


def _trackers(tracking: str, run_dir: Path) -> list[Listener]:
    from dynosim.tracking import MLflowTracker, tracking_uri

    uri = tracking_uri(tracking, run_dir.parent)
    return [] if uri is None else [MLflowTracker(uri, run_dir)]


def write_requests(result: SimulationResult, path: str | Path) -> None:
    """Write one row per request (``simulation.records.REQUEST_DTYPE``, times in seconds) as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    requests = result.requests
    pq.write_table(pa.table({name: requests[name] for name in requests.dtype.names or ()}), path)


def load_study(run: str, runs_dir: str | Path = "runs", *, storage: str | None = None) -> Study:
    """Return the study of *run* with its trials so far.

    Raises ConfigError for no such run, StudyError where its storage has no study.
    """
    from dynosim.search.study import load_study as load
    from dynosim.space import SearchSpace

    run_dir = find_run(run, runs_dir)
    state = RunState.read(run_dir)
    return load(
        SearchSpace.load(run_dir / CONFIG_FILE),
        storage=_storage(storage or state.storage, run_dir),
        study_id=state.id,
    )
