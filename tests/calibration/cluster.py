"""A cluster to calibrate to: the simulator itself under a hidden profile, measured with any of the tools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

from calibration.tools import WRITERS, Load, vllm_bench_detailed
from dynosim.calibration import Measurement
from dynosim.config import ConcurrencyLoad
from dynosim.metrics import Metrics, summarize
from dynosim.simulation import SimulationResult, simulate
from dynosim.space import SearchSpace
from dynosim.timing.calibrated import CalibratedDeployment, Profile
from dynosim.workload import load_workload

REQUESTS = 60
DETAILED = "vLLM bench --save-detailed"
CONFIG = f"""
name: mine
workload:
  source:
    type: synthetic
    requests: {REQUESTS}
    input_tokens: {{type: uniform, min: 200, max: 3000}}
    output_tokens: {{type: uniform, min: 10, max: 100}}
  load: {{type: poisson, rate_rps: 1}}
deployment:
  model: llama-3.1-8b
  gpu: h100_sxm
  timing: {{type: roofline}}
  aggregated: {{}}
"""
TP2 = "deployment.aggregated.tensor_parallel_size=2"
SPLIT = (
    "deployment.mode=disaggregated",
    "deployment.aggregated=null",
    "deployment.disaggregated={prefill: {}, decode: {}, kv_transfer: {bandwidth_gb_s: 2}}",
)
TRUTH = Profile(name="truth", prefill=1.3, decode=1.1, overhead_ms=2.0)
LOADS = tuple(ConcurrencyLoad(concurrency=n) for n in (1, 6, 24))


def config_file(folder: Path) -> str:
    path = folder / "mine.yaml"
    path.write_text(CONFIG)
    return str(path)


def run(
    config: str, overrides: Sequence[str], load: Load, profile: Profile = TRUTH
) -> tuple[SimulationResult, Metrics]:
    """Serve the configuration's requests under *load* on the cluster."""
    scenario = SearchSpace.load(config, overrides).deployed()
    workload = load_workload(scenario.workload.model_copy(update={"load": load}), scenario.seed)
    result = simulate(CalibratedDeployment.of(scenario.deployment, profile), workload, scenario.seed)
    return result, summarize(result, {}, scenario.prices)


def measured(
    folder: Path,
    *overrides: str,
    profile: Profile = TRUTH,
    loads: Sequence[Load] = LOADS,
    tools: Sequence[str] = tuple(WRITERS),
) -> Measurement:
    """Measure a configuration under each load, with the tools in turn."""
    config, turns = config_file(folder), zip(loads, cycle(tools), strict=False)
    return Measurement(
        config=config, overrides=overrides, measured=tuple(_files(folder, config, overrides, turns, profile))
    )


def _files(folder: Path, config: str, overrides: Sequence[str], turns: zip, profile: Profile) -> Iterator[str]:
    place = folder / str(len(list(folder.iterdir())))
    place.mkdir()
    for i, (load, tool) in enumerate(turns):
        writer = {**WRITERS, DETAILED: vllm_bench_detailed}[tool]
        path = place / f"{i}.json"
        path.write_text(writer(*run(config, overrides, load, profile), load))
        yield str(path)
