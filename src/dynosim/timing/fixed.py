"""Constant pass times: the fake with which tests compute a schedule by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dynosim.timing.base import PassTables


@dataclass(frozen=True)
class FixedTimes:
    """A pass takes ``prefill_s_per_token`` for each prefill token plus ``decode_s`` if any request decodes."""

    knows_hardware: ClassVar[bool] = False

    prefill_s_per_token: float
    decode_s: float

    def tables(self, *, max_num_seqs: int, max_num_batched_tokens: int) -> PassTables:
        """Return additive tables; attention costs nothing."""
        return PassTables(
            tokens_s=np.arange(max_num_batched_tokens + 1, dtype=np.float64) * self.prefill_s_per_token,
            graph_tokens_s=np.zeros(max_num_seqs + 1),
            decode_context=np.tile([0.0, 1.0], (max_num_seqs + 1, 1)),
            decode_s=np.full((max_num_seqs + 1, 2), self.decode_s),
            prefill_seq=np.array([0.0, 1.0]),
            prefill_share_s=np.zeros((2, 2)),
            expert_s=np.zeros(max_num_batched_tokens + 1),
            fused=False,
            provenance={"source": "fixed"},
        )
