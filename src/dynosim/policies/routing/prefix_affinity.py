"""The replica that got the longest prefix of the prompt before, unless loads are out of balance: SGLang's cache_aware.

The router keeps its own index of what it sent where and hears nothing from the replicas. With the least and the most
loaded replica at min and max unfinished requests:

    max - min > balance_abs_threshold and max > balance_rel_threshold * min:  the least loaded replica
    otherwise, where more than cache_threshold of the prompt is known:        the replica it was last sent to
    otherwise:                                                               the least loaded replica

Rule and defaults are those of the gateway's own configuration (``CacheAwareConfig`` in ``policies/mod.rs`` of
sgl-project/sglang: 0.5, 32, 1.1); its command line has others (0.3, 64, 1.5). The index holds max_blocks prompt blocks
and forgets the least recently used one first; the gateway bounds the characters of its tree (2^26) at intervals. Each
block remembers one replica only, the one it was last sent to; the gateway's tree remembers all.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from typing import ClassVar

from dynosim.policies.base import PoolView, RequestView
from dynosim.policies.options import check_at_least, check_count


class PrefixAffinity:
    """Send equal prefixes to the same replica while loads are in balance."""

    looks: ClassVar[bool] = True
    keeps_prefixes: ClassVar[bool] = True

    def __init__(
        self,
        cache_threshold: float = 0.5,
        balance_abs_threshold: int = 32,
        balance_rel_threshold: float = 1.1,
        max_blocks: int = 1 << 20,
    ) -> None:
        check_at_least(0.0, cache_threshold=cache_threshold, balance_abs_threshold=balance_abs_threshold)
        check_at_least(1.0, balance_rel_threshold=balance_rel_threshold)
        check_count(max_blocks=max_blocks)
        self._cache_threshold, self._max_blocks = cache_threshold, max_blocks
        self._balance = balance_abs_threshold, balance_rel_threshold
        self._target_of: OrderedDict[int, int] = OrderedDict()
        """Block id -> target, least recently used first; a prompt's later blocks always before its earlier ones."""

    def route(self, request: RequestView, pool: PoolView) -> int:
        """Return the replica with the longest known prefix, or the least loaded one."""
        blocks: list[int] = request.block_hashes.tolist()
        targets: list[int] = pool.targets.tolist()
        loads: list[int] = pool.outstanding_requests.tolist()
        target = self._known_target(request, blocks) if self._is_balanced(min(loads), max(loads)) else None
        chosen = loads.index(min(loads)) if target is None or target not in targets else targets.index(target)
        self._remember(blocks, targets[chosen])
        return chosen

    def _is_balanced(self, least: int, most: int) -> bool:
        absolute, relative = self._balance
        return most - least <= absolute or most <= relative * least

    def _known_target(self, request: RequestView, blocks: list[int]) -> int | None:
        # A block is forgotten before those that it follows: the known ones are a prefix of the prompt.
        known = bisect_left(blocks, True, key=lambda block: block not in self._target_of)
        enough = known * request.hash_block_tokens > self._cache_threshold * request.input_tokens
        return self._target_of[blocks[known - 1]] if enough else None

    def _remember(self, blocks: list[int], target: int) -> None:
        for block in reversed(blocks):
            self._target_of[block] = target
            self._target_of.move_to_end(block)
        while len(self._target_of) > self._max_blocks:
            self._target_of.popitem(last=False)
