"""Autoscaling: cold starts, draining, bounds, what it costs and what it does to latency."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dynosim.config import DeploymentConfig
from dynosim.simulation import SimulationResult, simulate
from dynosim.simulation.records import COMPLETED
from dynosim.workload.table import Workload
from simulation.scripted import Scripted
from simulation.tables import assert_time_adds_up, deployment, make_table

COLD = {"provision_s": 3.0, "weights_load_gb_s": 1e30, "startup_s": 2.0}
"""5 s; the weights are there at once."""


def _scaled(wishes: list[int], most: int = 4, pool: dict[str, Any] | None = None, **scaler: Any) -> DeploymentConfig:
    policy = {"policy": "simulation.scripted:Scripted", "options": {"wishes": wishes}, "interval_s": 10.0}
    autoscaler = policy | {"max_replicas": most, "scale_down_cooldown_s": 0.0} | COLD | scaler
    router = {"policy": "least_outstanding"}
    return deployment(pool={"autoscaler": autoscaler} | (pool or {}), router=router)


def _steady(requests: int = 100, gap_s: float = 1.0, output: int = 301) -> Workload:
    """One request of about 3.1 s each second: three or four run at a time."""
    return make_table([1000] * requests, [output] * requests, [gap_s * i for i in range(requests)])


def _provisioned_s(result: SimulationResult) -> float:
    """Replica-seconds from the timeline, which starts at the first arrival."""
    timeline = result.pools[0].timeline
    end = float(result.requests["arrival_s"].min()) + result.duration_s
    return float((timeline[:, 1] * np.diff(timeline[:, 0], append=end)).sum())


def test_a_replica_serves_after_its_cold_start_and_not_before() -> None:
    result = simulate(_scaled([2]), _steady())
    np.testing.assert_allclose(result.pools[0].timeline, [[0, 1, 1, 0, 0], [10, 2, 1, 1, 0], [15, 2, 2, 0, 0]])
    second = result.requests["decode_replica"] == 1
    assert result.requests["arrival_s"][second].min() == 15.0
    assert second.sum() > 30


def test_weights_are_loaded_at_the_configured_rate() -> None:
    """70.6e9 parameters in bf16 over four GPUs: about 35 GB each."""
    slow, fast = (
        simulate(_scaled([2], weights_load_gb_s=rate), _steady()).pools[0].timeline[2, 0] for rate in (2.0, 4.0)
    )
    assert fast - 15.0 == pytest.approx((slow - 15.0) / 2)
    assert slow - 15.0 == pytest.approx(141.1e9 / 4 / 2e9, rel=0.01)


def test_a_drained_replica_finishes_its_requests_and_gets_no_more() -> None:
    result = simulate(_scaled([2, 2, 2, 1]), _steady())
    pool, requests = result.pools[0], result.requests
    assert (requests["status"] == COMPLETED).all()
    (gone,) = set(requests["decode_replica"][requests["arrival_s"] < 40.0]) - set(
        requests["decode_replica"][requests["arrival_s"] > 40.0]
    )
    off_s = requests["last_token_s"][requests["decode_replica"] == gone].max()
    assert off_s > 40.0
    np.testing.assert_allclose(pool.timeline[3:], [[40, 2, 1, 0, 1], [off_s, 1, 1, 0, 0]])
    assert pool.gpu_seconds == pytest.approx(4 * (result.duration_s + off_s - 10.0))


def test_gpu_seconds_are_the_integral_of_provisioned_replicas() -> None:
    result = simulate(_scaled([3, 1, 4, 4, 2, 1, 3]), _steady())
    assert result.pools[0].gpu_seconds == pytest.approx(4 * _provisioned_s(result))
    assert result.pools[0].timeline[:, 1].max() == 4
    assert_time_adds_up(result)


def test_a_start_can_be_called_off() -> None:
    timeline = simulate(_scaled([2, 1], provision_s=30.0), _steady()).pools[0].timeline
    np.testing.assert_allclose(timeline, [[0, 1, 1, 0, 0], [10, 2, 1, 1, 0], [20, 1, 1, 0, 0]])


@pytest.mark.parametrize(
    ("scaler", "provisioned"),
    [
        ({}, [1, 4, 1]),
        ({"max_step": 2}, [1, 3, 4, 2, 1]),
        ({"max_replicas": 3}, [1, 3, 1]),
        ({"min_replicas": 2}, [2, 4, 2]),
    ],
)
def test_bounds_and_steps(scaler: dict[str, Any], provisioned: list[int]) -> None:
    """Wishes 9, 9, 9, 0 ...; on a fleet that is idle whenever it shrinks."""
    workload = make_table([1000] * 20, [1] * 20, [5.0 * i + 1.0 for i in range(20)])
    config = _scaled([9, 9, 9, 0], pool={"replicas": scaler.get("min_replicas", 1)}, **scaler)
    counts = simulate(config, workload).pools[0].timeline[:, 1]
    assert counts[np.insert(np.diff(counts) != 0, 0, True)].tolist() == provisioned


@pytest.mark.parametrize(
    ("cooldown", "times"),
    [({}, [10, 20, 30]), ({"scale_up_cooldown_s": 15.0}, [10, 30]), ({"scale_down_cooldown_s": 25.0}, [10, 20, 50])],
)
def test_cool_downs_hold_actions_back(cooldown: dict[str, float], times: list[float]) -> None:
    """Wishes: up, up, and down from then on."""
    timeline = (
        simulate(_scaled([2, 3, 1, 1, 1, 1], provision_s=0.0, startup_s=0.0, **cooldown), _steady()).pools[0].timeline
    )
    changes = timeline[1:][np.diff(timeline[:, 2]) != 0, 0]
    if "scale_up_cooldown_s" in cooldown:
        assert changes.tolist() == [10, 30]  # the second step up falls into the cool-down; then comes the way down
    else:
        assert changes.tolist() == times


def test_what_a_policy_sees_is_what_happened() -> None:
    result = simulate(_scaled([1]), _steady(60))
    requests = result.requests
    for view in Scripted.seen:
        sent = requests["arrival_s"] <= view.time_s
        recent = sent & (requests["arrival_s"] > view.time_s - 10.0 - (view.time_s == 10.0))
        outstanding = sent & (requests["last_token_s"] > view.time_s)
        first = (requests["first_token_s"] > view.time_s - 10.0) & (requests["first_token_s"] <= view.time_s)
        assert view.outstanding_requests == view.running_requests + view.queue_requests == outstanding.sum()
        assert view.rate_rps == pytest.approx(recent.sum() / 10.0)
        ttft_s = (requests["first_token_s"] - requests["arrival_s"])[first]
        assert view.ttft_ms == pytest.approx(1e3 * ttft_s.mean())
        assert view.context_tokens == 1000
        held = (1000 + (view.time_s - requests["first_token_s"][outstanding]) / 0.0125).sum() / 16
        held *= view.running_requests / view.outstanding_requests  # those in the queue hold nothing yet
        assert view.kv_utilization == pytest.approx(held / result.pools[0].kv_blocks, rel=0.2)
        assert 10.0 <= view.itl_ms < 15.0
    assert len(Scripted.seen) == int(result.duration_s // 10)


def test_requests_wait_for_a_replica_when_none_serves() -> None:
    crash = {"pool": "mixed", "replica": 0, "at_s": 20.5, "down_s": 4.0}
    config = deployment(failures={"crashes": [crash], "detection_s": 0.0})
    result = simulate(config, _steady(40))
    requests = result.requests
    waited = (requests["arrival_s"] > 20.5) & (requests["arrival_s"] < 24.5)
    np.testing.assert_allclose(requests["wait_cold_start_s"][waited], 24.5 - requests["arrival_s"][waited])
    assert waited.sum() == 4
    assert not requests["wait_cold_start_s"][~waited].any()
    assert_time_adds_up(result)


# -------------------------------------------------------------------------------------------------------------- effects


BURST = (2.0, 40.0, 2.0)
"""Requests per second, two minutes each."""
RAMP = tuple(range(2, 32, 3))


def _varying(rates: tuple[float, ...], seconds: float = 120.0) -> Workload:
    rng = np.random.default_rng(3)
    gaps = np.concatenate([rng.exponential(1 / rate, int(seconds * rate)) for rate in rates])
    n = len(gaps)
    return make_table(rng.integers(500, 1500, n).tolist(), rng.integers(50, 150, n).tolist(), np.cumsum(gaps).tolist())


def _scaling(
    policy: str = "concurrency", options: dict[str, Any] | None = None, rates: tuple[float, ...] = BURST, **scaler: Any
) -> SimulationResult:
    autoscaler = {"policy": policy, "options": options or {}, "max_replicas": 8, "interval_s": 5.0} | COLD | scaler
    pool = {"autoscaler": autoscaler | {"scale_down_cooldown_s": 20.0}, "max_num_seqs": 64}
    result = simulate(deployment("roofline", pool=pool, router={"policy": "least_outstanding"}), _varying(rates))
    assert (result.requests["status"] == COMPLETED).all()
    return result


def _p99(result: SimulationResult) -> float:
    return float(np.percentile(result.requests["first_token_s"] - result.requests["arrival_s"], 99))


def test_a_longer_cold_start_lengthens_the_tail_under_a_burst() -> None:
    tails = [_p99(_scaling(provision_s=cold_s)) for cold_s in (0.0, 30.0, 120.0)]
    assert tails[0] < 0.7 * tails[1] < 0.5 * tails[2]


def test_a_lower_threshold_buys_latency_with_gpus() -> None:
    eager, lazy = (_scaling(options={"up": up, "down": up / 2}, rates=RAMP) for up in (0.2, 0.9))
    assert _p99(eager) < _p99(lazy)
    assert eager.pools[0].gpu_seconds > 1.1 * lazy.pools[0].gpu_seconds


def test_a_shorter_interval_reacts_sooner() -> None:
    tails = [_p99(_scaling(interval_s=interval_s)) for interval_s in (2.0, 40.0)]
    assert tails[0] < 0.8 * tails[1]


def test_the_slow_loop_is_a_lower_bound_for_the_fast_one() -> None:
    """The scripted policy always wants one replica; the throughput loop sizes for the rate all the same."""
    options = {"policy": "simulation.scripted:Scripted", "options": {"wishes": [1]}}
    alone, both = (_scaling(**options, throughput_interval_s=slow) for slow in (None, 10.0))
    assert alone.pools[0].timeline[:, 1].max() == 1
    assert both.pools[0].timeline[:, 1].max() > 1
    assert _p99(both) < _p99(alone)


def test_each_pool_of_a_disaggregated_deployment_scales_by_itself() -> None:
    scaler = {"policy": "simulation.scripted:Scripted", "interval_s": 10.0, "max_replicas": 3} | COLD
    config = deployment(
        disaggregated={
            "prefill": {"autoscaler": scaler | {"options": {"wishes": [3, 3, 1]}, "scale_down_cooldown_s": 0.0}},
            "decode": {},
        }
    )
    result = simulate(config, _steady())
    prefill, decode = result.pools
    assert decode.timeline.tolist() == [[0, 1, 1, 0, 0]]
    off_s = prefill.timeline[-1, 0]
    assert prefill.timeline[:, 2].tolist()[:3] == [1, 1, 3]
    assert prefill.timeline[-1].tolist() == [off_s, 1, 1, 0, 0]
    moved = result.requests[result.requests["prefill_replica"] > 0]
    assert 30.0 <= off_s <= 30.0 + (moved["kv_landed_s"] - moved["arrival_s"]).max()
    assert_time_adds_up(result)


def test_equal_seeds_scale_equally() -> None:
    first, second = _scaling(), _scaling()
    assert first.requests.tobytes() == second.requests.tobytes()
    np.testing.assert_array_equal(first.pools[0].timeline, second.pools[0].timeline)


def test_ticks_end_with_the_work() -> None:
    """A tick every 0.1 s for a run of about 2 s, and none after it."""
    result = simulate(_scaled([1], interval_s=0.1), make_table([1000], [200]))
    assert len(Scripted.seen) == result.duration_s // 0.1
