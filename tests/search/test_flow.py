"""Laws of the fluid model: what pools, fixed and autoscaled, are estimated to make of traffic over time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dynosim.errors import ConfigError
from dynosim.estimates import Estimate
from dynosim.policies.base import SIGNALS
from dynosim.policies.registry import policies, setpoint
from dynosim.search.features import ServingEstimates
from dynosim.search.rows import Rows
from dynosim.space import SearchSpace

# A replica takes 0.1 s for a prompt; its decodes are as good as free. The load goes from 1 to 6 replicas and back.
FILE = """
name: waves
workload:
  source:
    type: synthetic
    requests: 9000
    input_tokens: {type: fixed, tokens: 100}
    output_tokens: {type: fixed, tokens: 2}
    arrivals: {window_s: 60.0, rates_rps: [10, 10, 60, 60, 10, 10], burstiness: 20}
  load: {type: trace_timestamps}
deployment:
  model: llama-3.1-8b
  gpu: h100_sxm
  timing: {type: fixed, prefill_ms_per_token: 1.0, decode_ms: 0.001}
  aggregated:
    replicas: {choices: [2]}
"""
SCALER = (
    "{policy: %s, options: {up: 0.7, down: 0.3}, min_replicas: 1, max_replicas: 12, interval_s: 5.0, provision_s: 5.0,"
    " weights_load_gb_s: 1000.0, startup_s: 0.0, scale_down_cooldown_s: 20.0}"
)
UNSAID = """
class Mine:
    def __init__(self, up: float = 0.5, down: float = 0.2) -> None:
        pass

    def desired(self, pool):
        return 1
"""


def _estimate(*overrides: str, points: list[dict[str, object]] | None = None) -> Estimate:
    space = SearchSpace.parse(FILE, overrides)
    rows = Rows(space)
    return ServingEstimates(rows)(rows.of(list(space.points()) if points is None else points))


def _scaled(policy: str, field: str, values: list[object], *overrides: str) -> Estimate:
    """Return the estimates with *values* of a field of the autoscaler, the policy's options among them."""
    base = f"deployment.aggregated.autoscaler={SCALER % policy}"
    return _estimate(base, *overrides, f"deployment.aggregated.autoscaler.{field}={{choices: {values}}}")


@pytest.fixture
def unsaid(tmp_path: Path) -> str:
    """Return a user's policy that does not say what it holds a pool to."""
    file = tmp_path / "mine.py"
    file.write_text(UNSAID)
    return f"{file}:Mine"


def test_steady_traffic_below_capacity_leaves_no_backlog() -> None:
    steady = "workload.load={type: constant_rate, rate_rps: 15.0}"
    assert (_estimate(steady).backlogs_s == 0.0).all()


def test_steady_traffic_above_capacity_leaves_what_cannot_be_served() -> None:
    found = _estimate("workload.load={type: constant_rate, rate_rps: 40.0}")  # 4 replicas' work for 2
    span_s = 8999 / 40.0
    assert found.backlogs_s.max() == pytest.approx(span_s * (found.load[0] - 1.0), rel=0.02)
    assert (np.diff(found.backlogs_s[0]) >= 0.0).all()


def test_a_wave_leaves_a_backlog_where_the_mean_load_would_not() -> None:
    found = _estimate("deployment.aggregated.replicas={choices: [4]}")
    assert found.load[0] < 0.8
    assert found.backlogs_s.max() == pytest.approx(120.0 * (6.0 - 4.0) / 4.0, rel=0.1)


@pytest.mark.parametrize("policy", sorted(policies("autoscaler")))
def test_bounds_hold_and_equal_bounds_are_a_fixed_pool(policy: str) -> None:
    options = "deployment.aggregated.autoscaler.options={}"
    found = _scaled(policy, "max_replicas", [2, 3, 12], options)
    assert (found.gpus >= 1.0).all()
    assert (found.gpus <= [2.0, 3.0, 12.0]).all()
    fixed, bound = (
        _estimate(),
        _scaled(policy, "max_replicas", [2], options, "deployment.aggregated.autoscaler.min_replicas=2"),
    )
    np.testing.assert_allclose(bound.backlogs_s, fixed.backlogs_s)
    np.testing.assert_allclose(bound.usd_per_hour, fixed.usd_per_hour)


@pytest.mark.parametrize("policy", sorted(policies("autoscaler")))
def test_every_policy_says_what_it_holds_a_replica_to(policy: str) -> None:
    said = setpoint(policy, {}, "")
    assert said is not None
    assert set(said.weights) <= set(SIGNALS)
    assert 0.0 <= said.down <= said.up


@pytest.mark.parametrize("policy", ["concurrency", "kv_utilization", "queue_depth"])
def test_a_higher_threshold_never_takes_more_replicas(policy: str) -> None:
    found = _scaled(
        policy, "options.up", [0.01, 0.03, 0.1, 0.3, 0.9], "deployment.aggregated.autoscaler.options.down=0.0"
    )
    assert (np.diff(found.gpus) <= 1e-9).all()
    assert found.gpus[0] > found.gpus[-1]


def test_a_longer_cold_start_never_lowers_the_backlog(unsaid: str) -> None:
    found = _scaled(unsaid, "startup_s", [0.0, 10.0, 30.0, 60.0, 120.0])
    worst = found.backlogs_s.max(axis=1)
    assert (np.diff(worst) >= -1e-9).all()
    assert worst[-1] > worst[0] + 10.0


def test_a_longer_interval_reacts_later(unsaid: str) -> None:
    worst = _scaled(unsaid, "interval_s", [5.0, 100.0]).backlogs_s.max(axis=1)
    assert worst[1] > worst[0]


def test_a_policy_that_says_nothing_is_taken_to_hold_half_to_two_thirds_of_the_load(unsaid: str) -> None:
    steady = "workload.load={type: constant_rate, rate_rps: 40.0}"
    found = _scaled(unsaid, "startup_s", [0.0], steady, "deployment.aggregated.replicas=6")
    assert 0.5 <= found.load[0] <= 0.7


@pytest.mark.parametrize("said", ["3", "Setpoint({'speed': 1.0}, 0.9, 0.1)", "1 / 0"])
def test_what_is_no_setpoint_is_refused_when_the_file_is_read(tmp_path: Path, said: str) -> None:
    file = tmp_path / "mine.py"
    method = f"\n    def setpoint(self):\n        return {said}\n"
    file.write_text("from dynosim.policies.base import Setpoint\n" + UNSAID + method)
    with pytest.raises(ConfigError, match="autoscaler") as caught:
        _scaled(f"{file}:Mine", "startup_s", [0.0])
    assert "\n" not in str(caught.value)


def test_thresholds_of_a_policy_are_the_setpoint() -> None:
    found = _scaled("concurrency", "options.up", [0.005, 0.9], "deployment.aggregated.autoscaler.options.down=0.0")
    assert found.usd_per_hour[0] > found.usd_per_hour[1]
    assert found.backlog_s[0] < found.backlog_s[1]


def test_a_scaler_is_found_in_a_mode_that_is_not_the_first_and_whose_first_values_contradict_each_other() -> None:
    pool = "{replicas: {choices: [1, 4]}, autoscaler: {max_replicas: 4, min_replicas: {choices: [2, 4]}}}"
    section = "deployment.disaggregated.prefill"
    found = _estimate(
        "deployment.mode={choices: [aggregated, disaggregated]}",
        f"deployment.disaggregated={{prefill: {pool}, decode: {{replicas: 1}}}}",
        points=[
            {"deployment.mode": "disaggregated", f"{section}.replicas": 4, f"{section}.autoscaler.min_replicas": n}
            for n in (2, 4)
        ],
    )
    assert found.gpus[1] == pytest.approx(5.0)
    assert 3.0 <= found.gpus[0] < 5.0
