"""Profiles: what their multipliers do, where they apply, how they are found, and who notices another one."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dynosim.config import DeploymentConfig, Scenario
from dynosim.errors import ConfigError
from dynosim.hardware.plan import pool_plans
from dynosim.run.spaces import load_space
from dynosim.run.study import identity
from dynosim.search import cache
from dynosim.service.guard import check_data
from dynosim.simulation import SimulationResult, simulate
from dynosim.space import SearchSpace
from dynosim.timing import effective_tables
from dynosim.timing.base import PassTables
from dynosim.timing.calibrated import CalibratedDeployment, Profile, calibrate, conditions, fitted_on, profile_of
from dynosim.workload import load_workload
from simulation.test_knobs import BASE

FIXED = {"type": "fixed", "prefill_ms_per_token": 0.125, "decode_ms": 8.0}
SPLIT = {"mode": "disaggregated", "disaggregated": {"prefill": {}, "decode": {}}, "aggregated": None}
CLOSED = {"type": "concurrency", "concurrency": 7}
DOUBLE = Profile(name="double", prefill=2.0, decode=2.0, transfer=2.0)


def scenario(load: dict[str, Any] | None = None, **deployment: Any) -> Scenario:
    workload = BASE["workload"] | ({"load": load} if load else {})
    data = {"name": "test", "workload": workload, "deployment": {**BASE["deployment"], **deployment}}
    return Scenario.model_validate(data)


def serve(deployment: DeploymentConfig, given: Scenario) -> SimulationResult:
    return simulate(deployment, load_workload(given.workload, given.seed), given.seed)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(name: str = "mine", **values: Any) -> str:
    """Save a profile and return its label."""
    return Profile(name=name, **{"generic": True, **values}).save().stem


# ---- multipliers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deployment", [{}, SPLIT], ids=["aggregated", "disaggregated"])
def test_a_bare_profile_changes_nothing_byte_for_byte(folder: Path, deployment: dict[str, Any]) -> None:
    plain, bare = scenario(**deployment), scenario(**deployment, calibration=saved())
    assert serve(bare.deployment, bare).requests.tobytes() == serve(plain.deployment, plain).requests.tobytes()
    tables = effective_tables(next(iter(pool_plans(plain.deployment).values())))
    assert calibrate(tables, Profile(name="bare")) is tables


def test_times_on_all_clocks_twice_as_slow_are_exactly_twice_as_long() -> None:
    """In a closed loop nothing but passes and hand-offs takes time. Doubling is exact in floating point."""
    given = scenario(CLOSED, timing=FIXED, **SPLIT)
    once, twice = (
        serve(each, given).requests for each in (given.deployment, CalibratedDeployment.of(given.deployment, DOUBLE))
    )
    for name in ("arrival_s", "first_token_s", "last_token_s", "kv_transfer_s", "queue_s"):
        np.testing.assert_allclose(twice[name], 2.0 * once[name], rtol=1e-12, err_msg=name)
    assert once["kv_transfer_s"].sum() > 0.0


def test_each_multiplier_moves_its_own_part() -> None:
    """One request of 100 tokens that answers with 11: 12.5 ms of prefill, ten passes of 8 ms."""
    lone = {"source": {"type": "synthetic", "requests": 1, "input_tokens": {"type": "fixed", "tokens": 100}}}
    lone["source"]["output_tokens"] = {"type": "fixed", "tokens": 11}
    data = {"name": "test", "workload": {**lone, "load": {"type": "concurrency", "concurrency": 1}}}
    given = Scenario.model_validate({**data, "deployment": {**BASE["deployment"], "timing": FIXED}})

    def times_ms(**multipliers: float) -> tuple[float, float]:
        profile = Profile(name="x", **multipliers)
        (done,) = serve(CalibratedDeployment.of(given.deployment, profile), given).requests
        return 1e3 * done["first_token_s"], 1e3 * (done["last_token_s"] - done["first_token_s"])

    assert times_ms() == pytest.approx((12.5, 80.0))
    assert times_ms(prefill=2.0) == pytest.approx((25.0, 80.0))
    assert times_ms(decode=1.5) == pytest.approx((12.5, 120.0))
    assert times_ms(overhead_ms=3.0) == pytest.approx((15.5, 110.0))
    assert times_ms(transfer=3.0) == pytest.approx((12.5, 80.0))


def _tables(**deployment: Any) -> PassTables:
    config = scenario(**deployment).deployment
    return effective_tables(next(iter(pool_plans(config).values())))


MOE = {
    "model": "qwen3-235b-a22b",
    "gpu": "h200_sxm",
    "quantization": "fp8",
    "timing": {"type": "pack"},
    "aggregated": {"tensor_parallel_size": 4, "data_parallel_size": 2, "enable_expert_parallel": True},
}


@pytest.mark.parametrize("deployment", [{}, MOE], ids=["roofline", "ranks"])
def test_every_time_of_the_tables_is_multiplied(deployment: dict[str, Any]) -> None:
    """A time that is forgotten, such as the experts' share, would be wrong by the multiplier."""
    once = _tables(**deployment)
    twice = calibrate(once, DOUBLE)
    times = [item.name for item in fields(once) if item.name.endswith("_s")]
    assert len(times) >= 6
    for name in times:
        np.testing.assert_array_equal(getattr(twice, name), 2.0 * np.asarray(getattr(once, name)), err_msg=name)


def test_the_overhead_is_in_every_pass_once_and_in_no_empty_one() -> None:
    once = _tables()
    slower = calibrate(once, Profile(name="x", overhead_ms=2.0))
    for name in ("tokens_s", "graph_tokens_s"):
        more = getattr(slower, name) - getattr(once, name)
        assert more[0] == 0.0
        assert more[1:] == pytest.approx(0.002)
    assert np.array_equal(slower.decode_s, once.decode_s)


# ---- where a profile applies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("model", "llama-3.1-70b", "model llama-3.1-8b, not llama-3.1-70b"),
        ("gpu", "h200_sxm", "gpu h100_sxm, not h200_sxm"),
        ("engine", {"name": "sglang"}, "engine vllm, not sglang"),
        ("quantization", "fp8", "quantization none, not fp8"),
        ("timing", {"type": "fixed"}, "timing roofline, not fixed"),
    ],
)
def test_a_profile_belongs_to_what_it_was_fitted_on(folder: Path, field: str, value: Any, says: str) -> None:
    fitted = fitted_on(scenario().deployment)
    label = saved(decode=2.0, generic=False, fitted_on=fitted)
    assert profile_of(scenario(calibration=label).deployment).label == label
    other = scenario(**{field: value, "calibration": label})
    with pytest.raises(ConfigError, match=says) as error:
        profile_of(other.deployment)
    assert str(error.value).startswith("deployment.calibration: ")
    generic = saved(decode=2.0, generic=True, fitted_on=fitted)
    assert profile_of(scenario(**{field: value, "calibration": generic}).deployment).decode == 2.0


def test_nothing_is_simulated_under_a_profile_of_something_else(folder: Path) -> None:
    label = saved(decode=2.0, generic=False, fitted_on=fitted_on(scenario().deployment))
    other = scenario(gpu="h200_sxm", calibration=label)
    with pytest.raises(ConfigError, match="is for gpu h100_sxm"):
        serve(other.deployment, other)


def test_both_pools_must_be_what_was_measured(folder: Path) -> None:
    label = saved(decode=2.0, generic=False, fitted_on=fitted_on(scenario(**SPLIT).deployment))
    mixed = {**SPLIT, "disaggregated": {"prefill": {}, "decode": {"gpu": "h200_sxm"}}}
    with pytest.raises(ConfigError, match="gpu h100_sxm, not h100_sxm, h200_sxm"):
        profile_of(scenario(**mixed, calibration=label).deployment)


def test_points_of_a_space_outside_a_profile_are_infeasible_and_the_others_not(folder: Path) -> None:
    label = saved(decode=2.0, generic=False, fitted_on=fitted_on(scenario().deployment))
    space = SearchSpace.load("tiny", [f"deployment.calibration={label}"])
    reasons = {
        gpu: space.infeasible_reason({**space.baseline_point(), "deployment.gpu": gpu}) for gpu in ("h100_sxm", "l40s")
    }
    assert reasons["h100_sxm"] is None
    assert "is for gpu h100_sxm, not l40s" in str(reasons["l40s"])


@given(st.floats(1.0, 1e4), st.floats(1.0, 1e4), st.floats(0.1, 1e5))
def test_outside_is_beyond_a_quarter_of_the_range(one: float, other: float, asked: float) -> None:
    low, high = sorted((one, other))
    profile = Profile(name="x", ranges={"context_tokens": (low, high)})
    inside = low / 1.25 <= asked <= high * 1.25
    assert profile.outside({"context_tokens": asked, "unknown": 1.0}) == ([] if inside else ["context_tokens"])


def test_conditions_are_of_the_pool_that_decodes() -> None:
    pools = {"prefill": {"tensor_parallel_size": 4}, "decode": {"replicas": 3}}
    given = scenario(**{**SPLIT, "disaggregated": pools})
    flat = {"effective_concurrency": 60.0, "total_token_throughput": 900.0, "request_throughput": 3.0}
    assert conditions(given.deployment, flat) == {
        "smallest_tensor_parallel_size": 1.0,
        "largest_tensor_parallel_size": 4.0,
        "requests_per_replica": 20.0,
        "context_tokens": 300.0,
    }
    assert "context_tokens" not in conditions(given.deployment, {})


# ---- files ---------------------------------------------------------------------------------------------------------


def test_a_name_is_the_newest_profile_of_it(folder: Path) -> None:
    old, new = saved(decode=1.1, created="2026-01-01"), saved(decode=1.2, created="2026-01-02")
    saved("mine-too", decode=1.3, created="2026-01-03")
    for name, decode in {"mine": 1.2, old: 1.1, new: 1.2, new[:-3]: 1.2, f"calibrations/{old}.yaml": 1.1}.items():
        assert profile_of(scenario(calibration=name).deployment).decode == decode


def test_a_profile_survives_its_file(folder: Path) -> None:
    profile = Profile(name="mine", prefill=1.1, generic=True, ranges={"a": (0.1, 1 / 3)}, created="2026-01-01")
    assert profile_of(scenario(calibration=str(profile.save())).deployment) == profile


def test_a_file_without_the_fields_of_later_versions_keeps_its_name(folder: Path) -> None:
    label = saved(prefill=1.1, sources=({"file": "a.json", "sha256": "0", "tool": "aiperf", "runs": 1},))
    path = folder / f"calibrations/{label}.yaml"
    said = {
        name: x
        for name, x in yaml.safe_load(path.read_text()).items()
        if name in ("name", "prefill", "generic", "sources")
    }
    path.write_text(yaml.safe_dump(said))
    assert profile_of(scenario(calibration="mine").deployment).label == label


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("none", None, "none: no such profile under calibrations/: allowed: a YAML file, mine@"),
        ("absent.yaml", None, "absent.yaml: cannot be read"),
        ("bad.yaml", "name: bad\nprefil: 2\n", "bad.yaml: prefil: Extra inputs"),
        ("bad.yaml", "name: bad\nprefill: -2\n", "bad.yaml: prefill: Input should be greater than 0"),
        ("bad.yaml", "name: [", "bad.yaml:1: YAML"),
        ("bad@12345678", "name: bad\n", "was edited: its content is bad@"),
    ],
)
def test_what_is_wrong_with_a_profile_is_one_line(folder: Path, name: str, text: str | None, says: str) -> None:
    saved(decode=2.0)
    if text is not None:
        (folder / (name if name.endswith(".yaml") else f"calibrations/{name}.yaml")).write_text(text)
    with pytest.raises(ConfigError) as error:
        profile_of(scenario(calibration=name).deployment)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_space_says_where_it_names_a_profile_that_is_not_there(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"override 'deployment.calibration=none': deployment.calibration: none: no such"
    ):
        SearchSpace.load("tiny", ["deployment.calibration=none"])


# ---- who must notice -----------------------------------------------------------------------------------------------


def test_a_new_profile_of_the_same_name_reuses_no_results(folder: Path) -> None:
    given = scenario(calibration="mine")
    workload, keys = load_workload(given.workload, 0), set()
    for day, decode in enumerate((1.1, 1.2), start=1):
        saved(decode=decode, created=f"2026-01-0{day}")
        keys.add(cache.result_key(given, workload, stopped=False))
    assert len({*keys, cache.result_key(scenario(), workload, stopped=False)}) == 3


@pytest.mark.parametrize("name", ["mine", "mine.yaml"])
def test_another_content_under_the_same_name_starts_a_new_run(folder: Path, name: str) -> None:
    identities = set()
    for day, decode in enumerate((1.1, 1.2), start=1):
        label = saved(decode=decode, created=f"2026-01-0{day}")
        (folder / "mine.yaml").write_bytes((folder / f"calibrations/{label}.yaml").read_bytes())
        space = load_space("tiny", overrides=[f"deployment.calibration={name}"])
        assert space.reference.deployment.calibration == (label if name == "mine" else name)
        identities.add(identity(space, "", "", None))
    assert len(identities) == 2


def test_http_users_name_profiles_and_no_files() -> None:
    check_data({"deployment": {"calibration": "mine@12345678"}}, None)
    with pytest.raises(ConfigError, match="calibrations over HTTP"):
        check_data({"deployment": {"calibration": "../../etc/x.yaml"}}, None)
