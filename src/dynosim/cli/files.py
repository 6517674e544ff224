"""``dynosim config``, ``spaces`` and ``trace``: what goes into a search."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from dynosim.cli.arguments import add_group, add_verb, format_option, overrides_option
from dynosim.cli.output import OK, print_json, print_rows


def add_config(verbs: Any) -> None:
    group = add_group(verbs, "config", "check, expand and start configuration files")
    for name, function, summary in (
        ("validate", _config_validate, "check a space or configuration file"),
        ("expand", _config_expand, "print the file with every default filled in"),
    ):
        parser = add_verb(group, name, function, summary, [overrides_option()])
        parser.add_argument("config", metavar="CONFIG", help="bundled name or YAML file")
    add_verb(group, "schema", _config_schema, "print the JSON Schema of all YAML files")
    add_verb(group, "coverage", _config_coverage, "print what the simulator makes of every field, as Markdown")
    parser = add_verb(group, "init", _config_init, "print a bundled space as the start of your own")
    parser.add_argument("space", metavar="SPACE", nargs="?", default="tiny", help="bundled name (default: tiny)")


def _config_validate(args: argparse.Namespace) -> int:
    from dynosim.run.spaces import load_space
    from dynosim.space import feasibility

    space = load_space(args.config, overrides=args.overrides)
    if not space.parameters:
        feasibility.check_start(space.reference)
    kind = f"space of {len(space.parameters)} parameters, {space.size():.4g} points" if space.parameters else "scenario"
    print(f"{args.config}: valid {kind}")
    return OK


def _config_expand(args: argparse.Namespace) -> int:
    from dynosim.config.load import dump
    from dynosim.run.spaces import load_space

    space = load_space(args.config, overrides=args.overrides)
    print(dump(_filled(space.fields, space.reference.model_dump(mode="json", exclude_none=True))), end="")
    return OK


def _filled(said: Any, defaults: Any) -> Any:
    """Return what a file says with *defaults* where it says nothing; a search domain stays as it is."""
    from dynosim.config.load import is_domain

    if not isinstance(said, Mapping) or not isinstance(defaults, dict) or is_domain(said):
        return said
    return {**{key: _filled(value, defaults.get(key)) for key, value in said.items()}, **_missing(said, defaults)}


def _missing(said: Mapping[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in defaults.items() if key not in said}


def _config_schema(args: argparse.Namespace) -> int:
    from dynosim.space import json_schema

    print_json(json_schema())
    return OK


def _config_coverage(args: argparse.Namespace) -> int:
    from dynosim.space import coverage

    print(coverage.markdown(), end="")
    return OK


def _config_init(args: argparse.Namespace) -> int:
    from dynosim.space import find_space

    text = find_space(args.space).read_text(encoding="utf-8")
    # Where ``dynosim config schema > space.schema.json`` puts it: the bundled file's own path is not theirs.
    print(text.replace("$schema=../schema/", "$schema="), end="")
    return OK


def add_spaces(verbs: Any) -> None:
    add_verb(verbs, "spaces", _spaces, "list the bundled search spaces", [format_option()])


def _spaces(args: argparse.Namespace) -> int:
    from dynosim.space import SearchSpace, bundled_spaces

    spaces = [SearchSpace.load(name) for name in bundled_spaces()]
    rows = [
        {
            "space": space.name,
            "model": space.reference.deployment.model,
            "gpu": space.reference.deployment.gpu,
            "parameters": len(space.parameters),
            "points": space.size(),
            "description": space.reference.description,
        }
        for space in spaces
    ]
    print_rows(rows, args.format)
    return OK


def add_trace(verbs: Any) -> None:
    group = add_group(verbs, "trace", "look at traces")
    parser = add_verb(group, "stats", _trace_stats, "rate, burstiness, lengths and reuse of a trace", [format_option()])
    parser.add_argument("path", metavar="PATH", help="Mooncake JSONL or Azure CSV, .gz and .zst too")


def _trace_stats(args: argparse.Namespace) -> int:
    from dynosim.workload import describe, read_trace

    stats = describe(read_trace(args.path))
    if args.format == "json":
        print_json(stats)
    else:
        print_rows([{"statistic": key, "value": value} for key, value in _flat(stats)], args.format)
    return OK


def _flat(stats: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (name, value), of nested mappings as ``name.key``."""
    for key, value in stats.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", each) for inner, each in _flat(value))
        else:
            yield key, value
