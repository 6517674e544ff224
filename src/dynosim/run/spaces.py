"""A search space with the arguments that people give beside its file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dynosim.config.goals import canonical
from dynosim.errors import ConfigError
from dynosim.metrics import check_metric
from dynosim.objectives import Objective, refer
from dynosim.space import SearchSpace
from dynosim.timing.calibrated import pinned


def load_space(
    space: str | Path,
    *,
    overrides: Sequence[str] = (),
    trace: str | Path | None = None,
    objectives: Sequence[str | Objective] = (),
) -> SearchSpace:
    """Return *space* with the arguments of ``optimize`` applied; raises ConfigError.

    A profile asked for by its name is named with its hash from here on: what is written down means the same forever.
    What aliases of metrics resolved to is said on stderr.
    """
    given = [*overrides, *_trace_override(trace)]
    if objectives:
        given.append(f"objectives={json.dumps([_objective_field(objective) for objective in objectives])}")
    found = SearchSpace.load(space, given)
    if found.aliases:
        print(", ".join(f"{alias} -> {metric}" for alias, metric in found.aliases.items()), file=sys.stderr)
    profile = found.fields["deployment"].get("calibration")
    if isinstance(profile, str) and pinned(profile) != profile:
        return SearchSpace.load(space, [*given, f"deployment.calibration={pinned(profile)}"])
    return found


def _trace_override(trace: str | Path | None) -> list[str]:
    return [] if trace is None else [f"workload.source={json.dumps({'type': 'trace', 'path': str(trace)})}"]


def _objective_field(objective: str | Objective) -> dict[str, str]:
    """Return *objective* as a field of the space file, which worker processes can read too."""
    if not isinstance(objective, str):
        return {"python": refer(objective)}
    if ":" in objective:
        return {"python": objective}
    if not objective or objective.endswith(".py"):
        raise ConfigError(f"objective {objective!r}: allowed: METRIC, METRIC.STAT or file.py:function")
    metric, _, stat = objective.partition(".")
    check_metric(canonical(metric), stat or None, f"objective {objective!r}")
    return {"metric": metric, **({"stat": stat} if stat else {})}
