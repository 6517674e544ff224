"""Errors of predictions: what a row states and implies, paired with its prediction; MAPE, median and bias of pairs.

An error is predicted / measured - 1. Every row counts once: there are no weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    from dynosim.fidelity.measurements import Measurement
    from dynosim.fidelity.replay import Outcome

TPOT, TTFT, UNSATURATED = "tpot_ms_mean", "ttft_ms_mean", "ttft_ms_mean_unsaturated"
TPOT_P99, TTFT_P99, E2E_P99 = "tpot_ms_p99", "ttft_ms_p99", "e2e_ms_p99"
THROUGHPUT, LOAD_THROUGHPUT, E2E = "output_tok_s_per_gpu", "output_tok_s_per_gpu_by_load", "e2e_ms_mean"

SCORED = {
    TPOT: "TPOT", TPOT_P99: "TPOT p99", UNSATURATED: "TTFT < 5 s", TTFT: "TTFT", TTFT_P99: "TTFT p99",
    THROUGHPUT: "throughput", E2E: "E2E",
}  # fmt: skip
"""Metric -> how tables call it. ``*_by_load`` is the throughput that a row states or that its load implies."""

UNSATURATED_MS = 5_000.0
"""A measured mean TTFT from here on is queueing time, whose size says how long a run went on."""

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class Pair(NamedTuple):
    """One metric of one row."""

    outcome: Outcome
    metric: str
    measured: float
    predicted: float


@dataclass(frozen=True)
class Errors:
    """Errors of one metric, as fractions of the measured values."""

    rows: int
    mape: float
    """Mean of |error|."""
    median: float
    """Median of |error|."""
    bias: float
    """Mean error: above zero, predictions are too high."""


def pairs_of(outcome: Outcome) -> list[Pair]:
    """Return what a row states and what its statements imply, each with the prediction.

    Mean E2E is TTFT + (n - 1) TPOT of n output tokens (the definition of TPOT), and a closed loop of c clients yields
    c n / E2E tokens per second (Little's law). Both sides are derived alike, so a difference is one of TTFT and TPOT.
    """
    stated = {name: value for name, value in outcome.measurement.measured.items() if value > 0.0}
    predicted = {name: outcome.predicted[name] for name in stated if name in outcome.predicted}
    measured = implied({name: stated[name] for name in predicted}, outcome.measurement)
    predicted = implied(predicted, outcome.measurement)
    if measured.get(TTFT, UNSATURATED_MS) < UNSATURATED_MS:
        measured[UNSATURATED], predicted[UNSATURATED] = measured[TTFT], predicted[TTFT]
    return [Pair(outcome, name, value, predicted[name]) for name, value in measured.items()]


def implied(values: Mapping[str, float], row: Measurement) -> dict[str, float]:
    """Return *values* of a row with those that follow from them (``pairs_of``)."""
    e2e_ms = values[TTFT] + (row.osl - 1) * values[TPOT] if {TTFT, TPOT} <= values.keys() else None
    out = dict(values)
    if e2e_ms is not None:
        out.setdefault(E2E, e2e_ms)
        if row.load and "closed-loop" in row.load_kind:
            out[LOAD_THROUGHPUT] = row.load * row.osl / (e2e_ms / 1e3) / row.n_gpus
    if THROUGHPUT in values:
        out[LOAD_THROUGHPUT] = values[THROUGHPUT]
    return out


def errors_of(pairs: Iterable[Pair]) -> dict[str, Errors]:
    """Return metric -> errors."""
    return {metric: _errors(rows) for metric, rows in grouped(pairs, lambda pair: pair.metric).items()}


def _errors(pairs: Sequence[Pair]) -> Errors:
    error = np.array([pair.predicted / pair.measured - 1.0 for pair in pairs])
    size = np.abs(error)
    return Errors(len(pairs), float(size.mean()), float(np.median(size)), float(error.mean()))


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Return key -> its items, both in order of appearance."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def labels_of(outcome: Outcome) -> tuple[str, ...]:
    """Return (source, model, GPU, engine)."""
    row = outcome.measurement
    return row.source, row.model, row.gpu, row.engine


def configuration_of(row: Measurement) -> tuple[str, ...]:
    """Return what rows share whose errors are not independent: source, model, GPU, engine, precision, whether pools are
    split, and speculation. Lengths, loads and parallel sizes differ within."""
    split = "disaggregated" if row.disaggregated else "aggregated"
    source, speculation = row.source.partition(" (")[0], row.facts.get("spec_decoding", "none")
    return source, row.model, row.gpu, row.engine, row.precision or "", split, speculation


_LAYOUT = re.compile("(prefill|decode)_|moe_(tp|ep)$|attention_dp|layout$|pipeline_parallel|cpu_kv_offload_gib")


def setting_of(row: Measurement) -> tuple[str, ...]:
    """Return what tells a row's deployment from others: the configuration and its sizes, whatever the load and the
    day."""
    layout = (f"{name} {value}" for name, value in sorted(row.facts.items()) if _LAYOUT.match(name))
    return *configuration_of(row), str(row.n_gpus), str(row.tp or ""), *layout
