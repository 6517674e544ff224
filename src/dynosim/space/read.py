"""From a file with domains to parameters: which fields are searched, over what, and when each of them exists."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dynosim.config import schema
from dynosim.config.load import DOMAIN_KEYS, Document, find_domains, is_domain, show
from dynosim.config.schema import Path
from dynosim.errors import nearest
from dynosim.space.coverage import not_modelled
from dynosim.space.domains import Choices, Domain, Matters, Parameter, Range
from dynosim.space.inert import mattering, takers

SEARCHABLE = ("workload", "workloads", "deployment")
"""Goals, budgets and prices say what is wanted: a search over them would move the target."""
SECTIONS = ("aggregated", "disaggregated")
"""Values of ``deployment.mode``, and the section that each of them selects."""
MODE = ("deployment", "mode")

When = dict[str, tuple[Any, ...]]


def read_parameters(document: Document) -> tuple[Parameter, ...]:
    """Return the searched fields, each after the ones that it depends on, otherwise in the order of the file.

    A condition on a field that is not searched is settled here: the parameter is unconditional, or it is left out.
    Raises ConfigError.
    """
    waiting = {}
    for path, mapping in find_domains(document.data):
        if path[:1] not in [(key,) for key in SEARCHABLE]:
            raise document.error(path, f"cannot be searched; allowed: fields under {', '.join(SEARCHABLE)}")
        left_out = not_modelled(path, document.data)
        if left_out:
            raise document.error(path, f"not modelled ({left_out}): it cannot be searched")
        domain, when = _domain(document, path, mapping), _conditions(document, path, mapping)
        waiting[".".join(path)] = Parameter(".".join(path), domain, when, mattering(document.data, path))
    placed: dict[str, Parameter | None] = {}
    while waiting:
        ready = _ready(document, waiting)
        placed[ready.path] = _settle(document, ready, placed)
        del waiting[ready.path]
    return tuple(parameter for parameter in placed.values() if parameter)


def _ready(document: Document, waiting: Mapping[str, Parameter]) -> Parameter:
    """Return the first parameter that depends on none of those waiting, or that need not: a rule that goes round in a
    circle with the conditions of the file is given up."""
    settled = [parameter for parameter in waiting.values() if not parameter.when.keys() & waiting.keys()]
    if not settled:
        cycle = ", ".join(waiting)
        raise document.error(tuple(next(iter(waiting)).split(".")), f"conditions go round in a circle: {cycle}")
    free = (each for each in settled if each.matters is None or not set(each.matters.reads) & waiting.keys())
    return next(free, replace(settled[0], matters=None))


def _settle(document: Document, parameter: Parameter, placed: Mapping[str, Parameter | None]) -> Parameter | None:
    """Return *parameter* with the conditions on searched fields only; None when a condition can never hold."""
    when = {}
    for path, allowed in parameter.when.items():
        if path not in placed:
            if _value_at(document.data, tuple(path.split("."))) not in allowed:
                return None
        elif placed[path] is None:
            return None
        else:
            when[path] = allowed
    return replace(parameter, when=when, matters=_searched(parameter.matters, placed))


def _searched(rule: Matters | None, placed: Mapping[str, Parameter | None]) -> Matters | None:
    return rule and replace(rule, reads=tuple(path for path in rule.reads if placed.get(path)))


def _value_at(data: Any, path: Path) -> Any:
    if path == MODE and "mode" not in data["deployment"]:
        return "aggregated"
    for key in path:
        data = schema.step(data, key)
    return data


def _conditions(document: Document, path: Path, mapping: Mapping[str, Any]) -> When:
    """Return absolute path -> allowed values: those of ``when``, and what the section or the policy implies."""
    when: When = {}
    if path[0] == "deployment" and path[1:2] and path[1] in SECTIONS:
        when[".".join(MODE)] = (path[1],)
    written = mapping.get("when", {})
    if not isinstance(written, dict):
        raise document.error(path, f"{show(written)}: allowed: a mapping of fields to values", at=(*path, "when"))
    for key, value in written.items():
        at = (*path, "when", key)
        target = _enclosing(document, path, key)
        if target is None:
            raise document.error(path, f"when: {key}: no such field beside or above this one in this file", at=at)
        mapping = _value_at(document.data, target)
        if isinstance(mapping, dict) and not is_domain(mapping):
            raise document.error(path, f"when: {'.'.join(target)} is a section, not a value", at=at)
        if value == []:
            raise document.error(path, f"when: {key}: []: allowed: a value, or a list of at least one", at=at)
        when[".".join(target)] = tuple(value) if isinstance(value, list) else (value,)
    return takers(document.data, path) | when


def check_conditions(document: Document, path: Path) -> None:
    """Refuse a value of ``when`` at *path* that the searched field it names never takes.

    Apart from ``read_parameters``, so that a misspelt choice is found before the condition that spells it right.
    """
    for key, value in _value_at(document.data, path).get("when", {}).items():
        target = _enclosing(document, path, key)
        mapping = _value_at(document.data, target or ())
        if target and is_domain(mapping):
            domain = _domain(document, target, mapping)
            for each in value if isinstance(value, list) else (value,):
                if not domain.contains(each):
                    message = f"when: {show(each)}: {'.'.join(target)} is {domain}"
                    raise document.error(path, message, at=(*path, "when", key))


def _enclosing(document: Document, path: Path, key: str) -> Path | None:
    """Return the path that *key* means at *path*: a sibling, else the same key one level up, and so on to the root."""
    for depth in range(len(path) - 1, -1, -1):
        target = (*path[:depth], *key.split("."))
        if target != path and target in document.origins:
            return target
    return None


def _domain(document: Document, path: Path, mapping: Mapping[str, Any]) -> Domain:
    kinds = [key for key in DOMAIN_KEYS if key in mapping]
    if len(kinds) > 1:
        raise document.error(path, f"{show(mapping)}: allowed: either choices or range")
    for key in mapping:
        if key not in (*kinds, "when"):
            near = nearest(key, (*kinds, "when"))
            raise document.error(path, f"unknown key {key!r}: {near}allowed: {kinds[0]}, when", at=(*path, key))
    if any(isinstance(_value_at(document.data, path[:depth]), list) for depth in range(1, len(path))):
        raise document.error(path, f"{show(mapping)}: a domain cannot stand inside a list")
    return (_choices if kinds == ["choices"] else _range)(document, path, mapping[kinds[0]])


def _choices(document: Document, path: Path, values: Any) -> Choices:
    if not isinstance(values, list) or not values:
        message = f"choices: {show(values)}: allowed: a list of at least one value"
        raise document.error(path, message, at=(*path, "choices"))
    if schema.node_at(path, document.data).get("type") == "number":
        values = [float(value) if type(value) is int else value for value in values]
    for index, value in enumerate(values):
        at = (*path, "choices", str(index))
        if any(find_domains(value)):
            raise document.error(path, f"{show(value)}: a choice is one concrete value, not a domain", at=at)
        if Choices(tuple(values[:index])).contains(value):
            raise document.error(path, f"{show(value)}: listed twice", at=at)
    return Choices(tuple(values))


def _range(document: Document, path: Path, bounds: Any) -> Domain:
    at = (*path, "range")
    if not isinstance(bounds, dict):
        raise document.error(path, f"range: {show(bounds)}: allowed: {{min, max, step or scale: log}}", at=at)
    keys = ("min", "max", "step", "scale")
    for key in bounds:
        if key not in keys:
            message = f"range: unknown key {key!r}: {nearest(key, keys)}allowed: {', '.join(keys)}"
            raise document.error(path, message, at=(*at, key))
    integer = _is_integer(document, path, bounds)
    for key in ("min", "max", "step"):
        value = bounds.get(key, 1 if key == "step" else None)
        if isinstance(value, bool) or not isinstance(value, int if integer else int | float):
            kind = "an integer" if integer else "a number"
            raise document.error(path, f"range: {key}: {show(value)}: allowed: {kind}", at=(*at, key))
    problem = _range_problem(bounds, integer=integer)
    if problem:
        raise document.error(path, f"range: {problem}", at=at)
    low, high = (bounds[key] if integer else float(bounds[key]) for key in ("min", "max"))
    scale, step = bounds.get("scale", "linear"), bounds.get("step")
    if scale == "log":
        if integer and step is None:
            return Choices(_powers_of_two(bounds["min"], bounds["max"], _value_at(document.data, ("baseline", *path))))
        return Range(low, high, None, scale, integer)
    if step is None and integer:
        step = 1
    return Range(low, high, step if integer or step is None else float(step), scale, integer)


def _powers_of_two(low: int, high: int, baseline: Any) -> tuple[int, ...]:
    """Return the powers of two from *low* to *high*, both ends, and the baseline's value where it is in between."""
    powers = {2**i for i in range(low.bit_length() - 1, high.bit_length())}
    wanted = powers | ({baseline} if isinstance(baseline, int) and not isinstance(baseline, bool) else set())
    return tuple(sorted({low, high} | {value for value in wanted if low <= value <= high}))


def _is_integer(document: Document, path: Path, bounds: Mapping[str, Any]) -> bool:
    """Return whether the field takes integers only; one without a type (an option) takes what the bounds are."""
    node = schema.node_at(path, document.data)
    if not node:
        return not any(isinstance(bounds.get(key), float) for key in ("min", "max", "step"))
    if node.get("type") not in ("integer", "number"):
        raise document.error(path, f"a range needs a number; allowed: {schema.allowed(node)}", at=(*path, "range"))
    return bool(node["type"] == "integer")


def _range_problem(bounds: Mapping[str, Any], *, integer: bool) -> str:
    low, high, step, scale = (bounds.get(key) for key in ("min", "max", "step", "scale"))
    if low > high:  # type: ignore[operator]  # the caller has checked that both are numbers
        return f"min {low} is above max {high}"
    if scale not in (None, "linear", "log"):
        return f"scale: {show(scale)}: allowed: linear, log"
    if scale == "log" and step is not None and not (integer and step == 1):
        return "a log scale has no step, but 1 for every integer: leave it out, or list choices"
    if scale == "log" and low <= 0:  # type: ignore[operator]
        return f"min {low}: a log scale needs min > 0"
    if step is not None and step <= 0:
        return f"step {step}: allowed: a number > 0"
    if step is not None and not math.isclose((high - low) / step, round((high - low) / step), abs_tol=1e-9):  # type: ignore[operator]
        return f"max {high} is not min {low} plus a multiple of step {step}"
    return ""
