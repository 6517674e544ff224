"""A scenario: one deployment under one workload, with the goals it is judged by. The one schema of all YAML files."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from dynosim.config.base import Config
from dynosim.config.cases import VariationConfig
from dynosim.config.deployment import DeploymentConfig
from dynosim.config.goals import SLO, BudgetConfig, ObjectiveConfig, OptimizerConfig, Over, PriceConfig
from dynosim.config.workload import WeightedWorkload, WorkloadConfig

DEFAULT_OBJECTIVES = (
    ObjectiveConfig(metric="usd_per_million_output_tokens"),
    ObjectiveConfig(metric="time_to_first_token", stat="p99"),
    ObjectiveConfig(metric="inter_token_latency", stat="p99"),
)


SERVED: SLO = {"served_request_fraction": {"min": 0.999}}
"""The bound that every scenario has unless it gives its own."""


Name = Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$", examples=["chat", "code-review"])]


def _first_workload(fields: dict[str, Any]) -> WorkloadConfig | None:
    return next((workload.alone() for workload in fields.get("workloads", {}).values()), None)


class Scenario(Config):
    """Everything that ``dynosim predict`` needs. In a space file any field may be a domain instead of a value."""

    schema_version: Literal["1"] = "1"
    name: str
    description: str = ""
    seed: NonNegativeInt = 0
    """Root seed of the workload and of random policies; equal seeds mean equal traffic in every trial."""
    workloads: dict[Name, WeightedWorkload] = Field(default_factory=dict)
    """Several workloads in place of ``workload``, by name: each is a case that every configuration is judged by."""
    workload: WorkloadConfig = Field(default_factory=_first_workload, validate_default=True)
    """Of several workloads the first."""
    scenarios: dict[Name, VariationConfig] = Field(default_factory=dict)
    """Variations by name: each makes a further case of every workload."""
    deployment: DeploymentConfig
    slo: SLO = Field(default_factory=dict, validate_default=True)
    """metric -> statistic -> bound. Unless it says otherwise, 99.9 % of requests must be served: latencies only tell of
    requests that were, so a deployment that turns the long ones away must not look fast."""
    slo_over: dict[str, dict[str, Over]] = Field(default_factory=dict)
    """metric -> statistic -> ``mean``, ``worst`` or ``{cvar: LEVEL}`` of the bounds that several cases need not meet
    each. All others hold in every case (``worst``)."""
    objectives: tuple[ObjectiveConfig, ...] = DEFAULT_OBJECTIVES
    budget: BudgetConfig = BudgetConfig()
    prices: PriceConfig = PriceConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    baseline: dict[str, Any] = Field(default_factory=dict)
    """Spaces only: the values of today's deployment, nested like the file; it becomes trial 0."""

    @field_validator("workload")
    @classmethod
    def _one_or_several(cls, workload: WorkloadConfig, info: ValidationInfo) -> WorkloadConfig:
        if info.data.get("workloads") and workload != _first_workload(info.data):
            raise ValueError("given beside workloads: allowed is one of them")
        return workload

    @field_validator("slo_over")
    @classmethod
    def _bounds_are_given(cls, over: dict[str, dict[str, Over]], info: ValidationInfo) -> dict[str, dict[str, Over]]:
        given = {(metric, stat) for metric, stats in info.data.get("slo", {}).items() for stat in stats}
        for metric, stat in ((metric, stat) for metric, stats in over.items() for stat in stats):
            if (metric, stat) not in given and "slo" in info.data:
                raise ValueError(f"{metric}.{stat}: the slo has no such bound")
        return over

    @field_validator("slo")
    @classmethod
    def _requests_are_served(cls, slo: SLO) -> SLO:
        return SERVED | slo

    @field_validator("objectives")
    @classmethod
    def _each_objective_once(cls, objectives: tuple[ObjectiveConfig, ...]) -> tuple[ObjectiveConfig, ...]:
        for place, each in enumerate(objectives):
            if _said(each) in map(_said, objectives[:place]):
                raise ValueError(f"{each.python or '.'.join(filter(None, (each.metric, each.stat)))}: given twice")
        return objectives

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what a file with one workload does not say, and with several the copy of the first."""
        data: dict[str, Any] = handler(self)
        empty = [name for name in ("workloads", "scenarios", "slo_over") if not getattr(self, name)]
        for name in (*empty, *(["workload"] if self.workloads else [])):
            data.pop(name, None)
        return data

    def slo_of_each(self) -> SLO:
        """Return the bounds that must hold in every case."""
        over = self.slo_over
        kept = {
            metric: {stat: bound for stat, bound in stats.items() if over.get(metric, {}).get(stat, "worst") == "worst"}
            for metric, stats in self.slo.items()
        }
        return {metric: stats for metric, stats in kept.items() if stats} if over else self.slo

    def named_workloads(self) -> dict[tuple[str, ...], WorkloadConfig]:
        """Return path in the file -> workload."""
        if not self.workloads:
            return {("workload",): self.workload}
        return {("workloads", name): workload.alone() for name, workload in self.workloads.items()}


def _said(objective: ObjectiveConfig) -> tuple[Any, ...]:
    return objective.metric, objective.stat, objective.over, objective.python
