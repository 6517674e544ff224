"""What every timing source delivers: the time of one forward pass, as tables the compiled engine reads.

A pass computes ``p`` prefill tokens in ``k`` chunks (chunk i: n_i new tokens behind c_i cached ones, s_i = n_i + c_i)
and decodes ``B`` requests whose contexts, the new token included, sum to ``S`` tokens. Its time is

    token_wise + prefill_attention + decode_attention + k chunk_s

    token_wise        = tokens_s[p + B]   (fused sources)  or  tokens_s[p]  (additive ones: decode_s carries the rest)
                        decode-only passes: graph_tokens_s[B], the curve at the padded CUDA-graph batch size
    prefill_attention = sum_i share(k, s_i) (1 - (c_i / s_i)^2)
                        each chunk's share of a batch-k attention kernel at its own length: exact for equal chunks, sums
                        the quadratic part for unequal ones, and charges the launch floor once
    decode_attention  = linear interpolation of decode_s[B] over decode_context[B] at S; piecewise linear in S, which
                        is what makes jumps over many decode passes exact

Attention data-parallel ranks carry x_r tokens each. Experts work on those of all R ranks together, all else on a rank's
own; with prefill on any rank the pass of all takes max_r(time_r - expert_s[x_r]) + expert_s[ceil(sum_r x_r / R)].
Decode-only passes run CUDA graphs, for which all ranks pad to the largest batch: they take max_r(time_r).

Beyond the last node every table continues on its last slope. Requests that verify d drafted tokens count 1 + d tokens
each in p + B; tables by batch stay indexed by requests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PassTables:
    """Pass times in seconds of one scheduler rank, sized for its limits."""

    tokens_s: Array
    """Shape (most tokens of a pass + 1,): token-wise time of a pass by its tokens; [0] is 0."""
    graph_tokens_s: Array
    """Shape (max_num_seqs + 1,): token-wise time of a decode-only pass by its batch; [0] is 0."""
    decode_context: Array
    """Shape (max_num_seqs + 1, j): nodes of total context, increasing along the last axis; row 0 is unused."""
    decode_s: Array
    """Shape (max_num_seqs + 1, j): decode attention time at the nodes."""
    prefill_seq: Array
    """Shape (m,): nodes of sequence length (cached plus new), increasing."""
    prefill_share_s: Array
    """Shape (k_max + 1, m): one chunk's share of an attention kernel over k chunks of that length; row 0 is unused.
    More than k_max chunks read row k_max."""
    expert_s: Array
    """Shape of tokens_s: the experts' part of it where *every* data-parallel rank carries that number of tokens; zeros
    without ranks."""
    chunk_s: float = 0.0
    """Time added for every prefill chunk of a pass."""
    eager_tokens: int = 0
    eager_s: float = 0.0
    """A pass with prompt chunks and more than ``eager_tokens`` tokens takes at least ``eager_s``: no CUDA graph covers
    it, and the CPU launches its kernels one by one."""
    decode_skew: float = 0.0
    """Share of the padding to the longest context of the batch that decode attention computes: S above is
    sum + skew (B longest - sum)."""
    overlap: bool = False
    """Whether the engine chooses a pass while the one before runs: who comes during a pass misses the next one too."""
    fused: bool = True
    """Whether prefill and decode tokens go through the token-wise operations together."""
    measured_tokens: int = 0
    measured_context: int = 0
    """Largest pass tokens and request context inside the source's own grid; beyond is extrapolated. 0 is unlimited."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the numbers come from: source, versions, precision modes."""

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        tokens, batches = self.tokens_s.shape, self.graph_tokens_s.shape
        _check("tokens_s", self.tokens_s, tokens, ndim=1)
        _check("graph_tokens_s", self.graph_tokens_s, batches, ndim=1)
        _check("expert_s", self.expert_s, tokens, ndim=1)
        _check("decode_context", self.decode_context, batches + self.decode_context.shape[1:], ndim=2)
        _check("decode_s", self.decode_s, self.decode_context.shape, ndim=2)
        _check("prefill_seq", self.prefill_seq, self.prefill_seq.shape, ndim=1)
        chunks = self.prefill_share_s.shape[:1]
        _check("prefill_share_s", self.prefill_share_s, chunks + self.prefill_seq.shape, ndim=2)
        for name, axis in (("decode_context", self.decode_context[1:]), ("prefill_seq", self.prefill_seq)):
            if axis.shape[-1] < 2 or not (np.diff(axis) > 0.0).all():
                raise ValueError(f"{name}: allowed: at least two nodes, each above the one before")
        for name in ("tokens_s", "graph_tokens_s"):
            if getattr(self, name)[:1].any():
                raise ValueError(f"{name}: {getattr(self, name)[0]:g}: a pass without tokens takes 0")

    def check_limits(self, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        """Raise ValueError where the tables are not those of these limits."""
        asked = {"tokens_s": max_num_batched_tokens + 1, "graph_tokens_s": max_num_seqs + 1}
        for name, length in asked.items():
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name}: {len(getattr(self, name))} entries: allowed: {length}, from 0 to the limit")


_ARRAYS = ("tokens_s", "graph_tokens_s", "decode_context", "decode_s", "prefill_seq", "prefill_share_s", "expert_s")


def _check(name: str, array: Array, shape: tuple[int, ...], ndim: int) -> None:
    if array.ndim != ndim or array.shape != shape:
        allowed = shape if len(shape) == ndim else f"{ndim} axes"
        raise ValueError(f"{name}: shape {array.shape}: allowed: {allowed}")
    if not np.isfinite(array).all() or (array < 0.0).any():
        raise ValueError(f"{name}: allowed: finite numbers >= 0")


class ForwardTimes(Protocol):
    """A timing source for one model on the GPUs of one rank."""

    @property
    def knows_hardware(self) -> bool:
        """Whether these are the times of a GPU's kernels: what the engine adds to them is then added."""

    def tables(self, *, max_num_seqs: int, max_num_batched_tokens: int) -> PassTables:
        """Return the pass times; raises TimingError where the source has no data."""
        ...
