"""Turns of InferenceX's closed-loop benchmarks: conversations (WildChat) and agentic coding sessions.

The files tell how much of a prompt is history, not its content. A turn here starts with the tokens of the turn before:
in conversations ``history_tokens``, in agentic sessions ``cached_blocks_64`` blocks, and the answer where there is room
for it. Left out: what a session held before its first turn in the file, and what the turn before had dropped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, NonNegativeInt, model_validator

from dynosim.workload.prefixes import block_ids, hashed_tokens
from dynosim.workload.readers.graph import arranged, turns_after
from dynosim.workload.readers.records import (
    MAX_TOKENS,
    InputTokens,
    OutputTokens,
    Seconds,
    answers,
    codes,
    each,
    in_range,
    optional,
    read_columns,
    token_counts,
    values,
)
from dynosim.workload.table import FloatArray, IntArray, Workload, numbered

CONVERSATION_BLOCK_TOKENS: Final = 16
"""Block of the vLLM servers that the conversations were sent to."""
AGENTIC_BLOCK_TOKENS: Final = 64


class ConversationLine(BaseModel):
    """What a line of conversations must say."""

    conversation: str
    turn: NonNegativeInt
    input_tokens: OutputTokens
    """Without the chat template; a prompt of none counts as one token."""
    output_tokens: OutputTokens
    history_tokens: NonNegativeInt

    @model_validator(mode="after")
    def _history_is_prompt(self) -> ConversationLine:
        if self.history_tokens > self.input_tokens:
            raise ValueError(f"history_tokens {self.history_tokens} is above input_tokens {self.input_tokens}")
        return self


class AgenticLine(BaseModel):
    """What a line of agentic sessions must say."""

    trace: str
    request_idx: NonNegativeInt
    input_tokens: InputTokens
    output_tokens_expected: OutputTokens
    cached_blocks_64: NonNegativeInt
    delay_s: Seconds

    @model_validator(mode="after")
    def _cached_is_prompt(self) -> AgenticLine:
        if self.cached_blocks_64 * AGENTIC_BLOCK_TOKENS > self.input_tokens:
            raise ValueError(f"cached_blocks_64 {self.cached_blocks_64} is above input_tokens {self.input_tokens} / 64")
        return self


def read_conversations(path: Path) -> Workload:
    """Return the turns of *path*, without times; raises InvalidTraceError."""
    columns = _read(path, "conversation", "turn", "input_tokens", "output_tokens", "history_tokens")
    told = values(columns["input_tokens"])
    in_range((told >= 0) & (told <= MAX_TOKENS))
    input_tokens, output_tokens = np.maximum(told, 1), answers(columns["output_tokens"])
    history = values(columns["history_tokens"])
    in_range((history >= 0) & (history <= told))
    session, after = _turns(columns["conversation"], columns["turn"], "turn")
    turn, before = after.T
    shared = np.minimum(history[turn], (input_tokens + output_tokens)[before]) // CONVERSATION_BLOCK_TOKENS
    delay_s = np.zeros(len(session))
    return _table(path.name, session, after, shared, delay_s, input_tokens, output_tokens, CONVERSATION_BLOCK_TOKENS)


def read_agentic(path: Path) -> Workload:
    """Return the turns of *path*, without times; raises InvalidTraceError."""
    columns = _read(
        path, "trace", "request_idx", "input_tokens", "output_tokens_expected", "cached_blocks_64", "delay_s"
    )
    input_tokens, output_tokens = token_counts(columns["input_tokens"], columns["output_tokens_expected"])
    cached, delay_s = values(columns["cached_blocks_64"]), optional(columns["delay_s"])
    in_range((cached >= 0) & (cached * AGENTIC_BLOCK_TOKENS <= input_tokens) & (delay_s >= 0) & np.isfinite(delay_s))
    session, after = _turns(columns["trace"], columns["request_idx"], "request_idx")
    turn, before = after.T
    whole = input_tokens[before] // AGENTIC_BLOCK_TOKENS
    spoken = (input_tokens + output_tokens)[before]
    repeats_answer = (cached[turn] >= whole) & (input_tokens[turn] >= spoken)
    shared = np.where(repeats_answer, spoken // AGENTIC_BLOCK_TOKENS, np.minimum(cached[turn], whole))
    waits = np.isin(np.arange(len(session)), turn)
    delay_s = np.where(waits, delay_s, 0.0)
    return _table(path.name, session, after, shared, delay_s, input_tokens, output_tokens, AGENTIC_BLOCK_TOKENS)


def _read(path: Path, session: str, *numbers: str) -> dict[str, Any]:
    import pyarrow as pa

    types = {name: pa.float64() if name == "delay_s" else pa.int64() for name in numbers}
    return read_columns(path, "csv", {session: pa.string(), **types})


def _turns(label: Any, position: Any, field: str) -> tuple[IntArray, IntArray]:
    """Return (session, pairs of turn and turn before) of turns numbered by *position*."""
    session, place = numbered(codes(label)), values(position)
    in_range(place >= 0)
    after = turns_after(session)
    risen = np.ones(len(session), bool)
    risen[after[:, 0]] = place[after[:, 0]] > place[after[:, 1]]
    each(risen, "is not above the session's turn in front of it", field)
    return session, after


def _table(
    name: str,
    session: IntArray,
    after: IntArray,
    shared_blocks: IntArray,
    delay_s: FloatArray,
    input_tokens: IntArray,
    output_tokens: IntArray,
    block_tokens: int,
) -> Workload:
    """Return turns that start with *shared_blocks* blocks (one number per pair) of the turn before."""
    parent, shared = np.zeros_like(session), np.zeros_like(session)
    parent[after[:, 0]], shared[after[:, 0]] = after[:, 1], shared_blocks
    covered = hashed_tokens(input_tokens, parent, shared, block_tokens)
    hash_offsets, hash_ids = block_ids(-(-covered // block_tokens), parent, shared)
    return arranged(
        np.full(len(session), np.nan),
        session,
        after,
        name=name,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        hash_block_tokens=block_tokens,
        hash_offsets=hash_offsets,
        hash_ids=hash_ids,
        hashed_tokens=covered,
        delay_s=delay_s,
    )
