"""What a simulation returns: one record per request, token gaps, and what each pool did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

COMPLETED, REJECTED, INCOMPLETE, FAILED, UNSENT = 0, 1, 2, 3, 4
"""Values of a request's ``status``. Rejected: it could never fit. Incomplete: the run stopped before it was done.
Failed: lost to a crash. Unsent: the run stopped before it was sent."""

WAIT_REASONS = (
    "prefill_busy",
    "decode_busy",
    "batch_slots",
    "token_budget",
    "kv_blocks",
    "kv_link",
    "cold_start",
    "outage",
    "frontend",
)
"""What the head of the queue waited for: the end of a pass with or without prompt chunks, a place in the batch, tokens
of the pass, KV blocks, its own KV from a lower tier, a replica that starts, a replica that has crashed, HTTP and
tokenising."""

REQUEST_DTYPE = np.dtype(
    [
        ("arrival_s", "f8"),  # when it was sent; NaN for one that never was because others had not ended
        ("scheduled_s", "f8"),  # first time on a replica
        ("prefill_done_s", "f8"),
        (
            "kv_landed_s",
            "f8",
        ),  # disaggregated: the KV cache has reached the decode replica; else prefill_done_s
        ("first_token_s", "f8"),  # visible to the client
        ("second_token_s", "f8"),  # NaN for one-token outputs
        ("last_token_s", "f8"),
        *((f"wait_{reason}_s", "f8") for reason in WAIT_REASONS),  # they sum to queue_s
        ("queue_s", "f8"),  # the six parts sum to last_token_s - arrival_s
        ("decode_queue_s", "f8"),  # of it, waiting for room on the decode replica after the prompt was computed
        ("prefill_s", "f8"),
        ("kv_transfer_s", "f8"),
        ("decode_s", "f8"),
        ("preempted_s", "f8"),
        ("stall_s", "f8"),
        ("input_tokens", "i4"),
        ("output_tokens", "i4"),
        ("cached_tokens", "i4"),  # prompt tokens served from the prefix cache at first admission
        ("cached_host_tokens", "i4"),  # further ones from host memory,
        ("cached_disk_tokens", "i4"),  # local disk
        ("cached_remote_tokens", "i4"),  # and the store of the pool
        ("preemptions", "i4"),
        ("retries", "i4"),  # times it was sent again after a crash
        ("prefill_replica", "i4"),  # index in its pool; equals decode_replica when aggregated
        ("decode_replica", "i4"),
        ("status", "i4"),
    ]
)
"""Times are seconds of the virtual clock, NaN where the request never got there."""


@dataclass(frozen=True, eq=False)
class TokenGaps:
    """Every gap between consecutive tokens, pooled over requests, as a fine histogram (bins 0.2 % wide).

    ``count[i]`` gaps of mean ``sum_s[i] / count[i]`` lie in bin *i*; means are exact, percentiles within 0.2 %.
    """

    count: NDArray[np.float64]
    sum_s: NDArray[np.float64]
    min_s: float
    max_s: float


@dataclass(frozen=True)
class PoolRecord:
    """What one pool did over the whole run."""

    role: str
    """``mixed``, ``prefill`` or ``decode``."""
    gpu: str
    replicas: int
    gpus_per_replica: int
    kv_blocks: int
    """KV blocks of one replica."""
    block_size: int
    max_num_seqs: int
    gpu_seconds: float
    """Provisioned GPU time, which is what costs money."""
    busy_s: float
    """Sum over replicas of time spent in passes."""
    passes: int
    prefill_tokens: int
    """Computed, recomputation after preemption included."""
    decode_tokens: int
    mean_batch: float
    """Decoding requests per pass, weighted by pass time."""
    mean_kv_utilization: float
    """Used share of the KV blocks, weighted by time over the run."""
    extrapolated_pass_share: float
    """Share of pass time outside the timing source's measured grid."""
    timeline: NDArray[np.float64]
    """Rows of (time in s, replicas provisioned, serving, starting, draining), one at the first arrival and one per
    change."""
    decode_rounds: int
    """Passes in which a request decoded, summed over requests; 0 without speculative decoding."""
    link_utilization: dict[str, float]
    """KV link -> moved bytes over bandwidth x duration."""


@dataclass(frozen=True, eq=False)
class SimulationResult:
    """The outcome of ``simulate``; equal arguments give byte-equal results."""

    requests: NDArray[Any]
    """Structured array of REQUEST_DTYPE, one row per request of the workload in its order."""
    gaps: TokenGaps
    pools: tuple[PoolRecord, ...]
    duration_s: float
    """First arrival to last event."""
    warmup_requests: int
    """Number of first rows of ``requests`` that no metric counts."""
    timing: tuple[dict[str, Any], ...]
    """Provenance of the pass times, one per pool."""
    stopped: str
    """The rule that ended the run before all requests had ended, ``duration`` or ``slo``; empty where none did."""
    lost: Mapping[str, float] = field(default_factory=dict)
    """SLO -> lower bound of its violation, where the run was ended for that; see ``LostCause.violations``."""
