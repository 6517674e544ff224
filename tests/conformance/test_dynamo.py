"""The simulator gives what NVIDIA Dynamo's own replay gives, where it is told to do as that does."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import record_dynamo

CASES: dict[str, dict[str, Any]] = json.loads(record_dynamo.FILE.read_text())["cases"]
SEEDS = 5


@cache
def _means(name: str) -> dict[str, float]:
    seeds = range(SEEDS if CASES[name]["router"] is not None else 1)
    runs = [record_dynamo.ours(CASES[name], seed) for seed in seeds]
    return {measure: float(np.mean([run[measure] for run in runs])) for measure in record_dynamo.MEASURES}


@pytest.mark.parametrize("measure", record_dynamo.MEASURES)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["router"] is None])
def test_equals_the_peer(name: str, measure: str) -> None:
    """A batch's new tokens are rounded there."""
    (run,) = CASES[name]["peer"]
    assert _means(name)[measure] == pytest.approx(run[measure], rel=5e-4)


@pytest.mark.parametrize("measure", record_dynamo.MEASURES)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["router"] is not None])
def test_is_among_the_runs_of_a_peer_that_draws(name: str, measure: str) -> None:
    """Its router breaks ties at random."""
    runs = [run[measure] for run in CASES[name]["peer"]]
    assert min(runs) * (1 - 5e-4) <= _means(name)[measure] <= max(runs) * (1 + 5e-4)
