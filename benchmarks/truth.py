"""What every valid point of a reduced space really gives: the yardstick of ``benchmarks/search.py``.

A space is enumerated once, in processes, and kept as JSON lines below ``runs/truth``, under a name made of the space's
content and dynosim's version. An enumeration that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dynosim import __version__
from dynosim.config import Scenario
from dynosim.objectives import Objective, resolve
from dynosim.search import pareto
from dynosim.search.distributions import Key, Point, decode, encode, key
from dynosim.search.evaluate import evaluate
from dynosim.search.trial import Outcome, Status
from dynosim.space import SearchSpace

Array = NDArray[np.float64]

FOLDER = Path("runs/truth")
_CHUNK = 64
"""Points that a process takes at a time."""


class Problem(Protocol):
    """A space whose points can be judged."""

    space: SearchSpace

    def __call__(self, point: Point) -> Outcome | None:
        """Return what *point* gives; None where it is known not to work without simulating."""

    def summary(self) -> dict[str, Any]:
        """Return what tables need of the problem, so that they can be drawn without it."""


@dataclass(frozen=True)
class Truth:
    """All valid points of a space with their outcomes; looking one up takes microseconds."""

    space: SearchSpace
    outcomes: dict[Key, Outcome]

    def __call__(self, point: Point) -> Outcome | None:
        """Return what *point* gives; None where it is invalid."""
        return self.outcomes.get(key(point))

    @cached_property
    def feasible(self) -> Array:
        """Log losses (``n x m``) of all points that meet every SLO."""
        values = [outcome.values for outcome in self.outcomes.values() if outcome.feasible]
        return log_losses(self.space, np.array(values, dtype=float))

    def summary(self) -> dict[str, Any]:
        """Return the reference point (log losses), the true hypervolume and how large the space is."""
        reference = pareto.reference_point(self.feasible, log_bounds(self.space))
        return {
            "space": self.space.content_hash(),
            "valid": len(self.outcomes),
            "feasible": len(self.feasible),
            "front": int(pareto.nondominated(self.feasible).sum()),
            "reference": reference.tolist(),
            "hypervolume": pareto.hypervolume(self.feasible, reference),
            "simulation_s": float(np.mean([outcome.wall_s for outcome in self.outcomes.values()])),
        }


@dataclass
class Simulated:
    """A space too large to enumerate, on the real simulator; each configuration is simulated once for all methods."""

    space: SearchSpace
    evaluate: Callable[[Scenario], Outcome] = evaluate

    def __post_init__(self) -> None:
        self._known: dict[Key, Outcome | None] = {}

    def __call__(self, point: Point) -> Outcome | None:
        """Return what *point* gives; None where it is known not to work."""
        name = key(point)
        if name not in self._known:
            valid = self.space.infeasible_reason(point) is None
            self._known[name] = self.evaluate(self.space.scenario(point)) if valid else None
        return self._known[name]

    def summary(self) -> dict[str, Any]:
        """Return the SLOs as log losses, null where an objective has none."""
        bounds = log_bounds(self.space).tolist()
        return {"space": self.space.content_hash(), "bounds": [None if np.isnan(bound) else bound for bound in bounds]}


def objectives(space: SearchSpace) -> list[Objective]:
    """Return the objectives of a space."""
    return [resolve(config) for config in space.reference.objectives]


def log_losses(space: SearchSpace, values: Array) -> Array:
    """Return values (``n x m``, positive) as losses in logarithms."""
    directions = [objective.direction for objective in objectives(space)]
    return pareto.losses(np.log(values.reshape(-1, len(directions))), directions)


def log_bounds(space: SearchSpace) -> Array:
    """Return the SLO of each objective as a log loss (``m``), NaN where it has none."""
    return log_losses(space, np.array([np.nan if bound is None else bound for bound in bounds(space)]))[0]


def bounds(space: SearchSpace) -> list[float | None]:
    """Return the SLO of each objective in its own unit, None where it has none."""
    slo, found = space.reference.slo, []
    for objective in objectives(space):
        metric, _, stat = objective.name.partition(".")
        found.append(slo.get(metric, {}).get(stat or ("max" if objective.direction == "minimize" else "min")))
    return found


def load_truth(name_or_path: str, processes: int | None = None) -> Truth:
    """Return the truth of a space, enumerating with *processes* (default: all cores) what is not kept yet."""
    space = SearchSpace.load(name_or_path)
    path = FOLDER / f"{space.name}-{space.content_hash()}-{__version__}.jsonl"
    known = dict(read(path, space)) if path.exists() else {}
    missing = [point for point in space.points() if key(point) not in known]
    if missing:
        known |= _enumerate(name_or_path, space, missing, path, processes or len(os.sched_getaffinity(0)))
    return Truth(space, {name: outcome for name, outcome in known.items() if outcome is not None})


def _enumerate(
    name: str, space: SearchSpace, points: list[Point], path: Path, processes: int
) -> dict[Key, Outcome | None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    found: dict[Key, Outcome | None] = {}
    start = time.monotonic()
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool, path.open("a") as file:
        outcomes = pool.map(_evaluate, repeat(name), points, chunksize=_CHUNK)
        for point, outcome in zip(points, outcomes, strict=True):
            file.write(to_line(point, outcome))
            found[key(point)] = outcome
            if len(found) % _CHUNK == 0:
                file.flush()
                left_s = (time.monotonic() - start) * (len(points) / len(found) - 1)
                print(
                    f"\r{space.name}: {len(found):,} of {len(points):,} points, {left_s:.0f} s left ",
                    end="",
                    file=sys.stderr,
                )
    print(file=sys.stderr)
    return found


_problems: dict[str, Simulated] = {}
"""One per process, so that a space is read once."""


def _evaluate(name: str, point: Point) -> Outcome | None:
    if name not in _problems:
        _problems[name] = Simulated(SearchSpace.load(name))
    return _problems[name](point)


def to_line(point: Point, outcome: Outcome | None) -> str:
    """Return a point with its outcome as one JSON line; its status is null where the point is invalid."""
    row: dict[str, Any] = {"point": encode(point), "status": None}
    if outcome is not None:
        row |= {"status": outcome.status, "values": outcome.values, "constraints": dict(outcome.constraints)}
        row |= {"wall_s": round(outcome.wall_s, 5)}
    return json.dumps(row) + "\n"


def read(path: Path, space: SearchSpace) -> Iterator[tuple[Key, Outcome | None]]:
    """Yield the points of a kept enumeration with their outcomes."""
    for line in path.read_text().splitlines():
        row = json.loads(line)
        status, name = row["status"], key(decode(space, row["point"]))
        yield (
            name,
            status
            and Outcome(
                Status(status), row["values"] and tuple(row["values"]), row["constraints"], wall_s=row["wall_s"]
            ),
        )
