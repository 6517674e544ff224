"""Runs a study in its own process and kills it hard, in the middle of an evaluation or of telling one."""

import os
import signal
import sys
from typing import Any

from dynosim.config import Scenario
from dynosim.search import store
from dynosim.search.loop import run_study
from dynosim.search.trial import Outcome
from search.analytic import evaluate
from search.problems import serving

storage, trials, die_at, where = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
calls = {"evaluate": 0, "tell": 0}


def die(place: str) -> None:
    calls[place] += 1
    if place == where and calls[place] > die_at:
        os.kill(os.getpid(), signal.SIGKILL)


def dying_evaluate(scenario: Scenario) -> Outcome:
    die("evaluate")
    return evaluate(scenario)


stored_value = store._value


def dying_value(*args: Any) -> dict[str, Any]:
    die("tell")  # in the middle of the transaction that ends a trial
    return stored_value(*args)


store._value = dying_value
run_study(serving(), storage=storage, trials=trials, seed=3, evaluate=dying_evaluate)
