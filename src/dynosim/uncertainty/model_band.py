"""Model bands: the factors between which the truth lies, from what validation found on configurations of the same kind.

``bands.json`` holds, per class of evidence (where pass times come from / dense or MoE), the GPUs that were measured and
the 10 % and 90 % quantiles of measured / predicted; ``dynosim validate --write-bands`` writes it. A calibrated
deployment has the band of its profile: its errors on runs that it was not fitted on. Tails and other statistics take
the band of their metric's mean. On a GPU or with a source that was not measured there is no band: the errors of others
say nothing of it.

No band have counts, ratios, utilisations and goodput, which no measurement of the set states, and rates under open-loop
load that is carried: they are what was sent, and no prediction.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dynosim.config import ConcurrencyLoad, DeploymentConfig, Scenario
from dynosim.errors import ConfigError
from dynosim.hardware.models import get_model
from dynosim.timing.calibrated import Profile, profile_of
from dynosim.uncertainty.sampling import FOLLOWS

Evidence = Literal["measured", "calibrated", "modelled", "extrapolated"]
"""Best first. Measured: imported from a real run. Calibrated: under a profile, within what it was fitted on. Modelled:
real runs of its class of evidence were measured on its GPUs (``is_measured``); their errors are its band.
Extrapolated: none were, or it is beyond the tables' grid or the profile's ranges."""

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

    def widened(self) -> Band:
        """Return the band for what is beyond the measurements."""
        centre, half = math.sqrt(self.low * self.high), math.exp(WIDENED * self.half_width)
        return Band(centre / half, centre * half, WIDENED * self.spread)


class _Measured(NamedTuple):
    """What was measured of a class of evidence."""

    gpus: frozenset[str]
    bands: Mapping[str, Band]


def evidence_class(deployment: DeploymentConfig) -> str | None:
    """Return ``tables/dense`` and the like; None for pass times of a source that is not validated."""
    source = SOURCES.get(deployment.timing.type)
    return source and f"{source}/{'dense' if get_model(deployment.model).moe is None else 'moe'}"


def is_measured(deployment: DeploymentConfig) -> bool:
    """Whether real runs of the deployment's class of evidence were measured on its GPUs, enough of them for a band."""
    return bool(_of_class(deployment, BANDS))


def model_bands(
    scenario: Scenario, mark: Evidence, *, saturated: bool = False, file: Path | None = None
) -> dict[str, Band]:
    """Return metric -> band of a configuration with the evidence *mark*; metrics without one are absent.

    *saturated*: the run did not carry the load. *file* instead of the package's; nothing is known without.
    """
    base = _base(scenario.deployment, file or BANDS)
    if mark == "extrapolated":  # where a profile has seen nothing it is worth no more than the class
        of_class = _of_class(scenario.deployment, file or BANDS)
        base = {name: band.wider(of_class[name]).widened() for name, band in base.items() if name in of_class}
    predicted = saturated or isinstance(scenario.workload.load, ConcurrencyLoad)
    sources = dict(VALIDATED)
    if predicted:
        sources |= dict.fromkeys(RATES, ("output_token_throughput", 1))
        sources |= {name: ("output_token_throughput", sign) for name, (rate, sign) in FOLLOWS.items() if rate in RATES}
    known = {name: (base[source], sign) for name, (source, sign) in sources.items() if source in base}
    return {name: band if sign > 0 else band.inverse() for name, (band, sign) in known.items()}


def _base(deployment: DeploymentConfig, file: Path) -> Mapping[str, Band]:
    """Return the bands of the validated metrics."""
    try:
        profile = profile_of(deployment)
    except ConfigError:  # the run was moved away from its profile
        return {}
    if profile is not None and profile.residuals:
        return _of_profile(profile)
    return _of_class(deployment, file)


def _of_profile(profile: Profile) -> dict[str, Band]:
    """Return the bands of a normal error with the profile's left-out MAPE (its own where nothing could be left out)."""
    bands = {}
    for name, residual in profile.residuals.items():
        mape = residual.mape if residual.mape_left_out is None else residual.mape_left_out
        half = MAPE_TO_HALF_WIDTH * math.log1p(mape)
        bands[name] = Band(math.exp(-half), math.exp(half), SHARED * half)
    return bands


def _of_class(deployment: DeploymentConfig, file: Path) -> Mapping[str, Band]:
    """Return metric -> band of the deployment's class; empty on GPUs that were not measured."""
    measured = _read(file).get(evidence_class(deployment) or "")
    gpus = set(map(deployment.pool_gpu, deployment.pools().values()))
    return measured.bands if measured is not None and gpus <= measured.gpus else {}


@lru_cache(maxsize=4)
def _read(file: Path) -> dict[str, _Measured]:
    """Return class -> what was measured of it; empty where the file is not there."""
    if not file.is_file():
        return {}
    return {
        name: _Measured(frozenset(of["gpus"]), {metric: _band(fields) for metric, fields in of["bands"].items()})
        for name, of in json.loads(file.read_text())["classes"].items()
    }


def _band(fields: Mapping[str, Any]) -> Band:
    half = math.log(fields["high"] / fields["low"]) / 2.0
    return Band(fields["low"], fields["high"], fields.get("spread", SHARED * half))
