"""Dominance and hypervolume, in one sign convention.

Users write values with a direction. Everything that compares trials uses *losses*: the same numbers with
maximised objectives negated, so that smaller is better in every column. This module is where the sign
changes; the samplers build on it, and no other module negates anything. moocore does the geometry.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def losses(values: ArrayLike, directions: Sequence[str]) -> Array:
    """Return values (``n x m`` or ``m``, as the user wrote them) as losses: ``maximize`` columns are negated."""
    signs = np.array([-1.0 if direction == "maximize" else 1.0 for direction in directions])
    return np.asarray(np.asarray(values, dtype=float) * signs)


def nondominated(points: Array) -> NDArray[np.bool_]:
    """Return which rows of the losses (``n x m``) no other row dominates; of equal rows only the first counts."""
    import moocore  # predictions do without

    return np.asarray(moocore.is_nondominated(points), dtype=bool) if len(points) else np.zeros(0, dtype=bool)


def hypervolume(points: Array, reference: Array) -> float:
    """Return the volume that the losses (``n x m``) dominate within the reference point (``m``), in their units."""
    import moocore

    inside = points[np.all(points < reference, axis=1)]
    return float(moocore.hypervolume(inside, ref=reference)) if len(inside) else 0.0


def reference_point(points: Array, bounds: Array) -> Array:
    """Return the reference point (``m``) of a study from its feasible losses and its SLOs.

    An objective that an SLO bounds takes the bound: nothing beyond it is of use. The others (NaN in *bounds*)
    take the worst feasible loss seen, so that every feasible trial lies inside the box. NaN where neither is
    known.
    """
    worst = points.max(axis=0) if len(points) else np.full(len(bounds), np.nan)
    return np.where(np.isnan(bounds), worst, bounds)


def knee(points: Array) -> int:
    """Return the row of a front (``n x m``) closest to utopia when each loss is scaled by the front's range."""
    ideal, span = points.min(axis=0), np.ptp(points, axis=0)
    return int(np.argmin(np.linalg.norm((points - ideal) / np.where(span > 0.0, span, 1.0), axis=1)))
