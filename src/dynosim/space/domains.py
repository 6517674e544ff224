"""What one searched field may be: one of listed choices, or a number in a range."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from dynosim.config.load import show

CONTINUOUS_STEPS = (10, 30, 100)
"""Steps of a continuous range, for neighbours, are these fractions of it (of its logarithm where the scale is log)."""


@dataclass(frozen=True)
class Choices:
    """One of *values*, in the order of the file. A value may be a mapping: knobs that change together."""

    values: tuple[Any, ...]

    def contains(self, value: Any) -> bool:
        """Return whether *value* is one of the choices; 1 and true are different values."""
        return any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in self.values)

    def sample(self, rng: np.random.Generator) -> Any:
        """Draw uniformly."""
        return self.values[int(rng.random() * len(self.values))]

    def first(self) -> Any:
        """Return the value that a parameter takes where nothing else is known."""
        return self.values[0]

    def neighbours(self, value: Any) -> list[Any]:
        """Return the next smaller and larger choice of numbers, and every other choice of anything else."""
        if any(isinstance(choice, bool) or not isinstance(choice, int | float) for choice in self.values):
            return [choice for choice in self.values if choice != value]
        smaller = [choice for choice in self.values if choice < value]
        larger = [choice for choice in self.values if choice > value]
        return [*sorted(smaller)[-1:], *sorted(larger)[:1]]

    def __str__(self) -> str:
        return "one of " + ", ".join(show(value) for value in self.values)


@dataclass(frozen=True)
class Range:
    """Numbers from *min* to *max*, both included: stepped, continuous, or uniform in the logarithm."""

    min: float
    max: float
    step: float | None
    """Distance of neighbouring values; None for a log scale and for a continuous range."""
    scale: str = "linear"
    """``linear`` or ``log``."""
    integer: bool = False

    @cached_property
    def values(self) -> Sequence[float] | None:
        """All values in order; None for a continuous range."""
        if self.integer:
            return range(int(self.min), int(self.max) + 1, int(self.step or 1))
        if self.step is None:
            return None
        # Rounding gives 0.9 for 0.8 + 2 * 0.05, not 0.9000000000000001.
        return tuple(round(self.min + i * self.step, 12) for i in range(round((self.max - self.min) / self.step) + 1))

    def contains(self, value: Any) -> bool:
        """Return whether *value* is a number of the right kind in the range and on its grid."""
        if isinstance(value, bool) or not isinstance(value, int if self.integer else (int, float)):
            return False
        return self.min <= value <= self.max and (self.values is None or value in self.values)

    def sample(self, rng: np.random.Generator) -> float:
        """Draw uniformly, or uniformly in the logarithm."""
        if self.scale == "log":
            # An integer k stands for [k, k + 1), so that every integer can be drawn.
            low, high = math.log(self.min), math.log(self.max + self.integer)
            value = math.exp(low + rng.random() * (high - low))
            return min(int(value), int(self.max)) if self.integer else min(value, self.max)
        if self.values is None:
            return self.min + rng.random() * (self.max - self.min)
        return self.values[int(rng.random() * len(self.values))]

    def first(self) -> float:
        """Return the value that a parameter takes where nothing else is known."""
        return self.min

    def neighbours(self, value: float) -> list[float]:
        """Return a step down and up: *step*, twice and half (log integers), and several of a continuous range."""
        if self.scale == "log":
            factors = [2.0] if self.integer else [(self.max / self.min) ** (1 / n) for n in CONTINUOUS_STEPS]
            near = [moved for factor in factors for moved in (value / factor, value * factor)]
        else:
            steps = [self.step] if self.step else [(self.max - self.min) / n for n in CONTINUOUS_STEPS]
            near = [moved for step in steps for moved in (value - step, value + step)]
        rounded = [int(moved) if self.integer else round(moved, 12) for moved in near]
        clipped = dict.fromkeys(min(max(moved, self.min), self.max) for moved in rounded)
        return [moved for moved in clipped if moved != value]

    def __str__(self) -> str:
        kind = "integers" if self.integer else "numbers"
        grid = " (log)" if self.scale == "log" else f" in steps of {self.step:g}" if self.step not in (None, 1) else ""
        return f"{kind} from {self.min:g} to {self.max:g}{grid}"


Domain = Choices | Range


@dataclass(frozen=True)
class Matters:
    """Whether a field can change anything at a point."""

    reads: tuple[str, ...]
    """Paths of the earlier parameters that it depends on."""
    holds: Callable[[Mapping[str, Any]], bool] = field(compare=False)
    """Of a point; only of *reads*."""


@dataclass(frozen=True)
class Parameter:
    """One searched field of the file."""

    path: str
    """Dotted path from the root, such as ``deployment.aggregated.replicas``."""
    domain: Domain
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Path of an earlier parameter -> its values under which this one exists. Empty: it always exists."""

    matters: Matters | None = None
    """Rule by which it is left out of points where its value cannot matter. None: it always may."""

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The path as keys."""
        return tuple(self.path.split("."))

    def active(self, point: Mapping[str, Any]) -> bool:
        """Return whether a point that begins like *point* has this parameter: it exists there, and can matter."""
        return self.exists(point) and (self.matters is None or self.matters.holds(point))

    def exists(self, point: Mapping[str, Any]) -> bool:
        """Return whether the conditions hold at *point*, which has the parameters before this one."""
        # A plain loop: this runs for every parameter of every candidate.
        for path, allowed in self.when.items():  # noqa: SIM110
            if path not in point or point[path] not in allowed:
                return False
        return True
