"""What ``drive.py`` asks of a search method, and what the methods have in common."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dynosim.metrics import bounds_of
from dynosim.search.distributions import Point
from dynosim.search.trial import Outcome
from dynosim.space import Parameter, SearchSpace

Array = NDArray[np.float64]


class Proposal(NamedTuple):
    """A point, and what its method knows it by."""

    point: Point
    token: Any = None


class Proposer(Protocol):
    """A search method at work on one space."""

    takes_bounds: bool = False
    """Whether it is told of lost runs what a study ends early knows of them; the others are told their values."""

    def ask(self) -> Proposal:
        """Return the next point; it may be invalid, or one that was proposed before."""

    def tell(self, proposal: Proposal, outcome: Outcome | None) -> None:
        """Learn what a proposal gave; None says that it is known to be invalid."""


def is_numeric(parameter: Parameter) -> bool:
    """Whether the values of a parameter have an order."""
    values = parameter.domain.values
    return values is None or all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def slo_names(space: SearchSpace) -> list[str]:
    """Return the names of the SLOs as ``Outcome.constraints`` has them."""
    return [bound.name for bound in bounds_of(space.reference.slo)]
