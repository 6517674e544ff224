"""docs/spaces.md: its space loads, its Python runs, its list of bundled spaces is complete."""

import re
from pathlib import Path

from dynosim.space import SearchSpace, bundled_spaces

PAGE = (Path(__file__).parents[2] / "docs" / "spaces.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_example_space_loads_and_its_baseline_works():
    (text,) = blocks("yaml")
    space = SearchSpace.parse(text)
    assert space.infeasible_reason(space.baseline_point()) is None


def test_example_code_runs(capsys):
    (code,) = blocks("python")
    exec(code, {})
    assert capsys.readouterr().out.startswith("480 ")


def test_bundled_spaces_are_listed():
    listed = re.search(r"asked for by name:\n(.*)\.", PAGE)[1]
    assert set(re.findall(r"`(.*?)`", listed)) == set(bundled_spaces())
