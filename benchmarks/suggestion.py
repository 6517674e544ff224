"""CPU seconds per suggestion of the default sampler, against the number of trials it has seen.

    python benchmarks/suggestion.py
    python benchmarks/suggestion.py --space qwen3-32b --trials 200 2000 --profile

The trials are those of an evolutionary search on the space's closed-form estimates, bent by a smooth function that the
estimates do not know: a front as long as that of a real search, without a simulation. *first* is the first suggestion
of a process that resumes the study, which fits all models; *next* is the median of the five that follow, each with one
trial more, most of which only condition the models.
Models are fitted again when the data have grown by 8 %, so *mean* = next + (first - next) / (0.08 trials), too high by
what is fitted more rarely still. *growth* is the exponent of *mean* from the row above.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dynosim.rng import stream
from dynosim.search import pareto
from dynosim.search.features import ServingEstimates, columns
from dynosim.search.priors import ServingPriors
from dynosim.search.rows import Rows, keys
from dynosim.search.samplers import BayesSampler
from dynosim.search.samplers.base import History
from dynosim.space import SearchSpace

Array = NDArray[np.float64]

_GENERATION = 50
_NEXT = 5
_GROWTH = 0.08


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="llama70b")
    parser.add_argument("--trials", type=int, nargs="+", default=[50, 100, 200, 500, 1000, 2000])
    parser.add_argument("--profile", action="store_true", help="print what the suggestions at each size spend time on")
    args = parser.parse_args()
    space = SearchSpace.load(args.space)
    history = evolve(space, max(args.trials) + _NEXT)
    timer = Timer(space, history, args.profile)
    timer.warm_up()
    print(f"{'trials':>7}{'front':>7}{'first':>9}{'next':>9}{'mean':>9}{'growth':>8}", flush=True)
    before: tuple[int, float] | None = None
    for trials in args.trials:
        first_s, next_s = timer(trials)
        mean_s = next_s + (first_s - next_s) / (_GROWTH * trials)
        growth = np.log(mean_s / before[1]) / np.log(trials / before[0]) if before else np.nan
        front = int(pareto.nondominated(cut(history, trials).values).sum())
        print(f"{trials:>7}{front:>7}{first_s:>9.3f}{next_s:>9.3f}{mean_s:>9.3f}{growth:>8.2f}", flush=True)
        before = trials, mean_s


class Timer:
    """Times suggestions after the first trials of a history."""

    def __init__(self, space: SearchSpace, history: History, profile: bool) -> None:
        self._space, self._history, self._profile = space, history, profile
        self._sampler = BayesSampler(space, bounds=(None,) * history.values.shape[1])

    def warm_up(self) -> None:
        """Let the sampler see the timing tables, which belong to no trial."""
        for trials in range(20, 30):
            self._suggest(trials)

    def __call__(self, trials: int) -> tuple[float, float]:
        """Return the CPU seconds of the first suggestion, and the median of the next."""
        profile = cProfile.Profile(time.process_time)
        first_s = self._suggest(trials)
        if self._profile:
            profile.enable()
        next_s = [self._suggest(trials + 1 + i) for i in range(_NEXT)]
        if self._profile:
            profile.disable()
            pstats.Stats(profile).sort_stats("cumtime").print_stats(25)
        return first_s, float(np.median(next_s))

    def _suggest(self, trials: int) -> float:
        rng = stream(0, f"suggestion {trials}")
        start_s = time.process_time()
        self._sampler.propose(self._space, cut(self._history, trials), rng)
        return time.process_time() - start_s


def cut(history: History, trials: int) -> History:
    """Return what was known after the first *trials* trials."""
    constraints = {name: violations[:trials] for name, violations in history.constraints.items()}
    return History(history.directions, history.points[:trials], history.values[:trials], constraints, [], [])


def evolve(space: SearchSpace, trials: int) -> History:
    """Return a history of new points: random ones and mutations of the front, half and half."""
    rows, rng, evaluate = Rows(space), stream(0, "suggestion"), bent_estimates(space)
    seen, parents = np.zeros((0, len(rows.parameters))), rows.sample(1, rng)
    while len(seen) < trials:
        mutants = rows.mutate(parents[rng.integers(len(parents), size=_GENERATION)], rng)
        drawn = np.vstack([seen, mutants, rows.sample(_GENERATION, rng)])
        new = np.sort(np.unique(keys(drawn), return_index=True)[1])
        possible = np.isfinite(evaluate(drawn[new])[0]).all(axis=1)
        seen = drawn[new][possible]
        values = evaluate(seen)[0]
        parents = seen[pareto.nondominated(values)]
    values, constraints = evaluate(seen[:trials])
    return History(
        ("minimize",) * values.shape[1], [rows.point(row) for row in seen[:trials]], values, constraints, [], []
    )


def bent_estimates(space: SearchSpace) -> Callable[[Array], tuple[Array, dict[str, Array]]]:
    """Return the function from rows to objective values (``n x m``, as losses) and violations."""
    rows = Rows(space)
    estimates, typical = ServingEstimates(rows), rows.sample(100, stream(0, "suggestion"))
    priors = ServingPriors(space, estimates(typical).metrics(), len(typical))
    directions = [objective.goal or "minimize" for objective in space.reference.objectives]
    bends = stream(1, "suggestion").normal(size=(9, len(directions)))

    def evaluate(some: Array) -> tuple[Array, dict[str, Array]]:
        estimate = estimates(some)
        prior = priors(estimate.metrics(), len(some))
        known = [np.full(len(some), np.nan) if column is None else column for column in prior.objectives]
        bent = np.column_stack(known) * np.exp(0.3 * np.sin(columns(estimate) @ bends))
        return pareto.losses(bent, directions), dict(prior.violations)

    return evaluate


if __name__ == "__main__":
    main()
