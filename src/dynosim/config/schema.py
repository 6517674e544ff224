"""What the Scenario schema allows at a path, in words: for error messages and for the types of searched fields.

A path is the tuple of keys from the root of a file; list positions are keys too. The JSON Schema that pydantic derives
from the models is the one description read here, so the words cannot drift from the validation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from dynosim.config.base import CUSTOM
from dynosim.config.scenario import Scenario

Path = tuple[str, ...]
Node = Mapping[str, Any]

_TYPE_WORDS = {
    "boolean": "true or false",
    "string": "text",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
_BOUND_WORDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


@cache
def scenario_schema() -> dict[str, Any]:
    """Return the JSON Schema of a scenario. Do not change it: it is shared."""
    return Scenario.model_json_schema()


def dereference(node: Node) -> Node:
    """Follow ``$ref``."""
    while "$ref" in node:
        node = scenario_schema()["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def resolve(node: Node, value: Any = None) -> Node:
    """Follow references, look through "or null", and pick the union member that *value*'s ``type`` names."""
    node = dereference(node)
    members = [member for member in node.get("anyOf", ()) if member.get("type") != "null"]
    if len(members) == 1:
        node = dereference(members[0])
    if "discriminator" in node and isinstance(value, Mapping):
        mapping, name = node["discriminator"]["mapping"], str(value.get("type"))
        member = mapping.get(CUSTOM if ":" in name else name)
        node = dereference({"$ref": member}) if member else node
    return node


def child(node: Node, key: str) -> Node | None:
    """Return the node of *key* inside *node*; None where *node* has no such key."""
    if key in node.get("properties", {}):
        return node["properties"][key]  # type: ignore[no-any-return]
    for rest in node.get("patternProperties", {}).values():
        return rest  # type: ignore[no-any-return]
    rest = node.get("items" if key.isdigit() and node.get("type") == "array" else "additionalProperties")
    return {} if rest is True else (rest or None)


def step(data: Any, key: str) -> Any:
    """Return what *data* holds under *key*, or None."""
    if isinstance(data, Mapping):
        return data.get(key)
    if isinstance(data, list) and key.isdigit() and int(key) < len(data):
        return data[int(key)]
    return None


def node_at(path: Path, data: Any) -> Node:
    """Return the schema node of *path* in a file that says *data*; empty where the schema says nothing."""
    node = resolve(scenario_schema(), data)
    for key in path:
        data = step(data, key)
        node = resolve(child(node, key) or {}, data)
    return node


def locate(location: Iterable[int | str], data: Any) -> Path:
    """Return the path that a pydantic error location means, without its names of union members."""
    node: Node = scenario_schema()
    path: Path = ()
    parts = [str(part) for part in location]
    for index, part in enumerate(parts):
        node = resolve(node)
        if "discriminator" in node and part in node["discriminator"]["mapping"]:
            node = dereference({"$ref": node["discriminator"]["mapping"][part]})
            continue
        inside = child(node, part)
        unknown_key = isinstance(data, Mapping) and part in data
        if inside is None and (not unknown_key or index + 1 < len(parts)):
            break
        path, data, node = (*path, part), step(data, part), inside or {}
    return path


def choices(node: Node) -> list[str]:
    """Return the values that *node* lists, as text."""
    members = node.get("anyOf", (node,))
    return [str(value) for member in members for value in dereference(member).get("enum", ())]


def allowed(node: Node) -> str:
    """Return what a value at *node* may be, in words."""
    node = dereference(node)
    if "const" in node:
        return repr(node["const"])
    if "enum" in node:
        return "one of " + ", ".join(map(str, node["enum"]))
    if "discriminator" in node:
        return "a mapping with type " + ", ".join(node["discriminator"]["mapping"])
    if "anyOf" in node:
        return " or ".join(allowed(member) for member in node["anyOf"])
    if "examples" in node:
        return "such as " + " or ".join(node["examples"])
    if node.get("pattern") == ":":
        return CUSTOM
    kind = node.get("type", "")
    if kind in ("integer", "number"):
        bounds = [f"{word} {node[key]:g}" for key, word in _BOUND_WORDS.items() if key in node]
        return " ".join(["an integer" if kind == "integer" else "a number", " and ".join(bounds)]).strip()
    return _TYPE_WORDS.get(kind, "any value")
