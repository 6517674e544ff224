"""What policies are and what they may see: only what a real server sees, never a request's output length.

Each policy is one class in one file; its constructor's arguments are its options, and one called ``rng`` is the run's
random stream. An instance serves one pool in one run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
FloatArray = NDArray[np.float64]


# ---------------------------------------------------------------------------------------------------------- routing


class RequestView(NamedTuple):
    """One arriving request, as its router sees it. A tuple: one is made per request, and it is the cheapest."""

    number: int
    """Of the request in the workload."""
    input_tokens: int
    session: int
    """Number of its session; a plain request is a session of its own."""
    priority: int
    """Lower is more urgent."""
    block_hashes: Counts
    """Shape (blocks,): ids of the prompt's blocks, the last one partial. Equal ids mean equal prompts up to there."""
    hash_block_tokens: int
    """Prompt tokens of one id; 0 without ids."""


class PoolView(NamedTuple):
    """The replicas (or data-parallel ranks) that a request can be sent to, at the moment of routing.

    Arrays have one entry for each, in the same order, and must not be written. Loads are as last reported.
    """

    role: str
    """``mixed``, ``prefill`` or ``decode``."""
    block_size: int
    targets: Counts
    """A number for each that stays the same while others come and go."""
    outstanding_requests: Counts
    """Sent there and not finished."""
    prefill_tokens: Counts
    """Prompt tokens, cached ones excluded, of requests without a first token yet."""
    kv_tokens: Counts
    """Prompt tokens of all outstanding requests."""
    active_blocks: Counts
    """KV blocks of these prompts, shared ones counted once (in a decode pool each time)."""
    waiting_requests: Callable[[], Counts]
    """Of those outstanding, how many are in no batch yet or any more."""
    kv_utilization: Callable[[], FloatArray]
    """Share of the KV blocks that requests hold, 0 to 1."""
    cached_blocks: Callable[[], Counts]
    """How many blocks of this prompt each has in its GPU prefix cache, as far as the router's index knows."""
    referenced_blocks: Callable[[], Counts]
    """How many blocks of this prompt are among the active ones of each."""
    host_cached_blocks: Callable[[], Counts]
    """How many further blocks of this prompt each has in host memory,"""
    disk_cached_blocks: Callable[[], Counts]
    """and in the tiers below that."""

    def cached_tokens(self) -> Counts:
        """Return how many prompt tokens of this request each has in its GPU prefix cache, as the router knows it."""
        return self.cached_blocks() * self.block_size


class Router(Protocol):
    """Picks a replica for each request."""

    looks: ClassVar[bool]
    """Whether it reads the pool's state. One that does not lets every replica run through without stopping."""
    keeps_prefixes: ClassVar[bool]
    """Whether prompts with the same beginning go to one replica, as far as its load allows; a user's router that does
    not say so is taken not to. Only estimates before simulating read it."""

    def route(self, request: RequestView, pool: PoolView) -> int:
        """Return the position in the arrays of *pool* of the one that gets *request*."""
        ...


# ------------------------------------------------------------------------------------------------------- scheduling


@dataclass(frozen=True, slots=True)
class QueueView:
    """All requests of a run as a queue sees them; arrays of shape (n,)."""

    input_tokens: Counts
    priority: Counts
    """Lower is more urgent."""
    deadline_s: FloatArray
    """Wanted time to first token, seconds after arrival; inf for none."""


class SchedulingPolicy(Protocol):
    """Orders the waiting queue of a replica."""

    longest_prefix: bool
    """Whether the engine takes the request with the longest cached prefix first, the order given by the keys only
    among equals (SGLang's ``lpm``)."""
    add_arrival: bool
    """Whether keys are seconds that the request's arrival at the queue is added to."""

    def keys(self, requests: QueueView) -> FloatArray:
        """Return shape (n,), finite: lower goes first, equals in order of arrival. Asked once per run."""
        ...


# ------------------------------------------------------------------------------------------------------ autoscaling


@dataclass(frozen=True, slots=True)
class ScalingView:
    """One pool at a tick of its autoscaler. Means and rates are of the time since the last tick."""

    time_s: float
    replicas: int
    """Serving."""
    starting: int
    """Provisioned and not serving yet."""
    queue_requests: int
    """Waiting for their first pass."""
    queued_prefill_tokens: int
    """Prompt tokens, cached ones excluded, that are still to compute."""
    running_requests: int
    max_num_seqs: int
    """Most running requests of one replica."""
    kv_utilization: float
    """Share of the KV blocks of the serving replicas that requests hold, 0 to 1."""
    outstanding_requests: int
    """Sent to the pool and not finished."""
    max_num_batched_tokens: int
    """Token budget of one pass."""
    context_tokens: float
    """Mean prompt tokens of the requests."""
    ttft_ms: float
    """Mean of the requests that got their first token; nan if none did."""
    itl_ms: float
    """Mean gap between tokens; nan if there were none."""
    rate_rps: float
    """Arrivals per second."""
    replica_rps: float
    """Requests per second that one replica finished at its busiest so far; nan if unknown."""


SIGNALS = ("load", "outstanding", "kv_utilization", "queued_passes", "queued_requests", "ttft_ms", "itl_ms")
"""What an autoscaler may watch of a replica: the share of its time that arriving work takes, unfinished requests over
``max_num_seqs``, the share of KV blocks in use, prompts still to compute in passes and in requests, mean latencies."""


class Setpoint(NamedTuple):
    """What an autoscaling policy holds a replica to, as far as arithmetic before simulating can know it."""

    weights: Mapping[str, float]
    """Of ``SIGNALS``: the largest weighted signal counts."""
    up: float
    """More replicas above this, as many as bring the signal down to it;"""
    down: float
    """fewer below this, as many as bring it up to it."""
    step_up: float = math.inf
    """Most replicas more by one decision,"""
    step_down: float = math.inf
    """and fewer."""


class AutoscalingPolicy(Protocol):
    """The fast loop: reacts to load.

    It may have a method ``setpoint() -> Setpoint``, which only estimates before simulating ask; one without is taken to
    hold replicas at 50 to 70 % of what they can do.
    """

    def desired(self, pool: ScalingView) -> int:
        """Return the wanted replicas, the starting ones included; the cluster then applies bounds and cool-downs."""
        ...


class LoadPredictor(Protocol):
    """Foresees the request rate of the slow loop's next interval."""

    def observe(self, rate_rps: float) -> None:
        """Take in the rate of the interval that has ended."""
        ...

    def predict(self) -> float:
        """Return the rate of the next interval, requests per second, at least 0; 0 before any observation."""
        ...
