"""Prefix nodes stand for exactly the blocks that requests share."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.simulation.nodes import PrefixNodes, prefix_nodes
from dynosim.workload.table import Workload
from simulation.scenarios import Drawn, make_workload


def _blocks(nodes: PrefixNodes, i: int) -> list[tuple[int, int]]:
    """Return (node, place in it) of every block of request *i*."""
    mine = nodes.ids[nodes.offsets[i] : nodes.offsets[i + 1]].tolist()
    return [(node, place) for node in mine for place in range(nodes.blocks[node])]


def _content(workload: Workload, i: int, block_size: int) -> list[tuple[int, ...]]:
    """Return what every block of request *i* holds, by the definition of block ids; its own beyond them."""
    ids = workload.hash_ids[workload.hash_offsets[i] : workload.hash_offsets[i + 1]].tolist()
    tokens = int(workload.input_tokens[i] + workload.output_tokens[i] - 1)
    named = int(workload.hashed_tokens[i]) // block_size if ids else 0
    shared = [(ids[((k + 1) * block_size - 1) // workload.hash_block_tokens], k) for k in range(named)]
    return [*shared, *((-1, i, k) for k in range(named, tokens // block_size))]


def _common(a: list[tuple[int, ...]], b: list[tuple[int, ...]]) -> int:
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@settings(max_examples=100)
@given(data=st.data(), block_size=st.sampled_from([1, 4, 16, 24, 48, 100]), merge=st.booleans())
def test_requests_share_their_common_blocks_and_no_others(data: st.DataObject, block_size: int, merge: bool) -> None:
    workload = make_workload(Drawn(data))
    nodes = prefix_nodes(workload, block_size, merge=merge)
    found = [_blocks(nodes, i) for i in range(len(workload))]
    wanted = [_content(workload, i, block_size) for i in range(len(workload))]
    assert [len(blocks) for blocks in found] == [len(blocks) for blocks in wanted]
    for i, j in combinations(range(len(workload)), 2):
        assert _common(found[i], found[j]) == _common(wanted[i], wanted[j])


@settings(max_examples=50)
@given(data=st.data(), block_size=st.sampled_from([4, 16, 24]))
def test_no_request_ends_inside_a_node_it_shares(data: st.DataObject, block_size: int) -> None:
    workload = make_workload(Drawn(data))
    nodes = prefix_nodes(workload, block_size, merge=True)
    ends = nodes.shared_within(workload.hashed_tokens // block_size)
    assert (ends == np.diff(nodes.offsets) - 1).all()


@pytest.mark.parametrize(("merge", "blocks"), [(True, [15, 1, 0]), (False, [4, 4, 4, 3, 1, 0])])
def test_a_path_that_nobody_leaves_is_one_node(merge: bool, blocks: list[int]) -> None:
    ids = np.array([0, 1, 2, 3])
    workload = Workload("one", np.zeros(1), np.array([64]), np.array([2]), 16, np.array([0, 4]), ids)
    nodes = prefix_nodes(workload, 4, merge=merge)
    assert nodes.blocks[nodes.ids].tolist() == blocks, "a full hit computes the last block again"
