"""The simulator decides as vLLM's own scheduler did: TTFT, finish, cached tokens and preemptions of every request."""

from __future__ import annotations

import numpy as np
import pytest
from fixtures import COLUMNS
from numpy.typing import NDArray

from conformance.recorded import Case, cases
from dynosim.simulation import simulate
from simulation.compare import run_oracle


def _differences(case: Case, found: dict[str, NDArray[np.float64]]) -> dict[str, tuple[float, float]]:
    """Return what differs: (recorded, found) of each request and column."""
    names = list(COLUMNS)
    return {
        f"request {i} {names[k]}": (case.recorded[names[k]][i], found[names[k]][i])
        for i, k in np.argwhere(~case.equal(found))
    }


@pytest.mark.parametrize("case", list(cases("vllm")), ids=lambda case: case.name)
def test_decides_as_vllm(case: Case) -> None:
    assert _differences(case, case.simulated(simulate)) == {}


@pytest.mark.parametrize("case", [case for case in cases("vllm") if "mixed" in case.name], ids=lambda case: case.name)
def test_the_oracle_decides_as_vllm(case: Case) -> None:
    found = case.simulated(lambda deployment, workload: run_oracle(deployment, workload)[0])
    assert _differences(case, found) == {}
