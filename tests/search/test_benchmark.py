"""What the benchmark of the search rests on: its account of a run, its driver, its test problems."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from dynosim.config import Scenario
from dynosim.metrics import bounds_of
from dynosim.search import pareto
from dynosim.search.distributions import key
from dynosim.search.loop import run_study
from dynosim.search.trial import Outcome, Status
from dynosim.space import SearchSpace
from search.analytic import evaluate
from search.problems import serving

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import drive
import model_peers
import peers
import results
import standard
import truth

sys.path.pop()  # its search.py would hide the package of these tests

TRIALS = 14


def problem(space: SearchSpace) -> truth.Simulated:
    """Return a space with the closed-form stand-in for the simulator."""
    return truth.Simulated(space, evaluate)


@pytest.mark.parametrize("method", ["bayes", "sobol", "nsga2-10", "tpe-flat-ordinal"])
@pytest.mark.parametrize("in_flight", [1, 5])
def test_trials_are_new_and_valid_and_the_baseline_is_first(method: str, in_flight: int) -> None:
    space = serving()
    driver = drive.Driver(problem(space), peers.METHODS[method].make(space, 0), in_flight)
    driver.run(TRIALS)
    assert driver.points[0] == space.baseline_point()
    assert len({key(point) for point in driver.points}) == TRIALS == len(driver.cpu_s) <= driver.proposals
    assert all(space.infeasible_reason(point) is None for point in driver.points)


def test_our_sampler_makes_the_same_trials_as_in_a_study() -> None:
    space = serving()
    driver = drive.Driver(problem(space), peers.METHODS["bayes"].make(space, 3), in_flight=4)
    driver.run(TRIALS)
    study = run_study(space, trials=TRIALS, seed=3, in_flight=4, evaluate=evaluate)
    assert [key(point) for point in driver.points] == [key(trial.point) for trial in study.trials]


def stopping(scenario: Scenario) -> Outcome:
    """Return what a scenario gives, with a bound on one SLO where a study ends the run early."""
    whole = evaluate(scenario)
    if whole.feasible or not scenario.optimizer.stop_lost_runs:
        return whole
    return Outcome(Status.LOST, constraints={max(whole.constraints, key=whole.constraints.__getitem__): 0.5})


@pytest.mark.parametrize("method", ["bayes", "sobol", "tpe"])
def test_only_our_sampler_is_told_bounds_of_lost_runs(method: str) -> None:
    space = serving()
    driver = drive.Driver(truth.Simulated(space, stopping), peers.METHODS[method].make(space, 0))
    driver.run(TRIALS)
    lost = [outcome.status is Status.LOST for outcome in driver.outcomes]
    assert any(lost) if method == "bayes" else not any(lost)
    assert driver.outcomes[0].status is Status.COMPLETE, "the baseline runs to its end"


def test_a_peer_of_optuna_is_told_what_a_study_tells_it() -> None:
    space = serving()
    peer = peers.METHODS["bayes"].make(space, 0)
    assert isinstance(peer, peers.OptunaPeer)
    bounds = {"time_to_first_token.p99": 2.0}
    for outcome in (None, Outcome(Status.INFEASIBLE), Outcome(Status.LOST, constraints=bounds)):
        peer.tell(peer.ask(), outcome)
    names = [bound.name for bound in bounds_of(space.reference.slo)]
    violated = dict.fromkeys(names, 1.0)
    assert [trial.constraints for trial in peer.study.get_trials()] == [violated, violated, bounds]


def test_a_coarse_grid_ends() -> None:
    space = SearchSpace.load("tiny")
    driver = drive.Driver(problem(space), peers.grid(2)(space, 0))
    driver.run(10_000)
    assert 1 < len(driver.points) < space.size()


def test_the_kept_front_gives_the_hypervolume_after_every_trial() -> None:
    rng = np.random.default_rng(0)
    losses, reference = rng.random((60, 3)), np.full(3, 0.9)
    losses[rng.random(60) < 0.3] = np.nan
    run = results.Run("p", "m", 0, 1, results.front_steps(losses), [0.1] * 60, 60)
    known = [losses[: n + 1][~np.isnan(losses[: n + 1, 0])] for n in range(60)]
    assert run.hypervolume(reference) == pytest.approx([pareto.hypervolume(k, reference) for k in known], rel=1e-5)


def test_truth_is_kept_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = serving()
    points = [space.sample(np.random.default_rng(i)) for i in range(20)]
    simulated = problem(space)
    path = tmp_path / "truth.jsonl"
    path.write_text("".join(truth.to_line(point, truth.both_ends(simulated, point)) for point in points))
    for (name, ends), point in zip(truth.read(path, space), points, strict=True):
        expected = truth.both_ends(simulated, point)
        assert name == key(point)
        assert truth._facts(ends) == truth._facts(expected)


@pytest.mark.parametrize("same", [True, False])
def test_truth_of_another_engine_holds_where_a_sample_is_the_same(
    same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = serving()
    points = [space.sample(np.random.default_rng(i)) for i in range(20)]
    simulated = problem(space)
    monkeypatch.setattr(truth, "Simulated", lambda _: simulated)
    old, new = (tmp_path / f"{space.name}-{space.content_hash()}-{engine}.jsonl" for engine in ("old", "new"))
    lines = [truth.to_line(point, truth.both_ends(simulated, point)) for point in points]
    old.write_text("".join(line if same else line.replace('"values": [', '"values": [1') for line in lines))
    truth._take_over(new, space)
    assert new.exists() == same


@pytest.mark.parametrize("name", ["zdt1", "dtlz2", "c2dtlz2", "wfg4"])
def test_standard_problems_have_the_fronts_of_their_papers(name: str) -> None:
    p = standard.problems()[name]
    rng = np.random.default_rng(0)
    position = 2 if name == "dtlz2" else 1
    for x in rng.random((50, 6)):
        on_front = np.append(x[:position], np.full(6 - position, p.optimum))
        front, behind = p.losses(on_front), p.losses(x)
        distance = {
            "zdt1": lambda f: f[1] - 1.0 + math.sqrt(f[0]),
            "wfg4": lambda f: (f[0] / 2.0) ** 2 + (f[1] / 4.0) ** 2 - 1.0,
        }.get(name, lambda f: np.square(f).sum() - 1.0)
        assert distance(front) == pytest.approx(0.0, abs=1e-9)
        assert distance(behind) > 0.0


def test_standard_problems_agree_with_botorch() -> None:
    from botorch.test_functions import DTLZ2, ZDT1

    from dynosim.search.samplers.botorch_api import torch

    x = np.random.default_rng(0).random((20, 6))
    for ours, theirs in ((standard.zdt1, ZDT1(6)), (standard.dtlz2(3), DTLZ2(6, 3)), (standard.dtlz2(2), DTLZ2(6, 2))):
        assert np.array([ours(row) for row in x]) == pytest.approx(theirs(torch.as_tensor(x)).numpy())


def test_what_cannot_run_is_as_bad_as_the_worst_to_peers_that_need_values() -> None:
    space = serving()
    record, simulated = model_peers.Record(space), problem(space)
    outcomes = [simulated(space.sample(np.random.default_rng(i))) for i in range(20)]
    rows = [record.row(outcome) for outcome in outcomes if outcome is not None]
    losses, violations = record.row(None)
    assert losses == pytest.approx(np.max([row for row, _ in rows], axis=0))
    assert (violations > 0.0).all()
    assert {len(row) for _, row in rows} == {len(violations)}


@pytest.mark.parametrize("path", sorted(truth.SPACES.glob("*.yaml")), ids=lambda path: path.stem)
def test_reduced_spaces_are_small_and_start_from_a_deployment_that_fits(path: Path) -> None:
    space = SearchSpace.load(path)
    baseline = space.baseline_point()
    assert space.size() <= 50_000
    assert baseline is None or space.infeasible_reason(baseline) is None
