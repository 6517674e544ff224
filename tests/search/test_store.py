"""What is written into Optuna's tables is what Optuna reads from them, and what samplers see."""

from __future__ import annotations

import json
import math
import sqlite3
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial

from dynosim.errors import StudyError
from dynosim.objectives import resolve
from dynosim.search.distributions import suggest
from dynosim.search.samplers import make_sampler
from dynosim.search.store import TrialStore, open_storage, storage_errors
from dynosim.search.trial import Outcome, Status, Trial
from search.analytic import evaluate
from search.problems import serving

SPACE = serving()
OBJECTIVES = [resolve(config) for config in SPACE.reference.objectives]
ENDINGS = (
    Outcome(Status.INFEASIBLE, reason="does not fit"),
    Outcome(Status.FAILED, reason="Traceback"),
    Outcome(Status.LOST, constraints={"time_to_first_token.p99": 3.0}),
    Outcome(
        Status.COMPLETE, (1.0, math.inf, -2.5e-9), {"time_to_first_token.p99": math.inf},
        deviations={"goodput": [0.25, -0.25]}, evidence="extrapolated",
    ),
)  # fmt: skip


def _contents(trial: FrozenTrial) -> list[object]:
    known = (trial.params, trial.distributions, trial.constraints, trial.system_attrs, trial.values)
    return [trial.number, trial.state, *known]


@pytest.mark.parametrize("sampler", ["random", "nsga2", "tpe"])
def test_optuna_reads_what_samplers_saw_while_running_and_after(tmp_path: Path, sampler: str) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    trial_store = TrialStore(url, "s", SPACE, OBJECTIVES, {})
    trial_store.study.sampler = make_sampler(sampler, SPACE)
    for number in range(8):
        trial = trial_store.study.ask()
        point = suggest(trial, SPACE)
        trial_store.start(trial)
        if number < 6:
            scenario = SPACE.scenario(point)
            outcome = ENDINGS[number] if number < len(ENDINGS) else evaluate(scenario)
            trial_store.tell(trial, Trial(number, point, scenario, outcome))
    seen, stored = trial_store.study.get_trials(), optuna.load_study(study_name="s", storage=url).get_trials()
    assert list(map(_contents, stored)) == list(map(_contents, seen))
    again = TrialStore(url, "s", SPACE, OBJECTIVES, {})
    assert list(map(_contents, again.study.get_trials())) == list(map(_contents, seen))
    assert [trial.number for trial in again.unfinished()] == [6, 7]
    assert [trial.outcome for trial in again.trials[:4]] == list(ENDINGS)
    assert [trial.user_attrs.get("evidence") for trial in stored[:4]] == [ending.evidence for ending in ENDINGS]


def test_a_trial_of_an_earlier_version_has_no_noise_and_no_mark(tmp_path: Path) -> None:
    trial_store = TrialStore(f"sqlite:///{tmp_path / 'study.db'}", "s", SPACE, OBJECTIVES, {})
    trial = trial_store.study.ask()
    point = suggest(trial, SPACE)
    trial_store.start(trial)
    trial_store.tell(trial, Trial(0, point, SPACE.scenario(point), ENDINGS[3]))
    with sqlite3.connect(tmp_path / "study.db") as connection:
        where = "FROM trial_user_attributes WHERE key = 'outcome'"
        stored = json.loads(connection.execute(f"SELECT value_json {where}").fetchone()[0])
        del stored["deviations"], stored["evidence"]
        connection.execute(
            "UPDATE trial_user_attributes SET value_json = ? WHERE key = 'outcome'", [json.dumps(stored)]
        )
    connection.close()
    (old,) = TrialStore(f"sqlite:///{tmp_path / 'study.db'}", "s", SPACE, OBJECTIVES, {}).trials
    assert old.outcome == replace(ENDINGS[3], deviations={}, evidence="")
    assert old.model_bands() == {}


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    with storage.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with (
            pytest.raises(StudyError, match=r"^storage: database or disk is full: .* the same command goes on$"),
            storage_errors(),
        ):
            connection.exec_driver_sql("CREATE TABLE more AS SELECT zeroblob(1000000)")
