"""What the engines' constants owe to the rows that they were fitted to: every configuration is left out in turn.

    python benchmarks/left_out.py [SET]

A configuration is a model on a GPU with an engine, of one source. The constants of ``dynosim.engines`` are fitted again
to all others, and its rows are predicted with those. Fits are robust least squares on ln(predicted / measured) of TPOT,
unsaturated TTFT and throughput, which are taken as linear in the constants: one more replay of all rows per constant.
Engines with the same value share it, as in the table; values that add nothing are not fitted. Takes five minutes of two
cores and writes ``fidelity/left_out.json``, which ``dynosim validate --write-docs`` prints. Left out: other kernel
tables, and the choice of what has a constant at all, which was made in the sight of all rows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from dynosim.engines import ENGINES, Behaviour
from dynosim.fidelity.document import LEFT_OUT
from dynosim.fidelity.errors import THROUGHPUT, TPOT, UNSATURATED, Pair, grouped, labels_of, pairs_of
from dynosim.fidelity.measurements import read_measurements
from dynosim.fidelity.replay import replay
from dynosim.fidelity.validate import find_set
from dynosim.search.workers import count_workers

STEP = 0.2
"""Relative change of a constant whose effect on every row is replayed."""
WEIGHTS = {TPOT: 1.0, THROUGHPUT: 1.0, UNSATURATED: 0.4}
"""TTFT is scattered by what no constant explains."""
SOFT = 0.1
"""Residuals beyond this count less than their square."""
MOST = 2.0
"""A fit may shrink what a constant adds to nothing and grow it by this factor more."""
NEUTRAL = {field.name: field.default for field in fields(Behaviour) if isinstance(field.default, float)}

Array = NDArray[np.float64]


class Constant(NamedTuple):
    """One number of the table and the engines that share it."""

    name: str
    value: float
    engines: tuple[str, ...]


def constants() -> list[Constant]:
    """Return the constants that add something."""
    found = grouped(
        (
            (name, getattr(versions["current"].behaviour, name), engine)
            for engine, versions in ENGINES.items()
            for name in NEUTRAL
        ),
        lambda cell: cell[:2],
    )
    return [
        Constant(name, value, tuple(engine for *_, engine in cells))
        for (name, value), cells in found.items()
        if value != NEUTRAL[name]
    ]


def replayed(path: Path, constant: Constant | None) -> list[Pair]:
    """Return all pairs with *constant* adding STEP more than it does; meant for a process of its own."""
    for engine in constant.engines if constant else ():
        more = constant.value + STEP * (constant.value - NEUTRAL[constant.name])
        for version, rules in ENGINES[engine].items():
            ENGINES[engine][version] = replace(rules, behaviour=replace(rules.behaviour, **{constant.name: more}))
    rows = [row for row in read_measurements(path) if not row.flagged]
    return [pair for row in rows for pair in pairs_of(replay(row)) if pair.metric in WEIGHTS]


def fitted(residuals: Array, slopes: Array, weights: Array) -> Array:
    """Return the relative changes of all constants that fit best."""
    found = least_squares(
        lambda x: weights * (residuals + slopes @ x),
        np.zeros(slopes.shape[1]),
        loss="soft_l1",
        f_scale=SOFT,
        bounds=(-1.0, MOST),
    )
    return np.asarray(found.x)


def main(path: Path) -> None:
    """Write and print the table."""
    changed = constants()
    with get_context("spawn").Pool(count_workers("auto"), maxtasksperchild=1) as pool:
        base, *others = pool.map(partial(replayed, path), [None, *changed], chunksize=1)
    logs = np.log([[pair.predicted for pair in pairs] for pairs in (base, *others)])
    residuals = logs[0] - np.log([pair.measured for pair in base])
    slopes, weights = (logs[1:] - logs[0]).T / STEP, np.array([WEIGHTS[pair.metric] for pair in base])
    groups = np.array([" ".join(labels_of(pair.outcome)) for pair in base])
    left_out, folds = residuals.copy(), []
    for group in np.unique(groups):
        rest = groups != group
        folds.append(fitted(residuals[rest], slopes[rest], weights[rest]))
        left_out[~rest] += slopes[~rest] @ folds[-1]
    again = residuals + slopes @ fitted(residuals, slopes, weights)
    report = {
        "configurations": len(folds),
        "constants": len(changed),
        "errors": table(base, {"as they are": residuals, "fitted to all": again, "left out": left_out}),
    }
    LEFT_OUT.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    for constant, low, high in zip(changed, np.min(folds, axis=0), np.max(folds, axis=0), strict=True):
        added = constant.value - NEUTRAL[constant.name]
        print(f"{constant.name} of {', '.join(constant.engines)}: {constant.value:g}, fits from "
              f"{constant.value + low * added:.3g} to {constant.value + high * added:.3g}")  # fmt: skip


def table(pairs: Sequence[Pair], logs: dict[str, Array]) -> dict[str, dict[str, float]]:
    """Return the MAPE of each kind of row under each of *logs*, ln(predicted / measured)."""
    kinds = {
        "dense TPOT": [pair.metric == TPOT and not _moe(pair) for pair in pairs],
        "MoE TPOT": [pair.metric == TPOT and _moe(pair) for pair in pairs],
        "TTFT < 5 s": [pair.metric == UNSATURATED for pair in pairs],
        "throughput": [pair.metric == THROUGHPUT for pair in pairs],
    }
    return {
        kind: {"rows": sum(chosen)}
        | {name: round(float(np.abs(np.expm1(values[chosen])).mean()), 4) for name, values in logs.items()}
        for kind, chosen in kinds.items()
    }


def _moe(pair: Pair) -> bool:
    return "moe" in pair.outcome.evidence.split("/")


if __name__ == "__main__":
    main(find_set(sys.argv[1] if len(sys.argv) > 1 else None))
