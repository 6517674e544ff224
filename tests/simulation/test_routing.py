"""Routers that are compiled decide as the same policies in Python."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dynosim.config import DeploymentConfig
from dynosim.errors import DynosimError
from dynosim.simulation import simulate
from dynosim.simulation.records import REJECTED
from simulation.scenarios import Choices, Drawn, make_deployment, make_workload
from simulation.tables import deployment, make_table

INTERPRETED = "simulation.scripted:Interpreted"


def make_options(choices: Choices) -> dict[str, Any]:
    """Return options of ``kv_aware``."""
    return {
        "overlap_score_credit": choices.of(1.0, 0.3),
        "overlap_score_credit_decay": choices.of(0.0, 0.4),
        "decode_active_request_weight": choices.of(0.0, 2.5),
        "decode_overlap_score_credit": choices.of(0.0, 1.0),
        "router_temperature": choices.of(0.0, 0.0, 0.5),
        "router_predicted_ttl_secs": choices.of(None, 1.5),
        "router_queue_threshold": choices.of(None, None, 0.0, 0.3),
        "router_queue_policy": choices.of("fcfs", "wspt", "lcfs"),
    }


@settings(max_examples=60)
@given(data=st.data())
def test_compiled_routers_decide_as_in_python(data: st.DataObject) -> None:
    choices = Drawn(data)
    deployment, workload = make_deployment(choices), make_workload(choices)
    options = make_options(choices)

    def run(policy: str) -> np.ndarray:
        router = deployment.router.model_copy(update={"policy": policy, "options": options})
        changed: DeploymentConfig = deployment.model_copy(update={"router": router})
        return simulate(changed, workload).requests

    try:
        compiled = run("kv_aware")
    except DynosimError:
        assume(False)
    interpreted = run(INTERPRETED)
    for name in compiled.dtype.names:
        np.testing.assert_array_equal(compiled[name], interpreted[name], err_msg=name)


def test_a_run_of_which_nothing_fits_ends_when_the_last_request_has_come() -> None:
    workload = make_table([1000] * 3, [9] * 3, [0.0, 1.0, 5.0])
    result = simulate(deployment(pool={"num_gpu_blocks_override": 9}, router={"policy": "kv_aware"}), workload)
    assert (result.requests["status"] == REJECTED).all()
    assert (result.stopped, result.duration_s) == ("", 0.0)
