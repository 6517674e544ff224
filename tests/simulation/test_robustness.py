"""Random configurations x workloads over everything that validates: none crashes, hangs, or breaks a law.

``benchmarks/robustness.py`` runs 10,000 of them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dynosim.config import DeploymentConfig, PriceConfig, WorkloadConfig
from dynosim.errors import DynosimError
from dynosim.metrics import summarize
from dynosim.simulation.records import COMPLETED, INCOMPLETE
from dynosim.workload import load_workload
from simulation import laws
from simulation.scenarios import Drawn, make_configured_workload, make_deployment, make_workload


@settings(max_examples=300)
@given(data=st.data())
def test_every_run_obeys_the_laws(data: st.DataObject) -> None:
    choices = Drawn(data)
    try:
        deployment = make_deployment(choices)
        workload = choices.of(make_workload, make_configured_workload)(choices)
        done = laws.run(deployment, workload)
    except DynosimError:
        assume(False)
    laws.check(done)
    assert laws.fingerprint(laws.run(deployment, workload).result) == laws.fingerprint(done.result)


def test_runs_are_byte_equal_in_any_process() -> None:
    code = (
        "import hashlib\n"
        "from dynosim.errors import InfeasibleError\n"
        "from simulation import laws\n"
        "from simulation.scenarios import Seeded, make_deployment, make_workload\n"
        "for seed in range(3, 14):\n"
        "    choices = Seeded(seed)\n"
        "    try:\n"
        "        done = laws.run(make_deployment(choices), make_workload(choices))\n"
        "    except InfeasibleError:\n"
        "        continue\n"
        "    print(hashlib.sha256(laws.fingerprint(done.result)).hexdigest())\n"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert said[0] == said[1]
    assert len(set(said[0].split())) == len(said[0].split()) > 8


def _overload(**more: Any) -> laws.Run:
    """Serve a tenth of the rate that comes in."""
    workload = {
        "source": {
            "type": "synthetic",
            "requests": 2000,
            "input_tokens": {"type": "fixed", "tokens": 4000},
            "output_tokens": {"type": "fixed", "tokens": 20},
        },
        "load": {"type": "poisson", "rate_rps": 40.0},
        **more,
    }
    deployment = {
        "model": "llama-3.1-70b",
        "gpu": "h200_sxm",
        "timing": {"type": "roofline"},
        "aggregated": {"tensor_parallel_size": 4},
    }
    return laws.run(
        DeploymentConfig.model_validate(deployment), load_workload(WorkloadConfig.model_validate(workload), 0)
    )


@pytest.mark.parametrize("limit_s", [None, 60.0])
def test_a_saturated_run_ends_by_its_stop_rule_and_says_so(limit_s: float | None) -> None:
    done = _overload(max_virtual_time_s=limit_s)
    laws.check(done)
    metrics, requests = summarize(done.result, {}, PriceConfig()), done.result.requests
    assert metrics.value("saturated") == 1.0
    if limit_s is not None:
        assert done.result.stopped == "duration"
        assert metrics.value("stopped_early") == 1.0
        assert (requests["status"] == INCOMPLETE).sum() > (requests["status"] == COMPLETED).sum() > 0
        assert done.result.duration_s <= limit_s
