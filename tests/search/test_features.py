"""Closed-form features by hand, with constant pass times."""

import numpy as np
import pytest

from dynosim.hardware.gpus import get_gpu
from dynosim.search.features import FEATURES, ServingFeatures
from search.problems import serving, small

# 100 prompt tokens at 1 ms, 10 output tokens at 20 ms, one request per second.
FIXED = "deployment.timing={type: fixed, prefill_ms_per_token: 1.0, decode_ms: 20.0}"


def _features(space, **values):  # type: ignore[no-untyped-def]
    point = space.complete({f"deployment.{path.replace('__', '.')}": value for path, value in values.items()})
    return dict(zip(FEATURES, np.exp(ServingFeatures(space)(point)), strict=True))


def test_aggregated_by_hand() -> None:
    space = small(FIXED, "workload.load={type: constant_rate, rate_rps: 1.0}")
    found = _features(space, aggregated__replicas=2, aggregated__tensor_parallel_size=4)
    rate_rps = 10 / 9  # ten requests in nine gaps
    assert found["gpus"] == pytest.approx(8)
    assert found["usd_per_hour"] == pytest.approx(8 * get_gpu("h100_sxm").usd_per_hour["neocloud"])
    assert found["first_token_s"] == pytest.approx(0.1)
    assert found["step_s"] == pytest.approx(0.02)
    assert found["prefill_load"] == pytest.approx(rate_rps * 0.1 / 2)
    assert found["decode_load"] == pytest.approx(rate_rps / 2 * 10 * 0.02 / 256)
    assert found["load"] == pytest.approx(found["prefill_load"] + found["decode_load"])
    assert found["kv_requests"] == pytest.approx(256)  # max_num_seqs; memory would hold far more


def test_disaggregated_pools_are_apart_and_the_hop_counts() -> None:
    space = serving(FIXED)
    slow, fast = (
        _features(space, mode="disaggregated", disaggregated__kv_transfer__bandwidth_gb_s=gb_s)
        for gb_s in (10.0, 100.0)
    )
    assert slow["load"] == pytest.approx(max(slow["prefill_load"], slow["decode_load"]))
    assert slow["first_token_s"] - 0.1 == pytest.approx(10 * (fast["first_token_s"] - 0.1))
    assert slow["first_token_s"] > 0.1


def test_more_replicas_mean_less_load_and_more_cost() -> None:
    space = serving()
    one, two = (_features(space, mode="aggregated", aggregated__replicas=n) for n in (2, 4))
    assert one["load"] == pytest.approx(2 * two["load"], rel=0.05)
    assert two["usd_per_hour"] == pytest.approx(2 * one["usd_per_hour"])
    assert two["first_token_s"] == pytest.approx(one["first_token_s"])


def test_unknown_where_the_deployment_cannot_be() -> None:
    space = small("deployment.model=llama-3.1-70b")
    point = space.complete({"deployment.aggregated.tensor_parallel_size": 1})
    assert space.infeasible_reason(point) is not None
    assert np.isnan(ServingFeatures(space)(point)).all()
