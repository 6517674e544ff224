"""Checks of policies' options. Each raises ConfigError with the option's name as path; the registry adds the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from dynosim.errors import ConfigError


def check_at_least(bound: float, **options: float) -> None:
    """Options are numbers, none below *bound*."""
    _check(options, lambda value: value >= bound, f"a number of at least {bound:g}")


def check_positive(**options: float) -> None:
    """Options are numbers above 0."""
    _check(options, lambda value: value > 0.0, "a number above 0")


def check_share(**options: float) -> None:
    """Options are numbers between 0 and 1."""
    _check(options, lambda value: 0.0 <= value <= 1.0, "a number between 0 and 1")


def check_count(**options: int) -> None:
    """Options are whole numbers from 1 to a billion."""
    _check(options, lambda value: value == int(value) and 1 <= value <= 1e9, "a whole number from 1 to 1e9")


def check_thresholds(up: float, down: float) -> None:
    """0 < *up* and 0 <= *down* <= *up*: otherwise one load would ask for both directions."""
    check_positive(up=up)
    _check({"down": down}, lambda value: 0.0 <= value <= up, f"a number from 0 to 'up', {up:g}")


def check_choice(allowed: Sequence[str], **options: str) -> None:
    """Options are among *allowed*."""
    for name, value in options.items():
        if value not in allowed:
            raise ConfigError(f"{value!r}: allowed: {', '.join(allowed)}", path=name)


def _check(options: Mapping[str, float], is_allowed: Callable[[float], bool], allowed: str) -> None:
    for name, value in options.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and is_allowed(value)):
            raise ConfigError(f"{value!r}: must be {allowed}", path=name)
