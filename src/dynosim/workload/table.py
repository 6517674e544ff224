"""The request table: one workload as a struct of arrays, ready for the simulator."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def take_ragged(offsets: IntArray, values: IntArray, rows: IntArray) -> tuple[IntArray, IntArray]:
    """Return (offsets, values) of the given rows of a ragged array, in the order of *rows*."""
    lengths = np.diff(offsets)[rows]
    taken = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    source = np.repeat(offsets[:-1][rows] - taken[:-1], lengths) + np.arange(taken[-1])
    return taken, values[source]


@dataclass(frozen=True, eq=False)
class Workload:
    """Requests in order of arrival.

    Request *i* has the prompt block ids ``hash_ids[hash_offsets[i]:hash_offsets[i + 1]]``: one id per
    ``hash_block_tokens`` prompt tokens, the last block partial. Equal ids mean equal prompts up to and including that
    block (Mooncake's definition). Ids are dense, from 0. Without block ids ``hash_block_tokens`` is 0 and nothing is
    shared.
    """

    name: str
    arrival_s: FloatArray
    """Shape (n,), seconds, not decreasing, starting at or after 0. All zero in a closed loop."""
    input_tokens: IntArray
    """Shape (n,), at least 1."""
    output_tokens: IntArray
    """Shape (n,), at least 1."""
    hash_block_tokens: int
    hash_offsets: IntArray
    """Shape (n + 1,)."""
    hash_ids: IntArray
    """Shape (hash_offsets[-1],)."""
    concurrency: int | None = None
    """Closed loop: requests kept in flight; None is an open loop at ``arrival_s``."""
    warmup_requests: int = 0
    """The first so many requests are left out of all metrics."""

    def __len__(self) -> int:
        return len(self.arrival_s)

    def head(self, n: int) -> Workload:
        """Return the first *n* requests."""
        offsets = self.hash_offsets[: n + 1]
        return replace(
            self,
            arrival_s=self.arrival_s[:n],
            input_tokens=self.input_tokens[:n],
            output_tokens=self.output_tokens[:n],
            hash_offsets=offsets,
            hash_ids=self.hash_ids[: offsets[-1]],
        )

    def content_hash(self) -> str:
        """First 16 hex digits of the SHA-256 of everything the simulator sees."""
        digest = hashlib.sha256()
        for array in (
            self.arrival_s,
            self.input_tokens,
            self.output_tokens,
            self.hash_offsets,
            self.hash_ids,
        ):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(f"{self.hash_block_tokens} {self.concurrency} {self.warmup_requests}".encode())
        return digest.hexdigest()[:16]
