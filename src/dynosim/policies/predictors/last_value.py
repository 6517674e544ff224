"""The rate stays as it is: Dynamo planner's ``constant`` predictor."""

from __future__ import annotations


class LastValue:
    """Expect the last rate again."""

    def __init__(self) -> None:
        self._rate_rps = 0.0

    def observe(self, rate_rps: float) -> None:
        """Take in the rate of the interval that has ended."""
        self._rate_rps = rate_rps

    def predict(self) -> float:
        """Return the last rate."""
        return self._rate_rps
