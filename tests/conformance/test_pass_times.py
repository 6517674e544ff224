"""The recorders' clock and the simulator's tables are the same formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pass_times import pass_time

from dynosim.config import DeploymentConfig
from dynosim.hardware.plan import PoolPlan
from dynosim.timing import forward_times

FIXED = {"type": "fixed", "prefill_ms_per_token": 0.10037, "decode_ms": 19.93713}


@pytest.mark.parametrize("timing", [FIXED, {"type": "polynomial"}], ids=lambda timing: timing["type"])
def test_one_formula(timing: dict[str, Any]) -> None:
    pool = {"max_num_seqs": 8, "max_num_batched_tokens": 512, "num_gpu_blocks_override": 100}
    deployment = DeploymentConfig.model_validate(
        {"model": "llama-3.1-8b", "gpu": "h200_sxm", "timing": timing, "aggregated": pool}
    )
    plan = PoolPlan.of(deployment, "mixed")
    tables = forward_times(plan).tables(max_num_seqs=8, max_num_batched_tokens=512)
    seconds = pass_time(timing, plan.capacity.tokens)
    for prefill, decodes, context in [(0, 1, 9), (300, 0, 0), (17, 5, 801), (512, 8, 1600), (0, 8, 5000)]:
        decode_s = np.interp(context, tables.decode_context[decodes], tables.decode_s[decodes]) if decodes else 0.0
        assert seconds(prefill, decodes, context) == pytest.approx(tables.tokens_s[prefill] + decode_s, rel=1e-12)
