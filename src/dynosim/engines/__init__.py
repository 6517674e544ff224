"""The serving engines: one file per engine with the rules of its versions. A new one is its file and its name in
``config.deployment.EngineName``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, get_args

from dynosim.config import Config, DeploymentConfig, EngineConfig, StartedPool
from dynosim.config.deployment import EngineName
from dynosim.config.schema import Path
from dynosim.engines.base import Behaviour, EngineRules, Graphs, Held, Launch, Server

__all__ = [
    "ENGINES",
    "Behaviour",
    "EngineRules",
    "Graphs",
    "Held",
    "Launch",
    "Server",
    "behaviour",
    "contradictions",
    "rules_of",
    "started",
]


def _by_version(name: str) -> dict[str, EngineRules]:
    versions: tuple[EngineRules, ...] = importlib.import_module(f"dynosim.engines.{name}").VERSIONS
    return {"current": versions[0]} | {rules.version: rules for rules in versions}


ENGINES: dict[str, dict[str, EngineRules]] = {name: _by_version(name) for name in get_args(EngineName)}
"""Name -> first version that has them -> rules, the newest first; ``current`` are the newest."""


def rules_of(engine: EngineConfig) -> EngineRules:
    """Return the rules of *engine*: the newest that its version has; the oldest ones of still older versions."""
    return _rules(engine.name, engine.version)


@lru_cache(maxsize=256)
def _rules(name: str, version: str) -> EngineRules:
    if version == "current":
        return ENGINES[name][version]
    known = [(rules, _release(rules.version)) for rules in ENGINES[name].values()]
    return next((rules for rules, release in known if release <= _release(version)), known[-1][0])


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of a release; candidates, development builds and dates after them leave no trace."""
    return tuple(map(int, re.findall(r"\d+", version.split("rc")[0])))[:3]


def started(server: Server) -> StartedPool:
    """Return the pool of *server* with what it leaves open as the version of its engine fills it in."""
    rules, pool = rules_of(server.engine), server.pool
    limits, ranks = server.among(rules.limits), pool.data_parallel_size if rules.ranks_share_limits else 1
    default = limits.max_num_batched_tokens if pool.enable_chunked_prefill else rules.unchunked_tokens
    default = default or limits.max_num_batched_tokens
    decodes = pool.max_num_seqs or 1 if rules.decodes_take_budget else 1
    budget = pool.max_num_batched_tokens or max(default // ranks, decodes)
    seqs = limits.max_num_seqs
    if server.engine.speculative and rules.drafting_seqs:
        seqs = max(rules.drafting_seqs // ranks, 1)
    filled: dict[str, Any] = {
        "max_num_batched_tokens": budget,
        "max_num_seqs": pool.max_num_seqs or (min(seqs, budget) if rules.decodes_take_budget else seqs),
        "block_size": pool.block_size
        or rules.backend_block_sizes.get(rules.attention_backend(server), rules.block_size),
    }
    server = replace(server, pool=pool.model_copy(update=filled))
    filled["gpu_memory_utilization"] = pool.gpu_memory_utilization or rules.utilization(rules, server)
    return StartedPool.model_construct(**dict(pool) | filled)


def behaviour(engine: EngineConfig, *, hardware: bool, role: str = "mixed") -> Behaviour:
    """Return the behaviour of *engine* in a pool of *role*: what its configuration says, else the engine's own, or none
    under formulas."""
    rules = rules_of(engine)
    own = rules.behaviour if hardware else Behaviour()
    own = replace(own, overlap=own.overlap and (role != "prefill" or rules.overlaps_prefill))
    said: dict[str, Any] = {
        "overlap": engine.async_scheduling,
        "launch_us": engine.launch_overhead_us,
        "pass_us": engine.pass_overhead_us,
        "request_us": engine.request_overhead_us,
        "frontend_ms": engine.frontend_ms,
        "frontend_request_us": engine.frontend_request_us,
    }
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
