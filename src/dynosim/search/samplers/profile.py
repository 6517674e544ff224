"""What the models assume of a study: metrics of deployments, or values of any function (a plain Optuna study)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_FLOOR = 0.01
"""Zeros count as this share of the median positive value: fewer preemptions or a shorter queue are of no use."""


def floor(values: Array) -> float | None:
    """Return what *values* are raised to before their logarithms are taken; None where some are negative, or all zero.

    0 where all are positive. Queues, stalls and preemptions can be zero, and one such trial is no reason to model the
    others by their differences.
    """
    known = values[np.isfinite(values)]
    positive = known[known > 0.0]
    if (known < 0.0).any() or len(positive) == 0 < len(known):
        return None
    return 0.0 if len(positive) == len(known) else _FLOOR * float(np.median(positive))


def logarithms(values: Array, least: float | None) -> Array:
    """Return the logarithms of values raised to *least*, or the values where it is None."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return values if least is None else np.asarray(np.log(np.maximum(values, least)))


@dataclass(frozen=True)
class NoisePrior:
    """LogNormal prior and bound of an output's noise variance, of standardised targets."""

    location: float
    scale: float
    """Both of its logarithm; its mode is at exp(location - scale^2)."""
    least: float


@dataclass(frozen=True)
class Profile:
    """Where the search of a space of deployments and that of any other differ; ``docs/sampler.md`` has the effects."""

    noise: NoisePrior
    kernel: str
    """One of ``kernels.KERNELS``. Closed forms know what single knobs of a deployment do, and features say how they act
    together; of any other function the data must tell which parameters act on their own."""
    logarithms: bool
    """Whether positive objectives are modelled, and their hypervolume measured, in logarithms. Latencies and costs are
    compared by their ratios; a loss whose best values are near zero would be nothing but those."""
    attainable: bool
    """Whether the reference lies just beyond the front that is believed to be attainable, or else at the worst that
    feasible points have or are believed to have: of deployments the ends of the front count, such as the cheapest."""
    scouts: int
    """Random valid points that show how far objectives reach."""
    doubt: bool
    """Whether proposals draw hyperparameters and try rare values of the front: parameters such as routing policies
    mostly do not matter and then suddenly do; where all of them matter, the most probable models are good enough."""
    rounds: int
    """Of hill climbing at most: in a continuous space there are smaller steps to take."""


SERVING = Profile(
    NoisePrior(-4.0, 1.0, 1e-4),
    "squared exponential",
    logarithms=True,
    attainable=False,
    scouts=64,
    doubt=True,
    rounds=5,
)
"""BoTorch's noise: a deployment's metrics jump a little wherever a batch or a queue fills up."""
PLAIN = Profile(
    NoisePrior(-9.8, 2.0, 1e-6), "anova", logarithms=False, attainable=True, scouts=256, doubt=False, rounds=12
)
"""Most functions are deterministic: the mode of the prior is 1e-6. A noisy one should tell its noise, or be searched as
``noisy``."""
