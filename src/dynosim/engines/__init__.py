"""The serving engines: one file per engine with the rules of its versions. A new one is its file and its name in
``config.deployment.EngineName``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

from dynosim.config import Config, DeploymentConfig, EngineConfig
from dynosim.config.deployment import EngineName
from dynosim.config.schema import Path
from dynosim.engines.base import Behaviour, EngineRules, Launch

__all__ = [
    "ENGINES",
    "Behaviour",
    "EngineRules",
    "Launch",
    "behaviour",
    "contradictions",
    "rules_of",
]

ENGINES: dict[str, dict[str, EngineRules]] = {
    name: importlib.import_module(f"dynosim.engines.{name}").VERSIONS for name in get_args(EngineName)
}
"""Name -> version -> rules; ``current`` are those of the newest one."""


def rules_of(engine: EngineConfig) -> EngineRules:
    """Return the rules of *engine*; of a version without rules of its own, those of the newest."""
    versions = ENGINES[engine.name]
    return versions.get(engine.version, versions["current"])


def behaviour(engine: EngineConfig, *, hardware: bool) -> Behaviour:
    """Return the behaviour of *engine*: what its configuration says, else the engine's own, or none under formulas."""
    own = rules_of(engine).behaviour if hardware else Behaviour()
    said: dict[str, Any] = {
        "overlap": engine.async_scheduling,
        "launch_us": engine.launch_overhead_us,
        "pass_us": engine.pass_overhead_us,
        "request_us": engine.request_overhead_us,
        "frontend_ms": engine.frontend_ms,
    }
    if engine.cudagraph_mode is not None:
        said["piecewise"] = engine.cudagraph_mode == "FULL_AND_PIECEWISE"
    found = replace(own, **{name: value for name, value in said.items() if value is not None})
    serial = engine.pass_overhead_us is None and not found.overlap
    return replace(found, pass_us=found.pass_us + found.serial_us) if serial else found


def contradictions(deployment: DeploymentConfig) -> Iterator[tuple[Path, str]]:
    """Yield (section, message) of what the engine of *deployment* could not be started with."""
    engine = deployment.engine
    sections: list[tuple[Path, Config]] = [(("deployment", "engine"), engine)]
    sections += [(("deployment",), pool) for pool in deployment.pools().values()]
    for name, versions in ENGINES.items():
        for setting in versions["current"].settings if name != engine.name else ():
            for path, section in sections:
                field = type(section).model_fields.get(setting)
                if field is not None and getattr(section, setting) != field.default:
                    yield path, f"{setting} has no effect under engine {engine.name}: it is a setting of {name}"
    rules = rules_of(engine)
    for pool in deployment.pools().values():
        if pool.num_gpu_blocks_override is not None and pool.num_gpu_blocks_override <= rules.null_blocks:
            message = (
                f"num_gpu_blocks_override ({pool.num_gpu_blocks_override}) must be above {rules.null_blocks},"
                f" the blocks that {rules.title} never gives out"
            )
            yield ("deployment",), message
        block_size = pool.block_size or rules.block_size
        if rules.whole_pages and block_size > pool.max_num_batched_tokens:
            message = (
                f"max_num_batched_tokens ({pool.max_num_batched_tokens}) must be at least block_size"
                f" ({block_size}): {rules.title} prefills whole pages"
            )
            yield ("deployment",), message
