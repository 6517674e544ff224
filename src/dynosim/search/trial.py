"""One evaluated configuration. It ends complete, lost (an SLO out of reach), infeasible, or failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import NormalDist
from typing import Any, Literal

from dynosim.config import ObjectiveConfig, Scenario
from dynosim.metrics import Bound, Metrics
from dynosim.uncertainty import sampling
from dynosim.uncertainty.model_band import Band, Evidence, band_of, model_bands

Ends = tuple[float, float]
"""From the smallest to the largest value that a number may have."""


MAIN_STATS = ("p1", "p50", "p99")
"""Statistics of a distribution that tables show beside its average."""


def is_main(name: str) -> bool:
    """Whether a number of ``Metrics.flat`` is one that tables show."""
    return "." not in name or name.rpartition(".")[2] in MAIN_STATS


class Status(StrEnum):
    """How a trial ended. Only a complete trial is ever a data point of an objective."""

    COMPLETE = "complete"
    LOST = "lost"
    """Ended early because an SLO could not be met any more: ``constraints`` are lower bounds, and there is no value."""
    INFEASIBLE = "infeasible"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """What evaluating one scenario gave."""

    status: Status
    values: tuple[float, ...] | None = None
    """Objective values as the user wrote them (not sign-flipped); None unless complete."""
    constraints: Mapping[str, float] = field(default_factory=dict)
    """SLO name -> violation relative to the bound; at or below 0 is met (Optuna's and BoTorch's convention)."""
    metrics: Mapping[str, Any] | None = None
    """``Metrics.to_dict()``; None unless complete."""
    deviations: sampling.Deviations = field(default_factory=dict)
    """``Metrics.deviations``: what gives the metrics their sampling intervals."""
    evidence: Evidence | Literal[""] = ""
    """What the metrics rest on; empty unless complete."""
    reason: str = ""
    """Why it is infeasible or lost, or the traceback of a failure."""
    wall_s: float = 0.0
    cached: bool = False
    """Whether the simulation is an earlier run's."""
    cases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Case -> its ``metrics``, ``values`` and ``constraints``, where there are several: as far as it was simulated."""
    noise: tuple[float | None, ...] | None = None
    """Standard deviation of each value, in its unit, as who evaluated told it; None where that is unknown."""

    @property
    def feasible(self) -> bool:
        """Whether the trial completed and met every SLO."""
        return self.status is Status.COMPLETE and all(v <= 0.0 for v in self.constraints.values())

    @property
    def headline(self) -> str:
        """The last line of ``reason``: of a traceback, the exception."""
        return self.reason.strip().rpartition("\n")[2]

    def known_metrics(self) -> Metrics:
        """Return the metrics, of which there are none unless complete."""
        return Metrics(self.metrics or {}, self.deviations)

    def flat_metrics(self) -> dict[str, float]:
        """Return the known metrics under MLflow's keys: the bare name is the average, ``name.p99`` a statistic.

        Those of a case have its name in front, and of distributions only ``MAIN_STATS``: ``chat/busier/name.p99``.
        """
        found = self.known_metrics().flat()
        for case, known in self.cases.items():
            flat = Metrics(known["metrics"]).flat()
            found |= {f"{case}/{name}": value for name, value in flat.items() if is_main(name)}
        return found


@dataclass(frozen=True)
class Proposal:
    """A numbered point of the search space, to be evaluated."""

    number: int
    point: Mapping[str, Any]
    """Searched path -> value; inactive (conditional) parameters are absent."""
    scenario: Scenario


@dataclass(frozen=True)
class Trial(Proposal):
    """A proposal with its outcome."""

    outcome: Outcome

    def __repr__(self) -> str:
        said = self.outcome.values if self.outcome.values is not None else str(self.outcome.status)
        return f"<Trial {self.number}: {self.scenario.deployment.label()}, {said}>"

    @property
    def saturated(self) -> bool:
        """Whether the backlog of a complete trial grew over the run: its latencies say how long it ran, no more."""
        return bool((self.outcome.metrics or {}).get("saturated"))

    def interval(self, name: str, value: float) -> Ends | None:
        """Return the 95 % sampling interval of a metric (or objective) around its *value*; None where unknown."""
        names = [objective_name(config).removesuffix(".avg") for config in self.scenario.objectives]
        told = dict(zip(names, self.outcome.noise or (), strict=False)).get(name.removesuffix(".avg"))
        if told is None:
            return sampling.interval(self.outcome.deviations, name, value)
        half = NormalDist().inv_cdf((1.0 + sampling.CONFIDENCE) / 2.0) * told
        return value - half, value + half

    def ends(self, name: str, value: float) -> tuple[Ends | None, Ends | None]:
        """Return the 95 % sampling interval and the model band of a metric (or objective) around its *value*.

        Each is None where it is unknown.
        """
        band = band_of(self.model_bands(), name)
        return self.interval(name, value), None if band is None else band.around(value)

    def bounded(self, bound: Bound) -> float | None:
        """Return the number of a complete trial that *bound* bounds; of several cases what holds in all, or as it says.

        None where it is missing.
        """
        outcome = self.outcome
        return bound.at(outcome.constraints[bound.name]) if outcome.cases else bound.of(outcome.known_metrics())

    def model_bands(self) -> dict[str, Band]:
        """Return metric -> factors between which the truth lies; metrics for which that is not known are absent."""
        if not self.outcome.evidence:
            return {}
        return model_bands(self.scenario, self.outcome.evidence, saturated=self.saturated)


def objective_name(config: ObjectiveConfig) -> str:
    """Return the name of the objective, without loading its function."""
    plain = config.python.rpartition(":")[2] if config.python else f"{config.metric}.{config.stat or 'avg'}"
    return config.prefix + plain
