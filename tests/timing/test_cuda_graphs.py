"""What engines capture by version, GPU and setting, and what a pass outside of it costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.config import DeploymentConfig, RooflineTiming
from dynosim.engines import Graphs
from dynosim.hardware.plan import PoolPlan
from dynosim.timing import effective_tables
from dynosim.timing.cuda_graphs import run_batches


def _plan(engine: dict[str, object], gpu: str = "h200_sxm", model: str = "llama-3.1-8b", **pool: object) -> PoolPlan:
    deployment = DeploymentConfig.model_validate(
        {"model": model, "gpu": gpu, "timing": RooflineTiming(), "engine": engine, "aggregated": pool}
    )
    return PoolPlan.of(deployment, "mixed")


VLLM, SGLANG, TRTLLM = ({"name": name} for name in ("vllm", "sglang", "trtllm"))
TWO = {"num_speculative_tokens": 3, "acceptance_rates": [0.5]}


@pytest.mark.parametrize(
    ("plan", "largest", "mixed"),
    [
        (_plan(VLLM), 512, 512),
        (_plan(VLLM, max_num_seqs=64), 128, 128),
        (_plan(VLLM, "b200_sxm"), 1024, 1024),
        (_plan(VLLM | {"version": "0.26.0"}, "b200_sxm"), 512, 512),
        (_plan(VLLM, model="gpt-oss-20b"), 1024, 1024),
        (_plan(VLLM | {"max_cudagraph_capture_size": 2048}), 2048, 2048),
        (_plan(VLLM | {"max_cudagraph_capture_size": 2048}, max_num_batched_tokens=1000), 1000, 1000),
        (_plan(VLLM | {"cudagraph_mode": "FULL_DECODE_ONLY"}), 512, 0),
        (_plan(VLLM | {"cudagraph_mode": "NONE"}), 0, 0),
        (_plan(VLLM | {"speculative": TWO}), 128, 512),
        (_plan(SGLANG), 256, 8192),
        (_plan(SGLANG, tensor_parallel_size=4), 512, 8192),
        (_plan(SGLANG, "l40s"), 32, 4096),
        (_plan(SGLANG | {"version": "0.5.9"}), 256, 0),
        (_plan(SGLANG | {"version": "0.5.9", "cudagraph_mode": "FULL_AND_PIECEWISE"}), 256, 8192),
        (_plan(SGLANG, "mi300x"), 512, 0),
        (_plan(SGLANG, "h200_sxm", "deepseek-v3", tensor_parallel_size=8), 512, 8192),
        (_plan(SGLANG | {"version": "0.5.12"}, "h200_sxm", "deepseek-v3", tensor_parallel_size=8), 512, 2048),
        (_plan(SGLANG, "b200_sxm", "deepseek-v3", tensor_parallel_size=8), 512, 0),
        (_plan(SGLANG | {"max_cudagraph_capture_size": 100}), 96, 8192),
        (_plan(TRTLLM), 128, 0),
        (_plan(TRTLLM | {"max_cudagraph_capture_size": 600}), 600, 0),
    ],
)
def test_what_is_captured(plan: PoolPlan, largest: int, mixed: int) -> None:
    assert max(plan.graphs.batches, default=0) == largest
    assert plan.graphs.mixed_tokens == mixed


def test_sizes_are_the_engines() -> None:
    assert _plan(VLLM).graphs.batches == (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))
    assert _plan(SGLANG).graphs.batches == (1, 2, 4, 8, 12, *range(16, 257, 8))
    assert _plan(TRTLLM).graphs.batches == (*range(1, 33), 64, 128)
    assert _plan(TRTLLM | {"max_cudagraph_capture_size": 512}).graphs.batches == (1, 2, 4, *range(8, 129, 8), 256, 512)


@given(sizes=st.sets(st.integers(1, 600)), padded=st.booleans())
def test_a_batch_runs_the_next_graph_or_itself(sizes: set[int], padded: bool) -> None:
    run = run_batches(Graphs(tuple(sorted(sizes)), padded), 700)
    assert run[0] == 0
    for batch in range(1, 701):
        assert run[batch] == (min((size for size in sizes if size >= batch), default=batch) if padded else batch)


def test_a_batch_that_no_graph_covers_takes_the_launches_at_least() -> None:
    bare = {"launch_overhead_us": 5000.0, "pass_overhead_us": 0.0, "request_overhead_us": 0.0}
    launches_s = 32 * 5e-3
    for engine, eager in ((VLLM, [*range(513, 1025)]), (TRTLLM, [*range(33, 64), *range(65, 128), *range(129, 1025)])):
        tables = effective_tables(_plan(engine | bare, max_num_seqs=1024))
        batches = np.arange(1, 1025)
        decode_s = [np.interp(1024 * b, tables.decode_context[b], tables.decode_s[b]) for b in batches]
        floor = tables.graph_tokens_s[batches] + decode_s >= launches_s - 1e-12
        assert batches[floor].tolist() == eager


def test_captured_prompts_are_not_launched_one_by_one() -> None:
    asked, default = (effective_tables(_plan(VLLM | engine)) for engine in ({"max_cudagraph_capture_size": 2048}, {}))
    assert (asked.eager_tokens, default.eager_tokens) == (2048, 512)
    assert asked.eager_s == default.eager_s > 0
