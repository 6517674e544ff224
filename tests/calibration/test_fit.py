"""The fit gives back what the cluster was made with, says what it is worth elsewhere, refuses what does not match."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from calibration.cluster import CONFIG, DETAILED, LOADS, REQUESTS, SPLIT, TP2, TRUTH, config_file, measured, run
from calibration.tools import WRITERS, Load
from dynosim.calibration import Calibration, Measurement, calibrate, read_manifest, read_measured, replay
from dynosim.calibration.readers import Requests
from dynosim.cli import main
from dynosim.config import ConcurrencyLoad, PoissonLoad
from dynosim.errors import ConfigError
from dynosim.space import SearchSpace
from dynosim.timing.calibrated import Profile, load_profile

NEUTRAL = Profile(name="neutral")


def fitted(*measurements: Measurement) -> Calibration:
    return calibrate(measurements, name="mine", created="2026-11-22T06:00:00+00:00")


def worst(calibration: Calibration, of: str) -> float:
    return max(getattr(residual, of) for residual in calibration.profile.residuals.values())


# ---- what comes out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", WRITERS)
def test_the_cluster_comes_back_from_every_tool(tool: str, tmp_path: Path) -> None:
    found = fitted(measured(tmp_path, tools=[tool], loads=LOADS[::2]))
    assert found.profile.prefill == pytest.approx(TRUTH.prefill, rel=0.05)
    assert worst(found, "mape_before") > 0.2
    assert worst(found, "mape") < 0.03
    assert (found.profile.left_out, found.profile.recommended) == ("load point", True)


def test_a_configuration_that_was_left_out_is_predicted(tmp_path: Path) -> None:
    """Two tensor-parallel sizes tell a slow kernel from time between passes, which load points of one do not."""
    found = fitted(measured(tmp_path), measured(tmp_path, TP2))
    assert found.profile.prefill == pytest.approx(TRUTH.prefill, rel=0.01)
    assert found.profile.decode == pytest.approx(TRUTH.decode, rel=0.01)
    assert found.profile.overhead_ms == pytest.approx(TRUTH.overhead_ms, abs=0.1)
    assert found.profile.left_out == "configuration"
    assert worst(found, "mape_left_out") < 0.1
    assert found.profile.ranges["largest_tensor_parallel_size"] == (1.0, 2.0)
    assert found.profile.fitted_on["gpu"] == ("h100_sxm",)
    assert {row.deployment for row in found.comparisons} == {"1xTP1", "1xTP2"}


@pytest.mark.parametrize(
    ("constant", "value", "within"), [("frontend_ms", 20.0, 1.0), ("request_us", 100.0, 5.0), ("overhead_ms", 2.0, 0.1)]
)
def test_one_cause_is_found_as_that_cause(constant: str, value: float, within: float, tmp_path: Path) -> None:
    """A slow frontend is no slow prefill: nothing else is moved, and lengths that were left out are predicted."""
    truth, long = Profile(name="truth", **{constant: value}), "workload.source.input_tokens.max=6000"
    both = [measured(tmp_path, *more, profile=truth, tools=[DETAILED], loads=LOADS[:2]) for more in ((), (long,))]
    found = fitted(*(each.model_copy(update={"overrides": ()}) for each in both)).profile
    assert getattr(found, constant) == pytest.approx(value, abs=within)
    assert found.not_determined == tuple(name for name in found.standard_errors if name != constant)
    assert (found.prefill, found.decode) == (1.0, 1.0)
    assert (found.left_out, found.recommended) == ("length", True)


def test_the_hand_off_is_fitted_where_there_is_one(tmp_path: Path) -> None:
    truth = Profile(name="truth", transfer=1.8)
    split = fitted(measured(tmp_path, *SPLIT, profile=truth, loads=LOADS[:2]))
    assert split.profile.transfer == pytest.approx(1.8, rel=0.1)
    assert worst(split, "mape") < 0.01
    assert fitted(measured(tmp_path, profile=truth, loads=LOADS[:1])).profile.transfer == 1.0


def test_a_cluster_like_the_simulator_needs_no_profile(tmp_path: Path) -> None:
    found = fitted(measured(tmp_path, profile=NEUTRAL))
    assert found.profile.pass_times == NEUTRAL.pass_times
    assert set(found.profile.not_determined) == set(found.profile.standard_errors)
    assert not found.profile.recommended


def test_what_the_runs_do_not_tell_stays_where_it_is(tmp_path: Path) -> None:
    """Answers of one token have no decode passes: their time could be anything."""
    only_prompts = "workload.source.output_tokens={type: fixed, tokens: 1}"
    found = fitted(measured(tmp_path, only_prompts, tools=["vLLM bench"], loads=LOADS[:2]))
    assert found.profile.decode == 1.0
    assert "decode" in found.profile.not_determined
    assert found.profile.standard_errors["decode"] > 0.5
    assert worst(found, "mape") < 0.02


def test_numbers_that_no_multiplier_explains_give_no_recommendation(tmp_path: Path) -> None:
    given = measured(tmp_path, profile=NEUTRAL, tools=["vLLM bench"], loads=LOADS[:2])
    for path, factor in zip(given.measured, (0.4, 2.5), strict=True):
        data = json.loads(Path(path).read_text())
        Path(path).write_text(json.dumps({**data, "mean_tpot_ms": data["mean_tpot_ms"] * factor}))
    assert not fitted(given).profile.recommended


def test_multipliers_stop_at_their_bounds_and_say_so(tmp_path: Path) -> None:
    found = fitted(measured(tmp_path, profile=Profile(name="truth", decode=6.0), loads=LOADS[:2]))
    assert found.profile.decode == pytest.approx(3.0, rel=0.01)
    assert "decode" in found.profile.at_bounds
    assert fitted(measured(tmp_path, loads=LOADS[:1])).profile.at_bounds == ()


def test_one_run_is_fitted_and_not_recommended(tmp_path: Path) -> None:
    profile = fitted(measured(tmp_path, loads=LOADS[:1])).profile
    assert (profile.left_out, profile.recommended) == (None, False)
    assert {residual.mape_left_out for residual in profile.residuals.values()} == {None}


def test_equal_measurements_give_equal_profiles(tmp_path: Path) -> None:
    given = measured(tmp_path, loads=LOADS[:1])
    assert fitted(given) == fitted(given)


def test_comparisons_are_what_predict_says(tmp_path: Path) -> None:
    """Without a profile, with it: the same numbers as of a simulation under that load."""
    given = measured(tmp_path, loads=LOADS[:2])
    found = fitted(given)
    for load, rows in zip(LOADS, (found.comparisons[:3], found.comparisons[3:]), strict=False):
        for profile, which in ((NEUTRAL, "before"), (found.profile, "after"), (TRUTH, "measured")):
            metrics = run(given.config, (), load, profile)[1]
            for row in rows:
                assert getattr(row, which) == pytest.approx(metrics.value(row.metric), rel=1e-6)


# ---- what is replayed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [*LOADS[1:], PoissonLoad(rate_rps=6.0)], ids=str)
def test_requests_of_the_file_are_sent_as_they_were(load: Load, tmp_path: Path) -> None:
    """Whatever the configuration's lengths and arrivals are: on the same cluster the same happens to each request."""
    given = measured(tmp_path, tools=[DETAILED], loads=[load])
    other = SearchSpace.load(given.config, ["workload.source.input_tokens={type: fixed, tokens: 7}"]).deployed()
    (run_of_file,) = read_measured(given.measured[0])
    replayed = replay(run_of_file, other)
    requests, seen = run_of_file.requests, replayed.simulate(TRUTH).requests
    assert requests is not None
    assert seen["input_tokens"].tolist() == requests.input_tokens.tolist()
    assert seen["arrival_s"] == pytest.approx(requests.sent_s, abs=1e-6)
    assert 1e3 * (seen["first_token_s"] - seen["arrival_s"]) == pytest.approx(
        requests.latencies_ms["time_to_first_token"], abs=1e-3
    )
    assert replayed.sampling_error("time_to_first_token") < run_of_file.standard_error("time_to_first_token")


def test_a_slower_cluster_delays_its_clients_and_not_the_crowd(tmp_path: Path) -> None:
    """Clients of a closed loop wait for simulated answers; those of an open one send when they sent."""
    slow = Profile(name="slow", decode=2.5)
    for load, follows in ((LOADS[1], True), (PoissonLoad(rate_rps=2.0), False)):
        given = measured(tmp_path, tools=[DETAILED], loads=[load])
        replayed = replay(read_measured(given.measured[0])[0], SearchSpace.load(given.config).deployed())
        last = replayed.simulate(slow).requests["arrival_s"].max()
        assert (last > replayed.workload.arrival_s.max() * 1.1) == follows


def test_an_average_of_few_or_of_scattered_requests_weighs_less() -> None:
    n = np.ones(100, dtype=int)
    rows = {
        "sent_s": np.arange(100.0),
        "input_tokens": n,
        "output_tokens": n,
        "inter_token_latency": n,
        "request_latency": n,
    }
    scattered = np.random.default_rng(1).normal(10.0, 1.0, 100)
    many, few = (
        Requests.of({k: v[:m] for k, v in {**rows, "time_to_first_token": scattered}.items()}) for m in (100, 9)
    )
    assert many is not None
    assert few is not None
    assert many.standard_error("time_to_first_token") == pytest.approx(0.01, rel=0.5)
    assert few.standard_error("time_to_first_token") == pytest.approx(0.1 / 3.0, rel=0.5)
    assert many.standard_error("time_to_first_token", beside=scattered - 2.0) == pytest.approx(0.0, abs=1e-12)
    in_bursts = Requests.of({**rows, "time_to_first_token": np.where(np.arange(100) < 50, 1.0, 2.0)})
    assert in_bursts is not None
    assert in_bursts.standard_error("time_to_first_token") > 2.0 * 0.5 / 1.5 / np.sqrt(100)


# ---- what is refused -----------------------------------------------------------------------------------------------


def _refusal(change: Callable[[dict[str, Any]], None], tmp_path: Path, **options: Any) -> str:
    given = measured(tmp_path, loads=LOADS[:1], tools=["vLLM bench"]).model_copy(update=options)
    data = json.loads(Path(given.measured[0]).read_text())
    change(data)
    Path(given.measured[0]).write_text(json.dumps(data))
    with pytest.raises(ConfigError) as error:
        fitted(given)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "factor", "says"),
    [
        ("total_input_tokens", 1.06, "mean prompt of"),
        ("total_input_tokens", 0.94, "allowed: within 5% of the configuration's"),
        ("total_output_tokens", 1.06, "mean answer of"),
        ("total_output_tokens", 0.94, "mean answer of"),
    ],
)
def test_other_lengths_are_refused(key: str, factor: float, says: str, tmp_path: Path) -> None:
    assert says in _refusal(lambda data: data.update({key: data[key] * factor}), tmp_path)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model_id": "meta-llama/Llama-3.1-70B-Instruct"}, "model meta-llama/Llama-3.1-70B-Instruct: the config"),
        ({"model_id": "/models/Qwen3-32B/"}, "model /models/Qwen3-32B/: the configuration's is llama-3.1-8b"),
        ({"failed": 1}, f"1 of {REQUESTS + 1} requests failed: allowed: at most 1%"),
        ({"workload_hash": "0123"}, "workload hash 0123: the configuration's workload is"),
    ],
)
def test_another_experiment_is_refused(values: dict[str, Any], says: str, tmp_path: Path) -> None:
    assert says in _refusal(lambda data: data.update(values), tmp_path)


def test_a_hash_of_other_requests_is_refused(tmp_path: Path) -> None:
    assert "workload hash beef" in _refusal(lambda data: None, tmp_path, workload_hash="beef")


def test_a_file_counts_once(tmp_path: Path) -> None:
    once = measured(tmp_path, loads=LOADS[:1])
    with pytest.raises(ConfigError, match="each run once"):
        fitted(once, once)


def test_names_of_ones_own_and_five_percent_pass(tmp_path: Path) -> None:
    (found,) = read_measured(measured(tmp_path, loads=LOADS[:1], tools=["vLLM bench"]).measured[0])
    scenario = SearchSpace.load(config_file(tmp_path)).deployed()
    own = replace(found, model="production", output_tokens=found.output_tokens * 1.04)
    assert len(replay(own, scenario).workload) == REQUESTS


def test_a_trace_must_be_replayed_as_a_trace_and_hold_the_requests(tmp_path: Path) -> None:
    (found,) = read_measured(measured(tmp_path, loads=LOADS[:1], tools=["vLLM bench"]).measured[0])
    scenario = SearchSpace.load(config_file(tmp_path)).deployed()
    with pytest.raises(ConfigError, match="sent at the times of a trace: the configuration's load is poisson"):
        replay(replace(found, load=None), scenario)
    line = {"input_length": 1600, "output_length": 55}
    lines = [json.dumps({**line, "timestamp": i, "hash_ids": [i]}) for i in range(9)]
    (tmp_path / "trace.jsonl").write_text("\n".join(lines))
    source = {"type": "trace", "path": str(tmp_path / "trace.jsonl"), "block_tokens": 2048}
    overrides = [f"workload.source={json.dumps(source)}", "workload.load={type: trace_timestamps}"]
    traced = SearchSpace.load(config_file(tmp_path), overrides).deployed()
    with pytest.raises(ConfigError, match=f"{REQUESTS} requests: the configuration's workload has 9"):
        replay(found, traced)
    known = replace(found, load=None, completed=9, input_tokens=1600.0, output_tokens=55.0)
    assert replay(known, traced).workload.arrival_s[-1] == 0.008


def test_a_deployment_that_turns_requests_away_is_refused(tmp_path: Path) -> None:
    given = measured(tmp_path, loads=LOADS[:1])
    tight = "deployment.aggregated.num_gpu_blocks_override=100"
    with pytest.raises(ConfigError, match="turns requests away that the real one served"):
        fitted(given.model_copy(update={"overrides": (tight,)}))


def test_gaps_of_answers_that_have_none_are_refused(tmp_path: Path) -> None:
    only_prompts = "workload.source.output_tokens={type: fixed, tokens: 1}"
    says = "inter_token_latency was measured, and no simulated request has one"
    assert says in _refusal(lambda data: data.update(total_output_tokens=REQUESTS), tmp_path, overrides=(only_prompts,))


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_writes_a_profile_that_predicts_the_cluster(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = measured(folder, loads=LOADS[:2])
    assert main(["calibrate", given.config, *given.measured]) == 0
    told = capsys.readouterr().out
    profile = load_profile("mine")
    assert f"use          --set deployment.calibration={profile.label}" in told
    assert "better than without on every load point" in told
    assert [source.tool for source in profile.sources] == ["aiperf", "vllm bench"]
    load = "workload.load={type: concurrency, concurrency: 6}"
    options = ["--set", "deployment.calibration=mine", "--set", load, "--format", "json"]
    assert main(["predict", given.config, *options]) == 0
    predicted = json.loads(capsys.readouterr().out)["metrics"]["inter_token_latency"]["avg"]
    truth = run(given.config, (), ConcurrencyLoad(concurrency=6))[1].value("inter_token_latency")
    assert predicted == pytest.approx(truth, rel=0.01)


def test_a_manifest_names_several_deployments(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [measured(folder, loads=LOADS[:1]), measured(folder, TP2, loads=LOADS[:1])]
    relative = [
        {
            "config": "mine.yaml",
            "overrides": list(each.overrides),
            "measured": [str(Path(file).relative_to(folder)) for file in each.measured],
        }
        for each in both
    ]
    (folder / "cluster.yaml").write_text(yaml.safe_dump({"runs": relative}))
    assert [each.overrides for each in read_manifest(folder / "cluster.yaml")] == [(), (TP2,)]
    assert main(["calibrate", "cluster.yaml", "--out", "elsewhere", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["left_out"] == "configuration"
    assert Path(told["path"]).parent == Path("elsewhere")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mine.yaml"], "mine.yaml:1: not a manifest"),
        (["empty.yaml"], "empty.yaml:1: runs: "),
        (["mine.yaml", "--set", "seed=1"], "a manifest has its own"),
        (["mine.yaml", "absent.json"], "absent.json: cannot be read"),
        (["mine.yaml", "mine.yaml"], "mine.yaml:2: not JSON"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: Sequence[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine.yaml").write_text(CONFIG)
    (folder / "empty.yaml").write_text("runs: []\n")
    assert main(["calibrate", *arguments]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1
