"""How well the estimates that the search starts from order the configurations of spaces whose truth is known.

    python benchmarks/estimates.py --space autoscaling,tiers,moe,tight      # enumerated once by truth.py

Spearman's rank correlation of estimate and simulation, and the spread of the logarithm of their ratio: a constant
factor does no harm, it is learned from the first trials. "near" counts configurations that miss no SLO by more than
half, among which the frontier lies.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from truth import SPACES, load_truth, log_losses, objectives

from dynosim.search.distributions import decode
from dynosim.search.rows import Rows
from dynosim.search.samplers.encoding import Featurizer
from dynosim.space import SearchSpace

Array = NDArray[np.float64]

_NEAR = 0.5


def measured(name: str) -> tuple[SearchSpace, Array, Array, NDArray[np.bool_]]:
    """Return a space, the rows of its configurations that ran (``n x p``), their log losses and which are near."""
    truth = load_truth(str(SPACES / f"{name}.yaml"))
    ran = {name: outcome for name, outcome in truth.outcomes.items() if outcome.values}
    rows = Rows(truth.space).of([decode(truth.space, dict(name)) for name in ran])
    losses = log_losses(truth.space, np.array([outcome.values for outcome in ran.values()]))
    near = np.array([max(outcome.constraints.values(), default=0.0) <= _NEAR for outcome in ran.values()])
    return truth.space, rows, losses, near


def compare(name: str, table: Table) -> None:
    """Add one line per objective of space *name*."""
    space, rows, losses, near = measured(name)
    found = Featurizer(Rows(space), serving=True)(rows).prior.objectives
    for j, objective in enumerate(objectives(space)):
        values = found[j]
        if values is None:
            continue
        estimated = log_losses(space, np.column_stack([values] * losses.shape[1]))[:, j]
        cells = []
        for rows_ in (np.ones(len(near), bool), near):
            order = spearmanr(estimated[rows_], losses[rows_, j], nan_policy="omit").statistic
            left = np.nanstd(losses[rows_, j] - estimated[rows_])
            cells += [str(rows_.sum()), f"{order:.3f}", f"{left:.2f}", f"{losses[rows_, j].std():.2f}"]
        table.add_row(name, objective.name, *cells)


def main() -> None:
    """Parse and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="autoscaling,tiers,moe,tight", help="names, separated by commas")
    columns = ("points", "Spearman", "left", "spread")
    table = Table("space", "objective", *columns, *(f"near: {column}" for column in columns))
    for name in parser.parse_args().space.split(","):
        compare(name, table)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
