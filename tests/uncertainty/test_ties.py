"""Tie groups on frontiers made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dynosim.search.ties import preference, tie_groups
from dynosim.search.trial import Outcome, Status, Trial
from dynosim.uncertainty import model_band
from dynosim.uncertainty.sampling import BATCHES, half_width
from report.fake_study import SPACE, make_study, make_trial

COST, TTFT = "usd_per_million_output_tokens", "time_to_first_token.p99"
NAMES = (COST, TTFT)
TRAFFIC = np.array([1.0, -1.0] * (BATCHES // 2))


def _trial(number: int, cost: float, ttft: float, *, gpus: int = 4, own: float = 0.0, shared: float = 0.0) -> Trial:
    """A trial whose TTFT has *own* noise, and *shared* noise that every trial has alike."""
    noise = own * np.random.default_rng(number).permutation(TRAFFIC) + shared * TRAFFIC
    point = {
        "deployment.gpu": "h100_sxm",
        "deployment.mode": "aggregated",
        "deployment.aggregated.replicas": gpus // 2,
        "deployment.aggregated.tensor_parallel_size": 2,
        "deployment.aggregated.max_num_seqs": 64,
        "deployment.router.policy": "round_robin",
    }
    outcome = Outcome(Status.COMPLETE, (cost, ttft), metrics={}, deviations={TTFT: noise.tolist()}, evidence="modelled")
    return Trial(number, point, SPACE.scenario(point), outcome)


def _numbers(groups: Sequence[Sequence[Trial]]) -> list[list[int]]:
    return [[trial.number for trial in group] for group in groups]


@pytest.fixture(autouse=True)
def no_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_band, "BANDS", Path("none"))


def test_points_tie_within_the_noise_of_their_difference_in_every_objective() -> None:
    a, near = _trial(0, 1.0, 100.0, own=0.1), _trial(1, 1.0, 103.0, own=0.1)
    difference = np.array(a.outcome.deviations[TTFT]) - np.array(near.outcome.deviations[TTFT])
    assert 0.03 < half_width(difference) < 0.25
    assert _numbers(tie_groups([a, near], NAMES)) == [[0, 1]]
    assert _numbers(tie_groups([a, _trial(1, 1.0, 130.0, own=0.1)], NAMES)) == [[0], [1]]
    assert _numbers(tie_groups([a, _trial(1, 1.01, 103.0, own=0.1)], NAMES)) == [[0], [1]], "the cost differs"


def test_noise_of_the_same_traffic_ties_nothing() -> None:
    front = [_trial(0, 1.0, 100.0, shared=0.3), _trial(1, 1.0, 101.0, shared=0.3)]
    assert _numbers(tie_groups(front, NAMES)) == [[0], [1]]


def test_what_has_no_interval_counts_as_exact() -> None:
    a, b = (
        replace(t, outcome=replace(t.outcome, deviations={})) for t in (_trial(0, 1.0, 100.0), _trial(1, 1.0, 100.1))
    )
    assert _numbers(tie_groups([a, b], NAMES)) == [[0], [1]]
    same = replace(b, outcome=replace(b.outcome, values=a.outcome.values))
    assert _numbers(tie_groups([a, same], NAMES)) == [[0, 1]]


def test_the_leader_has_the_fewest_gpus_and_ties_with_all_of_its_group() -> None:
    front = [_trial(i, 1.0, 100.0 * 1.04**i, gpus=8 - 2 * (i == 2), own=0.1) for i in range(5)]
    groups = tie_groups(front, NAMES)
    assert sorted(trial.number for group in groups for trial in group) == [0, 1, 2, 3, 4]
    together = next(group for group in groups if len(group) > 1)
    assert together[0].number == 2
    for member in together[1:]:
        assert preference(together[0]) < preference(member)
        assert len(tie_groups([together[0], member], NAMES)) == 1


def test_shared_bias_cancels_between_points_of_one_class_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bands.json"
    band = {"rows": 9, "low": 1.2, "high": 2.0, "spread": 0.01}
    file.write_text(
        json.dumps({"classes": {"tables/dense": {"gpus": ["h100_sxm"], "bands": {"time_to_first_token": band}}}})
    )
    monkeypatch.setattr(model_band, "BANDS", file)
    a, b, near = _trial(0, 1.0, 100.0), _trial(1, 1.0, 120.0), _trial(2, 1.0, 101.0)
    assert _numbers(tie_groups([a, b], NAMES)) == [[0], [1]], "20 % apart, 1 % spread each"
    assert _numbers(tie_groups([a, near], NAMES)) == [[0, 2]]
    other = replace(b, outcome=replace(b.outcome, evidence="extrapolated"))
    assert _numbers(tie_groups([a, other], NAMES)) == [[0, 1]], "the bands overlap, and their biases may differ"


def test_picks_take_the_leader_of_a_tie_and_no_saturated_point() -> None:
    study = make_study(0, objectives=2)
    study.trials += [
        _trial(0, 1.0, 100.0, gpus=8, own=0.3),
        _trial(1, 1.0, 99.0, gpus=4, own=0.3),
        _trial(2, 9.0, 10.0),
    ]
    assert study.picks()["cheapest"].number == 1
    worn = study.trials[2]
    study.trials[2] = replace(worn, outcome=replace(worn.outcome, metrics={"saturated": 1.0}))
    assert {trial.number for trial in study.picks().values()} == {1}
    assert [trial.number for trial in study.frontier()] == [1, 2], "it stays on the frontier"


def test_groups_of_a_whole_study_are_its_frontier() -> None:
    study = make_study()
    members = [trial.number for group in study.tie_groups() for trial in group]
    assert sorted(members) == sorted(trial.number for trial in study.frontier())
    assert make_trial(3).model_bands() == {}, "a trial without a mark has no band"
