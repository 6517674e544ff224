"""Evidence marks: what a number rests on."""

from __future__ import annotations

from collections.abc import Mapping

from dynosim.config import Scenario
from dynosim.timing import calibrated
from dynosim.uncertainty.model_band import Evidence, is_measured

EXTRAPOLATED_SHARE = 0.05
"""A run is extrapolated where more of its pass time than this lies outside the measured grid."""


def evidence(scenario: Scenario, metrics: Mapping[str, float]) -> Evidence:
    """Return the mark of a simulated scenario with *metrics* (``Metrics.flat``).

    Raises ProfileError where the deployment names a profile that is not there.
    """
    profile = calibrated.profile_of(scenario.deployment)
    beyond = profile is not None and profile.outside(calibrated.conditions(scenario.deployment, metrics))
    if beyond or metrics.get("extrapolated_pass_share", 0.0) > EXTRAPOLATED_SHARE:
        return "extrapolated"
    if profile is not None:
        return "calibrated"
    return "modelled" if is_measured(scenario.deployment) else "extrapolated"
