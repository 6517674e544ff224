"""Numbers as people write them."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Return *value* with three significant digits and no exponent where people would write none."""
    if value and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.2e}"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(max(digits, 0), 5)}f}"
