"""Small request tables and deployments written out by hand, with pass times that can be added up in the head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from dynosim.config import DeploymentConfig
from dynosim.simulation import SimulationResult
from dynosim.simulation.records import COMPLETED, WAIT_REASONS
from dynosim.workload.table import Workload

PREFILL_S, DECODE_S = 1e-4, 1e-2
"""Per prompt token, and per decode pass: the fixed timing source's defaults."""
PARTS = ("queue_s", "prefill_s", "kv_transfer_s", "decode_s", "preempted_s", "stall_s")


def make_table(
    input_tokens: Sequence[int],
    output_tokens: Sequence[int],
    arrival_s: Sequence[float] | None = None,
    after: Sequence[Sequence[int]] | None = None,
    **columns: Any,
) -> Workload:
    """Return a workload without block ids; *after*: whom each request waits for."""
    n = len(input_tokens)
    waits = after or [[] for _ in range(n)]
    arrays = {name: np.asarray(value) if isinstance(value, list) else value for name, value in columns.items()}
    return Workload(
        name="table",
        arrival_s=np.asarray(arrival_s or [0.0] * n, np.float64),
        input_tokens=np.asarray(input_tokens, np.int64),
        output_tokens=np.asarray(output_tokens, np.int64),
        after_offsets=np.array(list(accumulate(map(len, waits), initial=0)), np.int64),
        after_ids=np.array([i for one in waits for i in one], np.int64),
        **{"hash_block_tokens": 0, "hash_offsets": np.zeros(n + 1, np.int64), "hash_ids": np.zeros(0, np.int64)}
        | arrays,
    )


def deployment(timing: str = "fixed", **sections: Any) -> DeploymentConfig:
    """Return Llama 70B on H200 with constant pass times; aggregated, TP4, unless *sections* say otherwise."""
    base: dict[str, Any] = {"model": "llama-3.1-70b", "gpu": "h200_sxm", "timing": {"type": timing}}
    pool = {"tensor_parallel_size": 4} | sections.pop("pool", {})
    if "disaggregated" in sections:
        sides = sections.pop("disaggregated")
        base["mode"] = "disaggregated"
        base["disaggregated"] = sides | {role: pool | sides.get(role, {}) for role in ("prefill", "decode")}
    else:
        base["aggregated"] = pool
    return DeploymentConfig.model_validate(base | sections)


def assert_time_adds_up(result: SimulationResult) -> None:
    """The parts of every finished request sum to its latency, its waits to its queue time, and none is negative."""
    done = result.requests[result.requests["status"] == COMPLETED]
    np.testing.assert_allclose(sum(done[part] for part in PARTS), done["last_token_s"] - done["arrival_s"], atol=1e-9)
    waits = [done[f"wait_{reason}_s"] for reason in WAIT_REASONS]
    np.testing.assert_allclose(sum(waits), done["queue_s"], atol=1e-9)
    for column in [*waits, *(done[part] for part in PARTS)]:
        assert (column >= -1e-9).all()
