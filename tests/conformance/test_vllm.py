"""The simulator decides as vLLM's own scheduler did: TTFT, finish, cached tokens and preemptions of every request."""

from __future__ import annotations

import pytest
from fixtures import COLUMNS

from conformance.recorded import Case, cases
from dynosim.simulation import simulate

NOT_YET_EQUAL: frozenset[str] = frozenset(
    {
        "kv_pressure-async",
        "kv_pressure-sync",
        "priority_seats-async",
        "seats-async",
        "short_answers-async",
    }
)
"""Cases in which the simulator is known to decide differently."""


@pytest.mark.parametrize("case", list(cases("vllm")), ids=lambda case: case.name)
def test_decides_as_vllm(case: Case) -> None:
    found = case.simulated(simulate)
    equal = case.equal(found)
    if case.name in NOT_YET_EQUAL:
        assert not equal.all(), "equal now: remove it from NOT_YET_EQUAL"
        return
    differ = {
        f"request {i} {name}": (case.recorded[name][i], found[name][i])
        for column, name in enumerate(COLUMNS)
        for i in range(len(equal))
        if not equal[i, column]
    }
    assert differ == {}
