"""Places, routes and crossing costs by hand, and the laws of every placement."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.config import DeploymentConfig, DisaggregatedConfig, PoolConfig, TopologyConfig
from dynosim.hardware.plan import pool_plans
from dynosim.hardware.topology import Rank, place


def _placed(deployment):
    return place(pool_plans(deployment), deployment.topology)


def _aggregated(topology, model="llama-3.1-70b", gpu="h200_sxm", **pool):
    return _placed(DeploymentConfig(model=model, gpu=gpu, topology=topology, aggregated=PoolConfig(**pool)))


def _disaggregated(topology, prefill, decode, **options):
    return _placed(
        DeploymentConfig(
            model="llama-3.1-70b",
            gpu="h200_sxm",
            mode="disaggregated",
            topology=topology,
            disaggregated=DisaggregatedConfig(
                prefill=PoolConfig(**prefill), decode=PoolConfig(tensor_parallel_size=4, **decode), **options
            ),
        )
    )


def _nodes(placement, role="mixed"):
    return [sorted(set(nodes.tolist())) for nodes in placement.nodes[role]]


def test_pack_fills_nodes_and_spread_takes_the_emptiest():
    pools = {"replicas": 2, "tensor_parallel_size": 4}, {"replicas": 2}
    packed = _disaggregated(TopologyConfig(placement="pack"), *pools)
    spread = _disaggregated(TopologyConfig(placement="spread"), *pools)
    assert (_nodes(packed, "prefill"), _nodes(packed, "decode")) == ([[0], [0]], [[1], [1]])
    assert (_nodes(spread, "prefill"), _nodes(spread, "decode")) == ([[0], [1]], [[0], [1]])


def test_pack_splits_a_group_where_spread_takes_another_node():
    pool = {"replicas": 4, "tensor_parallel_size": 3}
    topology = TopologyConfig(gpus_per_node=4)
    assert _nodes(_aggregated(topology, **pool)) == [[0], [1], [2], [0, 1, 2]]
    spread = topology.model_copy(update={"placement": "spread"})
    assert _nodes(_aggregated(spread, **pool)) == [[0], [1], [2], [3]]


def test_gpu_types_have_racks_of_their_own():
    topology = TopologyConfig(nodes_per_rack=2)
    placement = _disaggregated(topology, {"gpu": "b200_sxm", "replicas": 3, "tensor_parallel_size": 8}, {"replicas": 1})
    assert _nodes(placement, "prefill") == [[0], [1], [2]]
    assert _nodes(placement, "decode") == [[4]]


def test_a_hand_off_meets_in_a_domain_or_in_a_rack_or_not_at_all():
    topology = TopologyConfig(placement="spread", nodes_per_rack=2)
    placement = _disaggregated(topology, {"replicas": 3, "tensor_parallel_size": 4}, {"replicas": 3})
    places = [Rank("prefill", 0), *(Rank("decode", replica) for replica in range(3))]
    assert [placement.domains(place) for place in places] == [{0}, {0}, {1}, {2}]
    assert [placement.rack(place) for place in places] == [0, 0, 0, 1]
    joined = topology.model_copy(update={"nvlink_domain": "rack"})
    placement = _disaggregated(joined, {"replicas": 3, "tensor_parallel_size": 4}, {"replicas": 3})
    assert [placement.domains(place) for place in places] == [{0}, {0}, {0}, {1}]


def test_without_a_topology_nothing_crosses():
    placement = _disaggregated(None, {"tensor_parallel_size": 2}, {})
    assert not placement.nodes
    assert placement.crossing("prefill", 0) == (0.0, 0.0)


def test_data_parallel_ranks_have_places_of_their_own():
    pool = {"tensor_parallel_size": 4, "data_parallel_size": 2}
    placement = _disaggregated(TopologyConfig(gpus_per_node=4), pool, {})
    assert [placement.domains(Rank("prefill", 0, rank)) for rank in (0, 1)] == [{0}, {1}]


def test_crossing_is_the_slower_all_reduces_by_hand():
    topology = TopologyConfig(gpus_per_node=4, inter_node_bandwidth_gb_s=50, inter_node_latency_us=5)
    seconds, token_s = _aggregated(topology, tensor_parallel_size=8).crossing("mixed", 0)
    assert seconds == pytest.approx(80 * 2 * 2 * 5e-6)
    assert token_s == pytest.approx(80 * 2 * (2 * 7 / 8) * 8192 * 2 * (1 / 50e9 - 1 / 450e9))


def test_a_pipeline_crosses_at_its_stage_boundary_only():
    topology = TopologyConfig(gpus_per_node=4)
    seconds, token_s = _aggregated(topology, tensor_parallel_size=4, pipeline_parallel_size=2).crossing("mixed", 0)
    assert seconds == pytest.approx(5e-6)
    assert token_s == pytest.approx(2 * 8192 * 2 / 4 * (1 / 50e9 - 1 / 450e9))


def test_data_parallel_ranks_on_two_nodes_pay_for_the_experts_only():
    pool = {"tensor_parallel_size": 4, "data_parallel_size": 2}
    topology = TopologyConfig(gpus_per_node=4)
    _, token_s = _aggregated(topology, model="qwen3-235b-a22b", **pool).crossing("mixed", 0)
    assert token_s == pytest.approx(94 * (2 * 7 / 8) * 2 * 4096 * 2 * (1 / 50e9 - 1 / 450e9))


def test_one_nvlink_domain_over_a_rack_costs_no_crossing():
    topology = TopologyConfig(gpus_per_node=4, nodes_per_rack=18, nvlink_domain="rack")
    assert _aggregated(topology, gpu="gb200", tensor_parallel_size=8).crossing("mixed", 0) == (0.0, 0.0)


@given(
    gpus_per_node=st.integers(1, 9),
    placement=st.sampled_from(["pack", "spread"]),
    sizes=st.tuples(st.sampled_from([1, 2, 3, 4, 8, 16]), st.sampled_from([1, 2, 4, 6])),
    replicas=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_no_node_is_overfilled_and_pack_takes_the_fewest(gpus_per_node, placement, sizes, replicas):
    topology = TopologyConfig(gpus_per_node=gpus_per_node, placement=placement)
    pools = [{"replicas": n, "pipeline_parallel_size": size} for n, size in zip(replicas, sizes, strict=True)]
    placed = _disaggregated(topology, pools[0], {**pools[1], "pipeline_parallel_size": sizes[1]})
    every = np.concatenate([np.concatenate(nodes) for nodes in placed.nodes.values()])
    assert every.size == replicas[0] * sizes[0] + replicas[1] * sizes[1] * 4
    used, counts = np.unique(every, return_counts=True)
    assert counts.max() <= gpus_per_node
    if placement == "pack":
        assert used.size == -(-every.size // gpus_per_node)
    else:
        for nodes in (nodes for role in placed.nodes.values() for nodes in role if nodes.size <= gpus_per_node):
            assert len(set(nodes.tolist())) == 1
