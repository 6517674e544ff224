"""Standard problems with mixed variables and constraints, in plain Optuna: our sampler beside Optuna's own.

    python benchmarks/standard.py --trials 80 --seeds 5
    python benchmarks/standard.py --show

Each problem has six variables in [0, 1]: two floats, two integers (in steps of 1/20) and two categories (five values
without an order), all of which contain the optimum, so that the true front is that of the continuous problem.

========  =======================================================  ==========  ===============================
problem   source                                                   objectives  front
========  =======================================================  ==========  ===============================
zdt1      Zitzler, Deb and Thiele 2000                             2           f2 = 1 - sqrt(f1)
dtlz2     Deb, Thiele, Laumanns and Zitzler 2002                   3           sphere of radius 1
c2dtlz2   Jain and Deb 2014 (r = 0.2)                         2           parts of the circle
wfg4      Huband, Hingston, Barone and While 2006, multi-modal     2           ellipse with half axes 2 and 4
========  =======================================================  ==========  ===============================

The hypervolume is the share of the true one, from 1.1 times the nadir, of trials that meet the constraint.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import optuna
import results
from numpy.typing import NDArray
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from results import Run, made_by
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from dynosim.search import pareto
from dynosim.search.samplers import BayesSampler

Array = NDArray[np.float64]

CHECKPOINTS = (20, 40, 60, 80)
_RADIUS = 0.2

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "bayes": lambda seed: BayesSampler(seed=seed),
    "gp": lambda seed: GPSampler(seed=seed, deterministic_objective=True),
    "tpe": lambda seed: TPESampler(seed=seed),
    "nsga2-20": lambda seed: NSGAIISampler(seed=seed, population_size=20),
    "random": lambda seed: RandomSampler(seed=seed),
}


@dataclass(frozen=True)
class Problem:
    """A test problem on [0, 1]^6."""

    optimum: float
    """Of every variable but the first."""
    losses: Callable[[Array], Array]
    """``6`` variables -> ``m`` losses."""
    reference: tuple[float, ...]
    hypervolume: float
    violation: Callable[[Array], Array] | None = None
    """Losses -> violation, at or below 0 is met."""


def zdt1(x: Array) -> Array:
    """Return the two losses of ZDT1."""
    g = 1.0 + 9.0 * x[1:].mean()
    return np.array([x[0], g * (1.0 - np.sqrt(x[0] / g))])


def dtlz2(m: int) -> Callable[[Array], Array]:
    """Return DTLZ2 with *m* losses, whose first m - 1 variables say where on the sphere a point lies."""

    def losses(x: Array) -> Array:
        angles, g = x[: m - 1] * np.pi / 2.0, np.square(x[m - 1 :] - 0.5).sum()
        cosines = np.append(np.cumprod(np.cos(angles))[::-1], 1.0)
        return (1.0 + g) * cosines * np.append(1.0, np.sin(angles[::-1]))

    return losses


def c2(losses: Array) -> Array:
    """Return the violation of C2-DTLZ2 (losses ``... x m``): near a corner, or near the middle of the sphere."""
    m = losses.shape[-1]
    corners = [np.square(losses - corner).sum(axis=-1) for corner in np.eye(m)]
    return np.min([*corners, np.square(losses - m**-0.5).sum(axis=-1)], axis=0) - _RADIUS**2


def wfg4(x: Array) -> Array:
    """Return the two losses of WFG4 with one position variable: s_multi(30, 10, 0.35), r_sum, concave."""
    away = np.abs(x - 0.35) / (2.0 * (np.floor(0.35 - x) + 0.35))
    t = (1.0 + np.cos(122.0 * np.pi * (0.5 - away)) + 40.0 * away**2) / 12.0
    distance, angle = t[1:].mean(), t[0] * np.pi / 2.0
    return distance + np.array([2.0, 4.0]) * np.array([np.sin(angle), np.cos(angle)])


def _c2_hypervolume(reference: tuple[float, float]) -> float:
    """Return the hypervolume of C2-DTLZ2 with two losses from a fine grid: no closed form is published."""
    angles, radii = np.meshgrid(np.linspace(0.0, np.pi / 2.0, 2_001), np.linspace(1.0, 1.3, 201))
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1).reshape(-1, 2)
    return pareto.hypervolume(points[c2(points) <= 0.0], np.array(reference))


def problems() -> dict[str, Problem]:
    """Return the problems by name; hypervolumes are the box less the area or volume below the front."""
    return {
        "zdt1": Problem(0.0, zdt1, (1.1, 1.1), 1.1**2 - 1.0 / 3.0),
        "dtlz2": Problem(0.5, dtlz2(3), (1.1, 1.1, 1.1), 1.1**3 - np.pi / 6.0),
        "c2dtlz2": Problem(0.5, dtlz2(2), (1.1, 1.1), _c2_hypervolume((1.1, 1.1)), c2),
        "wfg4": Problem(0.35, wfg4, (2.2, 4.4), 2.2 * 4.4 - np.pi * 2.0 * 4.0 / 4.0),
    }


def suggest(trial: optuna.Trial, optimum: float) -> Array:
    """Return the six variables: two floats, two integers, two categories."""
    categories = {"a": 0.8, "b": optimum, "c": 0.1, "d": 1.0, "e": 0.6}
    floats = [trial.suggest_float(name, 0.0, 1.0) for name in ("x1", "x2")]
    integers = [trial.suggest_int(name, 0, 20) / 20.0 for name in ("x3", "x4")]
    names = [trial.suggest_categorical(name, list(categories)) for name in ("x5", "x6")]
    return np.array([*floats, *integers, *(categories[name] for name in names)])


def run(name: str, problem: Problem, method: str, seed: int, trials: int) -> Run:
    """Return one run of a sampler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(directions=["minimize"] * len(problem.reference), sampler=SAMPLERS[method](seed))
    losses, cpu_s, start = np.full((trials, len(problem.reference)), np.nan), [], time.process_time()
    for i in range(trials):
        trial = study.ask()
        found = problem.losses(suggest(trial, problem.optimum))
        violation = float(problem.violation(found)) if problem.violation else 0.0
        if problem.violation:
            trial.set_constraint("c2", violation)
        study.tell(trial, found.tolist())
        cpu_s.append(round(time.process_time() - start, 4))
        if violation <= 0.0:
            losses[i] = found
    return Run(name, method, seed, 1, results.front_steps(losses), cpu_s, trials, made_by("standard.py"))


def show(console: Console) -> None:
    """Print a table of what was kept."""
    title = "share of the true hypervolume by number of trials, median (mean) of the seeds"
    table = Table("problem", "method", "seeds", *(f"@{n}" for n in CHECKPOINTS), "CPU s per trial", title=title)
    for name, problem in problems().items():
        kept = results.read(name).values()
        for method in SAMPLERS:
            runs = [run for run in kept if run.method == method]
            curves = [run.hypervolume(np.array(problem.reference)) / problem.hypervolume for run in runs]
            if runs:
                cpu_s = np.mean([run.cpu_s[-1] / len(run.cpu_s) for run in runs])
                cells = [results.at_all(curves, n) for n in CHECKPOINTS]
                table.add_row(name, method, str(len(runs)), *cells, f"{cpu_s:.3f}")
        table.add_section()
    console.print(table)


def main() -> None:
    """Parse, make the missing runs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(SAMPLERS), help="names, separated by commas")
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=5)
    results.add_arguments(parser)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    results.FOLDER = arguments.results
    methods = arguments.methods.split(",")
    for name, problem in problems().items() if not arguments.show else ():
        if arguments.again:
            results.forget(name, methods)
        for seed in range(arguments.seeds):
            for method in methods:
                if (name, method, seed, 1) not in results.read(name):
                    with threadpool_limits(1):
                        results.keep(run(name, problem, method, seed, arguments.trials))
                    print(name, method, seed, file=sys.stderr, flush=True)
    show(Console(width=140))


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main()
