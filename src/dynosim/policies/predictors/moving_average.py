"""The mean of the last intervals."""

from __future__ import annotations

from collections import deque

from dynosim.policies.options import check_count


class MovingAverage:
    """Expect the mean rate of the last *window* intervals."""

    def __init__(self, window: int = 5) -> None:
        check_count(window=window)
        self._rates: deque[float] = deque(maxlen=int(window))

    def observe(self, rate_rps: float) -> None:
        """Take in the rate of the interval that has ended."""
        self._rates.append(rate_rps)

    def predict(self) -> float:
        """Return the mean."""
        return sum(self._rates) / max(len(self._rates), 1)
