"""The coverage table: every knob has a row and a test that exists, and what is not modelled cannot be searched."""

import ast
import re
from pathlib import Path

import pytest

from dynosim.config import DeploymentConfig, WorkloadConfig
from dynosim.config.unmodelled import RENAMED, UNMODELLED, foreign
from dynosim.errors import ConfigError
from dynosim.space import SearchSpace, coverage
from dynosim.space.coverage import Knob, State, leaves, sections
from simulation.test_knobs import EFFECTS

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "simulator.md").read_text(encoding="utf-8")
MODELS = {**sections(DeploymentConfig, "deployment"), **sections(WorkloadConfig, "workload")}
FIELDS = {f"{model.__name__}.{name}" for model in MODELS for name in leaves(model)}

FILE = """
name: test
workload:
  source: {type: synthetic, input_tokens: {type: fixed, tokens: 10}, output_tokens: {type: fixed, tokens: 3}}
  load: {type: poisson, rate_rps: 1}
deployment:
  model: llama-3.1-8b
  gpu: h100_sxm
  timing: {type: fixed}
  aggregated: {}
"""


def test_every_field_of_a_deployment_and_a_workload_has_a_row_and_no_other():
    assert set(coverage.coverage()) == FIELDS


@pytest.mark.parametrize("name", sorted(coverage.coverage()))
def test_the_test_of_every_row_exists(name):
    knob = coverage.coverage()[name]
    file, _, test = knob.test.partition("::")
    function, _, parameter = test.partition("[")
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    if knob.test.startswith(coverage.EFFECT):
        assert parameter.rstrip("]") in EFFECTS
    assert knob.changes


def test_the_page_has_the_table_as_it_is_now():
    (written,) = re.findall(r"<!-- dynosim config coverage -->\n(.*)<!-- end -->", PAGE, re.DOTALL)
    assert written.strip() == coverage.markdown().strip(), "paste what `dynosim config coverage` prints"


def test_a_knob_that_is_not_modelled_cannot_be_searched(monkeypatch):
    table = coverage.coverage() | {"PoolConfig.block_size": Knob(State.NOT_MODELLED, "paging", "")}
    monkeypatch.setattr(coverage, "coverage", lambda: table)
    SearchSpace.parse(FILE, ["deployment.aggregated.block_size=32"])
    with pytest.raises(ConfigError, match=r"block_size: not modelled \(paging\): it cannot be searched") as error:
        SearchSpace.parse(FILE, ["deployment.aggregated.block_size={choices: [16, 32]}"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["5", "{choices: [1, 2]}", "{range: {min: 1, max: 4}}"])
@pytest.mark.parametrize(("name", "says"), [("max_loras", "not modelled"), ("page_size", "is called block_size here")])
def test_settings_of_real_servers_are_named_as_such(name, says, value):
    with pytest.raises(ConfigError, match=says) as error:
        SearchSpace.parse(FILE, [f"deployment.aggregated.{name}={value}"])
    assert "\n" not in str(error.value)


def test_real_settings_without_a_field_are_no_fields_and_renamed_ones_lead_to_one():
    names = {name.rpartition(".")[2] for name in FIELDS}
    assert not names & {*UNMODELLED, *RENAMED}
    assert {there.rpartition(".")[2] for there in RENAMED.values()} <= names | {"speculative"}
    assert foreign("replicas") is None
