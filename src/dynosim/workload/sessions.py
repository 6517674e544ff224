"""Synthetic sessions: turns that wait for each other, parallel calls between them, texts that groups share.

Sessions grow turn by turn, all of them at once. Each turn draws from streams of its own, session by session, so more
sessions begin with the same ones. Left out: turns that rewrite their history.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynosim.config import (
    Delay,
    ExponentialDelay,
    FanOut,
    FixedDelay,
    LognormalDelay,
    PrefixGroups,
    QuantileDelay,
    Sessions,
    SyntheticSource,
)
from dynosim.rng import stream
from dynosim.workload import arrivals
from dynosim.workload.lengths import interpolate, sample_lengths
from dynosim.workload.prefixes import block_ids, hashed_tokens
from dynosim.workload.table import FloatArray, IntArray, Workload, ragged


def generate_sessions(source: SyntheticSource, rule: Sessions, seed: int, name: str) -> Workload:
    """Return ``source.requests`` requests, session by session in order of their start."""
    n = source.requests
    turns = np.minimum(sample_lengths(rule.turns, n, stream(seed, "workload.sessions.turns")), n)
    count = int(np.searchsorted(np.cumsum(turns), n)) + 1
    grower = _grow(source, rule, turns[:count], seed)
    while grower.made - len(grower.texts) < n:  # max_input_tokens ended sessions early
        count *= 2
        grower = _grow(source, rule, turns[:count], seed)
    starts_s = np.zeros(grower.sessions)
    if source.arrivals is not None:
        starts_s = arrivals.of_source(source.arrivals, grower.sessions, stream(seed, "workload.arrivals"))
    return _table(grower, n, name, starts_s, timed=source.arrivals is not None)


def sample_delays(delay: Delay, n: int, rng: np.random.Generator) -> FloatArray:
    """Return *n* times in s."""
    match delay:
        case FixedDelay(seconds=seconds):
            return np.full(n, seconds)
        case ExponentialDelay(mean_s=mean_s):
            return rng.exponential(mean_s, n)
        case LognormalDelay():
            return np.minimum(delay.median_s * np.exp(delay.sigma * rng.standard_normal(n)), delay.max_s)
        case QuantileDelay(quantiles=quantiles):
            return interpolate(quantiles, rng.random(n))


class _Turns(NamedTuple):
    """The latest turns of the sessions that go on."""

    session: IntArray
    row: IntArray
    input_tokens: IntArray
    output_tokens: IntArray

    def of(self, which: NDArray[Any]) -> _Turns:
        return _Turns._make(column[which] for column in self)


class _Rows(NamedTuple):
    """Requests in order of making."""

    session: IntArray
    place: IntArray
    """Order within the session."""
    input_tokens: IntArray
    output_tokens: IntArray
    parent: IntArray
    """Row whose prompt and answer, or text, the prompt starts with."""
    shared_blocks: IntArray
    delay_s: FloatArray


class _Grower:
    """Makes requests and remembers them. Rows count from the texts of the groups, which are the first."""

    def __init__(self, rule: Sessions, seed: int, sessions: int) -> None:
        self.rule, self.seed, self.sessions = rule, seed, sessions
        self.texts = _texts(rule.groups, seed)
        self.made = len(self.texts)
        self.steps: list[_Rows] = []
        self.after: list[IntArray] = []
        """Of shape (pairs, 2): a row and one that it waits for."""

    def rng(self, kind: str, turn: int) -> np.random.Generator:
        return stream(self.seed, f"workload.sessions.{kind}.{turn}")

    def add(self, place: int, turns: _Turns, parent: IntArray, shared_tokens: IntArray, delay_s: FloatArray) -> _Turns:
        """Add requests to *turns* of sessions; returns them with the numbers of their rows."""
        session, _, input_tokens, output_tokens = turns
        places, shared_blocks = np.full(len(session), place), shared_tokens // self.rule.block_tokens
        self.steps.append(_Rows(session, places, input_tokens, output_tokens, parent, shared_blocks, delay_s))
        self.made += len(session)
        return turns._replace(row=np.arange(self.made - len(session), self.made))

    def wait(self, rows: IntArray, before: IntArray) -> None:
        self.after.append(np.column_stack((rows, before)))


def _grow(source: SyntheticSource, rule: Sessions, turns: IntArray, seed: int) -> _Grower:
    grower = _Grower(rule, seed, len(turns))
    own = sample_lengths(source.output_tokens, len(turns), grower.rng("own_output", 0))
    latest = _first_turns(grower, source, own)
    for turn in range(1, int(turns.max())):
        latest = latest.of(turns[latest.session] > turn)
        if not len(latest.session):
            break
        latest = _next_turns(grower, source, latest, own, turn)
    return grower


def _first_turns(grower: _Grower, source: SyntheticSource, own: IntArray) -> _Turns:
    n = grower.sessions
    sessions, none = np.arange(n), np.empty(0, np.int64)
    new = sample_lengths(source.input_tokens, n, stream(grower.seed, "workload.input_tokens"))
    text, shared = _groups(grower, n)
    turns = _Turns(sessions, none, shared + new, _outputs(grower, source, sessions, own, 0))
    return grower.add(0, turns, text, shared, np.zeros(n))


def _next_turns(grower: _Grower, source: SyntheticSource, before: _Turns, own: IntArray, turn: int) -> _Turns:
    """Add the calls between the turns *before* and the next, and the next; return these."""
    rule, n = grower.rule, len(before.session)
    new_tokens = rule.new_tokens[min(turn, len(rule.new_tokens)) - 1]
    new = sample_lengths(new_tokens, n, grower.rng("new_tokens", turn))
    output_tokens = _outputs(grower, source, before.session, own, turn)
    delay_s = sample_delays(rule.think_s, n, grower.rng("think_s", turn))
    calls = _calls(grower, rule.fan_out, n, turn, source.requests)
    history = before.input_tokens + before.output_tokens
    input_tokens = history + np.bincount(calls.caller, calls.output_tokens, n).astype(np.int64) + new
    fits = input_tokens <= rule.max_input_tokens
    calls = _Calls._make(column[fits[calls.caller]] for column in calls)
    call_rows = _add_calls(grower, before, calls, turn)
    made = _Turns(before.session, before.row, input_tokens, output_tokens).of(fits)
    made = grower.add(2 * turn, made, made.row, history[fits], delay_s[fits])
    alone = np.bincount(calls.caller, minlength=n)[fits] == 0
    grower.wait(made.row[alone], before.row[fits][alone])
    grower.wait(made.row[(np.cumsum(fits) - 1)[calls.caller]], call_rows)
    return made


class _Calls(NamedTuple):
    caller: IntArray
    """Index of the turn before, among those that go on."""
    new_tokens: IntArray
    output_tokens: IntArray
    delay_s: FloatArray


def _calls(grower: _Grower, rule: FanOut | None, n: int, turn: int, most: int) -> _Calls:
    if rule is None:
        none = np.empty(0, np.int64)
        return _Calls(none, none, none, np.empty(0))
    fans = grower.rng("fans", turn).random(n) < rule.probability
    calls = np.where(fans, np.minimum(sample_lengths(rule.calls, n, grower.rng("calls", turn)), most), 0)
    calls = np.clip(most - (np.cumsum(calls) - calls), 0, calls)  # calls beyond *most* are not in the table
    caller = np.repeat(np.arange(n), calls)
    return _Calls(
        caller,
        sample_lengths(rule.new_tokens, len(caller), grower.rng("call_new_tokens", turn)),
        sample_lengths(rule.output_tokens, len(caller), grower.rng("call_output_tokens", turn)),
        sample_delays(rule.delay_s, len(caller), grower.rng("call_delay_s", turn)),
    )


def _add_calls(grower: _Grower, before: _Turns, calls: _Calls, turn: int) -> IntArray:
    """Add the calls of turns *before*; return their rows."""
    callers = before.of(calls.caller)
    shared = callers.input_tokens + callers.output_tokens
    if grower.rule.fan_out is None or not grower.rule.fan_out.shares_context:
        shared = np.zeros_like(shared)
    requests = _Turns(callers.session, callers.row, shared + calls.new_tokens, calls.output_tokens)
    rows = grower.add(2 * turn - 1, requests, callers.row, shared, calls.delay_s).row
    grower.wait(rows, callers.row)
    return rows


def _outputs(grower: _Grower, source: SyntheticSource, session: IntArray, own: IntArray, turn: int) -> IntArray:
    fresh = sample_lengths(source.output_tokens, len(session), grower.rng("output_tokens", turn))
    owned = grower.rng("owns_output", turn).random(len(session)) < grower.rule.output_persistence
    return np.where(owned, own[session], fresh)


def _texts(groups: PrefixGroups | None, seed: int) -> IntArray:
    if groups is None:
        return np.empty(0, np.int64)
    return sample_lengths(groups.prefix_tokens, groups.groups, stream(seed, "workload.sessions.texts"))


def _groups(grower: _Grower, n: int) -> tuple[IntArray, IntArray]:
    """Return each session's text and the tokens of it."""
    groups = grower.rule.groups
    if groups is None:
        return np.zeros(n, np.int64), np.zeros(n, np.int64)
    weight = np.cumsum((1.0 + np.arange(groups.groups)) ** -groups.skew)
    text = np.searchsorted(weight / weight[-1], grower.rng("groups", 0).random(n), side="right")
    return text, grower.texts[text]


def _table(grower: _Grower, n: int, name: str, starts_s: FloatArray, timed: bool) -> Workload:
    """Return the first *n* requests, session by session."""
    texts, block_tokens = len(grower.texts), grower.rule.block_tokens
    made = _Rows._make(np.concatenate(column) for column in zip(*grower.steps, strict=True))
    order = np.lexsort((made.place, made.session))[:n]
    rows = _Rows._make(column[order] for column in made)
    number = np.full(grower.made, -1)
    number[:texts], number[texts + order] = np.arange(texts), texts + np.arange(n)
    parent = np.concatenate((np.zeros(texts, np.int64), number[rows.parent]))
    shared_blocks = np.concatenate((np.zeros(texts, np.int64), rows.shared_blocks))
    covered = np.concatenate((grower.texts, rows.input_tokens))
    covered = hashed_tokens(covered, parent, shared_blocks, block_tokens)
    hash_offsets, hash_ids = block_ids(-(-covered // block_tokens), parent, shared_blocks, texts)
    after = number[np.concatenate((np.empty((0, 2), np.int64), *grower.after))] - texts
    after = after[after[:, 0] >= 0]
    after_offsets, after_ids = ragged(after[:, 0], after[:, 1], n)
    return Workload(
        name=name,
        arrival_s=starts_s[rows.session],
        input_tokens=rows.input_tokens,
        output_tokens=rows.output_tokens,
        hash_block_tokens=block_tokens,
        hash_offsets=hash_offsets,
        hash_ids=hash_ids,
        hashed_tokens=covered[texts:],
        session=rows.session,
        after_offsets=after_offsets,
        after_ids=after_ids,
        delay_s=rows.delay_s,
        timed=timed,
    )
