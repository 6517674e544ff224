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

from dynosim.config.base import Config, Custom

NEEDS_LOAD = "allowed are poisson, constant_rate, diurnal, step, spike, rate_curve and concurrency"
"""What an error about a source without arrival times ends with."""
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


class RatioLength(Config):
    """Uniform integers in [ratio x tokens, tokens], as SGLang's ``bench_serving --random-range-ratio``."""

    type: Literal["ratio"] = "ratio"
    tokens: PositiveInt
    ratio: Probability


Length = Annotated[
    FixedLength | UniformLength | RatioLength | LognormalLength | QuantileLength, Field(discriminator="type")
]


class FixedDelay(Config):
    """Always the same time."""

    type: Literal["fixed"] = "fixed"
    seconds: NonNegativeFloat = 0.0


class ExponentialDelay(Config):
    """Exponential with the given mean."""

    type: Literal["exponential"] = "exponential"
    mean_s: PositiveFloat


class LognormalDelay(Config):
    """Lognormal with the given median and log standard deviation, at most ``max_s``."""

    type: Literal["lognormal"] = "lognormal"
    median_s: PositiveFloat
    sigma: NonNegativeFloat
    max_s: PositiveFloat = 3600.0


class QuantileDelay(Config):
    """Empirical quantiles: probability -> seconds, interpolated linearly."""

    type: Literal["quantiles"] = "quantiles"
    quantiles: dict[float, NonNegativeFloat] = Field(min_length=2)

    @field_validator("quantiles")
    @classmethod
    def _quantiles(cls, value: dict[float, float]) -> dict[float, float]:
        return _checked_quantiles(value)


Delay = Annotated[FixedDelay | ExponentialDelay | LognormalDelay | QuantileDelay, Field(discriminator="type")]


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


class PrefixGroups(Config):
    """Texts that many first prompts start with: system prompts, tool lists, shared documents."""

    groups: PositiveInt
    prefix_tokens: Length
    """Tokens of each group's text, in front of ``input_tokens``; whole blocks of it are shared."""
    skew: NonNegativeFloat = 0.0
    """Group k = 1, 2, ... is chosen in proportion to k ** -skew (Zipf); 0 is evenly."""


class FanOut(Config):
    """Parallel calls of tools or sub-agents between two turns: each waits for the turn before, the next turn for all.

    The next turn's prompt holds the answers of all calls.
    """

    probability: Probability = 1.0
    """Of calls before a further turn."""
    calls: Length
    """How many calls."""
    new_tokens: Length
    """Prompt tokens of a call beyond what it shares."""
    output_tokens: Length
    shares_context: bool = True
    """Whether a call's prompt starts with the prompt and answer of its turn (a branch of the same agent) or with none
    of it (a fresh sub-agent)."""
    delay_s: Delay = FixedDelay()
    """From the end of the turn to the call."""


class Sessions(Config):
    """Requests that wait for each other: turns of a conversation or of an agent, each sent after the one before ended.

    A further turn's prompt is the prompt before, its answer and new tokens, so a prefix cache can serve all of its
    history. ``requests`` of the source counts turns and calls of all sessions; the last session may end early.
    """

    block_tokens: PositiveInt = 16
    """Tokens per block id; whole blocks are shared."""
    groups: PrefixGroups | None = None
    turns: Length = FixedLength(tokens=1)
    """Turns per session."""
    new_tokens: tuple[Length, ...] = Field(default=(LognormalLength(median=100, sigma=1.0),), min_length=1)
    """Prompt tokens that turn 2, 3, ... adds to prompt and answer before it; the last distribution holds for all later
    turns."""
    think_s: Delay = FixedDelay()
    """From the end of a turn, or of its calls, to the next turn: reading, thinking, running tools."""
    fan_out: FanOut | None = None
    output_persistence: Probability = 0.0
    """Probability that a turn has its session's own output length instead of a fresh one."""
    max_input_tokens: PositiveInt = 131072
    """A session ends where its next prompt would be longer."""


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
    format: Literal["auto", "mooncake", "azure", "lengths", "llmservingsim", "inferencex"] | Custom = "auto"
    """How it is read; ``auto`` recognises the format by content. A reader of the user's is ``file.py:function``."""
    block_tokens: PositiveInt | None = None
    """Prompt tokens per id of a Mooncake trace's ``hash_ids``; 512 where not given."""
    max_delay_s: PositiveFloat | None = None
    """Cap on the think and tool times of the trace."""


class SyntheticSource(Config):
    """Requests with given length distributions and, optionally, conversations and arrival times of their own."""

    type: Literal["synthetic"] = "synthetic"
    requests: PositiveInt = 1000
    input_tokens: Length
    """Prompt tokens; with ``prefix`` or ``sessions`` those of the first turn."""
    output_tokens: Length
    prefix: PrefixTree | None = None
    """Conversations whose turns follow each other by request order, at any load."""
    sessions: Sessions | None = None
    """Conversations whose turns wait for each other."""
    arrivals: Arrivals | None = None
    """Used by load ``trace_timestamps``; with ``sessions`` these are the starts of sessions."""

    @model_validator(mode="after")
    def _one_kind_of_conversation(self) -> SyntheticSource:
        if self.prefix is not None and self.sessions is not None:
            raise ValueError("prefix and sessions are two models of conversations; allowed is one of them")
        return self


class ProfileSource(Config):
    """A bundled profile: a named synthetic mix fitted to the public statistics of a real trace."""

    type: Literal["profile"] = "profile"
    name: str = "chat"
    requests: PositiveInt | None = None
    """Number of requests; the profile's own default where not given."""


Source = Annotated[TraceSource | SyntheticSource | ProfileSource, Field(discriminator="type")]


class TraceLoad(Config):
    """Arrival times of the source; ``speedup`` divides them and the delays within sessions."""

    type: Literal["trace_timestamps"] = "trace_timestamps"
    speedup: PositiveFloat = 1.0


class _Burstiness(Config):
    burstiness: PositiveFloat = 1.0
    """Shape of the gamma-distributed gaps: 1 is Poisson, smaller is burstier (vLLM's definition)."""


class PoissonLoad(_Burstiness):
    """Open loop at a constant mean rate, in requests per second; sessions per second where there are sessions."""

    type: Literal["poisson"] = "poisson"
    rate_rps: PositiveFloat


class ConstantLoad(Config):
    """Open loop, equal gaps."""

    type: Literal["constant_rate"] = "constant_rate"
    rate_rps: PositiveFloat


class DiurnalLoad(_Burstiness):
    """Open loop whose rate swings between base and peak as a cosine, from the base at time 0."""

    type: Literal["diurnal"] = "diurnal"
    base_rps: NonNegativeFloat
    peak_rps: PositiveFloat
    period_s: PositiveFloat = 86400.0

    @model_validator(mode="after")
    def _ordered(self) -> DiurnalLoad:
        if self.base_rps > self.peak_rps:
            raise ValueError(f"base_rps {self.base_rps} is above peak_rps {self.peak_rps}")
        return self


class StepLoad(_Burstiness):
    """Open loop whose rate changes once."""

    type: Literal["step"] = "step"
    before_rps: PositiveFloat
    after_rps: PositiveFloat
    at_s: PositiveFloat


class SpikeLoad(_Burstiness):
    """Open loop at a base rate, with one burst at a peak rate."""

    type: Literal["spike"] = "spike"
    base_rps: PositiveFloat
    peak_rps: PositiveFloat
    at_s: PositiveFloat
    duration_s: PositiveFloat


class CurveLoad(_Burstiness):
    """Open loop whose rate follows a CSV file with columns ``t_s`` (window start) and ``rate_rps``.

    From its end the curve starts again.
    """

    type: Literal["rate_curve"] = "rate_curve"
    path: str
    series: str | None = None
    """Use the rows with this value in column ``workload``; needed where the file has several."""
    mean_rps: PositiveFloat | None = None
    """Scale the rates to this mean; as they are where not given."""
    speedup: PositiveFloat = 1.0
    """Divides the times of the curve, not its rates: 24 plays a day in an hour."""


class ConcurrencyLoad(Config):
    """Closed loop: ``concurrency`` sessions are kept in flight; the arrival times of the source are ignored.

    A request that belongs to no session is a session of its own.
    """

    type: Literal["concurrency"] = "concurrency"
    concurrency: PositiveInt


Load = Annotated[
    TraceLoad | PoissonLoad | ConstantLoad | DiurnalLoad | StepLoad | SpikeLoad | CurveLoad | ConcurrencyLoad,
    Field(discriminator="type"),
]


class RequestClass(Config):
    """A class of service, drawn for each session."""

    share: PositiveFloat = 1.0
    """In proportion to the shares of the other classes."""
    priority: int = 0
    """Lower is more urgent (vLLM's order)."""
    deadline_s: PositiveFloat | None = None
    """Wanted time from arrival to first token, for policies that look at it; none where not given."""


class WorkloadConfig(Config):
    """Requests, how they arrive, and which of them count."""

    source: Source
    load: Load = TraceLoad()
    classes: tuple[RequestClass, ...] = ()
    """Mixture of priorities and deadlines; without any, the priorities of the trace or 0, and no deadlines."""
    max_requests: PositiveInt | None = None
    """Number of requests taken from the start of the source."""
    max_virtual_time_s: PositiveFloat | None = None
    """The run stops here, whatever is still in flight. Where not given, an open loop stops at 10 times the time of
    its last arrival plus one hour, so that a saturated run ends; a closed loop runs to its end."""
    warmup_requests: NonNegativeInt = 0
    """Number of first arrivals that are simulated but left out of all metrics."""
    rate_factor: PositiveFloat = 1.0
    """Multiplies the rate of an open loop at all times (delays within sessions stay), or the concurrency."""
    output_tokens_factor: PositiveFloat = 1.0
    """Multiplies the length of every answer; the prompts stay as they are, also those that hold earlier answers."""
    shared_prefixes: bool = True
    """Whether prompts share what the source says; where not, nothing is ever found in a prefix cache."""

    @model_validator(mode="after")
    def _timed(self) -> WorkloadConfig:
        untimed = isinstance(self.source, SyntheticSource) and self.source.arrivals is None
        if untimed and isinstance(self.load, TraceLoad):
            raise ValueError(
                f"load trace_timestamps: the synthetic source has no arrivals; {NEEDS_LOAD}, or source.arrivals"
            )
        return self


class WeightedWorkload(WorkloadConfig):
    """One of several workloads."""

    weight: PositiveFloat = 1.0
    """In proportion to the weights of the others."""

    def alone(self) -> WorkloadConfig:
        """Return it without its weight."""
        return WorkloadConfig.model_construct(**{name: getattr(self, name) for name in WorkloadConfig.model_fields})
