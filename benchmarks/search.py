"""Hypervolume against trials and wall time: our sampler beside its peers, each in several configurations.

    python benchmarks/search.py                                        # reduced spaces, all methods: hours
    python benchmarks/search.py --space moe --methods bayes --again    # one method on one space: a minute
    python benchmarks/search.py --space moe --methods bayes --in-flight 8
    python benchmarks/search.py --space llama70b --methods bayes,random,tpe --trials 100
    python benchmarks/search.py --show                                 # tables and curves of what was kept

A space in ``benchmarks/spaces`` is enumerated once (``truth.py``) and its points are looked up from then on, so a run
costs only the method's own time and the hypervolume is a share of the true one. Other spaces run on the simulator,
and the share is that of all kept runs together.

Every method gets the same baseline as its first trial and the SLOs as constraints. Only new, valid points are trials:
a proposal that is known to be invalid, or was evaluated before, is told to its method at once, costs no trial and no
simulation. With ``--in-flight N`` the N-th next point is proposed before a result is told, in the order of
proposals, as a study with N workers does.

The hypervolume is that of feasible trials in logarithms of the objectives, from a reference point that is the same for
all: the SLO, or else the worst feasible value. Wall time is the method's CPU time, on one thread, plus that of the
simulations on one worker. Every run is kept in ``benchmarks/results``; an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import sys

import drive
import numpy as np
import optuna
import results
from numpy.typing import NDArray
from peers import METHODS
from results import Run
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits
from truth import SPACES, Problem, Simulated, load_truth

from dynosim.search import pareto
from dynosim.space import SearchSpace

Array = NDArray[np.float64]

CHECKPOINTS = (20, 25, 50, 100, 120, 150)
WALL_S = {0.05: (5, 10, 20, 30), 2.0: (60, 120, 200, 300), 60.0: (1_500, 3_000, 6_000, 9_000)}
"""Seconds per simulation -> wall seconds at which methods are compared."""


def make_runs(problem: Problem, name: str, methods: list[str], arguments: argparse.Namespace) -> None:
    """Make the runs that are not kept yet, seed by seed so that early tables compare all methods."""
    in_flight = arguments.in_flight
    for seed in range(arguments.seeds):
        for method in (method for method in methods if seed < METHODS[method].seeds):
            if (name, method, seed, in_flight) in results.read(name):
                continue
            trials = arguments.trials or METHODS[method].trials
            run = drive.run(problem, name, method, seed, trials, in_flight)
            results.keep(run)
            line = f"{name} {method} seed {seed}: {len(run.cpu_s)} trials, {run.cpu_s[-1]:.0f} CPU-s"
            print(line, file=sys.stderr, flush=True)


def yardstick(problem: str, runs: list[Run]) -> tuple[Array, float]:
    """Return the reference point (log losses, ``m``) and the hypervolume that counts as all."""
    known = results.read_summary(problem)
    if "hypervolume" in known:
        return np.array(known["reference"]), known["hypervolume"]
    every = np.vstack([run.losses for run in runs])
    reference = pareto.reference_point(every, np.array(known["bounds"], dtype=float))
    return reference, pareto.hypervolume(every, reference)


def tables(problem: str, best_only: bool) -> list[Table]:
    """Return the tables of a problem: against trials, against wall time, of proposals in flight."""
    runs = list(results.read(problem).values())
    if not runs:
        return []
    reference, best = yardstick(problem, runs)
    shares = results.shares(runs, reference, best)
    families = {method: METHODS[method].family for method in METHODS}
    trials, walls = _trials_table(problem), {s: _wall_table(problem, s) for s in WALL_S}
    for method in results.best_configurations(shares, families) if best_only else METHODS:
        own = [run for run in runs if run.method == method and run.in_flight == 1]
        if own:
            curves = [shares[run.name] for run in own]
            _add_trials(trials, method, own, curves)
            for simulation_s, table in walls.items():
                cells = [_wall_cell(own, curves, simulation_s, seconds) for seconds in WALL_S[simulation_s]]
                table.add_row(method, *cells)
    every = (trials, *walls.values(), _parallel_table(problem, runs, shares))
    return [table for table in every if table.row_count]


def markdown(table: Table) -> str:
    """Return a table as Markdown, its title above it."""
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    header, *rows = ("| " + " | ".join(cells) + " |" for cells in zip(*columns, strict=True))
    return "\n".join([f"{table.title}\n", header, "|" + "---|" * len(columns), *rows, ""])


def _add_trials(table: Table, method: str, runs: list[Run], curves: list[Array]) -> None:
    at_trials = [results.at_all(curves, n) for n in CHECKPOINTS]
    arrivals = [_arrival([results.reaches(curve, share) for curve in curves], len(curves[0])) for share in (0.95, 0.99)]
    cpu_s = np.mean([results.at(run.cpu_s, 150) / min(len(run.cpu_s), 150) for run in runs])
    asked = np.mean([run.proposals / len(run.cpu_s) for run in runs])
    table.add_row(method, str(len(runs)), *at_trials, *arrivals, f"{cpu_s:.3f}", f"{asked:.1f}")


def _parallel_table(problem: str, runs: list[Run], shares: dict[tuple[str, str, int, int], Array]) -> Table:
    """Return what proposals in flight cost: mean share, and in brackets the difference to one at a time."""
    title = f"{problem}: proposals in flight, mean share (difference to one at a time, same seeds)"
    table = Table("method", "in flight", "seeds", *(f"@{n}" for n in CHECKPOINTS), title=title)
    for method, in_flight in sorted({(run.method, run.in_flight) for run in runs if run.in_flight > 1}):
        own = [run for run in runs if (run.method, run.in_flight) == (method, in_flight)]
        pairs = [(shares[run.name], shares.get((problem, method, run.seed, 1))) for run in own]
        both = [(curve, alone) for curve, alone in pairs if alone is not None]
        cells = []
        for n in CHECKPOINTS if both else ():
            mine, one = (np.mean([results.at(curve, n) for curve in side]) for side in zip(*both, strict=True))
            cells.append(f"{mine:.3f} ({mine - one:+.3f})")
        table.add_row(method, str(in_flight), str(len(both)), *cells)
    return table


def _trials_table(problem: str) -> Table:
    title = f"{problem}: share of the hypervolume by number of trials, median (mean) of the seeds"
    return Table(
        "method", "seeds", *(f"@{n}" for n in CHECKPOINTS), "95 % at", "99 % at", "CPU s", "asked", title=title
    )


def _wall_table(problem: str, simulation_s: float) -> Table:
    title = f"{problem}: the same after so much wall time, simulations of {simulation_s:g} s"
    return Table("method", *(f"{seconds} s" for seconds in WALL_S[simulation_s]), title=title)


def _arrival(trials: list[float], budget: int) -> str:
    median = float(np.median(trials))
    return f"{median:.0f}" if np.isfinite(median) else f"> {budget}"


def _wall_cell(runs: list[Run], curves: list[Array], simulation_s: float, seconds: float) -> str:
    """Return the median share; with a + where some run had ended before, so that it might have got further."""
    walls = [run.wall_s(simulation_s) for run in runs]
    shares = [results.at_wall(curve, wall, seconds) for curve, wall in zip(curves, walls, strict=True)]
    return f"{np.median(shares):.3f}" + ("+" if any(wall[-1] < seconds for wall in walls) else "")


def main() -> None:
    """Parse, make the missing runs, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="autoscaling,tiers,moe,tight", help="names, separated by commas")
    parser.add_argument("--methods", default=",".join(METHODS), help="names in peers.py, separated by commas")
    parser.add_argument("--seeds", type=int, default=5, help="at most; slow peers have fewer")
    parser.add_argument("--trials", type=int, help="default: as many as peers.py says for each method")
    parser.add_argument("--in-flight", type=int, default=1, metavar="N", help="proposals waiting at a time")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override, not for reduced spaces"
    )
    parser.add_argument("--best", action="store_true", help="only the best configuration of each method")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    results.add_arguments(parser)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    results.FOLDER = arguments.results
    methods = arguments.methods.split(",")
    for space in arguments.space.split(","):
        name = "-".join([space, *arguments.set]).replace("/", "-")
        if not arguments.show:
            with threadpool_limits(1):
                make_runs(make_problem(space, name, arguments), name, methods, arguments)
        for table in tables(name, arguments.best):
            if arguments.markdown:
                print(markdown(table))
            else:
                Console(width=140).print(table)


def make_problem(space: str, name: str, arguments: argparse.Namespace) -> Problem:
    """Return the truth of a reduced space, or the simulator, and keep what tables need of it."""
    path = SPACES / f"{space}.yaml"
    problem: Problem = load_truth(str(path)) if path.exists() else Simulated(SearchSpace.load(space, arguments.set))
    summary = problem.summary()
    if arguments.again:
        results.forget(name, arguments.methods.split(","))
    if results.read_summary(name).get("space", summary["space"]) != summary["space"]:
        raise SystemExit(f"{name} has changed since its runs were made: remove {results.FOLDER}/{name}.*")
    results.keep_summary(name, summary)
    return problem


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main()
