"""What policies are and what they may see: only what a real router sees, never a request's output length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RequestView:
    """One arriving request."""

    index: int
    input_tokens: int


@dataclass(frozen=True, slots=True)
class PoolView:
    """The replicas of one pool at the moment of routing. Arrays have one entry per replica and must not be written."""

    block_size: int
    outstanding_requests: Counts
    """Sent there and not finished."""
    prefill_tokens: Counts
    """Prompt tokens, cached ones excluded, of requests without a first token yet."""
    kv_tokens: Counts
    """Prompt tokens of all outstanding requests."""
    cached_tokens: Callable[[], Counts]
    """How many prompt tokens of this request each replica has in its prefix cache."""


class Router(Protocol):
    """Picks a replica for each request. One instance per pool and run; its arguments are its options."""

    looks: ClassVar[bool]
    """Whether it reads the pool's state. One that does not lets every replica run through without stopping."""

    def route(self, request: RequestView, pool: PoolView) -> int:
        """Return the index of the replica that gets *request*."""
        ...
