"""The simulator decides as vLLM's own scheduler did: TTFT, finish, cached tokens and preemptions of every request."""

from __future__ import annotations

import numpy as np
import pytest
from fixtures import COLUMNS
from numpy.typing import NDArray

from conformance.recorded import Case, cases
from dynosim.simulation import simulate
from simulation.compare import run_oracle

NOT_YET_EQUAL: frozenset[str] = frozenset(
    {
        "active_seqs-async",
        "active_seqs_pressure-sync",
        "active_seqs_pressure-async",
        "azure_code-sync",
        "azure_code-async",
        "azure_conv-sync",
        "azure_conv-async",
        "blocks_of_32-sync",
        "blocks_of_32-async",
        "blocks_of_64-sync",
        "blocks_of_64-async",
        "bursts-async",
        "chunking_off-async",
        "chunking_off_pressure-sync",
        "chunking_off_pressure-async",
        "closed_loop-async",
        "closed_loop_pressure-sync",
        "closed_loop_pressure-async",
        "kv_bursts-sync",
        "kv_bursts-async",
        "kv_no_caching-async",
        "kv_no_reservation-sync",
        "kv_no_reservation-async",
        "kv_no_reservation_burst-sync",
        "kv_no_reservation_burst-async",
        "kv_own_blocks-sync",
        "kv_own_blocks-async",
        "kv_prefix-sync",
        "kv_prefix-async",
        "kv_prefix_no_reservation-sync",
        "kv_prefix_no_reservation-async",
        "kv_pressure-sync",
        "kv_pressure-async",
        "kv_pressure_chunked-sync",
        "kv_pressure_chunked-async",
        "kv_two_at_a_time-sync",
        "kv_two_at_a_time-async",
        "long_prefill-async",
        "long_prefill_adaptive-async",
        "long_prefill_pressure-sync",
        "long_prefill_pressure-async",
        "mixed_1-sync",
        "mixed_1-async",
        "mixed_10-async",
        "mixed_106-sync",
        "mixed_106-async",
        "mixed_11-sync",
        "mixed_11-async",
        "mixed_12-sync",
        "mixed_12-async",
        "mixed_126-sync",
        "mixed_126-async",
        "mixed_138-sync",
        "mixed_138-async",
        "mixed_162-sync",
        "mixed_162-async",
        "mixed_197-sync",
        "mixed_197-async",
        "mixed_2-async",
        "mixed_226-sync",
        "mixed_226-async",
        "mixed_3-async",
        "mixed_380-sync",
        "mixed_380-async",
        "mixed_4-async",
        "mixed_412-sync",
        "mixed_412-async",
        "mixed_5-async",
        "mixed_548-sync",
        "mixed_548-async",
        "mixed_6-sync",
        "mixed_6-async",
        "mixed_623-sync",
        "mixed_623-async",
        "mixed_7-async",
        "mixed_8-sync",
        "mixed_8-async",
        "mixed_9-sync",
        "mixed_9-async",
        "mooncake_conversation_tight-async",
        "mooncake_synthetic-async",
        "prefill_only-async",
        "prefill_only_prefix-sync",
        "prefill_only_prefix-async",
        "prefill_only_tight-async",
        "prefix_eviction-sync",
        "prefix_eviction-async",
        "prefix_full_hits_eviction-sync",
        "prefix_full_hits_eviction-async",
        "prefix_off-async",
        "prefix_unaligned-async",
        "priority_blocks-sync",
        "priority_blocks-async",
        "priority_blocks_polynomial-sync",
        "priority_blocks_polynomial-async",
        "priority_one_class-sync",
        "priority_one_class-async",
        "priority_prefix-sync",
        "priority_prefix-async",
        "priority_seats-async",
        "priority_short_answers-async",
        "priority_ties-sync",
        "priority_ties-async",
        "seats-async",
        "seats_polynomial-async",
        "short_answers-async",
        "short_answers_chunked-async",
        "turns_closed_loop-async",
        "turns_early-sync",
        "turns_early-async",
        "turns_early_pressure-sync",
        "turns_early_pressure-async",
        "turns_eviction-sync",
        "turns_eviction-async",
        "turns_large_blocks-sync",
        "turns_large_blocks-async",
        "watermark-sync",
        "watermark-async",
        "watermark_no_reservation-sync",
        "watermark_no_reservation-async",
        "wildchat-sync",
        "wildchat-async",
    }
)
"""Cases in which the simulator is known to decide differently."""


def _differences(case: Case, found: dict[str, NDArray[np.float64]]) -> dict[str, tuple[float, float]]:
    """Return what differs: (recorded, found) of each request and column."""
    names = list(COLUMNS)
    return {
        f"request {i} {names[k]}": (case.recorded[names[k]][i], found[names[k]][i])
        for i, k in np.argwhere(~case.equal(found))
    }


@pytest.mark.parametrize("case", list(cases("vllm")), ids=lambda case: case.name)
def test_decides_as_vllm(case: Case) -> None:
    differ = _differences(case, case.simulated(simulate))
    if case.name in NOT_YET_EQUAL:
        assert differ, "equal now: remove it from NOT_YET_EQUAL"
    else:
        assert differ == {}


@pytest.mark.parametrize("case", [case for case in cases("vllm") if "mixed" in case.name], ids=lambda case: case.name)
def test_the_oracle_decides_as_vllm(case: Case) -> None:
    found = case.simulated(lambda deployment, workload: run_oracle(deployment, workload)[0])
    assert _differences(case, found) == {}
