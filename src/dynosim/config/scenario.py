"""A scenario: one deployment under one workload, with the goals it is judged by. The one schema of all YAML files."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, field_validator

from dynosim.config.base import Config
from dynosim.config.deployment import DeploymentConfig
from dynosim.config.goals import SLO, BudgetConfig, ObjectiveConfig, OptimizerConfig, PriceConfig
from dynosim.config.workload import WorkloadConfig

DEFAULT_OBJECTIVES = (
    ObjectiveConfig(metric="usd_per_million_output_tokens"),
    ObjectiveConfig(metric="time_to_first_token", stat="p99"),
    ObjectiveConfig(metric="inter_token_latency", stat="p99"),
)


SERVED: SLO = {"served_request_fraction": {"min": 0.999}}
"""The bound that every scenario has unless it gives its own."""


class Scenario(Config):
    """Everything that ``dynosim predict`` needs. In a space file any field may be a domain instead of a value."""

    schema_version: Literal["1"] = "1"
    name: str
    description: str = ""
    seed: NonNegativeInt = 0
    """Root seed of the workload and of random policies; equal seeds mean equal traffic in every trial."""
    workload: WorkloadConfig
    deployment: DeploymentConfig
    slo: SLO = Field(default_factory=dict, validate_default=True)
    """metric -> statistic -> bound. Unless it says otherwise, 99.9 % of requests must be served: latencies only tell of
    requests that were, so a deployment that turns the long ones away must not look fast."""
    objectives: tuple[ObjectiveConfig, ...] = DEFAULT_OBJECTIVES
    budget: BudgetConfig = BudgetConfig()
    prices: PriceConfig = PriceConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    baseline: dict[str, Any] = Field(default_factory=dict)
    """Spaces only: the values of today's deployment, nested like the file; it becomes trial 0."""

    @field_validator("slo")
    @classmethod
    def _requests_are_served(cls, slo: SLO) -> SLO:
        return SERVED | slo

    @field_validator("objectives")
    @classmethod
    def _each_objective_once(cls, objectives: tuple[ObjectiveConfig, ...]) -> tuple[ObjectiveConfig, ...]:
        for place, each in enumerate(objectives):
            if (each.metric, each.stat, each.python) in [(o.metric, o.stat, o.python) for o in objectives[:place]]:
                raise ValueError(f"{each.python or '.'.join(filter(None, (each.metric, each.stat)))}: given twice")
        return objectives
