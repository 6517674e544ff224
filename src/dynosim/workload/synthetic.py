"""Synthetic request tables: token lengths, conversations that share prefixes, arrival times.

Left out: dependence of the answer's length on the prompt, think times in seconds (turns follow by request order).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dynosim.config import (
    FixedLength,
    Length,
    LognormalLength,
    PrefixTree,
    QuantileLength,
    SyntheticSource,
    UniformLength,
)
from dynosim.rng import stream
from dynosim.workload import arrivals
from dynosim.workload.table import FloatArray, IntArray, Workload


def generate(source: SyntheticSource, seed: int, name: str = "synthetic") -> Workload:
    """Return ``source.requests`` requests, at time 0 where the source has no arrivals.

    Input lengths, output lengths, prefixes and arrivals draw from streams of their own under *seed*.
    """
    n = source.requests
    times_s = np.zeros(n)
    if source.arrivals is not None:
        times_s = arrivals.of_source(source.arrivals, n, stream(seed, "workload.arrivals"))
    input_tokens = sample_lengths(source.input_tokens, n, stream(seed, "workload.input_tokens"))
    output_tokens = sample_lengths(source.output_tokens, n, stream(seed, "workload.output_tokens"))
    block_tokens, offsets, ids = 0, np.zeros(n + 1, np.int64), np.empty(0, np.int64)
    if source.prefix is not None:
        block_tokens = source.prefix.block_tokens
        turns = _conversations(source.prefix, input_tokens, output_tokens, stream(seed, "workload.prefix"))
        input_tokens = turns.input_tokens
        offsets, ids = _block_ids(turns, source.prefix)
    return Workload(name, times_s, input_tokens, output_tokens, block_tokens, offsets, ids)


def sample_lengths(length: Length, n: int, rng: np.random.Generator) -> IntArray:
    """Return *n* token counts; exactly one uniform or normal number is drawn for each."""
    match length:
        case FixedLength(tokens=tokens):
            return np.full(n, tokens, np.int64)
        case UniformLength(min=low, max=high):
            return rng.integers(low, high, n, endpoint=True)
        case LognormalLength():
            drawn = length.median * np.exp(length.sigma * rng.standard_normal(n))
            return np.clip(np.rint(drawn), length.min, length.max).astype(np.int64)
        case QuantileLength():
            log_tokens = _interpolate({p: np.log(t) for p, t in length.quantiles.items()}, rng.random(n))
            return np.rint(np.exp(log_tokens)).astype(np.int64)


def _interpolate(quantiles: dict[float, float], probability: FloatArray) -> FloatArray:
    values: FloatArray = np.interp(probability, list(quantiles), list(quantiles.values()))
    return values


class _Turns(NamedTuple):
    """Request i shares its first ``shared[i]`` blocks with request ``parent[i]``; -1 is the system prompt alone."""

    input_tokens: IntArray
    parent: IntArray
    shared: IntArray


class _Due(NamedTuple):
    """A further turn that waits for its place in the order of requests."""

    place: int
    parent: int
    turn: int
    input_tokens: int
    shared: int


def _conversations(
    prefix: PrefixTree, first_tokens: IntArray, output_tokens: IntArray, rng: np.random.Generator
) -> _Turns:
    """Decide for each place whether a conversation opens or continues there, and how long its prompt then is."""
    n = len(first_tokens)
    next_tokens = _next_turns(prefix, n, rng)
    continues, gaps = rng.random(n).tolist(), sample_lengths(prefix.gap_requests, n, rng).tolist()
    probability = prefix.continue_probability
    tokens, outputs = first_tokens.tolist(), output_tokens.tolist()
    parent, shared, turn = [-1] * n, [0] * n, 0
    waiting: list[_Due] = []
    for i in range(n):
        if waiting and waiting[0].place <= i:
            _, parent[i], turn, tokens[i], shared[i] = heapq.heappop(waiting)
        else:
            turn, shared[i] = 0, min(prefix.shared_blocks, tokens[i] // prefix.block_tokens)
        if (
            continues[i] < probability[min(turn, len(probability) - 1)]
            and tokens[i] >= (prefix.shared_blocks + 1) * prefix.block_tokens
        ):
            length, kept = next_tokens(i, tokens[i], outputs[i])
            if length <= prefix.max_input_tokens:
                heapq.heappush(waiting, _Due(i + gaps[i], i, turn + 1, length, kept))
    return _Turns(*(np.array(column, np.int64) for column in (tokens, parent, shared)))


def _next_turns(
    prefix: PrefixTree, n: int, rng: np.random.Generator
) -> Callable[[int, int, int], tuple[int, int]]:
    """Return the rule (i, prompt tokens, output tokens of request i) -> (prompt tokens, shared blocks) of its next turn."""
    new = sample_lengths(prefix.new_tokens, n, rng).tolist()
    resubmits = (rng.random(n) < prefix.resubmit_probability).tolist()
    rewritten, kept_fraction, ratio = rng.random((3, n))
    rewrites, block_tokens = prefix.rewrites, prefix.block_tokens
    if rewrites is not None:
        rewritten = rewritten < rewrites.probability
        kept_fraction = _interpolate(rewrites.kept_fraction, kept_fraction)
        ratio = _interpolate(rewrites.length_ratio, ratio)

    def next_turn(i: int, tokens: int, output: int) -> tuple[int, int]:
        whole = tokens // block_tokens
        if resubmits[i]:
            return tokens, -(-tokens // block_tokens)
        if rewrites is not None and rewritten[i] and whole >= rewrites.min_blocks:
            kept = max(round(kept_fraction[i] * whole), prefix.shared_blocks)
            return max(round(ratio[i] * tokens), kept * block_tokens + 1), kept
        return tokens + output + new[i], whole

    return next_turn


def _block_ids(turns: _Turns, prefix: PrefixTree) -> tuple[IntArray, IntArray]:
    """Return (offsets, ids): shared blocks take the parent's ids, all others are new."""
    blocks = -(-turns.input_tokens // prefix.block_tokens)
    offsets = np.concatenate(([0], np.cumsum(blocks)))
    fresh = np.cumsum(blocks - turns.shared) - (blocks - turns.shared) + prefix.shared_blocks
    ids = np.arange(offsets[-1]) + np.repeat(fresh - offsets[:-1] - turns.shared, blocks)
    rows = zip(offsets.tolist(), turns.parent.tolist(), turns.shared.tolist(), strict=False)
    for start, parent, shared in rows:
        source = offsets[parent]
        ids[start : start + shared] = np.arange(shared) if parent < 0 else ids[source : source + shared]
    return offsets, np.unique(ids, return_inverse=True)[1]
