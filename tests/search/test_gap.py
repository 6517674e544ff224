"""The estimate of what is still missing: against brute force, at its limits, and as a reason to stop."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dynosim.config import Scenario
from dynosim.search.loop import GAP_EVERY, run_study
from dynosim.search.priors import Prior
from dynosim.search.samplers import gap
from dynosim.search.samplers.base import Gap
from dynosim.search.samplers.encoding import View
from dynosim.search.samplers.model import Hyperparameters
from dynosim.search.samplers.surrogate import Output, Posterior, modelled
from dynosim.search.study import Study
from dynosim.search.trial import Outcome
from search.analytic import evaluate
from search.problems import serving, small

Array = NDArray[np.float64]

KNOWN = np.array([[0.0], [0.3], [0.7], [1.0]])
LOSSES = np.array([[0.0, 1.0], [0.4, 0.5], [0.5, 0.6], [1.0, 0.0]])
REFERENCE = np.array([1.2, 1.2])
HYPERPARAMETERS = Hyperparameters(np.array([0.2]), 1e-4)


def output(name: str, y: Array) -> Output:
    return Output(name, KNOWN, np.zeros(4), y, np.zeros(4), HYPERPARAMETERS)


def posterior(*constraints: Output) -> Posterior:
    """Return what is believed of two losses along a line, after four trials."""
    objectives = [output(f"objective {j}", LOSSES[:, j]) for j in range(2)]
    model = modelled([*objectives, *constraints])
    limits = np.full(2, np.nan)
    return Posterior(objectives, list(constraints), model, limits, LOSSES[[0, 1, 3]], REFERENCE, KNOWN)


def view(x: Array) -> View:
    return View(x[:, None], Prior((), {}), np.ones(len(x), dtype=bool))


def test_joint_draws_have_the_posterior_covariance() -> None:
    x, train, told = np.linspace(0.05, 0.95, 5), KNOWN[:, 0], posterior()
    kernel = lambda a, b: np.exp(-0.5 * ((a[:, None] - b) / 0.2) ** 2)  # noqa: E731
    inverse = np.linalg.inv(kernel(train, train) + 1e-4 * np.eye(4))
    covariance = LOSSES[:, 0].var(ddof=1) * (kernel(x, x) - kernel(x, train) @ inverse @ kernel(train, x))
    drawn = told.draws(view(x), 40_000, np.random.default_rng(0))[:, :, 0]
    np.testing.assert_allclose(drawn.mean(axis=0), told.predict(view(x))[0][:, 0], atol=0.01)
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.01)


def area(points: Array) -> float:
    """Return the area that losses dominate, swept from left to right."""
    total, ceiling = 0.0, REFERENCE[1]
    for x, y in points[np.argsort(points[:, 0])]:
        if x < REFERENCE[0] and y < ceiling:
            total, ceiling = total + (REFERENCE[0] - x) * (ceiling - y), y
    return float(total)


def test_equals_brute_force_on_a_tiny_space(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.array([0.15, 0.2, 0.5, 0.85])
    told = posterior(output("slo", np.array([-1.0, 1.0, 2.0, -1.0])))
    gaps = []
    for drawn in told.draws(view(x), 1_000, np.random.default_rng(1)):
        losses, feasible = drawn[:, :2], drawn[:, 2] <= 0.0
        gaps.append(1.0 - area(told.front) / area(np.vstack([told.front, losses[feasible]])))
    monkeypatch.setattr(gap, "DRAWS", 1_000)
    found = gap.estimate([told], view(x), np.random.default_rng(2))
    expected = Gap(np.mean(gaps), *np.quantile(gaps, [0.1, 0.9]))
    assert found.expected == pytest.approx(expected.expected, rel=0.15)
    assert found.low == pytest.approx(expected.low, abs=0.01)
    assert found.high == pytest.approx(expected.high, rel=0.15)


def test_nothing_is_missing_where_nothing_is_uncertain() -> None:
    tried = gap.estimate([posterior()], view(KNOWN[:, 0]), np.random.default_rng(0))
    between = gap.estimate([posterior()], view(np.array([0.15, 0.85])), np.random.default_rng(0))
    assert tried.high < 0.03 < between.high


def test_what_cannot_be_is_not_missing() -> None:
    impossible = View(np.array([[0.15], [0.85]]), Prior((), {}), np.zeros(2, dtype=bool))
    assert gap.estimate([posterior()], impossible, np.random.default_rng(0)) == Gap(0.0, 0.0, 0.0)


def _after(trials: int) -> Gap:
    study = run_study(serving(), trials=trials, seed=1, evaluate=evaluate)
    assert study.gap is not None
    return study.gap


def test_the_gap_shrinks_and_is_repeatable() -> None:
    early, late = _after(12), _after(35)
    assert 0.0 <= late.low <= late.expected <= late.high < early.high <= 1.0
    assert _after(12) == early


def test_nothing_is_missing_once_everything_was_tried() -> None:
    some, all_of_it = (run_study(small(), trials=trials, evaluate=evaluate) for trials in (8, 15))
    assert some.gap is not None
    assert some.gap.high > 0.0
    assert all_of_it.gap == Gap(0.0, 0.0, 0.0)


def test_samplers_without_models_say_nothing() -> None:
    assert run_study(small(), trials=5, sampler="random", evaluate=evaluate).gap is None


def _numbers(study: Study) -> list[object]:
    return [(trial.number, dict(trial.point)) for trial in study.trials]


@pytest.mark.parametrize("interrupted_after", [4, 15])
def test_a_study_stops_at_the_gap_and_a_resumed_one_with_the_same_trials(
    tmp_path: Path, interrupted_after: int
) -> None:
    space, url = serving("optimizer.stop_at_gap=0.5"), f"sqlite:///{tmp_path / 'study.db'}"
    whole = run_study(space, trials=80, evaluate=evaluate)
    assert whole.gap is not None
    assert whole.gap.high < 0.5
    assert len(whole.trials) < 80
    assert len(whole.trials) % GAP_EVERY == whole.in_flight - 1, "what was in flight at the look is told too"
    left = [interrupted_after]

    def interrupted(scenario: Scenario) -> Outcome:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return evaluate(scenario)

    with suppress(KeyboardInterrupt):
        run_study(space, trials=80, storage=url, evaluate=interrupted)
    for _ in range(2):
        assert _numbers(run_study(space, trials=80, storage=url, evaluate=evaluate)) == _numbers(whole)
