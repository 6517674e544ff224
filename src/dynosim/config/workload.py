"""What is asked of the deployment: a source of requests, how they arrive, and when to stop."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from dynosim.config.base import Config

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


def _checked_quantiles(quantiles: dict[float, Any]) -> dict[float, Any]:
    """Return the quantiles in order of probability; raises ValueError where they are not a distribution."""
    points = sorted(quantiles.items())
    if points[0][0] != 0.0 or points[-1][0] != 1.0:
        raise ValueError("quantiles must start at probability 0.0 and end at 1.0")
    if any(b[1] < a[1] for a, b in pairwise(points)):
        raise ValueError("quantiles must not decrease")
    return dict(points)


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

    @field_validator("quantiles")
    @classmethod
    def _quantiles(cls, value: dict[float, int]) -> dict[float, int]:
        return _checked_quantiles(value)


Length = Annotated[FixedLength | UniformLength | LognormalLength | QuantileLength, Field(discriminator="type")]


Ratios = Annotated[dict[float, PositiveFloat], Field(min_length=2)]
"""Empirical quantiles of a ratio: probability -> value, from 0.0 to 1.0, interpolated linearly."""


class Rewrites(Config):
    """Further turns that keep only the history at the start of their parent's prompt and replace the rest.

    So do conversations over retrieved text: questions and answers stay, search results are new at every turn.
    """

    probability: Probability
    """Of a further turn whose parent has at least ``min_blocks`` whole blocks."""
    persistence: Probability = 0.0
    """Probability that a turn rewrites, or not, because it is a rewriting conversation, or not."""
    min_blocks: PositiveInt = 1
    kept_fraction: Ratios
    """Share of the parent's whole blocks that a conversation's first rewriting keeps. Later ones keep as much, and the
    answers since."""
    length_ratio: Ratios
    """Prompt tokens of the turn over those of its parent."""

    @field_validator("kept_fraction", "length_ratio")
    @classmethod
    def _quantiles(cls, value: dict[float, float]) -> dict[float, float]:
        return _checked_quantiles(value)


class PrefixTree(Config):
    """Which prompts share their first blocks: conversations below one system prompt.

    Every prompt starts with ``shared_blocks`` common blocks. A request is the first turn of a new conversation or,
    where an earlier request has a next turn due, that turn. Its prompt is its parent's prompt, the parent's answer
    and new tokens, so it shares all whole blocks of the parent's prompt. Turns follow each other by request order,
    not by time, so another load leaves the sharing as it is.
    """

    block_tokens: PositiveInt = 512
    shared_blocks: NonNegativeInt = 1
    continue_probability: tuple[Probability, ...] = Field(default=(0.0,), min_length=1)
    """Probability that turn 1, 2, ... of at least one block more than the shared ones is followed by another turn;
    the last value holds for all later turns."""
    continue_scale_tokens: PositiveFloat | None = None
    """Long first prompts are more often one-off: the first probability is multiplied by exp(-prompt tokens / this)."""
    max_input_tokens: PositiveInt = 131072
    """A conversation ends where its next prompt would be longer."""
    new_tokens: tuple[Length, ...] = Field(default=(LognormalLength(median=100, sigma=1.0),), min_length=1)
    """Prompt tokens that turn 2, 3, ... adds to its history; the last distribution holds for all later turns."""
    gap_requests: Length = LognormalLength(median=400, sigma=1.0)
    """Requests (of everyone) from one turn to the next of the same conversation."""
    persistence: Probability = 0.0
    """Probability that a turn has its conversation's own gap and new tokens, the same quantiles at every turn."""
    output_persistence: Probability = 0.0
    """Probability that a turn has its conversation's own output length."""
    resubmit_probability: Probability = 0.0
    """Probability that a further turn is its parent's prompt again."""
    rewrites: Rewrites | None = None


class Arrivals(Config):
    """Arrival times that belong to a synthetic source: a renewal process under a piecewise constant rate.

    Gaps are gamma with mean 1 and shape ``burstiness`` (1 is Poisson) or follow ``gap_quantiles``; the rate of the
    window they fall in scales them. Times are then rounded down to multiples of ``quantum_s``, as in traces that
    record arrivals in batches.
    """

    rates_rps: tuple[PositiveFloat, ...] = Field(min_length=1)
    """Mean rate in successive windows; the last value holds from then on."""
    window_s: PositiveFloat = 300.0
    burstiness: PositiveFloat = 1.0
    gap_quantiles: dict[float, NonNegativeFloat] | None = Field(default=None, min_length=2)
    """Empirical quantiles of the gaps (any unit: they are scaled to mean 1), interpolated linearly."""
    quantum_s: NonNegativeFloat = 0.0

    @field_validator("gap_quantiles")
    @classmethod
    def _quantiles(cls, value: dict[float, float] | None) -> dict[float, float] | None:
        return None if value is None else _checked_quantiles(value)


class TraceSource(Config):
    """A trace file; ``.gz`` and ``.zst`` open directly. A relative path is relative to the working directory."""

    type: Literal["trace"] = "trace"
    path: str
    format: Literal["auto", "mooncake", "azure"] = "auto"


class SyntheticSource(Config):
    """Requests with given length distributions and, optionally, shared prefixes and arrival times of their own."""

    type: Literal["synthetic"] = "synthetic"
    requests: PositiveInt = 1000
    input_tokens: Length
    """Prompt tokens; with ``prefix`` those of the first turn of a conversation."""
    output_tokens: Length
    prefix: PrefixTree | None = None
    arrivals: Arrivals | None = None
    """Used by load ``trace_timestamps``."""


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

    @model_validator(mode="after")
    def _timed(self) -> WorkloadConfig:
        untimed = isinstance(self.source, SyntheticSource) and self.source.arrivals is None
        if untimed and isinstance(self.load, TraceLoad):
            raise ValueError(
                "load trace_timestamps: the synthetic source has no arrivals; "
                "allowed are poisson, constant_rate and concurrency, or source.arrivals"
            )
        return self
