"""A study as ``run_study`` returns it, from closed forms instead of a simulation: M/M/1-like tails over a small space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynosim.config import DeploymentConfig, PoolConfig, Scenario, SyntheticSource, WorkloadConfig
from dynosim.config.deployment import DisaggregatedConfig
from dynosim.config.workload import FixedLength, PoissonLoad
from dynosim.search import pareto
from dynosim.search.trial import Outcome, Status, Trial
from dynosim.space import Choices, Parameter

STATS = ("avg", "min", "max", "std", "p1", "p5", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "p999")
SHAPE = (1.0, 0.2, 6.0, 0.7, 0.25, 0.3, 0.4, 0.6, 0.85, 1.2, 1.8, 2.4, 4.0, 5.5)
PARTS = ("queue_time", "prefill_time", "kv_transfer_time", "decode_time", "preempted_time", "stall_time")


@dataclass(frozen=True)
class FakeObjective:
    name: str
    display: str
    unit: str
    direction: str = "minimize"


OBJECTIVES = (
    FakeObjective("usd_per_million_output_tokens", "Cost per million output tokens", "USD"),
    FakeObjective("time_to_first_token.p99", "TTFT p99", "ms"),
    FakeObjective("inter_token_latency.p99", "ITL p99", "ms"),
    FakeObjective("output_token_throughput_per_gpu", "Output tokens per GPU", "tok/s/gpu", "maximize"),
    FakeObjective("request_latency.p50", "E2E latency p50", "ms"),
)


DOMAINS: dict[str, tuple[Any, ...]] = {
    "deployment.mode": ("aggregated", "disaggregated"),
    "deployment.aggregated.replicas": (1, 2, 3, 4, 6, 8),
    "deployment.aggregated.tensor_parallel_size": (1, 2, 4, 8),
    "deployment.aggregated.max_num_seqs": (32, 64, 128, 256, 512),
    "deployment.disaggregated.prefill.replicas": (1, 2, 3, 4),
    "deployment.disaggregated.decode.replicas": (1, 2, 3, 4),
    "deployment.disaggregated.decode.tensor_parallel_size": (2, 4, 8),
    "deployment.router.policy": ("round_robin", "least_outstanding", "kv_aware"),
}


class FakeSpace:
    name = "llama70b"
    source_file = "search_spaces/llama70b.yaml"
    parameters = tuple(
        Parameter(
            path,
            Choices(values),
            {"deployment.mode": (path.split(".")[1],)} if "aggregated" in path else {},
        )
        for path, values in DOMAINS.items()
    )

    def content_hash(self) -> str:
        return "0123456789abcdef"


@dataclass
class FakeStudy:
    id: str = "20261121-1804-llama70b-7f3a"
    space: FakeSpace = field(default_factory=FakeSpace)
    objectives: tuple[FakeObjective, ...] = OBJECTIVES[:3]
    slo: Mapping[str, Mapping[str, float]] = field(
        default_factory=lambda: {
            "time_to_first_token": {"p99": 4000.0},
            "inter_token_latency": {"p99": 60.0},
        }
    )
    trials: list[Trial] = field(default_factory=list)

    def _losses(self, trials: list[Trial]) -> np.ndarray:
        values = [trial.outcome.values for trial in trials]
        return pareto.losses(values, [o.direction for o in self.objectives]).reshape(-1, len(self.objectives))

    def frontier(self) -> list[Trial]:
        feasible = [trial for trial in self.trials if trial.outcome.feasible]
        losses = self._losses(feasible)
        return [t for _, t in sorted(
            (row[0], t) for row, t, keep in zip(losses, feasible, pareto.nondominated(losses), strict=True) if keep
        )] if feasible else []

    def picks(self) -> dict[str, Trial]:
        front = self.frontier()
        if not front:
            return {}
        losses = self._losses(front)
        return {
            "cheapest": front[int(losses[:, 0].argmin())],
            "balanced": front[pareto.knee(losses)],
            "fastest": front[int(losses[:, 1].argmin())],
        }

    @property
    def baseline(self) -> Trial | None:
        return self.trials[0] if self.trials else None

    @property
    def reference_point(self) -> tuple[float, ...]:
        feasible = [trial for trial in self.trials if trial.outcome.feasible]
        return tuple(self._losses(feasible).max(axis=0)) if feasible else ()

    def hypervolume(self) -> float:
        front = self.frontier()
        return pareto.hypervolume(self._losses(front), np.array(self.reference_point)) if front else 0.0


def make_scenario(point: Mapping[str, Any]) -> Scenario:
    """The scenario at *point*; GPUs cost what the bundled table says."""
    def at(path: str, default: Any = None) -> Any:
        return point.get(f"deployment.{path}", default)

    if at("mode") == "aggregated":
        section: dict[str, Any] = {
            "aggregated": PoolConfig(
                replicas=at("aggregated.replicas"),
                tensor_parallel_size=at("aggregated.tensor_parallel_size"),
                max_num_seqs=at("aggregated.max_num_seqs"),
            )
        }
    else:
        section = {
            "disaggregated": DisaggregatedConfig(
                prefill=PoolConfig(replicas=at("disaggregated.prefill.replicas"), tensor_parallel_size=2),
                decode=PoolConfig(
                    replicas=at("disaggregated.decode.replicas"),
                    tensor_parallel_size=at("disaggregated.decode.tensor_parallel_size"),
                ),
            )
        }
    return Scenario(
        name="llama70b",
        workload=WorkloadConfig(
            source=SyntheticSource(
                requests=1000, input_tokens=FixedLength(tokens=2000), output_tokens=FixedLength(tokens=200)
            ),
            load=PoissonLoad(rate_rps=15.0),
        ),
        deployment=DeploymentConfig(
            model="llama-3.1-70b",
            gpu="h100_sxm",
            mode=at("mode"),
            router={"policy": at("router.policy")},
            **section,
        ),
        slo=FakeStudy().slo,
    )


def _distribution(mean: float, tail: float) -> dict[str, float]:
    spread = {stat: mean * (shape if shape <= 1.0 else 1.0 + (shape - 1.0) * tail) for stat, shape in zip(STATS, SHAPE, strict=True)}
    return {**spread, "count": 1000.0, "sum": mean * 1000.0}


def make_metrics(scenario: Scenario) -> dict[str, Any]:
    """Latencies of a pooled queue: service time falls with TP, waiting grows as 1 / (1 - load)."""
    deployment = scenario.deployment
    gpus = deployment.num_gpus()
    pool = list(deployment.pools().values())[-1]
    speed = pool.replicas * pool.tensor_parallel_size**0.85 * (1.15 if deployment.mode == "disaggregated" else 1.0)
    load = min(6.5 / speed * (1.0 + 32 / pool.max_num_seqs * 0.2), 0.995)
    prefill = 900.0 / pool.tensor_parallel_size**0.8
    queue = prefill * load**2 / (1.0 - load)
    gap = 42.0 / pool.tensor_parallel_size**0.55 * (0.7 + 0.5 * load)
    transfer = 35.0 if deployment.mode == "disaggregated" else 0.0
    decode, stall, preempted = gap * 199, 4.0 * load, 120.0 * max(load - 0.9, 0.0)
    parts = dict(zip(PARTS, (queue, prefill, transfer, decode, preempted, stall), strict=True))
    throughput = 3000.0 * min(1.0, 0.6 / load + 0.4)
    attained = 1.0 - max(load - 0.8, 0.0)
    return {
        "time_to_first_token": _distribution(queue + prefill + transfer, 1.0 + load),
        "inter_token_latency": _distribution(gap, 0.3 + 0.4 * load),
        "request_latency": _distribution(sum(parts.values()), 0.8),
        "output_token_throughput_per_user": _distribution(1000.0 / gap, 0.1),
        **{name: _distribution(value, 1.0) for name, value in parts.items()},
        "output_token_throughput": throughput,
        "output_token_throughput_per_gpu": throughput / gpus,
        "usd_per_million_output_tokens": gpus * 2.5 / 3600.0 / throughput * 1e6,
        "good_request_fraction": attained,
        "goodput": 15.0 * attained,
        "completed": 1000,
        "rejected": 0,
        "incomplete": 0,
        "saturated": int(load >= 0.99),
        "gpus": gpus,
        "prefix_cache_hit_rate": 0.35,
        "total_gpu_energy": None,
    }


def evaluate(point: Mapping[str, Any], objectives: tuple[FakeObjective, ...], number: int) -> Outcome:
    """Ten or more TP-1 replicas count as infeasible, every 37th trial crashes."""
    scenario = make_scenario(point)
    if any(pool.tensor_parallel_size == 1 for pool in scenario.deployment.pools().values()):
        return Outcome(Status.INFEASIBLE, reason="weights 70.6 GB per GPU leave no KV cache in 80 GB <h100_sxm>", wall_s=0.001)
    if number % 37 == 36:
        return Outcome(Status.FAILED, reason="Traceback (most recent call last):\n  ...\nZeroDivisionError", wall_s=0.02)
    metrics = make_metrics(scenario)

    def value(name: str) -> float:
        metric, _, stat = name.partition(".")
        found = metrics[metric]
        return float(found[stat or "avg"] if isinstance(found, dict) else found)

    constraints = {
        f"{metric}.{stat}": (value(f"{metric}.{stat}") - bound) / bound
        for metric, bounds in scenario.slo.items()
        for stat, bound in bounds.items()
    }
    return Outcome(
        Status.COMPLETE, tuple(value(o.name) for o in objectives), constraints, metrics, wall_s=0.05 + 0.001 * math.sqrt(number)
    )


BASELINE = {
    "deployment.mode": "aggregated",
    "deployment.aggregated.replicas": 4,
    "deployment.aggregated.tensor_parallel_size": 4,
    "deployment.aggregated.max_num_seqs": 256,
    "deployment.router.policy": "round_robin",
}


def make_trial(number: int, objectives: tuple[FakeObjective, ...] = OBJECTIVES[:3], seed: int = 0) -> Trial:
    """Trial *number*: the baseline first, then random points."""
    rng = np.random.default_rng((seed, number))
    point = dict(BASELINE)
    if number > 0:
        drawn = {path: values[rng.integers(len(values))] for path, values in DOMAINS.items()}
        other = "disaggregated" if drawn["deployment.mode"] == "aggregated" else "aggregated"
        point = {path: value for path, value in drawn.items() if f".{other}." not in path}
    return Trial(number, point, make_scenario(point), evaluate(point, objectives, number))


def make_study(trials: int = 80, objectives: int = 3) -> FakeStudy:
    """A finished study of *trials* trials with the first *objectives* of five objectives."""
    chosen = OBJECTIVES[:objectives]
    return FakeStudy(objectives=chosen, trials=[make_trial(n, chosen) for n in range(trials)])
