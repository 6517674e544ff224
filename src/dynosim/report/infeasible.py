"""Why no trial of a study is feasible: what was rejected or failed, how close each SLO came, what would be enough.

Values are those of complete trials; a trial that ended early gives lower bounds only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dynosim.metrics import METRICS, Bound, bounds_of
from dynosim.report.numbers import number
from dynosim.rng import stream
from dynosim.search.trial import Status
from dynosim.space import reasons

if TYPE_CHECKING:
    from dynosim.search.study import Study
    from dynosim.search.trial import Trial

NARROW = 0.9
"""A space of which more cannot be deployed leaves the search little to choose from, and that is said."""
SECONDS = 100.0
"""A latency this many times over its bound is more often a bound in seconds than a slow deployment."""


def why_infeasible(study: Study) -> list[str]:
    """Return sentences, the most telling first; empty where a trial is feasible."""
    if study.feasible:
        return []
    found = [*_ended(study), *_rejected(study), *_reached(study), *_relaxed(study)]
    return found or [f"none of {len(study.trials)} trials is feasible"]


def _complete(study: Study) -> list[Trial]:
    return [trial for trial in study.trials if trial.outcome.metrics]


def _ended(study: Study) -> Iterator[str]:
    """Yield what trials without an SLO to blame ended with."""
    failed = Counter(trial.outcome.headline for trial in study.trials if trial.outcome.status is Status.FAILED)
    for headline, count in failed.most_common(1):
        yield f"{failed.total()} of {len(study.trials)} trials failed, {count} with {headline} (`reason` in trials.csv)"
    refused = [trial.outcome.reason for trial in study.trials if trial.outcome.status is Status.INFEASIBLE]
    if refused:
        yield f"{len(refused)} of {len(study.trials)} trials could not run: {reasons.summary(refused)}"


def _rejected(study: Study) -> Iterator[str]:
    """Yield what cannot be deployed: of the proposals, or of the space, as our samplers propose no such points."""
    proposals = len(study.rejected) + len(study.trials)
    drawn = reasons.sampled(study.space, stream(0, "why infeasible"))
    impossible = [reason for reason in drawn if reason is not None]
    if len(study.rejected) > len(study.trials):
        counts = f"{len(study.rejected):,} of {proposals:,} proposals"
        yield f"{counts} cannot be deployed: {reasons.summary(study.rejected)}"
    elif len(impossible) >= NARROW * len(drawn):
        counts = f"{len(impossible):,} of {len(drawn):,} random points of the space"
        yield f"{counts} cannot be deployed: {reasons.summary(impossible)}"


def _reached(study: Study) -> Iterator[str]:
    """Yield the best value that was reached of each bound that some trial misses."""
    for bound in bounds_of(study.slo):
        if not any(trial.outcome.constraints.get(bound.name, 0.0) > 0.0 for trial in study.trials):
            continue
        found = [(trial.bounded(bound), trial) for trial in _complete(study)]
        known = [(value, trial) for value, trial in found if value is not None]
        if not known:
            yield f"{bound.label}: {_at_least(study, bound)}, the bound is {_amount(bound, bound.value)}"
            continue
        best, trial = (min if bound.upper else max)(known, key=lambda each: each[0])
        said = f"{bound.label}: best {_amount(bound, best)} (trial {trial.number}), the bound is "
        yield said + _amount(bound, bound.value) + (_unit_hint(bound, best) if bound.upper else "")


def _at_least(study: Study, bound: Bound) -> str:
    """Return what is known of a bound without a value: how far trials that ended early were over it at least."""
    found = [trial.outcome.constraints.get(bound.name, math.inf) for trial in study.trials]
    over = min(found, default=math.inf)
    known = f"; those that ended early reach at least {_amount(bound, bound.value * (1.0 + over))}"
    return "no complete trial has a value" + (known if math.isfinite(over) and _in_ms(bound) else "")


def _unit_hint(bound: Bound, best: float) -> str:
    seconds = _in_ms(bound) and 0.0 < bound.value * SECONDS < best
    return f"; bounds are in ms: {number(bound.value)} s would be {number(bound.value * 1e3)}" if seconds else ""


def _in_ms(bound: Bound) -> bool:
    return METRICS[bound.metric].unit == "ms"


def _relaxed(study: Study) -> Iterator[str]:
    """Yield the smallest change of bounds, by its largest part relative to a bound, that a complete trial meets."""
    missed = [(trial, max(trial.outcome.constraints.values(), default=0.0)) for trial in _complete(study)]
    within = [(trial, most) for trial, most in missed if 0.0 < most < math.inf]
    if not within:
        return
    nearest, _ = min(within, key=lambda each: each[1])
    changes = [
        f"{bound.label} {'<=' if bound.upper else '>='} "
        f"{_amount(bound, _enough(nearest.bounded(bound) or 0.0, up=bound.upper))} "
        f"instead of {_amount(bound, bound.value)}"
        for bound in bounds_of(study.slo)
        if nearest.outcome.constraints.get(bound.name, 0.0) > 0.0
    ]
    yield f"with {' and '.join(changes)} trial {nearest.number} ({nearest.scenario.deployment.label()}) is feasible"


def _enough(value: float, *, up: bool) -> float:
    """Return *value* rounded to three digits, away from what it is to meet: the bound that is shown must hold."""
    if not value:
        return value
    grain = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    return (math.ceil(value / grain) if up else math.floor(value / grain)) * grain


def _amount(bound: Bound, value: float) -> str:
    unit = METRICS[bound.metric].unit
    return number(value) if unit == "ratio" else f"{number(value)} {unit}"
