"""The simulator decides as vLLM's own scheduler did: TTFT, finish, cached tokens and preemptions of every request."""

from __future__ import annotations

import pytest

from conformance.recorded import Case, cases
from dynosim.simulation import simulate
from simulation.compare import run_oracle


@pytest.mark.parametrize("case", list(cases("vllm")), ids=lambda case: case.name)
def test_decides_as_vllm(case: Case) -> None:
    assert case.differences(case.simulated(simulate)) == {}


@pytest.mark.parametrize("case", [case for case in cases("vllm") if "mixed" in case.name], ids=lambda case: case.name)
def test_the_oracle_decides_as_vllm(case: Case) -> None:
    found = case.simulated(lambda deployment, workload: run_oracle(deployment, workload)[0])
    assert case.differences(found) == {}
