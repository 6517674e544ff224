"""docs/search.md names every sampler."""

from pathlib import Path

from dynosim.search.samplers import SAMPLERS

TEXT = (Path(__file__).parents[2] / "docs" / "search.md").read_text()


def test_every_sampler_is_documented() -> None:
    assert [name for name in SAMPLERS if f"`{name}`" not in TEXT] == []
