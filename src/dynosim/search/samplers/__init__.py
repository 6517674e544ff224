"""Samplers by name: ours, which propose whole valid points, and Optuna's, which run in the same study as peers."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, QMCSampler, TPESampler

from dynosim import plugins
from dynosim.errors import ConfigError, nearest
from dynosim.search.samplers.base import ExhaustiveSampler, PointSampler, RandomSampler
from dynosim.search.samplers.bayes import BayesSampler
from dynosim.space import SearchSpace

__all__ = [
    "SAMPLERS",
    "BayesSampler",
    "ExhaustiveSampler",
    "PointSampler",
    "RandomSampler",
    "make_sampler",
]

Bounds = Sequence[float | None]
Factory = Callable[[SearchSpace, int, Bounds], BaseSampler]


def _bayes(space: SearchSpace, seed: int, bounds: Bounds) -> BaseSampler:
    return BayesSampler(space, seed=seed, bounds=bounds)


def _peer(make: Callable[[int], BaseSampler]) -> Factory:
    """Return the factory of one of Optuna's samplers, some of which warn that their arguments may change."""

    def factory(space: SearchSpace, seed: int, bounds: Bounds) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return make(seed)

    return factory


SAMPLERS: dict[str, Factory] = {
    "auto": _bayes,
    "bayes": _bayes,
    "qlognehvi": lambda space, seed, bounds: BayesSampler(space, seed=seed, bounds=bounds, noisy=True),
    "random": lambda space, seed, bounds: RandomSampler(space, seed=seed),
    "exhaustive": lambda space, seed, bounds: ExhaustiveSampler(space, seed=seed),
    # ``group`` is TPE's own answer to conditional parameters.
    "tpe": _peer(lambda seed: TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)),
    # Optuna's default of 50 leaves a budget of 100 trials one generation.
    "nsga2": _peer(lambda seed: NSGAIISampler(seed=seed, population_size=20)),
    "nsga3": _peer(lambda seed: NSGAIIISampler(seed=seed, population_size=20)),
    "gp": _peer(lambda seed: GPSampler(seed=seed, warn_independent_sampling=False)),
    "sobol": _peer(lambda seed: QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)),
}


def make_sampler(name: str, space: SearchSpace, *, seed: int = 0, bounds: Bounds = (), done: int = 0) -> BaseSampler:
    """Return the sampler *name* for a space; *bounds* are the objectives' SLOs, None where there is none.

    *done* is the number of trials that a resumed study has. Optuna's samplers keep their random state in the
    process and would repeat their first draws, so they get another seed; ours need none. Raises ConfigError
    with the nearest name.
    """
    make = _custom(name) if plugins.is_reference(name) else SAMPLERS.get(name)
    if make is None:
        allowed = f"{', '.join(SAMPLERS)}, or {plugins.FORMS}"
        message = f"unknown sampler {name!r}: {nearest(name, SAMPLERS)}allowed: {allowed}"
        raise ConfigError(message, path="optimizer.sampler")
    sampler = make(space, seed, bounds)
    return sampler if isinstance(sampler, PointSampler) or not done else make(space, seed + done, bounds)


def _custom(reference: str) -> Factory:
    """Return the factory of a sampler of the user's, which gets what it takes of ``space``, ``seed`` and ``bounds``."""
    found = plugins.load(reference, path="optimizer.sampler")

    def factory(space: SearchSpace, seed: int, bounds: Bounds) -> BaseSampler:
        given = {"space": space, "seed": seed, "bounds": bounds}
        takes = inspect.signature(found).parameters if callable(found) else {}
        options = {name: value for name, value in given.items() if name in takes}
        made = plugins.call(reference, lambda: found(**options), "optimizer.sampler")
        if not isinstance(made, BaseSampler):
            allowed = "a class or function that gives an optuna.samplers.BaseSampler"
            raise ConfigError(f"{plugins.short(reference)}: allowed: {allowed}", path="optimizer.sampler")
        return made

    return factory
