"""The compiled engine against the pass-by-pass oracle, request by request, over random deployments and workloads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynosim.config import DeploymentConfig, FixedTiming, PolynomialTiming, RooflineTiming
from dynosim.simulation import cluster, engine, simulate
from dynosim.simulation.pool import Pool
from dynosim.simulation.records import COMPLETED, REQUEST_DTYPE
from dynosim.workload.table import Workload
from simulation.oracle import OracleCore


def _make_workload(
    seed: int, n: int, longest: int, rate: float, node: int, sharing: float, concurrency: int | None, warmup: int
) -> Workload:
    """Random requests; a prompt may begin with the whole blocks of an earlier one, and its tail is its own."""
    rng = np.random.default_rng(seed)
    prompts: list[list[int]] = []
    tokens, fresh = [], 0
    for _ in range(n):
        size = int(rng.integers(1, longest))
        shared: list[int] = []
        if prompts and rng.random() < sharing:
            parent = prompts[int(rng.integers(len(prompts)))]
            shared = parent[: int(rng.integers(0, len(parent) + 1))]
        shared = shared[: size // node]
        new = -(-size // node) - len(shared)
        ids = shared + list(range(fresh, fresh + new))
        fresh += new
        prompts.append(ids[: size // node])
        tokens.append((size, ids))
    offsets = np.concatenate([[0], np.cumsum([len(ids) for _, ids in tokens])])
    # Quantised times make simultaneous arrivals, where the order of events matters most.
    arrival = np.sort(np.round(rng.exponential(1.0, n).cumsum() / rate, 1)) if concurrency is None else np.zeros(n)
    return Workload(
        name="random",
        arrival_s=arrival,
        input_tokens=np.array([size for size, _ in tokens]),
        output_tokens=rng.integers(1, 60, n),
        hash_block_tokens=node,
        hash_offsets=offsets.astype(np.int64),
        hash_ids=np.concatenate([ids for _, ids in tokens]).astype(np.int64),
        concurrency=concurrency,
        warmup_requests=warmup,
    )


@st.composite
def pools(draw: st.DrawFn) -> dict[str, object]:
    seqs = draw(st.sampled_from([1, 2, 5, 16]))
    return {
        "replicas": draw(st.integers(1, 3)),
        "tensor_parallel_size": 4,
        "max_num_seqs": seqs,
        "max_num_batched_tokens": draw(st.sampled_from([seqs, 64, 300, 4096])),
        "block_size": draw(st.sampled_from([1, 4, 16])),
        "enable_prefix_caching": draw(st.booleans()),
        "enable_chunked_prefill": draw(st.booleans()),
        "scheduler_reserve_full_isl": draw(st.booleans()),
    } | {"num_gpu_blocks_override": draw(st.sampled_from([60, 150, 4000]))}


@st.composite
def deployments(draw: st.DrawFn) -> DeploymentConfig:
    split = draw(st.booleans())
    fitted = [_fit(draw(pools())) for _ in range(2 if split else 1)]
    roles = {"prefill": fitted[0], "decode": fitted[-1]}
    timing = draw(
        st.sampled_from([PolynomialTiming(), RooflineTiming(), FixedTiming(prefill_ms_per_token=1, decode_ms=20)])
    )
    sections = {"disaggregated": {**roles, "kv_transfer": {"bandwidth_gb_s": draw(st.sampled_from([0.02, 50.0]))}}}
    return DeploymentConfig.model_validate(
        {
            "model": "llama-3.1-70b",
            "gpu": "h200_sxm",
            "timing": timing,
            "engine": {"name": draw(st.sampled_from(["vllm", "sglang", "trtllm"]))},
            "mode": "disaggregated" if split else "aggregated",
            **(sections if split else {"aggregated": fitted[0]}),
            "router": {"policy": draw(st.sampled_from(["round_robin", "least_outstanding", "kv_aware"]))},
        }
    )


def _fit(pool: dict[str, object]) -> dict[str, object]:
    tokens = max(int(str(pool["max_num_batched_tokens"])), int(str(pool["max_num_seqs"])))
    return pool | {"max_num_batched_tokens": tokens}


@pytest.fixture
def run_oracle(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def run(deployment: DeploymentConfig, workload: Workload):  # type: ignore[no-untyped-def]
        with monkeypatch.context() as patch:
            core = OracleCore()
            patch.setattr(cluster, "core", core)
            patch.setattr(cluster, "Pool", lambda *args, **kwargs: core.add(Pool(*args, **kwargs)))
            patch.setattr(engine, "cached_tokens", core.cached_tokens)
            return simulate(deployment, workload), core

    return run


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    deployment=deployments(),
    seed=st.integers(0, 10_000),
    n=st.integers(1, 40),
    longest=st.sampled_from([40, 400]),
    rate=st.sampled_from([0.5, 5.0, 50.0]),
    sharing=st.sampled_from([0.0, 0.7]),
    concurrency=st.sampled_from([None, None, 3]),
    warmup=st.sampled_from([0, 3]),
)
def test_equals_the_oracle(run_oracle, deployment, seed, n, longest, rate, sharing, concurrency, warmup) -> None:  # type: ignore[no-untyped-def]
    workload = _make_workload(seed, n, longest, rate, 16, sharing, concurrency, warmup)
    fast = simulate(deployment, workload)
    slow, core = run_oracle(deployment, workload)
    for name in REQUEST_DTYPE.names:
        np.testing.assert_allclose(fast.requests[name], slow.requests[name], rtol=1e-9, atol=1e-9, err_msg=name)
    assert (fast.requests["status"] == COMPLETED).sum() == np.isfinite(fast.requests["last_token_s"]).sum()
    gaps = np.array([gap for oracle in core.oracles.values() for gap in oracle.gaps])
    assert fast.gaps.count.sum() == len(gaps)
    np.testing.assert_allclose(fast.gaps.sum_s.sum(), gaps.sum(), rtol=1e-9, atol=1e-12)
    if len(gaps):
        np.testing.assert_allclose([fast.gaps.min_s, fast.gaps.max_s], [gaps.min(), gaps.max()], rtol=1e-9)
