"""Random deployments and workloads over everything that can be configured, small enough to run in milliseconds.

Every function takes its choices from a ``Choices``: Hypothesis (which can shrink them) or a seeded generator.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from hypothesis import strategies as st

from dynosim.config import DeploymentConfig, WorkloadConfig
from dynosim.workload import load_workload
from dynosim.workload.table import Workload

GPU = "h200_sxm"
DENSE, MOE = "llama-3.1-70b", "qwen3-235b-a22b"


class Choices(Protocol):
    """Where the random choices come from."""

    def of(self, *options: Any) -> Any:
        """Return one of *options*, the first being the simplest."""

    def integer(self, low: int, high: int) -> int:
        """Return an integer in [low, high]."""


class Seeded:
    """Choices of a seeded generator."""

    def __init__(self, *seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def of(self, *options: Any) -> Any:
        return options[int(self._rng.integers(len(options)))]

    def integer(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high + 1))


class Drawn:
    """Choices that Hypothesis draws."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def of(self, *options: Any) -> Any:
        return options[self._data.draw(st.integers(0, len(options) - 1))]

    def integer(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))


def rarely(choices: Choices, value: Any, otherwise: Any = None) -> Any:
    """Return *value* one time in four."""
    return value if choices.of(False, False, False, True) else otherwise


# --------------------------------------------------------------------------------------------------------- deployment


def make_engine(choices: Choices) -> dict[str, Any]:
    name = choices.of("vllm", "sglang", "trtllm")
    engine: dict[str, Any] = {"name": name}
    if name == "sglang":
        engine["schedule_conservativeness"] = choices.of(1.0, 0.3, 1.4)
        engine["scheduler_recv_interval"] = choices.of(1, 4, 25)
        engine["enable_mixed_chunk"] = choices.of(False, True)
        engine["max_prefill_tokens"] = choices.of(16384, 100)
    if name == "vllm":
        engine["attention_backend"] = choices.of("auto", "FLASHINFER")
    if name == "trtllm":
        engine["capacity_scheduler_policy"] = choices.of("GUARANTEED_NO_EVICT", "MAX_UTILIZATION")
        engine["batch_wait_timeout_iters"] = choices.of(0, 3, 11)
        engine["batch_wait_max_tokens_ratio"] = choices.of(0.5, 1.0, 0.05)
        engine["attention_dp_enable_balance"] = choices.of(True, False)
        engine["attention_dp_timeout_iters"] = choices.of(50, 2, 7)
        engine["attention_dp_batching_wait_iters"] = choices.of(0, 3)
    engine["async_scheduling"] = choices.of(True, False)
    engine["frontend_ms"] = choices.of(0.0, 3.7)
    engine["launch_overhead_us"] = choices.of(0.0, 613.3)
    engine["cudagraph_mode"] = choices.of("FULL_AND_PIECEWISE", "FULL_DECODE_ONLY", "NONE")
    engine["max_cudagraph_capture_size"] = choices.of(512, 3, 40)
    engine["pass_overhead_us"] = choices.of(0.0, 713.7)
    engine["request_overhead_us"] = choices.of(0.0, 91.3)
    drafts = {"num_speculative_tokens": choices.integer(1, 4), "acceptance_rates": (0.8, 0.5), "draft_cost": 0.03}
    # SGLang's retraction while drafts are on their way is not compared: what of them is lost is not established.
    overlapped = name == "sglang" and engine["async_scheduling"]
    return engine | {"speculative": None if overlapped else rarely(choices, drafts)}


def make_tiers(choices: Choices) -> dict[str, Any]:
    tiers = {
        "host": {"size_gib": choices.of(0.3, 0.02, 3.0), "bandwidth_gb_s": choices.of(13.0, 0.7)},
        "disk": {"size_gib": choices.of(0.5, 4.0), "bandwidth_gb_s": choices.of(3.1, 0.3)},
        "remote": {"size_gib": 2.0, "bandwidth_gb_s": 2.3, "store_bandwidth_gb_s": choices.of(2.9, 0.9)},
    }
    answers = {"offload_prompt_only": choices.of(None, False, True)}
    return {name: tier for name, tier in tiers.items() if choices.of(False, True)} | answers


def make_scaler(choices: Choices, replicas: int) -> dict[str, Any]:
    return {
        "policy": choices.of("queue_depth", "kv_utilization", "concurrency", "slo"),
        "min_replicas": choices.integer(1, replicas),
        "max_replicas": replicas + choices.integer(0, 2),
        "interval_s": choices.of(1.7, 0.3),
        "throughput_interval_s": choices.of(None, 4.3),
        "predictor": choices.of("last_value", "moving_average", "holt", "seasonal"),
        "scale_up_cooldown_s": choices.of(0.0, 2.0),
        "scale_down_cooldown_s": choices.of(0.0, 3.0),
        "max_step": choices.integer(1, 3),
        "provision_s": choices.of(0.0, 1.1),
        "weights_load_gb_s": 1000.0,
        "startup_s": choices.of(0.0, 0.6),
    }


def make_vllm_limits(choices: Choices, seqs: int, stages: int) -> dict[str, Any]:
    threshold = choices.of(0, 0, 20, 150)
    return {
        "long_prefill_token_threshold": threshold,
        "long_prefill_token_threshold_adaptive": threshold > 0 and choices.of(False, True),
        "watermark": choices.of(0.0, 0.0, 0.13),
        "max_num_active_seqs": choices.of(None, None, max(seqs // 2, stages)),
    }


def make_pool(choices: Choices, moe: bool, engine: str) -> dict[str, Any]:
    stages, replicas = 1 if moe else choices.of(1, 1, 1, 2, 4), choices.of(1, 1, 2, 3)
    seqs = max(choices.of(16, 5, 2, 1, 16), stages)
    budget = max(choices.of(300, 64, seqs, 4096), seqs)
    block = choices.of(*(size for size in (16, 4, 1) if engine != "sglang" or size <= budget))
    pool = {
        "replicas": replicas,
        "tensor_parallel_size": 4,
        "max_num_seqs": seqs,
        "max_num_batched_tokens": budget,
        "block_size": block,
        # Room for one or two of the longest requests, for some, or for all.
        "num_gpu_blocks_override": choices.of(700, 1300, 300, 3000, 60_000) // block,
        "enable_prefix_caching": choices.of(True, True, False),
        "enable_chunked_prefill": choices.of(True, True, False),
        "scheduler_reserve_full_isl": choices.of(False, True),
        "scheduling_policy": choices.of("fcfs", "fcfs", "priority", "shortest_prompt", "deadline", "longest_prefix"),
        "kv_offload": choices.of({}, make_tiers(choices)),
        "autoscaler": rarely(choices, make_scaler(choices, replicas)),
    } | (make_vllm_limits(choices, seqs, stages) if engine == "vllm" else {})
    if moe:
        return pool | {"data_parallel_size": choices.of(2, 4), "tensor_parallel_size": 1 if engine == "trtllm" else 2}
    return pool | {"pipeline_parallel_size": stages}


def make_router(choices: Choices) -> dict[str, Any]:
    policies = ("round_robin", "kv_aware", "least_outstanding", "random", "power_of_two", "session_affinity")
    return {
        "policy": choices.of(*policies, "prefix_affinity", "priority_aware", "llm_d"),
        "load_report_interval_s": choices.of(0.0, 0.0, 0.93),
        "kv_event_lag_s": choices.of(0.0, 0.0, 0.137),
    }


def make_failures(choices: Choices, roles: list[str]) -> dict[str, Any]:
    crash = {
        "pool": choices.of(*roles),
        "replica": 0,
        "at_s": choices.of(1.3, 0.2, 3.7),
        "down_s": choices.of(0.9, 4.0),
    }
    straggler = {"pool": choices.of(*roles), "replica": 0, "slowdown": 2.5}
    return {
        "crashes": choices.of([crash], []),
        "stragglers": rarely(choices, [straggler], []),
        "mtbf_s": choices.of(None, 5.0),
        "mttr_s": 0.8,
        "on_crash": choices.of("retry", "migrate", "lose"),
        "detection_s": choices.of(0.0, 0.25),
    }


def make_topology(choices: Choices) -> dict[str, Any]:
    return {
        "gpus_per_node": choices.of(8, 4, 2),
        "nodes_per_rack": choices.integer(1, 2),
        "nvlink_domain": choices.of("node", "rack"),
        "placement": choices.of("pack", "spread"),
    }


def make_deployment(choices: Choices) -> DeploymentConfig:
    """Return a random deployment; raises ValueError where the combination does not validate."""
    engine, moe, split = make_engine(choices), rarely(choices, True, False), choices.of(False, True)
    roles = ["prefill", "decode"] if split else ["mixed"]
    pools = {role: make_pool(choices, moe, engine["name"]) for role in roles}
    timing = choices.of(
        {"type": "polynomial"},
        {"type": "roofline"},
        {"type": "fixed", "decode_ms": 19.937, "prefill_ms_per_token": 0.10037},
    )
    sections: dict[str, Any] = {"aggregated": pools.get("mixed")}
    if split:
        sections = {
            "disaggregated": pools
            | {
                "kv_transfer": {"bandwidth_gb_s": choices.of(0.021, 50.0), "latency_us": choices.of(20.0, 0.0)},
                "local_prefill": rarely(choices, {"max_uncached_tokens": 64, "max_uncached_fraction": 0.6}),
                "decode_router": rarely(choices, make_router(choices)),
            }
        }
    return DeploymentConfig.model_validate(
        {
            "model": MOE if moe else DENSE,
            "gpu": GPU,
            "timing": timing,
            "engine": engine,
            "mode": "disaggregated" if split else "aggregated",
            **sections,
            "router": make_router(choices),
            "topology": rarely(choices, make_topology(choices)),
            "failures": rarely(choices, make_failures(choices, roles), {}),
        }
    )


# ----------------------------------------------------------------------------------------------------------- workload


def make_workload(choices: Choices) -> Workload:
    """Return random requests: shared and equal prompts, turns that repeat answers, graphs, priorities, deadlines."""
    rng = np.random.default_rng(choices.integer(0, 10_000))
    n, longest = choices.integer(1, 40), choices.of(400, 400, 40)
    node, sharing = choices.of(16, 48), choices.of(0.7, 0.9, 0.0)
    linked, closed = choices.of(False, True), choices.of(False, False, True)
    inputs, outputs = rng.integers(1, longest, n), rng.integers(1, choices.of(150, 60), n)
    inputs = choices.of(inputs, -(-inputs // (3 * node)) * 3 * node)  # the latter are often equal prompts
    session, after, prompts, hashed = [], [], [], []
    fresh = 0
    for i in range(n):
        parent = int(rng.integers(i)) if i and rng.random() < sharing else -1
        continues = linked and parent >= 0
        session.append(session[parent] if continues else max(session, default=-1) + 1)
        after.append([k for k in range(i) if session[k] == session[i] and rng.random() < 0.3] if continues else [])
        shared: list[int] = []
        if parent >= 0:
            whole = prompts[parent][: hashed[parent] // node]
            shared = whole[: int(rng.integers(0, len(whole) + 1))]
        if continues:  # the next turn's prompt: all of the parent's, its answer, and something new
            shared = prompts[parent][: hashed[parent] // node]
            inputs[i] = len(shared) * node + int(rng.integers(1, longest))
        shared = shared[: inputs[i] // node]
        # The answer is covered too where a later turn may repeat it, up to a whole block.
        covered = max(inputs[i], (inputs[i] + outputs[i]) // node * node) if linked else inputs[i]
        new = -(-covered // node) - len(shared)
        prompts.append(shared + list(range(fresh, fresh + new)))
        hashed.append(int(covered))
        fresh += new
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in prompts])])
    # Quantised times make simultaneous arrivals, where the order of events matters most.
    times = np.sort(np.round(rng.exponential(1.0, n).cumsum() / choices.of(20.0, 3.0, 0.5), 1))
    ids = {
        "hash_block_tokens": node,
        "hash_offsets": offsets.astype(np.int64),
        "hash_ids": np.concatenate(prompts).astype(np.int64),
        "hashed_tokens": np.array(hashed),
    }
    return Workload(
        name="random",
        arrival_s=np.zeros(n) if closed else times,
        input_tokens=inputs.astype(np.int64),
        output_tokens=outputs.astype(np.int64),
        concurrency=3 if closed else None,
        warmup_requests=choices.of(0, 3),
        session=np.array(session),
        after_offsets=np.concatenate([[0], np.cumsum([len(ids) for ids in after])]).astype(np.int64),
        after_ids=np.array([k for ids in after for k in ids], np.int64),
        delay_s=np.round(rng.exponential(0.4, n), 1),
        priority=rng.integers(0, 3, n),
        deadline_s=np.where(rng.random(n) < 0.3, np.inf, rng.exponential(2.0, n)),
        end_s=choices.of(np.inf, np.inf, np.inf, 2.9),
        **choices.of(ids, ids, ids, {}),
    )


def make_lengths(choices: Choices, most: int) -> dict[str, Any]:
    return choices.of(
        {"type": "fixed", "tokens": choices.integer(1, most)},
        {"type": "uniform", "min": 1, "max": most},
        {"type": "lognormal", "median": most / 4, "sigma": 1.0, "max": most},
    )


def make_delay(choices: Choices) -> dict[str, Any]:
    return choices.of(
        {"type": "fixed", "seconds": choices.of(0.0, 0.7)},
        {"type": "exponential", "mean_s": 0.5},
        {"type": "lognormal", "median_s": 0.4, "sigma": 0.8},
    )


def make_conversations(choices: Choices) -> dict[str, Any]:
    """Return one of the two models of conversations, or none."""
    fan_out = {"probability": 0.6, "calls": make_lengths(choices, 3), "new_tokens": make_lengths(choices, 60),
               "output_tokens": make_lengths(choices, 20), "shares_context": choices.of(True, False)}  # fmt: skip
    groups = {"groups": choices.integer(1, 3), "prefix_tokens": make_lengths(choices, 90), "skew": choices.of(0.0, 1.0)}
    sessions = {"turns": make_lengths(choices, 5), "new_tokens": [make_lengths(choices, 80)],
                "think_s": make_delay(choices), "fan_out": rarely(choices, fan_out), "groups": rarely(choices, groups),
                "block_tokens": choices.of(16, 24), "max_input_tokens": 900}  # fmt: skip
    prefix = {"block_tokens": choices.of(16, 48), "shared_blocks": choices.integer(0, 2), "max_input_tokens": 900,
              "continue_probability": [0.7], "new_tokens": [make_lengths(choices, 80)],
              "gap_requests": make_lengths(choices, 9)}  # fmt: skip
    return choices.of({}, {"sessions": sessions}, {"prefix": prefix})


def make_load(choices: Choices) -> dict[str, Any]:
    rate, burstiness = choices.of(4.0, 0.6, 40.0), choices.of(1.0, 0.3)
    return choices.of(
        {"type": "poisson", "rate_rps": rate, "burstiness": burstiness},
        {"type": "constant_rate", "rate_rps": rate},
        {"type": "concurrency", "concurrency": choices.integer(1, 12)},
        {"type": "diurnal", "base_rps": choices.of(0.0, 0.4), "peak_rps": rate, "period_s": 20.0},
        {"type": "step", "before_rps": 0.9, "after_rps": rate, "at_s": 3.0, "burstiness": burstiness},
        {"type": "spike", "base_rps": 0.8, "peak_rps": rate, "at_s": 2.0, "duration_s": 1.5},
    )


def make_configured_workload(choices: Choices) -> Workload:
    """Return a random workload that a configuration file could ask for."""
    config = {
        "source": {
            "type": "synthetic",
            "requests": choices.integer(1, 120),
            "input_tokens": make_lengths(choices, choices.of(300, 30, 900)),
            "output_tokens": make_lengths(choices, choices.of(60, 2)),
            **make_conversations(choices),
        },
        "load": make_load(choices),
        "classes": rarely(choices, [{"share": 1, "priority": 0}, {"share": 2, "priority": 3, "deadline_s": 1.5}], []),
        "max_virtual_time_s": rarely(choices, choices.of(6.0, 0.05)),
        "warmup_requests": choices.of(0, 5),
    }
    return load_workload(WorkloadConfig.model_validate(config), choices.integer(0, 99))
