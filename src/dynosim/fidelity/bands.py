"""Bands of the truth around a prediction: conformal intervals over configurations, not over rows.

Rows of one sweep share a bias, so they count as one: each configuration (``errors.configuration_of``) weighs the same,
and stands for what an unseen one may do. The centre of a band is the median of ln(measured / predicted); its half-width
a quantile of how far the rows of each configuration lie from the median of all *others*, at the level that covers a
further configuration exactly (a mass of 1 / (n + 1) lies at infinity). This is the pooled method of Dunn, Wasserman and
Ramdas, "Distribution-free prediction sets for two-layer hierarchical models" (JASA 118, 2023), with the left-out
residuals of the jackknife+ (Barber, Candes, Ramdas and Tibshirani, Annals of Statistics 49, 2021).

It holds for configurations like those that were measured, and for a model that did not see them. The second is not so:
constants and rules were found in the sight of the rows. IN_SIGHT makes up for that.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from dynosim.fidelity.errors import (
    E2E,
    E2E_P99,
    LOAD_THROUGHPUT,
    TPOT,
    TPOT_P99,
    TTFT,
    TTFT_P99,
    configuration_of,
    grouped,
    pairs_of,
)
from dynosim.fidelity.names import card_of
from dynosim.uncertainty.model_band import class_bands

if TYPE_CHECKING:
    from dynosim.fidelity.replay import Outcome

Array = NDArray[np.float64]
Fields = dict[str, float | list[str]]
"""Of a band: ``_band``, and ``over``: what its pool does not share with the class."""

BAND_METRICS = {
    TPOT: "inter_token_latency",
    TPOT_P99: "inter_token_latency.p99",
    TTFT: "time_to_first_token",
    TTFT_P99: "time_to_first_token.p99",
    LOAD_THROUGHPUT: "output_token_throughput",
    E2E: "request_latency",
    E2E_P99: "request_latency.p99",
}
BAND_COVERAGE, BAND_CONFIGURATIONS = 0.8, 5
"""A band holds this share of measured / predicted; below this number of configurations there is none."""
IN_SIGHT = 1.25
"""How much wider, in logarithms, errors are on configurations that nobody looked at. The first model, made in the sight
of 28 configurations, was off by twice as much on others (TPOT: median 2.5 and 5.9 % dense, 7.7 and 13.7 % MoE), as with
17 free choices p of n = 28 in sqrt((n + p) / (n - p)) (Amemiya's prediction criterion); as many of 72 give 1.27."""
GPU_FACTORS = (1.0, 1.25, 1.5, 2.0)
"""How much wider bands may be on GPUs without rows; the least that suffices is taken."""
OPEN = ("kind", "disaggregation", "speculation")
"""What the configurations of a pool need not share with the class whose band they make, in the order of giving up."""


class ClassBands(TypedDict):
    """What was measured of a class of evidence."""

    gpus: list[str]
    """Of all rows of its source and vendor."""
    bands: dict[str, Fields]
    """Metric, under AIPerf's name (tails: ``.p99``) -> ``_band``."""


class Share(NamedTuple):
    """Share of rows inside a band, on average over configurations."""

    inside: float
    configurations: int


class Residual(NamedTuple):
    """ln(measured / predicted) of one metric of one row."""

    configuration: tuple[str, ...]
    lengths: tuple[float, float]
    gpu: str
    log: float


@dataclass(frozen=True)
class Held:
    """How many rows of a set lie in the bands that the package states for them."""

    inside: int
    rows: int
    """With a band."""
    bandless: int


def bands(outcomes: Iterable[Outcome]) -> dict[str, ClassBands]:
    """Return class of evidence -> its GPUs and bands, of every source and vendor with rows.

    The truth is predicted x [low, high] in BAND_COVERAGE of the rows of a further configuration. A class with fewer
    than BAND_CONFIGURATIONS has the band of the smallest pool around it that has them: of dense and MoE models, then
    of both modes of serving, then with and without speculation, then of two and of all three. Without such a pool a
    metric has no band.
    """
    sources = grouped(_sound(outcomes), lambda o: _parts(o.evidence)[0])
    found: dict[str, ClassBands] = {}
    for source, rows in sorted(sources.items()):
        gpus = sorted({card_of(o.measurement.gpu) for o in rows})
        of_class = {stated: _by_class(rows, metric) for metric, stated in BAND_METRICS.items()}
        for parts in product(("dense", "moe"), ("", "/disaggregated"), ("", "/speculative")):
            known = {stated: of[parts] for stated, of in of_class.items() if parts in of}
            if known:
                found[f"{source}/{''.join(parts)}"] = ClassBands(gpus=gpus, bands=known)
    return found


def held(outcomes: Iterable[Outcome]) -> dict[str, Held]:
    """Return metric -> how many rows lie in the package's own bands, on which they need not rest."""
    found = {metric: [0, 0, 0] for metric in BAND_METRICS}
    for outcome in _sound(outcomes):
        stated = class_bands(outcome.evidence, (card_of(outcome.measurement.gpu),))
        for pair in pairs_of(outcome):
            if pair.metric in found:
                band, counts = stated.get(BAND_METRICS[pair.metric]), found[pair.metric]
                counts[2] += band is None
                counts[1] += band is not None
                counts[0] += band is not None and band.low <= pair.measured / pair.predicted <= band.high
    return {metric: Held(*counts) for metric, counts in found.items()}


def left_out_gpus(outcomes: Iterable[Outcome]) -> dict[str, dict[str, Share]]:
    """Return factor -> metric -> what bands of other GPUs of a class, widened by it, hold of each GPU left out.

    Only classes that have enough configurations without it are asked.
    """
    classes = grouped(_sound(outcomes), lambda o: o.evidence).values()
    pools = {stated: [_residuals(rows, metric) for rows in classes] for metric, stated in BAND_METRICS.items()}
    found: dict[str, dict[str, Share]] = {}
    for factor in GPU_FACTORS:
        inside = {
            stated: [share for pool in of for share in _inside(pool, lambda residual: residual.gpu, factor)]
            for stated, of in pools.items()
        }
        found[f"{factor:g}"] = {
            stated: Share(round(float(np.mean(of)), 4), len(of)) for stated, of in inside.items() if of
        }
    return found


def new_gpu(found: Mapping[str, Mapping[str, Share]]) -> float:
    """Return the least of GPU_FACTORS under which bands hold BAND_COVERAGE of GPUs left out, over all metrics alike;
    the largest where none does."""
    enough = [
        float(factor)
        for factor, of in found.items()
        if of and np.mean([share.inside for share in of.values()]) >= BAND_COVERAGE
    ]
    return min(enough, default=GPU_FACTORS[-1])


def _sound(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return [o for o in outcomes if not o.measurement.flagged and o.problem is None and o.evidence]


def _parts(evidence: str) -> tuple[str, ...]:
    """Return source and vendor, kind, ``/disaggregated`` or nothing, ``/speculative`` or nothing."""
    source, vendor, kind, *more = evidence.split("/")
    return (
        f"{source}/{vendor}",
        kind,
        *(f"/{name}" if name in more else "" for name in ("disaggregated", "speculative")),
    )


def _by_class(rows: Sequence[Outcome], metric: str) -> dict[tuple[str, ...], Fields]:
    """Return class, in parts behind source and vendor, -> the band of the smallest pool of *rows* around it that has
    enough configurations; classes without one are absent."""
    classes = {parts: _residuals(of, metric) for parts, of in grouped(rows, lambda o: _parts(o.evidence)[1:]).items()}
    pools: dict[tuple[str, ...], Fields | None] = {}
    spread = _spread(_families([residual for of in classes.values() for residual in of]))
    anywhere: Fields = {} if spread is None else {"spread": spread}
    found: dict[tuple[str, ...], Fields] = {}
    for parts in product(("dense", "moe"), ("", "/disaggregated"), ("", "/speculative")):
        for open_parts in (given for count in range(len(OPEN) + 1) for given in combinations(range(len(OPEN)), count)):
            shared = tuple("*" if i in open_parts else part for i, part in enumerate(parts))
            if shared not in pools:
                pools[shared] = _of_pool(classes, shared)
            if (band := pools[shared]) is not None:
                found[parts] = anywhere | band
                break
    return found


def _of_pool(classes: Mapping[tuple[str, ...], Sequence[Residual]], shared: tuple[str, ...]) -> Fields | None:
    """Return the band of all classes that have the parts *shared* (``*`` is any), if they are enough."""
    pool = [
        residual
        for parts, residuals in classes.items()
        if all(ours in ("*", theirs) for ours, theirs in zip(shared, parts, strict=True))
        for residual in residuals
    ]
    if len({residual.configuration for residual in pool}) < BAND_CONFIGURATIONS:
        return None
    return _band(pool) | {"over": [name for name, part in zip(OPEN, shared, strict=True) if part == "*"]}


def _residuals(outcomes: Iterable[Outcome], metric: str) -> list[Residual]:
    return [
        Residual(configuration_of(row), (row.isl, row.osl), card_of(row.gpu), float(np.log(p.measured / p.predicted)))
        for o in outcomes
        for row in (o.measurement,)
        for p in pairs_of(o)
        if p.metric == metric and p.predicted > 0.0
    ]


def _band(pool: Sequence[Residual]) -> Fields:
    """Return rows, configurations, ends and spread of a band, and the share of left-out configurations inside before it
    is widened by IN_SIGHT."""
    logs = _by(pool, lambda residual: residual.configuration)
    low, high = interval(logs, IN_SIGHT)
    inside = _inside(pool, lambda residual: residual.configuration)
    ends = {"low": float(np.exp(low)), "high": float(np.exp(high)), "inside": float(np.mean(inside))}
    spread = _spread(_families(pool))
    if spread is not None:
        ends["spread"] = spread
    return {"rows": len(pool), "configurations": len(logs), **{name: round(value, 4) for name, value in ends.items()}}


def _families(pool: Iterable[Residual]) -> list[Array]:
    return _by(pool, lambda residual: (residual.configuration, residual.lengths))


def _by(residuals: Iterable[Residual], unit: Callable[[Residual], Hashable]) -> list[Array]:
    return [np.array([r.log for r in of]) for of in grouped(residuals, unit).values()]


def interval(logs: Sequence[Array], factor: float = 1.0) -> tuple[float, float]:
    """Return the band of a further configuration, in logarithms, *factor* times as wide.

    *logs* are the residuals of each configuration, at least two.
    """
    apart = [np.abs(own - _quantile(_others(logs, i), 0.5)) for i, own in enumerate(logs)]
    centre, half = _quantile(logs, 0.5), factor * _quantile(apart, BAND_COVERAGE * (len(logs) + 1) / len(logs))
    return centre - half, centre + half


def _others(logs: Sequence[Array], i: int) -> list[Array]:
    return [*logs[:i], *logs[i + 1 :]]


def _quantile(groups: Sequence[Array], level: float) -> float:
    """Return the smallest value with at least *level* of the weight at or below it (at most the largest); all groups
    weigh alike."""
    values = np.concatenate(groups)
    weights = np.concatenate([np.full(len(of), 1.0 / len(of) / len(groups)) for of in groups])
    order = np.argsort(values, kind="stable")
    at = int(np.searchsorted(np.cumsum(weights[order]), level - 1e-9))
    return float(values[order][min(at, len(values) - 1)])


def _spread(logs: Sequence[Array]) -> float | None:
    """Return how far rows lie from the mean of their family, one configuration and its lengths, as a half-width: what
    two points of one study may still be wrong against each other. None without enough families of two rows: then that
    of all classes of the source and vendor stands in.

    Means taken off make residuals of n rows small by (n - 1) / n in variance, put back here.
    """
    several = [of for of in logs if len(of) > 1]
    if len(several) < BAND_CONFIGURATIONS:
        return None
    apart = [np.abs(of - of.mean()) * np.sqrt(len(of) / (len(of) - 1)) for of in several]
    return round(_quantile(apart, BAND_COVERAGE), 4)


def _inside(pool: Sequence[Residual], unit: Callable[[Residual], Hashable], factor: float = 1.0) -> list[float]:
    """Return the share of rows inside, of each configuration, under the band of all units but its own."""
    shares = []
    for left_out, own in grouped(pool, unit).items():
        others = _by((r for r in pool if unit(r) != left_out), lambda residual: residual.configuration)
        if len(others) >= BAND_CONFIGURATIONS - 1:
            low, high = interval(others, factor)
            mine = _by(own, lambda residual: residual.configuration)
            shares += [float(np.mean((low <= logs) & (logs <= high))) for logs in mine]
    return shares
