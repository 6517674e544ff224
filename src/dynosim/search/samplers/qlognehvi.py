"""BoTorch's noisy expected hypervolume improvement over the same models and candidates, to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dynosim.search.samplers.bayes import BayesSampler
from dynosim.search.samplers.candidates import Score
from dynosim.search.samplers.encoding import Featurizer

if TYPE_CHECKING:
    from torch import Tensor

    from dynosim.search.samplers.surrogate import Posterior

Array = NDArray[np.float64]

_SAMPLES = 64
_SHORTLIST = 32
"""Candidates that qLogNEHVI scores, those with the highest exact EHVI: it is 100 times as expensive."""


class QLogNEHVISampler(BayesSampler):
    """``BayesSampler`` with qLogNEHVI (Daulton et al. 2021; Ament et al. 2023), which models noise in the front too.

    Of one objective, for which BoTorch has no hypervolume, it is log expected improvement.
    """

    def score(self, featurizer: Featurizer, posterior: Posterior) -> Score:
        """Return qLogNEHVI of single rows, with the constraints' probabilities as BoTorch smooths them."""
        exact = super().score(featurizer, posterior)
        if not posterior.searchable or len(posterior.objectives) == 1:
            return exact
        from dynosim.search.samplers.botorch_api import (
            SobolQMCNormalSampler,
            WeightedMCMultiOutputObjective,
            qLogNoisyExpectedHypervolumeImprovement,
            torch,
        )

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
