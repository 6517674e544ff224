"""The oracle's caches: every KV block has a number, the free queue is a queue of blocks."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any


class Node:
    """The cached blocks of one prompt node: always a prefix of it. References hold all of them."""

    def __init__(self, key: int) -> None:
        self.key, self.blocks, self.refs = key, list[int](), 0


class Cache:
    """The KV blocks of one rank. Taking blocks evicts the oldest free ones, a node's from its last to its first."""

    def __init__(self, blocks: int, clock: Any) -> None:
        self.free: OrderedDict[int, Node | None] = OrderedDict((b, None) for b in range(blocks))
        self.nodes: dict[int, Node] = {}
        self._clock = clock
        self._log: deque[tuple[float, int, int]] = deque()
        self._index: dict[int, int] = {}

    def take(self, n: int) -> list[int]:
        return [self._pop() for _ in range(n)]

    def _pop(self) -> int:
        block, node = self.free.popitem(last=False)
        if node is not None:
            assert node.blocks.pop() == block
            self._note(node)
            if not node.blocks:
                del self.nodes[node.key]
        return block

    def give(self, blocks: list[int]) -> None:
        self.free.update((block, None) for block in blocks)

    def add(self, key: int) -> Node:
        """Return a new node without blocks, referenced once."""
        node = self.nodes[key] = Node(key)
        node.refs = 1
        return node

    def extend(self, node: Node, blocks: list[int]) -> None:
        if blocks:
            node.blocks += blocks
            self._note(node)

    def refer(self, node: Node) -> None:
        if node.refs == 0:
            for block in node.blocks:
                del self.free[block]
        node.refs += 1

    def unrefer(self, node: Node) -> None:
        node.refs -= 1
        if node.refs == 0:
            self.free.update((block, node) for block in reversed(node.blocks))

    def pinned(self, nodes: list[Node]) -> int:
        """Return the free blocks that referring to *nodes* would take."""
        return sum(len(node.blocks) for node in nodes if node.refs == 0)

    def _note(self, node: Node) -> None:
        self._log.append((self._clock.time, node.key, len(node.blocks)))

    def forget(self) -> None:
        """All content is gone at once."""
        self._log.extend((self._clock.time, key, 0) for key in self.nodes)

    def known(self, time: float) -> dict[int, int]:
        """Return node -> blocks as it was at *time*, which must not decrease from call to call."""
        while self._log and self._log[0][0] <= time:
            _, key, count = self._log.popleft()
            self._index[key] = count
        return {key: count for key, count in self._index.items() if count}


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
