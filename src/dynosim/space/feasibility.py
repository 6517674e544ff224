"""What is known of a scenario before it is simulated: names, budgets, memory, and whether timing data exist."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dynosim.config import Scenario
from dynosim.config.load import Problem
from dynosim.config.schema import Path
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.hardware import memory
from dynosim.hardware.gpus import get_gpu
from dynosim.hardware.models import get_model
from dynosim.policies.registry import check_options, make_router, router_class
from dynosim.rng import stream
from dynosim.timing import forward_times


def check(scenario: Scenario) -> None:
    """Raise InfeasibleError or TimingError with the numbers when *scenario* cannot be deployed or predicted."""
    _check_budget(scenario)
    memory.check(scenario.deployment)
    for pool in scenario.deployment.pools().values():
        forward_times(scenario.deployment, pool)


def _check_budget(scenario: Scenario) -> None:
    budget, gpus = scenario.budget, scenario.deployment.num_gpus()
    if budget.max_gpus is not None and gpus > budget.max_gpus:
        raise InfeasibleError(f"needs {gpus} GPUs, budget.max_gpus is {budget.max_gpus}")
    if budget.max_usd_per_hour is not None:
        usd = usd_per_hour(scenario)
        if usd > budget.max_usd_per_hour:
            limit = budget.max_usd_per_hour
            raise InfeasibleError(f"costs {usd:.2f} USD per hour, budget.max_usd_per_hour is {limit:g}")


def usd_per_hour(scenario: Scenario) -> float:
    """Return what the GPUs of *scenario* cost per hour."""
    prices, deployment, total = scenario.prices, scenario.deployment, 0.0
    for pool in deployment.pools().values():
        gpu = deployment.pool_gpu(pool)
        price = prices.usd_per_gpu_hour.get(gpu) or get_gpu(gpu).usd_per_hour[prices.table]
        total += pool.replicas * pool.tensor_parallel_size * price
    return total


def unknown_names(scenario: Scenario) -> list[Problem]:
    """Return the names in *scenario* that nothing answers to: model, GPUs, router and options, metrics, statistics.

    Objectives in Python are left to the search: reading a file should not run another one.
    """
    problems = []
    for path, look_up, name in _names(scenario):
        try:
            look_up(name)
        except ConfigError as error:
            problems.append(Problem(path, error.message, "unknown_name"))
    return problems


def _names(scenario: Scenario) -> Iterator[tuple[Path, Callable[[Any], object], Any]]:
    """Yield (path, function that raises ConfigError for an unknown name, name)."""
    from dynosim.metrics import check_slo  # imports the simulator
    from dynosim.objectives import resolve

    deployment, router = scenario.deployment, scenario.deployment.router
    yield ("deployment", "model"), get_model, deployment.model
    yield ("deployment", "gpu"), get_gpu, deployment.gpu
    for role, pool in deployment.pools().items():
        section = ("aggregated",) if role == "mixed" else ("disaggregated", role)
        yield ("deployment", *section, "gpu"), get_gpu, deployment.pool_gpu(pool)
    for name in scenario.prices.usd_per_gpu_hour:
        yield ("prices", "usd_per_gpu_hour", name), get_gpu, name
    yield ("deployment", "router", "policy"), router_class, router.policy
    for option in router.options:
        path = ("deployment", "router", "options", option)
        yield path, lambda name: check_options(router.policy, {name: None}), option
    yield (
        ("deployment", "router", "options"),
        lambda given: make_router(router.policy, given, stream(0, "")),
        router.options,
    )
    for index, objective in enumerate(scenario.objectives):
        if objective.metric:
            yield ("objectives", str(index), "metric"), resolve, objective
    for metric, bounds in scenario.slo.items():
        for stat, bound in bounds.items():
            yield ("slo", metric, stat), check_slo, {metric: {stat: bound}}
