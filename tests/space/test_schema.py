"""The JSON Schema: it is committed, it accepts what the loader accepts, and refuses what the loader refuses."""

import json
from pathlib import Path

import jsonschema
import pytest

from dynosim.config.load import dump_scenario, parse_document
from dynosim.space import SearchSpace, bundled_spaces, json_schema

COMMITTED = Path(__file__).parents[2] / "schema" / "space.schema.json"


@pytest.fixture(scope="module")
def validator():
    jsonschema.Draft202012Validator.check_schema(json_schema())
    return jsonschema.Draft202012Validator(json_schema())


def test_committed_schema_is_current():
    assert json.loads(COMMITTED.read_text()) == json_schema(), "run: dynosim config schema > schema/space.schema.json"


@pytest.mark.parametrize("name", bundled_spaces())
def test_bundled_spaces_and_their_scenarios_are_valid(validator, name):
    space = SearchSpace.load(name)
    validator.validate(parse_document(space.to_yaml()).data)
    validator.validate(parse_document(dump_scenario(space.reference)).data)


@pytest.mark.parametrize(
    "override",
    [
        "deployment.aggregated.replica=1",
        "deployment.aggregated.replicas=[1, 2]",
        "deployment.aggregated.replicas={choices: []}",
        "deployment.aggregated.replicas={choices: [a]}",
        "deployment.aggregated.replicas={range: {min: 1}}",
        "deployment.aggregated.replicas={range: {min: 1, max: 2, steps: 1}}",
        "deployment.aggregated.replicas={choices: [1], wen: {mode: aggregated}}",
        "deployment.quantization={range: {min: 1, max: 2}}",
        "slo={choices: [{}]}",
        "workload.source={path: here.jsonl}",
    ],
)
def test_schema_refuses_what_the_loader_refuses(validator, override):
    text = SearchSpace.load("tiny").to_yaml()
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(parse_document(text, overrides=[override]).data)
