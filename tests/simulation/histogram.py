"""Token gaps recorded from Python, where only the engine's compiled code can call ``record_gaps``."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numba import njit

from dynosim.simulation import build, gaps
from dynosim.simulation.records import TokenGaps

Series = tuple[float, float, int, int]
"""(first, step, n, weight) as ``record_gaps`` takes them."""

build.to_numba()
_record = njit(gaps.record_gaps.py_func)


def make_gaps(series: Iterable[Series]) -> TokenGaps:
    """Return the histogram of all gaps of *series*."""
    count, total, limits = np.zeros(gaps.BINS), np.zeros(gaps.BINS), np.array([math.inf, -math.inf])
    for one in series:
        _record(count, total, limits, *one)
    return TokenGaps(count, total, float(limits[0]), float(limits[1]))
