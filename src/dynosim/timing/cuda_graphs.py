"""CUDA graphs over the bare pass times: a decode-only pass runs the graph of the next captured size, padded.

Which sizes an engine captures is its rule (``engines.base.Graphs``). A batch that no graph covers is launched kernel by
kernel, unpadded, and takes the time of the launches at least.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dynosim.engines import Graphs
from dynosim.timing.base import PassTables

LAUNCHED_CONTEXT = 1024
"""Tokens per request at which the launches of a decode pass are compared with its kernels; what attention takes beyond
comes on top."""


def run_batches(graphs: Graphs, max_num_seqs: int) -> NDArray[np.int64]:
    """Return the batch that is computed for each batch 0..max_num_seqs; shape (max_num_seqs + 1,)."""
    batches, sizes = np.arange(max_num_seqs + 1), np.array(graphs.batches, dtype=np.int64)
    if not graphs.padded or not len(sizes):
        return batches
    index = np.searchsorted(sizes, batches)
    return np.where(index < len(sizes), np.append(sizes, 0)[index], batches) * (batches > 0)


def pad(tables: PassTables, graphs: Graphs, max_num_seqs: int) -> PassTables:
    """Return the tables of up to *max_num_seqs* requests, where each batch takes what the batch that is run does."""
    rows = slice(None, max_num_seqs + 1)
    return replace(
        tables,
        graph_tokens_s=tables.graph_tokens_s[run_batches(graphs, max_num_seqs)],
        decode_context=tables.decode_context[rows],
        decode_s=tables.decode_s[rows],
    )


def launch_uncovered(tables: PassTables, graphs: Graphs, launch_s: float) -> PassTables:
    """Let decode-only passes that no graph covers take the launch time at least."""
    if not launch_s:
        return tables
    batches = np.arange(len(tables.graph_tokens_s))
    covered = batches <= max(graphs.batches, default=0) if graphs.padded else np.isin(batches, graphs.batches)
    eager = np.flatnonzero(~covered[1:]) + 1
    attention_s = [np.interp(LAUNCHED_CONTEXT * b, tables.decode_context[b], tables.decode_s[b]) for b in eager]
    graph_tokens_s = tables.graph_tokens_s.copy()
    graph_tokens_s[eager] = np.maximum(graph_tokens_s[eager], launch_s - np.array(attention_s))
    return replace(tables, graph_tokens_s=graph_tokens_s)
