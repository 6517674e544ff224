"""The default timing formulas of NVIDIA's mocker and AISimulate: quadratics of prefill tokens and KV utilisation.

    prefill(n) = 4.209989e-7 n^2 + 1.518344e-2 n + 16.50142 ms for n new tokens in the pass, 0 for none
    decode(u)  = max(1, -25.74 u^2 + 54.01 u + 5.74) ms,   u = min(1, total decode context / KV capacity in tokens)

A pass takes the sum. It knows no model and no GPU: it is here to compare simulators, not to predict.
Source: ai-dynamo/aisimulate ``crates/core/src/engine/common/perf_model.rs``, version 0.13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dynosim.timing.base import PassTables

PREFILL_MS = (4.209989e-7, 1.518344e-2, 16.50142)
DECODE_MS = (-25.74, 54.01, 5.74)
DECODE_FLOOR_MS = 1.0
DECODE_NODES = 1200
"""The chord of a quadratic errs by at most |f''| h^2 / 8: with 1,200 steps 4.5e-6 ms, below 1e-6 of decode(0)."""


def prefill_s(tokens: ArrayLike) -> NDArray[np.float64]:
    """Return the prefill time of a pass with *tokens* new tokens in total."""
    count = np.asarray(tokens, dtype=float)
    return np.where(count > 0, np.polyval(PREFILL_MS, count), 0.0) / 1e3


def decode_s(utilization: ArrayLike) -> NDArray[np.float64]:
    """Return the decode time at a KV *utilization*, clipped at 1."""
    used = np.minimum(1.0, np.asarray(utilization, dtype=float))
    return np.maximum(DECODE_FLOOR_MS, np.polyval(DECODE_MS, used)) / 1e3


@dataclass(frozen=True)
class PolynomialTimes:
    """The polynomial on a replica whose KV cache holds *kv_capacity_tokens*."""

    knows_hardware: ClassVar[bool] = False

    kv_capacity_tokens: int

    def tables(self, *, max_num_seqs: int, max_num_batched_tokens: int) -> PassTables:
        """Return additive tables, constant beyond a full KV cache."""
        utilization = np.append(np.linspace(0.0, 1.0, DECODE_NODES + 1), 2.0)
        rows = max_num_seqs + 1
        return PassTables(
            tokens_s=prefill_s(np.arange(max_num_batched_tokens + 1)),
            graph_tokens_s=np.zeros(rows),
            decode_context=np.tile(utilization * self.kv_capacity_tokens, (rows, 1)),
            decode_s=np.tile(decode_s(utilization), (rows, 1)),
            prefill_seq=np.array([0.0, 1.0]),
            prefill_share_s=np.zeros((2, 2)),
            expert_s=np.zeros(max_num_batched_tokens + 1),
            fused=False,
            provenance={"source": "polynomial", "kv_capacity_tokens": self.kv_capacity_tokens},
        )
