"""Model bands: the factors between which the truth lies, from what validation found on configurations of the same kind.

``bands.json`` holds, per class of evidence (``evidence_class``), the GPUs that were measured and the band of
measured / predicted of each metric; ``dynosim validate --write-bands`` writes it (``fidelity.bands`` says how). A
calibrated deployment has the band of its profile: its errors on runs that it was not fitted on. p99 of latencies has
rows and a band of its own, which p90 and p95 share; a median has that of the mean. A GPU that was not measured, of a
vendor and source that were, has the band of its class, as much wider as leaving out GPUs says (``new_gpu`` in the
file); other vendors and sources have none.

No band have counts, ratios, utilisations and goodput, which no measurement of the set states, and rates under open-loop
load that is carried: they are what was sent, and no prediction.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from dynosim.config import ConcurrencyLoad, DeploymentConfig, Scenario
from dynosim.errors import ConfigError
from dynosim.hardware.gpus import get_gpu
from dynosim.hardware.models import get_model
from dynosim.timing.calibrated import profile_of
from dynosim.uncertainty.sampling import FOLLOWS

Evidence = Literal["measured", "calibrated", "modelled", "extrapolated"]
"""Best first. Measured: imported from a real run. Calibrated: under a profile, within what it was fitted on. Modelled:
real runs on its GPUs were compared with predictions of its source of pass times (``is_measured``); the errors of its
class are its band. Extrapolated: none were, or it is beyond the tables' grid or the profile's ranges."""

BEST_FIRST: tuple[Evidence, ...] = get_args(Evidence)

T = TypeVar("T")

BANDS = Path(__file__).with_name("bands.json")

WIDENED = 1.5
"""How much wider, in logarithms, the band of a measured class is beyond the tables' grid or a profile's ranges. A
convention, as nothing was measured there."""
SHARED = 0.5
"""Share of a band's half-width that two points of one class have apart, where the file does not say (``spread``)."""
MAPE_TO_HALF_WIDTH = 1.606
"""80 % half-width over the mean absolute error of a normal distribution: 1.2816 / sqrt(2 / pi)."""

SOURCES = {"pack": "tables", "roofline": "roofline"}
"""Type of ``deployment.timing`` -> where its pass times come from; formulas and the user's own sources have no band."""

VALIDATED: Mapping[str, tuple[str, int]] = {
    "time_to_first_token": ("time_to_first_token", 1),
    "inter_token_latency": ("inter_token_latency", 1),
    "inter_chunk_latency": ("inter_token_latency", 1),
    "output_token_throughput_per_user": ("inter_token_latency", -1),
    "request_latency": ("request_latency", 1),
    "e2e_output_token_throughput": ("request_latency", -1),
}
"""Metric -> validated metric that it is made of, or (-1) the inverse of."""
TAIL = ".p99"
"""What a latency's tail is called behind its name, in ``bands.json`` and among bands."""
RATES = ("request_throughput", "output_token_throughput", "input_token_throughput", "total_token_throughput")


@dataclass(frozen=True)
class Band:
    """The truth is predicted x [low, high] in 80 % of comparable measurements."""

    low: float
    high: float
    spread: float
    """Part of the error, as a half-width in logarithms, that points of one class do not have in common."""

    @property
    def half_width(self) -> float:
        """Half of the band's width, in logarithms."""
        return math.log(self.high / self.low) / 2.0

    def around(self, value: float) -> tuple[float, float]:
        """Return between which numbers the truth of a predicted *value* lies."""
        return value * self.low, value * self.high

    def inverse(self) -> Band:
        """Return the band of one over the metric."""
        return Band(1.0 / self.high, 1.0 / self.low, self.spread)

    def wider(self, other: Band) -> Band:
        """Return the wider of two bands."""
        return max(self, other, key=lambda band: band.half_width)

    def widened(self, factor: float = WIDENED) -> Band:
        """Return the band *factor* times as wide: for what is beyond the measurements."""
        centre, half = math.sqrt(self.low * self.high), math.exp(factor * self.half_width)
        return Band(centre / half, centre * half, factor * self.spread)


class _Measured(NamedTuple):
    """What was measured of a class of evidence."""

    gpus: frozenset[str]
    bands: Mapping[str, Band]
    elsewhere: Mapping[str, Band]
    """On other GPUs."""


def evidence_class(deployment: DeploymentConfig) -> str | None:
    """Return where pass times come from, vendor and kind of model: ``tables/nvidia/moe``; and behind that
    ``/disaggregated``, ``/speculative``. None for pass times of a source that is not validated."""
    source = SOURCES.get(deployment.timing.type)
    if source is None:
        return None
    vendors = sorted({get_gpu(gpu).vendor for gpu in gpus_of(deployment)})
    kind = "dense" if get_model(deployment.model).moe is None else "moe"
    more = {"disaggregated": deployment.disaggregated, "speculative": deployment.engine.speculative}
    return "/".join([source, "+".join(vendors), kind, *(name for name, given in more.items() if given is not None)])


def gpus_of(deployment: DeploymentConfig) -> frozenset[str]:
    """Return the GPUs of all pools."""
    return frozenset(map(deployment.pool_gpu, deployment.pools().values()))


def is_measured(deployment: DeploymentConfig, file: Path | None = None) -> bool:
    """Whether real runs of the deployment's source and vendor were measured on its GPUs, enough of them for a band."""
    measured = _read(file or BANDS).get(evidence_class(deployment) or "")
    return measured is not None and gpus_of(deployment) <= measured.gpus


def model_bands(
    scenario: Scenario, mark: Evidence, *, saturated: bool = False, file: Path | None = None
) -> dict[str, Band]:
    """Return metric -> band of a configuration with the evidence *mark*, of tails under ``metric.p99``.

    Metrics without one are absent (``band_of`` looks one up). *saturated*: the run did not carry the load. *file*
    instead of the package's; nothing is known without.
    """
    deployment = scenario.deployment
    of_class = class_bands(evidence_class(deployment), gpus_of(deployment), file)
    base = _of_profile(deployment, of_class)
    if mark == "extrapolated" and (base is not of_class or is_measured(deployment, file)):
        # Where a profile has seen nothing it is worth no more than the class.
        base = {name: band.wider(of_class[name]).widened() for name, band in base.items() if name in of_class}
    sources = dict(VALIDATED)
    closed = any(isinstance(workload.load, ConcurrencyLoad) for workload in scenario.named_workloads().values())
    if saturated or closed:  # the rate is a prediction
        sources |= dict.fromkeys(RATES, ("output_token_throughput", 1))
        sources |= {name: ("output_token_throughput", sign) for name, (rate, sign) in FOLLOWS.items() if rate in RATES}
    known = {
        name + tail: (base[source + tail], sign)
        for name, (source, sign) in sources.items()
        for tail in ("", TAIL)
        if source + tail in base
    }
    return {name: band if sign > 0 else band.inverse() for name, (band, sign) in known.items()}


def band_of(bands: Mapping[str, T], name: str) -> T | None:
    """Return what *bands* (``model_bands``) say of a metric and its statistic: ``time_to_first_token.p90``.

    Of several cases (``worst/time_to_first_token.p90``) it is the same: their errors have one cause.
    """
    metric, _, statistic = name.rpartition("/")[2].partition(".")
    return bands.get(metric if statistic in ("", "avg", "p50") else metric + TAIL)


def class_bands(name: str | None, gpus: Collection[str] = (), file: Path | None = None) -> Mapping[str, Band]:
    """Return metric -> band of a class, wider where one of *gpus* was not measured; empty of an unknown class."""
    measured = _read(file or BANDS).get(name or "")
    if measured is None:
        return {}
    return measured.bands if measured.gpus.issuperset(gpus) else measured.elsewhere


def _of_profile(deployment: DeploymentConfig, of_class: Mapping[str, Band]) -> Mapping[str, Band]:
    """Return the bands of a normal error with the profile's left-out MAPE (its own where nothing could be left out).

    Its tails, which it says nothing of, have the band of the class; so has everything where there is no profile.
    """
    try:
        profile = profile_of(deployment)
    except ConfigError:  # the run was moved away from its profile
        return {}
    if profile is None or not profile.residuals:
        return of_class
    bands = {name: band for name, band in of_class.items() if name.endswith(TAIL)}
    for name, residual in profile.residuals.items():
        mape = residual.mape if residual.mape_left_out is None else residual.mape_left_out
        half = MAPE_TO_HALF_WIDTH * math.log1p(mape)
        bands[name] = Band(math.exp(-half), math.exp(half), SHARED * half)
    return bands


@lru_cache(maxsize=4)
def _read(file: Path) -> dict[str, _Measured]:
    """Return class -> what was measured of it; empty where the file is not there."""
    if not file.is_file():
        return {}
    content = json.loads(file.read_text())
    return {name: _measured(of, content.get("new_gpu", WIDENED)) for name, of in content["classes"].items()}


def _measured(of: Mapping[str, Any], new_gpu: float) -> _Measured:
    bands = {metric: _band(fields) for metric, fields in of["bands"].items()}
    return _Measured(frozenset(of["gpus"]), bands, {name: band.widened(new_gpu) for name, band in bands.items()})


def _band(fields: Mapping[str, Any]) -> Band:
    half = math.log(fields["high"] / fields["low"]) / 2.0
    return Band(fields["low"], fields["high"], fields.get("spread", SHARED * half))
