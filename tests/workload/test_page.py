"""docs/workloads.md names every field, type and profile of the workload's configuration."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from dynosim.config import Config, workload
from dynosim.workload import profile_names

PAGE = (Path(__file__).parents[2] / "docs/workloads.md").read_text(encoding="utf-8")
CODE = " ".join(re.findall(r"```\w*\n(.*?)```", PAGE, re.DOTALL) + re.findall(r"`([^`\n]+)`", PAGE))
WORDS = set(re.findall(r"\w+", CODE))
MODELS = [
    model
    for _, model in inspect.getmembers(workload, inspect.isclass)
    if issubclass(model, Config) and model.__module__ == workload.__name__
]


@pytest.mark.parametrize("model", MODELS)
def test_every_field_and_type_is_described(model: type[Config]) -> None:
    choices = [get_args(field.annotation) for field in model.model_fields.values() if _is_choice(field.annotation)]
    assert model.model_fields.keys() | {word for words in choices for word in words} <= WORDS


def _is_choice(annotation: object) -> bool:
    return get_origin(annotation) is Literal


def test_every_profile_has_a_row() -> None:
    rows = re.findall(r"^\| `(\w+)`(?: \(default\))? \| [\d,]+", PAGE, re.MULTILINE)
    assert sorted(rows) == profile_names()
