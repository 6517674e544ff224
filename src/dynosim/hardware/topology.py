"""Where replicas stand: GPUs on nodes, NVLink domains and racks, and what crossing between them costs.

A pure function of the deployment: all replicas that an autoscaler may add have their place from the start. Nodes hold
one type of GPU, and racks one type of node. A deployment without ``topology`` has no places: its hand-offs go from
network port to network port and nothing crosses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynosim.config import TopologyConfig
from dynosim.hardware.plan import PoolPlan

Nodes = NDArray[np.int64]
"""The node of every GPU of one replica: rank by rank, or stage by stage, tensor-parallel neighbours side by side."""
HIDDEN_BYTES = 2
"""Activations travel in bf16."""


class Rank(NamedTuple):
    """What sends or receives KV: a replica, or one of its attention data-parallel ranks."""

    role: str
    replica: int
    rank: int = 0


@dataclass(frozen=True)
class Placement:
    """The places of all replicas of a deployment."""

    plans: Mapping[str, PoolPlan]
    topology: TopologyConfig | None = None
    nodes: Mapping[str, tuple[Nodes, ...]] = field(default_factory=dict)
    """Role -> node of every GPU of each replica; empty without a topology."""

    def domains(self, place: Rank) -> set[int]:
        """Return the NVLink domains that the GPUs of *place* are in."""
        return set(self._domain(self._nodes(place)).tolist())

    def rack(self, place: Rank) -> int:
        """Return the rack of *place*, of its first GPU where it spans several."""
        assert self.topology is not None
        return int(self._nodes(place)[0]) // self.topology.nodes_per_rack

    def crossing(self, role: str, replica: int) -> tuple[float, float]:
        """Return what standing on several NVLink domains adds to a pass of one replica: (s, s per token).

        The all-reduces of tensor-parallel groups, and of experts spread over data-parallel ranks, run at the rate of
        the slowest link of their ring (Patarasuk and Yuan, JPDC 69(2), 2009); pipeline stages send to the next one.
        Expert groups larger than a GPU's scale-up domain cross wherever they stand: their pass times hold it already.
        """
        if not self.nodes:
            return 0.0, 0.0
        plan = self.plans[role]
        domains = self._domain(self.nodes[role][replica]).reshape(-1, plan.config.tensor_parallel_size)
        seconds, token_s = np.sum([*self._all_reduces(plan, domains), *self._stage_boundaries(plan, domains)], axis=0)
        return float(seconds), float(token_s)

    def _all_reduces(self, plan: PoolPlan, domains: Nodes) -> Iterator[tuple[float, float]]:
        """Yield the cost of all attention and all feed-forward all-reduces of each group that crosses."""
        layers, ranks = plan.model.layers / plan.config.pipeline_parallel_size, plan.config.data_parallel_size
        attention = [self._all_reduce(plan, group, 1) for group in domains]
        yield 0.0, 0.0
        if ranks > 1:
            attention = [max(attention)]  # the ranks run side by side, and the slowest ends the pass
            if domains.size <= plan.gpu.scale_up_gpus:
                experts = self._all_reduce(plan, domains.ravel(), ranks)
                yield layers * experts[0], layers * experts[1]
        else:
            layers *= 2
        yield from ((layers * seconds, layers * token_s) for seconds, token_s in attention)

    def _all_reduce(self, plan: PoolPlan, group: Nodes, ranks: int) -> tuple[float, float]:
        """What one all-reduce of *group* takes longer, by a fixed part and per token of each of *ranks* ranks.

        Every GPU sends 2 (n - 1) / n of the hidden states; m domains are 2 (m - 1) hops apart.
        """
        crossed = len(np.unique(group)) - 1
        sent = 2 * (group.size - 1) / group.size * ranks * plan.model.hidden * HIDDEN_BYTES
        return 2 * crossed * self._latency_s, sent * self._slower_s_per_byte(plan) * (crossed > 0)

    def _stage_boundaries(self, plan: PoolPlan, domains: Nodes) -> Iterator[tuple[float, float]]:
        if plan.config.pipeline_parallel_size > 1:
            for sender, receiver in pairwise(domains):
                if (sender != receiver).any():
                    yield self._latency_s, stage_bytes(plan) * self._slower_s_per_byte(plan)

    @property
    def _latency_s(self) -> float:
        assert self.topology is not None
        return self.topology.inter_node_latency_us * 1e-6

    def _slower_s_per_byte(self, plan: PoolPlan) -> float:
        assert self.topology is not None
        return max(1 / (self.topology.inter_node_bandwidth_gb_s * 1e9) - 1 / plan.gpu.nvlink_bytes_s, 0.0)

    def _domain(self, nodes: Nodes) -> Nodes:
        assert self.topology is not None
        return nodes if self.topology.nvlink_domain == "node" else nodes // self.topology.nodes_per_rack

    def _nodes(self, place: Rank) -> Nodes:
        nodes = self.nodes[place.role][place.replica]
        gpus = len(nodes) // self.plans[place.role].config.data_parallel_size
        return nodes[place.rank * gpus :][:gpus]


def stage_bytes(plan: PoolPlan) -> float:
    """Return the bytes per token that each GPU of a pipeline stage sends to the next stage.

    Hidden states and residual, sliced over the tensor-parallel group (vLLM's ``IntermediateTensors`` and
    ``send_tensor_dict``; SGLang's ``PPProxyTensors`` hold the same two).
    """
    return 2 * plan.model.hidden * HIDDEN_BYTES / plan.config.tensor_parallel_size


def place(plans: Mapping[str, PoolPlan], topology: TopologyConfig | None) -> Placement:
    """Return where every replica stands; GPU types have racks of their own."""
    if topology is None:
        return Placement(plans)
    nodes: dict[str, tuple[Nodes, ...]] = {}
    first = 0
    for gpu in dict.fromkeys(plan.gpu_name for plan in plans.values()):
        pools = {role: plan.config for role, plan in plans.items() if plan.gpu_name == gpu}
        cells = _Nodes(topology, sum(pool.max_replicas * pool.gpus_per_replica for pool in pools.values()))
        for role, pool in pools.items():
            nodes[role] = tuple(first + cells.take(pool.gpus_per_replica) for _ in range(pool.max_replicas))
        first += -(-len(cells.free) // topology.nodes_per_rack) * topology.nodes_per_rack
    return Placement(plans, topology, nodes)


class _Nodes:
    """Nodes of one GPU type with their free GPUs, at first as many as *gpus* GPUs need at least.

    ``pack`` takes the first node with room, and GPUs of several where none has. ``spread`` takes the emptiest node with
    room, and a further one where none has. Replicas larger than a node take the emptiest nodes.
    """

    def __init__(self, topology: TopologyConfig, gpus: int) -> None:
        self.topology = topology
        self.free = [topology.gpus_per_node] * -(-gpus // topology.gpus_per_node)

    def take(self, gpus: int) -> Nodes:
        """Return the node of each of *gpus* GPUs."""
        roomy = [node for node, free in enumerate(self.free) if free >= gpus]
        if not roomy and self.topology.placement == "spread":
            self.free += [self.topology.gpus_per_node] * -(-gpus // self.topology.gpus_per_node)
            roomy = [node for node, free in enumerate(self.free) if free >= gpus]
        if roomy and self.topology.placement == "pack":
            order = roomy[:1]
        else:
            order = sorted(roomy or range(len(self.free)), key=lambda node: -self.free[node])
        return np.array([self._take_one(order) for _ in range(gpus)])

    def _take_one(self, order: list[int]) -> int:
        node = next(node for node in order if self.free[node])
        self.free[node] -= 1
        return node
