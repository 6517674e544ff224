"""Every metric against numpy or a formula worked out by hand, on results built row by row."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dynosim.config import DeploymentConfig, PriceConfig, WorkloadConfig
from dynosim.config.goals import ALIASES
from dynosim.errors import ConfigError
from dynosim.hardware.gpus import get_gpu
from dynosim.metrics import (
    METRICS,
    PERCENTILES,
    STATS,
    Metrics,
    check_metric,
    check_slo,
    slo_violations,
    summarize,
)
from dynosim.simulation import SimulationResult, simulate
from dynosim.simulation.records import COMPLETED, INCOMPLETE, REJECTED, REQUEST_DTYPE, PoolRecord
from dynosim.workload import load_workload
from simulation.histogram import make_gaps

PARTS = ("queue_s", "prefill_s", "kv_transfer_s", "decode_s", "preempted_s", "stall_s")


def _make_pool(**fields: Any) -> PoolRecord:
    defaults: dict[str, Any] = {
        "role": "mixed", "gpu": "h100_sxm", "replicas": 1, "gpus_per_replica": 1, "kv_blocks": 1000, "block_size": 16,
        "max_num_seqs": 10, "gpu_seconds": 100.0, "busy_s": 50.0, "passes": 1, "prefill_tokens": 1, "decode_tokens": 1,
        "mean_batch": 2.0, "mean_kv_utilization": 0.5, "extrapolated_pass_share": 0.0,
        "timeline": np.array([[0.0, 1, 1, 0, 0]]), "decode_rounds": 0, "link_utilization": {},
    }  # fmt: skip
    return PoolRecord(**(defaults | fields))


def _make_result(
    requests: NDArray[Any], pools: tuple[PoolRecord, ...] = (), duration_s: float = 100.0, warmup: int = 0
) -> SimulationResult:
    return SimulationResult(requests, make_gaps(()), pools or (_make_pool(),), duration_s, warmup, (), "")


def _make_random(n: int = 500) -> NDArray[Any]:
    """Completed requests with random times; one in ten has one output token."""
    rng = np.random.default_rng(3)
    out = np.zeros(n, REQUEST_DTYPE)
    out["arrival_s"] = np.sort(rng.uniform(0.0, 90.0, n))
    for part in PARTS:
        out[part] = rng.exponential(1.0, n)
    out["output_tokens"] = np.where(rng.random(n) < 0.1, 1, rng.integers(2, 500, n))
    out["input_tokens"] = rng.integers(1, 5000, n)
    out["cached_tokens"] = out["input_tokens"] // 3
    out["first_token_s"] = out["arrival_s"] + out["queue_s"] + out["prefill_s"]
    many = out["output_tokens"] > 1
    out["second_token_s"] = np.where(many, out["first_token_s"] + rng.exponential(0.1, n), np.nan)
    out["last_token_s"] = np.where(many, out["second_token_s"] + rng.exponential(5.0, n), out["first_token_s"])
    out["scheduled_s"] = out["arrival_s"] + out["queue_s"]
    return out


def _make_rows(*rows: tuple[float, float, float, int, int, int]) -> NDArray[Any]:
    """One request per (arrival, first token, last token, input tokens, output tokens, status)."""
    out = np.zeros(len(rows), REQUEST_DTYPE)
    names = ["arrival_s", "first_token_s", "last_token_s", "input_tokens", "output_tokens", "status"]
    for row, values in zip(out, rows, strict=True):
        for name, value in zip(names, values, strict=True):
            row[name] = value
        row["second_token_s"] = math.nan
    return out


def _by_hand(**slo: dict[str, float]) -> Metrics:
    """Two pools, a warm-up request, three completed, one rejected, one incomplete."""
    nan = math.nan
    requests = _make_rows(
        (0.0, 1.0, 50.0, 9999, 9999, COMPLETED),  # warm-up
        (10.0, 10.5, 12.5, 1000, 21, COMPLETED),  # TTFT 500 ms, ITL 100 ms, latency 2,500 ms
        (12.0, 13.0, 17.0, 2000, 41, COMPLETED),  # TTFT 1,000 ms, ITL 100 ms, latency 5,000 ms
        (20.0, 22.0, 22.0, 3000, 1, COMPLETED),  # TTFT 2,000 ms, no ITL
        (21.0, nan, nan, 90000, 5, REJECTED),
        (22.0, 23.0, nan, 500, 5, INCOMPLETE),
    )
    requests["cached_tokens"][:4] = (9999, 0, 1000, 500)
    requests["preemptions"] = (7, 0, 2, 0, 0, 1)
    pools = (
        _make_pool(role="prefill", gpu_seconds=100.0, busy_s=30.0, extrapolated_pass_share=0.5),
        _make_pool(
            role="decode", gpu="h200_sxm", replicas=3, gpus_per_replica=2, gpu_seconds=600.0, busy_s=60.0,
            max_num_seqs=20, mean_batch=10.0, mean_kv_utilization=0.1,
        ),
    )  # fmt: skip
    prices = PriceConfig(usd_per_gpu_hour={"h100_sxm": 2.0, "h200_sxm": 4.0})
    return summarize(_make_result(requests, pools, warmup=1), slo, prices)


def test_every_statistic_of_a_per_request_metric_is_numpys() -> None:
    requests = _make_random()
    metrics = summarize(_make_result(requests), {}, PriceConfig())
    itl_s = (requests["last_token_s"] - requests["first_token_s"]) / np.maximum(requests["output_tokens"] - 1, 1)
    many = requests["output_tokens"] > 1
    columns = {
        "time_to_first_token": 1e3 * (requests["first_token_s"] - requests["arrival_s"]),
        "time_to_second_token": 1e3 * (requests["second_token_s"] - requests["first_token_s"])[many],
        "inter_token_latency": 1e3 * itl_s[many],
        "request_latency": 1e3 * (requests["last_token_s"] - requests["arrival_s"]),
        "output_token_throughput_per_user": 1.0 / itl_s[many],
        "e2e_output_token_throughput": requests["output_tokens"] / (requests["last_token_s"] - requests["arrival_s"]),
        **{f"{part[:-2]}_time": 1e3 * requests[part] for part in PARTS},
    }
    assert columns.keys() == {n for n, info in METRICS.items() if info.distribution} - {"inter_chunk_latency"}
    for name, x in columns.items():
        expected = {"avg": x.mean(), "min": x.min(), "max": x.max(), "std": x.std(), "count": len(x), "sum": x.sum()}
        expected |= {key: np.percentile(x, p) for key, p in PERCENTILES.items()}
        assert expected.keys() == set(STATS)
        for stat, value in expected.items():
            assert metrics.value(name, stat) == pytest.approx(value, rel=1e-9), (name, stat)
        assert metrics.value(name) == metrics.value(name, "avg")


def test_inter_chunk_latency_is_over_all_token_gaps() -> None:
    seconds = np.random.default_rng(0).lognormal(-4.0, 1.0, 3000)
    pooled = make_gaps((x, 0.0, 1, 1) for x in seconds)
    result = SimulationResult(_make_random(), pooled, (_make_pool(),), 100.0, 0, (), "")
    metrics = summarize(result, {}, PriceConfig())
    exact = {"avg": seconds.mean(), "min": seconds.min(), "max": seconds.max(), "sum": seconds.sum()}
    for stat, value in exact.items():
        assert metrics.value("inter_chunk_latency", stat) == pytest.approx(1e3 * value, rel=1e-12)
    assert metrics.value("inter_chunk_latency", "count") == 3000
    assert metrics.value("inter_chunk_latency", "std") == pytest.approx(1e3 * seconds.std(), rel=1e-3)
    for stat in ("p50", "p90", "p99"):
        expected = 1e3 * np.percentile(seconds, PERCENTILES[stat])
        assert metrics.value("inter_chunk_latency", stat) == pytest.approx(expected, rel=0.002)


def test_throughput_and_cost_by_hand() -> None:
    metrics = _by_hand(request_latency={"p99": 4000.0})  # met by the first and the third
    span_s, output, total = 12.0, 63, 6063  # from the arrival at 10 s to the last token at 22 s
    usd_per_s = (100.0 * 2.0 + 600.0 * 4.0) / 3600.0 / 100.0
    expected = {
        "request_throughput": 3 / span_s,
        "output_token_throughput": output / span_s,
        "input_token_throughput": 6000 / span_s,
        "total_token_throughput": total / span_s,
        "gpus": 7.0,
        "output_token_throughput_per_gpu": output / span_s / 7.0,
        "total_token_throughput_per_gpu": total / span_s / 7.0,
        "goodput": 2 / span_s,
        "goodput_token_throughput": 22 / span_s,
        "goodput_token_throughput_per_gpu": 22 / span_s / 7.0,
        "usd_per_hour": 1 * 2.0 + 6 * 4.0,
        "usd_per_million_output_tokens": usd_per_s * span_s / (output / 1e6),
        "usd_per_million_total_tokens": usd_per_s * span_s / (total / 1e6),
        "usd_per_million_good_output_tokens": usd_per_s * span_s / (22 / 1e6),
        "usd_per_1k_requests": usd_per_s * span_s / (3 / 1e3),
    }
    for name, value in expected.items():
        assert metrics.value(name) == pytest.approx(value, rel=1e-12), name


def test_use_of_the_deployment_by_hand() -> None:
    metrics = _by_hand()
    expected = {
        "effective_concurrency": (2.5 + 5.0 + 2.0) / 12.0,
        "kv_cache_utilization": (1 * 0.5 + 3 * 0.1) / 4,
        "batch_slot_utilization": (1 * 0.2 + 3 * 0.5) / 4,
        "replica_utilization": 90.0 / (4 * 100.0),
        "prefix_cache_hit_rate": 1500 / 6000,
        "extrapolated_pass_share": 15.0 / 90.0,
        "duration": 100.0,
    }
    for name, value in expected.items():
        assert metrics.value(name) == pytest.approx(value, rel=1e-12), name


def test_autoscaling_links_speculation_and_tiers_by_hand() -> None:
    requests = _make_rows((0.0, 1.0, 2.0, 1000, 9, COMPLETED), (0.0, 1.0, 2.0, 3000, 9, COMPLETED))
    requests["cached_tokens"], requests["cached_host_tokens"] = (400, 600), (0, 1000)
    requests["queue_s"] = (1.0, 3.0)
    requests["wait_kv_blocks_s"], requests["wait_cold_start_s"] = (1.0, 2.0), (0.0, 1.0)
    requests["retries"] = (0, 2)
    grown = np.array([[0.0, 1, 1, 0, 0], [10, 3, 1, 2, 0], [40, 3, 3, 0, 0], [60, 2, 2, 0, 0], [80, 3, 2, 1, 0]])
    links = {"host_read": 0.2, "host_write": 0.3}
    pools = (
        _make_pool(role="prefill", gpu_seconds=200.0, timeline=grown, link_utilization=links),
        _make_pool(role="decode", gpu_seconds=400.0, gpus_per_replica=4, decode_rounds=6),
    )  # fmt: skip
    metrics = summarize(_make_result(requests, pools), {}, PriceConfig())
    expected = {
        "prefix_cache_hit_rate": 0.25,
        "host_cache_hit_rate": 0.25,
        "disk_cache_hit_rate": 0.0,
        "wait_kv_blocks_share": 0.75,
        "wait_cold_start_share": 0.25,
        "wait_batch_slots_share": 0.0,
        "retries": 2,
        "kv_link_utilization": 0.3,
        "acceptance_length": 16 / 6,
        "gpu_hours": 600.0 / 3600.0,
        "gpus": 6.0,
        "replicas": 2.0 + 1.0,
        "replicas_min": 1 + 1,
        "replicas_max": 3 + 1,
        "replica_starts": 3,
        "kv_cache_utilization": 0.5,
        "replica_utilization": 100.0 / 300.0,
    }
    for name, value in expected.items():
        assert metrics.value(name) == pytest.approx(value, rel=1e-12), name


def test_a_run_that_ends_with_a_growing_queue_is_saturated() -> None:
    rows = [(float(t), t + 1.0, t + 2.0, 10, 2, COMPLETED) for t in range(100)]
    waiting = [(float(t), math.nan, math.nan, 10, 2, INCOMPLETE) for t in range(100, 160)]
    for extra, saturated in (([], 0.0), (waiting, 1.0)):
        requests = _make_rows(*rows, *extra)
        never = requests["status"] == INCOMPLETE
        for name, value in {
            "scheduled_s": requests["arrival_s"],
            "prefill_done_s": 0,
            "kv_landed_s": 0,
            "queue_s": 0,
        }.items():
            requests[name] = np.where(never, np.nan, value)
        result = replace(_make_result(requests, duration_s=160.0), stopped="duration" if extra else "")
        metrics = summarize(result, {}, PriceConfig())
        assert metrics.value("saturated") == saturated
        assert metrics.value("stopped_early") == saturated


def test_warm_up_is_left_out_and_who_was_not_served_counts_against_attainment() -> None:
    metrics = _by_hand(time_to_first_token={"p99": 1000.0})  # met with equality by the second
    assert metrics.value("time_to_first_token", "count") == 3
    assert metrics.value("request_latency", "max") == pytest.approx(5000.0)
    counts = ("completed", "rejected", "incomplete", "preemptions")
    assert [metrics.value(name) for name in counts] == [3, 1, 1, 3]
    assert metrics.value("served_request_fraction") == 3 / 5
    assert metrics.value("good_request_fraction") == 2 / 5


@pytest.mark.parametrize("table", ["hyperscaler", "neocloud", "three_year_rental"])
def test_a_price_not_given_is_the_tables(table: str) -> None:
    prices = PriceConfig.model_validate({"table": table, "usd_per_gpu_hour": {"h200_sxm": 9.0}})
    metrics = summarize(_make_result(_make_random(10)), {}, prices)
    assert metrics.value("usd_per_hour") == pytest.approx(get_gpu("h100_sxm").usd_per_hour[table])


def test_a_request_without_the_bounded_metric_is_good_and_said_to_be_undetermined() -> None:
    metrics = _by_hand(inter_token_latency={"p99": 50.0})
    assert metrics.value("good_request_fraction") == 1 / 5  # the one-token output
    assert metrics.value("slo_undetermined_requests") == 1


def test_of_several_bounds_on_a_metric_the_widest_is_each_requests_own() -> None:
    for bounds in ({"p50": 600.0, "p99": 1500.0}, {"p99": 1500.0, "p50": 600.0}):
        assert _by_hand(time_to_first_token=bounds).value("good_request_fraction") == 2 / 5
    speed = {"avg": 20.0, "p1": 9.0}  # both multi-token requests run at 10 tokens/s
    assert _by_hand(output_token_throughput_per_user=speed).value("good_request_fraction") == 3 / 5


def test_one_token_outputs_leave_inter_token_metrics_missing() -> None:
    metrics = summarize(_make_result(_make_rows((0.0, 1.0, 1.0, 10, 1, COMPLETED))), {}, PriceConfig())
    for name in ("inter_token_latency", "time_to_second_token", "output_token_throughput_per_user"):
        assert metrics.to_dict()[name] is None
    assert metrics.to_dict()["inter_chunk_latency"] is None
    assert metrics.value("request_throughput") == 1.0


@pytest.mark.parametrize("duration_s", [0.0, 100.0])
def test_what_is_unknown_is_missing_and_never_zero(duration_s: float) -> None:
    rows = _make_rows((0.0, math.nan, math.nan, 10, 5, REJECTED))
    idle = _make_pool(gpu_seconds=duration_s, busy_s=0.0)
    metrics = summarize(_make_result(rows, (idle,), duration_s), {}, PriceConfig())
    counted = {
        "good_request_fraction", "served_request_fraction", "completed", "incomplete", "failed", "preemptions",
        "retries", "saturated", "stopped_early", "replica_starts",
    }  # fmt: skip
    present = {name for name, value in metrics.to_dict().items() if value is not None}
    of_the_run = {
        "usd_per_hour", "gpus", "replicas", "replica_utilization", "kv_cache_utilization", "batch_slot_utilization",
    }  # fmt: skip
    assert present == {
        *counted, *(of_the_run if duration_s else ()), "rejected", "duration", "slo_undetermined_requests", "gpu_hours",
        "replicas_min", "replicas_max",
    }  # fmt: skip
    assert all(metrics.value(name) == 0.0 for name in counted)
    assert metrics.flat().keys() == present


def test_pass_times_of_zero_make_no_rate() -> None:
    metrics = summarize(_make_result(_make_rows((5.0, 5.0, 5.0, 10, 1, COMPLETED))), {}, PriceConfig())
    assert metrics.value("request_throughput") is None
    assert metrics.value("completed") == 1.0


def test_flat_keys_are_the_bare_name_for_averages_and_numbers() -> None:
    metrics = _by_hand()
    flat = metrics.flat()
    assert flat["time_to_first_token"] == metrics.value("time_to_first_token", "avg")
    assert flat["time_to_first_token.p999"] == metrics.value("time_to_first_token", "p999")
    assert flat["gpus"] == 7.0
    assert "time_to_first_token.avg" not in flat
    assert not any(key.startswith("inter_chunk_latency") for key in flat)
    assert metrics.to_dict().keys() == METRICS.keys()


def test_slo_bounds_hold_from_the_metrics_worse_side() -> None:
    metrics = _by_hand()
    violations = slo_violations(
        metrics,
        {
            "request_latency": {"max": 4000.0, "p50": 5000.0},
            "output_token_throughput_per_user": {"p1": 20.0, "avg": 10.0},
            "served_request_fraction": {"min": 0.8},
            "usd_per_hour": {"max": 20.0, "min": 13.0},
            "rejected": {"max": 0.0},
            "inter_chunk_latency": {"p99": 50.0},
        },
    )
    assert violations == pytest.approx(
        {
            "request_latency.max": 0.25,
            "request_latency.p50": -0.5,
            "output_token_throughput_per_user.p1": 0.5,
            "output_token_throughput_per_user.avg": 0.0,
            "served_request_fraction.min": 0.25,
            "usd_per_hour.max": 0.3,
            "usd_per_hour.min": -1.0,
            "rejected.max": 1.0,
            "inter_chunk_latency.p99": math.inf,
        }
    )


@pytest.mark.parametrize(
    ("slo", "message"),
    [
        (
            {"time_to_frist_token": {"p99": 1.0}},
            "slo.time_to_frist_token.p99: 'time_to_frist_token': no such metric: did you mean 'time_to_first_token'",
        ),
        ({"request_latency": {"p98": 1.0}}, "slo.request_latency.p98: 'p98': did you mean 'p9"),
        ({"goodput": {"p99": 1.0}}, "slo.goodput.p99: 'p99': goodput is one number: allowed: min, max"),
        ({"duraton": {"max": 1.0}}, "slo.duraton.max: 'duraton': no such metric: did you mean 'duration'"),
    ],
)
def test_a_wrong_slo_names_what_is_near(slo: dict[str, dict[str, float]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_slo(slo)


def test_every_metric_can_be_bounded() -> None:
    for name, info in METRICS.items():
        for stat in STATS if info.distribution else ("min", "max"):
            check_slo({name: {stat: 1.0}})
        assert check_metric(name, "p99" if info.distribution else None, "x") is info


@pytest.mark.parametrize(
    ("metric", "stat", "message"),
    [
        ("request_latencyy", "p99", "here: 'request_latencyy': no such metric: did you mean 'request_latency', "),
        (
            "request_latency",
            None,
            "here: request_latency needs a statistic, such as request_latency.p99; allowed: avg, min",
        ),
        ("request_latency", "p9999", "did you mean 'p999'"),
        ("goodput", "avg", "'avg': goodput is one number without statistics"),
    ],
)
def test_a_wrong_metric_names_what_is_near(metric: str, stat: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_metric(metric, stat, "here")


@pytest.mark.parametrize(("load", "saturated"), [(0.5, 0.0), (0.9, 0.0), (1.1, 1.0), (3.0, 1.0)])
def test_saturated_tells_a_growing_queue_from_a_busy_one(load: float, saturated: float) -> None:
    """One server of 0.1 s per request: M/D/1 is stable exactly below load 1."""
    deployment = DeploymentConfig.model_validate(
        {
            "model": "llama-3.1-8b",
            "gpu": "h100_sxm",
            "timing": {"type": "fixed"},
            "aggregated": {"max_num_seqs": 1, "enable_prefix_caching": False},
        }
    )
    source = {
        "type": "synthetic",
        "requests": 3000,
        "input_tokens": {"type": "fixed", "tokens": 1000},
        "output_tokens": {"type": "fixed", "tokens": 1},
    }
    config = {"source": source, "load": {"type": "poisson", "rate_rps": load / 0.1}}
    for seed in range(3):
        result = simulate(deployment, load_workload(WorkloadConfig.model_validate(config), seed))
        assert summarize(result, {}, PriceConfig()).value("saturated") == saturated


@pytest.mark.parametrize(("load", "saturated"), [(0.5, 0.0), (0.9, 0.0), (1.3, 1.0)])
@pytest.mark.parametrize("stop", [{}, {"max_virtual_time_s": 120.0}])
def test_a_kv_link_or_decode_pool_that_cannot_keep_up_saturates(
    load: float, saturated: float, stop: dict[str, float]
) -> None:
    """1,000 prompt tokens of 128 KiB (Llama-3.1-8B, bf16) each at 1 GB/s: 131 ms per request on the link."""
    transfer_s = 1000 * 2 * 32 * 8 * 128 * 2 / 1e9
    pool = {"max_num_seqs": 64, "enable_prefix_caching": False, "replicas": 1}
    deployment = DeploymentConfig.model_validate(
        {
            "model": "llama-3.1-8b",
            "gpu": "h100_sxm",
            "timing": {"type": "fixed", "prefill_ms_per_token": 0.01, "decode_ms": 1.0},
            "mode": "disaggregated",
            "disaggregated": {"prefill": pool, "decode": pool, "kv_transfer": {"bandwidth_gb_s": 1.0}},
        }
    )
    source = {
        "type": "synthetic",
        "requests": 2000,
        "input_tokens": {"type": "fixed", "tokens": 1000},
        "output_tokens": {"type": "fixed", "tokens": 2},
    }
    config = {"source": source, "load": {"type": "poisson", "rate_rps": load / transfer_s}, **stop}
    result = simulate(deployment, load_workload(WorkloadConfig.model_validate(config), 0))
    assert summarize(result, {}, PriceConfig()).value("saturated") == saturated


@pytest.mark.parametrize(("rate_rps", "saturated"), [(3.2, 0.0), (4.7, 1.0)])
def test_slow_service_does_not_hide_a_growing_backlog(rate_rps: float, saturated: float) -> None:
    """Sixteen slots of four seconds serve 4 requests/s; the wait stays below the service itself throughout."""
    deployment = DeploymentConfig.model_validate(
        {
            "model": "llama-3.1-8b",
            "gpu": "h100_sxm",
            "timing": {"type": "fixed", "prefill_ms_per_token": 0.01, "decode_ms": 40.0},
            "aggregated": {"max_num_seqs": 16, "enable_prefix_caching": False},
        }
    )
    lengths = {"input_tokens": {"type": "fixed", "tokens": 10}, "output_tokens": {"type": "fixed", "tokens": 100}}
    source = {"type": "synthetic", "requests": 100, **lengths}
    config = {"source": source, "load": {"type": "constant_rate", "rate_rps": rate_rps}}
    metrics = summarize(
        simulate(deployment, load_workload(WorkloadConfig.model_validate(config), 0)), {}, PriceConfig()
    )
    assert metrics.value("queue_time", "max") < metrics.value("request_latency", "min")
    assert metrics.value("saturated") == saturated


def test_aliases_mean_metrics_and_read_like_them() -> None:
    assert set(ALIASES.values()) <= set(METRICS)
    assert not set(ALIASES) & set(METRICS)
    metrics = Metrics({"time_to_first_token": {"p99": 3.0}})
    assert metrics.value("ttft", "p99") == 3.0
