"""How many drafts are accepted: the configuration's word, the table's figures, and nothing where neither says."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dynosim.config import DeploymentConfig, EngineConfig, PoolConfig, SpeculativeConfig
from dynosim.errors import InfeasibleError
from dynosim.hardware.acceptance import TABLE, acceptance_rates, draft_cost
from dynosim.hardware.models import MODELS, get_model
from dynosim.hardware.plan import PoolPlan
from dynosim.hardware.startup import check


def _plan(model="deepseek-v3", **speculative):
    engine = EngineConfig(speculative=SpeculativeConfig(**speculative))
    return PoolPlan.of(DeploymentConfig(model=model, gpu="h200_sxm", engine=engine, aggregated=PoolConfig()), "mixed")


@given(drafts=st.integers(1, 16), share=st.floats(0.0, 1.0))
def test_a_length_that_is_given_is_the_mean_of_a_pass(drafts, share):
    length = 1.0 + share * drafts
    assert _plan(num_speculative_tokens=drafts, acceptance_length=length).tokens_per_pass == pytest.approx(length)


def test_rates_that_are_given_are_used_and_the_last_holds_for_all_further():
    plan = _plan(num_speculative_tokens=3, acceptance_rates=(0.8, 0.5))
    assert plan.acceptance_rates == (0.8, 0.5)
    assert plan.tokens_per_pass == pytest.approx(1 + 0.8 + 0.8 * 0.5 + 0.8 * 0.5 * 0.5)


def test_every_row_of_the_table_is_possible_and_has_a_source():
    with TABLE.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["model"] for row in rows} & set(MODELS)
    for row in rows:
        assert 1.0 <= float(row["acceptance_length"]) <= 1 + int(row["num_speculative_tokens"])
        assert row["condition"]
        assert row["source"]


@pytest.mark.parametrize(("model", "method", "drafts"), [("deepseek-v3", "mtp", 2), ("kimi-k2.5", "eagle3", 4)])
def test_what_is_not_said_is_what_was_measured_first_of_the_model(model, method, drafts):
    with TABLE.open(encoding="utf-8") as lines:
        wanted = (model, method, str(drafts))
        row = next(row for row in csv.DictReader(lines) if tuple(row.values())[:3] == wanted)
    plan = _plan(model, method=method, num_speculative_tokens=drafts)
    assert plan.tokens_per_pass == pytest.approx(float(row["acceptance_length"]))


def test_what_nobody_measured_is_refused_with_what_is_known():
    known = "known: 1 by mtp, 2 by mtp, 3 by mtp, 7 by mtp"
    with pytest.raises(InfeasibleError, match=f"5 drafts by mtp deepseek-v3 accepts was not measured .{known}.: set"):
        acceptance_rates(SpeculativeConfig(num_speculative_tokens=5), get_model("deepseek-v3"))
    with pytest.raises(InfeasibleError, match=r"^deployment.engine.speculative: .*known: none"):
        check(_plan("llama-3.1-8b", method="eagle3", num_speculative_tokens=2).deployment)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"acceptance_length": 3.5}, r"acceptance_length \(3.5\) must be at most 1 \+ num_speculative_tokens \(3\)"),
        ({"acceptance_length": 1.5, "acceptance_rates": (0.5,)}, "say the same: give one of them"),
    ],
)
def test_acceptance_is_said_once_and_possible(given, message):
    with pytest.raises(ValidationError, match=message):
        SpeculativeConfig(num_speculative_tokens=2, **given)


def test_a_draft_costs_what_its_layers_cost():
    card = get_model("deepseek-v3")
    costs = {
        method: draft_cost(SpeculativeConfig(method=method, num_speculative_tokens=4), card)
        for method in ("mtp", "eagle3", "dspark", "ngram")
    }
    assert costs == {"mtp": 1 / 61, "eagle3": 1 / 61, "dspark": 1 / 61 / 4, "ngram": 0.0}
    assert draft_cost(SpeculativeConfig(num_speculative_tokens=1, draft_cost=0.3), card) == 0.3
    with pytest.raises(InfeasibleError, match="set draft_cost: it depends on the draft model"):
        draft_cost(SpeculativeConfig(method="draft_model", num_speculative_tokens=1), card)
