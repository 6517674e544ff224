"""All scores of replayed measurements: classes, sources, baselines, sweeps, effects, regret, bands, targets.

Pure functions. Rows whose numbers look disturbed (``flagged``) are scored apart and are in no total, sweep, ranking,
effect, baseline, decision or target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dynosim.fidelity.bands import Held, held
from dynosim.fidelity.effects import Columns, Effect, Requests, effects, requests
from dynosim.fidelity.errors import (
    LOAD_THROUGHPUT,
    SCORED,
    THROUGHPUT,
    TPOT,
    TPOT_P99,
    TTFT,
    TTFT_P99,
    UNSATURATED,
    Errors,
    Pair,
    errors_of,
    grouped,
    labels_of,
    pairs_of,
)
from dynosim.fidelity.regret import COMPARED, Regret, regret
from dynosim.fidelity.sweeps import Ranking, Sweep, rankings, sweeps

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


CLASSES: Mapping[str, Callable[[Sequence[str]], bool]] = {
    "all": lambda parts: True,
    "dense": lambda parts: "dense" in parts,
    "MoE": lambda parts: "moe" in parts,
    "AMD": lambda parts: "amd" in parts,
    "disaggregated": lambda parts: "disaggregated" in parts,
    "speculative": lambda parts: "speculative" in parts,
    "tables": lambda parts: "tables" in parts,
    "roofline": lambda parts: "roofline" in parts,
}
"""Name of a total -> whether rows of a class of evidence, in parts, are in it."""

PROMISED = (
    ("dense", TPOT, "mape", 0.06),
    ("MoE", TPOT, "mape", 0.12),
    ("all", TPOT_P99, "median", 0.10),
    ("all", UNSATURATED, "median", 0.12),
    ("all", UNSATURATED, "mape", 0.25),
    ("all", TTFT_P99, "median", 0.25),
    ("all", THROUGHPUT, "mape", 0.07),
    ("disaggregated", TTFT, "bias", 0.10),
    ("AMD", TPOT, "mape", 0.20),
)
"""(Class, metric, field of ``Errors``, most that its size may be)."""
PAIRS_RIGHT = {"same vendor": 0.95, "across vendors": 0.90}
BROKEN, REGRET_MEDIAN, REGRET_P95 = 0.05, 0.02, 0.15
INSIDE = (0.75, 0.85)
"""Shares of rows that the stated bands should hold: fewer are a promise broken, more say too little."""


@dataclass(frozen=True)
class Target:
    """What is aimed at on rows that nobody looked at."""

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
    regret: Regret
    held: Mapping[str, Held]
    """Metric -> rows in the bands that the package states."""
    requests: list[Requests]
    problems: dict[str, str]
    """Id -> why a row that ran on real GPUs has no prediction."""
    unread: dict[str, int]
    """What notes state and nothing simulates -> rows."""


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
    by_request, lost, inside = list(requests(sound, logs or {})), regret(sound), held(sound)
    problems = {o.measurement.id: o.problem for o in outcomes if o.problem is not None}
    return Scores(
        rows=len(outcomes),
        targets=targets(totals, follows, [o.problem is not None for o in sound], lost, inside),
        totals=totals,
        groups=list(_by_source(sound)),
        flagged=_group(("flagged",), [o for o in outcomes if o.measurement.flagged]),
        baselines=list(_compare([pair for o in sound for pair in pairs_of(o)], baselines or {})),
        sweeps=follows,
        rankings=rankings(sound),
        effects=effects(sound, by_request),
        regret=lost,
        held=inside,
        requests=by_request,
        problems=problems,
        unread=dict(Counter(phrase for outcome in outcomes for phrase in outcome.unread).most_common()),
    )


def _group(labels: tuple[str, ...], outcomes: Sequence[Outcome]) -> Group:
    return Group(labels, len(outcomes), errors_of(pair for outcome in outcomes for pair in pairs_of(outcome)))


def _by_source(outcomes: Sequence[Outcome]) -> Iterator[Group]:
    for source, rows in grouped(outcomes, lambda o: o.measurement.source).items():
        yield _group((source,), rows)
        yield from (_group(labels, some) for labels, some in grouped(rows, labels_of).items())


def _totals(outcomes: Sequence[Outcome]) -> list[Group]:
    return [_group((name,), [o for o in outcomes if has(o.evidence.split("/"))]) for name, has in CLASSES.items()]


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
    totals: Sequence[Group],
    follows: Sequence[Sweep],
    refused: Sequence[bool],
    lost: Regret,
    inside: Mapping[str, Held],
) -> list[Target]:
    """Return what is aimed at, and whether it is met: errors, saturation, refusals, ranking, regret, bands."""
    by_name = {group.labels[0]: group.errors for group in totals}
    return [
        *(_promised(name, metric, field, by_name[name].get(metric), most) for name, metric, field, most in PROMISED),
        _none_of("sweeps that saturate in the simulation only", [sweep.falsely_saturated for sweep in follows]),
        _none_of("rows that ran and have no prediction", refused),
        *(
            _target(f"pairs ranked right by {COMPARED[metric]}, {kind}", pairs.share, least, ">=")
            for kind, least in PAIRS_RIGHT.items()
            for metric, pairs in lost.pairs[kind].items()
        ),
        _target("picks that break their SLO", lost.broken_share, BROKEN, "<="),
        _target("cost regret of the others, median", lost.cost_regret(0.5), REGRET_MEDIAN, "<="),
        _target("cost regret of the others, p95", lost.cost_regret(0.95), REGRET_P95, "<="),
        *(_inside(metric, inside[metric]) for metric in (TPOT, TPOT_P99, TTFT, TTFT_P99, LOAD_THROUGHPUT)),
    ]


def _target(name: str, value: float | None, bound: float, sign: Literal["<=", ">="]) -> Target:
    met = None if value is None else value <= bound if sign == "<=" else value >= bound
    return Target(name, f"{sign} {100 * bound:g} %", value, "%", met)


def _promised(group: str, metric: str, field: str, errors: Errors | None, most: float) -> Target:
    name = f"{'' if group == 'all' else group + ' '}{SCORED[metric]} {field.replace('mape', 'MAPE')}"
    value = None if errors is None else getattr(errors, field)
    return _target(f"size of {name}" if field == "bias" else name, None if value is None else abs(value), most, "<=")


def _none_of(name: str, wrong: Sequence[bool]) -> Target:
    value = sum(wrong) if wrong else None
    return Target(name, f"0 of {len(wrong)}", value, "", None if value is None else value == 0)


def _inside(metric: str, found: Held) -> Target:
    value = found.inside / found.rows if found.rows else None
    name, (least, most) = SCORED.get(metric, "throughput"), INSIDE
    met = None if value is None else least <= value <= most
    return Target(f"{name} inside the stated band", f"{100 * least:g} to {100 * most:g} %", value, "%", met)
