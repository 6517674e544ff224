"""What a user loses by deciding on predictions: broken SLOs, cost over the best choice, and pairs ranked wrong.

A *task* is a model with its lengths and kind of load; its alternatives are all measured rows, a configuration under a
load each. A *decision* bounds mean TPOT or mean TTFT of a task at a quantile of its measured values (SLO_LEVELS),
midway between two of them, as a bound on top of a measurement is kept or broken by chance in the next run. It takes the
alternative with the fewest predicted USD per output token among those predicted to meet the bound. The measurements say
what that costs. Rows without a prediction are alternatives that were not offered: they may be the best choice, and are
never picked.

Left out: bounds of p99, which most rows do not state; how many GPUs a traffic needs, as every alternative may be
replicated; and decisions with several bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from dynosim.config import PriceConfig
from dynosim.errors import ConfigError
from dynosim.fidelity.errors import LOAD_THROUGHPUT, TPOT, TTFT, grouped, implied, setting_of
from dynosim.fidelity.names import card_of
from dynosim.hardware.gpus import get_gpu
from dynosim.hardware.models import get_model
from dynosim.hardware.prices import price

if TYPE_CHECKING:
    from dynosim.fidelity.measurements import Measurement
    from dynosim.fidelity.replay import Outcome

BOUNDED = {TPOT: "TPOT", TTFT: "TTFT"}
COMPARED = {LOAD_THROUGHPUT: "throughput per GPU", TPOT: "TPOT"}
SLO_LEVELS = (0.25, 0.5, 0.75)
"""Quantiles of the measured values of a task that bound its decisions: a tight, a middling and a loose SLO."""
MIN_ALTERNATIVES = 3
SLACK = 0.05
"""An SLO is broken, and two measured values differ, by more than this: as much as two runs of one configuration do."""

Side = Literal["measured", "predicted"]


class Alternative(NamedTuple):
    """A measured configuration under a load."""

    setting: tuple[str, ...]
    load: float
    vendor: str
    usd_per_gpu_hour: float
    measured: Mapping[str, float]
    predicted: Mapping[str, float] | None
    """None where it was not offered."""

    def usd_per_million(self, side: Side) -> float:
        """Return USD per million output tokens."""
        values = (self.predicted or {}) if side == "predicted" else self.measured
        return self.usd_per_gpu_hour / (values[LOAD_THROUGHPUT] * 3600.0) * 1e6


@dataclass(frozen=True)
class Decision:
    """One pick."""

    task: str
    metric: str
    bound_ms: float
    alternatives: int
    not_offered: int
    overshoot: float | None
    """Measured value of the pick over the bound, minus 1; None where nothing was predicted to meet it."""
    cost_regret: float | None
    """Measured cost of the pick over that of the cheapest which meets the bound, minus 1, at least 0 (a pick within
    SLACK above the bound may be cheaper); None for a pick that breaks the SLO, and without one."""

    @property
    def broken(self) -> bool:
        """Whether the pick breaks its SLO by more than SLACK."""
        return self.overshoot is not None and self.overshoot > SLACK


@dataclass(frozen=True)
class Pairs:
    """Pairs of configurations at equal load whose measured values differ by more than SLACK."""

    right: int
    pairs: int

    @property
    def share(self) -> float | None:
        """Share that is ranked as measured."""
        return self.right / self.pairs if self.pairs else None


@dataclass(frozen=True)
class Regret:
    """What decisions on predictions cost on a set of measurements."""

    decisions: list[Decision]
    pairs: Mapping[str, Mapping[str, Pairs]]
    """``same vendor``, ``across vendors`` -> metric -> pairs."""

    @property
    def picks(self) -> list[Decision]:
        """Return the decisions that had something to pick."""
        return [decision for decision in self.decisions if decision.overshoot is not None]

    @property
    def broken_share(self) -> float | None:
        """Share of picks that break their SLO."""
        return float(np.mean([pick.broken for pick in self.picks])) if self.picks else None

    def cost_regret(self, level: float) -> float | None:
        """Return a quantile of the cost regret of picks that keep their SLO."""
        known = [pick.cost_regret for pick in self.picks if pick.cost_regret is not None]
        return float(np.quantile(known, level)) if known else None


def regret(outcomes: Iterable[Outcome]) -> Regret:
    """Return what decisions on *outcomes* cost; rows whose numbers look disturbed are no alternatives."""
    sound = [o for o in outcomes if not o.measurement.flagged]
    tasks = {
        task: [found for o in rows if (found := _alternative(o)) is not None]
        for task, rows in grouped(sound, lambda o: task_of(o.measurement)).items()
    }
    decisions = [
        decision
        for task, alternatives in tasks.items()
        for metric in BOUNDED
        for decision in _decisions(task, metric, [a for a in alternatives if metric in a.measured])
    ]
    return Regret(decisions, _pairs(tasks.values()))


def task_of(row: Measurement) -> str:
    """Return model, lengths and kind of load in words; ranged lengths are others than exact ones."""
    try:
        model = get_model(row.model).name
    except ConfigError:
        model = row.model
    ranged = " (ranged)" if "random_range_ratio" in row.facts else ""
    return f"{model} {row.isl:g}x{row.osl:g}{ranged} {row.load_kind.partition('(')[0].strip()}"


def _alternative(outcome: Outcome) -> Alternative | None:
    """Return a row as an alternative; None where its cost is not known."""
    row = outcome.measurement
    measured = implied(row.measured, row)
    try:
        card = get_gpu(card_of(row.gpu))
    except ConfigError:
        return None
    if LOAD_THROUGHPUT not in measured:
        return None
    predicted = implied({name: outcome.predicted[name] for name in row.measured if name in outcome.predicted}, row)
    usd = price(card.name, PriceConfig()).usd_per_gpu_hour
    offered = predicted if outcome.problem is None and LOAD_THROUGHPUT in predicted else None
    return Alternative(setting_of(row), row.load or 0.0, card.vendor, usd, measured, offered)


def _decisions(task: str, metric: str, alternatives: Sequence[Alternative]) -> list[Decision]:
    if len(alternatives) < MIN_ALTERNATIVES:
        return []
    values = sorted(a.measured[metric] for a in alternatives)
    bounds = dict.fromkeys(_between(values, level) for level in SLO_LEVELS)
    return [_decision(task, metric, bound, alternatives) for bound in bounds]


def _between(values: Sequence[float], level: float) -> float:
    """Return the geometric mean of the two of sorted *values* around their quantile *level*."""
    k = min(max(round(level * len(values)), 1), len(values) - 1)
    return math.sqrt(values[k - 1] * values[k])


def _decision(task: str, metric: str, bound: float, alternatives: Sequence[Alternative]) -> Decision:
    offered = [a for a in alternatives if a.predicted is not None]
    meeting = [a for a in offered if a.predicted and a.predicted.get(metric, math.inf) <= bound]
    pick = min(meeting, key=lambda a: a.usd_per_million("predicted"), default=None)
    overshoot = None if pick is None else pick.measured[metric] / bound - 1.0
    lost = None
    if pick is not None and overshoot is not None and overshoot <= SLACK:
        best = min(a.usd_per_million("measured") for a in alternatives if a.measured[metric] <= bound)
        lost = max(pick.usd_per_million("measured") / best - 1.0, 0.0)
    return Decision(task, metric, bound, len(alternatives), len(alternatives) - len(offered), overshoot, lost)


def _pairs(tasks: Iterable[Sequence[Alternative]]) -> dict[str, dict[str, Pairs]]:
    """Return how many pairs of settings at equal load are ranked as measured."""
    found: dict[str, dict[str, list[bool]]] = {
        kind: {metric: [] for metric in COMPARED} for kind in ("same vendor", "across vendors")
    }
    for alternatives in tasks:
        for a, b in combinations([a for a in alternatives if a.predicted is not None], 2):
            if a.load == b.load and a.setting != b.setting:
                kind = "same vendor" if a.vendor == b.vendor else "across vendors"
                for metric, ranked in found[kind].items():
                    if (right := _ranked(a, b, metric)) is not None:
                        ranked.append(right)
    return {kind: {m: Pairs(sum(r), len(r)) for m, r in of.items()} for kind, of in found.items()}


def _ranked(a: Alternative, b: Alternative, metric: str) -> bool | None:
    """Return whether two are in the measured order; None where a value is missing or those measured hardly differ."""
    if a.predicted is None or b.predicted is None:
        return None
    if not all(metric in values for values in (a.measured, b.measured, a.predicted, b.predicted)):
        return None
    measured = np.log(a.measured[metric] / b.measured[metric])
    if abs(measured) <= np.log1p(SLACK):
        return None
    return bool((a.predicted[metric] - b.predicted[metric]) * measured > 0.0)
