"""The JSON Schema of all dynosim files: a scenario in which fields of deployment and workload may be domains."""

from __future__ import annotations

import copy
from typing import Any

from dynosim.config.schema import scenario_schema
from dynosim.space.read import SEARCHABLE

Node = dict[str, Any]

_WHEN = {
    "type": "object",
    "minProperties": 1,
    "description": "Field -> the value, or list of values, under which this one is searched.",
}
_BOUND = {"type": "number"}
_RANGE = {
    "description": "Numbers from min to max, both included.",
    "type": "object",
    "required": ["min", "max"],
    "properties": {
        "min": _BOUND,
        "max": _BOUND,
        "step": {"exclusiveMinimum": 0, "type": "number", "description": "Default: 1 for integers, else continuous."},
        "scale": {
            "enum": ["linear", "log"],
            "description": "Log: of integers, the powers of two and the bounds; with step 1, every integer.",
        },
    },
    "additionalProperties": False,
}


def json_schema() -> Node:
    """Return the schema of predict files and of spaces, for editors and other programs."""
    root = copy.deepcopy(scenario_schema())
    definitions = root["$defs"]
    for name in _reachable(root):
        properties = definitions[name]["properties"]
        for key, node in properties.items():
            if "const" not in node:
                properties[key] = _or_domain(node)
    for key in SEARCHABLE:
        root["properties"][key] = _or_domain(root["properties"][key])
    for definition in definitions.values():
        if "const" in definition.get("properties", {}).get("type", {}):
            definition["required"] = ["type", *definition.get("required", ())]
    definitions.update(Range=_RANGE, When=_WHEN)
    root = _without_titles(root)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "dynosim space or scenario", **root}


def _reachable(root: Node) -> list[str]:
    """Return the names of the models under the searchable fields, in order of definition."""
    found: set[str] = set()
    pending: list[Any] = [root["properties"][key] for key in SEARCHABLE]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            name = node.get("$ref", "").rpartition("/")[2] if isinstance(node.get("$ref"), str) else ""
            if name and name not in found:
                found.add(name)
                pending.append(root["$defs"][name])
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)
    return [name for name in root["$defs"] if name in found]


def _or_domain(node: Node) -> Node:
    """Return the schema of a value as *node* says, or a domain of such values."""
    about: Node = {key: node[key] for key in ("description", "default") if key in node}
    value = {key: inner for key, inner in node.items() if key not in about}
    domains = [_domain("choices", {"type": "array", "minItems": 1, "items": value})]
    if any(kind in ("integer", "number", None) for kind in _types(value)):
        domains.append(_domain("range", {"$ref": "#/$defs/Range"}))
    return {**about, "anyOf": [value, *domains]}


def _types(node: Node) -> list[str | None]:
    """Return the JSON types of a value, None for one without."""
    if "$ref" in node or "oneOf" in node:
        return ["object"]
    return [kind for member in node["anyOf"] for kind in _types(member)] if "anyOf" in node else [node.get("type")]


def _domain(key: str, node: Node) -> Node:
    return {
        "type": "object",
        "required": [key],
        "properties": {key: node, "when": {"$ref": "#/$defs/When"}},
        "additionalProperties": False,
    }


def _without_titles(node: Any) -> Any:
    """Drop the titles that pydantic derives from field names: editors would show them in place of the description."""
    if isinstance(node, dict):
        return {k: _without_titles(v) for k, v in node.items() if not (k == "title" and isinstance(v, str))}
    return [_without_titles(item) for item in node] if isinstance(node, list) else node
