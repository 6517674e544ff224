"""How well the search knows what it is missing: the estimated gap against exhaustive truth.

    python benchmarks/gap.py --space autoscaling,tiers,moe,tight --seeds 5        # 25 CPU-s per run of 150 trials

Runs of ``bayes`` on spaces that were enumerated (``truth.py``) are stopped at each checkpoint, and the estimate is set
against the share of hypervolume that is really missing, in the same logarithms and from the same reference point.
The last lines give the factors that would calibrate the estimate, none of which is used: the quantiles of truth over
estimate in all looks at which something was missing.
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import numpy as np
import optuna
from drive import Driver
from numpy.typing import NDArray
from peers import METHODS, OptunaPeer
from truth import SPACES, Truth, bounds, load_truth

from dynosim.search import pareto
from dynosim.search.samplers import BayesSampler
from dynosim.search.samplers.base import Gap, History

Array = NDArray[np.float64]

CHECKPOINTS = (20, 30, 50, 75, 100, 150)
_SMALLEST, _MISSING = 1e-4, 1e-3
"""Gaps below the first count as this much when they are divided; from the second on something is missing."""


class Look(NamedTuple):
    """One estimate beside the truth."""

    space: str
    trials: int
    true: float
    gap: Gap
    cpu_s: float


def looks(truth: Truth, name: str, seed: int) -> list[Look]:
    """Return the looks at one run."""
    peer = METHODS["bayes"].make(truth.space, seed)
    assert isinstance(peer, OptunaPeer)
    driver = Driver(truth, peer)
    sampler = BayesSampler(truth.space, seed=seed, bounds=bounds(truth.space))
    found = []
    for trials in CHECKPOINTS:
        driver.run(trials)
        past = sampler.read(peer.study, truth.space)
        start_s = time.process_time()
        gap = sampler.gap(past)
        cpu_s = time.process_time() - start_s
        if gap is not None:
            found.append(Look(name, trials, missing(truth, sampler, past), gap, cpu_s))
    return found


def missing(truth: Truth, sampler: BayesSampler, past: History) -> float:
    """Return the share of hypervolume that is really missing, from the reference of the sampler."""
    assert sampler._own is not None
    posterior = sampler._own.surrogate(past)
    found, full = (pareto.hypervolume(losses, posterior.reference) for losses in (posterior.front, truth.feasible))
    return 1.0 - found / full


def fitted(seen: list[Look]) -> Array:
    """Return the factors on low end, mean and high end: the 10 %, 50 % and 90 % quantiles of truth over estimate."""
    true = np.array([look.true for look in seen])
    raw = np.array([[look.gap.low, look.gap.expected, look.gap.high] for look in seen])
    ratios = np.maximum(true, _SMALLEST)[:, None] / np.maximum(raw, _SMALLEST)
    return np.array([np.quantile(ratios[:, i], share) for i, share in enumerate((0.1, 0.5, 0.9))])


def covered(seen: list[Look]) -> float:
    """Return the share of looks whose truth lies within the interval."""
    within = [look.gap.low <= max(look.true, _SMALLEST) and look.true <= max(look.gap.high, _SMALLEST) for look in seen]
    return float(np.mean(within))


def show(seen: list[Look]) -> None:
    """Print a line per space and checkpoint, then how well the interval covers."""
    print(f"{'space':8}{'trials':>7}{'true gap':>10}{'estimate':>10}{'interval':>18}{'inside':>9}{'CPU s':>7}")
    for space in dict.fromkeys(look.space for look in seen):
        for trials in CHECKPOINTS:
            own = [look for look in seen if (look.space, look.trials) == (space, trials)]
            columns = [(look.true, look.gap.expected, look.gap.low, look.gap.high, look.cpu_s) for look in own]
            true, expected, low, high, cpu_s = np.median(columns, axis=0)
            inside = f"{round(covered(own) * len(own))} of {len(own)}"
            print(f"{space:8}{trials:7}{true:10.4f}{expected:10.4f}{low:9.4f}-{high:.4f}  {inside:>9}{cpu_s:7.2f}")
    for title, some in (("all", seen), ("something missing", [look for look in seen if look.true > _MISSING])):
        above = np.mean([look.true > max(look.gap.high, _SMALLEST) for look in some])
        print(f"{title}: inside {covered(some):.0%} of {len(some)}, above the high end {above:.0%}")
    print("factors that would fit these:", *np.round(fitted(some), 2))


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="autoscaling,tiers,moe,tight", help="names, separated by commas")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seen: list[Look] = []
    for name in arguments.space.split(","):
        truth = load_truth(str(SPACES / f"{name}.yaml"))
        for seed in range(arguments.seeds):
            seen += looks(truth, name, seed)
    show(seen)


if __name__ == "__main__":
    main()
