"""What each policy is there for, seen in simulations: it moves the figure that it should, and the right way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dynosim.config import DeploymentConfig
from dynosim.policies.base import FloatArray, ScalingView
from dynosim.simulation import SimulationResult, simulate
from dynosim.workload.table import Workload


def _workload(arrival_s: Any, input_tokens: Any, output_tokens: Any = 20, **columns: Any) -> Workload:
    n = len(arrival_s)
    given = {"hash_block_tokens": 0, "hash_offsets": np.zeros(n + 1, np.int64), "hash_ids": np.zeros(0, np.int64)}
    prompts, outputs = (np.zeros(n, np.int64) + tokens for tokens in (input_tokens, output_tokens))
    return Workload("test", np.asarray(arrival_s), prompts, outputs, **{**given, **columns})


def _rush(rate_rps: float, requests: int = 400, seed: int = 3, **columns: Any) -> Workload:
    """Prompts of very different length at random times. One replica computes 10,000 prompt tokens per second."""
    random = np.random.default_rng(seed)
    prompts = np.clip(random.lognormal(np.log(1000), 1.2, requests), 10, 20000).astype(int)
    return _workload(np.cumsum(random.exponential(1 / rate_rps, requests)), prompts, **columns)


def _chats(sessions: int = 60, turns: int = 5, tokens: int = 256) -> Workload:
    """Conversations side by side; each turn repeats the last one and adds three blocks."""
    order = [(turn, session) for turn in range(turns) for session in range(sessions)]
    arrival_s = [10.0 * turn + 0.1 * session for turn, session in order]
    ids = [session * 3 * turns + np.arange(3 * (turn + 1)) for turn, session in order]
    lengths = np.array([len(chain) for chain in ids])
    return _workload(
        arrival_s,
        tokens * lengths,
        hash_block_tokens=tokens,
        hash_offsets=np.concatenate([[0], np.cumsum(lengths)]),
        hash_ids=np.concatenate(ids),
        session=np.array([session for _, session in order]),
    )


def _simulate(workload: Workload, router: Any = "round_robin", **pool: Any) -> SimulationResult:
    deployment = {
        "model": "llama-3.1-8b",
        "gpu": "h100_sxm",
        "timing": {"type": "fixed"},
        "aggregated": pool,
        "router": router if isinstance(router, dict) else {"policy": router},
    }
    return simulate(DeploymentConfig.model_validate(deployment), workload)


def _ttft_s(result: SimulationResult) -> FloatArray:
    ttft_s: FloatArray = result.requests["first_token_s"] - result.requests["arrival_s"]
    assert np.isfinite(ttft_s).all()
    return ttft_s


def _reuse(result: SimulationResult) -> float:
    return float(result.requests["cached_tokens"].sum() / result.requests["input_tokens"].sum())


# -------------------------------------------------------------------------------------------------- order of the queue


def test_priority_serves_the_urgent_at_the_cost_of_the_rest() -> None:
    urgent = np.arange(400) % 5 == 0
    workload = _rush(6.0, priority=np.where(urgent, 0, 1))
    fcfs, priority = (_ttft_s(_simulate(workload, scheduling_policy=name)) for name in ("fcfs", "priority"))
    assert priority[urgent].mean() < 0.3 * fcfs[urgent].mean()
    assert priority[~urgent].mean() > fcfs[~urgent].mean()


def test_shortest_prompt_serves_more_sooner_and_ageing_bounds_the_wait() -> None:
    def ttft_s(name: str, **options: float) -> FloatArray:
        return _ttft_s(_simulate(_rush(6.0), scheduling_policy=name, scheduling_options=options))

    fcfs, shortest, aged = ttft_s("fcfs"), ttft_s("shortest_prompt"), ttft_s("shortest_prompt", tokens_per_s=500.0)
    assert shortest.mean() < 0.5 * fcfs.mean()
    assert shortest.max() > fcfs.max()
    assert shortest.mean() < aged.mean() < fcfs.mean()
    assert aged.max() < shortest.max()


def test_deadline_meets_more_deadlines() -> None:
    deadline_s = np.where(np.arange(400) % 3 == 0, 2.0, 15.0)
    workload = _rush(4.2, deadline_s=deadline_s)
    missed = {
        name: float((_ttft_s(_simulate(workload, scheduling_policy=name)) > deadline_s).mean())
        for name in ("fcfs", "deadline")
    }
    assert missed["deadline"] < 0.7 * missed["fcfs"]


def test_longest_prefix_reuses_more_of_a_small_cache() -> None:
    """Eight documents in turn, of which the cache holds two."""
    chain = 10 * (np.arange(120) % 8)[:, None] + np.arange(9)
    own = 1000 + np.arange(120)[:, None]
    workload = _workload(
        np.arange(120) * 0.01,
        2560,
        hash_block_tokens=256,
        hash_offsets=np.arange(121) * 10,
        hash_ids=np.hstack([chain, own]).ravel(),
    )
    small = {"num_gpu_blocks_override": 400, "block_size": 16, "max_num_seqs": 2}
    fcfs, longest = (_simulate(workload, scheduling_policy=name, **small) for name in ("fcfs", "longest_prefix"))
    assert _reuse(longest) > _reuse(fcfs) + 0.3


# -------------------------------------------------------------------------------------------------------------- routing


@pytest.mark.parametrize("router", ["session_affinity", "prefix_affinity", "kv_aware", "llm_d"])
def test_conversations_find_their_cache_again(router: str) -> None:
    workload = _chats()
    blind, found = (_simulate(workload, name, replicas=7) for name in ("round_robin", router))
    # Each turn but the first repeats what came before: (3 + 6 + 9 + 12) of 45 blocks.
    assert _reuse(blind) < 0.3
    assert _reuse(found) == pytest.approx(30 / 45, abs=0.05)
    assert _ttft_s(found).mean() < _ttft_s(blind).mean()


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("round_robin", "random"),
        ("power_of_two", "random"),
        ("least_outstanding", "power_of_two"),
        ({"policy": "least_outstanding", "options": {"unit": "tokens"}}, "least_outstanding"),
    ],
)
def test_who_knows_more_balances_better(better: Any, worse: Any) -> None:
    workload = _rush(35.0, requests=3000)
    one, other = (_ttft_s(_simulate(workload, router, replicas=8)).mean() for router in (better, worse))
    assert one < 0.95 * other


def test_two_choices_survive_stale_reports() -> None:
    """Everybody goes to the replica that was least loaded two seconds ago (Mitzenmacher 2000)."""
    workload = _rush(35.0, requests=2000)
    stale = {"load_report_interval_s": 2.0}
    herd, two = (
        _ttft_s(_simulate(workload, {"policy": name, **stale}, replicas=8)).mean()
        for name in ("least_outstanding", "power_of_two")
    )
    fresh = _ttft_s(_simulate(workload, "least_outstanding", replicas=8)).mean()
    assert fresh < two < 0.7 * herd


def test_priority_aware_keeps_room_for_the_urgent() -> None:
    urgent = np.arange(1500) % 10 == 0
    workload = _rush(45.0, requests=1500, priority=np.where(urgent, 0, 1))
    all_equal, reserved = (
        _ttft_s(_simulate(workload, name, replicas=8)) for name in ("least_outstanding", "priority_aware")
    )
    assert reserved[urgent].mean() < 0.3 * all_equal[urgent].mean()
    assert reserved[~urgent].mean() > all_equal[~urgent].mean()


OFFLOAD = {"kv_offload": {"host": {"size_gib": 40.0}, "disk": {"size_gib": 400.0}}, "num_gpu_blocks_override": 1200}


@pytest.mark.parametrize(
    ("option", "value", "pool"),
    [
        ("overlap_score_credit", 0.0, {}),
        ("overlap_score_credit_decay", 5.0, {}),
        ("prefill_load_scale", 4.0, {}),
        ("host_cache_hit_weight", 0.0, OFFLOAD),
        ("disk_cache_hit_weight", 0.0, OFFLOAD | {"kv_offload": {"disk": {"size_gib": 400.0}}}),
        ("decode_active_request_weight", 100.0, {}),
        ("router_temperature", 1.0, {}),
        ("router_queue_threshold", 0.0, {}),
        ("router_predicted_ttl_secs", 60.0, OFFLOAD | {"kv_offload": {}}),
    ],
)
def test_every_option_of_kv_aware_counts(option: str, value: float, pool: dict[str, Any]) -> None:
    workload, replicas = _chats(sessions=150, turns=4), {"replicas": 3, "block_size": 16} | pool
    plain = _simulate(workload, "kv_aware", **replicas)
    changed = _simulate(workload, {"policy": "kv_aware", "options": {option: value}}, **replicas)
    assert (plain.requests["prefill_replica"] != changed.requests["prefill_replica"]).any()


def test_a_queue_at_the_router_serves_short_prompts_first() -> None:
    """Without one, a request waits behind whom it was sent to."""
    queues = [{"router_queue_threshold": 0.0, "router_queue_policy": name} for name in ("fcfs", "lcfs", "wspt")]
    first, last, short = (
        _ttft_s(_simulate(_rush(60.0), {"policy": "kv_aware", "options": options}, replicas=4)) for options in queues
    )
    assert short.mean() < 0.7 * first.mean()
    assert last.max() > first.max()


def test_a_prediction_keeps_equal_prompts_together() -> None:
    """What the first of them leaves is heard of too late for the others."""
    workload = _workload(
        np.arange(12) * 1.0,
        4096,
        hash_block_tokens=256,
        hash_offsets=np.arange(13) * 16,
        hash_ids=np.tile(np.arange(16), 12),
    )
    lag = {"policy": "kv_aware", "kv_event_lag_s": 100.0}
    alone = _simulate(workload, lag, replicas=4)
    told = _simulate(workload, {**lag, "options": {"router_predicted_ttl_secs": 5.0}}, replicas=4)
    assert _reuse(told) > _reuse(alone) + 0.1


# ---------------------------------------------------------------------------------------------------------- autoscaling

SCALER = {
    "max_replicas": 8,
    "interval_s": 2.0,
    "scale_down_cooldown_s": 10.0,
    "provision_s": 2.0,
    "weights_load_gb_s": 16.0,
    "startup_s": 2.0,
}


class Still:
    """A fast loop that never wants more than one replica."""

    def desired(self, pool: ScalingView) -> int:
        return 1


def _scaled(workload: Workload, scaler: dict[str, Any], **pool: Any) -> tuple[float, float]:
    """Return (mean time to first token, GPU-seconds)."""
    result = _simulate(workload, "least_outstanding", autoscaler={**SCALER, **scaler}, **pool)
    return float(_ttft_s(result).mean()), result.pools[0].gpu_seconds


def _peak() -> Workload:
    """A minute of calm, a minute of peak that takes three replicas, a minute of calm."""
    gaps = np.repeat([0.5, 0.05, 0.5], [120, 1200, 120])
    return _workload(np.cumsum(gaps), 1200, 50)


@pytest.mark.parametrize(
    ("policy", "eager", "lazy"),
    [
        ("queue_depth", {"up": 0.3, "down": 0.05}, {"up": 3.0, "down": 0.5}),
        ("queue_depth", {"up": 2, "down": 0.5, "unit": "requests"}, {"up": 50, "down": 5, "unit": "requests"}),
        ("kv_utilization", {"up": 0.2, "down": 0.1}, {"up": 0.9, "down": 0.7}),
        ("concurrency", {"up": 0.2, "down": 0.1}, {"up": 1.2, "down": 0.8}),
        ("slo", {"ttft_ms": 200.0, "itl_ms": 1e4}, {"ttft_ms": 4000.0, "itl_ms": 1e4}),
        ("slo", {"ttft_ms": 1e5, "itl_ms": 50.0}, {"ttft_ms": 1e5, "itl_ms": 100.0}),
    ],
)
def test_thresholds_trade_latency_for_cost(policy: str, eager: dict[str, Any], lazy: dict[str, Any]) -> None:
    small = {"max_num_seqs": 32, "num_gpu_blocks_override": 3000, "block_size": 16}
    (fast_s, much), (slow_s, little) = (
        _scaled(_peak(), {"policy": policy, "options": options}, **small) for options in (eager, lazy)
    )
    assert fast_s < 0.7 * slow_s
    assert much > 1.1 * little


def _predicted(pattern: list[tuple[float, float]], predictor: str, **options: Any) -> SimulationResult:
    """Serve (seconds, requests per second) one after the other, sized by the slow loop alone.

    Thirty seconds of more than one replica can do come first: they show it what that is.
    """
    gaps = [np.full(round(seconds * rate), 1 / rate) for seconds, rate in [(30.0, 12.0), *pattern]]
    scaler = {"predictor": predictor, "predictor_options": options, "throughput_interval_s": 10.0}
    return _simulate(
        _workload(np.cumsum(np.concatenate(gaps)), 1000, 5),
        "least_outstanding",
        autoscaler={**SCALER, **scaler, "policy": f"{__name__}:Still", "scale_down_cooldown_s": 0.0},
    )


def _late_ttft_s(result: SimulationResult, after_s: float) -> float:
    return float(_ttft_s(result)[result.requests["arrival_s"] > after_s].mean())


def test_a_trend_is_followed_sooner_by_holt() -> None:
    ramp = [(5.0, 12.0 + step) for step in range(1, 33)]
    last, holt = (_predicted(ramp, name) for name in ("last_value", "holt"))
    assert _late_ttft_s(holt, 30.0) < 0.85 * _late_ttft_s(last, 30.0)


def test_a_season_is_foreseen_once_it_is_known() -> None:
    seasons = [(20.0, 4.0), (20.0, 35.0)] * 6
    last, seasonal = _predicted(seasons, "last_value"), _predicted(seasons, "seasonal", period=4)
    assert _late_ttft_s(seasonal, 70.0) < 0.5 * _late_ttft_s(last, 70.0)


def test_an_average_scales_less_often_than_the_last_value() -> None:
    restless = [(10.0, float(rate)) for rate in np.random.default_rng(5).choice([6, 26], 40)]
    last, average = (_predicted(restless, name) for name in ("last_value", "moving_average"))
    assert len(average.pools[0].timeline) < 0.7 * len(last.pools[0].timeline)
