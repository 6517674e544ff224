"""Knobs of the whole serving stack in one space: what is proposed can be deployed, and its features are numbers."""

from __future__ import annotations

import numpy as np
import pytest

from dynosim.search.features import ServingEstimates, columns
from dynosim.search.loop import run_study
from dynosim.search.rows import Rows
from dynosim.space import SearchSpace
from search.analytic import evaluate

STACK = """
name: stack
workload:
  source:
    type: synthetic
    requests: 10
    input_tokens: {type: fixed, tokens: 1000}
    output_tokens: {type: fixed, tokens: 100}
  load: {type: poisson, rate_rps: 1.0}
slo:
  time_to_first_token: {p99: 12000}
deployment:
  model: qwen3-30b-a3b
  gpu: {choices: [h100_sxm, b200_sxm]}
  timing: {type: roofline}
  engine:
    name: {choices: [vllm, sglang, trtllm]}
    schedule_conservativeness: {choices: [0.3, 1.0], when: {name: sglang}}
    enable_mixed_chunk: {choices: [false, true], when: {name: sglang}}
    capacity_scheduler_policy: {choices: [GUARANTEED_NO_EVICT, MAX_UTILIZATION], when: {name: trtllm}}
    speculative:
      choices:
        [null, {num_speculative_tokens: 1, acceptance_length: 1.8}, {num_speculative_tokens: 3, acceptance_length: 2.5}]
  mode: {choices: [aggregated, disaggregated]}
  aggregated:
    replicas: {range: {min: 1, max: 4}}
    tensor_parallel_size: {choices: [1, 2, 3, 4, 8]}
    pipeline_parallel_size: {choices: [1, 2, 4]}
    data_parallel_size: {choices: [1, 2, 4]}
    enable_expert_parallel: {choices: [false, true]}
    scheduling_policy: {choices: [fcfs, shortest_prompt, deadline, longest_prefix]}
    kv_offload:
      host: {size_gib: {range: {min: 1.0, max: 512.0, scale: log}}}
      disk: {choices: [null, {size_gib: 2000}]}
    autoscaler:
      policy: {choices: [queue_depth, kv_utilization, concurrency, slo]}
      min_replicas: {choices: [1, 2]}
      max_replicas: {choices: [4, 8]}
      interval_s: {range: {min: 2.0, max: 60.0, scale: log}}
      scale_down_cooldown_s: {choices: [30, 300]}
  disaggregated:
    prefill: {replicas: {range: {min: 1, max: 3}}, pipeline_parallel_size: {choices: [1, 2]}}
    decode: {replicas: {range: {min: 1, max: 3}}, data_parallel_size: {choices: [1, 2]}}
    kv_transfer: {bandwidth_gb_s: {choices: [12.5, 50]}}
    local_prefill: {choices: [null, {max_uncached_tokens: 512}]}
  router:
    policy: {choices: [round_robin, random, power_of_two, session_affinity, kv_aware, prefix_affinity]}
  topology: {choices: [null, {placement: pack}, {placement: spread}]}
budget: {max_gpus: 16}
"""


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return SearchSpace.parse(STACK)


@pytest.mark.parametrize(("sampler", "trials"), [("bayes", 13), ("random", 100)])
def test_only_what_can_be_deployed_is_proposed(space: SearchSpace, sampler: str, trials: int) -> None:
    study = run_study(space, trials=trials, sampler=sampler, evaluate=evaluate)
    assert len(study.trials) == trials
    for trial in study.trials:
        assert space.infeasible_reason(trial.point) is None
        assert trial.scenario.deployment.num_gpus() <= 16
    pools = [trial.scenario.deployment.aggregated for trial in study.trials if trial.scenario.deployment.aggregated]
    if sampler == "random":
        assert {pool.pipeline_parallel_size for pool in pools} > {1}
        assert {pool.data_parallel_size for pool in pools} > {1}
    assert not any(pool.pipeline_parallel_size > 1 and pool.data_parallel_size > 1 for pool in pools)
    assert all(pool.autoscaler.min_replicas <= pool.replicas for pool in pools)


def test_features_are_known_of_what_can_be_deployed(space: SearchSpace) -> None:
    rows = Rows(space)
    drawn = rows.sample(300, np.random.default_rng(0))
    valid = [space.infeasible_reason(rows.point(row)) is None for row in drawn]
    assert sum(valid) > 20
    assert np.isfinite(columns(ServingEstimates(rows)(drawn[valid]))).all()
