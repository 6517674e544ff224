"""What is asked of the deployment: a source of requests, how they arrive, and when to stop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from dynosim.config.base import Config


class FixedLength(Config):
    """Every request has the same number of tokens."""

    type: Literal["fixed"] = "fixed"
    tokens: PositiveInt


class UniformLength(Config):
    """Uniform integers in [min, max]."""

    type: Literal["uniform"] = "uniform"
    min: PositiveInt
    max: PositiveInt

    @model_validator(mode="after")
    def _ordered(self) -> UniformLength:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class LognormalLength(Config):
    """Lognormal with the given median and log standard deviation, clipped to [min, max]."""

    type: Literal["lognormal"] = "lognormal"
    median: PositiveFloat
    sigma: NonNegativeFloat
    min: PositiveInt = 1
    max: PositiveInt = 131072


class QuantileLength(Config):
    """Empirical quantiles: probability -> tokens, interpolated linearly in log tokens."""

    type: Literal["quantiles"] = "quantiles"
    quantiles: dict[float, PositiveInt] = Field(min_length=2)

    @model_validator(mode="after")
    def _monotone(self) -> QuantileLength:
        points = sorted(self.quantiles.items())
        if points[0][0] != 0.0 or points[-1][0] != 1.0:
            raise ValueError("quantiles must start at probability 0.0 and end at 1.0")
        if any(b[1] < a[1] for a, b in zip(points, points[1:], strict=False)):
            raise ValueError("quantiles must not decrease")
        return self


Length = Annotated[FixedLength | UniformLength | LognormalLength | QuantileLength, Field(discriminator="type")]


class PrefixTree(Config):
    """Which prompts share their first blocks.

    Every prompt starts with ``shared_blocks`` common blocks (a system prompt). With probability
    ``reuse_probability`` a request then continues an earlier one: it shares that request's whole-block prompt prefix
    (a further turn of a conversation), picked with exponentially fading recency of ``recency_requests``.
    """

    block_tokens: PositiveInt = 512
    shared_blocks: NonNegativeInt = 1
    reuse_probability: float = Field(default=0.0, ge=0.0, le=1.0)
    recency_requests: PositiveFloat = 1000.0


class TraceSource(Config):
    """A trace file; ``.gz`` and ``.zst`` open directly. A relative path is relative to the working directory."""

    type: Literal["trace"] = "trace"
    path: str
    format: Literal["auto", "mooncake", "azure"] = "auto"


class SyntheticSource(Config):
    """Independent requests with given length distributions and, optionally, shared prefixes."""

    type: Literal["synthetic"] = "synthetic"
    requests: PositiveInt = 1000
    input_tokens: Length
    output_tokens: Length
    prefix: PrefixTree | None = None


class ProfileSource(Config):
    """A bundled profile: a named synthetic mix fitted to the public statistics of a real trace."""

    type: Literal["profile"] = "profile"
    name: str = "chat"
    requests: PositiveInt | None = None
    """Number of requests; the profile's own default where not given."""


Source = Annotated[TraceSource | SyntheticSource | ProfileSource, Field(discriminator="type")]


class TraceLoad(Config):
    """Arrival times of the source, divided by ``speedup``."""

    type: Literal["trace_timestamps"] = "trace_timestamps"
    speedup: PositiveFloat = 1.0


class PoissonLoad(Config):
    """Open loop with gamma-distributed gaps; ``burstiness`` 1 is Poisson, smaller is burstier (vLLM's definition)."""

    type: Literal["poisson"] = "poisson"
    rate_rps: PositiveFloat
    burstiness: PositiveFloat = 1.0


class ConstantLoad(Config):
    """Open loop, equal gaps."""

    type: Literal["constant_rate"] = "constant_rate"
    rate_rps: PositiveFloat


class ConcurrencyLoad(Config):
    """Closed loop: ``concurrency`` requests are kept in flight; the arrival times of the source are ignored."""

    type: Literal["concurrency"] = "concurrency"
    concurrency: PositiveInt


Load = Annotated[TraceLoad | PoissonLoad | ConstantLoad | ConcurrencyLoad, Field(discriminator="type")]


class WorkloadConfig(Config):
    """Requests, how they arrive, and which of them count."""

    source: Source
    load: Load = TraceLoad()
    max_requests: PositiveInt | None = None
    """Use only the first so many requests of the source."""
    warmup_requests: NonNegativeInt = 0
    """The first so many arrivals are simulated but left out of all metrics."""
