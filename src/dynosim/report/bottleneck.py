"""Where a request's time goes: one sentence per simulated deployment.

It reads metrics only: the parts of the mean latency, which sum to it, and what queueing waited for. It advises nothing:
what another configuration would change is for another simulation to say.
"""

from __future__ import annotations

from collections.abc import Mapping

from dynosim.metrics import METRICS
from dynosim.simulation.records import WAIT_REASONS

LATENCY_PARTS = ("queue_time", "prefill_time", "kv_transfer_time", "decode_time", "preempted_time", "stall_time")
"""They sum to ``request_latency``, request by request."""


def bottleneck(flat: Mapping[str, float]) -> str:
    """Return what takes most of the mean request latency; nothing where no request was served.

    *flat* has ``Metrics.flat`` names, times in ms.
    """
    total = flat.get("request_latency", 0.0)
    if not total:
        return ""
    part = max(LATENCY_PARTS, key=lambda name: flat.get(name, 0.0))
    share, name = flat.get(part, 0.0) / total, METRICS[part].display.removesuffix(" time")
    said = f"{share:.0%} of the mean request latency is {name}"
    reason = max(WAIT_REASONS, key=lambda reason: flat.get(f"wait_{reason}_share", 0.0))
    waited = flat.get(f"wait_{reason}_share", 0.0)
    return f"{said}, {waited:.0%} of it for {reason.replace('_', ' ')}" if part == "queue_time" and waited else said
