"""Cases: every workload as it is and under every scenario, each a configuration with one workload of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import NonNegativeInt, PositiveFloat

from dynosim.config.base import Config
from dynosim.config.deployment import DeploymentConfig, PoolConfig
from dynosim.config.goals import PriceConfig
from dynosim.errors import InfeasibleError

if TYPE_CHECKING:
    from dynosim.config.scenario import Scenario


class VariationConfig(Config):
    """What a scenario changes of a workload, of its deployment and of prices; the rest is as it was."""

    weight: PositiveFloat = 1.0
    """In proportion to that of the unvaried case, 1; the weight of a case is this times its workload's."""
    load: PositiveFloat = 1.0
    """Factor on the request rate, or on the concurrency."""
    output_tokens: PositiveFloat = 1.0
    """Factor on the length of every answer."""
    prefix_hits: Literal["none"] | None = None
    """``none``: no prompt shares anything with another."""
    prices: PriceConfig = PriceConfig()
    """Prices in place of those of the file, GPU by GPU, and a factor on all."""
    lost_replicas: NonNegativeInt = 0
    """Replicas fewer in each pool, of an autoscaled one at most; they are not paid for."""
    lost_pool: Literal["mixed", "prefill", "decode"] | None = None
    """The one pool that loses them; a deployment that has no such pool loses none."""


class Case(NamedTuple):
    """One workload under one scenario, or under none."""

    name: str
    """``chat`` or ``chat/busier``; the scenario alone where the workload has no name, and ``unvaried`` without any."""
    weight: float
    scenario: Scenario
    """Without other workloads and scenarios."""


def cases_of(scenario: Scenario) -> tuple[Case, ...]:
    """Return the cases of *scenario* in the order of the file, the unvaried one of each workload first.

    Raises InfeasibleError where a scenario leaves a pool without replicas.
    """
    if not scenario.workloads and not scenario.scenarios:
        return (Case("", 1.0, scenario),)
    return tuple(_cases(scenario))


def _cases(scenario: Scenario) -> Iterator[Case]:
    alone: dict[str, Any] = {"workloads": {}, "scenarios": {}}
    if len(scenario.workloads) < 2 and not scenario.scenarios:
        alone["slo_over"] = {}
    weighted = {name: (workload.weight, workload.alone()) for name, workload in scenario.workloads.items()}
    for name, (weight, workload) in (weighted or {"": (1.0, scenario.workload)}).items():
        base = scenario.model_copy(update={**alone, "workload": workload})
        yield Case(name or "unvaried", weight, base)
        for varied, variation in scenario.scenarios.items():
            label = f"{name}/{varied}" if name else varied
            yield Case(label, weight * variation.weight, _varied(base, variation, varied))


def _varied(base: Scenario, by: VariationConfig, name: str) -> Scenario:
    workload = base.workload
    changes = {
        "rate_factor": workload.rate_factor * by.load,
        "output_tokens_factor": workload.output_tokens_factor * by.output_tokens,
        "shared_prefixes": workload.shared_prefixes and by.prefix_hits is None,
    }
    return base.model_copy(
        update={
            "workload": workload.model_copy(update=changes),
            "deployment": _without_lost(base.deployment, by, name),
            "prices": _priced(base.prices, by.prices),
        }
    )


def _priced(base: PriceConfig, by: PriceConfig) -> PriceConfig:
    return PriceConfig(
        usd_per_gpu_hour=base.usd_per_gpu_hour | by.usd_per_gpu_hour,
        table=by.table if "table" in by.model_fields_set else base.table,
        factor=base.factor * by.factor,
    )


def _without_lost(deployment: DeploymentConfig, by: VariationConfig, name: str) -> DeploymentConfig:
    if not by.lost_replicas:
        return deployment
    left = {
        role: pool if by.lost_pool not in (None, role) else _fewer(pool, by.lost_replicas, f"{name}: the {role} pool")
        for role, pool in deployment.pools().items()
    }
    if deployment.disaggregated is None:
        return deployment.model_copy(update={"aggregated": left["mixed"]})
    return deployment.model_copy(update={"disaggregated": deployment.disaggregated.model_copy(update=left)})


def _fewer(pool: PoolConfig, lost: int, what: str) -> PoolConfig:
    most, scaler = pool.max_replicas - lost, pool.autoscaler
    if most < 1:
        raise InfeasibleError(f"scenario {what} has {pool.max_replicas} replicas and loses {lost}")
    if scaler is not None:
        bounds = {"min_replicas": min(scaler.min_replicas, most), "max_replicas": most}
        scaler = scaler.model_copy(update=bounds)
    return pool.model_copy(update={"replicas": min(pool.replicas, most), "autoscaler": scaler})
