"""What the place of a replica does to its passes and hand-offs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dynosim.config import DeploymentConfig
from dynosim.hardware.gpus import get_gpu
from dynosim.simulation import SimulationResult, simulate
from simulation.tables import assert_time_adds_up, deployment, make_table

BYTES = 1000 * 2 * 80 * 8 * 128 * 2
"""KV of 1,000 tokens of Llama 70B in bf16."""
NETWORK_S = BYTES / (4 * 10e9)
"""Through four ports of 10 GB/s."""
NVLINK_S = BYTES / (4 * get_gpu("h200_sxm").nvlink_bytes_s)


def _split(topology: dict[str, Any] | None, prefill: int = 1, decode: int = 1, **pool: Any) -> DeploymentConfig:
    link = {"bandwidth_gb_s": 10.0, "latency_us": 0.0}
    sides = {"prefill": {"replicas": prefill}, "decode": {"replicas": decode}, "kv_transfer": link}
    return deployment(pool=pool, disaggregated=sides, topology=topology)


def _transfers(config: DeploymentConfig, requests: int = 1) -> list[float]:
    result = simulate(config, make_table([1000] * requests, [11] * requests))
    assert_time_adds_up(result)
    return list(result.requests["kv_transfer_s"])


@pytest.mark.parametrize(
    ("topology", "seconds"),
    [
        (None, NETWORK_S),
        ({"gpus_per_node": 8}, NVLINK_S),  # both replicas on one node
        ({"gpus_per_node": 4}, NETWORK_S),  # two nodes of one rack
        ({"gpus_per_node": 4, "nodes_per_rack": 2, "nvlink_domain": "rack"}, NVLINK_S),  # NVLink joins the rack
        ({"gpus_per_node": 4, "nodes_per_rack": 1}, NETWORK_S),  # two racks, wide uplinks
        ({"gpus_per_node": 4, "nodes_per_rack": 1, "rack_uplink_gb_s": 5.0}, BYTES / 5e9),  # narrow ones
        ({"gpus_per_node": 8, "placement": "spread"}, NVLINK_S),  # as many nodes as are needed: one
    ],
)
def test_a_hand_off_takes_the_links_between_its_places(topology: dict[str, Any] | None, seconds: float) -> None:
    assert _transfers(_split(topology)) == pytest.approx([seconds])


def test_hand_offs_of_all_replicas_share_the_uplinks_of_their_rack() -> None:
    """Two prefill replicas in one rack, two decode replicas in another; both prompts are done at the same time."""
    topology = {"gpus_per_node": 4, "nodes_per_rack": 2, "rack_uplink_gb_s": 5.0}
    alone, shared = (_transfers(_split(topology, 2, 2), requests) for requests in (1, 2))
    assert alone == pytest.approx([BYTES / 5e9])
    assert shared == pytest.approx([2 * BYTES / 5e9] * 2)


def test_hand_offs_of_different_replicas_do_not_share_ports() -> None:
    assert _transfers(_split(None, 2, 2), 2) == pytest.approx([NETWORK_S] * 2)
    assert _transfers(_split(None, 2, 1), 2) == pytest.approx([2 * NETWORK_S] * 2)


def _run(topology: dict[str, Any] | None, **pool: Any) -> SimulationResult:
    rng = np.random.default_rng(2)
    workload = make_table([1500] * 200, [80] * 200, np.cumsum(rng.exponential(0.3, 200)).tolist())
    return simulate(deployment("roofline", pool={"tensor_parallel_size": 8} | pool, topology=topology), workload)


def _itl(result: SimulationResult) -> float:
    return float(result.gaps.sum_s.sum() / result.gaps.count.sum())


def test_a_tensor_parallel_group_that_crosses_nodes_is_slower() -> None:
    free, inside, across = (_itl(_run(topology)) for topology in (None, {"gpus_per_node": 8}, {"gpus_per_node": 4}))
    assert free == inside
    assert across > 1.3 * inside
    assert _itl(_run({"gpus_per_node": 4, "nodes_per_rack": 2, "nvlink_domain": "rack"})) == inside


def test_a_faster_network_between_nodes_makes_crossing_cheaper() -> None:
    slow = {"gpus_per_node": 4, "inter_node_bandwidth_gb_s": 25.0, "inter_node_latency_us": 10.0}
    fast = {"gpus_per_node": 4, "inter_node_bandwidth_gb_s": 200.0, "inter_node_latency_us": 2.0}
    assert _itl(_run(slow)) > _itl(_run(fast))


def test_packing_lets_a_group_cross_that_spreading_keeps_whole() -> None:
    """Three groups of four on two nodes of six: the third takes what is left of both. Spread, it has a third node."""
    packed, spread = (
        _run({"gpus_per_node": 6, "placement": placement}, replicas=3, tensor_parallel_size=4).requests
        for placement in ("pack", "spread")
    )
    third = packed["decode_replica"] == 2
    assert (packed["last_token_s"][third] > spread["last_token_s"][third]).all()
    np.testing.assert_array_equal(packed["last_token_s"][~third], spread["last_token_s"][~third])
