"""The oracle's caches: every KV block has an identity, the free queue is a queue of blocks."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Key = tuple[Any, ...]
"""What a block holds: equal keys mean equal tokens up to the end of the block."""


@dataclass(eq=False)
class Block:
    """One KV block: how many requests hold it, and what it can be found by."""

    refs: int = 0
    key: Key | None = None
    up: Block | None = None
    down: Block | None = None
    """SGLang: its neighbours in a leaf of the tree, which is evicted as a whole."""


class Cache:
    """The KV blocks of one rank, as in vLLM's ``BlockPool``.

    Blocks that nobody holds stand in the free queue: those without a key at its head, which is taken from, those with
    one at its tail. Several may have the same key; the first that got it is found.
    """

    def __init__(self, blocks: int, clock: Any, *, leaves: bool = False) -> None:
        self.leaves = leaves
        self.free: OrderedDict[Block, None] = OrderedDict((Block(), None) for _ in range(blocks))
        self.size = blocks
        self._by_key: dict[Key, list[Block]] = {}
        self._clock = clock
        self._log: deque[tuple[float, Key, bool]] = deque()
        self._index: set[Key] = set()

    def find(self, key: Key) -> Block | None:
        return self._by_key[key][0] if key in self._by_key else None

    def take(self, n: int) -> list[Block]:
        """Take the first *n* blocks of the free queue; what they held is forgotten."""
        self.make_room(n)
        taken = [self.free.popitem(last=False)[0] for _ in range(n)]
        for block in taken:
            block.refs = 1
            if block.key is not None:
                self._forget(block, block.key)
        return taken

    def make_room(self, n: int) -> None:
        """SGLang: evict whole leaves until *n* blocks hold nothing."""
        held: list[Block] = []
        for i, block in enumerate(self.free if self.leaves else ()):
            goes_on = bool(held) and held[-1].up is block
            if i >= n and not goes_on:
                break
            if block.key is not None:
                held.append(block)
        for block in held:
            self._forget(block, block.key)
            self.free.move_to_end(block, last=False)
        for block in held:
            if block.up is not None:
                self.part(block.up)
            self.part(block)

    def part(self, block: Block) -> None:
        """SGLang: a leaf ends with *block*."""
        if block.down is not None:
            block.down.up = block.down = None

    def use(self, blocks: list[Block]) -> None:
        """Those of *blocks* that nobody holds were used last, the first of them last of all."""
        for block in reversed(blocks):
            if block.refs == 0:
                self.free.move_to_end(block)

    def insert(self, blocks: list[Block], keys: list[Key], start: int, end: int) -> None:
        """SGLang: put a request's blocks from *start* on into the tree; its own give way to equal ones that are there,
        and the others are a leaf."""
        found = [self.find(key) for key in keys[start:end]]
        there = next((i for i, block in enumerate(found) if block is None), len(found)) + start
        self.hold(found[: there - start])
        self.give(blocks[start:there])
        blocks[start:there] = found[: there - start]
        if there > start:
            self.part(blocks[there - 1])
        for i in range(there, end):
            self.name(blocks[i], keys[i])
            if i > there:
                blocks[i - 1].down, blocks[i].up = blocks[i], blocks[i - 1]

    def _forget(self, block: Block, key: Key) -> None:
        self._by_key[key].remove(block)
        block.key = None
        if not self._by_key[key]:
            del self._by_key[key]
            self._log.append((self._clock.time, key, False))

    def name(self, block: Block, key: Key) -> None:
        """A full block can be found from now on."""
        assert block.key is None
        assert block.refs > 0
        block.key = key
        if key not in self._by_key:
            self._log.append((self._clock.time, key, True))
        self._by_key.setdefault(key, []).append(block)

    def hold(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            if block.refs == 0:
                del self.free[block]
            block.refs += 1

    def give(self, blocks: list[Block]) -> None:
        """One holder of *blocks* gives them up, the last first."""
        for block in reversed(blocks):
            block.refs -= 1
            if block.refs == 0:
                self.free[block] = None
                self.free.move_to_end(block, last=block.key is not None)

    def pinned(self, blocks: list[Block]) -> int:
        """Return the free blocks among *blocks*."""
        return sum(block.refs == 0 for block in blocks)

    def known(self, time: float) -> set[Key]:
        """Return what could be found at *time*, which must not decrease from call to call."""
        while self._log and self._log[0][0] <= time:
            _, key, there = self._log.popleft()
            (self._index.add if there else self._index.discard)(key)
        return self._index


class Tier:
    """Nodes of a lower tier, least recently used first; evicted block by block from a node's end."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.nodes: OrderedDict[int, int] = OrderedDict()

    def count(self, key: int) -> int:
        return self.nodes.get(key, 0)

    def touch(self, key: int) -> None:
        self.nodes.move_to_end(key)

    def insert(self, key: int, count: int) -> None:
        if count > self.capacity:
            return
        count = max(count, self.nodes.pop(key, 0))
        while sum(self.nodes.values()) + count > self.capacity:
            oldest = next(iter(self.nodes))
            self.nodes[oldest] -= 1
            if self.nodes[oldest] == 0:
                del self.nodes[oldest]
        self.nodes[key] = count
