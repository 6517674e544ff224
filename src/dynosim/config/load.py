"""YAML files in, validated scenarios out; every mistake is one line: ``file:line: path: value: what is allowed``.

The syntax is the core schema of YAML 1.2, strictly: ``no`` is text, ``1e9`` is a number, a text is never taken for a
number. Refused are duplicate keys, NaN and infinities, tags, and anchors with their aliases (a file of a hundred lines
can unfold to gigabytes with them, and the service reads files of strangers).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml
from pydantic import ValidationError

from dynosim import plugins
from dynosim.config import schema
from dynosim.config.goals import canonical
from dynosim.config.scenario import Scenario
from dynosim.config.schema import Path
from dynosim.config.unmodelled import foreign
from dynosim.errors import ConfigError, nearest

Origin = tuple[str | None, int | None]
"""File and line, or override and None."""
Place = Callable[[int], Origin]

DOMAIN_KEYS = ("choices", "range")

_TAG = "tag:yaml.org,2002:"
_DOTTED = re.compile(r"[a-z]\w*(\.\w+)+", re.IGNORECASE)
_WITH_UNIT = re.compile(r"[-+]?[\d.]+ *[a-zA-Z%/]+$")


class _Loader(yaml.SafeLoader):
    """Composes nodes by the YAML 1.2 core schema; values are made in ``_construct``."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # the stubs leave it out
            raise yaml.MarkedYAMLError(None, None, "aliases are not supported: repeat the value", mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_CORE_SCHEMA = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
}
for _name, (_pattern, _first) in _CORE_SCHEMA.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), list(_first))


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    # PyYAML would write these line breaks of Unicode as they are, and read them back as spaces.
    style = '"' if not {"\x85", "\u2028", "\u2029", "\ufeff"}.isdisjoint(text) else None
    return dumper.represent_scalar(_TAG + "str", text, style)


_Dumper.add_representer(str, _represent_text)


def _finite(text: str) -> float:
    value = float(text.replace(".inf", "inf").replace(".nan", "nan").lower())
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return value


_SCALARS: dict[str, Callable[[str], Any]] = {
    _TAG + "str": str,
    _TAG + "bool": lambda text: text.lower() == "true",
    _TAG + "int": int,
    _TAG + "float": _finite,
    _TAG + "null": lambda text: None,
}


@dataclass(frozen=True)
class Document:
    """The plain values of a file with overrides applied, and where each of them was written."""

    data: dict[str, Any]
    """Keys are text everywhere."""
    origins: dict[Path, Origin]
    aliases: dict[str, str] = field(default_factory=dict)
    """Alias of a metric as it was written -> the name that *data* has in its place."""

    def error(self, path: Path, message: str, *, at: Path | None = None) -> ConfigError:
        """Return the error about *path*, placed where *at* (by default *path*) or its nearest ancestor was written."""
        return _error(message, self.origin(path if at is None else at), path)

    def origin(self, path: Path) -> Origin:
        """Return where *path* or its nearest ancestor was written."""
        while path not in self.origins:
            path = path[:-1]
        return self.origins[path]


def _error(message: str, origin: Origin, path: Path = ()) -> ConfigError:
    return ConfigError(message, file=origin[0], line=origin[1], path=".".join(path))


@dataclass(frozen=True)
class Problem:
    """One thing that the schema refuses."""

    path: Path
    message: str
    kind: str
    """pydantic's error type, such as ``extra_forbidden``."""


def read_document(path: str | FilePath, overrides: Sequence[str] = ()) -> Document:
    """Read the YAML file at *path* and apply *overrides* to it, left to right.

    Raises ConfigError for a file that cannot be read or is not a YAML mapping, and for an override that does not fit.
    """
    try:
        text = FilePath(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a UTF-8 text file"
        raise ConfigError(f"cannot be read: {reason}", file=str(path)) from None
    return parse_document(text, str(path), overrides)


def parse_document(text: str, file: str | None = None, overrides: Sequence[str] = ()) -> Document:
    """Like ``read_document`` for *text*; errors name *file*."""
    origins: dict[Path, Origin] = {(): (file, 1)}
    data = _parse(text, lambda line: (file, line), (), origins)
    if not isinstance(data, dict):
        raise ConfigError("must be a mapping of keys to values", file=file, line=1)
    document = Document(data, origins)
    _use_metric_names(document)
    for override in overrides:
        _apply(document, override)
        _use_metric_names(document)
    _anchor(document, FilePath(file or "").parent)
    return document


def _use_metric_names(document: Document) -> None:
    """Put the metrics' own names in the place of aliases in the SLO and the objectives."""
    for section in ("slo", "slo_over"):
        said = document.data.get(section)
        for metric in [metric for metric in said if canonical(metric) != metric] if isinstance(said, dict) else ():
            _rename_bounds(document, section, metric)
    objectives = document.data.get("objectives")
    for objective in objectives if isinstance(objectives, list) else ():
        metric = objective.get("metric") if isinstance(objective, dict) else None
        if isinstance(metric, str) and canonical(metric) != metric:
            objective["metric"] = document.aliases[metric] = canonical(metric)


def _rename_bounds(document: Document, section: str, alias: str) -> None:
    """Move what *section* says of *alias* to its metric, where a later override replaces what was said before."""
    said: dict[str, Any] = document.data[section]
    metric, bounds, origins = canonical(alias), said.pop(alias), document.origins
    known = said.get(metric)
    document.aliases[alias] = metric
    if isinstance(known, dict) and isinstance(bounds, dict):
        for stat in known.keys() & bounds.keys():
            if origins[section, metric, stat][0] == origins[section, alias, stat][0]:
                raise document.error((section, alias, stat), f"given twice: {alias} is {metric}")
        bounds = {**known, **bounds}
    said[metric] = bounds
    for path in [path for path in origins if path[:2] == (section, alias)]:
        origins[(section, metric, *path[2:])] = origins.pop(path)


def _parse(text: str, place: Place, path: Path, origins: dict[Path, Origin]) -> Any:
    """Return the plain value that *text* says, noting in *origins* where each part of it stands."""
    try:
        node = _Loader(text).get_single_node()
        return None if node is None else _construct(node, place, path, origins)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _error(f"YAML: {error.problem}", place(line)) from None
    except yaml.YAMLError as error:
        raise _error(f"YAML: {' '.join(str(error).split())}", place(1)) from None
    except RecursionError:
        raise _error("YAML: nested too deeply", place(1)) from None


def _construct(node: yaml.Node, place: Place, path: Path, origins: dict[Path, Origin]) -> Any:
    origin = origins.setdefault(path, place(node.start_mark.line + 1))
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, origin = str(key_node.value), place(key_node.start_mark.line + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                raise _error("a key must be plain text", origin, path)
            if key in mapping:
                raise _error("duplicate key", origin, (*path, key))
            if _DOTTED.fullmatch(key) and path[-1:] != ("when",):
                nested = "".join(f"{part}: {{" for part in key.split(".")).removesuffix("{")
                message = f"a key with dots: nest it: {nested}...{'}' * key.count('.')}"
                raise _error(message, origin, (*path, key))
            origins[(*path, key)] = origin
            mapping[key] = _construct(value_node, place, (*path, key), origins)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, place, (*path, str(i)), origins) for i, item in enumerate(node.value)]
    try:
        return _SCALARS[node.tag](node.value)
    except KeyError:
        raise _error(f"tag {node.tag} is not supported", origin, path) from None
    except ValueError:
        raise _error(f"{node.value}: not a finite number", origin, path) from None


def _apply(document: Document, override: str) -> None:
    """Set ``PATH=YAML_VALUE`` in *document*, making the mappings on the way that are not there yet."""
    name = f"override {override[:80]!r}"
    dotted, equals, text = override.partition("=")
    path = tuple(dotted.strip().split("."))
    if not equals or not all(path):
        raise ConfigError("must be PATH=VALUE, with a dotted path from the root of the file", file=name)
    target: Any = document.data
    for depth, key in enumerate(path[:-1], start=1):
        if isinstance(target, dict) and key not in target:
            target[key] = {}
            document.origins[path[:depth]] = (name, None)
        target = schema.step(target, key)
        if not isinstance(target, dict | list):
            raise ConfigError(f"{target}: has no keys", file=name, path=".".join(path[:depth]))
    for old in [old for old in document.origins if old[: len(path)] == path]:
        del document.origins[old]
    value = _parse(text, lambda line: (name, None), path, document.origins)
    if isinstance(target, dict):
        target[path[-1]] = value
    elif path[-1].isdigit() and int(path[-1]) < len(target):
        target[int(path[-1])] = value
    else:
        raise ConfigError(f"allowed: 0 to {len(target) - 1}", file=name, path=dotted)


def _anchor(document: Document, folder: FilePath) -> None:
    """Make the paths of what users bring absolute: from *folder* where the file says so, else from where we are."""
    for path, reference in references(document.data):
        target: Any = document.data
        for key in path[:-1]:
            target = schema.step(target, key)
        base = FilePath() if document.origin(path)[1] is None else folder
        target[int(path[-1]) if isinstance(target, list) else path[-1]] = plugins.absolute(reference, base)


BROUGHT = {"model", "gpu", "type", "policy", "scheduling_policy", "predictor", "format", "sampler", "python"}
"""Fields that take a name or something of the user's (``dynosim.plugins``)."""


def references(data: Any) -> list[tuple[Path, str]]:
    """Return (path, reference) of everything of the user's that *data*, a space or scenario, names."""
    named = ((path, str(value)) for path, value in leaves(data) if _field(path) in BROUGHT)
    return [(path, value) for path, value in named if plugins.is_reference(value)]


def _field(path: Path) -> str:
    """Return the key that a value stands under, alone or as one choice of several."""
    return next((key for key in reversed(path) if not key.isdigit() and key not in DOMAIN_KEYS), "")


def leaves(data: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield (path, value) of everything in *data* that is neither a mapping nor a list."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from leaves(value, (*path, str(key)))
    elif path:
        yield path, data


def is_domain(value: Any) -> bool:
    """Return whether *value* is a search domain: a mapping with ``choices`` or ``range``."""
    return isinstance(value, dict) and any(key in value for key in DOMAIN_KEYS)


def find_domains(data: Any, path: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield (path, mapping) of every search domain in *data*, in the order of the file, not looking into domains."""
    if is_domain(data):
        yield path, data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from find_domains(value, (*path, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from find_domains(value, (*path, str(index)))


def validate(data: dict[str, Any]) -> Scenario | list[Problem]:
    """Return the scenario that *data* says, or everything that is wrong with it, misspelt keys first."""
    try:
        # As JSON, strict mode takes lists for tuples but neither text for numbers nor numbers for text.
        return Scenario.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as errors:
        problems = [_problem(error, data) for error in errors.errors(include_url=False)]
    return sorted(problems, key=lambda problem: problem.kind != "extra_forbidden")


def _problem(error: Mapping[str, Any], data: Any) -> Problem:
    kind, path = error["type"], schema.locate(error["loc"], data)
    if error["loc"] == ("workload",) and "workload" not in data:
        kind = "missing"
    if kind.startswith("union_tag"):
        path = (*path, "type")
    value: Any = data
    for key in path:
        value = schema.step(value, key)
    return Problem(path, _message(kind, path, value, error, data), kind)


def _message(kind: str, path: Path, value: Any, error: Mapping[str, Any], data: Any) -> str:
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "extra_forbidden":
        keys = list(schema.node_at(path[:-1], data).get("properties", {}))
        known = foreign(path[-1])
        if known:
            return known
        return f"unknown key: {nearest(path[-1], keys)}allowed: {', '.join(keys)}"
    if kind.startswith("union_tag"):
        tags = list(schema.node_at(path[:-1], data)["discriminator"]["mapping"])
        what = f"{show(value)}: {nearest(str(value), tags)}" if kind == "union_tag_invalid" else "missing: "
        return f"{what}allowed: one of {', '.join(tags)}"
    if error["loc"][-1] == "[key]":
        return f"key {path[-1]}: {error['msg']}"
    node = schema.node_at(path, data)
    if path[0] == "slo" and (bound := _bound_message(path, value)):
        return bound
    if kind == "missing":
        return f"missing: allowed: {schema.allowed(node)}"
    if isinstance(value, dict | list) and node.get("type") not in ("object", "array"):
        hint = ", or a search domain {choices: [...]} or {range: {min: ..., max: ...}}"
        return f"{show(value)}: allowed: {schema.allowed(node)}{hint}"
    near = nearest(str(value), schema.choices(node))
    unit = ", without a unit" if isinstance(value, str) and _WITH_UNIT.match(value) and not near else ""
    return f"{show(value)}: {near}allowed: {schema.allowed(node)}{unit}"


def _bound_message(path: Path, value: Any) -> str:
    """Return what is wrong with *value* as a bound of the SLO; empty where the schema says it well."""
    if len(path) == 2 and not isinstance(value, dict):
        return f"{show(value)}: allowed: a bound for each statistic, such as {{p99: 800}}"
    if len(path) == 3 and isinstance(value, str):
        return f"{show(value)}: allowed: a number >= 0 in the metric's unit, without the unit (latencies in ms)"
    return ""


def show(value: Any) -> str:
    """Return *value* as YAML on one line, cut at 60 characters."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False
    )
    line = text.removesuffix("\n...\n").strip()
    return line if len(line) <= 60 else line[:57] + "..."


def load_scenario(path: str | FilePath, overrides: Sequence[str] = ()) -> Scenario:
    """Read one concrete configuration from a YAML file.

    *overrides* are ``PATH=YAML_VALUE``, applied left to right before validation. Raises ConfigError, also for a file in
    which a field is a search domain: that is a space, not a scenario.
    """
    return to_scenario(read_document(path, overrides))


def to_scenario(document: Document) -> Scenario:
    """Validate *document* as one concrete configuration; raises ConfigError."""
    for path, domain in find_domains(document.data):
        raise document.error(path, f"{show(domain)}: a search domain, where a scenario needs one value")
    result = validate(document.data)
    if isinstance(result, list):
        raise document.error(result[0].path, result[0].message)
    return result


def dump_scenario(scenario: Scenario) -> str:
    """Return the complete YAML of *scenario*, defaults included; loading it gives an equal scenario."""
    data = scenario.model_dump(exclude=None if scenario.baseline else {"baseline"}, exclude_none=True)
    return dump(data)


def dump(data: Any) -> str:
    """Return plain *data* as block-style YAML that parses to equal data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
