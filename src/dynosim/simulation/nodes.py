"""Prefix nodes: what the KV caches store of a workload, runs of blocks that all requests share or none does.

The block ids of a workload are a tree, as equal ids mean equal prompts up to there. A node is a run of whole KV blocks
on a path of it that nobody leaves in between: it ends where prompts part, and where a request ends. So one node stands
for thousands of tokens of a conversation, and the caches visit a few nodes per request instead of hundreds of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from dynosim.workload.table import IntArray, Workload

Ids = NDArray[np.int32]
AT_ONCE = 1 << 16
"""Ids that are looked at together."""


@dataclass(frozen=True, eq=False)
class PrefixNodes:
    """Request *i* is covered by the nodes ``ids[offsets[i]:offsets[i + 1]]``, the last of which is its own."""

    offsets: IntArray
    """Shape (n + 1,)."""
    ids: Ids
    """Shape (offsets[-1],): dense, shared nodes before the n private ones."""
    blocks: Ids
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
    total = np.concatenate([[0], np.cumsum(shared.blocks[shared.ids])])
    own = np.maximum(whole - np.diff(total[shared.offsets]), 0).astype(np.int32)
    ids = np.insert(shared.ids, shared.offsets[1:], len(shared.blocks) + np.arange(n, dtype=np.int32))
    return PrefixNodes(shared.offsets + np.arange(n + 1), ids, np.concatenate([shared.blocks, own]))


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
        return PrefixNodes(np.zeros(n + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32))
    width, grid_offsets, grid_ids = _grid(workload, block_size)
    counted = workload.hashed_tokens // block_size
    offsets, ids = _leading(grid_offsets, grid_ids, -(-counted // width))
    # A full hit computes its last block again, so prompts end there too.
    again = np.minimum((workload.input_tokens - 1) // block_size, counted)
    ends = _stops(offsets, ids, counted, width)
    stops = np.union1d(ends, _stops(offsets, ids, again, width))
    inner = np.ones(len(ids), np.bool_)
    inner[offsets[1:][np.diff(offsets) > 0] - 1] = False
    pieces = _cut(ids, inner, stops, width)
    root: Ids = np.arange(pieces.first[-1], dtype=np.int32)
    if merge:
        _join(root, _only_parents(ids, inner, len(pieces.first) - 1), pieces)
    begins = root == np.arange(len(root), dtype=np.int32)
    node: Ids = (np.cumsum(begins, dtype=np.int32) - 1)[root]
    del inner, root
    blocks = _blocks(node, pieces, width)
    offsets, which = _covering(offsets, ids, ends, pieces, begins)
    return PrefixNodes(offsets, node[which], blocks)


def _leading(offsets: IntArray, ids: IntArray, counts: IntArray) -> tuple[IntArray, Ids]:
    """Return (offsets, ids) of the first *counts* ids of each request."""
    kept = np.repeat(np.tile([True, False], len(counts)), np.stack([counts, np.diff(offsets) - counts], 1).ravel())
    return np.concatenate([[0], np.cumsum(counts)]), ids.astype(np.int32)[kept]


def _stops(offsets: IntArray, ids: Ids, blocks: IntArray, width: int) -> IntArray:
    """Return where the first *blocks* blocks of each request end, id x (width + 1) + end in it; none of no blocks."""
    some = np.flatnonzero(blocks)
    place = (blocks[some] - 1) // width
    return np.asarray(ids[offsets[some] + place] * np.int64(width + 1) + blocks[some] - place * width)


class _Pieces(NamedTuple):
    """The ids, cut where requests end: pieces in the order of ids."""

    first: Ids
    """Shape (ids + 1,): first piece of each id, and the number of all."""
    stops: IntArray
    """Places of the cuts, sorted: id x (width + 1) + end."""
    at_stop: IntArray
    """Shape (stops,): the piece that ends there. Others end with their id."""


def _cut(ids: Ids, inner: NDArray[np.bool_], stops: IntArray, width: int) -> _Pieces:
    """Cut the ids at *stops*, and at their end those that a request goes beyond: *inner* ones, shape (len(ids),)."""
    last = np.zeros(int(ids.max(initial=-1)) + 1, np.bool_)
    last[ids[inner]] = True
    of, end = np.divmod(stops, width + 1)
    last[of[end == width]] = False
    first = np.zeros(len(last) + 1, np.int32)
    np.cumsum(np.bincount(of, minlength=len(last)) + last, out=first[1:])
    stops_before = np.searchsorted(of, of)
    return _Pieces(first, stops, first[of] + np.arange(len(stops)) - stops_before)


def _only_parents(ids: Ids, inner: NDArray[np.bool_], n_ids: int) -> Ids:
    """Return shape (n_ids,): the id that each alone follows if it follows no other; -1 where there is none."""
    child, parent = np.full(n_ids, -1, np.int32), np.full(n_ids, -1, np.int32)
    for before, after in _steps(ids, inner):
        child[before], parent[after] = after, before
    several = np.zeros(n_ids, np.bool_)
    for before, after in _steps(ids, inner):
        siblings = child[before] != after
        several[after[siblings | (parent[after] != before)]] = True
        several[child[before[siblings]]] = True
    parent[several] = -1
    return parent


def _steps(ids: Ids, inner: NDArray[np.bool_]) -> Iterator[tuple[Ids, Ids]]:
    """Yield (ids, those that follow them in a request), in parts that take little memory."""
    for start in range(0, len(ids), AT_ONCE):
        at = start + np.flatnonzero(inner[start : start + AT_ONCE])
        yield ids[at], ids[at + 1]


def _join(root: Ids, parent: Ids, pieces: _Pieces) -> None:
    """Make *root*, shape (pieces,), the first of the pieces up to each that follow each other in every request."""
    last = pieces.first[parent + 1] - 1
    stopped = np.zeros(len(root), np.bool_)
    stopped[pieces.at_stop] = True
    joined = parent >= 0
    joined[joined] = ~stopped[last[joined]]
    root[pieces.first[:-1][joined]] = last[joined]
    while (root[root] != root).any():
        root[:] = root[root]


def _blocks(node: Ids, pieces: _Pieces, width: int) -> Ids:
    """Return shape (nodes,): the blocks of each, all those up to the end of a piece less those before it in its id."""
    of, end = np.divmod(pieces.stops, width + 1)
    stopped = node[pieces.at_stop]
    goes_on = pieces.at_stop + 1 < pieces.first[of + 1]
    blocks = np.bincount(node) * width
    np.add.at(blocks, stopped, end - width)
    np.subtract.at(blocks, node[pieces.at_stop[goes_on] + 1], end[goes_on])
    return blocks.astype(np.int32)


def _covering(
    offsets: IntArray, ids: Ids, ends: IntArray, pieces: _Pieces, begins: NDArray[np.bool_]
) -> tuple[IntArray, IntArray]:
    """Return (offsets, pieces): of every request the first piece of each of its nodes; those with ids end at *ends*."""
    some = np.flatnonzero(np.diff(offsets))
    opening, closing = offsets[some], offsets[some + 1] - 1
    # Most ids are but one piece, of the node of the one before it.
    skipped = ~begins[np.minimum(pieces.first[:-1], len(begins) - 1)]
    adds = (~skipped | (np.diff(pieces.first) > 1))[ids]
    adds[opening] = adds[closing] = True
    at = np.flatnonzero(adds)
    start, stop = pieces.first[ids[at]] + skipped[ids[at]], pieces.first[ids[at] + 1]
    start[np.searchsorted(at, opening)] = pieces.first[ids[opening]]
    stop[np.searchsorted(at, closing)] = pieces.at_stop[np.searchsorted(pieces.stops, ends)] + 1
    total = np.concatenate([[0], np.cumsum(stop - start)])
    found = np.repeat(start - total[:-1], stop - start) + np.arange(total[-1])
    return total[np.searchsorted(at, offsets)], found
