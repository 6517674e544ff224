"""All scores of replayed measurements: classes, sources, baselines, sweeps, effects, targets. Pure functions.

Rows whose numbers look disturbed (``flagged``) are scored apart and are in no total, sweep, ranking, effect, baseline
or target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dynosim.fidelity.effects import Columns, Effect, Requests, effects, requests
from dynosim.fidelity.errors import (
    SCORED,
    THROUGHPUT,
    TPOT,
    TTFT,
    UNSATURATED,
    Errors,
    Pair,
    errors_of,
    grouped,
    labels_of,
    pairs_of,
)
from dynosim.fidelity.sweeps import RANKED, Ranking, Sweep, rankings, sweeps

if TYPE_CHECKING:
    from dynosim.fidelity.replay import Outcome


@dataclass(frozen=True)
class Group:
    """Errors of the rows that share *labels*: a class, a source, or (source, model, GPU, engine)."""

    labels: tuple[str, ...]
    rows: int
    errors: Mapping[str, Errors]


@dataclass(frozen=True)
class Baseline:
    """Another tool and this one on the rows that both predict."""

    name: str
    metric: str
    theirs: Errors
    ours: Errors


@dataclass(frozen=True)
class Target:
    """What was promised of the calibration set."""

    name: str
    bound: str
    value: float | None
    unit: Literal["%", ""]
    met: bool | None
    """None, as the value, without rows."""


@dataclass(frozen=True)
class Scores:
    """All scores of one set of measurements."""

    rows: int
    targets: list[Target]
    totals: list[Group]
    groups: list[Group]
    flagged: Group
    baselines: list[Baseline]
    sweeps: list[Sweep]
    rankings: list[Ranking]
    effects: list[Effect]
    requests: list[Requests]
    problems: dict[str, str]
    """Id -> why a row that ran on real GPUs has no prediction."""


def score(
    outcomes: Sequence[Outcome],
    *,
    logs: Mapping[str, Columns] | None = None,
    baselines: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
) -> Scores:
    """Return every score of *outcomes*, whose order does not matter.

    *logs* are measured per-request columns by row id; *baselines* another tool's predictions: name -> id -> metric.
    """
    outcomes = sorted(outcomes, key=lambda o: o.measurement.id)
    sound = [o for o in outcomes if not o.measurement.flagged]
    totals, follows = _totals([o for o in sound if o.problem is None]), sweeps(sound)
    by_request = list(requests(sound, logs or {}))
    shown = effects(sound, by_request)
    problems = {o.measurement.id: o.problem for o in outcomes if o.problem is not None}
    return Scores(
        rows=len(outcomes),
        targets=targets(totals, follows, shown, [o.problem is not None for o in sound]),
        totals=totals,
        groups=list(_by_source(sound)),
        flagged=_group(("flagged",), [o for o in outcomes if o.measurement.flagged]),
        baselines=list(_compare([pair for o in sound for pair in pairs_of(o)], baselines or {})),
        sweeps=follows,
        rankings=rankings(sound),
        effects=shown,
        requests=by_request,
        problems=problems,
    )


def _group(labels: tuple[str, ...], outcomes: Sequence[Outcome]) -> Group:
    return Group(labels, len(outcomes), errors_of(pair for outcome in outcomes for pair in pairs_of(outcome)))


def _by_source(outcomes: Sequence[Outcome]) -> Iterator[Group]:
    for source, rows in grouped(outcomes, lambda o: o.measurement.source).items():
        yield _group((source,), rows)
        yield from (_group(labels, some) for labels, some in grouped(rows, labels_of).items())


def _totals(outcomes: Sequence[Outcome]) -> list[Group]:
    kinds: dict[str, Callable[[Outcome], bool]] = {
        "all": lambda o: True,
        "dense": lambda o: o.evidence.endswith("/dense"),
        "MoE": lambda o: o.evidence.endswith("/moe"),
        "tables": lambda o: o.evidence.startswith("tables/"),
        "roofline": lambda o: o.evidence.startswith("roofline/"),
    }
    return [_group((name,), list(filter(has, outcomes))) for name, has in kinds.items()]


def _compare(pairs: Sequence[Pair], baselines: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[Baseline]:
    for name, rows in baselines.items():
        both = [
            (pair, pair._replace(predicted=rows[pair.outcome.measurement.id][_base(pair.metric)]))
            for pair in pairs
            if _base(pair.metric) in rows.get(pair.outcome.measurement.id, {})
        ]
        ours, theirs = errors_of(pair for pair, _ in both), errors_of(pair for _, pair in both)
        yield from (Baseline(name, metric, theirs[metric], ours[metric]) for metric in SCORED if metric in ours)


def _base(metric: str) -> str:
    return TTFT if metric == UNSATURATED else metric


def targets(
    totals: Sequence[Group], follows: Sequence[Sweep], shown: Sequence[Effect], refused: Sequence[bool]
) -> list[Target]:
    """Return the targets of the calibration set: bounds of MAPE, tau on average over sweeps, saturation, effects."""
    by_name = {group.labels[0]: group.errors for group in totals}
    mapes = (("dense", TPOT, 0.08), ("MoE", TPOT, 0.20), ("all", UNSATURATED, 0.25), ("all", THROUGHPUT, 0.10))
    return [
        *(_mape_target(name, metric, by_name[name].get(metric), bound) for name, metric, bound in mapes),
        *(_tau_target(metric, [s.tau[metric] for s in follows if s.tau.get(metric) is not None]) for metric in RANKED),
        _count_target("sweeps whose saturation is over one step off", [s.saturation == "missed" for s in follows]),
        _count_target("effects with a wrong sign or over a third off", [not effect.kept for effect in shown]),
        _count_target("rows that ran and have no prediction", refused),
    ]


def _count_target(name: str, wrong: Sequence[bool]) -> Target:
    value = sum(wrong) if wrong else None
    return Target(name, f"0 of {len(wrong)}", value, "", None if value is None else value == 0)


def _mape_target(group: str, metric: str, errors: Errors | None, bound: float) -> Target:
    name = f"{'' if group == 'all' else group + ' '}{SCORED[metric]} MAPE"
    value = None if errors is None else errors.mape
    return Target(name, f"<= {100 * bound:g} %", value, "%", None if value is None else value <= bound)


def _tau_target(metric: str, taus: Sequence[Any]) -> Target:
    value = float(np.mean(taus)) if taus else None
    return Target(f"Kendall tau of {RANKED[metric]}", ">= 0.95", value, "", None if value is None else value >= 0.95)
