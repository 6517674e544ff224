"""How much simulation stopping lost causes saves, and whether it ever stops a run that would have met its SLOs.

    python benchmarks/early_stopping.py --points 100 --margins 1 1.5 2 4 benchmarks/spaces/*.yaml llama70b

Random valid points of each space are simulated to the end and with each margin. Seconds are CPU seconds of
``simulate``; the cost of looking is those of runs that are not stopped over those of the same runs without.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np

from dynosim.config import Scenario
from dynosim.metrics import slo_violations, summarize
from dynosim.rng import stream
from dynosim.simulation import LostCause, SimulationResult, simulate
from dynosim.space import SearchSpace
from dynosim.workload import load_workload
from dynosim.workload.table import Workload

HEAD = (
    "| space | margin | SLO missed | stopped | of those missed | s saved | of s of missed | cost of looking |"
    " false stops | bounds too high | told / true |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="+")
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--margins", type=float, nargs="+", default=[1.0, 1.5, 2.0, 4.0])
    parser.add_argument("--rounds", type=int, default=3, help="each run counts with its quickest round")
    args = parser.parse_args()
    print(HEAD, "|" + " --- |" * HEAD.count(" | ") + " --- |", sep="\n")
    for name in args.spaces:
        compare(name, args.points, args.margins, args.rounds)


def compare(name: str, points: int, margins: Sequence[float], rounds: int) -> None:
    """Print one row per margin."""
    space = SearchSpace.load(name)
    scenarios = draw(space, points)
    workload = load_workload(scenarios[0].workload, scenarios[0].seed)
    runs = [compete(s, workload, [None, *(LostCause(s.slo, m) for m in margins)], rounds) for s in scenarios]
    truth = [judge(scenario, row[0][0]) for scenario, row in zip(scenarios, runs, strict=True)]
    missed = np.array([max(violations.values()) > 0.0 for violations in truth])
    full_s = np.array([seconds for (_, seconds), *_ in runs])
    for k, margin in enumerate(margins, 1):
        parts = [row[k] for row in runs]
        stopped = np.array([bool(result.lost) for result, _ in parts])
        part_s = np.array([seconds for _, seconds in parts])
        saved = 1.0 - part_s.sum() / full_s.sum()
        saved_missed = 1.0 - part_s[missed].sum() / full_s[missed].sum()
        looking = part_s[~stopped].sum() / full_s[~stopped].sum() - 1.0
        told = [(low, true[slo]) for (r, _), true in zip(parts, truth, strict=True) for slo, low in r.lost.items()]
        too_high = sum(low > true * (1 + 1e-9) for low, true in told)
        known = np.median([(1 + low) / (1 + true) for low, true in told]) if told else np.nan
        print(
            f"| {space.name} | {margin:g} | {missed.mean():.0%} | {stopped.mean():.0%} |"
            f" {stopped[missed].mean():.0%} | {saved:.0%} | {saved_missed:.0%} | {looking:.1%} |"
            f" {(stopped & ~missed).sum()} | {too_high} of {len(told)} | {known:.2f} |",
            flush=True,
        )


def draw(space: SearchSpace, points: int) -> list[Scenario]:
    """Return random valid scenarios of *space*."""
    rng, found = stream(1, "early stopping"), list[Scenario]()
    while len(found) < points:
        point = space.sample(rng)
        if space.infeasible_reason(point) is None:
            found.append(space.scenario(point))
    return found


def judge(scenario: Scenario, result: SimulationResult) -> dict[str, float]:
    """Return the violation of each SLO."""
    return slo_violations(summarize(result, scenario.slo, scenario.prices), scenario.slo)


def compete(
    scenario: Scenario, workload: Workload, stops: Sequence[LostCause | None], rounds: int
) -> list[tuple[SimulationResult, float]]:
    """Return the result with each of *stops* and its CPU seconds, the fewest of *rounds* rounds."""
    seconds, results = np.full(len(stops), np.inf), list[SimulationResult]()
    for _ in range(rounds):
        results.clear()
        for k, stop in enumerate(stops):
            start = time.process_time()
            results.append(simulate(scenario.deployment, workload, scenario.seed, stop))
            seconds[k] = min(seconds[k], time.process_time() - start)
    return list(zip(results, seconds.tolist(), strict=True))


if __name__ == "__main__":
    main()
