"""Regret on sets so small that the answer is on paper."""

from __future__ import annotations

import pytest

from dynosim.config import PriceConfig
from dynosim.fidelity.errors import LOAD_THROUGHPUT, THROUGHPUT, TPOT
from dynosim.fidelity.regret import MIN_ALTERNATIVES, SLACK, SLO_LEVELS, regret
from dynosim.fidelity.replay import Outcome
from dynosim.hardware.prices import price
from fidelity.rows import outcome

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def _row(
    name: str, measured: tuple[float, float], predicted: tuple[float, float] | None = None, **changes: object
) -> Outcome:
    """Return a row of TPOT in ms and tokens/s per GPU."""
    there, said = ({TPOT: tpot, THROUGHPUT: rate} for tpot, rate in (measured, predicted or measured))
    fields = {"model": MODEL, "gpu": "H100-SXM", "precision": name, "load": 8.0, **changes}
    return outcome(name, there, said, **fields)


CHEAP_SLOW, MIDDLE, FAST_DEAR = (40.0, 400.0), (20.0, 200.0), (10.0, 100.0)
EXACT = [_row("a", CHEAP_SLOW), _row("b", MIDDLE), _row("c", FAST_DEAR)]


def test_exact_predictions_cost_nothing() -> None:
    found = regret(EXACT)
    assert [d.bound_ms for d in found.decisions] == pytest.approx([200**0.5, 800**0.5]), "between what was measured"
    assert (found.broken_share, found.cost_regret(1.0)) == (0.0, 0.0)
    assert found.pairs["same vendor"][TPOT].share == found.pairs["same vendor"][LOAD_THROUGHPUT].share == 1.0


def test_a_metric_without_a_prediction_is_never_met_nor_ranked() -> None:
    there = {TPOT: 40.0, THROUGHPUT: 400.0}
    bare = outcome("a", there, {THROUGHPUT: 400.0}, model=MODEL, gpu="H100-SXM", precision="a", load=8.0)
    found = regret([bare, *EXACT[1:]])
    assert found.broken_share == 0.0
    assert found.pairs["same vendor"][TPOT].pairs == 1


def test_a_pick_that_is_slower_than_predicted_breaks_its_slo() -> None:
    found = regret([_row("a", CHEAP_SLOW, (9.0, 400.0)), *EXACT[1:]])
    assert [d.overshoot for d in found.decisions] == pytest.approx([40 / 200**0.5 - 1, 40 / 800**0.5 - 1])
    assert (found.broken_share, found.cost_regret(0.5)) == (1.0, None)


def test_a_pick_that_is_dearer_than_another_that_keeps_the_slo_is_regretted() -> None:
    """The middle one is predicted to miss 28 ms, so the dear one is taken: half the tokens per USD."""
    found = regret([EXACT[0], _row("b", MIDDLE, (35.0, 200.0)), EXACT[2]])
    assert [d.cost_regret for d in found.decisions] == pytest.approx([0.0, 1.0])
    assert found.cost_regret(0.5) == pytest.approx(0.5)


@pytest.mark.parametrize(("tpot_ms", "broken"), [(15.0 * (1 + 0.9 * SLACK), False), (15.0 * (1 + 1.1 * SLACK), True)])
def test_a_pick_within_the_slack_keeps_its_slo(tpot_ms: float, broken: bool) -> None:
    rows = [_row("a", (tpot_ms, 400.0), (14.0, 400.0)), *(_row(name, (15.0, 200.0)) for name in "bcd")]
    assert {d.bound_ms: d.broken for d in regret(rows).decisions}[15.0] == broken


def test_what_has_no_prediction_is_not_offered_but_may_be_the_best() -> None:
    lost = _row("b", MIDDLE, problem="does not fit")
    found = regret([EXACT[0], lost, EXACT[2]])
    assert [(d.alternatives, d.not_offered) for d in found.decisions] == [(3, 1)] * 2
    assert [d.cost_regret for d in found.decisions] == pytest.approx([0.0, 1.0])
    nothing = regret([_row(name, MIDDLE, problem="does not fit") for name in "abc"])
    assert (len(nothing.decisions), nothing.picks, nothing.broken_share) == (1, [], None)


def test_prices_decide_across_vendors() -> None:
    """An hour of an MI300X costs less than one of an H100: at equal throughput it is the cheaper choice."""
    h100, mi300x = (price(gpu, PriceConfig()).usd_per_gpu_hour for gpu in ("h100_sxm", "mi300x"))
    rows = [_row("a", (10.0, 100.0)), _row("b", (10.0, 100.0), gpu="MI300X"), _row("c", (10.0, 100.0), (9.0, 110.0))]
    (decision,) = regret(rows).decisions
    assert decision.cost_regret == pytest.approx(0.0), "110 tokens/s of an H100 still cost more"
    (decision,) = regret([*rows[:2], _row("c", (10.0, 100.0), (9.0, 150.0))]).decisions
    assert decision.cost_regret == pytest.approx(h100 / mi300x - 1.0)


def test_decisions_need_alternatives_of_one_task() -> None:
    assert not regret(EXACT[: MIN_ALTERNATIVES - 1]).decisions
    assert not regret([*EXACT[:2], _row("c", FAST_DEAR, isl=999.0)]).decisions
    assert not regret([*EXACT[:2], _row("c", FAST_DEAR, notes="QUALITY: odd")]).decisions
    assert 0 < len(regret(EXACT).decisions) <= len(SLO_LEVELS)


def test_pairs_are_of_two_settings_at_one_load_that_differ() -> None:
    swapped = _row("b", MIDDLE, (50.0, 500.0))
    pairs = regret([EXACT[0], swapped, _row("c", FAST_DEAR, load=9.0)]).pairs["same vendor"]
    assert (pairs[TPOT].right, pairs[TPOT].pairs) == (0, 1)
    again = outcome("again", EXACT[0].measurement.measured, model=MODEL, gpu="H100-SXM", precision="a", load=8.0)
    assert regret([EXACT[0], again]).pairs["same vendor"][TPOT].pairs == 0, "one setting, measured twice"
    alike = _row("b", (40.0 * (1 + 0.9 * SLACK), 400.0))
    assert regret([EXACT[0], alike]).pairs["same vendor"][TPOT].pairs == 0
    across = regret([EXACT[0], _row("b", MIDDLE, (50.0, 100.0), gpu="MI300X")]).pairs["across vendors"]
    assert (across[TPOT].share, across[LOAD_THROUGHPUT].share) == (0.0, 1.0)
