"""A measured run, simulated: the configuration as it ran, under the file's load, with as many requests.

Refused is what would calibrate against something else: another model, other lengths, failed requests, another trace.
Warm-up requests of the configuration do not exist here: load generators keep theirs out of their files.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynosim.calibration.readers import MeasuredRun
from dynosim.config import DeploymentConfig, Scenario, TraceLoad, TraceSource, WorkloadConfig
from dynosim.errors import ConfigError
from dynosim.hardware.models import MODELS, get_model
from dynosim.metrics import Metrics, summarize
from dynosim.simulation import simulate
from dynosim.timing.calibrated import CalibratedDeployment, Profile
from dynosim.workload import load_workload
from dynosim.workload.table import Workload

MAX_LENGTH_DIFFERENCE = 0.05
"""Of mean prompt and answer lengths: AIPerf warns of answers from there on (product.md, 3.4)."""
MAX_FAILED = 0.01
"""Share of requests: failed ones shorten queues, and are in no latency."""


@dataclass(frozen=True)
class Replay:
    """One measured run with what is simulated for it."""

    run: MeasuredRun
    scenario: Scenario
    workload: Workload

    @property
    def deployment(self) -> DeploymentConfig:
        """The deployment as it ran."""
        return self.scenario.deployment

    @property
    def load(self) -> str:
        """The load in words."""
        load = self.run.load
        if load is None:
            return "trace"
        return f"{load.concurrency} in flight" if load.type == "concurrency" else f"{load.rate_rps:g} req/s"

    def predict(self, profile: Profile) -> Metrics:
        """Return all metrics under *profile*; equal arguments give equal ones."""
        deployment = CalibratedDeployment.of(self.deployment, profile)
        result = simulate(deployment, self.workload, seed=self.scenario.seed)
        return summarize(result, {}, self.scenario.prices)


def replay(run: MeasuredRun, scenario: Scenario, workload_hash: str | None = None) -> Replay:
    """Return the replay of *run* on the deployment and the workload of *scenario*; ConfigError where they do not match.

    *workload_hash* is that of the requests that were sent, where it is known.
    """
    _check_model(run, scenario.deployment.model)
    if run.failed > MAX_FAILED * (run.completed + run.failed):
        sent = run.completed + run.failed
        raise _refused(run, f"{run.failed} of {sent} requests failed: allowed: at most {MAX_FAILED:.0%}")
    for known in filter(None, (run.workload_hash, workload_hash)):
        ours = load_workload(scenario.workload, scenario.seed).content_hash()
        if known != ours:
            raise _refused(run, f"workload hash {known}: the configuration's workload is {ours}")
    workload = load_workload(_workload(run, scenario.workload), scenario.seed)
    if len(workload) != run.completed:
        raise _refused(run, f"{run.completed} requests: the configuration's workload has {len(workload)}")
    _check_length(run, "prompt", run.input_tokens, float(workload.input_tokens.mean()))
    _check_length(run, "answer", run.output_tokens, float(workload.output_tokens.mean()))
    return Replay(run, scenario, workload)


def _refused(run: MeasuredRun, message: str) -> ConfigError:
    return ConfigError(message, file=run.file)


def _check_length(run: MeasuredRun, what: str, measured: float, ours: float) -> None:
    if abs(measured / ours - 1.0) > MAX_LENGTH_DIFFERENCE:
        limit = f"allowed: within {MAX_LENGTH_DIFFERENCE:.0%} of the configuration's {ours:.1f}"
        raise _refused(run, f"mean {what} of {measured:.1f} tokens: {limit}")


def _check_model(run: MeasuredRun, model: str) -> None:
    """Raise ConfigError where the file names another model that there is a card of; names of one's own pass."""
    cards = {
        name.rpartition("/")[2].lower(): card.name for card in MODELS.values() for name in (card.name, *card.aliases)
    }
    measured = cards.get((run.model or "").rstrip("/").rpartition("/")[2].lower())
    if measured is not None and measured != get_model(model).name:
        raise _refused(run, f"model {run.model}: the configuration's is {model}")


def _workload(run: MeasuredRun, config: WorkloadConfig) -> WorkloadConfig:
    """Return the workload with the file's load and number of requests."""
    source, load, count = config.source, run.load or config.load, run.completed
    if run.load is None and not isinstance(load, TraceLoad):
        raise _refused(run, f"sent at the times of a trace: the configuration's load is {load.type}")
    if not isinstance(source, TraceSource):
        source = source.model_copy(update={"requests": count})
    update = {"load": load, "source": source, "max_requests": count, "warmup_requests": 0, "max_virtual_time_s": None}
    return config.model_copy(update=update)
