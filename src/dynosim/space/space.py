"""A search space: a file in which some fields are domains. Points in, scenarios out.

A point maps the path of every *active* parameter to its value; what a point does not name is the file's own value. The
space knows which points cannot work without simulating them (``infeasible_reason``); it knows nothing of samplers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from dynosim import plugins
from dynosim.config import Scenario, schema
from dynosim.config.load import (
    Document,
    Problem,
    dump,
    find_domains,
    is_domain,
    parse_document,
    read_document,
    references,
    show,
    validate,
)
from dynosim.config.schema import Path
from dynosim.errors import ConfigError, DynosimError, InfeasibleError, nearest
from dynosim.space import feasibility
from dynosim.space.domains import Choices, Parameter
from dynosim.space.read import MODE, SECTIONS, check_conditions, read_parameters

Point = dict[str, Any]

UNHASHED = ("name", "description", "optimizer")
"""Fields that change neither what is searched nor how a point is judged."""


@dataclass(frozen=True)
class SearchSpace:
    """Everything that ``dynosim optimize`` needs. Make one with ``load`` or ``parse``."""

    name: str
    fields: Mapping[str, Any]
    """What the file says, with overrides applied, domains included."""
    parameters: tuple[Parameter, ...]
    """Conditions come before what depends on them."""
    baseline: Mapping[str, Any] | None = None
    """Today's value of every parameter that exists there."""
    source_file: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Alias of a metric as the file or an override has it -> the name in ``fields``."""

    @classmethod
    def load(cls, name_or_path: str | FilePath, overrides: Sequence[str] = ()) -> SearchSpace:
        """Read a bundled space by its name, or a file by its path, with ``PATH=YAML_VALUE`` overrides.

        Raises ConfigError.
        """
        path = find_space(name_or_path)
        return _build(read_document(path, overrides), str(path))

    @classmethod
    def parse(cls, text: str, overrides: Sequence[str] = (), *, file: str | None = None) -> SearchSpace:
        """Read a space from YAML *text*; errors name *file*. Raises ConfigError."""
        return _build(parse_document(text, file, overrides), file)

    def active(self, point: Mapping[str, Any]) -> tuple[Parameter, ...]:
        """Return the parameters that exist at *point*."""
        return tuple(parameter for parameter in self.parameters if parameter.active(point))

    def resolve(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return the plain values of the scenario at *point*, not validated.

        A field that the point leaves out because it cannot matter has its value at the baseline, or else the first.
        """
        data: dict[str, Any] = json.loads(self._fixed)
        given: Point = {}
        for parameter in self.parameters:
            if parameter.exists(given):
                left_out = parameter.path not in point and not parameter.active(point)
                given[parameter.path] = value = self._standing(parameter) if left_out else point[parameter.path]
                _put(data, parameter.keys, value)
        deployment = data.get("deployment")
        if isinstance(deployment, dict):
            for section in SECTIONS:
                if section != deployment.get("mode", "aggregated"):
                    deployment.pop(section, None)
        return data

    def scenario(self, point: Mapping[str, Any]) -> Scenario:
        """Return the concrete scenario at *point*; raises InfeasibleError when its values contradict each other."""
        result = validate(self.resolve(point))
        if isinstance(result, list):
            raise InfeasibleError("; ".join(f"{'.'.join(p.path)}: {p.message}" for p in result))
        return result

    def infeasible_reason(self, point: Mapping[str, Any]) -> str | None:
        """Return why *point* cannot work, as far as that is known without simulating; None when it may."""
        try:
            feasibility.check(self.scenario(point))
        except DynosimError as error:
            return str(error)
        return None

    @cached_property
    def _fixed(self) -> str:
        """The file without its domains and its baseline, as JSON: parsing that is the fastest deep copy."""
        return json.dumps({key: _without_domains(value) for key, value in self.fields.items() if key != "baseline"})

    @cached_property
    def reference(self) -> Scenario:
        """The scenario at the baseline, or else at the first point; its goals are those of every point.

        Raises InfeasibleError when the values of that point contradict each other.
        """
        return self.scenario(self.complete({}))

    def deployed(self) -> Scenario:
        """Return the scenario at the baseline; ConfigError where a space has none."""
        if self.baseline_point() is None:
            paths = ", ".join(parameter.path for parameter in self.parameters[:3])
            more = ", ..." if len(self.parameters) > 3 else ""
            message = f"no baseline: give one, or a single value to every searched field ({paths}{more})"
            raise ConfigError(message, file=self.source_file)
        return self.reference

    def baseline_point(self) -> Point | None:
        """Return the point of today's deployment; None when a space has none. A file without domains is its own."""
        if self.baseline is None:
            return None if self.parameters else {}
        return self.complete(self.baseline)

    def to_yaml(self) -> str:
        """Return the YAML of the space, overrides applied; parsing it gives an equal space."""
        return dump(dict(self.fields))

    def size(self) -> float:
        """Return the number of points; infinite with a continuous range."""
        return self._size

    @cached_property
    def _size(self) -> float:
        return self._count(0, {})

    def _count(self, index: int, point: Point) -> float:
        if index == len(self.parameters):
            return 1
        parameter = self.parameters[index]
        if not parameter.active(point):
            return self._count(index + 1, point)
        values = parameter.domain.values
        if values is None:
            return float("inf")
        if parameter.path not in self._deciding:
            return len(values) * self._count(index + 1, point)
        return sum(self._count(index + 1, {**point, parameter.path: value}) for value in values)

    @cached_property
    def _deciding(self) -> frozenset[str]:
        """Paths that decide about other parameters."""
        rules = [(*each.when, *(each.matters.reads if each.matters else ())) for each in self.parameters]
        return frozenset(path for paths in rules for path in paths)

    def points(self) -> Iterator[Point]:
        """Yield every point, the last parameter varying fastest; raises ConfigError for a continuous range."""
        for parameter in self.parameters:
            if parameter.domain.values is None:
                raise ConfigError(f"{parameter.domain} cannot be enumerated: give a step", path=parameter.path)
        return self._points(0, {})

    def _points(self, index: int, point: Point) -> Iterator[Point]:
        if index == len(self.parameters):
            yield point
            return
        parameter = self.parameters[index]
        if not parameter.active(point):
            yield from self._points(index + 1, point)
            return
        for value in parameter.domain.values or ():
            yield from self._points(index + 1, {**point, parameter.path: value})

    def sample(self, rng: np.random.Generator) -> Point:
        """Draw each active parameter uniformly from its domain (uniformly in the logarithm where the scale is log)."""
        point: Point = {}
        for parameter in self.parameters:
            if parameter.active(point):
                point[parameter.path] = parameter.domain.sample(rng)
        return point

    def complete(self, values: Mapping[str, Any]) -> Point:
        """Return the point that has *values* where they apply.

        A parameter without a value takes that of a field of the same name in *values* (so that a change of mode keeps
        tensor_parallel_size), else the baseline's, else its first.
        """
        point: Point = {}
        for parameter in self.parameters:
            if parameter.active(point):
                path = parameter.path
                point[path] = values[path] if path in values else self._default(parameter, values)
        return point

    def _default(self, parameter: Parameter, values: Mapping[str, Any]) -> Any:
        for path, value in values.items():
            if path.endswith(f".{parameter.keys[-1]}") and parameter.domain.contains(value):
                return value
        return self._standing(parameter)

    def _standing(self, parameter: Parameter) -> Any:
        return (self.baseline or {}).get(parameter.path, parameter.domain.first())

    def neighbours(self, point: Mapping[str, Any]) -> list[Point]:
        """Return the points that differ in one parameter by one step (and in what that switches on or off)."""
        return [
            self.complete({**point, parameter.path: value})
            for parameter in self.active(point)
            for value in parameter.domain.neighbours(point[parameter.path])
        ]

    def describe(self) -> list[dict[str, Any]]:
        """Return one row per parameter: its path, domain, number of values (None: continuous), condition, baseline."""
        return [
            {
                "parameter": parameter.path,
                "domain": str(parameter.domain),
                "values": None if parameter.domain.values is None else len(parameter.domain.values),
                "when": ", ".join(f"{k} = {' or '.join(map(str, v))}" for k, v in parameter.when.items()),
                "baseline": (self.baseline or {}).get(parameter.path),
            }
            for parameter in self.parameters
        ]

    def content_hash(self) -> str:
        """First 16 hex digits of the SHA-256 of what is searched and how it is judged, so without ``UNHASHED``."""
        said = {key: value for key, value in self.fields.items() if key not in UNHASHED}
        searched = [(parameter.path, str(parameter.domain)) for parameter in self.parameters]
        canonical = json.dumps([said, searched], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def code_hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the user's files that the space names, sampler included."""
        code = [plugins.content_hash(reference) for _, reference in references(self.fields)]
        return hashlib.sha256(json.dumps(code).encode()).hexdigest()[:16]


def bundled_spaces() -> dict[str, FilePath]:
    """Return name -> file of the spaces that come with dynosim: in the package, or beside ``src`` in a checkout."""
    installed = FilePath(str(files("dynosim"))) / "search_spaces"
    folder = installed if installed.is_dir() else FilePath(__file__).parents[3] / "search_spaces"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_space(name_or_path: str | FilePath) -> FilePath:
    """Return the file of a bundled space, or the path itself; raises ConfigError with the nearest name."""
    text, bundled = str(name_or_path), bundled_spaces()
    if text in bundled:
        return bundled[text]
    if FilePath(text).is_dir():
        raise ConfigError(f"{text!r}: a directory: allowed: {', '.join(bundled)}, or the path of a YAML file")
    if FilePath(text).suffix in (".yaml", ".yml") or len(FilePath(text).parts) != 1:
        if not FilePath(text).exists():
            raise ConfigError("cannot be read: no such file", file=text)
        return FilePath(text)
    if FilePath(text).exists():
        raise ConfigError(f"{text}: not a YAML file: its name ends in neither .yaml nor .yml")
    near = nearest(text, bundled)
    raise ConfigError(f"{text}: no such space: {near}allowed: {', '.join(bundled)}, or the path of a YAML file")


def _put(data: dict[str, Any], path: Path, value: Any) -> None:
    for key in path[:-1]:
        data = data[key]
    data[path[-1]] = value


def _without_domains(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_domains(value) for key, value in data.items() if not is_domain(value)}
    return data


def _build(document: Document, source_file: str | None) -> SearchSpace:
    _settle_sections(document)
    parameters = read_parameters(document)
    _check_sections(document)
    name = str(document.data.get("name", ""))
    space = SearchSpace(name, document.data, parameters, None, source_file, document.aliases)
    _check_values(document, replace(space, parameters=tuple(replace(each, matters=None) for each in parameters)))
    return replace(space, baseline=_read_baseline(document, space))


def _settle_sections(document: Document) -> None:
    """Refuse a section that no value of the mode selects; drop it where an override of the mode leaves it behind."""
    deployment = document.data.get("deployment")
    if not isinstance(deployment, dict):
        return
    mode = deployment.get("mode", "aggregated")
    modes = mode.get("choices", SECTIONS) if isinstance(mode, dict) else [mode]
    known = isinstance(modes, list) and all(name in SECTIONS for name in modes)
    for name in SECTIONS if known else ():
        if name not in modes and deployment.get(name) is not None:
            _drop_section(document, deployment, name, " or ".join(map(show, modes)))


def _drop_section(document: Document, deployment: dict[str, Any], name: str, modes: str) -> None:
    path, origin = ("deployment", name), document.origins.get(MODE, (None, 1))
    if origin[1] is not None or document.origins[path][1] is None:
        message = f"has no effect under mode {modes}: remove it, or set deployment.mode"
        raise document.error(path, message)
    fields = _without_domains(document.data | {"deployment": deployment | {"mode": name}})
    for problem in _problems(fields):
        if problem.kind == "extra_forbidden" and problem.path[:2] == path:
            raise document.error(problem.path, problem.message)
    del deployment[name]
    of_baseline = schema.step(document.data.get("baseline"), "deployment")
    if isinstance(of_baseline, dict):
        of_baseline.pop(name, None)


def _problems(fields: dict[str, Any]) -> list[Problem]:
    """Return what the schema refuses in *fields*."""
    result = validate(fields)
    return result if isinstance(result, list) else []


def _check_sections(document: Document) -> None:
    deployment = document.data.get("deployment", {})
    mode = schema.step(deployment, "mode")
    for index, name in enumerate(mode.get("choices", ()) if isinstance(mode, dict) else ()):
        if name in SECTIONS and schema.step(deployment, name) is None:
            message = f"{name}: needs a section deployment.{name}"
            raise document.error(("deployment", "mode"), message, at=("deployment", "mode", "choices", str(index)))


def _check_values(document: Document, space: SearchSpace) -> None:
    """Validate every choice and both ends of every range, so that a bad one is found at its line, not in a trial."""
    _check_point(document, space, space.complete({}), (), ())
    for parameter in space.parameters:
        check_conditions(document, parameter.keys)
        domain = parameter.domain
        if isinstance(domain, Choices):
            probes = [(("choices", str(index)), value) for index, value in enumerate(domain.values)]
        else:
            probes = [(("range", "min"), domain.min), (("range", "max"), domain.max)]
        for place, value in probes:
            point = space.complete({**_enabling(space, parameter), parameter.path: value})
            _check_point(document, space, point, parameter.keys, place)
    for path, _ in find_domains(document.data):
        check_conditions(document, path)


def _enabling(space: SearchSpace, parameter: Parameter) -> Point:
    """Return values under which *parameter* is active."""
    values: Point = {}
    for other in space.parameters:
        if other.path in parameter.when:
            values |= {**_enabling(space, other), other.path: parameter.when[other.path][0]}
    return values


def _check_point(document: Document, space: SearchSpace, point: Point, searched: Path, place: Path) -> None:
    """Raise what is wrong at *point* by itself; values that only contradict each other make a point infeasible."""
    result = validate(space.resolve(point))
    problems = _of_scenario(space, result) if isinstance(result, Scenario) else result
    paths = [parameter.keys for parameter in space.active(point)]
    for problem in problems:
        depth = len(problem.path)
        if problem.kind == "value_error" and any(p[:depth] == problem.path and len(p) > depth for p in paths):
            continue
        inside = searched and problem.path[: len(searched)] == searched
        at = (*searched, *place, *problem.path[len(searched) :]) if inside else problem.path
        raise document.error(problem.path, problem.message, at=at)


def _of_scenario(space: SearchSpace, scenario: Scenario) -> list[Problem]:
    """Return unknown names; without any, contradictions that no other point can be without."""
    searched = {parameter.keys[0] for parameter in space.parameters}
    cards = [card for path, card in references(space.fields) if "gpu" in path]
    found = feasibility.unknown_names(scenario, cards) or feasibility.contradictions(scenario)
    return [each for each in found if each.kind != "contradiction" or each.path[0] not in searched]


def _read_baseline(document: Document, space: SearchSpace) -> Point | None:
    """Return the baseline as a point; raises ConfigError where it lacks a value, or has one outside the space."""
    written = document.data.get("baseline")
    if not written:
        return None
    point: Point = {}
    for parameter in space.parameters:
        if not parameter.exists(point):
            continue
        path = ("baseline", *parameter.keys)
        value: Any = document.data
        for key in path:
            value = schema.step(value, key)
        if value is None and not parameter.active(point):
            value = parameter.domain.first()
        if not parameter.domain.contains(value):
            said = "missing" if value is None else show(value)
            raise document.error(path, f"{said}: allowed: {parameter.domain} (or drop the baseline: baseline={{}})")
        point[parameter.path] = float(value) if isinstance(parameter.domain.first(), float) else value
    _check_rest_of_baseline(document, written, ())
    return point


def _check_rest_of_baseline(document: Document, written: Any, path: Path) -> None:
    """Refuse a baseline that differs from the file where nothing is searched; an override of the file wins."""
    said: Any = document.data
    for key in path:
        said = schema.step(said, key)
    if is_domain(said):
        return
    if isinstance(written, dict) and isinstance(said, dict):
        for key, value in written.items():
            _check_rest_of_baseline(document, value, (*path, key))
        return
    overridden = document.origins.get(path, (None, None))[1] is None and path in document.origins
    if written != said and not overridden:
        message = f"{show(written)}: not searched, and the file says {show(said)}"
        raise document.error(("baseline", *path), message)
