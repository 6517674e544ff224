"""Fit the bundled workload profiles to public traces and write src/dynosim/workload/profiles/*.json.

    python benchmarks/fit_profiles.py TRACES

TRACES is a folder with mooncake_conversation_trace.jsonl.gz, AzureLLMInferenceTrace_code_2023.csv.gz,
arxiv_summarization_lengths.csv.gz, inferencex_multiturn_wildchat_turns.csv.gz and
inferencex_agentic_coding_turns.csv.gz. The same files give the same output, so anyone who has them can check the
profiles. Only statistics are written: quantiles, probabilities and rates, never rows.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from dynosim.config import (
    Arrivals,
    PrefixTree,
    QuantileDelay,
    QuantileLength,
    Rewrites,
    Sessions,
    SyntheticSource,
)
from dynosim.workload.profiles import Profile
from dynosim.workload.readers import read_trace
from dynosim.workload.table import Workload

OUT = Path(__file__).parents[1] / "src/dynosim/workload/profiles"
GRID = (
    *(0, 0.005, 0.01, 0.02),
    *(round(0.05 * k, 2) for k in range(1, 18)),
    *(round(0.85 + 0.01 * k, 2) for k in range(1, 15)),
    *(0.995, 0.998, 0.999, 1),
)
"""Probabilities of the length quantiles: dense in the upper tail, which decides the tail latencies."""
COARSE = (0, 0.02, *(round(0.05 * k, 2) for k in range(1, 20)), 0.98, 0.99, 1)


class Links(NamedTuple):
    """The conversations of a trace: each request's earlier request with the longest common prefix."""

    child: NDArray[np.int64]
    parent: NDArray[np.int64]
    shared: NDArray[np.int64]
    """Common blocks of child and parent, more than the one that all requests share."""


def links(workload: Workload) -> Links:
    """Return child, parent and shared blocks of every request that shares more than the system prompt."""
    last: dict[int, int] = {}
    found = []
    ids = np.split(workload.hash_ids, workload.hash_offsets[1:-1])
    for i, blocks in enumerate(block.tolist() for block in ids):
        shared = next((k for k, block in enumerate(blocks) if block not in last), len(blocks))
        if shared > 1:
            found.append((i, last[blocks[shared - 1]], shared))
        last.update(dict.fromkeys(blocks, i))
    return Links(*np.array(found).T)


def quantiles(values: Any, grid: tuple[float, ...] = GRID, weights: Any = None) -> QuantileLength:
    """Return the quantiles of token counts, at least one token each."""
    method: Any = "linear" if weights is None else "inverted_cdf"
    found = np.quantile(values, grid, weights=weights, method=method)
    tokens = np.maximum(np.rint(found), 1).astype(int)
    return QuantileLength(quantiles=dict(zip(grid, tokens.tolist(), strict=True)))


def ratios(values: Any) -> dict[float, float]:
    return {p: round(float(v), 3) for p, v in zip(COARSE, np.quantile(values, COARSE), strict=True)}


def turn_numbers(workload: Workload, found: Links) -> NDArray[np.int64]:
    """Return the turn number of every request, 0 for the first of a conversation."""
    turn = np.zeros(len(workload), np.int64)
    for child, parent in zip(found.child, found.parent, strict=True):
        turn[child] = turn[parent] + 1
    return turn


def conversations(workload: Workload, found: Links) -> PrefixTree:
    """Fit the conversation model of ``PrefixTree`` to the links of a trace."""
    child, parent, shared = found
    tokens, turn = workload.input_tokens, turn_numbers(workload, found)[parent]
    whole = tokens[parent] // workload.hash_block_tokens
    new = tokens[child] - tokens[parent] - workload.output_tokens[parent]
    grown = shared == whole
    probability, scale = continuation(workload, found)
    return PrefixTree(
        block_tokens=workload.hash_block_tokens,
        shared_blocks=1,
        continue_probability=probability,
        continue_scale_tokens=scale,
        max_input_tokens=int(tokens.max()),
        new_tokens=tuple(quantiles(new[grown & which]) for which in (turn == 0, turn == 1, turn >= 2)),
        gap_requests=quantiles(child - parent),
        persistence=persistence(found, (child - parent).astype(float), np.where(grown, new, np.nan)),
        output_persistence=persistence(found, workload.output_tokens[child].astype(float)),
        resubmit_probability=round(float((shared > whole).mean()), 4),
        rewrites=rewrites(found, tokens, whole),
    )


def rewrites(found: Links, tokens: NDArray[np.int64], whole: NDArray[np.int64], min_blocks: int = 16) -> Rewrites:
    child, parent, shared = found
    rewritten, long = shared < whole, whole >= min_blocks
    which = rewritten & long
    first = which & ~np.isin(parent, child[rewritten])
    return Rewrites(
        probability=round(float(rewritten[long].mean()), 4),
        persistence=persistence(found, np.where(long, rewritten, np.nan)),
        min_blocks=min_blocks,
        kept_fraction=ratios((shared / whole)[first]),
        length_ratio=ratios((tokens[child] / tokens[parent])[which]),
    )


def persistence(found: Links, *kinds: NDArray[Any]) -> float:
    """Return the probability with which a turn has its conversation's own draw instead of a fresh one.

    Two turns of a conversation then have rank correlation p^2 at any distance. Fitted to the mean over *kinds* (a value
    per link, NaN where it does not count) and the distances of 1 to 4 turns.
    """
    position = {child: k for k, child in enumerate(found.child.tolist())}
    before = np.array([position.get(parent, -1) for parent in found.parent.tolist()])
    correlations = []
    for value in kinds:
        ancestor = np.arange(len(value))
        for _ in range(4):
            ancestor = np.where(ancestor >= 0, before[ancestor], -1)
            correlations.append(spearmanr(value[ancestor >= 0], value[ancestor[ancestor >= 0]], nan_policy="omit")[0])
    return round(float(np.sqrt(np.mean(correlations))), 3)


def continuation(workload: Workload, found: Links, turns: int = 10) -> tuple[tuple[float, ...], float]:
    """Return (continue_probability, continue_scale_tokens) of largest likelihood.

    Counted are requests long enough to show a next turn. The last 2,500 are left out: theirs lie after the end.
    """
    tokens, turn = workload.input_tokens, np.minimum(turn_numbers(workload, found), turns - 1)
    continued = np.zeros(len(workload), bool)
    continued[found.parent] = True
    counted = (np.arange(len(tokens)) < len(tokens) - 2500) & (tokens >= 2 * workload.hash_block_tokens)
    turn, continued, tokens = turn[counted], continued[counted], tokens[counted]

    def fit(scale: float) -> tuple[float, NDArray[np.float64]]:
        fading = np.where(turn == 0, np.exp(-tokens / scale), 1.0)
        by_turn = np.bincount(turn, continued) / np.bincount(turn, fading)
        probability = np.clip(by_turn[turn] * fading, 1e-9, 1 - 1e-9)
        return float(np.log(np.where(continued, probability, 1 - probability)).sum()), by_turn

    scale = max(np.geomspace(50e3, 2e6, 60), key=lambda scale: fit(scale)[0])
    return tuple(np.minimum(fit(scale)[1], 1.0).round(3).tolist()), round(float(scale))


def rates(workload: Workload, window_s: float) -> tuple[float, ...]:
    """Return the mean rate in successive windows; a last window of less than half joins the one before."""
    span = workload.arrival_s[-1]
    edges = np.arange(0, span + window_s / 2, window_s)
    edges[-1] = span
    counts = np.histogram(workload.arrival_s, edges)[0]
    return tuple(np.round(counts / np.diff(edges), 3).tolist())


def chat(folder: Path) -> Profile:
    trace = read_trace(folder / "mooncake_conversation_trace.jsonl.gz")
    found = links(trace)
    first = np.ones(len(trace), bool)
    first[found.child] = False
    return Profile(
        name="chat",
        description="Production chat: long prompts, conversations under one system prompt, one hour at 3.4 requests/s.",
        fitted_to="kvcache-ai/Mooncake, FAST25-release/traces/conversation_trace.jsonl, commit 3b5a5941",
        licence="Apache-2.0",
        notes="Independent draws: outputs of prompts (correlation of logs in the trace: 0.05), new tokens of prompts. "
        "Over ten seeds the mean is within 3 % of the trace for the mean prompt (its first quartile is 13 % too long) "
        "and within 2 points for the reuse of one LRU cache of any size and of 1 to 8 round-robin workers.",
        source=SyntheticSource(
            requests=len(trace),
            input_tokens=quantiles(trace.input_tokens[first]),
            output_tokens=quantiles(trace.output_tokens),
            prefix=conversations(trace, found),
            arrivals=Arrivals(rates_rps=rates(trace, 300.0), window_s=300.0, quantum_s=3.0),
        ),
    )


def code(folder: Path) -> Profile:
    trace = read_trace(folder / "AzureLLMInferenceTrace_code_2023.csv.gz")
    gaps = np.diff(trace.arrival_s)
    grid = (*GRID[:-3], 0.997, 0.998, 0.999, 0.9995, 1)
    return Profile(
        name="code",
        description="Production code completion: medium prompts, very short answers, strong bursts, about one hour.",
        fitted_to="Azure/AzurePublicDataset, data/AzureLLMInferenceTrace_code.csv, commit b469a113",
        licence="CC-BY-4.0",
        notes="No word on content, so no prefix is shared. A few long pauses make the burstiness: the span "
        "differs by 20 % between seeds.",
        source=SyntheticSource(
            requests=len(trace),
            input_tokens=quantiles(trace.input_tokens),
            output_tokens=quantiles(trace.output_tokens),
            arrivals=Arrivals(
                rates_rps=(round(len(gaps) / trace.arrival_s[-1], 3),),
                gap_quantiles={p: round(float(v), 5) for p, v in zip(grid, np.quantile(gaps, grid), strict=True)},
            ),
        ),
    )


def rag(folder: Path) -> Profile:
    with gzip.open(folder / "arxiv_summarization_lengths.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return Profile(
        name="rag",
        description="Long input, short output: summarisation of retrieved documents, steady Poisson arrivals.",
        fitted_to="microsoft/vidur, lengths of arXiv summarisation in data/processed_traces, commit 7d475133",
        licence="MIT",
        notes="The source has only lengths. Assumed: Poisson arrivals at 2/s, 5,000 requests, no shared prefix.",
        source=SyntheticSource(
            requests=5000,
            input_tokens=quantiles([int(row["num_prefill_tokens"]) for row in rows]),
            output_tokens=quantiles([int(row["num_decode_tokens"]) for row in rows]),
            arrivals=Arrivals(rates_rps=(2.0,)),
        ),
    )


def multiturn(folder: Path) -> Profile:
    trace = read_trace(folder / "inferencex_multiturn_wildchat_turns.csv.gz")
    waits = np.diff(trace.after_offsets) > 0
    turns = np.bincount(trace.session)
    number = np.arange(len(trace)) - np.flatnonzero(~waits)[trace.session]
    before = trace.after_ids
    new = trace.input_tokens[waits] - trace.input_tokens[before] - trace.output_tokens[before]
    carried = turns[trace.session] - number
    steps = [number[waits] == turn for turn in range(1, turns.max())]
    return Profile(
        name="multiturn",
        description="Conversations of real users: short messages, long answers, each turn repeats all before it.",
        fitted_to="SemiAnalysisAI/InferenceX, multi-turn benchmark of WildChat conversations, commit 2582608b",
        licence="Apache-2.0",
        notes="First prompts and new tokens are weighted by the turns that repeat them, because long conversations "
        "have shorter messages. Assumed: conversations start as a Poisson process at 1/s; no think time, as in the "
        "benchmark. Over five seeds the mean prompt is 6 % too long.",
        source=SyntheticSource(
            requests=len(trace),
            input_tokens=quantiles(trace.input_tokens[~waits], weights=turns),
            output_tokens=quantiles(trace.output_tokens),
            sessions=Sessions(
                turns=quantiles(turns),
                new_tokens=tuple(quantiles(new[step], COARSE, carried[waits][step]) for step in steps),
                output_persistence=session_persistence(trace.output_tokens, trace.session),
                max_input_tokens=int(trace.input_tokens.max()),
            ),
            arrivals=Arrivals(rates_rps=(1.0,)),
        ),
    )


def session_persistence(values: NDArray[np.int64], session: NDArray[np.int64], farthest: int = 7) -> float:
    """Return the probability of a session's own draw: two turns then have rank correlation p^2 at any distance."""
    same = [session[k:] == session[:-k] for k in range(1, farthest + 1)]
    pairs = [(values[k:][s], values[:-k][s]) for k, s in enumerate(same, start=1)]
    return round(float(np.sqrt(np.mean([spearmanr(*pair)[0] for pair in pairs]))), 3)


def agentic(folder: Path) -> Profile:
    path = folder / "inferencex_agentic_coding_turns.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        number = np.array([int(row["request_idx"]) for row in csv.DictReader(file)])
    trace = read_trace(path)
    turn = np.flatnonzero(np.diff(trace.after_offsets) > 0)
    follows = number[turn] == number[trace.after_ids] + 1
    turn, before = turn[follows], trace.after_ids[follows]
    new = trace.input_tokens[turn] - trace.input_tokens[before] - trace.output_tokens[before]
    steps = [number[turn] == 1, (number[turn] > 1) & (number[turn] <= 3), (number[turn] > 3) & (number[turn] <= 10)]
    steps = [steps[0], *[steps[1]] * 2, *[steps[2]] * 7, number[turn] > 10]
    return Profile(
        name="agentic",
        description="Coding agents: very long prompts that grow turn by turn, short answers, pauses while tools run.",
        fitted_to="SemiAnalysisAI/InferenceX, trace replay of coding agents, commit 71813145",
        licence="Apache-2.0",
        notes="The file holds pieces of sessions. First prompts are those of turns 1 to 8, the choice that gives the "
        "prompts of the file (the first turns alone would give 56,000 tokens on average and not 72,000). The number of "
        "turns makes turn numbers as frequent as there. A cache finds 91 % of the prompts; the source, with all of "
        "each session, had 94 %. No history is compacted. Assumed: sessions start as a Poisson process at 0.05/s.",
        source=SyntheticSource(
            requests=3000,
            input_tokens=quantiles(trace.input_tokens[number <= 7], COARSE),
            output_tokens=quantiles(trace.output_tokens),
            sessions=Sessions(
                block_tokens=64,
                turns=turn_counts(number),
                new_tokens=tuple(quantiles(new[step], COARSE) for step in steps),
                think_s=QuantileDelay(quantiles=pauses(trace.delay_s[np.diff(trace.after_offsets) > 0])),
                max_input_tokens=int(trace.input_tokens.max()),
            ),
            arrivals=Arrivals(rates_rps=(0.05,)),
        ),
    )


def pauses(delay_s: NDArray[np.float64]) -> dict[float, float]:
    return {float(p): round(float(v), 1) for p, v in zip(GRID, np.quantile(delay_s, GRID), strict=True)}


def turn_counts(number: NDArray[np.int64]) -> QuantileLength:
    """Return the turns per session under which turn numbers are as frequent as *number*.

    A turn number k is seen in proportion to the sessions of more than k turns, so the histogram of numbers, made
    decreasing, is the survival function.
    """
    edges = np.unique([0, 1, 2, 3, 4, 6, 8, *np.rint(np.geomspace(11, number.max() + 30, 12)).astype(int)])
    density = np.minimum.accumulate(np.histogram(number, edges)[0] / np.diff(edges))
    survival = np.interp(np.arange(edges[-1]), (edges[:-1] + edges[1:] - 1) / 2, density / density[0])
    counts = {p: int(np.searchsorted(-survival, p - 1)) for p in GRID}
    return QuantileLength(quantiles={float(p): max(min(t, int(number.max()) + 1), 1) for p, t in counts.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path, help="folder with the trace files")
    folder = parser.parse_args().traces
    for fit in (agentic, chat, code, multiturn, rag):
        profile = fit(folder)
        path = OUT / f"{profile.name}.json"
        path.write_text(json.dumps(profile.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
        print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
