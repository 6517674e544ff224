"""Prefix nodes: what the KV caches store of a workload, runs of blocks that all requests share or none does.

The block ids of a workload are a tree, as equal ids mean equal prompts up to there. A node is a run of whole KV blocks
on a path of it that nobody leaves in between: it ends where prompts part, and where a request ends. So one node stands
for thousands of tokens of a conversation, and the caches visit a few nodes per request instead of hundreds of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from dynosim.workload.table import IntArray, Workload


@dataclass(frozen=True, eq=False)
class PrefixNodes:
    """Request *i* is covered by the nodes ``ids[offsets[i]:offsets[i + 1]]``, the last of which is its own."""

    offsets: IntArray
    """Shape (n + 1,)."""
    ids: IntArray
    """Shape (offsets[-1],): dense, shared nodes before the n private ones."""
    blocks: IntArray
    """Shape (nodes,): whole KV blocks of each. A private node, which may have none, is what no block id covers."""

    def shared_within(self, blocks: IntArray) -> IntArray:
        """Return shape (n,): the shared nodes within the first *blocks* blocks, shape (n,), of each request."""
        counts = np.diff(self.offsets)
        owner = np.repeat(np.arange(len(counts)), counts)
        total = np.concatenate([[0], np.cumsum(self.blocks[self.ids])])
        inside = total[1:] - total[self.offsets[:-1]][owner] <= blocks[owner]
        return np.asarray(np.minimum(np.bincount(owner[inside], minlength=len(counts)), np.maximum(counts - 1, 0)))


_known: WeakKeyDictionary[Workload, dict[tuple[int, bool], PrefixNodes]] = WeakKeyDictionary()


def prefix_nodes(workload: Workload, block_size: int, *, merge: bool) -> PrefixNodes:
    """Return the nodes of *workload* in blocks of *block_size* tokens; without *merge* each of its block ids is a node
    of its own. Found once per workload."""
    found = _known.setdefault(workload, {})
    if (block_size, merge) not in found:
        found[block_size, merge] = _with_private(workload, block_size, _shared(workload, block_size, merge))
    return found[block_size, merge]


def _with_private(workload: Workload, block_size: int, shared: PrefixNodes) -> PrefixNodes:
    """Append to every request the node of what its ids do not cover: the last token is never computed."""
    n = len(workload)
    whole = (workload.input_tokens + workload.output_tokens - 1) // block_size
    named = np.zeros(n, np.int64)
    np.add.at(named, np.repeat(np.arange(n), np.diff(shared.offsets)), shared.blocks[shared.ids])
    ids = np.insert(shared.ids, shared.offsets[1:], len(shared.blocks) + np.arange(n))
    blocks = np.concatenate([shared.blocks, np.maximum(whole - named, 0)])
    return PrefixNodes(shared.offsets + np.arange(n + 1), ids, blocks)


def _grid(workload: Workload, block_size: int) -> tuple[int, IntArray, IntArray]:
    """Return (KV blocks per id, offsets, ids): the trace's block ids on a grid that whole KV blocks fit into.

    Where KV blocks do not fit into the trace's, an id is one KV block: two are equal when they stand at the same place
    and the trace's block that holds their last token is equal, because equal ids mean equal prefixes.
    """
    if workload.hash_block_tokens % block_size == 0:
        return workload.hash_block_tokens // block_size, workload.hash_offsets, workload.hash_ids
    counts = workload.hashed_tokens // block_size
    offsets = np.concatenate([[0], np.cumsum(counts)])
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    holder = ((place + 1) * block_size - 1) // workload.hash_block_tokens
    ids = workload.hash_ids[np.repeat(workload.hash_offsets[:-1], counts) + holder]
    _, dense = np.unique(ids * (place.max(initial=0) + 1) + place, return_inverse=True)
    return 1, offsets, dense.astype(np.int64)


def _shared(workload: Workload, block_size: int, merge: bool) -> PrefixNodes:
    n = len(workload)
    if not workload.hash_block_tokens:
        return PrefixNodes(np.zeros(n + 1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    width, offsets, ids = _grid(workload, block_size)
    ends = workload.hashed_tokens // block_size
    counts = -(-ends // width)
    owner = np.repeat(np.arange(n, dtype=np.int32), counts)
    place = (np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)).astype(np.int32)
    if len(owner) != len(ids):
        ids = ids[offsets[owner] + place]
    covered = np.minimum(ends[owner] - place * width, width).astype(np.int32)
    # A full hit computes its last block again, so prompts end there too.
    again = np.minimum((workload.input_tokens - 1) // block_size, ends).astype(np.int32)[owner] - place * width
    last = place == counts[owner] - 1
    stops = np.union1d(_pairs(ids[last], covered[last], width), _pairs(ids, again, width))
    del place, last, again
    return _cut(n, owner, ids, covered, stops, width, merge)


def _pairs(ids: IntArray, ends: NDArray[Any], width: int) -> IntArray:
    """Return sorted id x (width + 1) + end, of those where something ends inside the id or at its end."""
    inside = (ends > 0) & (ends <= width)
    return np.unique(ids[inside] * (width + 1) + ends[inside])


def _cut(
    n: int, owner: NDArray[Any], ids: IntArray, covered: NDArray[Any], stops: IntArray, width: int, merge: bool
) -> PrefixNodes:
    """Cut every id into pieces at its *stops*, and join pieces that follow each other in every request into nodes."""
    reach = np.zeros(int(ids.max(initial=-1)) + 1, np.int64)
    np.maximum.at(reach, ids, covered)
    present = np.flatnonzero(reach)
    pieces = np.union1d(stops, present * (width + 1) + reach[present])
    of, end = (part.astype(np.int32) for part in np.divmod(pieces, width + 1))
    follows = np.concatenate([[False], of[1:] == of[:-1]])
    size = end - np.where(follows, np.concatenate([[0], end[:-1]]), 0)
    first = np.searchsorted(of, np.arange(len(reach), dtype=np.int32)).astype(np.int32)
    root = np.arange(len(pieces), dtype=np.int32)
    if merge:
        child, parent = _only_children(owner, ids, len(reach))
        last = np.searchsorted(of, parent.astype(np.int32), side="right") - 1
        open_end = ~np.isin(pieces[last], stops)
        root[first[child[open_end]]] = last[open_end]
        while (root[root] != root).any():
            root = root[root]
    node = np.cumsum(root == np.arange(len(root)), dtype=np.int32)[root] - 1
    del root, follows, of, end
    count = (np.searchsorted(pieces, ids * (width + 1) + covered, side="right") - first[ids]).astype(np.int32)
    which = np.repeat(first[ids] - np.cumsum(count) + count, count)
    which += np.arange(len(which))
    nodes, owners = node[which], np.repeat(owner, count)
    del which, count
    new = np.concatenate([[True], (nodes[1:] != nodes[:-1]) | (owners[1:] != owners[:-1])])[: len(nodes)]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owners[new], minlength=n))]).astype(np.int64)
    return PrefixNodes(offsets, nodes[new].astype(np.int64), np.bincount(node, size).astype(np.int64))


def _only_children(owner: NDArray[Any], ids: IntArray, n_ids: int) -> tuple[IntArray, IntArray]:
    """Return (child, parent) of the ids that alone follow their parent, and follow no other."""
    inner = owner[1:] == owner[:-1]
    pairs = ids[:-1][inner] * n_ids
    pairs += ids[1:][inner]
    pairs.sort()
    parent, child = np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], n_ids)
    alone = (np.bincount(parent, minlength=n_ids)[parent] == 1) & (np.bincount(child, minlength=n_ids)[child] == 1)
    return child[alone], parent[alone]
