"""CUDA-graph batch sizes: a decode-only pass runs the graph of the next captured size, padded with dummy requests.

vLLM captures 1, 2, 4, then every 8 up to 256, then every 16 up to min(2 max_num_seqs, 512), and runs larger batches
eagerly, unpadded (vLLM's ``CompilationConfig.cudagraph_capture_sizes``). The other engines' lists differ little below
256 and are modelled as this one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LARGEST_CAPTURE = 512


def capture_sizes(max_num_seqs: int) -> NDArray[np.int64]:
    """Return the captured batch sizes in increasing order."""
    largest = min(2 * max_num_seqs, LARGEST_CAPTURE)
    sizes = np.array([1, 2, 4, *range(8, 256, 8), *range(256, LARGEST_CAPTURE + 1, 16)])
    return sizes[sizes <= largest]


def padded_batches(max_num_seqs: int) -> NDArray[np.int64]:
    """Return the batch that is computed for each batch 0..max_num_seqs; shape (max_num_seqs + 1,)."""
    batches = np.arange(max_num_seqs + 1)
    sizes = capture_sizes(max_num_seqs)
    index = np.searchsorted(sizes, batches)
    padded = np.append(sizes, 0)[index]
    return np.where(index < len(sizes), padded, batches) * (batches > 0)
