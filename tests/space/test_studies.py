"""The YAML studies load, and their first point can be deployed."""

from pathlib import Path

import pytest

from dynosim.space import SearchSpace

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_loads_and_can_be_deployed(path):
    space = SearchSpace.load(path)
    assert space.name == path.stem.replace("_", "-")
    assert space.infeasible_reason(space.complete({})) is None
