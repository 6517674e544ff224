"""The tables and lists of docs/ are complete. That its commands and examples work is in test_documented.py."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from dynosim.cli import _parser
from dynosim.config import DeploymentConfig, LinkConfig, PoolConfig
from dynosim.metrics import METRICS, STATS
from dynosim.policies.registry import PLACES, Kind, policies, policy_class
from dynosim.space import bundled_spaces

ROOT = Path(__file__).parents[1]
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
DOCS = "\n".join(text for name, text in PAGES.items() if name != "README")
TERMS = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", DOCS, flags=re.DOTALL))
"""What stands in backticks in the text of docs/."""


def test_every_metric_has_a_row_with_its_unit() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", PAGES["metrics"], re.MULTILINE)
    assert rows == [(name, info.unit) for name, info in METRICS.items()]
    assert set(STATS) <= set(TERMS)


def test_bundled_spaces_are_listed() -> None:
    listed = re.search(r"asked for by name:\n(.*)\.", PAGES["spaces"])
    assert listed is not None
    assert set(re.findall(r"`(.*?)`", listed[1])) == set(bundled_spaces())


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in PLACES for name in policies(kind)])
def test_every_policy_has_a_row_with_its_options(kind: Kind, name: str) -> None:
    options = inspect.signature(policy_class(kind, name)).parameters.values()
    defaults = [f"`{option.name}` {option.default}" for option in options if option.name != "rng"]
    rows = re.findall(rf"^\| `{name}` \| .+ \| (.*)\|$", PAGES["policies"], re.MULTILINE)
    assert [row.replace('"', "").strip() for row in rows] == [", ".join(defaults)]


@pytest.mark.parametrize("model", [DeploymentConfig, PoolConfig, LinkConfig])
def test_every_field_of_a_deployment_is_described(model: type[BaseModel]) -> None:
    words = {word for term in TERMS for word in re.findall(r"\w+", term)}
    assert model.model_fields.keys() <= words


def test_options_of_commands_in_the_text_exist() -> None:
    used = {option for term in TERMS if term.startswith("dynosim ") for option in re.findall(r"--[\w-]+", term)}
    known = {option for parser in _parsers(_parser()) for option in parser._option_string_actions}
    assert used <= known


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for group in (action for action in parser._actions if isinstance(action, argparse._SubParsersAction)):
        for inner in group.choices.values():
            yield from _parsers(inner)


def _verbs(parser: argparse.ArgumentParser) -> Iterator[tuple[str, ...]]:
    """Yield every verb as its words, such as ("trace", "stats")."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for name, inner in (pair for group in groups for pair in group.choices.items()):
        below = list(_verbs(inner))
        yield from ((name, *rest) for rest in below or [()])


@pytest.mark.parametrize("verb", list(_verbs(_parser())), ids=" ".join)
def test_every_verb_is_described(verb: tuple[str, ...]) -> None:
    """``dynosim config validate``, or `` `dynosim config validate`, `expand` `` for further ones of a group."""
    assert re.search(rf"`dynosim {verb[0]}\b.*\b{verb[-1]}\b", DOCS) or re.search(rf"`dynosim {verb[-1]}\b", DOCS)


def test_readme_is_read_in_three_minutes() -> None:
    assert len(PAGES["README"].split()) <= 700
