"""Random configurations x workloads over everything that validates: how many obey every law, and which do not.

python benchmarks/robustness.py --examples 10000 --seed 0
python benchmarks/robustness.py --only 4711      # one example, with its traceback

Example k is drawn from a generator seeded with (seed, k): deployments, routers, schedulers, tiers, hand-offs,
autoscalers, failures, and workloads with sessions and graphs. Each runs twice, which must give equal bytes, and is
checked by ``tests/simulation/laws.py``; small ones are compared with the pass-by-pass oracle too. An example that takes
over a minute is a hang.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from dynosim.errors import DynosimError
from simulation import laws
from simulation.compare import assert_equal, run_oracle
from simulation.scenarios import Seeded, make_configured_workload, make_deployment, make_workload

LIMIT_S = 60
WARM_UP = 20
"""Examples that are run before the processes start, so that those find everything compiled."""
ORACLE_SHARE = 10
"""One example in this number is compared with the oracle."""


def try_one(seed: int, k: int) -> None:
    """Run example *k*; raises what goes wrong."""
    choices = Seeded(seed, k)
    deployment = make_deployment(choices)
    workload = choices.of(make_workload, make_configured_workload)(choices)
    done = laws.run(deployment, workload)
    laws.check(done)
    assert laws.fingerprint(laws.run(deployment, workload).result) == laws.fingerprint(done.result), "not deterministic"
    if k % ORACLE_SHARE == 0 and len(workload) <= 40:
        assert_equal(done.result, *run_oracle(deployment, workload))


def outcome(seed: int, k: int, limit_s: int = LIMIT_S) -> str:
    """Return ``ok``, ``refused``, or in one line what went wrong with example *k*."""
    signal.alarm(limit_s)
    try:
        try_one(seed, k)
    except DynosimError:
        return "refused"
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {frame.name}: {' '.join(str(error).split())[:90]}"
    finally:
        signal.alarm(0)
    return "ok"


def _prepare() -> None:
    """Turn the alarm of a worker process into an exception."""

    def expire(*_: Any) -> None:
        raise TimeoutError(f"over {LIMIT_S} s")

    signal.signal(signal.SIGALRM, expire)


def main() -> int:
    """Run the examples, print a summary, and return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    if args.only is not None:
        try_one(args.seed, args.only)
        return 0
    started, found = time.monotonic(), defaultdict[str, list[int]](list)
    examples = range(args.start, args.start + args.examples)
    for k in range(WARM_UP):
        outcome(args.seed, k, limit_s=0)
    with ProcessPoolExecutor(args.processes, initializer=_prepare) as pool:
        outcomes = pool.map(outcome, [args.seed] * len(examples), examples, chunksize=25)
        for k, said in zip(examples, outcomes, strict=True):
            found[said].append(k)
    print(f"{args.examples} examples, seed {args.seed}, {time.monotonic() - started:.0f} s")
    for said, which in sorted(found.items(), key=lambda item: -len(item[1])):
        print(f"{len(which):6}  {said}" + ("" if said in ("ok", "refused") else f"  examples {which[:5]}"))
    return int(bool(found.keys() - {"ok", "refused"}))


if __name__ == "__main__":
    sys.exit(main())
