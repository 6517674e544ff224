"""Bands of the truth around a prediction, from the residuals of the rows of its evidence class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from dynosim.fidelity.errors import E2E, LOAD_THROUGHPUT, TPOT, TTFT, Pair, grouped, labels_of, pairs_of
from dynosim.fidelity.names import card_of

if TYPE_CHECKING:
    from dynosim.fidelity.replay import Outcome

BAND_METRICS = {
    TPOT: "inter_token_latency",
    TTFT: "time_to_first_token",
    LOAD_THROUGHPUT: "output_token_throughput",
    E2E: "request_latency",
}
BAND_COVERAGE, BAND_ROWS = 0.8, 8
"""A band holds this share of measured / predicted; quantiles of fewer rows say nothing."""


class ClassBands(TypedDict):
    """What was measured of a class of evidence."""

    gpus: list[str]
    bands: dict[str, dict[str, float]]
    """Metric, under AIPerf's name -> rows and quantiles of measured / predicted."""


def bands(outcomes: Iterable[Outcome]) -> dict[str, ClassBands]:
    """Return class of evidence -> its GPUs and bands.

    The truth is predicted x [low, high] in BAND_COVERAGE of the rows. A metric with fewer than BAND_ROWS rows in a
    class has no band, and a class without any is not there.
    """
    classes = grouped((o for o in outcomes if not o.measurement.flagged and o.problem is None), lambda o: o.evidence)
    found = {
        name: ClassBands(
            gpus=sorted({card_of(o.measurement.gpu) for o in rows}),
            bands=_bands([pair for o in rows for pair in pairs_of(o)]),
        )
        for name, rows in sorted(classes.items())
    }
    return {name: of for name, of in found.items() if of["bands"]}


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
