"""What can be told apart, and which point stands for the others: by hand, and against simulations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynosim.metrics import summarize
from dynosim.objectives import Objective, resolve
from dynosim.search import pareto
from dynosim.search.study import Study
from dynosim.search.ties import groups, preference
from dynosim.search.trial import Outcome, Status, Trial
from dynosim.simulation import simulate
from dynosim.space import SearchSpace
from dynosim.uncertainty import model_band
from dynosim.uncertainty.sampling import BATCHES, half_width
from dynosim.workload import load_workload
from report.fake_study import OBJECTIVES, SPACE, make_study, make_trial

COST, TTFT = (objective.name for objective in OBJECTIVES[:2])
TRAFFIC = np.array([1.0, -1.0] * (BATCHES // 2))


def _trial(
    number: int, cost: float, ttft: float, *, gpus: int = 4, own: float = 0.0, shared: float = 0.0, **knobs: Any
) -> Trial:
    """A trial whose TTFT has *own* noise, and *shared* noise that every trial has alike."""
    noise = own * np.random.default_rng(number).permutation(TRAFFIC) + shared * TRAFFIC
    point = {
        "deployment.gpu": "h100_sxm",
        "deployment.mode": "aggregated",
        "deployment.aggregated.replicas": gpus // 2,
        "deployment.aggregated.tensor_parallel_size": 2,
        "deployment.aggregated.max_num_seqs": knobs.get("max_num_seqs", 64),
        "deployment.router.policy": knobs.get("policy", "round_robin"),
    }
    outcome = Outcome(Status.COMPLETE, (cost, ttft), metrics={}, deviations={TTFT: noise.tolist()}, evidence="modelled")
    return Trial(number, point, SPACE.scenario(point), outcome)


def _groups(*trials: Trial, objectives: tuple[Objective, ...] = OBJECTIVES[:2]) -> list[list[int]]:
    found = Study("s", SPACE, objectives, {}, list(trials)).groups()
    return [[trial.number for trial in group] for group in found]


@pytest.fixture(autouse=True)
def no_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_band, "BANDS", Path("none"))


def test_points_tie_within_the_noise_of_their_difference_in_every_objective() -> None:
    a, near = _trial(0, 1.001, 100.0, own=0.1), _trial(1, 1.0, 103.0, own=0.1)
    difference = np.array(a.outcome.deviations[TTFT]) - np.array(near.outcome.deviations[TTFT])
    assert 0.03 < half_width(difference) < 0.25
    assert _groups(a, near) == [[1, 0]]
    assert _groups(a, _trial(1, 1.0, 150.0, own=0.1)) == [[0, 1]], "cheaper by less than the resolution, and slower"
    assert _groups(a, _trial(1, 0.98, 150.0, own=0.1)) == [[1], [0]]
    assert _groups(a, _trial(1, 0.98, 103.0, own=0.1)) == [[1, 0]], "cheaper, and not slower by more than the noise"


def test_noise_of_the_same_traffic_ties_nothing() -> None:
    assert _groups(_trial(0, 1.0, 100.0, shared=0.3), _trial(1, 0.9, 102.0, shared=0.3)) == [[1], [0]]


def test_an_objective_without_an_interval_is_exact_up_to_its_resolution() -> None:
    a, b = (replace(t, outcome=replace(t.outcome, deviations={})) for t in (_trial(0, 1.0, 100.0), _trial(1, 0.9, 101)))
    assert _groups(a, b) == [[1, 0]]
    fine = tuple(replace(objective, resolution=0.005) for objective in OBJECTIVES[:2])
    assert _groups(a, b, objectives=fine) == [[1], [0]]


def test_a_leader_is_preferred_stands_for_what_it_covers_itself_and_is_beaten_by_no_leader() -> None:
    front = [_trial(i, 1.0 + 1e-4 * (20 - i), 100.0 * 1.04**i, gpus=8 - 2 * (i == 2), own=0.1) for i in range(20)]
    found = groups(front, [], OBJECTIVES[:2])
    assert sorted(trial.number for group in found for trial in group) == list(range(20))
    assert 1 < len(found) < 20
    assert any(group[0].number == 2 for group in found), "the fewest GPUs"
    for group in found:
        for member in group[1:]:
            assert len(groups([group[0], member], [], OBJECTIVES[:2])) == 1
        for other in found:
            assert group is other or len(groups([group[0], other[0]], [], OBJECTIVES[:2])) == 2


def test_points_that_beat_each_other_in_a_circle_have_a_leader() -> None:
    objectives = tuple(replace(objective, resolution=0.1) for objective in OBJECTIVES[:3])
    values = ((1.0, 1.18, 1.09), (1.09, 1.0, 1.18), (1.18, 1.09, 1.0))
    trials = [replace(make_trial(i), outcome=Outcome(Status.COMPLETE, of, metrics={})) for i, of in enumerate(values)]
    found = groups(trials, [], objectives)
    assert sorted(trial.number for group in found for trial in group) == [0, 1, 2]


def test_a_dominated_point_leads_where_only_noise_dominates_it() -> None:
    custom, default = _trial(0, 1.0, 100.0, max_num_seqs=64), _trial(1, 1.0, 100.1, max_num_seqs=None)
    assert _groups(custom, default) == [[1, 0]]
    assert _groups(custom, _trial(1, 1.0, 120.0, max_num_seqs=256)) == [[0]]


def test_ties_prefer_fewer_gpus_then_fewer_and_smaller_changes_of_the_defaults() -> None:
    ordered = [
        _trial(0, 1.0, 1.0, gpus=2, max_num_seqs=64, policy="kv_aware"),
        _trial(1, 1.0, 1.0, max_num_seqs=None),
        _trial(3, 1.0, 1.0, max_num_seqs=64),
        _trial(4, 1.0, 1.0, max_num_seqs=128, policy="kv_aware"),
    ]
    assert sorted(ordered, key=preference) == ordered
    assert len(set(map(preference, ordered))) == len(ordered)


def test_shared_bias_cancels_between_points_of_one_class_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bands.json"
    band = {"rows": 9, "low": 1.2, "high": 2.0, "spread": 0.03}
    file.write_text(
        json.dumps(
            {"classes": {"tables/nvidia/dense": {"gpus": ["h100_sxm"], "bands": {"time_to_first_token.p99": band}}}}
        )
    )
    monkeypatch.setattr(model_band, "BANDS", file)
    a, b, near = _trial(0, 1.0, 100.0), _trial(1, 0.9, 120.0), _trial(2, 0.9, 103.0)
    assert _groups(a, b) == [[1], [0]], "20 % apart, 3 % spread each"
    assert _groups(a, near) == [[2, 0]]
    other = replace(b, outcome=replace(b.outcome, evidence="extrapolated"))
    assert _groups(a, other) == [[1, 0]], "the bands overlap, and their biases may differ"


def test_picks_take_the_leader_of_a_tie_and_no_saturated_point() -> None:
    study = make_study(0, objectives=2)
    study.trials += [
        _trial(0, 1.0, 100.0, gpus=8, own=0.3),
        _trial(1, 1.0, 99.0, gpus=4, own=0.3),
        _trial(2, 9.0, 10.0),
    ]
    assert study.picks()["cheapest"].number == 1
    assert study.picks()["fastest"].number == 2
    worn = study.trials[2]
    study.trials[2] = replace(worn, outcome=replace(worn.outcome, metrics={"saturated": 1.0}))
    assert {trial.number for trial in study.picks().values()} == {1}
    assert [trial.number for trial in study.frontier()] == [1, 2], "it stays on the frontier"


def test_every_point_of_a_frontier_has_a_leader_and_leaders_are_told_apart() -> None:
    study = make_study()
    members = [trial.number for trial in study.recommended()]
    assert set(members) == {t.number for t in study.frontier()} | {t.number for t in study.leaders()}
    assert len(members) == len(set(members))
    again = Study("s", SPACE, study.objectives, study.slo, study.leaders())
    assert [trial.number for trial in again.leaders()] == [trial.number for trial in study.leaders()]
    assert make_trial(3).model_bands() == {}, "a trial without a mark has no band"


# ---- against simulations: a router that draws at random gives noise, a slower GPU at a lower price a difference

SERVING = SearchSpace.parse("""
schema_version: "1"
name: pairs
workload:
  source:
    type: synthetic
    requests: 1200
    input_tokens: {type: lognormal, median: 300, sigma: 0.5}
    output_tokens: {type: lognormal, median: 60, sigma: 0.5}
  load: {type: poisson, rate_rps: 30.0}
  warmup_requests: 100
deployment:
  model: llama-3.1-8b
  gpu: h100_sxm
  timing: {type: fixed, prefill_ms_per_token: 0.05, decode_ms: {choices: [10.0, 10.5]}}
  aggregated: {replicas: 4, max_num_seqs: {choices: [64, 128]}}
  router: {policy: random}
objectives:
  - {metric: usd_per_million_output_tokens}
  - {metric: time_to_first_token, stat: p99}
  - {metric: inter_token_latency, stat: p50}
""")
PAIRS = 20


@cache
def _simulated(seed: int, decode_ms: float, price: float, max_num_seqs: int) -> Trial:
    point = {
        "deployment.timing.decode_ms": decode_ms,
        "deployment.aggregated.max_num_seqs": max_num_seqs,
    }
    scenario = SERVING.scenario(point)
    prices = scenario.prices.model_copy(update={"usd_per_gpu_hour": {"h100_sxm": price}})
    result = simulate(scenario.deployment, load_workload(scenario.workload, 0), seed=seed)
    metrics = summarize(result, scenario.slo, prices)
    values = tuple(objective(metrics) for objective in _objectives())
    outcome = Outcome(Status.COMPLETE, values, metrics=metrics.to_dict(), deviations=metrics.deviations)
    return Trial(2 * seed + (decode_ms > 10.0), point, scenario, outcome)


def _objectives() -> tuple[Objective, ...]:
    return tuple(resolve(config) for config in SERVING.reference.objectives)


def _leaders(pair: Sequence[Trial]) -> int:
    return len(Study("s", SERVING, _objectives(), {}, list(pair)).groups())


def test_pairs_that_differ_by_noise_only_are_not_told_apart() -> None:
    pairs = [(_simulated(2 * i, 10.0, 2.0, 64), _simulated(2 * i + 1, 10.0, 2.0, 128)) for i in range(PAIRS)]
    values = [[trial.outcome.values for trial in pair] for pair in pairs]
    assert all(a[1] != b[1] for a, b in values if a and b), "there is noise"
    exact = [pareto.nondominated(np.array(pair)).sum() for pair in values]
    assert sum(exact) > PAIRS, "compared exactly, some would be a choice"
    assert [_leaders(pair) for pair in pairs] == [1] * PAIRS


def test_pairs_with_a_true_difference_of_five_percent_are_told_apart() -> None:
    pairs = [(_simulated(2 * i, 10.0, 2.1, 64), _simulated(2 * i + 1, 10.5, 2.0, 64)) for i in range(PAIRS)]
    assert [_leaders(pair) for pair in pairs] == [2] * PAIRS
