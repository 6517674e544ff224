"""The time of one pass, by the formulas of dynosim's sources ``fixed`` and ``polynomial``, without dynosim.

The recorders run in environments of their own, so the formulas stand here once more; ``tests/conformance`` holds them
against the tables of ``dynosim.timing``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

PREFILL_MS = (4.209989e-7, 1.518344e-2, 16.50142)
DECODE_MS = (-25.74, 54.01, 5.74)
UTILIZATION = np.linspace(0.0, 1.0, 1201)
"""Nodes between which the decode time is a line, as in dynosim's table."""
DECODE_S = np.maximum(1.0, np.polyval(DECODE_MS, UTILIZATION)) / 1e3

PassTime = Callable[[int, int, int], float]
"""(prefill tokens, decoding requests, their total context with the new tokens) -> seconds."""


def pass_time(timing: dict[str, Any], kv_capacity_tokens: int) -> PassTime:
    """Return the formula of ``deployment.timing`` on a replica whose KV cache holds *kv_capacity_tokens*."""
    if timing["type"] == "fixed":
        token_s, decode_s = timing["prefill_ms_per_token"] / 1e3, timing["decode_ms"] / 1e3
        return lambda prefill, decodes, context: prefill * token_s + (decode_s if decodes else 0.0)

    def polynomial(prefill: int, decodes: int, context: int) -> float:
        prefill_s = float(np.polyval(PREFILL_MS, prefill)) / 1e3 if prefill else 0.0
        return prefill_s + (float(np.interp(context / kv_capacity_tokens, UTILIZATION, DECODE_S)) if decodes else 0.0)

    return polynomial
