"""A measured run, simulated: the configuration as it ran, with the requests that were sent.

Where the file has single requests, their lengths and the times when they were sent are those of the file. Under a
limit of requests in flight the client is replayed: who waited for an answer waits for the simulated one, and then
as long as it took to send the next request. Elsewhere the configuration's requests are sent under the file's load.

Refused is what would calibrate against something else: another model, other lengths, failed requests, another trace.
Warm-up requests of the configuration do not exist here: load generators keep theirs out of their files.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynosim.calibration.readers import MeasuredRun, Requests
from dynosim.config import DeploymentConfig, Scenario, TraceLoad, TraceSource, WorkloadConfig
from dynosim.errors import ConfigError
from dynosim.hardware.models import MODELS, get_model
from dynosim.metrics import Metrics, summarize
from dynosim.simulation import SimulationResult, simulate
from dynosim.timing.calibrated import CalibratedDeployment, Profile
from dynosim.workload import load_workload
from dynosim.workload.table import FloatArray, IntArray, Workload, numbered

MAX_LENGTH_DIFFERENCE = 0.05
"""Of mean prompt and answer lengths: AIPerf warns of answers from there on."""
MAX_FAILED = 0.01
"""Share of requests: failed ones shorten queues, and are in no latency."""


@dataclass(frozen=True)
class Replay:
    """One measured run with what is simulated for it."""

    run: MeasuredRun
    scenario: Scenario
    workload: Workload
    replayed: bool = False
    """Whether these are the requests of the file, in its order."""

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

    def simulate(self, profile: Profile) -> SimulationResult:
        """Return what is simulated under *profile*; equal arguments give equal results."""
        deployment = CalibratedDeployment.of(self.deployment, profile)
        return simulate(deployment, self.workload, seed=self.scenario.seed)

    def predict(self, profile: Profile) -> Metrics:
        """Return all metrics under *profile*."""
        return summarize(self.simulate(profile), {}, self.scenario.prices)

    def sampling_error(self, metric: str) -> float:
        """Return the standard error of an average over it, as far as the simulated requests do not share it.

        Requests that were sent at the same times wait in the same queues: what remains is how much single requests
        differ from the simulation without a profile.
        """
        requests = self.run.requests
        if not self.replayed or requests is None or metric not in requests.latencies_ms:
            return self.run.standard_error(metric)
        done = self.simulate(Profile(name="none")).requests
        return requests.standard_error(metric, beside=_latencies_ms(done)[metric]) or 0.0


def replay(run: MeasuredRun, scenario: Scenario, workload_hash: str | None = None) -> Replay:
    """Return the replay of *run* on the deployment and the workload of *scenario*; ConfigError where they do not match.

    *workload_hash* is that of the requests that were sent, where it is known.
    """
    _check_model(run, scenario.deployment.model)
    if run.failed > MAX_FAILED * (run.completed + run.failed):
        count = run.completed + run.failed
        raise _refused(run, f"{run.failed} of {count} requests failed: allowed: at most {MAX_FAILED:.0%}")
    for known in filter(None, (run.workload_hash, workload_hash)):
        ours = load_workload(scenario.workload, scenario.seed).content_hash()
        if known != ours:
            raise _refused(run, f"workload hash {known}: the configuration's workload is {ours}")
    workload = load_workload(_workload(run, scenario.workload), scenario.seed)
    requests = run.requests
    if requests is not None and not workload.hash_block_tokens and not len(workload.after_ids):
        metrics = run.metrics | {"output_token_throughput": {"avg": requests.output_token_throughput}}
        run = dataclasses.replace(run, metrics=metrics)
        return Replay(run, scenario, sent(requests, workload.concurrency), replayed=True)
    if len(workload) != run.completed:
        raise _refused(run, f"{run.completed} requests: the configuration's workload has {len(workload)}")
    _check_length(run, "prompt", run.input_tokens, float(workload.input_tokens.mean()))
    _check_length(run, "answer", run.output_tokens, float(workload.output_tokens.mean()))
    return Replay(run, scenario, workload)


def sent(requests: Requests, concurrency: int | None) -> Workload:
    """Return the requests as they were sent; with *concurrency*, in turn by as many clients, each after an answer."""
    n = len(requests.sent_s)
    table = Workload("measured", requests.sent_s, requests.input_tokens, requests.output_tokens)
    if concurrency is None:
        return table.checked()
    after, delay_s = _clients(requests, concurrency)
    waits = after >= 0
    session = np.arange(n)
    for i in np.flatnonzero(waits):
        session[i] = session[after[i]]
    return dataclasses.replace(
        table,
        session=numbered(session),
        after_offsets=np.concatenate(([0], np.cumsum(waits))),
        after_ids=after[waits],
        delay_s=delay_s,
    ).checked()


def _clients(requests: Requests, concurrency: int) -> tuple[IntArray, FloatArray]:
    """Return whose end each request waited for (-1: nobody's), and how long after it the request was sent.

    The limit was full where as many were in flight as it allows: then the request went out for the last that ended.
    """
    end_s = requests.sent_s + requests.latencies_ms["request_latency"] * 1e-3
    after, delay_s = np.full(len(end_s), -1), np.zeros(len(end_s))
    open_until: list[tuple[float, int]] = []
    for i, time in enumerate(requests.sent_s.tolist()):
        if len(open_until) == concurrency:
            ended_s, after[i] = heapq.heappop(open_until)
            delay_s[i] = max(time - ended_s, 0.0)
        heapq.heappush(open_until, (float(end_s[i]), i))
    return after, delay_s


def _latencies_ms(records: NDArray[np.void]) -> dict[str, FloatArray]:
    gaps = np.where(records["output_tokens"] > 1, records["output_tokens"] - 1, math.nan)
    first_s, last_s, sent_s = records["first_token_s"], records["last_token_s"], records["arrival_s"]
    return {
        "time_to_first_token": 1e3 * (first_s - sent_s),
        "inter_token_latency": 1e3 * (last_s - first_s) / gaps,
        "request_latency": 1e3 * (last_s - sent_s),
    }


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
