"""Runs of search methods, kept as JSON lines in ``benchmarks/results``, and what tables and curves read from them."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.search import pareto

Array = NDArray[np.float64]

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Run:
    """One method with one seed on one problem."""

    problem: str
    method: str
    seed: int
    in_flight: int
    """Proposals that were waiting for their results at a time."""
    front: list[list[float]]
    """Number (from 1) and log losses of each feasible trial that no earlier one dominated."""
    cpu_s: list[float]
    """CPU seconds of the method itself up to the result of each trial."""
    proposals: int
    """Trials, and proposals that cost none: known to be invalid, or already evaluated."""
    made: dict[str, Any] = field(default_factory=dict)
    """Command, machine, versions, date."""

    @property
    def name(self) -> tuple[str, str, int, int]:
        """What makes it another run."""
        return self.problem, self.method, self.seed, self.in_flight

    @cached_property
    def losses(self) -> Array:
        """Log losses of ``front``, ``p x m``."""
        return np.array([row[1:] for row in self.front])

    def hypervolume(self, reference: Array) -> Array:
        """Return the hypervolume after each trial (``n``)."""
        volume = np.zeros(len(self.cpu_s))
        for i, row in enumerate(self.front):
            volume[int(row[0]) - 1 :] = pareto.hypervolume(self.losses[: i + 1], reference)
        return volume

    def wall_s(self, simulation_s: float) -> Array:
        """Return the wall seconds up to each trial (``n``) with one worker that simulates for *simulation_s*."""
        return np.array(self.cpu_s) + simulation_s * np.arange(1, len(self.cpu_s) + 1)


def front_steps(losses: Array) -> list[list[float]]:
    """Return ``Run.front`` of the log losses of all trials (``n x m``, NaN where infeasible)."""
    steps: list[list[float]] = []
    best = np.zeros((0, losses.shape[1]))
    for number, row in enumerate(losses, 1):
        if np.isnan(row).any() or (best <= row).all(axis=1).any():
            continue
        best = np.vstack([best, row])
        steps.append([number, *(round(loss, 6) for loss in row.tolist())])
    return steps


def read(problem: str) -> dict[tuple[str, str, int, int], Run]:
    """Return the kept runs of a problem."""
    path = FOLDER / f"{problem}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {run.name: run for run in (Run(**json.loads(line)) for line in lines)}


def keep(run: Run) -> None:
    """Append a run, at once: an interrupted benchmark goes on from here."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{run.problem}.jsonl").open("a") as file:
        file.write(json.dumps(asdict(run)) + "\n")


def forget(problem: str, methods: Iterable[str]) -> None:
    """Drop the runs of some methods, so that they are made again."""
    kept = [run for run in read(problem).values() if run.method not in set(methods)]
    (FOLDER / f"{problem}.jsonl").write_text("".join(json.dumps(asdict(run)) + "\n" for run in kept))


Name = tuple[str, str, int, int]


def shares(runs: Iterable[Run], reference: Array, best: float) -> dict[Name, Array]:
    """Return the share of the hypervolume *best* after each trial of each run."""
    return {run.name: run.hypervolume(reference) / best for run in runs}


def best_configurations(shares: dict[Name, Array], families: Mapping[str, str], trials: int = 50) -> list[str]:
    """Return the best method of each family by its median after some trials, in the order of *families*."""
    level = {
        method: float(np.median([at(curve, trials) for (_, name, _, _), curve in shares.items() if name == method]))
        for method in {name for _, name, _, in_flight in shares if in_flight == 1}
    }
    best = {families[method]: method for method in sorted(level, key=lambda method: level[method])}
    return [method for method in families if method in best.values()]


def at(curve: Sequence[float] | Array, n: int) -> float:
    """Return the value after *n* trials; the last one of a shorter run."""
    return float(curve[min(n, len(curve)) - 1])


def at_wall(curve: Array, wall_s: Array, seconds: float) -> float:
    """Return the value after *seconds* of wall time, 0 before the first result."""
    done = int(np.searchsorted(wall_s, seconds, side="right"))
    return float(curve[done - 1]) if done else 0.0


def reaches(curve: Array, share: float) -> float:
    """Return the number of trials after which a curve is at *share*, infinite if it never is."""
    return float(np.argmax(curve >= share) + 1) if (curve >= share).any() else np.inf


def keep_summary(problem: str, summary: dict[str, Any]) -> None:
    """Keep what tables need of a problem beside its runs."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{problem}.json").write_text(json.dumps(summary) + "\n")


def read_summary(problem: str) -> dict[str, Any]:
    """Return what ``keep_summary`` kept, or nothing."""
    path = FOLDER / f"{problem}.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def at_all(curves: list[Array], n: int) -> str:
    """Return the median and the mean after *n* trials as the tables show them; a dash where runs are shorter."""
    if min(map(len, curves)) < n:
        return "-"
    values = [curve[n - 1] for curve in curves]
    return f"{np.median(values):.3f} ({np.mean(values):.3f})"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that all benchmarks of the search have."""
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the kept runs")
    parser.add_argument("--again", action="store_true", help="forget the kept runs of these methods and problems first")
    parser.add_argument("--show", action="store_true", help="only draw what was kept")


def made_by(script: str) -> dict[str, Any]:
    """Return the command, the machine and the versions."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    packages = ("optuna", "botorch", "torch", "numpy", "ax-platform", "HEBO", "smac")
    installed = {name: version for name in packages if (version := _version(name))}
    return {
        "command": " ".join(["python", f"benchmarks/{script}", *_repeatable(sys.argv[1:])]),
        "machine": f"{cpu or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": " ".join(f"{name} {version}" for name, version in installed.items()),
        "commit": commit,
        "date": date.today().isoformat(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _repeatable(arguments: list[str]) -> list[str]:
    """Return *arguments* without the folder of the kept runs, which is a matter of the machine."""
    kept = iter(arguments)
    return [each for each in kept if not each.startswith("--results=") and (each != "--results" or not next(kept, ""))]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
