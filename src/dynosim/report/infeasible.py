"""Why no trial of a study is feasible: what was rejected or failed, how close each SLO came, what would be enough.

Values are those of complete trials; a trial that ended early gives lower bounds only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dynosim.metrics import METRICS
from dynosim.report.numbers import number
from dynosim.search.trial import Status
from dynosim.space import reasons

if TYPE_CHECKING:
    from dynosim.search.study import Study
    from dynosim.search.trial import Trial

SECONDS = 100.0
"""A latency this many times over its bound is more often a bound in seconds than a slow deployment."""


def why_infeasible(study: Study) -> list[str]:
    """Return sentences, the most telling first; empty where a trial is feasible."""
    if study.feasible:
        return []
    found = [*_ended(study), *_rejected(study), *_reached(study), *_relaxed(study)]
    return found or [f"none of {len(study.trials)} trials is feasible"]


def _complete(study: Study) -> list[Trial]:
    return [trial for trial in study.trials if trial.outcome.status is Status.COMPLETE]


def _ended(study: Study) -> Iterator[str]:
    """Yield what trials without an SLO to blame ended with."""
    failed = Counter(trial.outcome.headline for trial in study.trials if trial.outcome.status is Status.FAILED)
    for headline, count in failed.most_common(1):
        yield f"{failed.total()} of {len(study.trials)} trials failed, {count} with {headline}"
    refused = [trial.outcome.reason for trial in study.trials if trial.outcome.status is Status.INFEASIBLE]
    if refused:
        yield f"{len(refused)} of {len(study.trials)} trials could not run: {reasons.summary(refused)}"


def _rejected(study: Study) -> Iterator[str]:
    proposals = len(study.rejected) + len(study.trials)
    if len(study.rejected) > len(study.trials):
        counts = f"{len(study.rejected):,} of {proposals:,} proposals"
        yield f"{counts} cannot be deployed: {reasons.summary(study.rejected)}"


def _reached(study: Study) -> Iterator[str]:
    """Yield the best value that was reached of each SLO that some trial misses."""
    for metric, stat, bound in _bounds(study):
        name = f"{metric}.{stat}"
        if not any(trial.outcome.constraints.get(name, 0.0) > 0.0 for trial in study.trials):
            continue
        below = _is_upper(metric, stat)
        values = {
            trial.number: value for trial in _complete(study) if (value := _value(trial, metric, stat)) is not None
        }
        if not values:
            known = _at_least(study, metric, name, bound)
            yield f"{_label(metric, stat)}: {known}, the bound is {_amount(metric, bound)}"
            continue
        best = (min if below else max)(values, key=lambda trial: values[trial])
        said = f"{_label(metric, stat)}: best {_amount(metric, values[best])} (trial {best}), the bound is "
        yield said + _amount(metric, bound) + (_unit_hint(metric, bound, values[best]) if below else "")


def _at_least(study: Study, metric: str, name: str, bound: float) -> str:
    """Return what is known of a bound without a value: how far trials that ended early were over it at least."""
    lost = [by[name] for trial in study.trials if name in (by := trial.outcome.constraints) and math.isfinite(by[name])]
    known = f"; those that ended early reach at least {_amount(metric, bound * (1.0 + min(lost)))}"
    return "no complete trial has a value" + (known if lost and METRICS[metric].unit == "ms" else "")


def _unit_hint(metric: str, bound: float, best: float) -> str:
    seconds = METRICS[metric].unit == "ms" and 0.0 < bound * SECONDS < best
    return f"; bounds are in ms: {number(bound)} s would be {number(bound * 1e3)}" if seconds else ""


def _relaxed(study: Study) -> Iterator[str]:
    """Yield the smallest change of bounds, by its largest part relative to a bound, that a complete trial meets."""
    missed = {
        trial.number: {name: by for name, by in trial.outcome.constraints.items() if by > 0.0}
        for trial in _complete(study)
    }
    sizes = {number_: max(by.values()) for number_, by in missed.items() if by and math.isfinite(max(by.values()))}
    if not sizes:
        return
    nearest = next(trial for trial in study.trials if trial.number == min(sizes, key=lambda n: sizes[n]))
    changes = [
        f"{_label(metric, stat)} {'<=' if _is_upper(metric, stat) else '>='} "
        f"{_amount(metric, _enough(_value(nearest, metric, stat) or 0.0, up=_is_upper(metric, stat)))} "
        f"instead of {_amount(metric, bound)}"
        for metric, stat, bound in _bounds(study)
        if f"{metric}.{stat}" in missed[nearest.number]
    ]
    yield f"with {' and '.join(changes)} trial {nearest.number} ({nearest.scenario.deployment.label()}) is feasible"


def _enough(value: float, *, up: bool) -> float:
    """Return *value* rounded to three digits, away from what it is to meet: the bound that is shown must hold."""
    if not value:
        return value
    grain = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    return (math.ceil(value / grain) if up else math.floor(value / grain)) * grain


def _bounds(study: Study) -> list[tuple[str, str, float]]:
    return [(metric, stat, bound) for metric, stats in study.slo.items() for stat, bound in stats.items()]


def _value(trial: Trial, metric: str, stat: str) -> float | None:
    known = trial.outcome.known_metrics()
    return known.value(metric, stat if METRICS[metric].distribution else None) if metric in known.values else None


def _is_upper(metric: str, stat: str) -> bool:
    return METRICS[metric].better == "lower" if METRICS[metric].distribution else stat == "max"


def _label(metric: str, stat: str) -> str:
    return f"{METRICS[metric].display} {stat}" if METRICS[metric].distribution else METRICS[metric].display


def _amount(metric: str, value: float) -> str:
    unit = METRICS[metric].unit
    return number(value) if unit == "ratio" else f"{number(value)} {unit}"
