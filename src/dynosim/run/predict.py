"""One configuration, simulated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynosim.config import Scenario, cases_of
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.metrics import Metrics, over_seeds, summarize
from dynosim.run.spaces import load_space
from dynosim.search.cases import combined
from dynosim.search.evaluate import score
from dynosim.search.trial import Outcome, Status
from dynosim.simulation import SimulationResult, simulate
from dynosim.space import feasibility
from dynosim.uncertainty.evidence import evidence
from dynosim.uncertainty.model_band import Band, Evidence, model_bands
from dynosim.workload import load_workload


@dataclass(frozen=True)
class Prediction:
    """One simulated scenario."""

    scenario: Scenario
    metrics: Metrics
    result: SimulationResult
    """Of the first seed and the first case."""
    evidence: Evidence
    """What the metrics rest on."""
    seeds: int = 1
    """Simulations with different traffic that the metrics are means of."""
    outcome: Outcome | None = None
    """Of several workloads or scenarios: objectives, SLOs and every case; ``metrics`` are then means over them."""

    def model_bands(self) -> dict[str, Band]:
        """Return metric -> factors between which the truth lies; metrics for which that is not known are absent."""
        return model_bands(self.scenario, self.evidence, saturated=bool(self.metrics.value("saturated")))


def predict(
    config: str | Path, *, overrides: Sequence[str] = (), trace: str | Path | None = None, seeds: int = 1
) -> Prediction:
    """Simulate the one configuration of a YAML file, or the baseline of a space.

    With *seeds* above 1 the metrics are means over as many runs, from the file's seed on, and their intervals are those
    of independent runs. Raises ConfigError (also for seeds that change no traffic), InfeasibleError when the deployment
    cannot run, and TimingError when its pass times are unknown.
    """
    scenario = load_space(config, overrides=overrides, trace=trace).deployed()
    feasibility.check_start(scenario)
    cases = cases_of(scenario)
    found = [_mean(case.scenario, seeds) for case in cases]
    result, metrics = found[0]
    if len(cases) == 1:
        return Prediction(scenario, metrics, result, evidence(scenario, metrics.flat()), seeds)
    outcome = _combined(scenario, [metrics for _, metrics in found])
    return Prediction(scenario, outcome.known_metrics(), result, outcome.evidence or "extrapolated", seeds, outcome)


def _mean(scenario: Scenario, seeds: int) -> tuple[SimulationResult, Metrics]:
    """Return the run of the first seed, and the metrics over all."""
    results, runs = zip(*_simulated(scenario, seeds), strict=True)
    return results[0], runs[0] if seeds == 1 else over_seeds(runs)


def _simulated(scenario: Scenario, seeds: int) -> Iterator[tuple[SimulationResult, Metrics]]:
    """Yield a run for each seed from the scenario's on."""
    workloads = [load_workload(scenario.workload, scenario.seed + i) for i in range(seeds)]
    if len({workload.content_hash() for workload in workloads}) < seeds:
        raise ConfigError(
            "the workload is the same with every seed: one run, and a sampling interval over its requests"
        )
    for i, workload in enumerate(workloads):
        result = simulate(scenario.deployment, workload, seed=scenario.seed + i)
        yield result, summarize(result, scenario.slo, scenario.prices)


def _combined(scenario: Scenario, found: Sequence[Metrics]) -> Outcome:
    cases, outcomes = cases_of(scenario), []
    for case, metrics in zip(cases, found, strict=True):
        run = Outcome(Status.COMPLETE, metrics=metrics.to_dict(), deviations=metrics.deviations)
        try:
            outcomes.append(score(case.scenario, run))
        except ValueError as error:
            raise InfeasibleError(f"{case.name}: {error}") from error
    return combined(scenario, cases, outcomes)


def write_requests(result: SimulationResult, path: str | Path) -> None:
    """Write one row per request (``simulation.records.REQUEST_DTYPE``, times in seconds) as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    requests = result.requests
    pq.write_table(pa.table({name: requests[name] for name in requests.dtype.names or ()}), path)
