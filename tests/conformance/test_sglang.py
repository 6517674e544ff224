"""The simulator decides as SGLang's own scheduler did: TTFT, finish, cached tokens and retractions of every request."""

from __future__ import annotations

import pytest

from conformance.recorded import Case, cases
from dynosim.simulation import simulate
from simulation.compare import run_oracle

ORACLE = ("chunks_pages", "no_cache_pages", "prefix_eviction_pages", "retraction_pages")
"""Scenarios with few blocks: the oracle looks at each of them in every pass."""


@pytest.mark.parametrize("case", list(cases("sglang")), ids=lambda case: case.name)
def test_decides_as_sglang(case: Case) -> None:
    assert case.differences(case.simulated(simulate)) == {}


@pytest.mark.parametrize("case", list(cases("sglang", list(ORACLE))), ids=lambda case: case.name)
def test_the_oracle_decides_as_sglang(case: Case) -> None:
    found = case.simulated(lambda deployment, workload: run_oracle(deployment, workload)[0])
    assert case.differences(found) == {}
