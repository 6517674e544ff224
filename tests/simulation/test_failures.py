"""Crashes, slow nodes, and what becomes of the requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.config import DeploymentConfig
from dynosim.errors import ConfigError
from dynosim.hardware.plan import pool_plans
from dynosim.simulation import simulate
from dynosim.simulation.cluster import Cluster
from dynosim.simulation.failures import MAX_RETRIES
from dynosim.simulation.records import COMPLETED, FAILED
from dynosim.workload.table import Workload
from simulation import laws
from simulation.tables import DECODE_S, PREFILL_S, assert_time_adds_up, deployment, make_table

CRASH = {"pool": "mixed", "replica": 0, "at_s": 0.5, "down_s": 20.0}
SPLIT = {"prefill": {"replicas": 2}, "decode": {"replicas": 2}, "kv_transfer": {"bandwidth_gb_s": 1.0}}
ENGINES = ("vllm", "sglang", "trtllm")


def _failing(*crashes: dict[str, Any], replicas: int = 2, **failures: Any) -> DeploymentConfig:
    return deployment(pool={"replicas": replicas}, failures={"crashes": crashes, "detection_s": 1.0} | failures)


def _busy(requests: int = 200, rate_rps: float = 8.0, **columns: Any) -> Workload:
    rng = np.random.default_rng(5)
    arrival_s = np.cumsum(rng.exponential(1 / rate_rps, requests)).tolist()
    return make_table(
        rng.integers(10, 4000, requests).tolist(), rng.integers(1, 200, requests).tolist(), arrival_s, **columns
    )


def test_a_retried_request_starts_again_when_the_crash_is_noticed() -> None:
    """Prefill takes 0.1 s; the crash at 0.5 s comes after 41 of 101 tokens; sent again at 1.5 s, all over."""
    (request,) = simulate(_failing(CRASH), make_table([1000], [101])).requests
    assert request["first_token_s"] == pytest.approx(1.5 + 1000 * PREFILL_S)
    assert request["last_token_s"] == pytest.approx(1.5 + 1000 * PREFILL_S + 100 * DECODE_S)
    assert (request["retries"], request["decode_replica"], request["status"]) == (1, 1, COMPLETED)
    assert request["preempted_s"] == pytest.approx(1.5)
    assert request["queue_s"] == 0.0


def test_a_migrated_request_keeps_its_tokens_and_computes_them_again() -> None:
    """40 decode passes have ended by 0.5 s: 41 tokens. 1,041 tokens are computed again; the pass gives the 42nd."""
    result = simulate(_failing(CRASH, on_crash="migrate"), make_table([1000], [101]))
    (request,) = result.requests
    again = 1.5 + 1041 * PREFILL_S
    assert request["first_token_s"] == pytest.approx(1000 * PREFILL_S)
    assert request["last_token_s"] == pytest.approx(again + 59 * DECODE_S)
    assert request["preempted_s"] == pytest.approx(again - 0.5)
    assert result.gaps.count.sum() == 100
    assert result.gaps.max_s == pytest.approx(again - 0.5)


def test_a_lost_request_has_failed() -> None:
    (request,) = simulate(_failing(CRASH, on_crash="lose"), make_table([1000], [101])).requests
    assert request["status"] == FAILED
    assert np.isnan(request["last_token_s"])


def test_requests_sent_before_the_crash_is_noticed_wait_for_it() -> None:
    """Round robin: the requests at 1.0 and 2.0 s are the dead replica's turn, and it is noticed at 1.5 s."""
    arrival_s = [0.0, 0.1, 1.0, 1.1, 2.0, 2.1]
    result = simulate(_failing(CRASH), make_table([1000] * 6, [11] * 6, arrival_s))
    requests = result.requests
    assert requests["retries"].tolist() == [0, 0, 1, 0, 0, 0]
    assert requests["wait_outage_s"][2] == pytest.approx(0.5)
    assert requests["scheduled_s"][2] == 1.5
    assert requests["decode_replica"][2:].tolist() == [1] * 4
    assert_time_adds_up(result)


@pytest.mark.parametrize("on_crash", ["retry", "migrate"])
def test_a_replica_serves_again_after_its_down_time_without_its_cache(on_crash: str) -> None:
    """Four equal prompts of 1,024 tokens on the only replica: cached before the crash, not after, then again."""
    ids = {"hash_block_tokens": 512, "hash_offsets": np.arange(0, 9, 2), "hash_ids": np.tile([0, 1], 4)}
    workload = make_table([1024] * 4, [11] * 4, [0.0, 0.4, 5.0, 30.0], **ids)
    config = _failing(CRASH | {"at_s": 1.0}, replicas=1, on_crash=on_crash)
    requests = simulate(config, workload).requests
    assert requests["cached_tokens"].tolist() == [0, 1008, 0, 1008]
    assert requests["scheduled_s"][2] == 21.0  # down from 1 s for 20 s
    assert requests["wait_cold_start_s"][2] == pytest.approx(16.0)


def test_dependents_of_a_failed_request_are_sent() -> None:
    workload = make_table([1000] * 2, [101, 11], after=[[], [0]], session=[0, 0], delay_s=[0.0, 3.0])
    requests = simulate(_failing(CRASH, on_crash="lose"), workload).requests
    assert requests["status"].tolist() == [FAILED, COMPLETED]
    assert requests["arrival_s"][1] == 1.5 + 3.0


def test_a_straggler_takes_so_many_times_as_long() -> None:
    slow = deployment(failures={"stragglers": [{"pool": "mixed", "replica": 0, "slowdown": 2.5}]})
    (a,), (b,) = (simulate(config, make_table([1000], [101])).requests for config in (deployment(), slow))
    assert b["last_token_s"] == pytest.approx(2.5 * a["last_token_s"])


@pytest.mark.parametrize(
    ("failures", "path"),
    [
        ({"crashes": [CRASH | {"pool": "prefill"}]}, "deployment.failures.crashes[0].pool"),
        ({"crashes": [CRASH, CRASH | {"replica": 2}]}, "deployment.failures.crashes[1].replica"),
        (
            {"stragglers": [{"pool": "mixed", "replica": 7, "slowdown": 2.0}]},
            "deployment.failures.stragglers[0].replica",
        ),
    ],
)
def test_settings_of_replicas_that_do_not_exist_are_named(failures: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        simulate(deployment(pool={"replicas": 2}, failures=failures), make_table([10], [2]))
    assert caught.value.path == path


# --------------------------------------------------------------------------------------------------------------- chance


def test_crashes_by_chance_come_as_often_as_they_should_and_from_the_seed() -> None:
    """One replica that is hardly used: about 2,000 s / (90 s up + 10 s down) crashes, none of which loses much."""
    workload = make_table([100] * 200, [2] * 200, [10.0 * i for i in range(200)])
    config = deployment(failures={"mtbf_s": 90.0, "mttr_s": 10.0, "detection_s": 0.0})
    starts = []
    for seed in range(5):
        timeline = simulate(config, workload, seed).pools[0].timeline
        down_s = timeline[1:][timeline[1:, 2] == 0, 0]
        starts.append(len(down_s))
        up_s = timeline[1:][timeline[1:, 2] == 1, 0]
        np.testing.assert_allclose(up_s, down_s[: len(up_s)] + 10.0)
    assert 70 < sum(starts) < 135
    assert len(set(starts)) > 1
    assert simulate(config, workload, 3).requests.tobytes() == simulate(config, workload, 3).requests.tobytes()


def test_failures_lengthen_the_tail_and_more_so_the_longer_they_go_unnoticed() -> None:
    tails = []
    for failures in ({}, {"mtbf_s": 60.0, "detection_s": 0.5}, {"mtbf_s": 60.0, "detection_s": 8.0}):
        config = deployment("roofline", pool={"replicas": 4}, failures=failures | {"mttr_s": 10.0} if failures else {})
        requests = simulate(config, _busy(1000)).requests
        tails.append(np.percentile(requests["first_token_s"] - requests["arrival_s"], 98))
    assert tails[0] < tails[1] < tails[2]


def test_a_replica_that_never_stays_up_gives_its_requests_up() -> None:
    requests = simulate(
        deployment(failures={"mtbf_s": 0.001, "mttr_s": 1.0}), make_table([1000] * 5, [11] * 5)
    ).requests
    assert (requests["status"] == FAILED).all()
    assert (requests["retries"] == MAX_RETRIES).all()


# ----------------------------------------------------------------------------------------------------------- hand-offs


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pool", ["prefill", "decode"])
@pytest.mark.parametrize("on_crash", ["retry", "migrate", "lose"])
def test_nothing_is_stuck_after_a_crash_in_a_disaggregated_deployment(engine: str, pool: str, on_crash: str) -> None:
    failures = {"crashes": [CRASH | {"pool": pool, "at_s": at_s} for at_s in (6.0, 35.0)], "on_crash": on_crash}
    config = deployment("roofline", engine={"name": engine}, disaggregated=SPLIT, failures=failures)
    workload = _busy(300)
    cluster = Cluster(config, pool_plans(config), workload, 0)
    cluster.run()
    assert cluster.idle
    for runtime in cluster.runtimes.values():
        e = runtime.pool.engine
        assert not e.rows["kv_load"].any()
        assert not e.rows["prefill_load"].any()
        assert (e.caches["free_blocks"] == e.caches["num_blocks"]).all()
    result = simulate(config, workload)
    requests = result.requests
    assert_time_adds_up(result)
    lost, again = requests["status"] == FAILED, requests["retries"] > 0
    assert (lost.any(), again.any()) == ((True, False) if on_crash == "lose" else (False, True))
    assert (requests["status"][~lost] == COMPLETED).all()


def test_a_prompt_that_is_still_held_only_needs_another_decode_replica() -> None:
    """1 GB/s per GPU: the copy takes 0.33 s from 0.4 s on, and the crash at 0.5 s cuts it off."""
    workload = make_table([4000], [11])
    copy_s = 4000 * 2 * 80 * 8 * 128 * 2 / 4e9
    crash = {"pool": "decode", "replica": 0, "at_s": 0.5, "down_s": 20.0}
    split = SPLIT | {"kv_transfer": {"bandwidth_gb_s": 1.0, "latency_us": 0.0}}
    (request,) = simulate(deployment(disaggregated=split, failures={"crashes": [crash]}), workload).requests
    assert request["prefill_done_s"] == pytest.approx(0.4)
    assert request["kv_landed_s"] == pytest.approx(1.5 + copy_s)
    assert request["decode_queue_s"] == request["wait_outage_s"] == pytest.approx(1.1)
    assert request["decode_replica"] == 1


@st.composite
def _crashes(draw: st.DrawFn, pools: Sequence[str]) -> list[dict[str, Any]]:
    one = st.fixed_dictionaries(
        {
            "pool": st.sampled_from(pools),
            "replica": st.integers(0, 1),
            "at_s": st.floats(0.0, 12.0),
            "down_s": st.sampled_from([0.1, 1.0, 5.0]),
        }
    )
    return draw(st.lists(one, max_size=6))


@settings(max_examples=80)
@given(data=st.data())
def test_any_crashes_leave_a_lawful_run(data: st.DataObject) -> None:
    """Several crashes, also of both pools at once and before earlier ones are noticed; closed and open loop."""
    engine = data.draw(st.sampled_from(["mixed", *ENGINES]))
    shape: dict[str, Any] = {"pool": {"replicas": 2}}
    if engine != "mixed":
        local = data.draw(st.sampled_from([None, {"max_uncached_tokens": 1500, "max_uncached_fraction": 1.0}]))
        shape = {"engine": {"name": engine}, "disaggregated": SPLIT | {"local_prefill": local}}
    failures = {
        "crashes": data.draw(_crashes(["mixed"] if engine == "mixed" else ["prefill", "decode"])),
        "on_crash": data.draw(st.sampled_from(["retry", "migrate", "lose"])),
        "detection_s": data.draw(st.sampled_from([0.0, 0.3, 2.0])),
        "mtbf_s": data.draw(st.sampled_from([None, 8.0])),
        "mttr_s": 1.0,
    }
    workload = _busy(60, concurrency=data.draw(st.sampled_from([None, 6])))
    result = simulate(deployment("roofline", failures=failures, **shape), workload)
    assert not result.stopped
    assert_time_adds_up(result)
    requests = result.requests
    assert set(requests["status"]) <= {COMPLETED, FAILED}
    if failures["on_crash"] != "lose":
        assert (requests["status"] == COMPLETED).all()
    if failures["on_crash"] == "migrate" and engine == "mixed":
        assert result.gaps.count.sum() == (requests["output_tokens"] - 1).sum()


@pytest.mark.parametrize("order", ["fcfs", "lcfs", "wspt"])
def test_who_waits_at_the_router_is_sent_once_whatever_crashes(order: str) -> None:
    router = {"policy": "kv_aware", "options": {"router_queue_threshold": 0.01, "router_queue_policy": order}}
    crashes = [CRASH | {"pool": "decode", "replica": at_s % 2, "at_s": at_s, "down_s": 2.0} for at_s in range(3, 30, 3)]
    failures = {"crashes": crashes, "detection_s": 0.5}
    config = deployment("roofline", engine={"name": "sglang"}, disaggregated=SPLIT, failures=failures, router=router)
    laws.check(laws.run(config, _busy(300, 40.0)))
