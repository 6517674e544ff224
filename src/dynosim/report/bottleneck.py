"""Where a request's time goes, and what would give some of it back: one sentence per simulated deployment.

It reads metrics only: the parts of the latency, which sum to it, and what queueing waited for. What it advises moves
that part; whether it pays is for another simulation to say.
"""

from __future__ import annotations

from collections.abc import Mapping

from dynosim.metrics import METRICS
from dynosim.simulation.records import WAIT_REASONS

LATENCY_PARTS = ("queue_time", "prefill_time", "kv_transfer_time", "decode_time", "preempted_time", "stall_time")
"""They sum to ``request_latency``, request by request."""

_MEMORY = "more room for KV blocks (FP8 KV cache, gpu_memory_utilization, replicas)"
REMEDIES = {
    "prefill_busy": "more prefill capacity: replicas, tensor_parallel_size, or prefixes reused",
    "decode_busy": "shorter decode passes: tensor_parallel_size, or replicas",
    "batch_slots": "a higher max_num_seqs, or replicas",
    "token_budget": "a higher max_num_batched_tokens, or replicas",
    "kv_blocks": _MEMORY,
    "kv_link": "a faster link to the lower tier, or more GPU memory",
    "cold_start": "scaling up earlier or starting faster: thresholds, interval_s, min_replicas, provision_s",
    "outage": "spare replicas, or faster detection_s",
    "frontend": "a faster tokenizer and HTTP server, more of their processes",
    "prefill_time": "faster prompts: tensor_parallel_size, a faster GPU, or prefixes reused (kv_aware, a host tier)",
    "kv_transfer_time": "a faster hand-off network, or local_prefill for short prompts",
    "decode_time": "faster decode passes: tensor_parallel_size, a faster GPU, or speculative decoding",
    "preempted_time": f"{_MEMORY}, or fewer requests at once",
    "stall_time": "smaller prefill chunks (max_num_batched_tokens), or disaggregation",
}
"""Reason of waiting, or part of the latency -> what would shorten it."""

SCALING = "or, as replicas come later than the load, with a higher min_replicas or max_step, or a shorter cold start"
"""What also shortens the queues of a pool with an autoscaler."""


def bottleneck(flat: Mapping[str, float], *, autoscaled: bool = False) -> str:
    """Return what takes most of the mean request latency; nothing where no request was served.

    *flat* has ``Metrics.flat`` names, times in ms; *autoscaled*: a pool of the deployment has an autoscaler.
    """
    total = flat.get("request_latency", 0.0)
    if not total:
        return ""
    part = max(LATENCY_PARTS, key=lambda name: flat.get(name, 0.0))
    share, name = flat.get(part, 0.0) / total, METRICS[part].display.removesuffix(" time")
    said = f"{share:.0%} of the mean request latency is {name}"
    reason = max(WAIT_REASONS, key=lambda reason: flat.get(f"wait_{reason}_share", 0.0))
    waited = flat.get(f"wait_{reason}_share", 0.0)
    if part != "queue_time" or not waited:
        return f"{said}; it falls with {REMEDIES[part]}" if part in REMEDIES else said
    scaling = f"; {SCALING}" if autoscaled and reason != "cold_start" else ""
    return f"{said}, {waited:.0%} of it for {reason.replace('_', ' ')}; it falls with {REMEDIES[reason]}{scaling}"
