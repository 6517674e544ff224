"""A mock cluster: machines that answer a study's proposals out of order; some fail, some are slow, one is silent."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from dynosim.search.loop import OpenStudy
from dynosim.search.trial import Proposal
from search.analytic import evaluate
from search.problems import serving

MACHINES, QUEUED, TRIALS = 4, 6, 16
FAILS, SILENT = 4, 7
"""The remainder of a number by 5 whose trial fails, and the trial that a machine never answers."""


def run_cluster(study: OpenStudy, *, silent: Collection[int] = (), die_after: int | None = None) -> None:
    """Answer until nothing is left to ask; kill this process after *die_after* answers, with others being worked on."""
    with ThreadPoolExecutor(MACHINES) as machines:
        waiting: set[Future[None]] = set()
        while True:
            while len(waiting) < QUEUED and (proposal := study.ask()) is not None:
                waiting.add(machines.submit(_job, study, proposal, silent, die_after))
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()


def _job(study: OpenStudy, proposal: Proposal, silent: Collection[int], die_after: int | None) -> None:
    time.sleep(random.SystemRandom().uniform(0.0, 0.02))
    if proposal.number in silent:
        return
    if proposal.number % 5 == FAILS:
        study.tell(proposal, failed="node 3 ran out of memory")
    else:
        outcome = evaluate(proposal.scenario)
        study.tell(proposal, outcome.values, constraints=outcome.constraints, noise=[0.1, None, 2.0])
    if die_after is not None and len(study.trials) >= die_after:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    run_cluster(OpenStudy(serving(), storage=sys.argv[1], trials=TRIALS, seed=3), silent=[SILENT], die_after=10)
