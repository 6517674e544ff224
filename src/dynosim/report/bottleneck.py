"""Where the time of the slowest requests goes: one sentence per simulated deployment.

It reads metrics only: the parts of the latency, which sum to it, over the slowest requests by each metric that the SLO
bounds. It advises nothing: what another configuration would change is for another simulation to say.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from dynosim.metrics import LATENCY_PARTS, METRICS, TAILS
from dynosim.simulation.records import WAIT_REASONS

_LEAST = 0.05
"""Parts below this share are not named."""


def bottleneck(flat: Mapping[str, float], slo: Collection[str]) -> str:
    """Return what the slowest 1 % of requests spend their time on, by each latency that *slo* bounds (else TTFT).

    *flat* has ``Metrics.flat`` names, times in ms. Empty where no request was served.
    """
    bounded = {tail: metric for tail, metric in TAILS.items() if metric in slo} or {"tail_ttft": TAILS["tail_ttft"]}
    said = [_of_tail(flat, tail, METRICS[metric].display) for tail, metric in bounded.items()]
    return "; ".join(filter(None, said))


def _of_tail(flat: Mapping[str, float], tail: str, display: str) -> str:
    parts = {part: flat.get(f"{part}.{tail}", 0.0) for part in LATENCY_PARTS}
    total = sum(parts.values())
    if not total:
        return ""
    shares = {part: ms / total for part, ms in sorted(parts.items(), key=lambda item: -item[1])}
    named = [f"{share:.0%} {_name(part, flat)}" for part, share in shares.items() if share >= _LEAST]
    return f"slowest 1 % by {display}: {', '.join(named)}"


def _name(part: str, flat: Mapping[str, float]) -> str:
    """Return a part of the latency in words, queueing with what most of all queueing waits for."""
    name = METRICS[part].display.removesuffix(" time")
    reason = max(WAIT_REASONS, key=lambda reason: flat.get(f"wait_{reason}_share", 0.0))
    waits = part == "queue_time" and flat.get(f"wait_{reason}_share", 0.0)
    return f"{name} (mostly for {reason.replace('_', ' ')})" if waits else name
