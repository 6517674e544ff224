"""Trials in Optuna's storage: everything that a study knows can be read back from it.

Samplers see a copy in memory, so that asking reads no database; every trial is written beside it, when it starts and
when it ends, in one transaction each. A process that is killed leaves trials whole or running, and a running trial is
still ours: it goes on under its number.

Our endings map to Optuna's states so that each of its samplers learns from them: INFEASIBLE and LOST are COMPLETE with
infinitely bad values and a positive constraint (samplers ignore failed trials, and would walk into the same
wall again), FAILED is FAIL. Every SLO is a constraint.
"""

from __future__ import annotations

import json
import math
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, MetaData, Table, delete, event, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from dynosim.config import SLO
from dynosim.errors import ConfigError, StudyError
from dynosim.metrics import bounds_of
from dynosim.objectives import Objective
from dynosim.search.distributions import decode, encode
from dynosim.search.samplers.base import NOISE
from dynosim.search.trial import Outcome, Status, Trial
from dynosim.space import SearchSpace

RUNS = "runs"
"""Name of the constraint that a trial violates when it could not be run and there is no SLO to violate."""


@contextmanager
def storage_errors() -> Iterator[None]:
    """Raise StudyError, in one line, for what a storage raises at work: a full disk, a server that is gone."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise StudyError(f"storage: {reason}: trials that ended are kept, and the same command goes on") from error


def open_storage(url: str) -> RDBStorage:
    """Return Optuna's storage at *url*. Raises ConfigError if it cannot be opened."""
    # SQLAlchemy takes plain postgresql:// for psycopg2; the extra installs its successor.
    driver_url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    try:
        storage = RDBStorage(driver_url, engine_kwargs={"pool_pre_ping": True})
    except (ImportError, SQLAlchemyError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{url.rpartition('@')[2]}: cannot be opened: {reason}", path="storage") from error
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


def load(storage: RDBStorage, study_id: str) -> optuna.Study:
    """Open an existing study; StudyError if there is none."""
    try:
        return optuna.load_study(study_name=study_id, storage=storage)
    except KeyError:
        raise StudyError(f"no study {study_id} in this storage") from None


def read(study: optuna.Study, space: SearchSpace) -> list[Trial]:
    """Return the finished trials of a study in the order of their numbers."""
    frozen = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return [_to_trial(trial, space) for trial in frozen if "outcome" in trial.user_attrs]


def rejected(study: optuna.Study) -> list[str]:
    """Return why proposals of a study were known not to work, in their order."""
    told = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial.user_attrs["infeasible"] for trial in told if "infeasible" in trial.user_attrs]


def _to_trial(frozen: FrozenTrial, space: SearchSpace) -> Trial:
    point = decode(space, frozen.params)
    return Trial(frozen.number, point, space.scenario(point), _from_json(frozen.user_attrs["outcome"]))


class TrialStore:
    """The trials of a study that is being run: in ``study`` for samplers, and in the storage unless there is none."""

    def __init__(
        self,
        url: str | None,
        study_id: str,
        space: SearchSpace,
        objectives: Sequence[Objective],
        identity: Mapping[str, Any],
    ) -> None:
        """Open the study *study_id*, a new one with the baseline as its first trial; StudyError if it is another's."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._memory = InMemoryStorage()
        directions = [objective.direction for objective in objectives]
        self.study = optuna.create_study(storage=self._memory, study_name=study_id, directions=directions)
        self.trials: list[Trial] = []
        """What an earlier call finished."""
        self.rejected: list[str] = []
        """Why proposals of an earlier call were known not to work."""
        self._tables: _Tables | None = None
        if url is not None:
            storage = open_storage(url)
            stored = _create(storage, study_id, space, objectives, identity)
            self.trials, self.rejected = read(stored, space), rejected(stored)
            self.study.add_trials(stored.get_trials(deepcopy=False))
            self._tables = _Tables(storage, study_id)
        baseline = space.baseline_point()
        if baseline is not None and not self.study.get_trials(deepcopy=False):
            self.study.enqueue_trial(encode(baseline))

    def unfinished(self) -> Iterator[optuna.Trial]:
        """Yield the trials that a killed process was evaluating, in their order."""
        study_id = self._memory.get_study_id_from_name(self.study.study_name)
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            trial_id = self._memory.get_trial_id_from_study_id_trial_number(study_id, frozen.number)
            yield optuna.Trial(self.study, trial_id)

    def start(self, trial: optuna.Trial) -> None:
        """Store that a trial is being evaluated, once all its parameters are known."""
        if self._tables is not None:
            self._tables.start(self.study.get_trials(deepcopy=False)[trial.number])

    def tell(self, trial: optuna.Trial, record: Trial) -> None:
        """Store how a trial ended."""
        outcome, scenario = record.outcome, record.scenario
        attributes: dict[str, Any] = {
            "label": scenario.deployment.label(),
            "config_hash": scenario.content_hash(),
            "evidence": outcome.evidence,
            "outcome": _to_json(outcome),
        }
        if outcome.noise is not None:
            attributes[NOISE] = list(outcome.noise)
            trial.set_user_attr(NOISE, list(outcome.noise))  # for samplers, which see memory only
        if outcome.status is Status.FAILED:
            self._end(self.study.tell(trial, state=TrialState.FAIL), attributes)
        else:
            self._complete(trial, outcome, scenario.slo, attributes)

    def tell_infeasible(self, trial: optuna.Trial, slo: SLO, reason: str) -> None:
        """Store a proposal that is known not to work: Optuna's samplers learn from it, and it is no trial of ours."""
        self.start(trial)
        self._complete(trial, Outcome(Status.INFEASIBLE), slo, {"infeasible": reason})

    def _complete(self, trial: optuna.Trial, outcome: Outcome, slo: SLO, attributes: Mapping[str, Any]) -> None:
        for name, violation in (outcome.constraints or _all_violated(slo)).items():
            trial.set_constraint(name, violation)
        self._end(self.study.tell(trial, list(outcome.values or _worst(self.study))), attributes)

    def _end(self, trial: FrozenTrial, attributes: Mapping[str, Any]) -> None:
        if self._tables is not None:
            self._tables.end(trial, attributes)


def _create(
    storage: RDBStorage, study_id: str, space: SearchSpace, objectives: Sequence[Objective], identity: Mapping[str, Any]
) -> optuna.Study:
    directions = [objective.direction for objective in objectives]
    study = optuna.create_study(storage=storage, study_name=study_id, directions=directions, load_if_exists=True)
    stored = study.user_attrs.get("identity", identity)
    for name, value in identity.items():
        if stored.get(name, value) != value:
            raise StudyError(f"study {study_id} was started with {name} {stored[name]}, not {value}")
    if "identity" not in study.user_attrs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([objective.name for objective in objectives])
        study.set_user_attr("space", space.name)
        study.set_user_attr("identity", dict(identity))
    return study


def _worst(study: optuna.Study) -> list[float]:
    return [-math.inf if d is StudyDirection.MAXIMIZE else math.inf for d in study.directions]


def _all_violated(slo: SLO) -> dict[str, float]:
    """Return a positive constraint for every SLO: Optuna's GPSampler needs the same constraints in all trials."""
    return {bound.name: 1.0 for bound in bounds_of(slo)} or {RUNS: 1.0}


class _Tables:
    """Optuna's tables. Its own functions take a transaction for every parameter and attribute: 50 CPU-ms a trial."""

    def __init__(self, storage: RDBStorage, study_id: str) -> None:
        self._storage, self._engine = storage, storage.engine  # the engine is disposed of with the storage
        self._study_id = storage.get_study_id_from_name(study_id)
        metadata = MetaData()
        self._trials, self._params, self._values, self._user, self._system = (
            Table(name, metadata, autoload_with=self._engine)
            for name in ("trials", "trial_params", "trial_values", "trial_user_attributes", "trial_system_attributes")
        )
        known = select(self._trials.c.number, self._trials.c.trial_id).where(self._trials.c.study_id == self._study_id)
        with self._engine.connect() as connection:
            self._ids: dict[int, int] = {row.number: row.trial_id for row in connection.execute(known)}

    def start(self, trial: FrozenTrial) -> None:
        """Add a running trial with its parameters, unless it is there."""
        if trial.number in self._ids:
            return
        row = {"number": trial.number, "study_id": self._study_id, "state": "RUNNING", "datetime_start": _utc_now()}
        with self._engine.begin() as connection:
            inserted = connection.execute(insert(self._trials).values(row)).inserted_primary_key
            assert inserted is not None
            trial_id = inserted[0]
            self._add(connection, self._params, trial_id, [_param(trial, name) for name in trial.params])
            self._add(connection, self._system, trial_id, _attributes(trial.system_attrs))
        self._ids[trial.number] = trial_id

    def end(self, trial: FrozenTrial, attributes: Mapping[str, Any]) -> None:
        """Finish a trial that was started: its values, its constraints and *attributes*."""
        trial_id, trials, system = self._ids[trial.number], self._trials, self._system
        ending = {"state": trial.state.name, "datetime_complete": _utc_now()}
        with self._engine.begin() as connection:
            connection.execute(delete(system).where(system.c.trial_id == trial_id))
            self._add(connection, system, trial_id, _attributes(trial.system_attrs))
            self._add(connection, self._user, trial_id, _attributes(attributes))
            self._add(connection, self._values, trial_id, [_value(*item) for item in enumerate(trial.values or ())])
            connection.execute(update(trials).where(trials.c.trial_id == trial_id).values(ending))

    @staticmethod
    def _add(connection: Connection, table: Table, trial_id: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            connection.execute(insert(table), [{"trial_id": trial_id, **row} for row in rows])


def _utc_now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def _param(trial: FrozenTrial, name: str) -> dict[str, Any]:
    distribution = trial.distributions[name]
    value = distribution.to_internal_repr(trial.params[name])
    return {"param_name": name, "param_value": value, "distribution_json": distribution_to_json(distribution)}


def _attributes(attributes: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]


def _value(objective: int, value: float) -> dict[str, Any]:
    if math.isinf(value):
        return {"objective": objective, "value": None, "value_type": "INF_POS" if value > 0.0 else "INF_NEG"}
    return {"objective": objective, "value": value, "value_type": "FINITE"}


def _to_json(outcome: Outcome) -> dict[str, Any]:
    return {**vars(outcome), "status": str(outcome.status), "constraints": dict(outcome.constraints)}


def _from_json(data: dict[str, Any]) -> Outcome:
    vectors = {name: tuple(x) for name in ("values", "noise") if (x := data.get(name)) is not None}
    return Outcome(**{**data, "status": Status(data["status"]), **vectors})
