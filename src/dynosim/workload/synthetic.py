"""Synthetic request tables: token lengths, conversations that share prefixes, arrival times.

Conversations are of two kinds: here turns follow each other by request order, in ``sessions`` they wait for each other.
Left out: dependence of the answer's length on the prompt.
"""

from __future__ import annotations

import heapq
import math
from typing import NamedTuple

import numpy as np

from dynosim.config import PrefixTree, Rewrites, SyntheticSource
from dynosim.rng import stream
from dynosim.workload import arrivals
from dynosim.workload.lengths import interpolate, sample_lengths
from dynosim.workload.prefixes import block_ids
from dynosim.workload.sessions import generate_sessions
from dynosim.workload.table import IntArray, Workload

_NO_REWRITES = Rewrites(probability=0.0, kept_fraction={0.0: 1.0, 1.0: 1.0}, length_ratio={0.0: 1.0, 1.0: 1.0})


def generate(source: SyntheticSource, seed: int, name: str = "synthetic") -> Workload:
    """Return ``source.requests`` requests, at time 0 where the source has no arrivals.

    Input lengths, output lengths, prefixes and arrivals draw from streams of their own under *seed*.
    """
    if source.sessions is not None:
        return generate_sessions(source, source.sessions, seed, name)
    n = source.requests
    times_s = np.zeros(n)
    if source.arrivals is not None:
        times_s = arrivals.of_source(source.arrivals, n, stream(seed, "workload.arrivals"))
    input_tokens = sample_lengths(source.input_tokens, n, stream(seed, "workload.input_tokens"))
    outputs = 2 * n if source.prefix else n
    output_tokens = sample_lengths(source.output_tokens, outputs, stream(seed, "workload.output_tokens"))
    block_tokens, offsets, ids = 0, np.zeros(n + 1, np.int64), np.empty(0, np.int64)
    if source.prefix is not None:
        block_tokens = source.prefix.block_tokens
        turns = _conversations(source.prefix, input_tokens, output_tokens, seed)
        input_tokens, output_tokens = turns.input_tokens, turns.output_tokens
        offsets, ids = _block_ids(turns, source.prefix)
    timed = source.arrivals is not None
    return Workload(name, times_s, input_tokens, output_tokens, block_tokens, offsets, ids, timed=timed)


class _Turns(NamedTuple):
    """Request i shares its first ``shared[i]`` blocks with request ``parent[i]``; -1 is the system prompt alone."""

    input_tokens: IntArray
    output_tokens: IntArray
    parent: IntArray
    shared: IntArray


class _Turn(NamedTuple):
    """A request; further turns wait in order of ``place`` until the count of requests reaches it."""

    place: int
    parent: int
    number: int
    """0 is the first turn of a conversation."""
    input_tokens: int
    shared: int
    own: int
    """Index of the draws that belong to its conversation."""
    history: int = 0
    """Prompt tokens that a rewriting keeps; 0 before the first."""


class _Draws(NamedTuple):
    """Draws of each kind: one per request, and where conversations have their own, n more for these.

    ``own_*``: the turn has its conversation's draw and not a fresh one.
    """

    continues: list[float]
    resubmits: list[bool]
    own_output: list[bool]
    own_habit: list[bool]
    own_rewrites: list[bool]
    gap: list[int]
    new_tokens: list[list[int]]
    """By turn, from the same stream: the same draw is the same quantile of each distribution."""
    rewrites: list[bool]
    kept_fraction: list[float]
    length_ratio: list[float]


def _draws(prefix: PrefixTree, n: int, seed: int) -> _Draws:
    def rng(kind: str) -> np.random.Generator:
        return stream(seed, f"workload.prefix.{kind}")

    def chance(kind: str, probability: float) -> list[bool]:
        drawn: list[bool] = (rng(kind).random(2 * n) < probability).tolist()
        return drawn

    rule = prefix.rewrites or _NO_REWRITES
    return _Draws(
        continues=rng("continues").random(n).tolist(),
        resubmits=chance("resubmits", prefix.resubmit_probability),
        own_output=chance("own_output", prefix.output_persistence),
        own_habit=chance("own_habit", prefix.persistence),
        own_rewrites=chance("own_rewrites", rule.persistence),
        gap=sample_lengths(prefix.gap_requests, 2 * n, rng("gap_requests")).tolist(),
        new_tokens=[sample_lengths(length, 2 * n, rng("new_tokens")).tolist() for length in prefix.new_tokens],
        rewrites=chance("rewrites", rule.probability),
        kept_fraction=interpolate(rule.kept_fraction, rng("kept_fraction").random(n)).tolist(),
        length_ratio=interpolate(rule.length_ratio, rng("length_ratio").random(n)).tolist(),
    )


def _conversations(prefix: PrefixTree, first_tokens: IntArray, output_tokens: IntArray, seed: int) -> _Turns:
    """Decide for each request whether it opens a conversation or continues one, and how long it then is."""
    n = len(first_tokens)
    draws, outputs = _draws(prefix, n, seed), output_tokens.tolist()
    waiting: list[_Turn] = []
    turns: list[tuple[int, int, int, int]] = []
    for i, tokens in enumerate(first_tokens.tolist()):
        if waiting and waiting[0].place <= i:
            turn = heapq.heappop(waiting)
        else:
            turn = _Turn(i, -1, 0, tokens, min(prefix.shared_blocks, tokens // prefix.block_tokens), n + i)
        output = outputs[turn.own if draws.own_output[i] else i]
        turns.append((turn.input_tokens, output, turn.parent, turn.shared))
        following = _next_turn(prefix, draws, i, turn, output)
        if following is not None:
            heapq.heappush(waiting, following)
    return _Turns(*np.array(turns, np.int64).T)


def _next_turn(prefix: PrefixTree, draws: _Draws, i: int, turn: _Turn, output_tokens: int) -> _Turn | None:
    """Return what follows request *i*, or None where its conversation ends."""
    tokens, history, block = turn.input_tokens, turn.history, prefix.block_tokens
    whole = tokens // block
    if whole <= prefix.shared_blocks or draws.continues[i] >= _continue_probability(prefix, turn):
        return None
    habit = turn.own if draws.own_habit[i] else i
    rewrites = draws.rewrites[turn.own if draws.own_rewrites[i] else i]
    if draws.resubmits[i]:
        length, shared = tokens, -(-tokens // block)
    elif rewrites and whole >= (prefix.rewrites or _NO_REWRITES).min_blocks:
        history = history or round(draws.kept_fraction[i] * whole) * block
        shared = min(max(history // block, prefix.shared_blocks + 1), whole - 1)
        length = max(round(draws.length_ratio[i] * tokens), shared * block + 1)
        history += output_tokens
    else:
        new_tokens = draws.new_tokens[min(turn.number, len(draws.new_tokens) - 1)]
        length, shared = tokens + output_tokens + new_tokens[habit], whole
    if length > prefix.max_input_tokens:
        return None
    return _Turn(i + draws.gap[habit], i, turn.number + 1, length, shared, turn.own, history)


def _continue_probability(prefix: PrefixTree, turn: _Turn) -> float:
    by_turn = prefix.continue_probability
    probability = by_turn[min(turn.number, len(by_turn) - 1)]
    if turn.number == 0 and prefix.continue_scale_tokens is not None:
        probability *= math.exp(-turn.input_tokens / prefix.continue_scale_tokens)
    return probability


def _block_ids(turns: _Turns, prefix: PrefixTree) -> tuple[IntArray, IntArray]:
    """Return (offsets, ids): shared blocks take the parent's ids, those of the system prompt are one text."""
    blocks = np.concatenate(([prefix.shared_blocks], -(-turns.input_tokens // prefix.block_tokens)))
    parent, shared = np.concatenate(([-1], turns.parent)) + 1, np.concatenate(([0], turns.shared))
    return block_ids(blocks, parent, shared, texts=1)
