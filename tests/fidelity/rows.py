"""Measured rows and outcomes made up for the tests, and replays that worker processes can import."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynosim.fidelity.measurements import COLUMNS, Measurement
from dynosim.fidelity.replay import Outcome

ROW = {
    "id": "own-l8b-c4",
    "source": "owner/repository results.csv (sweep, May)",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "precision": "bf16",
    "gpu": "H100-SXM-80GB",
    "n_gpus": "1",
    "tp": "1",
    "engine": "vllm",
    "isl": "128",
    "osl": "16",
    "concurrency_or_rate": "4",
    "load_kind": "closed-loop concurrency",
    "ttft_ms_mean": "20",
    "tpot_ms_mean": "7",
    "notes": "max_num_seqs 8, num_requests 20",
}
"""A row of a small model that replays in a moment."""
DENSE, MOE = "tables/nvidia/dense", "tables/nvidia/moe"
"""Classes of evidence."""


def outcome(
    name: str = "own-l8b-c4",
    measured: Mapping[str, float] | None = None,
    predicted: Mapping[str, float] | None = None,
    **changes: Any,
) -> Outcome:
    """Return an outcome whose prediction is exact unless given; *changes* are fields of either class."""
    measured = {"tpot_ms_mean": 10.0, "ttft_ms_mean": 100.0} if measured is None else measured
    fields = {
        "id": name, "source": "s", "model": "m", "precision": None, "gpu": "g", "n_gpus": 1, "tp": 1, "engine": "e",
        "engine_version": None, "isl": 100.0, "osl": 11.0, "load": 4.0, "load_kind": "closed-loop concurrency",
        "notes": "", "folder": Path(), "measured": measured,
    }  # fmt: skip
    own = {key: value for key, value in changes.items() if key in ("evidence", "problem", "requests")}
    row = Measurement(**(fields | {key: value for key, value in changes.items() if key not in own}))  # type: ignore[arg-type]
    return Outcome(row, measured if predicted is None else predicted, **{"evidence": DENSE, **own})


def sweep(ttft_ms: Sequence[float], predicted_ms: Sequence[float] | None = None, **changes: Any) -> list[Outcome]:
    """Return one row per load 2, 4, 8, ... whose TPOT rises with the load and is predicted exactly."""
    predicted_ms = ttft_ms if predicted_ms is None else predicted_ms
    return [
        outcome(
            f"own-c{2**step}",
            {"ttft_ms_mean": measured, "tpot_ms_mean": 10.0 + step},
            {"ttft_ms_mean": predicted, "tpot_ms_mean": 10.0 + step},
            **{"load": 2.0**step, **changes},
        )
        for step, (measured, predicted) in enumerate(zip(ttft_ms, predicted_ms, strict=True), 1)
    ]


def write_set(folder: Path, *rows: Mapping[str, str]) -> Path:
    """Write a set of ROWs with what each of *rows* changes."""
    path = folder / "calibration.csv"
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, restval="")
        table.writeheader()
        table.writerows([ROW | dict(row) for row in rows])
    return path


def exact(row: Measurement) -> Outcome:
    """Predict what was measured; crash or die where the id says so."""
    if row.id.startswith("crash"):
        raise ZeroDivisionError("no requests\nat all")
    if row.id.startswith("die"):
        os.kill(os.getpid(), 9)
    return Outcome(row, row.measured, DENSE, requests={"ttft_ms": np.ones(2), "latency_ms": np.ones(2)})
