"""Sweeps over load and rankings of configurations: Kendall's tau of predicted and measured, and saturation steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from dynosim.fidelity.errors import LOAD_THROUGHPUT, TPOT, TTFT, Pair, grouped, pairs_of, setting_of

if TYPE_CHECKING:
    from dynosim.fidelity.measurements import Measurement
    from dynosim.fidelity.replay import Outcome

RANKED = {TPOT: "TPOT", TTFT: "TTFT", LOAD_THROUGHPUT: "throughput"}
JUMP, JUMP_MS, GROWTH = 5.0, 2_000.0, 1.05
"""A sweep saturates where TTFT is over JUMP times the step before and over JUMP_MS, or throughput grew by less."""
MIN_SWEEP = 3
"""Rows that make a sweep: two are in order by chance half of the time."""

Verdict = Literal["found", "one step off", "missed", "none"]


@dataclass(frozen=True)
class Sweep:
    """How a sweep over load is followed; ``tau`` is Kendall's tau-b of predicted and measured, None where undefined."""

    name: str
    loads: tuple[float, ...]
    tau: Mapping[str, float | None]
    saturation: Verdict
    """Of the load where throughput ends: ``none`` where neither has one in the sweep."""
    measured_load: float | None
    predicted_load: float | None

    @property
    def falsely_saturated(self) -> bool:
        """Whether only the simulation saturates, or over one step before the measurement."""
        first = math.inf if self.measured_load is None else self.measured_load
        return self.saturation == "missed" and self.predicted_load is not None and self.predicted_load < first


@dataclass(frozen=True)
class Ranking:
    """How several configurations of one model and workload are ranked, all loads together."""

    name: str
    configurations: int
    rows: int
    tau: Mapping[str, float | None]


def sweeps(outcomes: Iterable[Outcome]) -> list[Sweep]:
    """Return every sweep of at least MIN_SWEEP predicted loads."""
    found = map(_newest, grouped((o for o in outcomes if is_step(o)), lambda o: sweep_of(o.measurement)).values())
    return [_sweep(steps) for steps in found if len(steps) >= MIN_SWEEP]


def _newest(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return one outcome per load, the newest of repeats, by load."""
    by_day = sorted(outcomes, key=lambda o: (o.measurement.measured_on, o.measurement.id))
    return sorted({o.measurement.load: o for o in by_day}.values(), key=lambda o: o.measurement.load or 0.0)


def sweep_of(row: Measurement) -> tuple[str, ...]:
    """Return what all rows share that differ in the load only."""
    lengths = () if "multi-turn" in row.load_kind else (str(row.isl), str(row.osl))
    return *setting_of(row), row.engine_version or "", *lengths, row.load_kind


def is_step(outcome: Outcome) -> bool:
    """Whether a row is one of several loads: it has a finite load and a prediction."""
    return outcome.problem is None and outcome.measurement.load not in (None, np.inf)


def _sweep(steps: Sequence[Outcome]) -> Sweep:
    loads = tuple(o.measurement.load or 0.0 for o in steps)
    measured, predicted = (_saturation(steps, side) for side in ("measured", "predicted"))
    return Sweep(
        name=describe(steps[0].measurement),
        loads=loads,
        tau=_taus(steps),
        saturation=_judge(measured, predicted),
        measured_load=None if measured is None else loads[measured],
        predicted_load=None if predicted is None else loads[predicted],
    )


def describe(row: Measurement) -> str:
    """Return what the rows of a sweep share, in a few words."""
    shape = f"tp{row.tp}" if row.tp else f"{row.n_gpus} GPUs"
    return f"{row.model.split('/')[-1]} {row.gpu} {row.engine} {shape} {row.isl:g}x{row.osl:g}"


def _taus(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    pairs = [pair for outcome in outcomes for pair in pairs_of(outcome)]
    ranked = grouped((pair for pair in pairs if pair.metric in RANKED), lambda pair: pair.metric)
    return {metric: tau(*_sides(rows)) for metric, rows in ranked.items()}


def _sides(pairs: Sequence[Pair]) -> tuple[list[float], list[float]]:
    return [pair.measured for pair in pairs], [pair.predicted for pair in pairs]


def tau(measured: Sequence[float], predicted: Sequence[float]) -> float | None:
    """Return Kendall's tau-b; None for fewer than two values or a constant side."""
    from scipy.stats import kendalltau  # a second, which workers need not spend

    if len(set(measured)) < 2 or len(set(predicted)) < 2:
        return None
    return float(kendalltau(measured, predicted).statistic)


def saturation_step(ttft_ms: Sequence[float], throughput: Sequence[float]) -> int | None:
    """Return the first step where TTFT jumps or throughput stops growing; an empty sequence says nothing."""
    jumps = [b > JUMP * a and b > JUMP_MS for a, b in pairwise(ttft_ms)]
    stalls = [b <= GROWTH * a for a, b in pairwise(throughput)]
    found = [signs.index(True) + 1 for signs in (jumps, stalls) if True in signs]
    return min(found, default=None)


def _saturation(steps: Sequence[Outcome], side: Literal["measured", "predicted"]) -> int | None:
    pairs = [{pair.metric: getattr(pair, side) for pair in pairs_of(step)} for step in steps]
    ttft_ms, throughput = ([row[m] for row in pairs if m in row] for m in (TTFT, LOAD_THROUGHPUT))
    whole = [values if len(values) == len(steps) else [] for values in (ttft_ms, throughput)]
    return saturation_step(*whole)


def _judge(measured: int | None, predicted: int | None) -> Verdict:
    if measured is None or predicted is None:
        return "none" if measured is predicted else "missed"
    steps: dict[int, Verdict] = {0: "found", 1: "one step off"}
    return steps.get(abs(measured - predicted), "missed")


def rankings(outcomes: Iterable[Outcome]) -> list[Ranking]:
    """Return tau over all configurations and loads of each model and workload with at least two configurations."""
    found = grouped((o for o in outcomes if o.problem is None), _task).items()
    return [
        Ranking(f"{model.split('/')[-1]} {isl:g}x{osl:g} {kind}", len(settings), len(rows), _taus(rows))
        for (model, isl, osl, kind), rows in found
        if len(settings := {sweep_of(o.measurement) for o in rows}) > 1 and len(rows) >= MIN_SWEEP
    ]


def _task(outcome: Outcome) -> tuple[str, float, float, str]:
    row = outcome.measurement
    return row.model, row.isl, row.osl, row.load_kind.split("(")[0].strip()
