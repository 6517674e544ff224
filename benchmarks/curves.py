"""Curves of the kept runs: ``python benchmarks/curves.py`` draws docs/images/search.svg.

One row per reduced space: share of the true hypervolume against trials, and against wall time for simulations of 0.05 s
and of 2 s. Lines are medians over the seeds, bands reach from the worst seed to the best. Of each peer the
configuration that is best after 50 trials is shown. matplotlib comes with MLflow.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import results
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter
from numpy.typing import NDArray
from peers import METHODS

matplotlib.use("svg")
from matplotlib import pyplot as plt

Array = NDArray[np.float64]

SPACES = ("autoscaling", "tiers", "moe", "tight")
PICTURE = Path(__file__).parents[1] / "docs/images/search.svg"
SIMULATION_S = (0.05, 2.0)
FIRST, TRIALS = 5, 150
POINTS = 80
"""Per line."""
SHARES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999)


def draw_row(axes: list[Axes], problem: str, colors: dict[str, str]) -> None:
    """Draw one space: share against trials, and against wall seconds."""
    truth = results.read_summary(problem)
    families = {method: METHODS[method].family for method in METHODS}
    every = [run for run in results.read(problem).values() if run.in_flight == 1]
    shares = results.shares(every, np.array(truth["reference"]), truth["hypervolume"])
    for method in results.best_configurations(shares, families):
        family, runs = families[method], [run for run in every if run.method == method]
        curves = [shares[run.name] for run in runs]
        last = min(min(map(len, curves)), TRIALS)
        trials = np.unique(np.geomspace(FIRST, last, POINTS).astype(int))
        _draw(axes[0], trials, np.array([curve[trials - 1] for curve in curves]), family, colors)
        for ax, simulation_s in zip(axes[1:], SIMULATION_S, strict=True):
            walls = [run.wall_s(simulation_s) for run in runs]
            end = min(min(wall[-1] for wall in walls), TRIALS * (simulation_s + 0.2))
            seconds = np.geomspace(FIRST * simulation_s, end, POINTS)
            reached = [[results.at_wall(c, w, s) for s in seconds] for c, w in zip(curves, walls, strict=True)]
            _draw(ax, seconds, np.array(reached), family, colors)
    axes[0].set_ylabel(f"{problem} ({len(truth['reference'])} objectives)")


def _draw(ax: Axes, x: Array, shares: Array, family: str, colors: dict[str, str]) -> None:
    """Draw the median and the range of *shares* (seeds x points); the axis is the logarithm of what is missing."""
    missing = np.clip(1.0 - shares, 1.0 - SHARES[-1], 1.0)
    ours = family == "dynosim"
    ax.fill_between(x, missing.min(axis=0), missing.max(axis=0), color=colors[family], alpha=0.15, lw=0)
    ax.plot(x, np.median(missing, axis=0), color=colors[family], lw=2.5 if ours else 1.2, label=family, zorder=2 + ours)


def _style(ax: Axes) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.set_yscale("log")
    ax.set_ylim(1.0, 1.0 - SHARES[-1])
    ax.set_yticks([1.0 - share for share in SHARES], [f"{share:.1%}".replace(".0%", "%") for share in SHARES])
    ax.minorticks_off()
    for share in (0.95, 0.99):
        ax.axhline(1.0 - share, color="0.6", lw=0.6, ls=":")


def main() -> None:
    """Draw the picture."""
    spaces = [space for space in SPACES if results.read_summary(space) and results.read(space)]
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "search", "font.size": 9})
    figure, grid = plt.subplots(len(spaces), 3, figsize=(11, 2.9 * len(spaces)), squeeze=False, layout="constrained")
    kept = {run.method for space in spaces for run in results.read(space).values()}
    families = list(dict.fromkeys(method.family for name, method in METHODS.items() if name in kept))
    colors = {family: "black" if family == "dynosim" else f"C{i}" for i, family in enumerate(families)}
    for axes, space in zip(grid, spaces, strict=True):
        draw_row(list(axes), space, colors)
        for ax in axes:
            _style(ax)
    titles = ["against trials", *(f"against wall seconds, simulations of {s:g} s" for s in SIMULATION_S)]
    for ax, title in zip(grid[0], titles, strict=True):
        ax.set_title(title)
    lines = {line.get_label(): line for ax in grid.flat for line in ax.get_lines() if line.get_label() in families}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
