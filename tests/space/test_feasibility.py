"""What is refused before simulating: GPUs, money, inventory, names."""

import pytest

from dynosim.config import PriceConfig, Scenario
from dynosim.errors import InfeasibleError, TimingError
from dynosim.hardware.prices import usd
from dynosim.space.feasibility import check, unknown_names

POOL = {"replicas": 2, "tensor_parallel_size": 2}
DISAGGREGATED = {
    "mode": "disaggregated",
    "disaggregated": {"prefill": POOL | {"gpu": "b200_sxm"}, "decode": POOL | {"pipeline_parallel_size": 2}},
}


def _scenario(deployment=None, **goals):
    sections = deployment or {"aggregated": POOL}
    return Scenario.model_validate(
        {
            "schema_version": "1",
            "name": "test",
            "workload": {"source": {"type": "profile", "name": "chat"}},
            "deployment": {"model": "llama-3.1-70b", "gpu": "h200_sxm", **sections},
            **goals,
        }
    )


def _autoscaled(**sizes):
    return {"aggregated": POOL | {"autoscaler": {"max_replicas": 5}} | sizes}


@pytest.mark.parametrize(
    ("deployment", "budget", "reason"),
    [
        (None, {"max_gpus": 3}, "needs 4 GPUs, budget.max_gpus is 3"),
        ({"aggregated": POOL | {"pipeline_parallel_size": 2}}, {"max_gpus": 7}, "needs 8 GPUs"),
        (_autoscaled(), {"max_gpus": 9}, "needs 10 GPUs"),
        (_autoscaled(), {"max_usd_per_hour": 17.39}, r"costs 17.40 USD per hour"),
        (None, {"inventory": {"h200_sxm": 3}}, "needs 4 x h200_sxm, budget.inventory has 3"),
        (None, {"inventory": {"b200_sxm": 64}}, "needs 4 x h200_sxm, budget.inventory has 0"),
        (DISAGGREGATED, {"inventory": {"h200_sxm": 8, "b200_sxm": 3}}, "needs 4 x b200_sxm, budget.inventory has 3"),
        (DISAGGREGATED, {"inventory": {"h200_sxm": 7, "b200_sxm": 4}}, "needs 8 x h200_sxm, budget.inventory has 7"),
    ],
)
def test_goals_that_the_deployment_breaks(deployment, budget, reason):
    with pytest.raises(InfeasibleError, match=reason):
        check(_scenario(deployment, budget=budget))


@pytest.mark.parametrize(
    ("deployment", "budget"),
    [
        (None, {"max_gpus": 4}),
        (_autoscaled(), {"max_gpus": 10, "max_usd_per_hour": 17.41}),
        (DISAGGREGATED, {"inventory": {"h200_sxm": 8, "b200_sxm": 4}}),
    ],
)
def test_goals_that_it_just_meets(deployment, budget):
    check(_scenario(deployment, budget=budget))


def test_every_gpu_of_every_replica_is_paid():
    deployment = _scenario(DISAGGREGATED).deployment
    assert usd(deployment.gpu_counts().items(), PriceConfig()) == pytest.approx(4 * 2.34 + 8 * 1.74)


def test_a_size_without_kernel_times_is_no_deployment():
    ranks = {"aggregated": {"data_parallel_size": 4, "tensor_parallel_size": 2}, "model": "qwen3-30b-a3b"}
    with pytest.raises(TimingError, match=r"on 8 x h200_sxm \(4 data-parallel ranks\).*--data-parallel-size 4`"):
        check(_scenario(ranks))


def test_unknown_gpus_of_the_inventory_are_named():
    problems = unknown_names(_scenario(budget={"inventory": {"h200": 4}}))
    assert [problem.path for problem in problems] == [("budget", "inventory", "h200")]
