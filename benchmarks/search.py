"""Hypervolume against trials: our sampler beside Optuna's, on a search space and the real simulator.

    python benchmarks/search.py --space llama70b --trials 100 --seeds 5

Every method gets the same conditional space, the same baseline as trial 0, the same SLOs as constraints, and
does not pay for points that are known to be infeasible: those are told to it as constraint violations and it
is asked again. Simulations are shared between methods (a configuration is simulated once), so wall time is
not compared here; the CPU seconds are those of asking and telling.

The hypervolume is that of feasible trials in logarithms of the objectives, from a reference point that is the
same for all (the SLO, or else the worst feasible value that any method saw), as a share of the hypervolume of
all methods' trials together. "95 %" is the number of trials at which the median seed gets there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from dynosim.config import Scenario
from dynosim.search import pareto
from dynosim.search.evaluate import evaluate
from dynosim.search.study import Study, run_study
from dynosim.search.trial import Outcome
from dynosim.space import SearchSpace

METHODS = ("bayes", "random", "nsga2", "tpe")
CHECKPOINTS = (20, 30, 50, 100, 200, 300)


class Shared:
    """Evaluates each configuration once, and keeps the time out of the methods' account."""

    def __init__(self, evaluate: Callable[[Scenario], Outcome]) -> None:
        self._evaluate, self._known = evaluate, dict[str, Outcome]()
        self.cpu_s = 0.0

    def __call__(self, scenario: Scenario) -> Outcome:
        start, name = time.process_time(), scenario.content_hash()
        if name not in self._known:
            self._known[name] = self._evaluate(scenario)
        self.cpu_s += time.process_time() - start
        return self._known[name]


def run(space: SearchSpace, method: str, trials: int, seed: int, shared: Shared) -> tuple[Study, float]:
    """Return the study and the CPU seconds per trial that the method itself took."""
    start, simulating = time.process_time(), shared.cpu_s
    study = run_study(space, trials=trials, seed=seed, sampler=method, evaluate=shared)
    return study, (time.process_time() - start - shared.cpu_s + simulating) / trials


def log_losses(study: Study) -> NDArray[np.float64]:
    """Return the losses of the trials, ``n x m``, in logarithms where all are positive; NaN where infeasible."""
    missing = [np.nan] * len(study.objectives)
    values = np.array([t.outcome.values if t.outcome.feasible else missing for t in study.trials], dtype=float)
    return pareto.losses(np.log(values), [objective.direction for objective in study.objectives])


def curves(studies: dict[tuple[str, int], Study]) -> dict[tuple[str, int], list[float]]:
    """Return the share of the best known hypervolume after each trial of each study."""
    losses = {name: log_losses(study) for name, study in studies.items()}
    every = np.vstack([rows[~np.isnan(rows).any(axis=1)] for rows in losses.values()])
    study = next(iter(studies.values()))
    bounds = np.array([np.nan if bound is None else np.log(bound) for bound in study.bounds])
    directions = [objective.direction for objective in study.objectives]
    reference = pareto.reference_point(every, pareto.losses(bounds, directions))
    best = pareto.hypervolume(every, reference)
    return {name: [_volume(rows[: i + 1], reference) / best for i in range(len(rows))] for name, rows in losses.items()}


def _volume(rows: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    return pareto.hypervolume(rows[~np.isnan(rows).any(axis=1)], reference)


def reaches(curve: list[float], share: float) -> float:
    """Return the number of trials after which a curve is at *share*, infinite if it never is."""
    return next((i + 1 for i, volume in enumerate(curve) if volume >= share), float("inf"))


def show(found: dict[tuple[str, int], list[float]], cpu_s: dict[str, list[float]], trials: int, title: str) -> Table:
    """Return the table: mean share of the best known hypervolume (and its standard error) at some numbers of trials."""
    checkpoints = [n for n in CHECKPOINTS if n <= trials]
    table = Table("method", *(f"@{n}" for n in checkpoints), "95 % at", "CPU s / trial", title=title)
    for method, seconds in cpu_s.items():
        own = [curve for (name, _), curve in found.items() if name == method]
        cells = []
        for n in checkpoints:
            at = np.array([curve[min(n, len(curve)) - 1] for curve in own])
            cells.append(f"{at.mean():.3f} ± {at.std(ddof=1) / len(at) ** 0.5:.3f}" if len(at) > 1 else f"{at[0]:.3f}")
        median = np.median([reaches(curve, 0.95) for curve in own])
        arrival = f"{median:.0f}" if np.isfinite(median) else f"> {trials}"
        table.add_row(method, *cells, arrival, f"{np.mean(seconds):.2f}")
    return table


def main() -> None:
    """Parse, run every method and seed, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="llama70b")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override, as in dynosim")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", default=",".join(METHODS))
    arguments = parser.parse_args()

    space = SearchSpace.load(arguments.space, arguments.set)
    shared, start = Shared(evaluate), time.perf_counter()
    studies: dict[tuple[str, int], Study] = {}
    cpu_s: dict[str, list[float]] = {}
    for seed in range(arguments.seeds):
        for method in arguments.methods.split(","):
            studies[method, seed], seconds = run(space, method, arguments.trials, seed, shared)
            cpu_s.setdefault(method, []).append(seconds)
    title = f"{arguments.space}: share of the best known hypervolume, {arguments.seeds} seeds"
    Console(width=120).print(show(curves(studies), cpu_s, arguments.trials, title))
    Console().print(f"{time.perf_counter() - start:.0f} s wall, {' '.join(arguments.set)}")


if __name__ == "__main__":
    main()
