"""The links of a deployment: which there are, and which of them each row's KV copies take."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dynosim.config import DeploymentConfig, HostTier, OffloadConfig, PoolConfig, TopologyConfig
from dynosim.hardware.plan import PoolPlan
from dynosim.hardware.topology import Rank, place
from dynosim.simulation import state
from dynosim.simulation.arrays import sparse_zeros
from dynosim.timing.calibrated import profile_of

IntArray = NDArray[np.int64]


class Network:
    """All links and, per role, ``row_links`` (rows, LINK_COLUMNS), ``domains`` and ``racks`` (rows,)."""

    def __init__(self, deployment: DeploymentConfig, plans: Mapping[str, PoolPlan], requests: int) -> None:
        self.placement = place(plans, deployment.topology)
        self._links: list[tuple[float, float]] = []
        self._racks: dict[int, tuple[int, int]] = {}
        self._domains: dict[object, int] = {}
        self.row_links: dict[str, IntArray] = {}
        self.domains: dict[str, IntArray] = {}
        self.racks: dict[str, IntArray] = {}
        for plan in plans.values():
            self._add_pool(plan)
        self.links = np.zeros(max(len(self._links), 1), state.LINK)
        for i, (bytes_s, latency_s) in enumerate(self._links):
            self.links[i]["bytes_s"], self.links[i]["latency_s"] = bytes_s, latency_s
        self.net = np.zeros(1, state.NET)
        self.net["next"] = np.inf
        # Room for the copies that *requests* requests may have on their way at once; more are not begun.
        self.transfers = sparse_zeros(8 * requests + 4096 if self._links else 1, state.TRANSFER)

    def _add(self, gb_s: float, latency_us: float) -> int:
        self._links.append((gb_s * 1e9, latency_us * 1e-6))
        return len(self._links) - 1

    def _add_pool(self, plan: PoolPlan) -> None:
        role, pool = plan.role, plan.config
        lanes, ranks = pool.pipeline_parallel_size, pool.data_parallel_size
        rows = pool.max_replicas * lanes * ranks
        table = self.row_links[role] = np.full((rows, len(state.LINK_COLUMNS)), state.NONE, np.int64)
        self.domains[role], self.racks[role] = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        store = self._add_store(pool.kv_offload)
        for replica in range(pool.max_replicas):
            shared = store | self._store_links(pool.kv_offload)
            for rank in range(ranks):
                first = (replica * ranks + rank) * lanes
                columns = shared | self._host_links(pool)
                columns |= self._ports(Rank(role, replica, rank), plan)
                for name, link in columns.items():
                    table[first : first + lanes, state.LINK_COLUMNS.index(name)] = link
                self.domains[role][first : first + lanes] = self._domain(Rank(role, replica, rank))
                self.racks[role][first : first + lanes] = self._rack(Rank(role, replica, rank))

    def _add_store(self, offload: OffloadConfig) -> dict[str, int]:
        if offload.remote is None:
            return {}
        bandwidth = offload.remote.store_bandwidth_gb_s
        return {name: self._add(bandwidth, 0.0) for name in ("store_write", "store_read")}

    def _store_links(self, offload: OffloadConfig) -> dict[str, int]:
        """Add a replica's ways to its disk and to the store; its ranks share them."""
        tiers = {"disk": offload.disk, "remote": offload.remote}
        return {
            f"{tier}_{way}": self._add(config.bandwidth_gb_s, config.latency_us)
            for tier, config in tiers.items()
            if config is not None
            for way in ("write", "read")
        }

    def _host_links(self, pool: PoolConfig) -> dict[str, int]:
        """Add the PCIe links of one rank's GPUs, which copies to and from them take whatever the tier."""
        offload, gpus = pool.kv_offload, pool.gpus_per_replica // pool.data_parallel_size
        if not (offload.host or offload.disk or offload.remote):
            return {}
        host = offload.host or HostTier(size_gib=1.0)  # without a host tier its link is still there
        return {name: self._add(host.bandwidth_gb_s * gpus, host.latency_us) for name in ("d2h", "h2d")}

    def _ports(self, place: Rank, plan: PoolPlan) -> dict[str, int]:
        """Add the ports that hand-offs of one rank leave and enter by: all its GPUs send side by side."""
        split, pool, profile = plan.deployment.disaggregated, plan.config, profile_of(plan.deployment)
        if split is None:
            return {}
        link, gpus = split.kv_transfer, pool.gpus_per_replica // pool.data_parallel_size
        gb_s = {"net": link.bandwidth_gb_s, "nvlink": plan.gpu.nvlink_bytes_s / 1e9}
        slower = profile.transfer if profile else 1.0
        return {
            f"{kind}_{way}": self._add(gb_s[kind] * gpus / slower, link.latency_us * slower)
            for kind in gb_s
            for way in ("out", "in")
        } | self._uplinks(place, plan.deployment.topology)

    def _uplinks(self, place: Rank, topology: TopologyConfig | None) -> dict[str, int]:
        if topology is None:
            return {}
        rack, gb_s = self._rack(place), topology.rack_uplink_gb_s
        if rack not in self._racks:
            self._racks[rack] = (self._add(gb_s, 0.0), self._add(gb_s, 0.0))
        return dict(zip(("rack_out", "rack_in"), self._racks[rack], strict=True))

    def _domain(self, place: Rank) -> int:
        """Number of the NVLink domain that holds the whole rank; one of its own without a topology or if it crosses."""
        domains: object = place
        if self.placement.nodes and len(self.placement.domains(place)) == 1:
            domains = min(self.placement.domains(place))
        return self._domains.setdefault(domains, len(self._domains))

    def _rack(self, place: Rank) -> int:
        return self.placement.rack(place) if self.placement.nodes else 0
