"""Make the scenarios of tests/conformance/vllm: small, each about one rule of the scheduler, or several together.

    python benchmarks/conformance/scenarios_vllm.py [NAME ...]                    # those without a trace
    python benchmarks/conformance/scenarios_vllm.py --traces FOLDER [NAME ...]    # slices of public traces too

What was recorded of a scenario is lost: record again after this. ``mixed_N`` is drawn for any number N; to hunt for
differences, make and record hundreds of them elsewhere (``CONFORMANCE=/tmp/hunt``; see ``fixtures``).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fixtures
import numpy as np

FIXED = {"type": "fixed", "prefill_ms_per_token": 0.10037, "decode_ms": 19.93713}
POLYNOMIAL = {"type": "polynomial"}
Columns = dict[str, Any]
Draw = Callable[[np.random.Generator], Columns]


@dataclass(frozen=True)
class Scenario:
    """One scenario: the pool's fields beside a default of 16 seats, 1,024 tokens and room for all, and its requests."""

    about: str
    workload: Draw
    pool: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, Any] = field(default_factory=lambda: FIXED)

    def content(self, name: str) -> dict[str, Any]:
        """Return the file's content, without recorded results; the generator's seed is the name."""
        pool = {"max_num_seqs": 16, "max_num_batched_tokens": 1024, "num_gpu_blocks_override": 4000} | self.pool
        deployment = {
            "model": "llama-3.1-8b",
            "gpu": "h200_sxm",
            "engine": {"name": "vllm"},
            "timing": self.timing,
            "aggregated": pool,
        }
        columns = self.workload(np.random.default_rng(list(name.encode())))
        workload = {
            key: column.tolist() if isinstance(column, np.ndarray) else column for key, column in columns.items()
        }
        return {"about": self.about, "deployment": deployment, "workload": workload, "recorded": {}}


def _arrivals(rng: np.random.Generator, n: int, rate: float) -> Any:
    """Return *n* arrivals at *rate* per second on microseconds, all at once for an infinite rate."""
    return np.zeros(n) if rate == np.inf else np.round(rng.exponential(1.0 / rate, n).cumsum(), 6)


def plain(
    n: int,
    rate: float,
    inputs: tuple[int, int],
    outputs: tuple[int, int],
    *,
    priorities: int = 1,
    batch: int = 1,
    multiple: int = 1,
) -> Draw:
    """Requests of uniform lengths, *batch* of them at a time, prompts in multiples of *multiple*, without block ids."""

    def draw(rng: np.random.Generator) -> Columns:
        columns: Columns = {"arrival_s": np.repeat(_arrivals(rng, n // batch, rate / batch), batch)}
        columns["input_tokens"] = rng.integers(inputs[0], inputs[1] + 1, n) * multiple
        columns["output_tokens"] = rng.integers(outputs[0], outputs[1] + 1, n)
        return columns | ({"priority": rng.integers(0, priorities, n)} if priorities > 1 else {})

    return draw


def _with_ids(columns: Columns, block: int, prompts: list[list[int]]) -> Columns:
    """Add block ids, numbered from 0 in order of their first use."""
    offsets = np.concatenate(([0], np.cumsum([len(ids) for ids in prompts])))
    dense: dict[int, int] = {}
    flat = [dense.setdefault(int(i), len(dense)) for ids in prompts for i in ids]
    return columns | {"hash_block_tokens": block, "hash_offsets": offsets, "hash_ids": flat}


def shared(
    n: int,
    rate: float,
    groups: int,
    prefix: int,
    tail: tuple[int, int],
    outputs: tuple[int, int],
    *,
    block: int = 16,
    priorities: int = 1,
) -> Draw:
    """Requests that begin with one of *groups* system prompts of *prefix* blocks."""

    def draw(rng: np.random.Generator) -> Columns:
        columns = plain(n, rate, tail, outputs, priorities=priorities)(rng)
        group, fresh, prompts = rng.integers(0, groups, n), groups * prefix, []
        for g, own in zip(group, columns["input_tokens"], strict=True):
            new = -(-int(own) // block)
            prompts.append([*range(g * prefix, (g + 1) * prefix), *range(fresh, fresh + new)])
            fresh += new
        columns["input_tokens"] = columns["input_tokens"] + prefix * block
        return _with_ids(columns, block, prompts)

    return draw


def repeats(
    n: int, rate: float, lengths: list[int], outputs: tuple[int, int], *, texts: int = 1, block: int = 16
) -> Draw:
    """Requests that are heads of a few texts, of the given lengths: many hit in full."""

    def draw(rng: np.random.Generator) -> Columns:
        columns = plain(n, rate, (1, 1), outputs)(rng) | {"input_tokens": rng.choice(lengths, n)}
        text, longest = rng.integers(0, texts, n), max(lengths)
        pairs = zip(text, columns["input_tokens"], strict=True)
        return _with_ids(columns, block, [[t * longest + b for b in range(-(-k // block))] for t, k in pairs])

    return draw


def _conversation(s: int, tokens: int, block: int) -> list[int]:
    """Return the block ids of the first *tokens* tokens of conversation *s*."""
    return [s * 1_000_000 + b for b in range(-(-tokens // block))]


def turns(
    sessions: int,
    count: int,
    rate: float,
    new: tuple[int, int],
    outputs: tuple[int, int],
    *,
    block: int = 16,
    concurrency: int | None = None,
    linked: bool = True,
) -> Draw:
    """Conversations of *count* turns, each of which repeats all before it, the answers too.

    A turn waits for the one before, or where they are not linked comes when it comes, be that before the answer's end.
    """

    def draw(rng: np.random.Generator) -> Columns:
        starts = np.zeros(sessions) if concurrency else _arrivals(rng, sessions, rate)
        rows = []
        for s in range(sessions):
            time, length = starts[s], 0
            for k in range(count):
                prompt = length + int(rng.integers(new[0], new[1] + 1))
                length = prompt + int(rng.integers(outputs[0], outputs[1] + 1))
                rows.append((round(time, 6), s, k, prompt, length))
                time += rng.exponential(0.4)
        columns = _session_columns(rng, rows, block, linked)
        return columns | ({"concurrency": concurrency} if concurrency else {})

    return draw


def _session_columns(
    rng: np.random.Generator, rows: list[tuple[float, int, int, int, int]], block: int, linked: bool
) -> Columns:
    """Return the columns of rows (time, session, turn, prompt, prompt and answer), by arrival or by session."""
    if not linked:
        rows = sorted(rows)
    n, place = len(rows), {(s, k): i for i, (_, s, k, _, _) in enumerate(rows)}
    columns: Columns = {
        "input_tokens": [prompt for _, _, _, prompt, _ in rows],
        "output_tokens": [length - prompt for _, _, _, prompt, length in rows],
        "hashed_tokens": [length for *_, length in rows],
    }
    if linked:
        start = {s: time for time, s, k, _, _ in rows if k == 0}
        order = np.cumsum([k == 0 for _, _, k, _, _ in rows]) - 1
        columns |= {"arrival_s": [start[s] for _, s, *_ in rows], "session": order}
        columns["after_offsets"] = np.concatenate(([0], np.cumsum([k > 0 for _, _, k, _, _ in rows])))
        columns["after_ids"] = [place[s, k - 1] for _, s, k, _, _ in rows if k > 0]
        columns["delay_s"] = np.round(rng.exponential(0.3, n), 6)
    else:
        columns["arrival_s"] = [time for time, *_ in rows]
    return _with_ids(columns, block, [_conversation(s, length, block) for _, s, _, _, length in rows])


def mooncake(file: str, first: int, n: int, speedup: float, longest: int) -> Draw:
    """Return *n* rows of a Mooncake trace with prompts up to *longest* tokens, *speedup* times as fast."""

    def draw(rng: np.random.Generator) -> Columns:
        rows = [json.loads(line) for line in _lines(file)]
        rows = [row for row in rows[first:] if row["input_length"] <= longest][:n]
        since = rows[0]["timestamp"]
        columns = {
            "arrival_s": [round((row["timestamp"] - since) / 1e3 / speedup, 6) for row in rows],
            "input_tokens": [row["input_length"] for row in rows],
            "output_tokens": [row["output_length"] for row in rows],
        }
        return _with_ids(columns, 512, [row["hash_ids"] for row in rows])

    return draw


def azure(file: str, first: int, n: int, speedup: float) -> Draw:
    """Return *n* rows of an Azure trace of 2023, *speedup* times as fast."""

    def draw(rng: np.random.Generator) -> Columns:
        rows = list(csv.DictReader(_lines(file)))[first : first + n]
        times = np.array([np.datetime64(row["TIMESTAMP"].replace(" ", "T")) for row in rows])
        return {
            "arrival_s": np.round((times - times[0]) / np.timedelta64(1, "s") / speedup, 6),
            "input_tokens": [int(row["ContextTokens"]) for row in rows],
            "output_tokens": [int(row["GeneratedTokens"]) for row in rows],
        }

    return draw


def wildchat(file: str, first: int, n: int, concurrency: int) -> Draw:
    """Return at most *n* turns of whole conversations, from conversation *first* on, by clients in a closed loop."""

    def draw(rng: np.random.Generator) -> Columns:
        rows: dict[int, list[tuple[float, int, int, int, int]]] = {}
        for row in csv.DictReader(_lines(file)):
            s, k, prompt = int(row["conversation"]), int(row["turn"]), int(row["input_tokens"])
            rows.setdefault(s, []).append((0.0, s, k, prompt, prompt + int(row["output_tokens"])))
        found: list[tuple[float, int, int, int, int]] = []
        for s in range(first, first + n):
            if len(found) + len(rows[s]) <= n and rows[s][0][3] > 0:
                found += rows[s]
        return _session_columns(rng, found, 128, linked=True) | {"concurrency": concurrency}

    return draw


def _lines(file: str) -> list[str]:
    if TRACES is None:
        raise SystemExit("slices of traces need --traces FOLDER")
    return gzip.decompress((TRACES / file).read_bytes()).decode().splitlines()


TRACES: Path | None = None


def mixed(seed: int) -> Scenario:
    """A scenario in which everything is drawn."""
    rng = np.random.default_rng([seed, 17])

    def of(*options: Any) -> Any:
        return options[int(rng.integers(len(options)))]

    block, seats = of(16, 16, 32, 64), of(3, 8, 16, 40)
    budget = max(of(96, 256, 700, 2048), seats)
    rate, inputs, outputs = of(8.0, 25.0, 90.0, np.inf), of((5, 300), (50, 700)), of((1, 4), (1, 60), (30, 150))
    priorities = of(1, 3)
    pool = {
        "max_num_seqs": seats,
        "max_num_batched_tokens": budget,
        "block_size": block,
        "num_gpu_blocks_override": 1 + -(-1000 // block) + of(0, 300, 1500, 6000) // block,
        "scheduling_policy": "fcfs" if priorities == 1 else "priority",
        "scheduler_reserve_full_isl": of(True, False),
        "enable_prefix_caching": of(True, True, True, False),
        **of({}, {}, {"long_prefill_token_threshold": 64}, LONG_ADAPTIVE),
        "watermark": of(0.0, 0.0, 0.1),
        **of({}, {}, {"max_num_active_seqs": max(seats // 2, 1)}),
    }
    workload = of(
        plain(50, rate, inputs, outputs, priorities=priorities, batch=of(1, 5)),
        shared(50, rate, of(2, 6), of(3, 14), (1, 200), outputs, block=of(16, 48), priorities=priorities),
        turns(14, 4, 5.0, (5, 80), (2, 60), block=of(16, 40), linked=of(True, False)),
    )
    about = "everything at once, drawn with seed " + str(seed)
    return Scenario(
        about, workload, {key: value for key, value in pool.items() if value is not None}, of(FIXED, POLYNOMIAL)
    )


LONG_ADAPTIVE = {"long_prefill_token_threshold": 64, "long_prefill_token_threshold_adaptive": True}
PRIORITY = {"scheduling_policy": "priority"}
TINY_KV = {"num_gpu_blocks_override": 80}
NO_ISL = TINY_KV | {"scheduler_reserve_full_isl": False}
CONVERSATION, SYNTHETIC = "mooncake_conversation_trace.jsonl.gz", "mooncake_synthetic_trace.jsonl.gz"
AZURE_CONV, AZURE_CODE = "AzureLLMInferenceTrace_conv_2023.csv.gz", "AzureLLMInferenceTrace_code_2023.csv.gz"
WILDCHAT = "inferencex_multiturn_wildchat_turns.csv.gz"
SERVER = {"max_num_seqs": 64, "max_num_batched_tokens": 2048}
MIXED = (*range(1, 13), 106, 126, 138, 141, 162, 197, 226, 246, 275, 295, 380, 412, 546, 548, 560, 623)
"""Twelve, and those of 600 more that are decided by what few others meet: which of two equals is preempted; that a
request preempted by its own need ends the step; that one whose last token is in flight can be preempted too; that
blocks stay cached whose request is preempted in the step that was to compute them; that equal blocks are cached twice
and found in the order in which they were hashed; that the head of the queue may fit because an arrival shortens its
chunk, or because the answer that it repeats is being computed.
"""
SCENARIOS: dict[str, Scenario] = {
    "light": Scenario("few requests at a time", plain(40, 4.0, (10, 400), (1, 60))),
    "single_file": Scenario("one seat", plain(30, 6.0, (1, 300), (1, 30)), {"max_num_seqs": 1}),
    "burst": Scenario("all at once", plain(60, np.inf, (5, 400), (1, 50)), {"max_num_seqs": 64}, POLYNOMIAL),
    "bursts": Scenario("ten at a time", plain(60, 12.0, (5, 300), (1, 40), batch=10), {"max_num_seqs": 8}),
    "seats": Scenario("the batch is full", plain(60, 40.0, (5, 200), (5, 60)), {"max_num_seqs": 8}),
    "seats_polynomial": Scenario(
        "the batch is full, and longer contexts take longer", plain(60, 60.0, (5, 600), (5, 60)),
        {"max_num_seqs": 12}, POLYNOMIAL,
    ),
    "active_seqs": Scenario(
        "fewer seats are used than there are", plain(60, 40.0, (5, 200), (5, 60)), {"max_num_active_seqs": 5}
    ),
    "short_answers": Scenario(
        "answers of one to three tokens, and no seat to spare", plain(80, 60.0, (5, 300), (1, 3)), {"max_num_seqs": 4}
    ),
    "short_answers_chunked": Scenario(
        "answers of one to three tokens behind prompts of several passes", plain(60, 30.0, (5, 900), (1, 3)),
        {"max_num_seqs": 2, "max_num_batched_tokens": 256}, POLYNOMIAL,
    ),
    "prefill_only": Scenario(
        "a pool that only prefills: one token each", plain(80, 30.0, (10, 2000), (1, 1)), {}, POLYNOMIAL
    ),
    "prefill_only_prefix": Scenario(
        "a pool that only prefills, with system prompts and little room", shared(80, 30.0, 8, 30, (1, 600), (1, 1)),
        {"num_gpu_blocks_override": 150},
    ),
    "prefill_only_tight": Scenario(
        "a pool that only prefills, one or two prompts at a time", plain(60, 20.0, (10, 1000), (1, 1)),
        TINY_KV | {"max_num_batched_tokens": 300},
    ),
    "token_budget": Scenario(
        "prompts of several passes", plain(30, 6.0, (100, 3000), (1, 40)), {"max_num_batched_tokens": 512}, POLYNOMIAL
    ),
    "token_budget_decodes": Scenario(
        "decodes leave little of the budget", plain(80, 60.0, (1, 200), (20, 80)),
        {"max_num_seqs": 48, "max_num_batched_tokens": 64},
    ),
    "token_budget_exact": Scenario(
        "prompts in multiples of the budget", plain(40, 8.0, (1, 6), (1, 20), multiple=256),
        {"max_num_batched_tokens": 256},
    ),
    "chunking_off": Scenario(
        "whole prompts only", plain(50, 15.0, (50, 1500), (1, 60)),
        {"enable_chunked_prefill": False, "max_num_batched_tokens": 2048}, POLYNOMIAL,
    ),
    "chunking_off_pressure": Scenario(
        "whole prompts only, and preemptions", plain(50, 30.0, (20, 400), (20, 120)),
        TINY_KV | {"enable_chunked_prefill": False, "max_num_batched_tokens": 640},
    ),
    "long_prefill": Scenario(
        "long prompts advance 256 tokens a pass", plain(50, 6.0, (20, 2500), (1, 60)),
        {"long_prefill_token_threshold": 256}, POLYNOMIAL,
    ),
    "long_prefill_alone": Scenario(
        "a prompt alone in the engine is not held back", plain(20, 1.0, (500, 4000), (1, 20)),
        {"long_prefill_token_threshold": 128, "max_num_batched_tokens": 512},
    ),
    "long_prefill_adaptive": Scenario(
        "long prompts advance by their share of the budget", plain(50, 6.0, (20, 2500), (1, 60)),
        LONG_ADAPTIVE, POLYNOMIAL,
    ),
    "long_prefill_pressure": Scenario(
        "long prompts advance 64 tokens a pass, and preemptions", plain(40, 20.0, (50, 800), (20, 100)),
        NO_ISL | {"long_prefill_token_threshold": 64},
    ),
    "kv_pressure": Scenario(
        "preemptions behind the reservation of whole prompts", plain(50, 30.0, (20, 300), (20, 120)), TINY_KV
    ),
    "kv_pressure_chunked": Scenario(
        "the same with prompts of several passes", plain(50, 30.0, (20, 900), (20, 120)),
        TINY_KV | {"max_num_batched_tokens": 128}, POLYNOMIAL,
    ),
    "kv_no_reservation": Scenario(
        "admission looks at the next chunk only", plain(50, 30.0, (20, 900), (20, 120)),
        NO_ISL | {"max_num_batched_tokens": 128},
    ),
    "kv_no_reservation_burst": Scenario(
        "all at once, and admission looks at the next chunk only", plain(40, np.inf, (20, 700), (5, 60)),
        NO_ISL | {"max_num_batched_tokens": 200}, POLYNOMIAL,
    ),
    "kv_no_caching": Scenario(
        "preempted requests find nothing again", plain(50, 30.0, (20, 300), (20, 120)),
        TINY_KV | {"enable_prefix_caching": False},
    ),
    "kv_own_blocks": Scenario(
        "preempted requests with long answers find their own blocks", plain(40, 30.0, (5, 100), (100, 300)), TINY_KV
    ),
    "kv_two_at_a_time": Scenario(
        "room for one or two requests", plain(30, 20.0, (100, 500), (50, 120)), {"num_gpu_blocks_override": 41}
    ),
    "kv_prefix": Scenario(
        "preemptions among requests that share prompts", shared(50, 30.0, 3, 8, (5, 200), (20, 120)), TINY_KV
    ),
    "kv_prefix_no_reservation": Scenario(
        "the same without reservation", shared(50, 30.0, 3, 8, (5, 600), (20, 120)),
        NO_ISL | {"max_num_batched_tokens": 160}, POLYNOMIAL,
    ),
    "kv_bursts": Scenario("ten at a time, and preemptions", plain(50, 25.0, (20, 250), (20, 90), batch=10), TINY_KV),
    "watermark": Scenario(
        "a tenth of the blocks is kept free of newcomers", plain(50, 30.0, (20, 300), (20, 120)),
        TINY_KV | {"watermark": 0.1},
    ),
    "watermark_no_reservation": Scenario(
        "a tenth is kept free, and admission looks at the next chunk only", plain(50, 30.0, (20, 700), (20, 120)),
        NO_ISL | {"watermark": 0.1, "max_num_batched_tokens": 128},
    ),
    "active_seqs_pressure": Scenario(
        "fewer seats than there are, and preemptions", plain(50, 30.0, (20, 300), (40, 160)),
        {"num_gpu_blocks_override": 50, "max_num_active_seqs": 4},
    ),
    "prefix": Scenario("system prompts", shared(50, 20.0, 4, 12, (5, 120), (1, 40))),
    "prefix_burst": Scenario(
        "requests of one step find each other's blocks", shared(40, np.inf, 2, 20, (1, 60), (1, 20)),
        {"max_num_seqs": 40}, POLYNOMIAL,
    ),
    "prefix_eviction": Scenario(
        "more system prompts than the cache holds", shared(80, 12.0, 10, 20, (5, 120), (1, 40)),
        {"num_gpu_blocks_override": 180},
    ),
    "prefix_full_hits": Scenario(
        "prompts that are cached whole, in multiples of the block size and beside them",
        repeats(60, 15.0, [64, 65, 79, 80, 81, 160, 256, 320], (1, 20)),
    ),
    "prefix_full_hits_eviction": Scenario(
        "prompts that are cached whole until they are evicted",
        repeats(80, 15.0, [64, 65, 80, 160, 256, 320], (1, 40), texts=6), TINY_KV,
    ),
    "prefix_unaligned": Scenario(
        "block ids of 48 tokens over KV blocks of 32", shared(60, 15.0, 6, 5, (5, 200), (1, 40), block=48),
        {"block_size": 32, "num_gpu_blocks_override": 80},
    ),
    "prefix_off": Scenario(
        "the same texts without a prefix cache", shared(50, 20.0, 4, 12, (5, 120), (1, 40)),
        {"enable_prefix_caching": False},
    ),
    "turns": Scenario("conversations, a turn after the other", turns(12, 5, 3.0, (10, 90), (5, 70))),
    "turns_eviction": Scenario(
        "conversations whose blocks are evicted between the turns", turns(16, 5, 8.0, (10, 90), (5, 70)), TINY_KV
    ),
    "turns_early": Scenario(
        "turns that come before the last answer has ended", turns(14, 5, 6.0, (10, 90), (5, 70), linked=False), {},
        POLYNOMIAL,
    ),
    "turns_early_pressure": Scenario(
        "the same, and preemptions", turns(14, 5, 6.0, (10, 60), (5, 70), linked=False), TINY_KV
    ),
    "turns_closed_loop": Scenario(
        "clients take conversation after conversation", turns(16, 4, 1.0, (10, 90), (1, 40), concurrency=5),
        {"max_num_seqs": 4},
    ),
    "turns_large_blocks": Scenario(
        "block ids of 512 tokens over KV blocks of 16", turns(10, 5, 4.0, (60, 400), (5, 90), block=512),
        {"num_gpu_blocks_override": 400},
    ),
    "priority_seats": Scenario(
        "three classes wait for seats", plain(60, 40.0, (5, 200), (5, 60), priorities=3), PRIORITY | {"max_num_seqs": 6}
    ),
    "priority_blocks": Scenario(
        "three classes, and preemptions", plain(60, 30.0, (20, 300), (20, 120), priorities=3), PRIORITY | TINY_KV
    ),
    "priority_blocks_polynomial": Scenario(
        "two classes, preemptions, prompts of several passes", plain(60, 40.0, (20, 600), (10, 90), priorities=2),
        PRIORITY | NO_ISL | {"max_num_batched_tokens": 160}, POLYNOMIAL,
    ),
    "priority_ties": Scenario(
        "classes and times of arrival in common, and preemptions",
        plain(60, 30.0, (20, 250), (20, 100), priorities=2, batch=6), PRIORITY | TINY_KV,
    ),
    "priority_one_class": Scenario(
        "all in one class, by twos, and preemptions", plain(50, 30.0, (20, 300), (20, 120), batch=2), PRIORITY | TINY_KV
    ),
    "priority_short_answers": Scenario(
        "classes, answers of up to four tokens, seats and blocks short",
        plain(80, 60.0, (50, 400), (1, 4), priorities=3),
        PRIORITY | {"max_num_seqs": 5, "num_gpu_blocks_override": 61},
    ),
    "priority_prefix": Scenario(
        "classes, system prompts, preemptions", shared(60, 30.0, 3, 8, (5, 200), (10, 100), priorities=3),
        PRIORITY | TINY_KV,
    ),
    "closed_loop": Scenario(
        "clients without a pause", lambda rng: plain(60, np.inf, (5, 300), (1, 40))(rng) | {"concurrency": 9},
        {"max_num_seqs": 8},
    ),
    "closed_loop_pressure": Scenario(
        "clients without a pause, and preemptions",
        lambda rng: plain(60, np.inf, (20, 300), (1, 120))(rng) | {"concurrency": 12}, TINY_KV, POLYNOMIAL,
    ),
    "blocks_of_64": Scenario(
        "KV blocks of 64 tokens, and preemptions", plain(50, 30.0, (20, 300), (20, 120)),
        {"block_size": 64, "num_gpu_blocks_override": 21},
    ),
    "blocks_of_32": Scenario(
        "KV blocks of 32 tokens, system prompts, and preemptions",
        shared(50, 30.0, 3, 4, (5, 200), (20, 120), block=32), {"block_size": 32, "num_gpu_blocks_override": 41},
    ),
    "mooncake_conversation": Scenario(
        "a slice of Mooncake's conversations (Apache-2.0)", mooncake(CONVERSATION, 300, 60, 2.0, 16_000),
        SERVER | {"max_num_batched_tokens": 8192, "num_gpu_blocks_override": 20_000}, POLYNOMIAL,
    ),
    "mooncake_conversation_tight": Scenario(
        "another, twice as fast, with a cache of two or three prompts", mooncake(CONVERSATION, 4000, 60, 4.0, 16_000),
        SERVER | {"num_gpu_blocks_override": 2500}, POLYNOMIAL,
    ),
    "mooncake_synthetic": Scenario(
        "a slice of Mooncake's synthetic trace (Apache-2.0)", mooncake(SYNTHETIC, 100, 50, 4.0, 20_000),
        SERVER | {"num_gpu_blocks_override": 4000}, POLYNOMIAL,
    ),
    "azure_conv": Scenario(
        "a slice of Azure's conversations of 2023 (CC-BY-4.0)", azure(AZURE_CONV, 500, 80, 4.0),
        SERVER | {"num_gpu_blocks_override": 900}, POLYNOMIAL,
    ),
    "azure_code": Scenario(
        "a slice of Azure's code completions of 2023 (CC-BY-4.0)", azure(AZURE_CODE, 700, 80, 8.0),
        SERVER | {"num_gpu_blocks_override": 700}, POLYNOMIAL,
    ),
    "wildchat": Scenario(
        "turns of a WildChat sample by InferenceX (Apache-2.0)", wildchat(WILDCHAT, 40, 70, 12),
        SERVER | {"num_gpu_blocks_override": 1500}, POLYNOMIAL,
    ),
} | {f"mixed_{seed}": mixed(seed) for seed in MIXED}  # fmt: skip


def main() -> None:
    """Write the named scenarios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, help="folder with the traces' files")
    parser.add_argument("names", nargs="*", help="scenarios; all where none is named")
    arguments = parser.parse_args()
    global TRACES
    TRACES = arguments.traces
    folder = fixtures.FOLDER / "vllm"
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or SCENARIOS:
        scenario = SCENARIOS.get(name) or mixed(int(name.removeprefix("mixed_")))
        fixtures.write(folder / f"{name}.json", scenario.content(name))


if __name__ == "__main__":
    main()
