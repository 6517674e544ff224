"""Runs of a real vLLM server whose pass times are known (benchmarks/closed_loop.py --record): calibrated, predicted."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dynosim.calibration import Calibration, Measurement, calibrate
from dynosim.timing.calibrated import Profile

RECORDED = Path(__file__).parent / "recorded"
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "closed_loop.py"
LIMIT = 0.02
NEUTRAL = Profile(name="none")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("closed_loop", SCRIPT)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Any], tuple[str, str]]:
    folder = tmp_path_factory.mktemp("server")

    def of(purpose: str, load: Any) -> tuple[str, str]:
        return script.configuration(folder, load, compute=False), str(script.recorded(RECORDED, purpose, load))

    return of


@pytest.fixture(scope="module")
def calibration(script: ModuleType, run: Callable[[str, Any], tuple[str, str]]) -> Calibration:
    runs = (run("calibrate", load) for load in script.TIMED["calibrate"])
    return calibrate([Measurement(config=config, measured=(file,)) for config, file in runs], name="server")


def test_only_the_frontend_is_found_where_pass_times_are_known(calibration: Calibration) -> None:
    """What the simulator has of vLLM's passes and scheduler is right, so nothing else may be moved."""
    profile = calibration.profile
    assert profile.pass_times == NEUTRAL.pass_times
    assert 4.0 < profile.frontend_ms < 9.0
    for residual in profile.residuals.values():
        assert residual.mape < 0.015


def test_lengths_that_were_left_out_are_predicted(
    script: ModuleType, run: Callable[[str, Any], tuple[str, str]]
) -> None:
    files = [run(purpose, load) for purpose, loads in script.TIMED.items() for load in loads[:2]]
    profile = calibrate([Measurement(config=config, measured=(file,)) for config, file in files], name="server").profile
    assert (profile.left_out, profile.recommended) == ("length", True)
    for residual in profile.residuals.values():
        assert residual.mape_left_out is not None
        assert residual.mape_left_out < min(LIMIT, residual.mape_before + 0.001)


@pytest.mark.parametrize("place", range(3))
def test_other_loads_and_lengths_are_predicted(
    place: int, script: ModuleType, run: Callable[[str, Any], tuple[str, str]], calibration: Calibration
) -> None:
    """Closed loops from the configuration alone; the open one at the times when its client sent."""
    load = script.TIMED["predict"][place]
    measured, predicted = script.predicted(*run("predict", load), load, calibration.profile)
    for name, value in measured.items():
        assert predicted[name] == pytest.approx(value, rel=LIMIT), name


def test_a_frontend_that_takes_requests_at_once_is_none(
    script: ModuleType, run: Callable[[str, Any], tuple[str, str]], calibration: Calibration
) -> None:
    """Clients of a closed loop would march in step: all prompts in one pass, and no decode beside a prompt."""
    load = script.TIMED["predict"][0]
    config, file = run("predict", load)
    at_once = Path(config).with_name("at_once.yaml")
    at_once.write_text(Path(config).read_text().replace("frontend_request_us: 1000", "frontend_request_us: 0"))
    measured, predicted = script.predicted(str(at_once), file, load, calibration.profile)
    assert predicted["inter_token_latency"] == pytest.approx(script.PASS_TIMES["decode_ms"])
    assert measured["inter_token_latency"] > 1.02 * script.PASS_TIMES["decode_ms"]


def test_recorded_files_hold_no_texts_and_no_places() -> None:
    for path in RECORDED.glob("*.json"):
        data = json.loads(path.read_text())
        assert "generated_texts" not in data
        assert data["model_id"] == "tiny-llama"
