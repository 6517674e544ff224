"""As one period ago: the seasonal naive method (Hyndman and Athanasopoulos, 5.2), for daily or hourly patterns."""

from __future__ import annotations

from collections import deque

from dynosim.policies.options import check_count


class Seasonal:
    """Expect the rate of *period* intervals before the next one; the last rate until a whole period is known."""

    def __init__(self, period: int = 24) -> None:
        check_count(period=period)
        self._rates: deque[float] = deque(maxlen=int(period))

    def observe(self, rate_rps: float) -> None:
        """Take in the rate of the interval that has ended."""
        self._rates.append(rate_rps)

    def predict(self) -> float:
        """Return the rate one period before the next interval."""
        if not self._rates:
            return 0.0
        return self._rates[0 if len(self._rates) == self._rates.maxlen else -1]
