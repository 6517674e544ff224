"""Trials in Optuna's storage: everything that a study knows can be read back from it.

Our endings map to Optuna's states so that each of its samplers learns from them: INFEASIBLE is COMPLETE with
infinitely bad values and a positive constraint (samplers ignore failed trials, and would walk into the same
wall again), FAILED is FAIL. Every SLO is a constraint. A trial left RUNNING by a killed process is still
ours: it goes on under its number.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from dynosim.config import SLO
from dynosim.errors import StudyError
from dynosim.objectives import Objective
from dynosim.search.distributions import decode, encode
from dynosim.search.trial import Outcome, Status, Trial
from dynosim.space import SearchSpace

RUNS = "runs"
"""Name of the constraint that a trial violates when it could not be run and there is no SLO to violate."""


def open_storage(url: str | None) -> BaseStorage:
    """Return Optuna's storage at *url*; None keeps trials in memory. Raises StudyError if it cannot be opened."""
    if url is None:
        return InMemoryStorage()
    # SQLAlchemy takes plain postgresql:// for psycopg2; the extra installs its successor.
    driver_url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    try:
        storage = RDBStorage(driver_url, engine_kwargs={"pool_pre_ping": True})
    except (ImportError, SQLAlchemyError, RuntimeError) as error:
        raise StudyError(f"cannot open the storage {url.rpartition('@')[2]}: {error}") from error
    if storage.engine.dialect.name == "sqlite":
        event.listen(storage.engine, "connect", _relax_sqlite)
        storage.engine.dispose()
    weakref.finalize(storage, storage.engine.dispose)  # Optuna never closes the pooled connections
    return storage


def _relax_sqlite(connection: Any, record: object) -> None:
    """Write-ahead log, synced at checkpoints: safe when the process dies, ten times faster than a sync per write."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA busy_timeout=60000")


def create(
    storage: BaseStorage, study_id: str, space: SearchSpace, objectives: Sequence[Objective], identity: dict[str, Any]
) -> optuna.Study:
    """Open the study *study_id*, a new one with the baseline as its first trial; StudyError if it is another's."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = [objective.direction for objective in objectives]
    study = optuna.create_study(storage=storage, study_name=study_id, directions=directions, load_if_exists=True)
    stored = study.user_attrs.get("identity", identity)
    for name, value in identity.items():
        if stored.get(name) != value:
            raise StudyError(f"study {study_id} was started with {name} {stored.get(name)}, not {value}")
    if "identity" not in study.user_attrs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([objective.name for objective in objectives])
        study.set_user_attr("space", space.name)
        study.set_user_attr("identity", identity)
    baseline = space.baseline_point()
    if baseline is not None and not study.get_trials(deepcopy=False):
        study.enqueue_trial(encode(baseline))
    return study


def load(storage: BaseStorage, study_id: str) -> optuna.Study:
    """Open an existing study; StudyError if there is none."""
    try:
        return optuna.load_study(study_name=study_id, storage=storage)
    except KeyError:
        raise StudyError(f"no study {study_id} in this storage") from None


def unfinished(study: optuna.Study, storage: BaseStorage) -> Iterator[optuna.Trial]:
    """Yield the trials that a killed process was evaluating, in their order."""
    study_id = storage.get_study_id_from_name(study.study_name)
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        yield optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, frozen.number))


def tell(study: optuna.Study, trial: optuna.Trial, record: Trial) -> None:
    """Store how a trial ended; the state comes last, so that a trial is either whole or still running."""
    outcome, scenario = record.outcome, record.scenario
    trial.set_user_attr("label", scenario.deployment.label())
    trial.set_user_attr("config_hash", scenario.content_hash())
    trial.set_user_attr("outcome", _to_json(outcome))
    if outcome.status is Status.FAILED:
        study.tell(trial, state=TrialState.FAIL)
    elif outcome.values is None:
        _tell_complete(study, trial, _worst(study), _all_violated(scenario.slo))
    else:
        _tell_complete(study, trial, outcome.values, outcome.constraints)


def tell_infeasible(study: optuna.Study, trial: optuna.Trial, slo: SLO, reason: str) -> None:
    """Store a proposal that is known not to work: Optuna's samplers learn from it, and it is no trial of ours."""
    trial.set_user_attr("infeasible", reason)
    _tell_complete(study, trial, _worst(study), _all_violated(slo))


def _worst(study: optuna.Study) -> list[float]:
    return [-math.inf if d is StudyDirection.MAXIMIZE else math.inf for d in study.directions]


def _all_violated(slo: SLO) -> dict[str, float]:
    """Return a positive constraint for every SLO: Optuna's GPSampler needs the same constraints in all trials."""
    return {f"{metric}.{stat}": 1.0 for metric, stats in slo.items() for stat in stats} or {RUNS: 1.0}


def _tell_complete(
    study: optuna.Study, trial: optuna.Trial, values: Sequence[float], constraints: Mapping[str, float]
) -> None:
    for name, violation in constraints.items():
        if name not in trial.constraints:  # a killed process may have been here before
            trial.set_constraint(name, violation)
    study.tell(trial, list(values))


def read(study: optuna.Study, space: SearchSpace) -> list[Trial]:
    """Return the finished trials of a study in the order of their numbers."""
    frozen = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return [_to_trial(trial, space) for trial in frozen if "outcome" in trial.user_attrs]


def _to_trial(frozen: FrozenTrial, space: SearchSpace) -> Trial:
    point = decode(space, frozen.params)
    return Trial(frozen.number, point, space.scenario(point), _from_json(frozen.user_attrs["outcome"]))


def _to_json(outcome: Outcome) -> dict[str, Any]:
    return {**vars(outcome), "status": str(outcome.status), "constraints": dict(outcome.constraints)}


def _from_json(data: dict[str, Any]) -> Outcome:
    values = None if data["values"] is None else tuple(data["values"])
    return Outcome(**{**data, "status": Status(data["status"]), "values": values})
