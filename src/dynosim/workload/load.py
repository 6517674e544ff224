"""From a workload configuration and a seed to the request table: source, limit, classes, arrivals, warm-up, stop."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from dynosim import plugins
from dynosim.config import (
    ConcurrencyLoad,
    CurveLoad,
    Load,
    ProfileSource,
    RequestClass,
    Scenario,
    Source,
    SyntheticSource,
    TraceLoad,
    TraceSource,
    WorkloadConfig,
)
from dynosim.config.workload import NEEDS_LOAD
from dynosim.errors import ConfigError
from dynosim.rng import stream
from dynosim.workload import arrivals
from dynosim.workload.profiles import get_profile
from dynosim.workload.readers import file_version, read_trace
from dynosim.workload.synthetic import generate
from dynosim.workload.table import FloatArray, Workload


def traffic_hash(scenario: Scenario) -> str:
    """Return the name of all requests of *scenario* by what they are: of several workloads, of all of them."""
    hashes = [load_workload(each, scenario.seed).content_hash() for each in scenario.named_workloads().values()]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]


def load_workload(config: WorkloadConfig, seed: int) -> Workload:
    """Return the requests of *config*; equal arguments give the same table, made once per process.

    Arrivals, input lengths, output lengths and prefixes draw from streams of their own under *seed*, so changing one
    leaves the others as they were. Raises ConfigError for an unreadable trace and for a warm-up of all requests.
    """
    return _load(config.model_dump_json(), seed, _versions(config))


def _versions(config: WorkloadConfig) -> tuple[tuple[int, int], ...]:
    source = config.source
    code = [source.format] if isinstance(source, TraceSource) and plugins.is_reference(source.format) else []
    files = [part.path for part in (config.source, config.load) if isinstance(part, TraceSource | CurveLoad)]
    return tuple(file_version(path) for path in files) + tuple(map(plugins.stamp, code))


@lru_cache(maxsize=32)
def _load(config_json: str, seed: int, versions: tuple[tuple[int, int], ...]) -> Workload:
    config = WorkloadConfig.model_validate_json(config_json)
    workload = _source(config.source, seed, versions)
    if config.max_requests is not None:
        workload = workload.head(config.max_requests)
    if config.warmup_requests >= len(workload):
        raise ConfigError(
            f"{config.warmup_requests}: allowed is less than the number of requests, {len(workload)}",
            path="workload.warmup_requests",
        )
    workload = _varied(_with_classes(workload, config.classes, seed), config)
    workload = _with_load(workload, config.load, seed, config.rate_factor)
    end_s = _end_s(workload) if config.max_virtual_time_s is None else config.max_virtual_time_s
    return replace(workload, warmup_requests=config.warmup_requests, end_s=end_s)


def _source(source: Source, seed: int, versions: tuple[tuple[int, int], ...]) -> Workload:
    match source:
        case TraceSource():
            return _trace(source.model_dump_json(), versions)
        case SyntheticSource():
            return generate(source, seed)
        case ProfileSource(name=name, requests=requests):
            return generate(get_profile(name).sized(requests), seed, name)


@lru_cache(maxsize=4)
def _trace(source_json: str, versions: tuple[tuple[int, int], ...]) -> Workload:
    source = TraceSource.model_validate_json(source_json)
    return read_trace(source.path, source.format, block_tokens=source.block_tokens, max_delay_s=source.max_delay_s)


def _with_classes(workload: Workload, classes: tuple[RequestClass, ...], seed: int) -> Workload:
    """Return the requests with a class drawn for each session."""
    if not classes:
        return workload
    shares = np.cumsum([each.share for each in classes])
    sessions = int(workload.session.max()) + 1
    drawn = np.searchsorted(shares / shares[-1], stream(seed, "workload.classes").random(sessions), side="right")
    of_request = drawn[workload.session]
    deadlines_s = np.array([each.deadline_s or math.inf for each in classes])
    priorities = np.array([each.priority for each in classes], np.int64)
    return replace(workload, priority=priorities[of_request], deadline_s=deadlines_s[of_request])


def _varied(workload: Workload, config: WorkloadConfig) -> Workload:
    """Return the requests with the answers and the sharing that the factors of *config* ask for."""
    if config.output_tokens_factor != 1.0:
        tokens = np.maximum(np.rint(workload.output_tokens * config.output_tokens_factor), 1).astype(np.int64)
        workload = workload.answering(tokens)
    return workload if config.shared_prefixes else workload.unshared()


def _with_load(workload: Workload, load: Load, seed: int, rate_factor: float) -> Workload:
    sessions = int(workload.session.max()) + 1
    match load:
        case TraceLoad(speedup=speedup):
            if not workload.timed:
                raise ConfigError(f"trace_timestamps: {workload.name} has no times; {NEEDS_LOAD}", path="workload.load")
            arrival_s = workload.arrival_s / (speedup * rate_factor)
            return replace(workload, arrival_s=arrival_s, delay_s=workload.delay_s / speedup)
        case ConcurrencyLoad(concurrency=concurrency):
            clients = max(round(concurrency * rate_factor), 1)
            return replace(_starting(workload, np.zeros(sessions)), concurrency=clients)
        case _:
            rng = stream(seed, "workload.arrivals")
            return _starting(workload, arrivals.of_load(load, sessions, rng, rate_factor))


def _starting(workload: Workload, starts_s: FloatArray) -> Workload:
    """Return the sessions in their order, each starting at its time."""
    if np.any(np.diff(workload.session) < 0):
        workload = workload.take(np.argsort(workload.session, kind="stable"))
    return replace(workload, arrival_s=starts_s[workload.session], timed=True)


def _end_s(workload: Workload) -> float:
    """Return when an open loop stops: long after its last request was due, so only a saturated run meets it."""
    if workload.concurrency is not None:
        return math.inf
    delays_s = np.bincount(workload.session, workload.delay_s)
    return float(10 * (workload.arrival_s[-1] + delays_s.max()) + 3600)
