"""The request table: one workload as a struct of arrays, ready for the simulator."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
_DEFAULT: NDArray[Any] = np.zeros(0)
"""Stands for a column that was not given."""


def _unset() -> NDArray[Any]:
    return _DEFAULT


def take_ragged(offsets: IntArray, values: IntArray, rows: IntArray) -> tuple[IntArray, IntArray]:
    """Return (offsets, values) of the given rows of a ragged array, in the order of *rows*."""
    lengths = np.diff(offsets)[rows]
    taken = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    source = np.repeat(offsets[:-1][rows] - taken[:-1], lengths) + np.arange(taken[-1])
    return taken, values[source]


def ragged(rows: IntArray, values: IntArray, n: int) -> tuple[IntArray, IntArray]:
    """Return (offsets, values) of *n* rows from pairs (row, value); within a row the pairs keep their order."""
    offsets = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=n)))).astype(np.int64)
    return offsets, values[np.argsort(rows, kind="stable")]


def numbered(labels: NDArray[Any]) -> IntArray:
    """Return labels as numbers from 0 in order of first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


@dataclass(frozen=True, eq=False)
class Workload:
    """Requests in order of arrival; what a request waits for stands before it.

    Request *i* has the block ids ``hash_ids[hash_offsets[i]:hash_offsets[i + 1]]``: one id per ``hash_block_tokens`` of
    its first ``hashed_tokens[i]`` tokens, the last block partial. Equal ids mean equal tokens up to and including that
    block (Mooncake's definition). Ids are dense, from 0. Without block ids ``hash_block_tokens`` is 0 and nothing is
    shared.
    """

    name: str
    arrival_s: FloatArray
    """Shape (n,), seconds, not decreasing, starting at or after 0. All zero in a closed loop."""
    input_tokens: IntArray
    """Shape (n,), at least 1."""
    output_tokens: IntArray
    """Shape (n,), at least 1."""
    hash_block_tokens: int = 0
    hash_offsets: IntArray = field(default_factory=_unset)
    """Shape (n + 1,). Default: no ids."""
    hash_ids: IntArray = field(default_factory=_unset)
    """Shape (hash_offsets[-1],)."""
    concurrency: int | None = None
    """Closed loop: sessions kept in flight (a plain request is a session of its own); None is an open loop at
    ``arrival_s``."""
    warmup_requests: int = 0
    """Number of first requests that are left out of all metrics."""
    hashed_tokens: IntArray = field(default_factory=_unset)
    """Shape (n,): tokens of prompt and answer that the block ids cover, at least the prompt where there are ids. More
    than the prompt where a later turn repeats the answer. Default: ``input_tokens``."""
    session: IntArray = field(default_factory=_unset)
    """Shape (n,): number of the request's session, dense, in order of first request. Default: each its own."""
    after_offsets: IntArray = field(default_factory=_unset)
    """Shape (n + 1,): request *i* is sent ``delay_s[i]`` after the last of ``after_ids[after_offsets[i]:after_offsets[i
    + 1]]`` has ended; all of them are earlier rows of its session. One that waits for none is a root: it arrives at
    ``arrival_s`` (open loop) or when a client takes up its session (closed loop). Default: all are roots."""
    after_ids: IntArray = field(default_factory=_unset)
    delay_s: FloatArray = field(default_factory=_unset)
    """Shape (n,): think or tool time before a request that waits for others. Default: 0."""
    priority: IntArray = field(default_factory=_unset)
    """Shape (n,): lower is more urgent (vLLM's order). Default: 0."""
    deadline_s: FloatArray = field(default_factory=_unset)
    """Shape (n,): wanted time to first token, seconds after arrival; inf for none. Default: inf."""
    end_s: float = math.inf
    """Virtual time at which the run stops, whatever is still in flight."""
    timed: bool = True
    """Whether ``arrival_s`` means something; False for a source of lengths alone, before a load gives it times."""

    def __post_init__(self) -> None:
        n = len(self.arrival_s)
        defaults = {
            "hash_offsets": np.zeros(n + 1, np.int64),
            "hash_ids": np.zeros(0, np.int64),
            "hashed_tokens": self.input_tokens,
            "session": np.arange(n),
            "after_offsets": np.zeros(n + 1, np.int64),
            "after_ids": np.zeros(0, np.int64),
            "delay_s": np.zeros(n),
            "priority": np.zeros(n, np.int64),
            "deadline_s": np.full(n, math.inf),
        }
        for name, value in defaults.items():
            if getattr(self, name) is _DEFAULT:
                object.__setattr__(self, name, value)

    def checked(self) -> Workload:
        """Return the table with every column an array of its type; ValueError, in one line, where it is none."""
        n = len(self.arrival_s)
        if n == 0:
            raise ValueError("the workload has no requests")
        types = {name: np.float64 if name.endswith("_s") else np.int64 for name in (*_COLUMNS, *_RAGGED)}
        columns: dict[str, Any] = {name: np.asarray(getattr(self, name), kind) for name, kind in types.items()}
        table = replace(self, **columns)
        lengths = dict.fromkeys(_COLUMNS, n) | {"hash_offsets": n + 1, "after_offsets": n + 1}
        for name, length in lengths.items():
            if getattr(table, name).shape != (length,):
                raise ValueError(f"{name}: shape {getattr(table, name).shape}: allowed: ({length},)")
        for name, holds in _laws(table).items():
            if not holds:
                raise ValueError(f"{name} of the workload: see dynosim.workload.table.Workload for what it must be")
        return table

    def __len__(self) -> int:
        return len(self.arrival_s)

    def head(self, n: int) -> Workload:
        """Return the first *n* requests; the last session may end early."""
        return self.take(np.arange(min(n, len(self))))

    def take(self, rows: IntArray) -> Workload:
        """Return the requests *rows* in that order; what they wait for must be among them, and before them."""
        place = np.zeros(len(self), np.int64)
        place[rows] = np.arange(len(rows))
        hash_offsets, hash_ids = take_ragged(self.hash_offsets, self.hash_ids, rows)
        after_offsets, after_ids = take_ragged(self.after_offsets, self.after_ids, rows)
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in _COLUMNS}
        columns["session"] = numbered(columns["session"])
        return replace(
            self,
            **columns,
            hash_offsets=hash_offsets,
            hash_ids=hash_ids,
            after_offsets=after_offsets,
            after_ids=place[after_ids],
        )

    def answering(self, output_tokens: IntArray) -> Workload:
        """Return the same prompts with answers of *output_tokens* (``n``); block ids beyond them are dropped."""
        hashed = np.minimum(self.hashed_tokens, self.input_tokens + output_tokens)
        counts, lengths = -(-hashed // max(self.hash_block_tokens, 1)), np.diff(self.hash_offsets)
        place = np.arange(len(self.hash_ids)) - np.repeat(self.hash_offsets[:-1], lengths)
        kept = place < np.repeat(counts, lengths)
        offsets = np.concatenate(([0], np.cumsum(np.minimum(counts, lengths)))).astype(np.int64)
        ids = numbered(self.hash_ids[kept])
        return replace(self, output_tokens=output_tokens, hashed_tokens=hashed, hash_offsets=offsets, hash_ids=ids)

    def unshared(self) -> Workload:
        """Return the same requests without block ids: nothing is shared."""
        none = _DEFAULT
        return replace(self, hash_block_tokens=0, hash_offsets=none, hash_ids=none, hashed_tokens=none)

    def content_hash(self) -> str:
        """First 16 hex digits of the SHA-256 of everything the simulator sees."""
        digest = hashlib.sha256()
        for name in (*_COLUMNS, *_RAGGED):
            digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        digest.update(f"{self.hash_block_tokens} {self.concurrency} {self.warmup_requests} {self.end_s}".encode())
        return digest.hexdigest()[:16]


_COLUMNS: Final = (
    "arrival_s",
    "input_tokens",
    "output_tokens",
    "hashed_tokens",
    "session",
    "delay_s",
    "priority",
    "deadline_s",
)
"""What has one value per request."""
_RAGGED: Final = ("hash_offsets", "hash_ids", "after_offsets", "after_ids")


def _offsets(offsets: IntArray, values: IntArray) -> bool:
    return bool(offsets[0] == 0 and (np.diff(offsets) >= 0).all() and offsets[-1] == len(values))


def _laws(table: Workload) -> dict[str, bool]:
    """Return column -> whether its values are possible."""
    owner = np.repeat(np.arange(len(table)), np.diff(table.after_offsets).clip(0))
    waits = _offsets(table.after_offsets, table.after_ids)
    waits = waits and bool(((table.after_ids >= 0) & (table.after_ids < owner)).all())
    return {
        "arrival_s": bool(np.isfinite(table.arrival_s).all() and (np.diff(table.arrival_s, prepend=0.0) >= 0.0).all()),
        "input_tokens": bool((table.input_tokens >= 1).all()),
        "output_tokens": bool((table.output_tokens >= 1).all()),
        "hash_offsets": _offsets(table.hash_offsets, table.hash_ids),
        "session": bool((numbered(table.session) == table.session).all()),
        "after_ids": waits and bool((table.session[owner] == table.session[table.after_ids]).all()),
        "delay_s": bool(np.isfinite(table.delay_s).all() and (table.delay_s >= 0.0).all()),
        "deadline_s": bool((table.deadline_s > 0.0).all()),
    }
