"""Random configurations x workloads over everything that validates: none crashes, hangs, or breaks a law.

``benchmarks/robustness.py`` runs 10,000 of them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dynosim.config import WorkloadConfig
from dynosim.errors import DynosimError
from dynosim.metrics import summarize
from dynosim.simulation.records import INCOMPLETE
from dynosim.workload import load_workload
from simulation import laws
from simulation.scenarios import Drawn, Seeded, make_configured_workload, make_deployment, make_workload


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_run_obeys_the_laws(data: st.DataObject) -> None:
    choices = Drawn(data)
    deployment = make_deployment(choices)
    workload = choices.of(make_workload, make_configured_workload)(choices)
    try:
        done = laws.run(deployment, workload)
    except DynosimError:
        assume(False)
    laws.check(done)
    assert laws.fingerprint(laws.run(deployment, workload).result) == laws.fingerprint(done.result)
