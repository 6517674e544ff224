"""BoTorch's noisy expected hypervolume improvement over the same models and candidates, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dynosim.search.distributions import Point
from dynosim.search.samplers.bayes import BayesSampler, Belief
from dynosim.search.samplers.candidates import Score
from dynosim.search.samplers.encoding import Lens as Encoder
from dynosim.search.samplers.model import to_botorch

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float64]

_SAMPLES = 64
_SHORTLIST = 32
"""Of the points scored at once, so many of the highest exact EHVI are scored: qLogNEHVI is 100 times as expensive."""


class QLogNEHVISampler(BayesSampler):
    """``BayesSampler`` with qLogNEHVI (Daulton et al. 2021; Ament et al. 2023), which models noise in the front too."""

    def score(self, encoder: Encoder, belief: Belief) -> Score:
        """Return qLogNEHVI of single points, with the constraints' probabilities as BoTorch smooths them."""
        exact = super().score(encoder, belief)
        if np.isnan(belief.reference).any():
            return exact
        from dynosim.search.samplers.botorch_api import (
            SobolQMCNormalSampler,
            WeightedMCMultiOutputObjective,
            qLogNoisyExpectedHypervolumeImprovement,
            torch,
        )

        m = len(belief.objectives)
        acquisition = qLogNoisyExpectedHypervolumeImprovement(
            to_botorch([*belief.objectives, *belief.constraints]),
            torch.as_tensor(-belief.reference),
            torch.as_tensor(belief.objectives[0].X),
            SobolQMCNormalSampler(torch.Size([_SAMPLES]), seed=0),
            WeightedMCMultiOutputObjective(-torch.ones(m, dtype=torch.float64), list(range(m))),
            constraints=[_output(m + i) for i in range(len(belief.constraints))] or None,
            prune_baseline=True,
        )

        def score(points: Sequence[Point]) -> Array:
            shortlist = np.argsort(-exact(points), kind="stable")[:_SHORTLIST]
            X = torch.as_tensor(encoder([points[i] for i in shortlist]))
            scores = np.full(len(points), -np.inf)
            with torch.no_grad():
                scores[shortlist] = acquisition(X[:, None, :]).numpy()
            return scores

        return score


def _output(index: int) -> Callable[[Tensor], Tensor]:
    return lambda samples: samples[..., index]
