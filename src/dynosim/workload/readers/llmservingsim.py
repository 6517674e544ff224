"""LLMServingSim JSONL: token ids of the prompts, so equal prefixes are known exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dynosim.workload.readers.graph import NO_PAIRS, arranged
from dynosim.workload.readers.records import (
    InputTokens,
    OutputTokens,
    in_range,
    lists,
    read_columns,
    token_counts,
    values,
)
from dynosim.workload.table import IntArray, Workload

BLOCK_TOKENS: Final = 16
"""Block of vLLM, whose logs belong to the traces."""


class Line(BaseModel):
    """What a line must say."""

    model_config = ConfigDict(strict=True)

    input_toks: InputTokens
    output_toks: OutputTokens
    arrival_time_ns: int = Field(ge=0)
    input_tok_ids: list[int]

    @model_validator(mode="after")
    def _one_id_per_token(self) -> Line:
        if len(self.input_tok_ids) != self.input_toks:
            raise ValueError(f"input_tok_ids has {len(self.input_tok_ids)} ids for input_toks {self.input_toks}")
        return self


def read(path: Path) -> Workload:
    """Return the requests of *path*; raises InvalidTraceError."""
    import pyarrow as pa

    integers = dict.fromkeys(("input_toks", "output_toks", "arrival_time_ns"), pa.int64())
    columns: dict[str, Any] = read_columns(path, "jsonl", {**integers, "input_tok_ids": pa.list_(pa.int64())})
    input_tokens, output_tokens = token_counts(columns["input_toks"], columns["output_toks"])
    time_ns, (offsets, tokens) = values(columns["arrival_time_ns"]), lists(columns["input_tok_ids"])
    in_range((time_ns >= 0) & (np.diff(offsets) == input_tokens))
    hash_offsets, hash_ids = hash_chain(offsets, tokens, BLOCK_TOKENS)
    return arranged(
        time_ns / 1e9,
        np.arange(len(time_ns)),
        NO_PAIRS,
        name=path.name,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        hash_block_tokens=BLOCK_TOKENS,
        hash_offsets=hash_offsets,
        hash_ids=hash_ids,
    )


def hash_chain(offsets: IntArray, tokens: IntArray, block_tokens: int) -> tuple[IntArray, IntArray]:
    """Return (offsets, ids) of the blocks of each row's tokens: equal where all tokens up to their end are equal."""
    lengths = np.diff(offsets)
    blocks = -(-lengths // block_tokens)
    starts = np.concatenate(([0], np.cumsum(blocks))).astype(np.int64)
    padded = np.full(starts[-1] * block_tokens, np.iinfo(np.int64).min)
    padded[np.repeat(starts[:-1] * block_tokens - offsets[:-1], lengths) + np.arange(len(tokens))] = tokens
    content = np.unique(padded.reshape(-1, block_tokens), axis=0, return_inverse=True)[1].reshape(-1)
    ids, before, known = np.empty(len(content), np.int64), np.zeros(len(lengths), np.int64), 0
    for place in range(int(blocks.max(initial=0))):
        rows = np.flatnonzero(blocks > place)
        chain = before[rows] * len(content) + content[starts[rows] + place]
        number = np.unique(chain, return_inverse=True)[1] + known
        ids[starts[rows] + place] = before[rows] = number
        known = int(number.max()) + 1
    return starts, ids
