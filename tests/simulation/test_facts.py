"""Facts of serving that every measurement shows, on small simulations: the directions, not the numbers.

Measured pairs behind them: InferenceX's multi-turn runs with and without offload, and the published studies of vLLM and
Dynamo.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from dynosim.config import DeploymentConfig, PriceConfig, WorkloadConfig
from dynosim.metrics import Metrics, summarize
from dynosim.simulation import simulate
from dynosim.workload import load_workload

TTFT, ITL = "time_to_first_token", "inter_token_latency"


def _fixed(tokens: int) -> dict[str, Any]:
    return {"type": "fixed", "tokens": tokens}


def _lengths(input_tokens: int, output_tokens: int, requests: int, **more: Any) -> dict[str, Any]:
    """Lengths spread by a third around the given ones."""
    return {
        "type": "synthetic",
        "requests": requests,
        "input_tokens": {"type": "lognormal", "median": input_tokens, "sigma": 0.3},
        "output_tokens": {"type": "lognormal", "median": output_tokens, "sigma": 0.3},
        **more,
    }


def _deployment(*, timing: str = "pack", router: str = "round_robin", **pool: Any) -> dict[str, Any]:
    return {
        "model": "llama-3.1-8b",
        "gpu": "h100_sxm",
        "timing": {"type": timing},
        "router": {"policy": router},
        "aggregated": pool,
    }


def _run(deployment: dict[str, Any], source: dict[str, Any], load: dict[str, Any], **slo: dict[str, float]) -> Metrics:
    workload = load_workload(WorkloadConfig.model_validate({"source": source, "load": load}), 0)
    return summarize(simulate(DeploymentConfig.model_validate(deployment), workload), slo, PriceConfig())


def _value(metrics: Metrics, metric: str, stat: str | None = None) -> float:
    value = metrics.value(metric, stat)
    assert value is not None
    return value


# ------------------------------------------------------------------------------------------------- memory and its cliff


@cache
def _sized(kv_tokens: int, clients: int = 64) -> Metrics:
    pool = {"num_gpu_blocks_override": kv_tokens // 16, "max_num_seqs": 256}
    load = {"type": "concurrency", "concurrency": clients}
    return _run(_deployment(**pool), _lengths(3000, 300, 400), load)


def test_active_seats_are_what_slots_are_counted_by() -> None:
    load = {"type": "concurrency", "concurrency": 64}
    seats, active = (
        _run(_deployment(timing="polynomial", **pool), _lengths(100, 300, 200), load)
        for pool in ({"max_num_seqs": 8}, {"max_num_seqs": 256, "max_num_active_seqs": 8})
    )
    assert 0.8 < _value(seats, "batch_slot_utilization") == _value(active, "batch_slot_utilization")


def test_kv_capacity_sets_a_cliff() -> None:
    """64 clients with contexts of about 3,300 tokens need 210,000: more is of no use, half of it hurts."""
    ample, enough, short = _sized(800_000), _sized(400_000), _sized(80_000)
    for metric in (TTFT, "request_throughput"):
        assert _value(enough, metric) == pytest.approx(_value(ample, metric), rel=0.02)
    assert _value(short, TTFT) > 3.0 * _value(enough, TTFT)
    assert _value(short, "request_throughput") < 0.8 * _value(enough, "request_throughput")
    assert _value(short, "wait_kv_blocks_share") > 0.5 > _value(enough, "wait_kv_blocks_share")


CONVERSATIONS = _lengths(
    4000,
    150,
    600,
    sessions={"turns": _fixed(6), "new_tokens": [_fixed(300)], "think_s": {"type": "fixed", "seconds": 1.0}},
)
"""Six turns on a growing history of 4,000 to 6,500 tokens."""
ROOM = {"num_gpu_blocks_override": 100_000 // 16}
"""KV cache for some 16 such conversations."""


@cache
def _talked(clients: int, host_gib: float | None = None, blocks: int = ROOM["num_gpu_blocks_override"]) -> Metrics:
    tiers = {} if host_gib is None else {"kv_offload": {"host": {"size_gib": host_gib}}}
    load = {"type": "concurrency", "concurrency": clients}
    return _run(_deployment(num_gpu_blocks_override=blocks, **tiers), CONVERSATIONS, load)


def test_more_clients_past_the_cliff_lower_throughput() -> None:
    """More conversations than the cache holds push each other's history out, which is then computed again."""
    few, some, many = (_talked(clients) for clients in (4, 14, 48))
    assert _value(some, "request_throughput") > 1.3 * _value(few, "request_throughput")
    assert _value(many, "request_throughput") < 0.95 * _value(some, "request_throughput")
    assert _value(many, "prefix_cache_hit_rate") < 0.5 * _value(some, "prefix_cache_hit_rate")


def test_a_host_tier_gains_under_pressure_on_latencies_and_throughput() -> None:
    without, with_host = _talked(48), _talked(48, host_gib=64.0)
    assert _value(with_host, TTFT) < 0.8 * _value(without, TTFT)
    assert _value(with_host, ITL) < _value(without, ITL)
    assert _value(with_host, "request_throughput") > 1.1 * _value(without, "request_throughput")
    assert _value(with_host, "host_cache_hit_rate") > 0.2


def test_a_host_tier_costs_little_where_it_is_not_needed() -> None:
    plenty = 2_000_000 // 16
    without, with_host = _talked(8, blocks=plenty), _talked(8, host_gib=64.0, blocks=plenty)
    ratio = {m: _value(with_host, m) / _value(without, m) for m in (TTFT, ITL, "request_throughput")}
    assert 0.999 < ratio[ITL] < 1.02
    assert 0.98 < ratio["request_throughput"] < 1.001
    assert ratio[TTFT] == pytest.approx(1.0, rel=0.03)


# -------------------------------------------------------------------------------------------------------------- routing


def test_kv_aware_routing_raises_reuse_and_lowers_ttft() -> None:
    source = _lengths(4000, 150, 800, sessions={"turns": _fixed(5), "think_s": {"type": "exponential", "mean_s": 5.0}})
    blind, aware = (
        _run(_deployment(replicas=4, router=router), source, {"type": "poisson", "rate_rps": 4.0})
        for router in ("round_robin", "kv_aware")
    )
    assert _value(aware, "prefix_cache_hit_rate") > _value(blind, "prefix_cache_hit_rate") + 0.2
    assert _value(aware, TTFT) < 0.8 * _value(blind, TTFT)


# ---------------------------------------------------------------------------------------------------------- autoscaling

WAVES = {"type": "diurnal", "base_rps": 1.0, "peak_rps": 24.0, "period_s": 240.0, "burstiness": 0.3}


@cache
def _scaled(**scaler: float) -> Metrics:
    settings = {"max_replicas": 8, "scale_down_cooldown_s": 0.0, "provision_s": 5.0, "startup_s": 5.0} | scaler
    deployment = _deployment(max_num_seqs=24, autoscaler=settings)
    return _run(deployment, _lengths(2000, 250, 9000), WAVES, time_to_first_token={"p99": 2000.0})


def test_a_shorter_scaling_interval_helps_down_to_seconds_and_then_churns() -> None:
    slow, medium, fast, frantic = (_scaled(interval_s=seconds) for seconds in (120.0, 30.0, 5.0, 0.5))
    p99 = [_value(metrics, TTFT, "p99") for metrics in (slow, medium, fast)]
    assert p99[0] > 1.2 * p99[1] > 1.2 * p99[2]
    assert _value(frantic, TTFT, "p99") > p99[2]
    assert _value(frantic, "replica_starts") > 1.3 * _value(fast, "replica_starts")
    assert _value(frantic, "gpu_hours") > _value(fast, "gpu_hours")


def test_a_cold_start_of_minutes_breaks_the_slo_under_bursts() -> None:
    met = [
        _value(_scaled(interval_s=5.0, provision_s=seconds), "good_request_fraction") for seconds in (5.0, 40.0, 400.0)
    ]
    assert met[0] > met[1] > met[2]
    assert met[0] > met[2] + 0.2


def test_thresholds_trade_tail_latency_for_cost() -> None:
    def run(up: float, down: float) -> Metrics:
        settings = {"policy": "concurrency", "max_replicas": 8, "interval_s": 5.0, "scale_down_cooldown_s": 10.0}
        scaler = settings | {"provision_s": 5.0, "startup_s": 5.0, "options": {"up": up, "down": down}}
        deployment = _deployment(max_num_seqs=24, autoscaler=scaler)
        return _run(deployment, _lengths(2000, 250, 4000), WAVES | {"peak_rps": 12.0})

    eager, patient = run(0.4, 0.2), run(0.9, 0.7)
    assert _value(eager, TTFT, "p99") < 0.85 * _value(patient, TTFT, "p99")
    assert _value(eager, TTFT) < 0.7 * _value(patient, TTFT)
    assert _value(eager, "gpu_hours") > 1.2 * _value(patient, "gpu_hours")


# ------------------------------------------------------------------------------------------------------- disaggregation


def _split(prefill: int, decode: int, bandwidth_gb_s: float = 50.0) -> dict[str, Any]:
    """Return *prefill* and *decode* replicas of one GPU each."""
    deployment = _deployment()
    del deployment["aggregated"]
    pools = {"prefill": {"replicas": prefill}, "decode": {"replicas": decode}}
    return deployment | {
        "mode": "disaggregated",
        "disaggregated": {**pools, "kv_transfer": {"bandwidth_gb_s": bandwidth_gb_s}},
    }


def test_disaggregation_wins_on_the_tail_of_token_gaps_and_loses_behind_a_slow_link() -> None:
    source, load = _lengths(4000, 200, 500), {"type": "poisson", "rate_rps": 8.0}
    together, apart, choked = (
        _run(deployment, source, load) for deployment in (_deployment(replicas=4), _split(2, 2), _split(2, 2, 2.0))
    )
    assert _value(apart, "inter_chunk_latency", "p99") < 0.5 * _value(together, "inter_chunk_latency", "p99")
    assert _value(choked, "request_latency") > _value(together, "request_latency")
    assert _value(choked, TTFT) > 2.0 * _value(apart, TTFT)
    assert _value(choked, "kv_link_utilization") > 0.5 > _value(apart, "kv_link_utilization")


def test_code_generation_and_retrieval_have_different_best_configurations() -> None:
    """Long answers want decode replicas, long prompts prefill replicas: four GPUs, divided both ways."""
    code, retrieval = _lengths(500, 1500, 400), _lengths(6000, 60, 400)
    rates = {"code": 12.0, "retrieval": 14.0}
    latency = {
        (name, prefill): _value(
            _run(_split(prefill, 4 - prefill), source, {"type": "poisson", "rate_rps": rates[name]}), "request_latency"
        )
        for name, source in (("code", code), ("retrieval", retrieval))
        for prefill in (1, 3)
    }
    assert latency["code", 1] < 0.95 * latency["code", 3]
    assert latency["retrieval", 3] < 0.95 * latency["retrieval", 1]
