"""Cards that users bring: a YAML file with the fields of a card, or a card object of a Python file or module."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dynosim import plugins
from dynosim.config.load import Document, read_document, show
from dynosim.errors import ConfigError, nearest

Card = TypeVar("Card")


def load_card(kind: Callable[..., Card], reference: str, bundled: Container[str], path: str) -> Card:
    """Return the card of *reference*, checked; ConfigError, about the field *path*, in one line.

    Its name is none of *bundled*: timing packs and prices go by the name.
    """
    try:
        card: Card = _load(kind, reference, plugins.stamp(reference))
    except ConfigError as error:
        raise ConfigError(str(error), path=path) from error
    name = getattr(card, "name", "")
    if name.lower() in bundled:
        message = f"name: {name!r} is a bundled card's: allowed: a name of its own"
        raise ConfigError(f"{plugins.short(reference)}: {message}", path=path)
    return card


@lru_cache(maxsize=64)
def _load(kind: Any, reference: str, stamp: tuple[int, int]) -> Any:
    if plugins.is_card_file(reference):
        document = read_document(reference)
        return _checked(kind, document.data, document)
    found = plugins.load(reference)
    if not isinstance(found, kind):
        raise ConfigError(f"{plugins.short(reference)}: allowed: a {kind.__module__}.{kind.__name__}")
    values = {field.name: getattr(found, field.name) for field in fields(found)}
    return _checked(kind, values, Document(values, {(): (plugins.short(reference), None)}))


def _checked(kind: Any, values: Mapping[str, Any], document: Document) -> Any:
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as errors:
        first = min(errors.errors(include_url=False), key=lambda error: error["type"] != "unexpected_keyword_argument")
    path = tuple(map(str, first["loc"]))
    if first["type"] == "unexpected_keyword_argument":
        known = [field.name for field in fields(kind)]
        allowed = f": {nearest(path[0], known)}allowed: {', '.join(known)}" if len(path) == 1 else ""
        raise document.error(path, f"unknown key{allowed}")
    if first["type"] == "missing":
        raise document.error(path, "missing", at=path[:-1])
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    raise document.error(path, f"{show(first['input'])}: {said}" if path else said)
