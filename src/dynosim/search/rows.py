"""Points as rows of numbers, so that a thousand candidates are made, compared and measured in one array operation.

A row has one column per parameter of the space: the position of a choice, the value of a range, NaN where the parameter
is inactive. Everything here is about shape, nothing about quality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.search.distributions import Point
from dynosim.space import Choices, Range, SearchSpace

Array = NDArray[np.float64]
Key = bytes

_MOST_CHANGES = 4


class Rows:
    """Translates points of one space, ``n`` of them with ``p`` parameters, and varies them."""

    def __init__(self, space: SearchSpace) -> None:
        self.space, self.parameters = space, space.parameters
        self._index = {parameter.path: j for j, parameter in enumerate(space.parameters)}
        self._codes = [_codes(parameter.domain) for parameter in space.parameters]
        self._holds: list[dict[Key, bool]] = [{} for _ in space.parameters]
        """Per parameter: values of what its rule reads -> whether it can matter."""

    def of(self, points: Sequence[Mapping[str, Any]]) -> Array:
        """Return the rows of *points*, ``n x p``."""
        rows = np.full((len(points), len(self.parameters)), np.nan)
        for row, point in zip(rows, points, strict=True):
            for path, value in point.items():
                j = self._index[path]
                row[j] = self._codes[j](value)
        return rows

    def point(self, row: Array) -> Point:
        """Return the point of a row (``p``)."""
        return {p.path: _value(p.domain, x) for p, x in zip(self.parameters, row, strict=True) if x == x}

    def column(self, path: str) -> int | None:
        """Return the column of a parameter, None where the space does not search it."""
        return self._index.get(path)

    def numbers(self, rows: Array, path: str) -> Array | None:
        """Return the values of a numeric parameter (``n``, NaN where inactive), None where it is not searched."""
        j = self._index.get(path)
        if j is None:
            return None
        domain = self.parameters[j].domain
        return rows[:, j] if isinstance(domain, Range) else _pick(np.array(domain.values, dtype=float), rows[:, j])

    def sample(self, count: int, rng: np.random.Generator) -> Array:
        """Draw *count* rows as ``SearchSpace.sample`` draws points."""
        draws = rng.random((count, len(self.parameters)))
        return self._settle(np.column_stack([np.zeros((count, 0)), *self._drawn(draws)]))

    def mutate(self, rows: Array, rng: np.random.Generator) -> Array:
        """Redraw or move by one step one to four parameters of each row, few more often than many."""
        n, p = rows.shape
        changes = np.minimum(rng.geometric(0.5, n), _MOST_CHANGES)
        order = np.where(np.isnan(rows), 2.0, rng.random((n, p))).argsort(axis=1).argsort(axis=1)
        chosen = (order < changes[:, None]) & ~np.isnan(rows)
        drawn = np.column_stack([np.zeros((n, 0)), *self._drawn(rng.random((n, p)))])
        moved = np.where(rng.random((n, p)) < 0.5, drawn, self._stepped(rows, rng.random((n, p))))
        return self._settle(np.where(chosen, moved, rows))

    def cross(self, rows: Array, others: Array, rng: np.random.Generator) -> Array:
        """Take each parameter from either of two rows."""
        take = (rng.random(rows.shape) < 0.5) & ~np.isnan(others)
        return self._settle(np.where(take, others, rows))

    def neighbours(self, rows: Array) -> Array:
        """Return the rows that differ from one of *rows* in one parameter by one step, and in what that switches."""
        near = [
            (i, j, self._codes[j](value))
            for i, row in enumerate(rows)
            for j, p in enumerate(self.parameters)
            if row[j] == row[j]
            for value in p.domain.neighbours(_value(p.domain, row[j]))
        ]
        origin, columns, codes = (np.array(part) for part in zip(*near, strict=True))
        moved = rows[origin]
        moved[np.arange(len(near)), columns] = codes
        return self._settle(moved)

    def switched(self, rows: Array, column: int, code: float) -> Array:
        """Return the rows in which a parameter is active, with another value of it."""
        moved = rows[~np.isnan(rows[:, column])]
        moved[:, column] = code
        return self._settle(moved)

    def all(self) -> Array:
        """Return every row of a finite space, the last parameter varying fastest."""
        return self.of(list(self.space.points()))

    def _drawn(self, uniform: Array) -> Iterable[Array]:
        return (_draw(p.domain, uniform[:, j]) for j, p in enumerate(self.parameters))

    def _stepped(self, rows: Array, uniform: Array) -> Array:
        """Move every active number of each row one step up or down, and redraw every other choice."""
        columns = [_step(p.domain, rows[:, j], uniform[:, j]) for j, p in enumerate(self.parameters)]
        return np.column_stack([np.zeros((len(rows), 0)), *columns])

    def _settle(self, rows: Array) -> Array:
        """Return rows that obey the conditions: what is inactive is NaN, what became active has a value.

        A missing value is that of a field of the same name elsewhere in the row (so that a change of mode keeps
        tensor_parallel_size), else the baseline's, else the first of its domain: ``SearchSpace.complete``.
        """
        given, settled = rows, np.full(rows.shape, np.nan)
        for j in range(len(self.parameters)):
            active = np.ones(len(rows), dtype=bool)
            for k, allowed in self._conditions[j]:
                active &= np.isin(settled[:, k], allowed)
            if self.parameters[j].matters:
                active &= self._matters(settled, j)
            column = given[:, j].copy()
            for k, translate in self._namesakes[j]:
                missing = active & np.isnan(column)
                if missing.any():
                    column[missing] = translate(given[missing, k])
            column[np.isnan(column)] = self._defaults[j]
            settled[active, j] = column[active]
        return settled

    @cached_property
    def _conditions(self) -> list[list[tuple[int, Array]]]:
        """Per parameter: the columns it depends on, and their values under which it exists."""
        return [
            [(self._index[path], self._allowed(path, values)) for path, values in parameter.when.items()]
            for parameter in self.parameters
        ]

    def _matters(self, settled: Array, j: int) -> NDArray[np.bool_]:
        """Return in which rows, known up to column *j*, the rule of parameter *j* holds."""
        rule = self.parameters[j].matters
        assert rule is not None
        columns, known = [self._index[path] for path in rule.reads], self._holds[j]
        names = keys(settled[:, columns])
        for name in set(names) - known.keys():
            row = np.full(len(self.parameters), np.nan)
            row[columns] = np.frombuffer(name)
            known[name] = rule.holds(self.point(row))
        return np.array([known[name] for name in names], dtype=bool)

    def _allowed(self, path: str, values: Sequence[Any]) -> Array:
        j = self._index[path]
        domain = self.parameters[j].domain
        return np.array([self._codes[j](value) for value in values if domain.contains(value)])

    @cached_property
    def _namesakes(self) -> list[list[tuple[int, Callable[[Array], Array]]]]:
        """Per parameter: columns of fields of the same name, and how their codes read in its own."""
        return [
            [
                (k, _translation(other.domain, own.domain))
                for k, other in enumerate(self.parameters)
                if k != j and other.keys[-1] == own.keys[-1]
            ]
            for j, own in enumerate(self.parameters)
        ]

    @cached_property
    def _defaults(self) -> list[float]:
        baseline = self.space.baseline or {}
        return [self._codes[j](baseline.get(p.path, p.domain.first())) for j, p in enumerate(self.parameters)]


def keys(rows: Array) -> list[Key]:
    """Return the identity of each row."""
    data, width = (rows + 0.0).tobytes(), rows.shape[1] * 8
    return [data[i * width : (i + 1) * width] for i in range(len(rows))]


def _codes(domain: Choices | Range) -> Callable[[Any], float]:
    return partial(_position, domain.values) if isinstance(domain, Choices) else float


def _position(values: Sequence[Any], value: Any) -> float:
    # 1 and true are equal, but different choices.
    matches = (i for i, v in enumerate(values) if v == value and isinstance(v, bool) == isinstance(value, bool))
    return float(next(matches))


def _value(domain: Choices | Range, code: float) -> Any:
    if isinstance(domain, Choices):
        return domain.values[int(code)]
    return int(code) if domain.integer else float(code)


def _pick(table: Array, codes: Array) -> Array:
    """Return ``table[codes]``, NaN where a code is."""
    known = ~np.isnan(codes)
    return np.where(known, table[np.where(known, codes, 0.0).astype(int)], np.nan)


def _translation(source: Choices | Range, target: Choices | Range) -> Callable[[Array], Array]:
    """Return the function from codes of *source* to those in *target*, NaN where it does not have the value."""
    if isinstance(source, Choices):
        return partial(_pick, np.array([_translated(target, value) for value in source.values]))
    return lambda codes: np.array([np.nan if x != x else _translated(target, _value(source, x)) for x in codes])


def _translated(target: Choices | Range, value: Any) -> float:
    return _codes(target)(value) if target.contains(value) else np.nan


def _draw(domain: Choices | Range, uniform: Array) -> Array:
    """Return codes at *uniform* draws from [0, 1) (``n``): uniform in the domain, or in its logarithm."""
    if isinstance(domain, Choices):
        return np.floor(uniform * len(domain.values))
    if domain.scale == "log":
        low, high = np.log(domain.min), np.log(domain.max + domain.integer)
        values = np.exp(low + uniform * (high - low))
        return np.asarray(np.minimum(np.floor(values) if domain.integer else values, domain.max))
    if domain.values is None:
        return np.asarray(domain.min + uniform * (domain.max - domain.min))
    places = np.floor(uniform * len(domain.values)).astype(int)
    return np.array([domain.values[place] for place in places.tolist()], dtype=float)


def _step(domain: Choices | Range, codes: Array, uniform: Array) -> Array:
    """Return a neighbour of each code in its domain, chosen by *uniform*; NaN stays."""
    known = np.unique(codes[~np.isnan(codes)])
    moved = codes.copy()
    into = _codes(domain)
    for code in known:
        near = np.array([into(value) for value in domain.neighbours(_value(domain, code))])
        at = codes == code
        if len(near):
            moved[at] = near[np.floor(uniform[at] * len(near)).astype(int)]
    return moved
