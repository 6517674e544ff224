"""From a workload configuration and a seed to the request table: source, arrivals, limit, warm-up."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from dynosim.config import (
    ConcurrencyLoad,
    ConstantLoad,
    Load,
    PoissonLoad,
    ProfileSource,
    Source,
    SyntheticSource,
    TraceLoad,
    TraceSource,
    WorkloadConfig,
)
from dynosim.errors import ConfigError
from dynosim.rng import stream
from dynosim.workload import arrivals
from dynosim.workload.profiles import get_profile
from dynosim.workload.readers import TraceFormat, file_version, read_trace
from dynosim.workload.synthetic import generate
from dynosim.workload.table import Workload


def load_workload(config: WorkloadConfig, seed: int) -> Workload:
    """Return the requests of *config*; equal arguments give the same table, made once per process.

    Arrivals, input lengths, output lengths and prefixes draw from streams of their own under *seed*, so changing one
    leaves the others as they were. Raises ConfigError for an unreadable trace and for a warm-up of all requests.
    """
    version = file_version(config.source.path) if isinstance(config.source, TraceSource) else ()
    return _load(config.model_dump_json(), seed, version)


@lru_cache(maxsize=16)
def _load(config_json: str, seed: int, version: tuple[int, ...]) -> Workload:
    config = WorkloadConfig.model_validate_json(config_json)
    workload = _source(config.source, seed, version)
    if config.max_requests is not None:
        workload = workload.head(config.max_requests)
    if config.warmup_requests >= len(workload):
        raise ConfigError(
            f"{config.warmup_requests}: allowed is less than the number of requests, {len(workload)}",
            path="workload.warmup_requests",
        )
    return replace(_with_load(workload, config.load, seed), warmup_requests=config.warmup_requests)


def _source(source: Source, seed: int, version: tuple[int, ...]) -> Workload:
    match source:
        case TraceSource(path=path, format=format):
            return _trace(path, format, version)
        case SyntheticSource():
            return generate(source, seed)
        case ProfileSource(name=name, requests=requests):
            return generate(get_profile(name).sized(requests), seed, name)


@lru_cache(maxsize=4)
def _trace(path: str, format: TraceFormat, version: tuple[int, ...]) -> Workload:
    return read_trace(path, format)


def _with_load(workload: Workload, load: Load, seed: int) -> Workload:
    n = len(workload)
    match load:
        case TraceLoad(speedup=speedup):
            return replace(workload, arrival_s=workload.arrival_s / speedup)
        case PoissonLoad():
            rng = stream(seed, "workload.arrivals")
            return replace(workload, arrival_s=arrivals.poisson(load, n, rng))
        case ConstantLoad():
            return replace(workload, arrival_s=arrivals.constant(load, n))
        case ConcurrencyLoad(concurrency=concurrency):
            return replace(workload, arrival_s=np.zeros(n), concurrency=concurrency)
