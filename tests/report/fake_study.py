"""A study as ``run_study`` returns it, from closed forms instead of a simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dynosim.config import ObjectiveConfig, Scenario
from dynosim.metrics import METRICS, Metrics, slo_violations
from dynosim.objectives import Objective, resolve
from dynosim.search.study import Study
from dynosim.search.trial import Outcome, Status, Trial
from dynosim.space import SearchSpace

SPACE = SearchSpace.parse("""
schema_version: "1"
name: fake70b
workload:
  source:
    type: synthetic
    requests: 50
    input_tokens: {type: fixed, tokens: 2000}
    output_tokens: {type: fixed, tokens: 200}
  load: {type: poisson, rate_rps: 15.0}
slo:
  time_to_first_token: {p99: 4000}
  inter_token_latency: {p99: 60}
  good_request_fraction: {min: 0.5}
deployment:
  model: llama-3.1-70b
  gpu: {choices: [h100_sxm, h200_sxm]}
  mode: {choices: [aggregated, disaggregated]}
  aggregated:
    replicas: {range: {min: 1, max: 8}}
    tensor_parallel_size: {choices: [1, 2, 4, 8]}
    max_num_seqs: {choices: [32, 64, 128, 256, 512]}
  disaggregated:
    prefill: {replicas: {range: {min: 1, max: 4}}, tensor_parallel_size: 2}
    decode: {replicas: {range: {min: 1, max: 4}}, tensor_parallel_size: {choices: [2, 4, 8]}}
  router: {policy: {choices: [round_robin, least_outstanding, kv_aware]}}
baseline:
  deployment:
    gpu: h100_sxm
    mode: aggregated
    aggregated: {replicas: 4, tensor_parallel_size: 4, max_num_seqs: 256}
    router: {policy: round_robin}
prices: {usd_per_gpu_hour: {h100_sxm: 2.0, h200_sxm: 2.6}}
""")

OBJECTIVES = tuple(
    resolve(ObjectiveConfig(metric=metric, stat=stat))
    for metric, stat in (
        ("usd_per_million_output_tokens", None),
        ("time_to_first_token", "p99"),
        ("inter_token_latency", "p99"),
        ("output_token_throughput_per_gpu", None),
        ("request_latency", "p50"),
    )
)

SHAPE = {"avg": 1.0, "min": 0.2, "p1": 0.25, "p50": 0.85, "p90": 1.8, "p99": 4.0, "p999": 5.5, "max": 6.0}
"""Statistics of a distribution of mean 1."""


def make_metrics(scenario: Scenario) -> Metrics:
    """Latencies of a pooled queue: service time falls with TP, waiting grows as 1 / (1 - load)."""
    deployment = scenario.deployment
    gpus, pool = deployment.num_gpus(), list(deployment.pools().values())[-1]
    fast = 1.25 if deployment.gpu == "h200_sxm" else 1.0
    speed = fast * pool.replicas * pool.tensor_parallel_size**0.85 * (1.15 if deployment.disaggregated else 1.0)
    load = min(6.5 / speed * (1.0 + 6.4 / (pool.max_num_seqs or 256)), 0.995)
    gap = 42.0 / pool.tensor_parallel_size**0.55 * (0.7 + 0.5 * load) / fast
    prefill = 900.0 / pool.tensor_parallel_size**0.8
    parts = {
        "queue_time": prefill * load**2 / (1.0 - load),
        "prefill_time": prefill,
        "kv_transfer_time": 35.0 if deployment.disaggregated else 0.0,
        "decode_time": gap * 199,
        "preempted_time": 1200.0 * max(load - 0.9, 0.0),
        "stall_time": 4.0 * load,
    }
    means = {
        **parts,
        "time_to_first_token": parts["queue_time"] + parts["prefill_time"] + parts["kv_transfer_time"],
        "inter_token_latency": gap / 2.5,
        "request_latency": sum(parts.values()),
        "output_token_throughput_per_user": 1000.0 / gap,
    }
    throughput = 3000.0 * min(1.0, 0.6 / load + 0.4)
    usd_per_s = gpus * scenario.prices.usd_per_gpu_hour[deployment.gpu] / 3600.0
    values: dict[str, Any] = dict.fromkeys(METRICS)
    values |= {name: {stat: mean * x for stat, x in SHAPE.items()} for name, mean in means.items()}
    values |= {
        "output_token_throughput": throughput,
        "output_token_throughput_per_gpu": throughput / gpus,
        "usd_per_million_output_tokens": usd_per_s / throughput * 1e6,
        "served_request_fraction": 1.0,
        "good_request_fraction": 1.0 - max(load - 0.8, 0.0),
        "goodput": 15.0,
        "gpus": float(gpus),
        "prefix_cache_hit_rate": 0.35,
        "completed": 1000.0,
        "saturated": float(load > 0.99),
    }
    return Metrics(values)


def make_deviations(number: int) -> dict[str, list[float]]:
    """Noise that all trials share, and a tenth of it their own; none of the p99 of TTFT."""
    shared, own = np.random.default_rng(0).normal(size=10), np.random.default_rng(number).normal(size=10)
    names = ("output_token_throughput", "time_to_first_token", "inter_token_latency", "inter_token_latency.p99")
    return {name: (0.1 * shared + 0.01 * own).tolist() for name in names}


def evaluate(scenario: Scenario, objectives: tuple[Objective, ...], number: int) -> Outcome:
    """TP 1 counts as infeasible, every 37th trial crashes."""
    if any(pool.tensor_parallel_size == 1 for pool in scenario.deployment.pools().values()):
        return Outcome(Status.INFEASIBLE, reason="weights of 141 GB do not fit in 80 GB </script>", wall_s=0.001)
    if number % 37 == 36:
        return Outcome(Status.FAILED, reason="Traceback (most recent call last):\nZeroDivisionError", wall_s=0.02)
    metrics = make_metrics(scenario)
    return Outcome(
        Status.COMPLETE,
        tuple(objective(metrics) for objective in objectives),
        slo_violations(metrics, scenario.slo),
        metrics.to_dict(),
        deviations=make_deviations(number),
        evidence="extrapolated" if scenario.deployment.gpu == "h200_sxm" else "modelled",
        wall_s=0.05,
    )


def make_point(number: int) -> Mapping[str, Any]:
    """The baseline first, then random points."""
    return SPACE.baseline_point() if number == 0 else SPACE.sample(np.random.default_rng(number))


def make_trial(number: int, objectives: int = 3) -> Trial:
    """Trial *number* with the first *objectives* of five objectives."""
    point = make_point(number)
    scenario = SPACE.scenario(point)
    return Trial(number, point, scenario, evaluate(scenario, OBJECTIVES[:objectives], number))


def make_twin(trial: Trial, number: int) -> Trial:
    """A trial that differs from *trial* by less than their noise: cheaper by 0.1 %, slower between tokens by 0.1 %."""
    cost, ttft, itl = trial.outcome.values or ()
    return replace(
        trial,
        number=number,
        outcome=replace(trial.outcome, values=(0.999 * cost, ttft, 1.001 * itl), deviations=make_deviations(number)),
    )


def make_study(trials: int = 80, objectives: int = 3) -> Study:
    """A study of *trials* trials, the first of which is the baseline."""
    return Study(
        id="20261121-1804-fake70b-7f3a",
        space=SPACE,
        objectives=OBJECTIVES[:objectives],
        slo=SPACE.reference.slo,
        trials=[make_trial(number, objectives) for number in range(trials)],
        budget=trials,
    )
