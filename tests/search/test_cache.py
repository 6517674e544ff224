"""Results of earlier runs: equal to simulating again, used only where nothing that decides them differs."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from dynosim.config import Scenario
from dynosim.search import cache, evaluate
from dynosim.search.cache import result_key
from dynosim.search.trial import Outcome, Status
from dynosim.workload import load_workload
from search.problems import small


def _scenario(*overrides: str, replicas: int = 2) -> Scenario:
    return small(*overrides).scenario(
        {"deployment.aggregated.replicas": replicas, "deployment.aggregated.tensor_parallel_size": 1}
    )


def _key(*overrides: str, replicas: int = 2, stopped: bool = True) -> str | None:
    scenario = _scenario(*overrides, replicas=replicas)
    return result_key(scenario, load_workload(scenario.workload, scenario.seed), stopped=stopped)


def _told(outcome: Outcome) -> Outcome:
    return replace(outcome, wall_s=0.0, cached=False)


@pytest.fixture
def no_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("simulated again")

    monkeypatch.setattr(evaluate, "simulate", refuse)


@pytest.mark.parametrize("override", ["name=other", "deployment.aggregated.gpu_memory_utilization=0.01"])
def test_an_earlier_result_equals_a_new_one(tmp_path: Path, override: str, request: pytest.FixtureRequest) -> None:
    scenario, results = _scenario(override), tmp_path / "results.db"
    plain, first = evaluate.evaluate(scenario), evaluate.evaluate(scenario, results)
    request.getfixturevalue("no_simulation")
    again = evaluate.evaluate(scenario, results)
    assert (first.cached, again.cached) == (False, True)
    assert _told(again) == _told(first) == _told(plain)


def test_other_objectives_use_the_same_result(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    results = tmp_path / "results.db"
    evaluate.evaluate(_scenario(), results)
    request.getfixturevalue("no_simulation")
    outcome = evaluate.evaluate(_scenario("objectives=[{metric: gpus}]"), results)
    assert outcome.cached
    assert outcome.values == (2.0,)


def test_the_key_changes_with_everything_that_decides_and_with_nothing_else() -> None:
    same = [_key(), _key("name=x"), _key("objectives=[{metric: gpus}]"), _key("optimizer.seed=4"), _key("budget={}")]
    assert len(set(same)) == 1
    others = [
        _key(replicas=3),
        _key("seed=1"),
        _key("workload.load.rate_rps=2"),
        _key("slo.time_to_first_token.p99=5"),
        _key("prices.usd_per_gpu_hour={h100_sxm: 9}"),
        _key("deployment.engine.name=sglang"),
        _key(stopped=False),
    ]
    assert len({*same, *others}) == 1 + len(others)


def test_another_simulator_has_other_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = _key()
    monkeypatch.setenv("DYNOSIM_TIMING_PACKS", str(tmp_path))
    (tmp_path / "pack.json").write_text("{}")
    cache.simulator_version.cache_clear()
    with_pack = _key()
    (tmp_path / "pack.json").write_text("[]")
    cache.simulator_version.cache_clear()
    with_other_pack = _key()
    cache.simulator_version.cache_clear()
    assert len({before, with_pack, with_other_pack}) == 3


def test_the_users_own_code_is_not_reused() -> None:
    assert _key("deployment.router.policy=dynosim.policies.routing.random:Random") is None


def test_a_failure_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results.db"
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "simulate", lambda *_, **__: 1 / 0)
        assert evaluate.evaluate(_scenario(), results).status is Status.FAILED
    assert evaluate.evaluate(_scenario(), results).status is Status.COMPLETE


def test_a_lost_result_answers_only_those_who_may_stop(tmp_path: Path) -> None:
    results, lost = tmp_path / "results.db", Outcome(Status.LOST, constraints={"time_to_first_token.p99": 2.0})
    scenario = _scenario("slo.time_to_first_token.p99=0.001")
    key = result_key(scenario, load_workload(scenario.workload, scenario.seed), stopped=True)
    cache.save(results, [key or ""], lost)
    assert _told(evaluate.evaluate(scenario, results)) == lost
    whole = evaluate.evaluate(_scenario("slo.time_to_first_token.p99=0.001", "optimizer.stop_lost_runs=false"), results)
    assert whole.status is Status.COMPLETE


def test_a_damaged_or_missing_file_is_never_in_the_way(tmp_path: Path) -> None:
    damaged = tmp_path / "results.db"
    damaged.write_bytes(b"no database" * 1000)
    for results in (damaged, tmp_path / "no" / "such" / "folder.db"):
        assert evaluate.evaluate(_scenario(), results).status is Status.COMPLETE
    half = tmp_path / "half.db"
    evaluate.evaluate(_scenario(), half)
    with sqlite3.connect(half) as connection:
        connection.execute("UPDATE results SET result = x'00'")
    assert not evaluate.evaluate(_scenario(), half).cached
    assert evaluate.evaluate(_scenario(), half).cached


def test_many_writers_and_readers_share_one_file(tmp_path: Path) -> None:
    results = tmp_path / "results.db"
    outcomes = {f"{i}": Outcome(Status.COMPLETE, metrics={"gpus": i / 3}) for i in range(60)}
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda item: cache.save(results, [item[0]], item[1]), outcomes.items()))
        loaded = list(pool.map(lambda key: cache.load(results, key), outcomes))
    assert [_told(outcome) for outcome in loaded if outcome] == list(outcomes.values())
