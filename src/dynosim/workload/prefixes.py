"""Block ids of prompts that start with the tokens of others."""

from __future__ import annotations

import numpy as np

from dynosim.workload.table import IntArray


def block_ids(blocks: IntArray, parent: IntArray, shared_blocks: IntArray, texts: int = 0) -> tuple[IntArray, IntArray]:
    """Return (offsets, ids) of rows of *blocks* blocks, each starting with *shared_blocks* of its *parent* row.

    All other blocks are new. Without shared blocks the parent does not matter. The first *texts* rows are no requests:
    others start with them, and they are left out of the result.
    """
    offsets = np.concatenate(([0], np.cumsum(blocks))).astype(np.int64)
    every = np.arange(offsets[-1])
    place = every - np.repeat(offsets[:-1], blocks)
    shared = place < np.repeat(shared_blocks, blocks)
    origin = np.where(shared, np.repeat(offsets[parent], blocks) + place, every)
    while not np.array_equal(further := origin[origin], origin):  # each round doubles the generations looked back
        origin = further
    origin = origin[offsets[texts] :]
    used = np.zeros(len(every), bool)
    used[origin] = True
    return offsets[texts:] - offsets[texts], (np.cumsum(used) - 1)[origin]


def hashed_tokens(input_tokens: IntArray, parent: IntArray, shared_blocks: IntArray, block_tokens: int) -> IntArray:
    """Return for each row the tokens that need ids: its prompt, and of its answer what a child starts with."""
    covered = input_tokens.copy()
    children = shared_blocks > 0
    np.maximum.at(covered, parent[children], shared_blocks[children] * block_tokens)
    return covered
