"""Level and trend, both smoothed exponentially: Holt's linear method.

    level' = alpha * rate + (1 - alpha) * (level + trend)
    trend' = beta * (level' - level) + (1 - beta) * trend

The first two rates give the first level and trend; the prediction is level + trend (Hyndman and Athanasopoulos,
Forecasting: Principles and Practice, 3rd edition, 8.2).
"""

from __future__ import annotations

from dynosim.policies.options import check_share


class Holt:
    """Expect the rate to go on as it has been going."""

    def __init__(self, alpha: float = 0.5, beta: float = 0.3) -> None:
        check_share(alpha=alpha, beta=beta)
        self._alpha, self._beta = alpha, beta
        self._seen = 0
        self._level = self._trend = 0.0

    def observe(self, rate_rps: float) -> None:
        """Take in the rate of the interval that has ended."""
        self._seen += 1
        alpha = 1.0 if self._seen < 3 else self._alpha
        beta = {1: 0.0, 2: 1.0}.get(self._seen, self._beta)
        level = alpha * rate_rps + (1.0 - alpha) * (self._level + self._trend)
        self._trend += beta * (level - self._level - self._trend)
        self._level = level

    def predict(self) -> float:
        """Return the next value of the line; no rate is below 0."""
        return max(self._level + self._trend, 0.0)
