"""What calibration is worth on real measurements: every family of the validation set is its own cluster.

    python benchmarks/calibration.py [SET]      default: the runs that come with the package

A family is one source, model, GPU, engine and precision with at least MIN_RUNS unflagged runs. Its constants are
fitted as `dynosim calibrate` does, and each configuration (of one configuration: each length, or load point) is
predicted by those that were fitted without it. Prints a Markdown table of mean absolute errors without a profile ->
left out.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dynosim.calibration.fit import Calibration, Comparison, fit
from dynosim.calibration.readers import MeasuredRun
from dynosim.calibration.replay import Replay
from dynosim.config import Scenario
from dynosim.errors import DynosimError
from dynosim.fidelity.deployments import deployment_of
from dynosim.fidelity.measurements import Measurement, read_measurements
from dynosim.fidelity.replay import timed
from dynosim.fidelity.validate import find_set
from dynosim.fidelity.workloads import workload_of
from dynosim.hardware.startup import check
from dynosim.metrics import METRICS
from dynosim.workload import load_workload

MIN_RUNS = 4
MAX_REQUESTS = 3000
NAMES = {
    "ttft_ms_mean": "time_to_first_token",
    "tpot_ms_mean": "inter_token_latency",
    "output_tok_s_per_gpu": "output_token_throughput",
}


def families(path: Path) -> dict[tuple[str, ...], list[Measurement]]:
    found = defaultdict(list)
    for row in read_measurements(path):
        if not row.flagged:
            place = row.gpu.split()[0], row.engine.split()[0], row.precision or "bf16"
            found[(row.source.split("(")[-1].strip(")"), row.model.split("/")[-1], *place)].append(row)
    return {key: rows for key, rows in sorted(found.items()) if len(rows) >= MIN_RUNS}


def replays(rows: list[Measurement]) -> Iterator[Replay]:
    for row in rows:
        try:
            scenario = Scenario(name=row.id, workload=workload_of(row), deployment=timed(deployment_of(row)))
            workload = load_workload(scenario.workload, scenario.seed)
            check(scenario.deployment)
        except DynosimError:
            continue
        metrics = {NAMES[name]: {"avg": value} for name, value in row.measured.items() if name in NAMES}
        if "output_token_throughput" in metrics:
            metrics["output_token_throughput"]["avg"] *= row.n_gpus
        if metrics and len(workload) <= MAX_REQUESTS:
            lengths = workload.input_tokens.mean(), workload.output_tokens.mean()
            yield Replay(
                MeasuredRun(row.id, "", None, None, len(workload), 0, *lengths, 0.0, metrics), scenario, workload
            )


def row(family: tuple[str, ...], calibration: Calibration) -> str:
    profile = calibration.profile
    fitted = [name for name in profile.standard_errors if name not in profile.not_determined]
    constants = ", ".join(f"{name} {getattr(profile, name):.2f}" for name in fitted)
    cells = [*family, constants or "nothing", profile.left_out, "yes" if profile.recommended else "no"]
    for name in NAMES.values():
        found = profile.residuals.get(name)
        cells.append(f"{found.mape_before:.1%} -> {found.mape_left_out:.1%}" if found else "")
    return "| " + " | ".join(map(str, cells)) + " |"


def total(which: str, rows: list[Comparison]) -> None:
    for name in NAMES.values():
        off = [(abs(r.before / r.measured - 1), abs(r.left_out / r.measured - 1)) for r in rows if r.metric == name]
        if off:
            means, medians = np.mean(off, axis=0), np.median(off, axis=0)
            told = (f"{what} {x:.1%} -> {y:.1%}" for what, (x, y) in {"mean": means, "median": medians}.items())
            print(f"{which}: {METRICS[name].display}, {len(off)} runs: {', '.join(told)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", nargs="?")
    heads = ["source", "model", "GPU", "engine", "precision", "fitted", "left out", "recommended"]
    heads += [METRICS[name].display for name in NAMES.values()]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    rows, recommended = [], []
    for family, measured in families(find_set(parser.parse_args().set)).items():
        runs = list(replays(measured))
        if len(runs) >= MIN_RUNS:
            found = fit(runs, "family")
            print(row(family, found), flush=True)
            rows += found.comparisons
            recommended += found.comparisons if found.profile.recommended else ()
    total("all", rows)
    total("recommended", recommended)


if __name__ == "__main__":
    main()
