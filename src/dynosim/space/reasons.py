"""Why points of a space cannot work, counted: reasons that differ only in their numbers are one kind."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

from dynosim.space.space import SearchSpace

SAMPLES = 1_000
"""Points that are drawn to say how many of a space cannot work."""
MAX_KINDS = 3
"""Kinds of reasons that one line names."""

_PATH = re.compile(r"^(\w+\.)+\w+: ")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def sampled(space: SearchSpace, rng: np.random.Generator) -> list[str | None]:
    """Return why each of SAMPLES random points of *space* cannot work, None where one may."""
    return [space.infeasible_reason(space.sample(rng)) for _ in range(SAMPLES)]


def summary(reasons: Iterable[str]) -> str:
    """Return the kinds of *reasons* with their counts, the most frequent first, each with one of its reasons."""
    kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for reason in reasons:
        kinds[_kind(reason)][reason] += 1
    ordered = sorted(kinds.values(), key=lambda kind: -kind.total())
    named = [f"{kind.total():,} such as: {_mildest(kind)}" for kind in ordered[:MAX_KINDS]]
    others = sum(kind.total() for kind in ordered[MAX_KINDS:])
    return "; ".join([*named, *([f"{others:,} others"] if others else [])])


def _kind(reason: str) -> str:
    """Return the first words of *reason* without path and numbers: what is the matter, not where or by how much."""
    return " ".join(_NUMBER.sub("#", _PATH.sub("", reason)).split()[:4])


def _mildest(kind: Counter[str]) -> str:
    """Return the reason that asks for least where budgets are exceeded, else the most frequent one."""
    if next(iter(kind)).startswith(("needs ", "costs ")):
        return min(kind, key=lambda reason: float(_NUMBER.findall(reason)[0].replace(",", "")))
    return kind.most_common(1)[0][0]
