"""What every reader delivers, and how it looks into a result file: what is wrong is one line with file and key."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.config import ConcurrencyLoad, ConstantLoad, PoissonLoad
from dynosim.errors import ConfigError

Metrics = dict[str, dict[str, float]]
"""Canonical metric -> statistic -> value, in the units of ``dynosim.metrics``; rates have ``avg`` alone."""


LATENCIES = ("time_to_first_token", "inter_token_latency", "request_latency")
"""What is known of single requests."""
BATCHES = 10
MOST_TOKENS = 10**9


@dataclass(frozen=True, eq=False)
class Requests:
    """The completed requests of a run in the order in which they were sent; all arrays have shape (n,)."""

    sent_s: NDArray[np.float64]
    """From the first one on."""
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    latencies_ms: Mapping[str, NDArray[np.float64]]
    """Metric of ``LATENCIES`` -> value of each request, NaN where it has none."""

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[Any] | NDArray[np.float64]]) -> Requests | None:
        """Return the requests of *columns*: the fields' names and those of ``LATENCIES``; None where any is missing.

        Raises ValueError where columns are of different lengths or no numbers.
        """
        arrays = {name: np.array(values, dtype=float) for name, values in columns.items()}
        if len({len(values) for values in arrays.values()}) != 1:
            raise ValueError("single requests: columns of different lengths")
        sent_s, counts = arrays["sent_s"], (arrays["input_tokens"], arrays["output_tokens"])
        if not len(sent_s) or not np.isfinite((sent_s, *counts, arrays["time_to_first_token"])).all():
            return None
        if min(map(np.min, counts)) < 1 or max(map(np.max, counts)) > MOST_TOKENS:
            return None
        order = np.argsort(sent_s, kind="stable")
        latencies = {name: arrays[name][order] for name in LATENCIES}
        inputs, outputs = (values[order].astype(np.int64) for values in counts)
        return cls(sent_s[order] - sent_s.min(), inputs, outputs, latencies)

    @property
    def output_token_throughput(self) -> float:
        """Tokens per second from the first request to the end of the last answer; tools count waits around that too."""
        ends_s = self.sent_s + self.latencies_ms["request_latency"] * 1e-3
        return float(self.output_tokens.sum() / ends_s.max())

    def standard_error(self, metric: str, beside: NDArray[np.float64] | None = None) -> float | None:
        """Return that of the mean of *metric* over the mean, from consecutive batches: neighbours share a queue.

        With *beside*, shape (n,), that of the mean difference to it. None where there are not two requests.
        """
        values = self.latencies_ms[metric]
        differences = values if beside is None else values - beside
        differences = differences[np.isfinite(differences)]
        if len(differences) < 2:
            return None
        means = np.array([batch.mean() for batch in np.array_split(differences, min(BATCHES, len(differences)))])
        return float(means.std(ddof=1) / math.sqrt(len(means)) / np.nanmean(values))


@dataclass(frozen=True)
class MeasuredRun:
    """One run of a load generator under one load."""

    file: str
    tool: str
    model: str | None
    """As the file names it; None where it does not."""
    load: ConcurrencyLoad | PoissonLoad | ConstantLoad | None
    """None is the timestamps of a trace."""
    completed: int
    failed: int
    input_tokens: float
    """Mean over completed requests, as are the output tokens."""
    output_tokens: float
    duration_s: float
    metrics: Metrics
    workload_hash: str | None = None
    """What the file says of its requests (``Workload.content_hash``)."""
    requests: Requests | None = None
    """Where the file has every one with the time when it was sent."""

    def standard_error(self, metric: str) -> float:
        """Return the sampling error of an average over it: from single requests, else from its deviation, else 0."""
        if self.requests is not None and metric in self.requests.latencies_ms:
            return self.requests.standard_error(metric) or 0.0
        stats = self.metrics[metric]
        return stats.get("std", 0.0) / stats["avg"] / math.sqrt(self.completed)


@dataclass(frozen=True)
class Fields:
    """One JSON object of a result file."""

    data: Mapping[str, Any]
    file: str
    place: str = ""

    def error(self, key: str, message: str) -> ConfigError:
        """Return the error about one key."""
        return ConfigError(message, file=self.file, path=f"{self.place}.{key}".lstrip("."))

    def section(self, key: str) -> Fields:
        """Return an object inside; ConfigError where there is none."""
        inner = self.data.get(key)
        if not isinstance(inner, dict):
            raise self.error(key, "missing: allowed: an object")
        return Fields(inner, self.file, f"{self.place}.{key}".lstrip("."))

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number; ConfigError for anything else, and for none without a *default*."""
        value = self.data.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(key, f"{value!r}: allowed: a finite number" if key in self.data else "missing")
        return float(value)

    def duration(self, key: str) -> float:
        """Return a time, at least 0."""
        value = self.number(key)
        if value < 0:
            raise self.error(key, f"{value:g}: allowed: a number from 0")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """Return a number of requests, at least 0."""
        value = self.number(key, default)
        if value < 0 or value != int(value):
            raise self.error(key, f"{value:g}: allowed: a whole number from 0")
        return int(value)

    def completed(self, key: str) -> int:
        """Return the number of completed requests; ConfigError where there are none."""
        value = self.count(key)
        if not value:
            raise self.error(key, "0: no request was completed")
        return value

    def text(self, key: str) -> str | None:
        """Return a text, None where there is none."""
        value = self.data.get(key)
        return value if isinstance(value, str) else None


def known(metrics: Metrics) -> Metrics:
    """Return what was measured: tools write 0 for a latency without any request that has it."""
    return {name: stats for name, stats in metrics.items() if stats.get("avg", 0.0) > 0.0}


def flat_run(
    fields: Fields,
    *,
    tool: str,
    model: str | None,
    load: ConcurrencyLoad | PoissonLoad | None,
    failed: int,
    request_latency: str,
    workload_hash: str | None = None,
    requests: Requests | None = None,
) -> MeasuredRun:
    """Return the run of one of vLLM's and SGLang's files; *request_latency* is what its keys call it."""
    completed = fields.completed("completed")
    names = {
        "time_to_first_token": "ttft",
        "inter_token_latency": "tpot",
        "inter_chunk_latency": "itl",
        "request_latency": request_latency,
    }
    metrics = {metric: _flat_statistics(fields, name) for metric, name in names.items()}
    return MeasuredRun(
        file=fields.file,
        tool=tool,
        model=model,
        load=load,
        completed=completed,
        failed=failed,
        input_tokens=fields.number("total_input_tokens") / completed,
        output_tokens=fields.number("total_output_tokens") / completed,
        duration_s=fields.number("duration"),
        metrics=known({**metrics, "output_token_throughput": {"avg": fields.number("output_throughput")}}),
        workload_hash=workload_hash,
        requests=requests,
    )


def _flat_statistics(fields: Fields, name: str) -> dict[str, float]:
    """Return the statistics of the keys ``mean_NAME_ms``, ``median_``, ``std_``, ``p99_`` ..."""
    stats = {"mean": "avg", "median": "p50", "std": "std", "max": "max", "min": "min"}
    found = {}
    for key in fields.data:
        match = re.fullmatch(rf"(mean|median|std|min|max|p\d+)_{name}_ms", key)
        if match and fields.data[key] is not None:
            found[stats.get(match[1], match[1])] = fields.duration(key)
    return found


def flat_load(fields: Fields) -> ConcurrencyLoad | PoissonLoad:
    """Return the load of vLLM's and SGLang's ``request_rate`` and ``max_concurrency``.

    An infinite rate keeps ``max_concurrency`` requests in flight, all at once without one. A finite one under a limit
    is neither loop: latencies start when the limit lets a request go (ConfigError, unless it was never reached).
    """
    rate, limit = fields.data.get("request_rate"), fields.data.get("max_concurrency")
    if rate in (None, "inf", math.inf):
        every = fields.count("num_prompts", fields.completed("completed"))
        return ConcurrencyLoad(concurrency=fields.count("max_concurrency", every))
    if fields.data.get("ramp_up_strategy") is not None:
        raise fields.error("ramp_up_strategy", "ramps are not modelled: allowed: one rate")
    if limit is not None and fields.number("max_concurrent_requests", math.inf) >= limit:
        raise fields.error("max_concurrency", f"{limit} beside a request rate: allowed: one of the two")
    return PoissonLoad(rate_rps=fields.number("request_rate"), burstiness=fields.number("burstiness", 1.0))
