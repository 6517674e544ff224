"""What the trials of a study say: trade-offs along the frontier, the health of the search, and the page's data.

Statements are computed from stored trials only; nothing is simulated again. Left out: surrogate-based parameter
importance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dynosim.config.scenario import SERVED
from dynosim.engines import rules_of
from dynosim.hardware.prices import price_list
from dynosim.metrics import LATENCY_PARTS, METRICS, bounds_of
from dynosim.report.bottleneck import bottleneck
from dynosim.report.infeasible import why_infeasible
from dynosim.search import pareto
from dynosim.search.ties import points, preference
from dynosim.search.trial import Status
from dynosim.search.view import gpu_counts, layout, objective_view, trial_view
from dynosim.space import Parameter, Range
from dynosim.uncertainty.model_band import Band, evidence_class, is_measured
from dynosim.uncertainty.sampling import BATCHES, LEVELS, MIN_BATCH, MIN_TAIL, as_lengths

if TYPE_CHECKING:
    from pathlib import Path

    from dynosim.objectives import Objective
    from dynosim.search.study import Study
    from dynosim.search.trial import Trial

AXES = (
    "gpus",
    "time_to_first_token.p50",
    "time_to_first_token.p99",
    "inter_token_latency.p50",
    "inter_token_latency.p99",
    "request_latency.p50",
    "request_latency.p99",
    "output_token_throughput_per_user.p1",
    "output_token_throughput_per_user.p50",
    "output_token_throughput_per_gpu",
    "output_token_throughput",
    "usd_per_million_output_tokens",
    "good_request_fraction",
    "goodput",
    "prefix_cache_hit_rate",
)
"""Metrics that every report offers beside the objectives."""


SHORTHANDS = {"tensor_parallel_size": "TP", "pipeline_parallel_size": "PP", "data_parallel_size": "DP"}
"""What people call a field."""

MAX_EDGES = 4
"""Edges of the space that one line names."""


@dataclass(frozen=True)
class Check:
    """One finding about the search itself."""

    level: Literal["pass", "warn"]
    text: str


def short(path: str) -> str:
    """Return a parameter's path as people say it: ``decode.TP``, ``max_num_seqs`` under its role."""
    keys = [key for key in path.split(".") if key not in ("deployment", "disaggregated")]
    path = ".".join(keys)
    for name, shorthand in SHORTHANDS.items():
        path = path.replace(name, shorthand)
    return path


def percent(value: float, reference: float) -> str:
    """Return how far *value* is from *reference*: ``-23 %``, or ``480 x lower`` where a percentage tells nothing."""
    if reference == 0.0:
        return "n/a"
    if 0.0 < value < 0.01 * reference:
        return f"{reference / value:,.0f} x lower"
    return f"{100.0 * (value - reference) / abs(reference):+.0f} %".replace("-", "−")


def plus_minus(value: float, interval: tuple[float, float] | None) -> str:
    """Return half of an interval relative to its *value*: ``±7 %``; empty where it is unknown or nothing."""
    half = 0.0 if interval is None or not value else 100.0 * (interval[1] - interval[0]) / 2.0 / abs(value)
    return f"±{half:.{0 if half >= 0.95 else 1}f} %" if half >= 0.05 else ""


def factors(band: Band) -> str:
    """Return between which multiples of a prediction the truth lies."""
    return f"x {band.low:.2f}-{band.high:.2f}"


def values(trial: Trial) -> tuple[float, ...]:
    """Return the objective values of a complete trial."""
    assert trial.outcome.values is not None
    return trial.outcome.values


def same_row(trial: Trial) -> tuple[str, ...]:
    """Return what a row of a table stands for: trials that differ in it are never folded into one."""
    return (trial.scenario.deployment.label(), *layout(trial).values())


def folded(study: Study) -> list[tuple[Trial, int]]:
    """Return the leaders, one of each layout and how many points of the frontier it stands for besides itself.

    That is a pick where there is one, else the balanced one. Of a single layout, every leader.
    """
    picked = {trial.number for trial in study.picks().values()}
    layouts: dict[tuple[str, ...], list[list[Trial]]] = {}
    for group in study.groups():
        layouts.setdefault(same_row(group[0]), []).append(group)
    if len(layouts) == 1:
        return [(group[0], len(group) - 1) for groups in layouts.values() for group in groups]
    rows = []
    for groups in layouts.values():
        leaders = [group[0] for group in groups]
        knee = leaders[pareto.knee(study.losses(leaders))]
        shown = next((leader for leader in leaders if leader.number in picked), knee)
        rows.append((shown, sum(map(len, groups)) - 1))
    places = {trial.number: place for place, trial in enumerate(study.leaders())}
    return sorted(rows, key=lambda row: places[row[0].number])


def recommendation_numbers(study: Study) -> dict[int, int]:
    """Return trial number -> the number of its file below ``recommendations``."""
    return {trial.number: place for place, trial in enumerate(study.recommended(), start=1)}


def leader_of(study: Study) -> dict[int, int]:
    """Return trial number -> that of the leader that stands for it, of the frontier and of leaders themselves."""
    return {trial.number: group[0].number for group in study.groups() for trial in group}


def gpu_text(trial: Trial) -> str:
    """Return the GPUs of a trial, a ceiling where they are scaled."""
    total = trial.scenario.deployment.num_gpus()
    return f"up to {total}" if trial.scenario.deployment.autoscaled else str(total)


def difference(trial: Trial, reference: Trial) -> dict[str, tuple[Any, Any]]:
    """Return path -> (value in *reference*, value in *trial*) of the searched knobs that differ; None is absent."""
    paths = [*reference.point, *(path for path in trial.point if path not in reference.point)]
    pairs = {path: (reference.point.get(path), trial.point.get(path)) for path in paths}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def tradeoff(study: Study) -> str:
    """Return one sentence on what latency (or the next objective) costs along their two-dimensional frontier."""
    front, pair = study.leaders(), tradeoff_pair(study)
    if not front or not pair:
        return ""
    losses = study.losses(front)[:, list(pair)]
    keep = np.flatnonzero(pareto.nondominated(losses))
    order = keep[np.argsort(losses[keep, 0])]
    ends = {0, pareto.knee(losses[order]), len(order) - 1}
    stops = [front[int(order[i])] for i in sorted(ends)]
    if len(stops) == 1:
        names = " and ".join(study.objectives[i].display for i in pair)
        return f"No trade-off between {names}: trial {stops[0].number} is best in both."
    steps = [_step(study, pair, a, b) for a, b in pairwise(stops)]
    # With its deployment: the table may have folded a stop into another row of the same layout.
    first, second = (f"{stop.scenario.deployment.label()} (trial {stop.number})" for stop in stops[:2])
    sentence = f"From {first} to {second}, {steps[0]}"
    return sentence + (f"; beyond trial {stops[1].number}, another {steps[1]}." if len(steps) > 1 else ".")


def frontier_line(study: Study) -> str:
    """Return how many points are recommended and what is believed to be missing of the full one."""
    points, leaders = len(study.recommended()), len(study.leaders())
    if not points:
        return "none: no trial is feasible"
    found = f"{points} point{'' if points == 1 else 's'}, {leaders} of them told apart by more than noise"
    if study.gap is None:
        return found
    return f"{found}; {study.gap}"


def prices(study: Study) -> dict[str, dict[str, Any]]:
    """Return GPU -> its price per hour and where that is from, of all GPUs that trials have."""
    gpus = [gpu for trial in study.trials for gpu in trial.scenario.deployment.gpu_counts()]
    return price_list(gpus, study.space.reference.prices)


def engine_rules(study: Study) -> str:
    """Return the engine versions whose defaults and rules were simulated, and when they were read."""
    return "; ".join(sorted({rules_of(trial.scenario.deployment.engine).label for trial in study.trials}))


def priors_line(study: Study) -> str:
    """Return what the search's models of each output started from; empty where it used none."""
    return "; ".join(f"{name}: {source}" for name, source in study.priors.items())


def tradeoff_pair(study: Study) -> tuple[int, int] | tuple[()]:
    """Return the places of what is paid and what it buys; nothing where there is one objective."""
    kinds = [objective.kind for objective in study.objectives]
    if len(kinds) < 2:
        return ()
    paid = next((kinds.index(kind) for kind in ("cost", "energy", "count", "throughput") if kind in kinds), 0)
    others = [i for i in range(len(kinds)) if i != paid]
    return paid, next((i for i in others if kinds[i] == "latency"), others[0])


def _step(study: Study, pair: tuple[int, int], a: Trial, b: Trial) -> str:
    paid, bought = (f"{percent(values(b)[i], values(a)[i])} {study.objectives[i].display}" for i in pair)
    return f"{paid} buys {bought}"


def health(study: Study) -> list[Check]:
    """Return what the search says about itself: was it worth it, and can its answer be trusted."""
    return [check for check in _checks(study) if check is not None]


def _checks(study: Study) -> Iterator[Check | None]:
    yield from (Check("warn", reason) for reason in why_infeasible(study))
    yield _baseline_improved(study)
    yield _survivors(study)
    yield _edges(study)
    yield from _constraints(study)
    yield _share(
        study, "saturated", sum(trial.saturated for trial in study.trials), "fewer GPUs than the traffic needs", 0.5
    )
    yield from _unknown_noise(study)
    yield _evidence(study)
    if study.feasible:  # otherwise it is among the reasons above
        failed = sum(trial.outcome.status is Status.FAILED for trial in study.trials)
        yield _share(study, "failed", failed, "see `reason` in trials.csv", 0.0)
    yield _still_rising(study)


def _baseline_improved(study: Study) -> Check | None:
    front, baseline = study.frontier(), study.baseline
    if not front or baseline is None:
        return None
    if not baseline.outcome.feasible:
        return Check("pass", f"the baseline is not feasible; {len(front)} trials on the frontier are")
    if [trial.number for trial in front] == [baseline.number]:
        return Check("warn", "nothing that was tried beats the baseline: it is the whole frontier")
    better = np.all(study.losses(front) <= study.losses([baseline]), axis=1)
    better &= [trial.number != baseline.number for trial in front]
    if better.any():
        return Check("pass", f"{int(better.sum())} on the frontier match or beat the baseline in every objective")
    return Check("warn", "no point is better than the baseline in every objective: each one trades something for it")


def served(trial: Trial) -> float:
    """Return the share of measured requests that completed; latencies are known of these only."""
    flat = trial.outcome.flat_metrics()
    total = sum(flat.get(status, 0.0) for status in ("completed", "rejected", "incomplete"))
    return flat.get("completed", 0.0) / total if total else 1.0


def _survivors(study: Study) -> Check | None:
    partial = [trial for trial in study.frontier() if served(trial) < 0.99]
    if not partial:
        return None
    worst = min(partial, key=served)
    return Check(
        "warn",
        f"{len(partial)} on the frontier serve under 99 % of the requests (trial {worst.number}: {served(worst):.0%}):"
        " their latencies and cost count the served ones only; bound good_request_fraction in the SLO",
    )


def _unknown_noise(study: Study) -> Iterator[Check]:
    """Say which objectives have no interval anywhere on the frontier though a longer run would give them one."""
    front = [trial for trial in study.frontier() if trial.outcome.evidence]
    for place, objective in enumerate(study.objectives):
        level = LEVELS.get(objective.name.rpartition(".")[2])
        if front and level and not any(trial.interval(objective.name, values(trial)[place]) for trial in front):
            least = max(MIN_TAIL / min(level, 1.0 - level), BATCHES * MIN_BATCH)
            advice = f"simulate at least {least:,.0f} requests, more where they queue"
            yield Check("warn", f"{objective.display} has no sampling interval, and its ties are not known: {advice}")


def _evidence(study: Study) -> Check | None:
    """Say what the frontier rests on where it is not measured runs of one class."""
    counts = Counter(rests_on(trial) for trial in study.frontier() if trial.outcome.evidence)
    if len(counts) > 1:
        text = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        return Check("warn", f"the frontier compares different evidence: {text}; differences may be the model's error")
    far = [kind for kind in counts if kind.startswith("extrapolated")]
    return Check("warn", f"the whole frontier is {far[0]}: measure before trusting it") if far else None


def rests_on(trial: Trial) -> str:
    """Return the evidence mark of *trial* with the class of evidence, and why it is extrapolated."""
    deployment, mark = trial.scenario.deployment, trial.outcome.evidence
    kind = evidence_class(deployment) or f"{deployment.timing.type} timing"
    if mark != "extrapolated":
        return f"{mark} ({kind})"
    if is_measured(deployment):
        return f"{mark} ({kind}, beyond the tables or the profile)"
    return f"{mark} ({kind} on {', '.join(gpu_counts(trial))}: no measured runs)"


def _edges(study: Study) -> Check | None:
    picks = study.picks()
    found = []
    for parameter in study.space.parameters:
        limits = _limits(parameter)
        for side, limit in zip(("least", "most"), limits, strict=False):
            at = [name for name, trial in picks.items() if trial.point.get(parameter.path) == limit]
            if at and limits[0] != limits[1] and limit != 1:  # no space has fewer than one replica
                found.append(f"{short(parameter.path)} = {limit:g} ({side}; {', '.join(at)})")
    if not found:
        return None
    more = f" and {len(found) - MAX_EDGES} more" if len(found) > MAX_EDGES else ""
    return Check(
        "warn", f"picks at the edge of the space: {', '.join(found[:MAX_EDGES])}{more}: better ones may lie beyond"
    )


def _limits(parameter: Parameter) -> tuple[float, ...]:
    """Return the smallest and the largest value of a numeric domain, else nothing."""
    if isinstance(parameter.domain, Range):
        return (parameter.domain.min, parameter.domain.max)
    options = parameter.domain.values
    if any(isinstance(option, bool) or not isinstance(option, int | float) for option in options):
        return ()
    return (min(options), max(options))


def _constraints(study: Study) -> Iterator[Check]:
    simulated = [trial.outcome for trial in study.trials if trial.outcome.status in (Status.COMPLETE, Status.LOST)]
    # A lost trial tells only of the SLOs that it is known to miss.
    for name in dict.fromkeys(name for outcome in simulated for name in outcome.constraints):
        share = sum(outcome.constraints.get(name, 0.0) > 0.0 for outcome in simulated) / len(simulated)
        if share > 0.9:
            yield Check("warn", f"SLO {name} rejects {share:.0%} of the trials that ran")
        elif share == 0.0 and study.feasible and not _implicit(study, name):
            yield Check("pass", f"SLO {name} never binds: every trial that ran meets it")


def _implicit(study: Study, name: str) -> bool:
    """Return whether *name* is a bound that nobody wrote."""
    metric, _, stat = name.partition(".")
    return stat in SERVED.get(metric, {}) and study.slo.get(metric) == SERVED[metric]


def _share(study: Study, what: str, count: int, advice: str, limit: float) -> Check | None:
    if count <= limit * len(study.trials):
        return None
    return Check("warn", f"{count} of {len(study.trials)} trials {what}: {advice}")


def _still_rising(study: Study) -> Check | None:
    curve = hypervolume_curve(study)
    if len(curve) < 10 or curve[-1] == 0.0:
        return None
    gain = 1.0 - curve[-1 - len(curve) // 5] / curve[-1]
    if gain > 0.02:
        return Check("warn", f"the last fifth of the trials still gained {gain:.0%} hypervolume: run more trials")
    if len(curve) < 20 or study.gap is None or study.gap.unknown:
        return None
    if study.gap.settled:
        return Check("pass", f"settled: the last fifth of the trials gained {gain:.1%} hypervolume")
    left = f"{study.gap.untried} neighbours of the frontier with rare values are untried"
    missing = left if study.gap.untried else f"up to {study.gap.high:.0%} of the frontier may be missing"
    return Check("warn", f"resting, not settled: {missing}: run more trials")


def hypervolume_curve(study: Study) -> list[float]:
    """Return the hypervolume after each trial, all measured from the study's final reference point."""
    from dynosim.search.study import Study

    front: list[Trial] = []
    curve: list[float] = []
    reference = study.reference_point
    for trial in study.trials:
        if trial.outcome.feasible:
            seen = Study(study.id, study.space, study.objectives, study.slo, [*front, trial])
            front = seen.frontier()
            curve.append(seen.hypervolume(reference))
        else:
            curve.append(curve[-1] if curve else 0.0)
    return curve


def data(study: Study, run_dir: Path | None = None) -> dict[str, Any]:
    """Return everything the page shows, as plain JSON values.

    ``axes`` name what can be plotted. Each trial is a ``trial_view`` with its value on every axis (absent: unknown),
    the means of ``LATENCY_PARTS`` in ms under ``parts``, and the metrics that the SLO bounds. ``intervals`` are 95 %
    sampling intervals by axis. Trials of the frontier and their leaders have a ``recommendation``, the number of their
    file, and a ``leader``, the trial that stands for them (or they themselves).
    ``best_at`` says which objectives a pick is the best of; ``tradeoff_pair`` what is paid and what it buys.
    """
    front, axes, charged = study.frontier(), _axes(study), prices(study)
    numbers, leaders, noise = recommendation_numbers(study), leader_of(study), _noise(study)
    return {
        "study": study.id,
        "run_dir": None if run_dir is None else str(run_dir),
        "space": study.space.name,
        "objectives": [_objective(objective) for objective in study.objectives],
        "axes": axes,
        "parts": [{"name": part, "label": METRICS[part].display.removesuffix(" time")} for part in LATENCY_PARTS],
        "slo": _slo(study),
        "knobs": [{"path": parameter.path, "label": short(parameter.path)} for parameter in study.space.parameters],
        "prices": {gpu: price["usd_per_gpu_hour"] for gpu, price in charged.items()},
        "price_sources": {gpu: price["source"] for gpu, price in charged.items()},
        "trials": [
            {
                **_trial(trial, study, axes),
                **noise.get(trial.number, {}),
                "leader": leaders.get(trial.number),
                "recommendation": numbers.get(trial.number),
            }
            for trial in study.trials
        ],
        "frontier": [trial.number for trial in front],
        "leaders": [trial.number for trial in study.leaders()],
        "rows": [{"trial": trial.number, "variants": variants} for trial, variants in folded(study)],
        "best_at": study.best_at,
        "same_within": [objective.same_within for objective in study.objectives],
        "tradeoff_pair": tradeoff_pair(study),
        "picks": {name: trial.number for name, trial in study.picks().items()},
        "baseline": None if study.baseline is None else study.baseline.number,
        "hypervolume": hypervolume_curve(study),
        "gap": None if study.gap is None else str(study.gap),
        "tradeoff": tradeoff(study),
        "health": [asdict(check) for check in health(study)],
    }


def _objective(objective: Objective) -> dict[str, str]:
    return {**objective_view(objective), "label": _capital(objective.display)}


def _axes(study: Study) -> list[dict[str, Any]]:
    axes = {objective.name: _objective(objective) for objective in study.objectives}
    for name in AXES:
        if name not in axes:
            axes[name] = {"name": name, **_describe(name)}
    return list(axes.values())


def _describe(key: str) -> dict[str, Any]:
    name, _, stat = key.partition(".")
    info = METRICS[name]
    direction = "maximize" if info.better == "higher" else "minimize"
    return {"label": _capital(f"{info.display} {stat}".strip()), "unit": info.unit, "direction": direction}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _slo(study: Study) -> list[dict[str, Any]]:
    return [
        {
            "name": bound.name,
            "bound": bound.value,
            "label": _capital(bound.label),
            "unit": METRICS[bound.metric].unit,
            "direction": "minimize" if bound.upper else "maximize",
        }
        for bound in bounds_of(study.slo)
    ]


def _noise(study: Study) -> dict[int, dict[str, Any]]:
    """Return what tells complete trials apart (``search.ties``) by number, in the order of objectives.

    The half-width of a difference is the length of the difference of two trials' ``deviations``; ``preference`` is the
    place among all trials, equal where nothing is preferred.
    """
    trials = [trial for trial in study.trials if trial.outcome.status is Status.COMPLETE]
    if not trials:
        return {}
    known, preferences = points(trials, study.objectives), [preference(trial) for trial in trials]
    places = {preferred: place for place, preferred in enumerate(sorted(set(preferences)))}
    lengths = as_lengths(known.deviations, known.confidence).round(7)
    return {
        trial.number: {
            "preference": places[preferences[i]],
            "noise": {
                "deviations": lengths[i].tolist(),
                "spread": known.spread[i].tolist(),
                "wide": known.wide[i].tolist(),
                "evidence": int(known.evidence[i]),
            },
        }
        for i, trial in enumerate(trials)
    }


def cases(trial: Trial) -> list[dict[str, Any]]:
    """Return a row per case that was simulated: name, objective values, the SLOs that it misses in words."""
    labels = {bound.name: bound.label for bound in bounds_of(trial.scenario.slo)}
    return [
        {
            "name": name,
            "values": list(case["values"]),
            "missed": [labels[bound] for bound, violation in case["constraints"].items() if violation > 0.0],
        }
        for name, case in trial.outcome.cases.items()
    ]


def _bounded(trial: Trial, study: Study) -> dict[str, float]:
    """Return the metrics that an SLO bounds, by the SLO's key; absent: unknown."""
    found = {bound.name: trial.bounded(bound) for bound in bounds_of(study.slo)}
    return {key: value for key, value in found.items() if value is not None}


def _trial(trial: Trial, study: Study, axes: list[dict[str, Any]]) -> dict[str, Any]:
    outcome = trial.outcome
    flat: Mapping[str, float] = outcome.flat_metrics()
    flat = {**flat, **dict(zip((o.name for o in study.objectives), outcome.values or (), strict=False))}
    shown = {axis["name"]: flat[axis["name"]] for axis in axes if axis["name"] in flat}
    intervals = {key: trial.interval(key, value) for key, value in shown.items()}
    return {
        **trial_view(trial),
        "served": served(trial),
        "rests_on": rests_on(trial) if outcome.evidence else "",
        "axes": shown,
        "intervals": {key: interval for key, interval in intervals.items() if interval},
        "model_bands": {metric: (band.low, band.high) for metric, band in trial.model_bands().items()},
        "parts": [flat.get(part, 0.0) for part in LATENCY_PARTS] if outcome.metrics else None,
        "slo": _bounded(trial, study) if outcome.metrics else {},
        "cases": cases(trial),
        "bottleneck": bottleneck(flat, trial.scenario.slo) if outcome.metrics else "",
    }
