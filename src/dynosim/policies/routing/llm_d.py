"""The best weighted sum of short queue, free KV cache and known prefix: the default profile of llm-d's router.

    queue_scorer_weight * (longest queue - queue) / (longest - shortest)         (1 where all are equal)
    + kv_cache_utilization_scorer_weight * (1 - share of KV blocks in use)
    + prefix_cache_scorer_weight * known blocks of the prompt / its blocks

The highest sum wins, ties at random. What is known of prefixes is the router's own index of what it sent where, in
blocks of ``block_size`` tokens: it hears nothing from the replicas, keeps ``lru_capacity_per_server`` blocks for each
and forgets the least recently used first, and looks at the first ``max_prefix_tokens`` tokens of a prompt. The queue is
what waits at a replica; its figures are 50 ms old or more in a real one (``load_report_interval_s``).

Names, rules and defaults: ``pkg/epp/config/loader/defaults.go`` and the scorers' plugins of
kubernetes-sigs/gateway-api-inference-extension, which llm-d's router is built on.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import numpy as np

from dynosim.policies.base import FloatArray, PoolView, RequestView
from dynosim.policies.options import check_at_least, check_count


class LlmD:
    """Weigh queues, KV cache in use and prefixes."""

    looks: ClassVar[bool] = True
    keeps_prefixes: ClassVar[bool] = True

    def __init__(
        self,
        rng: np.random.Generator,
        queue_scorer_weight: float = 2.0,
        kv_cache_utilization_scorer_weight: float = 2.0,
        prefix_cache_scorer_weight: float = 3.0,
        lru_capacity_per_server: int = 31250,
        max_prefix_tokens: int = 131072,
        block_size: int = 16,
    ) -> None:
        check_at_least(
            0.0,
            queue_scorer_weight=queue_scorer_weight,
            kv_cache_utilization_scorer_weight=kv_cache_utilization_scorer_weight,
            prefix_cache_scorer_weight=prefix_cache_scorer_weight,
        )
        check_count(
            lru_capacity_per_server=lru_capacity_per_server, max_prefix_tokens=max_prefix_tokens, block_size=block_size
        )
        self._rng = rng
        self._weights = queue_scorer_weight, kv_cache_utilization_scorer_weight, prefix_cache_scorer_weight
        self._capacity_tokens, self._most_tokens = lru_capacity_per_server * block_size, max_prefix_tokens
        self._block_size = block_size
        self._known: dict[int, OrderedDict[int, None]] = {}
        """Target -> the ids sent there, least recently used first."""

    def route(self, request: RequestView, pool: PoolView) -> int:
        """Return the replica of the highest score."""
        ids: list[int] = request.block_hashes[: self._most_tokens // max(request.hash_block_tokens, 1)].tolist()
        targets: list[int] = pool.targets.tolist()
        queue, utilization, prefix = self._weights
        score = queue * _shortness(pool.waiting_requests()) + utilization * (1.0 - pool.kv_utilization())
        score += prefix * self._known_shares(request, ids, targets)
        best = np.flatnonzero(score == score.max())
        chosen = int(best[int(self._rng.random() * len(best))])
        self._remember(self._known.setdefault(targets[chosen], OrderedDict()), ids, request.hash_block_tokens)
        return chosen

    def _known_shares(self, request: RequestView, ids: list[int], targets: list[int]) -> FloatArray:
        """Return the share of the prompt's blocks that each target was sent before."""
        tokens = min(request.input_tokens, self._most_tokens) // self._block_size * self._block_size
        found = np.zeros(len(targets))
        for position, target in enumerate(targets):
            known, matched = self._known.get(target, OrderedDict()), 0
            while matched < len(ids) and ids[matched] in known:
                matched += 1
            found[position] = min(matched * request.hash_block_tokens, tokens) / max(tokens, 1)
        return found

    def _remember(self, known: OrderedDict[int, None], ids: list[int], hash_block_tokens: int) -> None:
        for block in reversed(ids):
            known[block] = None
            known.move_to_end(block)
        while len(known) * hash_block_tokens > self._capacity_tokens:
            known.popitem(last=False)


def _shortness(queue: np.ndarray) -> FloatArray:
    shortest, longest = queue.min(), queue.max()
    return (longest - queue) / (longest - shortest) if longest > shortest else np.ones(len(queue))
