"""Token ids of a workload: equal where its block ids say that tokens are equal, else a request's own."""

from __future__ import annotations

from typing import Any

PRIVATE = 1 << 40
"""A request's own tokens lie above all those of block ids, this far apart from each other's."""


class Tokens:
    """Prompt and answer of every request of a workload as arrays of numbers."""

    def __init__(self, workload: dict[str, Any]) -> None:
        self.inputs, self.outputs = workload["input_tokens"], workload["output_tokens"]
        self.block, self.ids = workload.get("hash_block_tokens", 0), workload.get("hash_ids", [])
        self.offsets = workload.get("hash_offsets", [0] * (len(self.inputs) + 1))
        self.hashed = workload.get("hashed_tokens", self.inputs) if self.block else [0] * len(self.inputs)

    def __len__(self) -> int:
        return len(self.inputs)

    def lengths(self, i: int) -> tuple[int, int]:
        """Return the tokens of prompt and answer of request *i*."""
        return self.inputs[i], self.outputs[i]

    def at(self, i: int, position: int) -> int:
        """Return the token of request *i* at *position*; a partial last block is a prefix of the whole one."""
        if position < self.hashed[i]:
            return self.ids[self.offsets[i] + position // self.block] * self.block + position % self.block
        return PRIVATE * (i + 1) + position
