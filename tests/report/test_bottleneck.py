"""The bottleneck sentence, and the course of a run that scales."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dynosim.config import DeploymentConfig, WorkloadConfig
from dynosim.report.bottleneck import bottleneck
from dynosim.report.timeline import SAMPLES, timeline, timelines
from dynosim.simulation import simulate
from dynosim.workload import load_workload
from report.fake_study import SPACE, make_study

FLAT = {
    "queue_time.tail_ttft": 900.0,
    "prefill_time.tail_ttft": 98.0,
    "decode_time.tail_ttft": 2.0,
    "stall_time.tail_itl": 300.0,
    "decode_time.tail_itl": 100.0,
    "wait_kv_blocks_share": 0.75,
    "wait_batch_slots_share": 0.25,
}


def test_the_tail_of_each_bounded_latency_is_described() -> None:
    ttft, itl = (
        "slowest 1 % by TTFT: 90% queue (mostly for kv blocks), 10% prefill",
        "slowest 1 % by ITL: 75% stall, 25% decode",
    )
    assert bottleneck(FLAT, ["time_to_first_token", "inter_token_latency"]) == f"{ttft}; {itl}"
    assert bottleneck(FLAT, ["inter_token_latency", "usd_per_hour"]) == itl
    assert bottleneck(FLAT, ["usd_per_hour"]) == ttft, "where no latency is bounded"


def test_nothing_served_has_no_bottleneck() -> None:
    assert bottleneck({}, ["time_to_first_token"]) == ""


def _scaled(requests: int = 300) -> tuple[DeploymentConfig, dict[str, Any]]:
    deployment = {
        "model": "llama-3.1-8b",
        "gpu": "h100_sxm",
        "timing": {"type": "fixed"},
        "aggregated": {
            "max_num_seqs": 4,
            "autoscaler": {"max_replicas": 4, "interval_s": 5.0, "provision_s": 1.0, "startup_s": 1.0},
        },
    }
    source = {
        "type": "synthetic",
        "requests": requests,
        "input_tokens": {"type": "fixed", "tokens": 500},
        "output_tokens": {"type": "fixed", "tokens": 100},
    }
    return DeploymentConfig.model_validate(deployment), {
        "source": source,
        "load": {"type": "poisson", "rate_rps": 10.0},
    }


def test_a_timeline_starts_with_what_was_there_and_ends_with_an_empty_queue() -> None:
    deployment, workload = _scaled()
    result = simulate(deployment, load_workload(WorkloadConfig.model_validate(workload), 0))
    course = timeline(result)
    pool, queue = course["pools"]["mixed"], course["queue"]
    assert pool["time_s"][0] == 0.0
    assert pool["time_s"][-1] == pytest.approx(result.duration_s)
    assert np.all(np.diff(pool["time_s"]) >= 0.0)
    assert pool["provisioned"][0] == pool["serving"][0] == 1
    assert max(pool["serving"]) == max(pool["provisioned"]) > 1
    assert len(queue["requests"]) == SAMPLES
    assert min(queue["requests"]) >= 0
    assert max(queue["requests"]) > 4
    assert queue["requests"][-1] == 0


def test_only_picks_that_scale_have_a_timeline() -> None:
    study = make_study(20)
    assert timelines(study) == {}
    deployment, workload = _scaled(50)
    scenario = SPACE.reference.model_copy(
        update={"deployment": deployment, "workload": WorkloadConfig.model_validate(workload)}
    )
    scaled = replace(study, trials=[replace(trial, scenario=scenario) for trial in study.trials])
    picked = {str(trial.number) for trial in (*scaled.picks().values(), scaled.baseline) if trial}
    assert set(timelines(scaled)) == picked
