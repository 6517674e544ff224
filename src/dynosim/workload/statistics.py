"""What a request table looks like: rate, burstiness, lengths, and how much of its prompts a prefix cache could serve.

Reuse is counted in prompt tokens; blocks, of answers too, are there from the moment their request arrives. Left out:
the time that prefill takes, memory taken by running requests, lower memory tiers. The simulator has those; this is
their bound.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.workload.table import FloatArray, IntArray, Workload

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def describe(workload: Workload) -> dict[str, Any]:
    """Return the statistics of a workload by name; times in s, rates in requests/s, shares from 0 to 1."""
    return {
        "name": workload.name,
        "requests": len(workload),
        **_arrival_statistics(workload),
        **_session_statistics(workload),
        "input_tokens": _quantiles(workload.input_tokens),
        "output_tokens": _quantiles(workload.output_tokens),
        **_prefix_statistics(workload),
    }


def reuse_bound(workload: Workload, workers: int = 1) -> float:
    """Return the share of prompt tokens found in caches that never evict, behind round robin over *workers*."""
    return float(reused_tokens(workload, workers).sum() / workload.input_tokens.sum())


def reused_tokens(workload: Workload, workers: int = 1) -> FloatArray:
    """Return the prompt tokens of each request (``n``) that such caches hold."""
    request = _request_of_block(workload)
    seen = _seen(workload.hash_ids * workers + request % workers)
    held = np.bincount(request, _tokens_of_block(workload) * seen, len(workload))
    return np.asarray(held, float)


def lru_reuse(workload: Workload, capacity_blocks: int) -> float:
    """Return the share of prompt tokens found in one cache of *capacity_blocks* that evicts least recently used blocks.

    Of one prompt the last block goes first, so what stays is always a prefix.
    """
    cache: OrderedDict[int, None] = OrderedDict()
    block_tokens, reused = workload.hash_block_tokens, 0
    ids, offsets = workload.hash_ids.tolist(), workload.hash_offsets.tolist()
    for i, tokens in enumerate(workload.input_tokens.tolist()):
        blocks = ids[offsets[i] : offsets[i + 1]]
        hits = next((k for k, block in enumerate(blocks) if block not in cache), len(blocks))
        reused += min(hits * block_tokens, tokens)
        for block in reversed(blocks):
            cache[block] = None
            cache.move_to_end(block)
        for _ in range(len(cache) - capacity_blocks):
            cache.popitem(last=False)
    return reused / int(workload.input_tokens.sum())


def _arrival_statistics(workload: Workload) -> dict[str, Any]:
    if workload.concurrency is not None:
        return {"concurrency": workload.concurrency}
    if not workload.timed:
        return {}
    times_s = workload.arrival_s[
        np.diff(workload.after_offsets) == 0
    ]  # what waits for others has no arrival of its own
    gaps_s = np.diff(times_s)
    span_s = float(times_s[-1] - times_s[0])
    if not span_s:
        return {"span_s": 0.0}
    per_minute = np.bincount(((times_s - times_s[0]) // 60).astype(np.int64))
    return {
        "span_s": span_s,
        "mean_rps": len(times_s) / span_s,
        "peak_minute_rps": int(per_minute.max()) / 60,
        "gap_cv": float(gaps_s.std() / gaps_s.mean()),
    }


def _session_statistics(workload: Workload) -> dict[str, Any]:
    if not len(workload.after_ids):
        return {}
    waits = np.diff(workload.after_offsets) > 0
    sessions = int(workload.session.max()) + 1
    return {
        "sessions": sessions,
        "requests_per_session": len(workload) / sessions,
        "delay_s": _quantiles(workload.delay_s[waits]),
    }


def _quantiles(numbers: IntArray | FloatArray) -> dict[str, float]:
    values = np.quantile(numbers, list(_QUANTILES.values()))
    return {"mean": float(numbers.mean()), **dict(zip(_QUANTILES, values.tolist(), strict=True))}


def _prefix_statistics(workload: Workload) -> dict[str, Any]:
    if not len(workload.hash_ids):
        return {}
    prompt = _tokens_of_block(workload) > 0
    uses = np.bincount(workload.hash_ids[prompt])
    seen = _seen(workload.hash_ids) & prompt
    hits = np.bincount(_request_of_block(workload)[seen], minlength=len(workload))
    return {
        "block_tokens": workload.hash_block_tokens,
        "blocks": int(prompt.sum()),
        "unique_blocks": int((uses > 0).sum()),
        "blocks_used_once": float((uses[uses > 0] == 1).mean()),
        "blocks_reused": float(seen.sum() / prompt.sum()),
        "requests_reusing_two_blocks": float((hits > 1).mean()),
        "tokens_reused": reuse_bound(workload),
    }


def _seen(keys: IntArray) -> NDArray[np.bool_]:
    """Return whether each key has been there before."""
    seen = np.ones(len(keys), bool)
    seen[np.unique(keys, return_index=True)[1]] = False
    return seen


def _request_of_block(workload: Workload) -> IntArray:
    return np.repeat(np.arange(len(workload)), np.diff(workload.hash_offsets))


def _tokens_of_block(workload: Workload) -> IntArray:
    """Return how many prompt tokens each block holds; those of answers hold none."""
    blocks = np.diff(workload.hash_offsets)
    place = np.arange(len(workload.hash_ids)) - np.repeat(workload.hash_offsets[:-1], blocks)
    tokens = np.repeat(workload.input_tokens, blocks) - place * workload.hash_block_tokens
    held: IntArray = np.clip(tokens, 0, workload.hash_block_tokens)
    return held
