"""BoTorch's noisy expected hypervolume improvement over the same models and candidates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dynosim.search.samplers.botorch_api import (
    SobolQMCNormalSampler,
    Tensor,
    WeightedMCMultiOutputObjective,
    qLogNoisyExpectedHypervolumeImprovement,
    torch,
)
from dynosim.search.samplers.candidates import Score
from dynosim.search.samplers.encoding import Featurizer
from dynosim.search.samplers.surrogate import Posterior

Array = NDArray[np.float64]

_SAMPLES = 64
_SHORTLIST = 32
"""Candidates that qLogNEHVI scores, those with the highest exact EHVI: it is 100 times as expensive."""


def noisy(exact: Score, featurizer: Featurizer, posterior: Posterior) -> Score:
    """Return qLogNEHVI of single rows (Daulton et al. 2021; Ament et al. 2023), which models noise in the front too.

    Constraints count by their probabilities as BoTorch smooths them. *exact* chooses the candidates that are scored.
    """
    m = len(posterior.objectives)
    acquisition = qLogNoisyExpectedHypervolumeImprovement(
        posterior.model,
        torch.as_tensor(-posterior.reference),
        posterior.inputs(featurizer(posterior.seen)),
        SobolQMCNormalSampler(torch.Size([_SAMPLES]), seed=0),
        WeightedMCMultiOutputObjective(-torch.ones(m, dtype=torch.float64), list(range(m))),
        constraints=[_output(m + i) for i in range(len(posterior.constraints))] or None,
        prune_baseline=True,
    )

    def score(rows: Array) -> Array:
        shortlist = np.argsort(-exact(rows), kind="stable")[:_SHORTLIST]
        scores = np.full(len(rows), -np.inf)
        with torch.no_grad():
            scores[shortlist] = acquisition(posterior.inputs(featurizer(rows[shortlist]))[:, None, :]).numpy()
        return scores

    return score


def _output(index: int) -> Callable[[Tensor], Tensor]:
    return lambda samples: samples[..., index]
