"""What the user wants: objectives, SLOs, budgets, prices, and how hard to search."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    WithJsonSchema,
    model_validator,
)

from dynosim.config.base import Config

SLO = dict[str, dict[str, NonNegativeFloat]]
"""metric -> statistic -> bound, in the metric's unit (latencies in ms); see ``dynosim.metrics.slo_violations``."""

_LEVELS = {"mean": 1.0, "worst": 0.0}


def level_of(over: str | dict[str, float]) -> float:
    """Return the share of the cases, the worst ones, that *over* averages: 1 is the mean, 0 the worst alone."""
    return _LEVELS[over] if isinstance(over, str) else over["cvar"]


def _checked_over(over: Any) -> Any:
    level = over.get("cvar") if isinstance(over, dict) and len(over) == 1 else None
    share = isinstance(level, int | float) and not isinstance(level, bool) and 0.0 < level <= 1.0
    if not share and over not in list(_LEVELS):
        said = f"cvar: {level}" if level is not None else over
        raise ValueError(f"{said}: allowed: mean, worst, or {{cvar: LEVEL}} with a level above 0 and up to 1")
    return over


Over = Annotated[
    str | dict[str, float],
    BeforeValidator(_checked_over),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": list(_LEVELS)},
                {
                    "type": "object",
                    "properties": {"cvar": {"type": "number", "exclusiveMinimum": 0, "maximum": 1}},
                    "required": ["cvar"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
"""How one number is made of those of several cases (``dynosim.config.cases``): their weighted mean, the worst, or
the conditional value at risk, the mean of the worst cases that have the share ``cvar`` of all weight."""

ALIASES = {
    "ttft": "time_to_first_token",
    "tpot": "inter_token_latency",
    "itl": "inter_token_latency",
    "e2el": "request_latency",
    "cost": "usd_per_million_output_tokens",
    "throughput": "output_token_throughput",
}
"""What people type -> the metric that it means, wherever a metric is named (``goodput`` is one's own name).

ITL is AIPerf's, the mean gap of a request: vLLM's bench calls that TPOT, and its own ITL, every single gap, is
``inter_chunk_latency``."""


def canonical(metric: str) -> str:
    """Return the metric that *metric* is an alias of, or else itself."""
    return ALIASES.get(metric, metric)


class ObjectiveConfig(Config):
    """One objective: a metric and statistic by name, or a Python function."""

    metric: str | None = None
    stat: str | None = None
    """Statistic of a distribution metric (``avg``, ``p50``, ``p99`` ...); none for a scalar metric."""
    goal: Literal["minimize", "maximize"] | None = None
    """Where not given, the metric's own better direction."""
    resolution: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Relative difference below which two values count as the same, whatever their noise: 0.001 is 0.1 %. Where not
    given, 0.01 for latencies and 0.001 for everything else."""
    over: Over = "mean"
    """Of several workloads or scenarios: ``mean``, ``worst`` or ``{cvar: LEVEL}``."""
    python: str | None = None
    """``package.module:function`` or ``path/to/file.py:function`` of an ``@objective``."""

    @property
    def prefix(self) -> str:
        """What tells its name from that of the mean over cases: ``worst/``, ``cvar0.3/``, or nothing."""
        return (
            ""
            if self.over == "mean"
            else f"{self.over}/"
            if isinstance(self.over, str)
            else f"cvar{self.over['cvar']:g}/"
        )

    @model_validator(mode="after")
    def _one_kind(self) -> ObjectiveConfig:
        if (self.metric is None) == (self.python is None):
            raise ValueError("give either 'metric' or 'python'")
        return self


class BudgetConfig(Config):
    """Hard limits that are known before simulating; breaking them costs no trial."""

    max_gpus: PositiveInt | None = None
    max_usd_per_hour: PositiveFloat | None = None
    inventory: dict[str, NonNegativeInt] = Field(default_factory=dict)
    """GPUs that there are, by GPU type; types not named there are none of. No limit where empty."""


class OptimizerConfig(Config):
    """How the space is searched."""

    sampler: str = "auto"
    trials: PositiveInt = 100
    workers: PositiveInt | Literal["auto"] = "auto"
    seed: NonNegativeInt = 0
    in_flight: PositiveInt = 4
    """Proposals made ahead of the oldest that is not told, itself included: no more workers than this can be busy, and
    more of them know less. A part of the study: equal seeds give equal trials on any number of cores."""
    reuse_results: bool = True
    """Take a configuration that an earlier run of the same workload and version simulated from there."""
    stop_lost_runs: bool = True
    """End a simulation as soon as an SLO cannot be met any more; the baseline always runs to its end."""
    stop_at_gap: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """End the search when the estimated share of hypervolume still missing falls below this."""
    trial_timeout_s: PositiveFloat | None = None
    """A trial that takes longer fails, and its worker process is ended; no limit where not given."""
    warm_start: tuple[str, ...] = ()
    """Earlier runs to learn from: ids, directories, or ``last``, the newest one before this run."""


class PriceConfig(Config):
    """USD per GPU-hour by GPU name; GPUs not named use the bundled table, which is a survey's assumption."""

    usd_per_gpu_hour: dict[str, PositiveFloat] = Field(default_factory=dict)
    table: Literal["hyperscaler", "neocloud", "three_year_rental"] = "neocloud"
    factor: PositiveFloat = 1.0
    """Multiplies all prices."""
