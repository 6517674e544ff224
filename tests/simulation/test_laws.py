"""Laws that every simulation obeys: theory, conservation, causality, determinism, and knobs that matter."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dynosim.config import DeploymentConfig, PoolConfig, PriceConfig, WorkloadConfig
from dynosim.errors import InfeasibleError
from dynosim.metrics import Metrics, summarize
from dynosim.simulation import gaps, simulate
from dynosim.simulation.records import COMPLETED, REJECTED
from dynosim.workload import load_workload
from dynosim.workload.table import Workload
from simulation import laws


def _make_deployment(timing: str = "fixed", router: str = "round_robin", **pool: Any) -> DeploymentConfig:
    return DeploymentConfig.model_validate(
        {
            "model": "llama-3.1-70b",
            "gpu": "h200_sxm",
            "timing": {"type": timing},
            "aggregated": {"tensor_parallel_size": 4} | pool,
            "router": {"policy": router},
        }
    )


def _make_split(bandwidth_gb_s: float = 50.0, engine: str = "vllm", **pool: Any) -> DeploymentConfig:
    sides = {"tensor_parallel_size": 4, "replicas": 2} | pool
    return DeploymentConfig.model_validate(
        {
            "model": "llama-3.1-70b",
            "gpu": "h200_sxm",
            "engine": {"name": engine},
            "timing": {"type": "roofline"},
            "mode": "disaggregated",
            "disaggregated": {
                "prefill": sides,
                "decode": sides,
                "kv_transfer": {"bandwidth_gb_s": bandwidth_gb_s, "latency_us": 0.0},
            },
        }
    )


def _make_workload(load: dict[str, Any], requests: int = 400, input_tokens: Any = None, **more: Any) -> Workload:
    config = {
        "source": {
            "type": "synthetic",
            "requests": requests,
            "input_tokens": input_tokens or {"type": "uniform", "min": 100, "max": 6000},
            "output_tokens": more.pop("output_tokens", {"type": "uniform", "min": 1, "max": 400}),
            **more,
        },
        "load": load,
    }
    return load_workload(WorkloadConfig.model_validate(config), 7)


def _metrics(deployment: DeploymentConfig, workload: Workload) -> Metrics:
    return summarize(simulate(deployment, workload), {}, PriceConfig())


CHAT = {
    "prefix": {
        "shared_blocks": 2,
        "continue_probability": [0.7],
        "gap_requests": {"type": "lognormal", "median": 20, "sigma": 0.5},
    }
}
POISSON = {"type": "poisson", "rate_rps": 3.0}


def test_single_server_queue_waits_as_m_d_1() -> None:
    """One slot, constant service D: mean wait = rho D / (2 (1 - rho)) (Pollaczek-Khinchine)."""
    service_s, load = 0.1, 0.7
    deployment = _make_deployment(max_num_seqs=1, enable_prefix_caching=False)  # fixed timing: 0.1 ms per token
    waits = []
    for seed in range(8):
        config = {
            "source": {
                "type": "synthetic",
                "requests": 20_000,
                "input_tokens": {"type": "fixed", "tokens": 1000},
                "output_tokens": {"type": "fixed", "tokens": 1},
            },
            "load": {"type": "poisson", "rate_rps": load / service_s},
        }
        workload = load_workload(WorkloadConfig.model_validate(config), seed)
        waits.append(simulate(deployment, workload).requests["queue_s"].mean())
    expected = load * service_s / (2.0 * (1.0 - load))
    assert np.mean(waits) == pytest.approx(expected, rel=0.05)


def test_littles_law_holds_for_requests_in_flight() -> None:
    """Time-average number in flight, counted from the event times, equals arrival rate x mean latency."""
    requests = simulate(_make_deployment("roofline", replicas=2), _make_workload(POISSON)).requests
    times = np.concatenate([requests["arrival_s"], requests["last_token_s"]])
    steps = np.concatenate([np.ones(len(requests)), -np.ones(len(requests))])
    order = np.argsort(times)
    in_flight = np.cumsum(steps[order])[:-1]
    area = (in_flight * np.diff(times[order])).sum()
    assert area == pytest.approx((requests["last_token_s"] - requests["arrival_s"]).sum(), rel=1e-9)


@pytest.mark.parametrize("router", ["round_robin", "least_outstanding", "kv_aware"])
@pytest.mark.parametrize("blocks", [None, 1200])
def test_aggregated_runs_are_lawful(router: str, blocks: int | None) -> None:
    workload = _make_workload(POISSON, **CHAT)
    deployment = _make_deployment("roofline", router, replicas=2, num_gpu_blocks_override=blocks)
    done = laws.run(deployment, workload)
    laws.check(done)
    assert (done.result.requests["status"] == COMPLETED).all()


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_disaggregated_runs_are_lawful(engine: str) -> None:
    workload = _make_workload(POISSON, **CHAT)
    done = laws.run(_make_split(engine=engine), workload)
    laws.check(done)
    requests = done.result.requests[done.result.requests["output_tokens"] > 1]
    assert (requests["first_token_s"] >= requests["kv_landed_s"]).all()
    # vLLM's decode replica computes it; others show the prefill replica's before their next pass: at once when idle.
    assert (requests["first_token_s"] == requests["kv_landed_s"]).any() == (engine != "vllm")


def test_the_run_lasts_from_the_first_arrival_to_the_last_token() -> None:
    workload = _make_workload(POISSON, requests=50)
    late = replace(workload, arrival_s=workload.arrival_s + 1000.0)
    durations = [simulate(_make_deployment("roofline"), w).duration_s for w in (workload, late)]
    assert durations[0] == pytest.approx(durations[1], rel=1e-9)
    assert durations[0] < late.arrival_s.min()


def test_blocks_are_conserved_and_all_free_at_the_end() -> None:
    for deployment in (_make_deployment("roofline", num_gpu_blocks_override=700), _make_split()):
        done = laws.run(deployment, _make_workload(POISSON, **CHAT))
        laws.blocks_are_conserved(done)
        assert not any(pool.engine.held.any() or pool.engine.jobs["own"].any() for pool in done.pools)


def test_equal_arguments_give_byte_equal_results_in_any_process() -> None:
    code = (
        "import hashlib; from simulation import test_laws as t; from dynosim.simulation import simulate;"
        "d = t._make_deployment('roofline', 'kv_aware', replicas=3);"
        "r = simulate(d, t._make_workload(t.POISSON, **t.CHAT), 5);"
        "print(hashlib.sha256(r.requests.tobytes() + r.gaps.sum_s.tobytes()).hexdigest())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, 'tests'); {code}"],
            capture_output=True, text=True, check=True,
        ).stdout
        for _ in range(2)
    }  # fmt: skip
    assert len(runs) == 1


def test_oversized_requests_are_rejected_not_served() -> None:
    workload = _make_workload(POISSON)
    deployment = _make_deployment("roofline", num_gpu_blocks_override=251)
    requests = simulate(deployment, workload).requests
    too_big = workload.input_tokens + workload.output_tokens > 249 * 16
    assert too_big.any()
    assert ((requests["status"] == REJECTED) == too_big).all()
    assert np.isnan(requests["last_token_s"][too_big]).all()


@pytest.mark.parametrize("block_size", [16, 24, 100, 250, 300])
def test_prefixes_are_shared_up_to_whole_kv_blocks_of_any_size(block_size: int) -> None:
    """All prompts begin with the same 1,000 tokens, which the trace names in blocks of 250."""
    prefix = {"block_tokens": 250, "shared_blocks": 4}
    workload = _make_workload({"type": "constant_rate", "rate_rps": 1.0}, 30, {"type": "fixed", "tokens": 1400},
                              output_tokens={"type": "fixed", "tokens": 5}, prefix=prefix)  # fmt: skip
    requests = simulate(_make_deployment("roofline", block_size=block_size), workload).requests
    assert requests["cached_tokens"][0] == 0
    assert (requests["cached_tokens"][1:] == 1000 // block_size * block_size).all()


def test_a_deployment_that_cannot_start_is_refused_before_simulating() -> None:
    deployment = _make_deployment("roofline", tensor_parallel_size=3)
    with pytest.raises(InfeasibleError, match="does not divide"):
        simulate(deployment, _make_workload(POISSON, requests=5))


def test_rejected_requests_of_a_closed_loop_take_no_time() -> None:
    workload = _make_workload({"type": "concurrency", "concurrency": 4}, requests=100)
    requests = simulate(_make_deployment("roofline", num_gpu_blocks_override=250), workload).requests
    rejected = requests["status"] == REJECTED
    assert rejected.any()
    assert (requests["arrival_s"][4:] > 0.0).all()
    assert (np.diff(requests["arrival_s"]) >= 0.0).all()


def test_closed_loop_keeps_its_concurrency() -> None:
    workload = _make_workload({"type": "concurrency", "concurrency": 8}, requests=100)
    requests = simulate(_make_deployment("roofline", replicas=2), workload).requests
    for time in requests["arrival_s"][8:]:
        in_flight = ((requests["arrival_s"] <= time) & (requests["last_token_s"] > time)).sum()
        assert in_flight == 8


def test_nvidia_s_closed_loop_result_is_reproduced() -> None:
    """Dynamo 1.2.1's ``dynamo.replay``: 2,000 requests of 4096/256, closed loop at 64, 4 replicas, 16,384 x 64."""
    workload = _make_workload(
        {"type": "concurrency", "concurrency": 64}, 2000,
        {"type": "fixed", "tokens": 4096}, output_tokens={"type": "fixed", "tokens": 256},
    )  # fmt: skip
    deployment = _make_deployment("polynomial", replicas=4, num_gpu_blocks_override=16384, block_size=64)
    result = simulate(deployment, workload)
    ttft_ms = (result.requests["first_token_s"] - result.requests["arrival_s"]) * 1e3
    assert ttft_ms.mean() == pytest.approx(152.59, rel=0.002)
    assert np.percentile(ttft_ms, 99) == pytest.approx(1048.4, rel=0.005)
    assert 1e3 * result.gaps.sum_s.sum() / result.gaps.count.sum() == pytest.approx(13.90, rel=0.002)
    assert 1e3 * gaps.percentile(result.gaps, 99.0) == pytest.approx(94.7, rel=0.005)
    assert result.duration_s == pytest.approx(116.78, rel=0.002)


SHARED = [
    ("replicas", {"replicas": 1}, {"replicas": 2}, "time_to_first_token", -1),
    ("tensor_parallel_size", {"tensor_parallel_size": 4}, {"tensor_parallel_size": 8}, "inter_token_latency", -1),
    ("max_num_seqs", {"max_num_seqs": 8}, {"max_num_seqs": 256}, "queue_time", -1),
    ("max_num_batched_tokens", {"max_num_batched_tokens": 8192}, {"max_num_batched_tokens": 512}, "stall_time", 0),
    ("enable_chunked_prefill", {"enable_chunked_prefill": True}, {"enable_chunked_prefill": False}, "stall_time", 0),
    ("enable_prefix_caching", {"enable_prefix_caching": False}, {"enable_prefix_caching": True}, "prefill_time", -1),
    ("block_size", {"block_size": 512, "num_gpu_blocks_override": 64},
     {"block_size": 16, "num_gpu_blocks_override": 2048}, "time_to_first_token", -1),
    ("gpu_memory_utilization", {"gpu_memory_utilization": 0.41}, {"gpu_memory_utilization": 0.9},
     "kv_cache_utilization", -1),
    ("num_gpu_blocks_override", {"num_gpu_blocks_override": 600}, {"num_gpu_blocks_override": 6000}, "queue_time", -1),
    ("scheduler_reserve_full_isl", {"num_gpu_blocks_override": 600, "max_num_batched_tokens": 512},
     {"num_gpu_blocks_override": 600, "max_num_batched_tokens": 512, "scheduler_reserve_full_isl": False},
     "queue_time", 0),
]  # fmt: skip
"""Knob, one setting, another, metric that must move, and its sign (0: any)."""


@pytest.mark.parametrize(("knob", "before", "after", "metric", "sign"), SHARED, ids=[row[0] for row in SHARED])
def test_every_pool_knob_matters(
    knob: str, before: dict[str, Any], after: dict[str, Any], metric: str, sign: int
) -> None:
    workload = _make_workload(POISSON, **CHAT)
    a = _metrics(_make_deployment("roofline", **before), workload).value(metric)
    b = _metrics(_make_deployment("roofline", **after), workload).value(metric)
    assert a is not None
    assert b is not None
    assert (b != a) if sign == 0 else (b - a) * sign > 0.0


def test_a_slower_link_delays_the_hand_off_and_contention_more_so() -> None:
    workload = _make_workload(POISSON)
    fast, slow = (simulate(_make_split(gb_s), workload) for gb_s in (50.0, 0.5))
    bytes_per_token = 2 * 80 * 8 * 128 * 2
    moved = workload.output_tokens > 1
    alone_s = workload.input_tokens * bytes_per_token / (4 * 0.5e9)
    assert (slow.requests["kv_transfer_s"][moved] >= alone_s[moved] - 1e-9).all()
    assert slow.requests["kv_transfer_s"][moved].mean() > 1.02 * alone_s[moved].mean()
    assert fast.requests["kv_transfer_s"].mean() < slow.requests["kv_transfer_s"].mean() / 50


def test_kv_aware_routing_reuses_more_and_answers_sooner_than_round_robin() -> None:
    workload = _make_workload({"type": "poisson", "rate_rps": 8.0}, requests=1500, **CHAT)
    blind, aware = (
        _metrics(_make_deployment("roofline", router, replicas=4), workload) for router in ("round_robin", "kv_aware")
    )
    assert aware.value("prefix_cache_hit_rate") > blind.value("prefix_cache_hit_rate") + 0.05  # type: ignore[operator]
    assert aware.value("time_to_first_token") < blind.value("time_to_first_token")  # type: ignore[operator]


def test_pool_config_refuses_a_budget_below_the_batch() -> None:
    with pytest.raises(ValueError, match="must be at least"):
        PoolConfig(max_num_seqs=512, max_num_batched_tokens=256)
