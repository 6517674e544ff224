"""docs/search.md runs, and names every sampler."""

import re
from pathlib import Path

import pytest

from dynosim.search.samplers import SAMPLERS

TEXT = (Path(__file__).parents[2] / "docs" / "search.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
def test_examples_run(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "docs/search.md", "exec"), {})


def test_every_sampler_is_documented() -> None:
    assert [name for name in SAMPLERS if f"`{name}`" not in TEXT] == []
