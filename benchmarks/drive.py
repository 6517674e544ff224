"""One method at work on one problem, and its account: what it found, after how many trials and CPU seconds."""

from __future__ import annotations

import time
from collections import deque

import numpy as np
import results
from peers import METHODS, Proposal, Proposer
from results import Run, made_by
from truth import Problem, log_losses, objectives

from dynosim.search.distributions import Key, Point, key
from dynosim.search.trial import Outcome

_GIVE_UP = 2_000
"""Proposals in a row that are no trial, after which a method has run dry."""


class Clock:
    """CPU seconds spent inside ``with``."""

    spent_s = 0.0

    def __enter__(self) -> None:
        self._start = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.spent_s += time.process_time() - self._start


class Driver:
    """Lets one method search one problem, and keeps its account."""

    def __init__(self, problem: Problem, proposer: Proposer, in_flight: int = 1) -> None:
        self._problem, self._proposer, self._in_flight = problem, proposer, in_flight
        self._clock, self._told = Clock(), dict[Key, Outcome]()
        self._waiting: deque[tuple[Proposal, Outcome]] = deque()
        self.points: list[Point] = []
        self.outcomes: list[Outcome] = []
        self.cpu_s: list[float] = []
        self.proposals = 0

    def run(self, trials: int) -> None:
        """Make *trials* trials, or as many as the method finds points for."""
        exhausted = False
        while len(self.outcomes) < trials and not (exhausted and not self._waiting):
            while not exhausted and len(self._waiting) < min(self._in_flight, trials - len(self.outcomes)):
                exhausted = not self._start_one()
            if self._waiting:
                self._finish_one()

    def _start_one(self) -> bool:
        """Ask until a proposal is a new, valid point; return whether there is one."""
        for _ in range(_GIVE_UP):
            try:
                with self._clock:
                    proposal = self._proposer.ask()
            except StopIteration:
                return False
            self.proposals += 1
            outcome = self._problem(proposal.point, stop=self._proposer.takes_bounds)
            known = self._told.get(key(proposal.point))
            if outcome is not None and known is None:
                self._waiting.append((proposal, outcome))
                return True
            with self._clock:
                self._proposer.tell(proposal, known)
        return False

    def _finish_one(self) -> None:
        proposal, outcome = self._waiting.popleft()
        with self._clock:
            self._proposer.tell(proposal, outcome)
        self._told[key(proposal.point)] = outcome
        self.points.append(proposal.point)
        self.outcomes.append(outcome)
        self.cpu_s.append(round(self._clock.spent_s, 4))


def run(problem: Problem, name: str, method: str, seed: int, trials: int, in_flight: int = 1) -> Run:
    """Return one run of a method on a problem, which is kept as *name*."""
    driver = Driver(problem, METHODS[method].make(problem.space, seed), in_flight)
    driver.run(trials)
    missing = [np.nan] * len(objectives(problem.space))
    values = np.array([o.values if o.feasible else missing for o in driver.outcomes], dtype=float)
    front = results.front_steps(log_losses(problem.space, values))
    return Run(name, method, seed, in_flight, front, driver.cpu_s, driver.proposals, made_by("search.py"))
