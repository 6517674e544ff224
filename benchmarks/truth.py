"""What every valid point of a reduced space really gives: the yardstick of ``benchmarks/search.py``.

    python benchmarks/truth.py autoscaling tiers moe tight        # minutes to half an hour each, on all cores

A space is enumerated once, in processes, and kept as JSON lines below ``runs/truth``, under a name made of the contents
of the space and of the simulator. Another engine is another truth, unless 64 random points give the same on both. An
enumeration that was interrupted goes on where it stopped. Every point is simulated to its end; of a run that a study
would have ended early the bounds that it is told are kept too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
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

from dynosim.config import Scenario
from dynosim.objectives import Objective, resolve
from dynosim.search import pareto
from dynosim.search.cache import simulator_version
from dynosim.search.distributions import Key, Point, decode, encode, key
from dynosim.search.evaluate import evaluate
from dynosim.search.trial import Outcome, Status
from dynosim.space import SearchSpace

Array = NDArray[np.float64]

SPACES = Path(__file__).parent / "spaces"
FOLDER = Path("runs/truth")
_CHUNK = 16
"""Points that a process takes at a time."""
_SAMPLE = 64
"""Points that must be the same on two engines for one's enumeration to hold for the other."""

Ends = tuple[Outcome, Outcome | None]
"""What a point gives when it is simulated to its end, and what a study is told where it ends the run early."""


class Problem(Protocol):
    """A space whose points can be judged."""

    space: SearchSpace

    def __call__(self, point: Point, *, stop: bool = False) -> Outcome | None:
        """Return what *point* gives; None where it is known not to work without simulating.

        With *stop* a run that is bound to miss an SLO is ended early, as a study with one of our samplers does.
        """

    def summary(self) -> dict[str, Any]:
        """Return what tables need of the problem, so that they can be drawn without it."""


@dataclass(frozen=True)
class Truth:
    """All valid points of a space with their outcomes; looking one up takes microseconds."""

    space: SearchSpace
    outcomes: dict[Key, Outcome]
    lost: dict[Key, Outcome]
    """What a study is told of runs that it ends early."""

    def __call__(self, point: Point, *, stop: bool = False) -> Outcome | None:
        """Return what *point* gives; None where it is invalid."""
        name = key(point)
        return (self.lost.get(name) if stop else None) or self.outcomes.get(name)

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
        self._known: dict[tuple[Key, bool], Outcome | None] = {}
        baseline = self.space.baseline_point()
        self._baseline = None if baseline is None else key(baseline)

    def __call__(self, point: Point, *, stop: bool = False) -> Outcome | None:
        """Return what *point* gives; None where it is known not to work. The baseline always runs to its end."""
        name = key(point), stop and key(point) != self._baseline
        if name not in self._known:
            valid = self.space.infeasible_reason(point) is None
            self._known[name] = self._judge(point, stop=name[1]) if valid else None
        return self._known[name]

    def _judge(self, point: Point, *, stop: bool) -> Outcome:
        scenario = self.space.scenario(point)
        plan = scenario.optimizer.model_copy(update={"stop_lost_runs": stop})
        return self.evaluate(scenario.model_copy(update={"optimizer": plan}))

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
    path = FOLDER / f"{space.name}-{space.content_hash()}-{simulator_version()[:8]}.jsonl"
    if not path.exists():
        _take_over(path, space)
    known = dict(read(path, space)) if path.exists() else {}
    points = {key(point): point for point in space.points()}
    missing = [point for name, point in points.items() if name not in known]
    if missing:
        known |= _enumerate(name_or_path, space, missing, path, processes or len(os.sched_getaffinity(0)))
    valid = {name: ends for name in points if (ends := known[name]) is not None}
    return Truth(
        space,
        {name: whole for name, (whole, _) in valid.items()},
        {name: lost for name, (_, lost) in valid.items() if lost is not None},
    )


def _take_over(path: Path, space: SearchSpace) -> None:
    """Copy the newest enumeration by another engine to *path* if a sample of it comes out the same on today's."""
    kept = sorted(
        path.parent.glob(f"{space.name}-{space.content_hash()}-*.jsonl"), key=lambda file: file.stat().st_mtime
    )
    if not kept:
        return
    known, problem = [*dict(read(kept[-1], space)).items()], Simulated(space)
    for i in np.random.default_rng(0).choice(len(known), min(_SAMPLE, len(known)), replace=False):
        name, ends = known[i]
        if _facts(ends) != _facts(both_ends(problem, decode(space, dict(name)))):
            return
    shutil.copy(kept[-1], path)


def _enumerate(
    name: str, space: SearchSpace, points: list[Point], path: Path, processes: int
) -> dict[Key, Ends | None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    found: dict[Key, Ends | None] = {}
    start = time.monotonic()
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool, path.open("a", buffering=1) as file:
        for point, ends in zip(points, pool.map(_evaluate, repeat(name), points, chunksize=_CHUNK), strict=True):
            file.write(to_line(point, ends))
            found[key(point)] = ends
            if len(found) % _CHUNK == 0:
                left_s = (time.monotonic() - start) * (len(points) / len(found) - 1)
                progress = f"\r{space.name}: {len(found):,} of {len(points):,} points, {left_s:.0f} s left "
                print(progress, end="", file=sys.stderr)
    print(file=sys.stderr)
    return found


_problems: dict[str, Simulated] = {}
"""One per process, so that a space is read once."""


def _evaluate(name: str, point: Point) -> Ends | None:
    if name not in _problems:
        _problems[name] = Simulated(SearchSpace.load(name))
    return both_ends(_problems[name], point)


def both_ends(problem: Problem, point: Point) -> Ends | None:
    """Return what a point gives to its end, and what a study is told if it ends the run early; None if invalid."""
    told = problem(point, stop=True)
    if told is None or told.status is not Status.LOST:
        return told and (told, None)
    whole = problem(point)
    assert whole is not None
    return whole, told


def _facts(ends: Ends | None) -> object:
    return ends and [(end.status, end.values, dict(end.constraints)) for end in ends if end is not None]


def to_line(point: Point, ends: Ends | None) -> str:
    """Return a point with its outcome as one JSON line; its status is null where the point is invalid."""
    row: dict[str, Any] = {"point": encode(point), "status": None}
    if ends is not None:
        whole, lost = ends
        row |= {"status": whole.status, "values": whole.values, "constraints": dict(whole.constraints)}
        row |= {"lost": lost and dict(lost.constraints), "wall_s": round(whole.wall_s, 5)}
    return json.dumps(row) + "\n"


def read(path: Path, space: SearchSpace) -> Iterator[tuple[Key, Ends | None]]:
    """Yield the points of a kept enumeration with their outcomes."""
    for line in path.read_text().splitlines():
        row = json.loads(line)
        yield key(decode(space, row["point"])), row["status"] and _ends(row)


def _ends(row: dict[str, Any]) -> Ends:
    values, lost = row["values"] and tuple(row["values"]), row["lost"]
    whole = Outcome(Status(row["status"]), values, row["constraints"], wall_s=row["wall_s"])
    return whole, lost and Outcome(Status.LOST, constraints=lost)


def main() -> None:
    """Enumerate the spaces named, and print how large each is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="+", help="names in benchmarks/spaces")
    for name in parser.parse_args().spaces:
        print(name, json.dumps(load_truth(str(SPACES / f"{name}.yaml")).summary()), flush=True)


if __name__ == "__main__":
    main()
