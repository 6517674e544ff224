"""Scores of replayed measurements: errors, bias, ranking, saturation, effects. Pure functions over outcomes.

An error is predicted / measured - 1. Rows whose numbers look disturbed (``flagged``) are scored apart and are in no
total, sweep, ranking, effect, baseline or band. Left out: weights; every row counts once, so a source with many rows
counts more than one with few.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dynosim.fidelity.measurements import Measurement
    from dynosim.fidelity.replay import Outcome

Array = NDArray[np.float64]
Columns = Mapping[str, Array]
"""Per-request values by name, among them ``ttft_ms`` and ``input_tokens``, in order of arrival."""

TPOT, TTFT, UNSATURATED = "tpot_ms_mean", "ttft_ms_mean", "ttft_ms_mean_unsaturated"
THROUGHPUT, LOAD_THROUGHPUT, E2E = "output_tok_s_per_gpu", "output_tok_s_per_gpu_by_load", "e2e_ms_mean"
HIT, TRANSFER = "prefix_hit_percent", "kv_transfer_ms"

SCORED = {TPOT: "TPOT", UNSATURATED: "TTFT < 5 s", TTFT: "TTFT", THROUGHPUT: "throughput", E2E: "E2E"}
"""Metric -> how tables call it. ``*_by_load`` is the throughput that a row states or that its load implies."""
RANKED = {TPOT: "TPOT", TTFT: "TTFT", LOAD_THROUGHPUT: "throughput"}

UNSATURATED_MS = 5_000.0
"""A measured mean TTFT from here on is queueing time, whose size says how long a run went on."""
JUMP, JUMP_MS, GROWTH = 5.0, 2_000.0, 1.05
"""A sweep saturates where TTFT is over JUMP times the step before and over JUMP_MS, or throughput grew by less."""
MIN_SWEEP = 3
"""Rows that make a sweep: two are in order by chance half of the time."""
CLIFF = 10.0
"""Percentage points of prefix-cache hits whose fall in one step makes a cliff."""
BAND_METRICS = {
    TPOT: "inter_token_latency",
    TTFT: "time_to_first_token",
    LOAD_THROUGHPUT: "output_token_throughput",
    E2E: "request_latency",
}
BAND_COVERAGE, BAND_ROWS = 0.8, 8
"""A band holds this share of measured / predicted; quantiles of fewer rows say nothing."""

Verdict = Literal["found", "one step off", "missed", "none"]
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


@dataclass(frozen=True)
class Group:
    """Errors of the rows that share *labels*: a class, a source, or (source, model, GPU, engine)."""

    labels: tuple[str, ...]
    rows: int
    errors: Mapping[str, Errors]


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


@dataclass(frozen=True)
class Ranking:
    """How several configurations of one model and workload are ranked, all loads together."""

    name: str
    configurations: int
    rows: int
    tau: Mapping[str, float | None]


@dataclass(frozen=True)
class Effect:
    """What a change of the deployment or its load does, measured and predicted in *unit*."""

    name: str
    where: str
    unit: str
    measured: float
    predicted: float

    @property
    def ratio(self) -> float:
        """Predicted over measured size; below zero where the sign is wrong."""
        return self.predicted / self.measured

    @property
    def kept(self) -> bool:
        """Whether the sign is right and the size within a third."""
        return 2 / 3 <= self.ratio <= 4 / 3


@dataclass(frozen=True)
class Requests:
    """Per-request times of one row; quantile -> (measured, predicted) in ms."""

    id: str
    rows: int
    ttft_ms: Mapping[str, tuple[float, float]]
    latency_ms: Mapping[str, tuple[float, float]]
    correlation: float | None
    """Pearson's r of TTFT by request; None where the simulation's requests are not those of the log one by one."""


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
    requests = list(_requests(sound, logs or {}))
    effects = [*_cliffs(sound), *_host_gains(sound), *_transfers(sound), *_queueing(requests)]
    totals, follows = _totals([o for o in sound if o.problem is None]), sweeps(sound)
    problems = {o.measurement.id: o.problem for o in outcomes if o.problem is not None}
    return Scores(
        rows=len(outcomes),
        targets=targets(totals, follows, effects, refused=sum(o.problem is not None for o in sound)),
        totals=totals,
        groups=list(_by_source(sound)),
        flagged=_group(("flagged",), [o for o in outcomes if o.measurement.flagged]),
        baselines=list(_compare([pair for o in sound for pair in pairs_of(o)], baselines or {})),
        sweeps=follows,
        rankings=rankings(sound),
        effects=effects,
        requests=requests,
        problems=problems,
    )


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


# ---- errors -------------------------------------------------------------------------------------------------------


def pairs_of(outcome: Outcome) -> list[Pair]:
    """Return what a row states and what its statements imply, each with the prediction.

    Mean E2E is TTFT + (n - 1) TPOT of n output tokens (the definition of TPOT), and a closed loop of c clients yields
    c n / E2E tokens per second (Little's law). Both sides are derived alike, so a difference is one of TTFT and TPOT.
    """
    stated = {name: value for name, value in outcome.measurement.measured.items() if value > 0.0}
    predicted = {name: outcome.predicted[name] for name in stated if name in outcome.predicted}
    measured = _implied({name: stated[name] for name in predicted}, outcome.measurement)
    predicted = _implied(predicted, outcome.measurement)
    if measured.get(TTFT, UNSATURATED_MS) < UNSATURATED_MS:
        measured[UNSATURATED], predicted[UNSATURATED] = measured[TTFT], predicted[TTFT]
    return [Pair(outcome, name, value, predicted[name]) for name, value in measured.items()]


def _implied(values: dict[str, float], row: Measurement) -> dict[str, float]:
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


def _group(labels: tuple[str, ...], outcomes: Sequence[Outcome]) -> Group:
    return Group(labels, len(outcomes), errors_of(pair for outcome in outcomes for pair in pairs_of(outcome)))


def _by_source(outcomes: Sequence[Outcome]) -> Iterator[Group]:
    for source, rows in grouped(outcomes, lambda o: o.measurement.source).items():
        yield _group((source,), rows)
        yield from (_group(labels, some) for labels, some in grouped(rows, labels_of).items())


def _totals(outcomes: Sequence[Outcome]) -> list[Group]:
    kinds: dict[str, Callable[[Outcome], bool]] = {
        "all": lambda o: True,
        "dense": lambda o: not o.moe,
        "MoE": lambda o: o.moe,
        "tables": lambda o: o.evidence == "tables",
        "roofline": lambda o: o.evidence == "roofline",
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


# ---- sweeps and rankings ------------------------------------------------------------------------------------------


def sweeps(outcomes: Iterable[Outcome]) -> list[Sweep]:
    """Return every sweep of at least MIN_SWEEP predicted loads."""
    found = grouped((o for o in outcomes if _is_step(o)), lambda o: o.measurement.sweep).values()
    return [_sweep(steps) for steps in found if len({o.measurement.load for o in steps}) >= MIN_SWEEP]


def _is_step(outcome: Outcome) -> bool:
    return outcome.problem is None and outcome.measurement.load not in (None, np.inf)


def _sweep(outcomes: list[Outcome]) -> Sweep:
    steps = sorted(outcomes, key=lambda o: o.measurement.load or 0.0)
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
        if len(settings := {o.measurement.sweep for o in rows}) > 1 and len(rows) >= MIN_SWEEP
    ]


def _task(outcome: Outcome) -> tuple[str, float, float, str]:
    row = outcome.measurement
    return row.model, row.isl, row.osl, row.load_kind.split("(")[0].strip()


# ---- effects ------------------------------------------------------------------------------------------------------


def _cliffs(outcomes: Iterable[Outcome]) -> Iterator[Effect]:
    """Yield the largest fall of prefix-cache hits from one load to the next of a sweep."""
    having = [o for o in outcomes if _is_step(o) and HIT in o.predicted and HIT in o.measurement.measured]
    for rows in grouped(having, lambda o: o.measurement.sweep).values():
        steps = list(pairwise(sorted(rows, key=lambda o: o.measurement.load or 0.0)))
        falls = [_change(a, b, HIT) for a, b in steps]
        if falls and min(falls)[0] < -CLIFF:
            a, b = steps[falls.index(min(falls))]
            where = f"{a.measurement.id} -> {b.measurement.id}"
            yield Effect("prefix-cache cliff: hits of prompt tokens", where, "points", *min(falls))


def _change(before: Outcome, after: Outcome, metric: str) -> tuple[float, float]:
    """Return after - before, measured and predicted."""
    return (
        after.measurement.measured[metric] - before.measurement.measured[metric],
        after.predicted[metric] - before.predicted[metric],
    )


def _host_gains(outcomes: Iterable[Outcome]) -> Iterator[Effect]:
    """Yield what KV offload to host memory changes, by rows whose ids differ in ``offloadon`` and ``offloadoff``."""
    by_id = {o.measurement.id: {pair.metric: pair for pair in pairs_of(o)} for o in outcomes if o.problem is None}
    for name, on in by_id.items():
        off = by_id.get(name.replace("offloadon", "offloadoff"), on)
        for metric in RANKED:
            if off is not on and metric in on and metric in off:
                measured = on[metric].measured / off[metric].measured - 1.0
                predicted = on[metric].predicted / off[metric].predicted - 1.0
                yield Effect(f"host tier: change of {RANKED[metric]}", name, "%", measured, predicted)


def _transfers(outcomes: Iterable[Outcome]) -> Iterator[Effect]:
    pairs = [pair for outcome in outcomes for pair in pairs_of(outcome) if pair.metric == TRANSFER]
    for pair in sorted(pairs, key=lambda pair: pair.measured):
        yield Effect("KV transfer time", pair.outcome.measurement.id, "ms", pair.measured, pair.predicted)


def _requests(outcomes: Iterable[Outcome], logs: Mapping[str, Columns]) -> Iterator[Requests]:
    for outcome in outcomes:
        log, ours = logs.get(outcome.measurement.id), outcome.requests
        if log is not None and ours is not None:
            quantiles = {name: _quantiles(log[name], ours[name]) for name in ("ttft_ms", "latency_ms")}
            yield Requests(
                outcome.measurement.id, len(log["ttft_ms"]), correlation=_correlation(log, ours), **quantiles
            )


def _queueing(scored: Iterable[Requests]) -> Iterator[Effect]:
    """Yield quantiles of TTFT where the requests are those of the log one by one."""
    for row in scored:
        if row.correlation is not None:
            yield from (Effect(f"queueing: {q} of TTFT", row.id, "ms", *row.ttft_ms[q]) for q in ("p50", "p90"))


def _quantiles(measured: Array, predicted: Array) -> dict[str, tuple[float, float]]:
    at = (10, 50, 90, 99)
    values = zip(np.nanpercentile(measured, at), np.nanpercentile(predicted, at), strict=True)
    return {f"p{q}": (float(a), float(b)) for q, (a, b) in zip(at, values, strict=True)}


def _correlation(log: Columns, ours: Columns) -> float | None:
    if not all(np.array_equal(log[name], ours[name]) for name in ("input_tokens", "output_tokens")):
        return None
    return float(np.corrcoef(log["ttft_ms"], ours["ttft_ms"])[0, 1])


# ---- targets and bands --------------------------------------------------------------------------------------------


def targets(
    totals: Sequence[Group], follows: Sequence[Sweep], effects: Sequence[Effect], *, refused: int
) -> list[Target]:
    """Return the targets of the calibration set: bounds of MAPE, tau on average over sweeps, saturation, effects."""
    by_name = {group.labels[0]: group.errors for group in totals}
    mapes = (("dense", TPOT, 0.08), ("MoE", TPOT, 0.20), ("all", UNSATURATED, 0.25), ("all", THROUGHPUT, 0.10))
    missed = sum(sweep.saturation == "missed" for sweep in follows)
    lost = sum(not effect.kept for effect in effects)
    return [
        *(_mape_target(name, metric, by_name[name].get(metric), bound) for name, metric, bound in mapes),
        *(_tau_target(metric, [s.tau[metric] for s in follows if s.tau.get(metric) is not None]) for metric in RANKED),
        Target("sweeps whose saturation is over one step off", f"0 of {len(follows)}", missed, "", missed == 0),
        Target("effects with a wrong sign or over a third off", f"0 of {len(effects)}", lost, "", lost == 0),
        Target("rows that ran and have no prediction", "0", refused, "", refused == 0),
    ]


def _mape_target(group: str, metric: str, errors: Errors | None, bound: float) -> Target:
    name = f"{'' if group == 'all' else group + ' '}{SCORED[metric]} MAPE"
    value = None if errors is None else errors.mape
    return Target(name, f"<= {100 * bound:g} %", value, "%", None if value is None else value <= bound)


def _tau_target(metric: str, taus: Sequence[Any]) -> Target:
    value = float(np.mean(taus)) if taus else None
    return Target(f"Kendall tau of {RANKED[metric]}", ">= 0.95", value, "", None if value is None else value >= 0.95)


def bands(outcomes: Iterable[Outcome]) -> dict[str, dict[str, dict[str, float]]]:
    """Return "evidence/class" -> metric -> rows and quantiles of measured / predicted.

    The truth is predicted x [low, high] in BAND_COVERAGE of the rows. Metrics have AIPerf's names; one with fewer than
    BAND_ROWS rows in a class has no band.
    """
    classes = grouped((o for o in outcomes if not o.measurement.flagged and o.problem is None), _evidence_class)
    return {name: _bands([pair for o in rows for pair in pairs_of(o)]) for name, rows in sorted(classes.items())}


def _evidence_class(outcome: Outcome) -> str:
    return f"{outcome.evidence}/{'moe' if outcome.moe else 'dense'}"


def _bands(pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    by_metric = grouped(pairs, lambda pair: pair.metric)
    found = {name: by_metric.get(metric, []) for metric, name in BAND_METRICS.items()}
    return {name: _band(rows) for name, rows in found.items() if len(rows) >= BAND_ROWS}


def _band(pairs: Sequence[Pair]) -> dict[str, float]:
    low, high = _tails([pair.measured / pair.predicted for pair in pairs])
    band = {"rows": len(pairs), "low": round(low, 4), "high": round(high, 4)}
    spread = _spread(pairs)
    return band if spread is None else band | {"spread": round(spread, 4)}


def _tails(values: Sequence[float]) -> tuple[float, float]:
    tail = (1.0 - BAND_COVERAGE) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


def _spread(pairs: Sequence[Pair]) -> float | None:
    """Return half the width of ln(measured / predicted) around the mean of its family: one setting under many loads.

    It is what two points of one study may still be wrong against each other. None with fewer than BAND_ROWS rows in
    families of two and more. Means taken off make residuals small by (n - families) / n in variance, put back here.
    """
    families = [rows for rows in grouped(pairs, _family).values() if len(rows) > 1]
    logs = [np.log([pair.measured / pair.predicted for pair in rows]) for rows in families]
    rows = sum(map(len, logs))
    if rows < BAND_ROWS:
        return None
    low, high = _tails(np.concatenate([values - values.mean() for values in logs]).tolist())
    return (high - low) / 2.0 * float(np.sqrt(rows / (rows - len(families))))


def _family(pair: Pair) -> tuple[str | None, ...]:
    return *labels_of(pair.outcome), pair.outcome.measurement.precision
