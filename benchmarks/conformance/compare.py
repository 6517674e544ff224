"""How far simulations are from what an engine's own scheduler decided in the scenarios of tests/conformance.

python benchmarks/conformance/compare.py                      # one line per case
python benchmarks/conformance/compare.py seats --show         # and every request that differs
python benchmarks/conformance/compare.py --oracle             # the pass-by-pass oracle in place of the engine
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[2] / "tests"))

from fixtures import COLUMNS

from conformance.recorded import Case, Simulate, cases
from dynosim.simulation import simulate
from simulation.compare import run_oracle


def _simulate(oracle: bool) -> Simulate:
    return (lambda deployment, workload: run_oracle(deployment, workload)[0]) if oracle else simulate


def _line(case: Case, found: dict[str, np.ndarray]) -> tuple[str, int, int]:
    """Return the table's line, requests that are equal, and all."""
    equal = case.equal(found)
    same, worst = int(equal.all(axis=1).sum()), float(np.abs(found["ttft_s"] - case.recorded["ttft_s"]).max())
    counts = [
        f"{sum(case.recorded[name]):>7.0f}/{found[name].sum():<7.0f}" for name in ("preemptions", "cached_tokens")
    ]
    mark = "" if equal.all() else "  differs in " + ", ".join(np.array(list(COLUMNS))[~equal.all(axis=0)])
    return f"{case.name:36} {same:>4}/{len(equal):<4} {worst:>12.6g}  {'  '.join(counts)}{mark}", same, len(equal)


def _show(case: Case, found: dict[str, np.ndarray]) -> None:
    for i in np.flatnonzero(~case.equal(found).all(axis=1)):
        values = (f"{name} {case.recorded[name][i]:.6f}/{found[name][i]:.6f}" for name in COLUMNS)
        print(f"    request {i:3}: {'  '.join(values)}")


def main() -> int:
    """Print the table; return 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="vllm", help="folder of tests/conformance")
    parser.add_argument("--oracle", action="store_true", help="compare the oracle")
    parser.add_argument("--show", action="store_true", help="print every request that differs: recorded/simulated")
    parser.add_argument("names", nargs="*", help="scenarios; all where none is named")
    arguments = parser.parse_args()
    print(f"{'case':36} {'equal':>9} {'worst TTFT s':>12}  {'preempted':^15}  {'cached':^15}  (recorded/simulated)")
    cases_equal, requests, total, all_cases = 0, 0, 0, 0
    for case in cases(arguments.engine, arguments.names):
        all_cases += 1
        found = case.simulated(_simulate(arguments.oracle))
        line, same, count = _line(case, found)
        print(line)
        cases_equal, requests, total = cases_equal + (same == count), requests + same, total + count
        if arguments.show:
            _show(case, found)
    print(f"{cases_equal}/{all_cases} cases and {requests}/{total} requests are equal")
    return int(cases_equal < all_cases)


if __name__ == "__main__":
    sys.exit(main())
