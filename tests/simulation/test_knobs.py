"""Every knob moves what it should, and the right way: one pair of small runs per field of a deployment and a workload.

``space/coverage.py`` names these effects in its table; ``tests/space/test_coverage.py`` holds the two together.
"""

# ruff: noqa: E501 - one line per knob reads as the table that it is

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest

from dynosim.config import DeploymentConfig, PriceConfig, WorkloadConfig
from dynosim.metrics import Metrics, summarize
from dynosim.simulation import simulate
from dynosim.workload import describe, load_workload

LENGTHS = {
    "input_tokens": {"type": "uniform", "min": 200, "max": 6000},
    "output_tokens": {"type": "uniform", "min": 2, "max": 300},
}
BASE: dict[str, Any] = {
    "deployment": {
        "model": "llama-3.1-8b",
        "gpu": "h100_sxm",
        "timing": {"type": "roofline"},
        "aggregated": {"replicas": 2},
    },
    "workload": {
        "source": {
            "type": "synthetic",
            "requests": 300,
            **LENGTHS,
            "prefix": {
                "block_tokens": 256,
                "shared_blocks": 1,
                "continue_probability": [0.7],
                "gap_requests": {"type": "lognormal", "median": 30, "sigma": 0.5},
            },
        },
        "load": {"type": "poisson", "rate_rps": 12.0},
    },
}
POOL, SOURCE = "deployment.aggregated", "workload.source"
PREFILL, DECODE = "deployment.disaggregated.prefill", "deployment.disaggregated.decode"
SPLIT = {"deployment.mode": "disaggregated", f"{PREFILL}.replicas": 2, f"{DECODE}.replicas": 2}
"""Two prefill and two decode replicas."""
SGLANG, TRTLLM = ({"deployment.engine.name": name} for name in ("sglang", "trtllm"))
TIGHT = {f"{POOL}.num_gpu_blocks_override": 1200, f"{POOL}.block_size": 16}
"""KV cache of 19,200 tokens per replica: about six requests."""
LONG_ANSWERS = {
    f"{SOURCE}.prefix": None,
    f"{SOURCE}.input_tokens": {"type": "uniform", "min": 50, "max": 500},
    f"{SOURCE}.output_tokens": {"type": "uniform", "min": 200, "max": 2000},
}
REUSE = {f"{POOL}.num_gpu_blocks_override": 2000, f"{POOL}.block_size": 16, "workload.load.rate_rps": 4.0}
"""A GPU cache that forgets conversations before their next turn."""
HOST = {**REUSE, f"{POOL}.kv_offload.host.size_gib": 64.0}
DISK = {**REUSE, f"{POOL}.kv_offload.host.size_gib": 0.5, f"{POOL}.kv_offload.disk.size_gib": 64.0}
REMOTE = {**REUSE, f"{POOL}.kv_offload.remote.size_gib": 64.0}
MOE = {
    "deployment.model": "qwen3-235b-a22b",
    "deployment.gpu": "h200_sxm",
    "deployment.quantization": "fp8",
    "deployment.timing": {"type": "pack"},
    f"{POOL}.tensor_parallel_size": 4,
}
RANKS = {
    **MOE,
    f"{POOL}.tensor_parallel_size": 1,
    f"{POOL}.data_parallel_size": 4,
    f"{POOL}.enable_expert_parallel": True,
}
SPECULATIVE = {"deployment.engine.speculative": {"num_speculative_tokens": 2, "acceptance_rates": [0.8]}}
SCALED = {
    f"{POOL}.replicas": 1,
    f"{POOL}.max_num_seqs": 16,
    f"{POOL}.autoscaler": {
        "max_replicas": 6,
        "interval_s": 5.0,
        "scale_down_cooldown_s": 20.0,
        "provision_s": 5.0,
        "weights_load_gb_s": 16.0,
        "startup_s": 4.0,
    },
    "workload.source.requests": 900,
}
"""One replica that is not enough, and more to come after ten seconds."""
SCALER = f"{POOL}.autoscaler"
SIZED = {
    **SCALED,
    f"{SCALER}.policy": "kv_utilization",
    f"{SCALER}.throughput_interval_s": 5.0,
    "workload.load": {"type": "diurnal", "base_rps": 2.0, "peak_rps": 24.0, "period_s": 60.0},
}
"""Replicas follow the predicted rate."""
NODES = {**SPLIT, f"{PREFILL}.tensor_parallel_size": 2, f"{DECODE}.tensor_parallel_size": 2}
CROSSING = {f"{POOL}.tensor_parallel_size": 4, "deployment.topology.gpus_per_node": 2}
RACKS = {**NODES, "deployment.gpu": "gb200", "deployment.topology.gpus_per_node": 4}
CRASH = {"pool": "mixed", "replica": 0, "at_s": 5.0, "down_s": 20.0}
SLOW = {"pool": "mixed", "replica": 0, "slowdown": 3.0}
KV_AWARE = {f"{POOL}.replicas": 4, "deployment.router.policy": "kv_aware"}
TRACE = {SOURCE: {"type": "trace", "path": "trace.jsonl"}, "workload.load": {"type": "trace_timestamps"}}
SESSIONS = {f"{SOURCE}.prefix": None, f"{SOURCE}.sessions": {"turns": {"type": "uniform", "min": 2, "max": 6}}}
THINK = f"{SOURCE}.sessions.think_s"
CALLS = {
    "calls": {"type": "fixed", "tokens": 2},
    **{name: {"type": "fixed", "tokens": 50} for name in ("new_tokens", "output_tokens")},
}
FAN_OUT = {**SESSIONS, f"{SOURCE}.sessions.fan_out": CALLS}
GROUPS = {f"{SOURCE}.prefix": None, f"{SOURCE}.sessions.groups": {"prefix_tokens": {"type": "fixed", "tokens": 2000}}}
DIURNAL = {"workload.load": {"type": "diurnal", "base_rps": 1.0, "peak_rps": 10.0, "period_s": 50.0}}
STEP = {"workload.load": {"type": "step", "before_rps": 1.0, "after_rps": 10.0, "at_s": 20.0}}
SPIKE = {"workload.load": {"type": "spike", "base_rps": 1.0, "peak_rps": 10.0, "at_s": 20.0, "duration_s": 10.0}}
CURVE = {"workload.load": {"type": "rate_curve", "path": "curve.csv", "series": "a"}}
FILES = {
    "curve.csv": "t_s,rate_rps,workload\n0,2,a\n10,20,a\n0,30,b\n10,40,b\n",
    "slow.yaml": "name: slow\ngeneric: true\ndecode: 2.0\n",
    "flat.csv": "t_s,rate_rps,workload\n0,5,a\n10,5,a\n",
    "trace.jsonl": "".join(
        json.dumps(
            {
                "session_id": str(i // 2),
                "timestamp": 100 * i,
                "delay": 5000,
                "input_length": 900,
                "output_length": 20,
                "hash_ids": [0, i + 1],
            }
        )
        + "\n"
        for i in range(40)
    ),
}
"""What the sources read, written into the working directory."""


@dataclass(frozen=True)
class Effect:
    """Setting *path* from *before* to *after* moves *metric* up (+1), down (-1), or somewhere (0)."""

    path: str
    before: Any
    after: Any
    metric: str
    """A metric, one of its statistics, or ``workload.`` and a statistic of ``workload.describe``."""
    sign: int
    given: Mapping[str, Any] = field(default_factory=dict)


def _length(kind: str, **fields: Any) -> dict[str, Any]:
    return {f"{SOURCE}.input_tokens": {"type": kind, **fields}, f"{SOURCE}.prefix": None}


def _arrivals(**fields: Any) -> dict[str, Any]:
    return {f"{SOURCE}.arrivals": {"rates_rps": [5.0], **fields}, "workload.load": {"type": "trace_timestamps"}}


TTFT, ITL, HITS = "time_to_first_token", "inter_token_latency", "prefix_cache_hit_rate"
MEAN_INPUT, SHARED = "workload.input_tokens.mean", "workload.tokens_reused"
RATE, GAPS = "workload.mean_rps", "workload.gap_cv"
D, E, SPEC, TOPOLOGY, FAILURES = (
    "deployment",
    "deployment.engine",
    "deployment.engine.speculative",
    "deployment.topology",
    "deployment.failures",
)
EFFECTS = {
    "DeploymentConfig.model": Effect(f"{D}.model", "llama-3.1-8b", "llama-3.1-70b", ITL, +1, {f"{POOL}.tensor_parallel_size": 4}),
    "DeploymentConfig.gpu": Effect(f"{D}.gpu", "h100_sxm", "b200_sxm", ITL, -1),
    "DeploymentConfig.quantization": Effect(f"{D}.quantization", "none", "fp8", ITL, -1),
    "DeploymentConfig.kv_cache_dtype": Effect(f"{D}.kv_cache_dtype", "bf16", "fp8", "kv_cache_utilization", -1),
    "DeploymentConfig.calibration": Effect(f"{D}.calibration", None, "slow.yaml", ITL, +1),
    "DeploymentConfig.mode": Effect(f"{D}.mode", "aggregated", "disaggregated", "stall_time", -1, {f"{PREFILL}.replicas": 1, f"{DECODE}.replicas": 1}),
    "EngineConfig.name": Effect(f"{E}.name", "vllm", "sglang", "inter_chunk_latency.p99", 0),
    "EngineConfig.async_scheduling": Effect(f"{E}.async_scheduling", False, True, ITL, -1),
    "EngineConfig.cudagraph_mode": Effect(f"{E}.cudagraph_mode", "FULL_AND_PIECEWISE", "NONE", ITL, +1),
    "EngineConfig.attention_backend": Effect(f"{E}.attention_backend", "auto", "FLASHINFER", ITL, +1),
    "EngineConfig.mxfp8_activations": Effect(f"{E}.mxfp8_activations", False, True, ITL, -1, {f"{D}.model": "gpt-oss-120b", f"{D}.gpu": "b200_sxm", f"{D}.timing": {"type": "pack"}}),
    "EngineConfig.max_cudagraph_capture_size": Effect(f"{E}.max_cudagraph_capture_size", 8192, 1, TTFT, +1, {f"{E}.launch_overhead_us": 3000.0}),
    "EngineConfig.launch_overhead_us": Effect(f"{E}.launch_overhead_us", 0.0, 5000.0, TTFT, +1),
    "EngineConfig.frontend_ms": Effect(f"{E}.frontend_ms", 0.0, 50.0, TTFT, +1),
    "EngineConfig.frontend_request_us": Effect(f"{E}.frontend_request_us", 0.0, 100_000.0, TTFT, +1),
    "EngineConfig.batch_wait_timeout_iters": Effect(f"{E}.batch_wait_timeout_iters", 0, 20, TTFT, +1, {**TRTLLM, f"{E}.batch_wait_max_tokens_ratio": 0.9}),
    "EngineConfig.batch_wait_max_tokens_ratio": Effect(f"{E}.batch_wait_max_tokens_ratio", 0.01, 0.9, TTFT, +1, {**TRTLLM, f"{E}.batch_wait_timeout_iters": 20}),
    "EngineConfig.attention_dp_enable_balance": Effect(f"{E}.attention_dp_enable_balance", False, True, TTFT, +1, {**TRTLLM, **RANKS}),
    "EngineConfig.attention_dp_timeout_iters": Effect(f"{E}.attention_dp_timeout_iters", 2, 60, TTFT, +1, {**TRTLLM, **RANKS, f"{E}.attention_dp_enable_balance": True}),
    "EngineConfig.attention_dp_batching_wait_iters": Effect(f"{E}.attention_dp_batching_wait_iters", 0, 30, TTFT, +1, {**TRTLLM, **RANKS, f"{E}.attention_dp_enable_balance": True}),
    "EngineConfig.pass_overhead_us": Effect(f"{E}.pass_overhead_us", 0.0, 2000.0, ITL, +1),
    "EngineConfig.request_overhead_us": Effect(f"{E}.request_overhead_us", 0.0, 200.0, ITL, +1),
    "EngineConfig.ignore_eos": Effect(f"{E}.ignore_eos", False, True, "preemptions", -1, {**SGLANG, **TIGHT, **LONG_ANSWERS}),
    "EngineConfig.schedule_conservativeness": Effect(f"{E}.schedule_conservativeness", 0.5, 1.4, "preemptions", -1, {**SGLANG, **TIGHT, **LONG_ANSWERS}),
    "EngineConfig.enable_mixed_chunk": Effect(f"{E}.enable_mixed_chunk", False, True, "inter_chunk_latency.max", -1, SGLANG),
    "EngineConfig.max_prefill_tokens": Effect(f"{E}.max_prefill_tokens", 16384, 1024, TTFT, 0, {**SGLANG, "workload.load.rate_rps": 40.0}),
    "EngineConfig.scheduler_recv_interval": Effect(f"{E}.scheduler_recv_interval", 1, 30, TTFT, +1, SGLANG),
    "EngineConfig.capacity_scheduler_policy": Effect(f"{E}.capacity_scheduler_policy", "GUARANTEED_NO_EVICT", "MAX_UTILIZATION", "preemptions", +1, {**TRTLLM, **TIGHT}),
    "SpeculativeConfig.num_speculative_tokens": Effect(f"{SPEC}.num_speculative_tokens", 1, 3, ITL, -1, SPECULATIVE),
    "SpeculativeConfig.method": Effect(f"{SPEC}.method", "ngram", "eagle3", ITL, +1, SPECULATIVE),
    "SpeculativeConfig.acceptance_length": Effect(f"{SPEC}.acceptance_length", 1.2, 2.6, ITL, -1, {"deployment.engine.speculative": {"num_speculative_tokens": 2}}),
    "SpeculativeConfig.acceptance_rates": Effect(f"{SPEC}.acceptance_rates", [0.1], [0.9], "acceptance_length", +1, SPECULATIVE),
    "SpeculativeConfig.draft_cost": Effect(f"{SPEC}.draft_cost", 0.0, 0.5, ITL, +1, SPECULATIVE),
    "RooflineTiming.compute_efficiency": Effect(f"{D}.timing.compute_efficiency", 0.6, 0.3, "prefill_time", +1),
    "RooflineTiming.memory_efficiency": Effect(f"{D}.timing.memory_efficiency", 0.75, 0.4, ITL, +1),
    "RooflineTiming.network_efficiency": Effect(f"{D}.timing.network_efficiency", 0.7, 0.1, ITL, +1, {f"{POOL}.tensor_parallel_size": 4}),
    "FixedTiming.prefill_ms_per_token": Effect(f"{D}.timing.prefill_ms_per_token", 0.1, 0.2, "prefill_time", +1, {f"{D}.timing": {"type": "fixed"}}),
    "FixedTiming.decode_ms": Effect(f"{D}.timing.decode_ms", 10.0, 20.0, ITL, +1, {f"{D}.timing": {"type": "fixed"}}),
    "PoolConfig.replicas": Effect(f"{POOL}.replicas", 1, 2, TTFT, -1),
    "PoolConfig.gpu": Effect(f"{POOL}.gpu", "h100_sxm", "b200_sxm", ITL, -1),
    "PoolConfig.tensor_parallel_size": Effect(f"{POOL}.tensor_parallel_size", 1, 4, ITL, -1),
    "PoolConfig.pipeline_parallel_size": Effect(f"{POOL}.pipeline_parallel_size", 1, 2, "kv_cache_utilization", -1),
    "PoolConfig.data_parallel_size": Effect(f"{POOL}.data_parallel_size", 1, 2, "kv_cache_utilization", -1, {**MOE, f"{POOL}.enable_expert_parallel": True}),
    "PoolConfig.enable_expert_parallel": Effect(f"{POOL}.enable_expert_parallel", False, True, ITL, 0, MOE),
    "PoolConfig.max_num_seqs": Effect(f"{POOL}.max_num_seqs", 4, 256, "queue_time", -1),
    "PoolConfig.max_num_batched_tokens": Effect(f"{POOL}.max_num_batched_tokens", 8192, 512, "inter_chunk_latency.max", -1),
    "PoolConfig.enable_chunked_prefill": Effect(f"{POOL}.enable_chunked_prefill", True, False, "rejected", +1, {f"{POOL}.max_num_batched_tokens": 4096}),
    "PoolConfig.enable_prefix_caching": Effect(f"{POOL}.enable_prefix_caching", False, True, "prefill_time", -1),
    "PoolConfig.block_size": Effect(f"{POOL}.block_size", 512, 16, HITS, +1),
    "PoolConfig.gpu_memory_utilization": Effect(f"{POOL}.gpu_memory_utilization", 0.9, 0.4, "kv_cache_utilization", +1),
    "PoolConfig.num_gpu_blocks_override": Effect(f"{POOL}.num_gpu_blocks_override", 8000, 1200, "queue_time", +1),
    "PoolConfig.scheduling_policy": Effect(f"{POOL}.scheduling_policy", "fcfs", "shortest_prompt", "time_to_first_token.p50", -1, {f"{POOL}.max_num_seqs": 4}),
    "PoolConfig.scheduler_reserve_full_isl": Effect(f"{POOL}.scheduler_reserve_full_isl", False, True, "queue_time", 0, {**TIGHT, f"{POOL}.max_num_batched_tokens": 512}),
    "PoolConfig.long_prefill_token_threshold": Effect(f"{POOL}.long_prefill_token_threshold", 0, 256, "prefill_time", +1),
    "PoolConfig.long_prefill_token_threshold_adaptive": Effect(f"{POOL}.long_prefill_token_threshold_adaptive", False, True, "prefill_time", -1, {f"{POOL}.long_prefill_token_threshold": 128}),
    "PoolConfig.max_num_active_seqs": Effect(f"{POOL}.max_num_active_seqs", None, 4, "queue_time", +1),
    "PoolConfig.watermark": Effect(f"{POOL}.watermark", 0.0, 0.3, "queue_time", +1, TIGHT),
    "HostTier.size_gib": Effect(f"{POOL}.kv_offload.host.size_gib", 0.1, 64.0, "host_cache_hit_rate", +1, HOST),
    "HostTier.bandwidth_gb_s": Effect(f"{POOL}.kv_offload.host.bandwidth_gb_s", 50.0, 1.0, TTFT, +1, HOST),
    "HostTier.latency_us": Effect(f"{POOL}.kv_offload.host.latency_us", 10.0, 1e5, TTFT, +1, HOST),
    "OffloadConfig.offload_prompt_only": Effect(f"{POOL}.kv_offload.offload_prompt_only", False, True, "host_cache_hit_rate", -1, {**HOST, **SESSIONS, f"{POOL}.replicas": 1}),
    "DiskTier.size_gib": Effect(f"{POOL}.kv_offload.disk.size_gib", 0.1, 64.0, "disk_cache_hit_rate", +1, DISK),
    "DiskTier.bandwidth_gb_s": Effect(f"{POOL}.kv_offload.disk.bandwidth_gb_s", 10.0, 0.5, TTFT, +1, DISK),
    "DiskTier.latency_us": Effect(f"{POOL}.kv_offload.disk.latency_us", 100.0, 2e5, TTFT, +1, DISK),
    "RemoteTier.size_gib": Effect(f"{POOL}.kv_offload.remote.size_gib", 0.1, 64.0, "remote_cache_hit_rate", +1, REMOTE),
    "RemoteTier.bandwidth_gb_s": Effect(f"{POOL}.kv_offload.remote.bandwidth_gb_s", 25.0, 0.5, TTFT, +1, REMOTE),
    "RemoteTier.store_bandwidth_gb_s": Effect(f"{POOL}.kv_offload.remote.store_bandwidth_gb_s", 80.0, 0.5, TTFT, +1, REMOTE),
    "RemoteTier.latency_us": Effect(f"{POOL}.kv_offload.remote.latency_us", 1000.0, 2e5, TTFT, +1, REMOTE),
    "AutoscalerConfig.policy": Effect(f"{SCALER}.policy", "queue_depth", "kv_utilization", "gpus", 0, SCALED),
    "AutoscalerConfig.options": Effect(f"{SCALER}.options", {}, {"up": 50.0}, "gpus", -1, SCALED),
    "AutoscalerConfig.min_replicas": Effect(f"{SCALER}.min_replicas", 1, 4, TTFT, -1, {**SCALED, f"{POOL}.replicas": 4}),
    "AutoscalerConfig.max_replicas": Effect(f"{SCALER}.max_replicas", 2, 6, TTFT, -1, SCALED),
    "AutoscalerConfig.interval_s": Effect(f"{SCALER}.interval_s", 5.0, 40.0, TTFT, +1, SCALED),
    "AutoscalerConfig.throughput_interval_s": Effect(f"{SCALER}.throughput_interval_s", None, 5.0, TTFT, -1, {**SCALED, f"{SCALER}.policy": "kv_utilization"}),
    "AutoscalerConfig.predictor": Effect(f"{SCALER}.predictor", "last_value", "moving_average", "gpus", 0, SIZED),
    "AutoscalerConfig.scale_up_cooldown_s": Effect(f"{SCALER}.scale_up_cooldown_s", 0.0, 60.0, TTFT, +1, {**SCALED, f"{SCALER}.max_step": 1}),
    "AutoscalerConfig.scale_down_cooldown_s": Effect(f"{SCALER}.scale_down_cooldown_s", 300.0, 5.0, "gpus", -1, SCALED),
    "AutoscalerConfig.max_step": Effect(f"{SCALER}.max_step", 1, 8, TTFT, -1, SCALED),
    "AutoscalerConfig.provision_s": Effect(f"{SCALER}.provision_s", 5.0, 40.0, TTFT, +1, SCALED),
    "AutoscalerConfig.weights_load_gb_s": Effect(f"{SCALER}.weights_load_gb_s", 16.0, 0.5, TTFT, +1, SCALED),
    "AutoscalerConfig.startup_s": Effect(f"{SCALER}.startup_s", 4.0, 40.0, TTFT, +1, SCALED),
    "LinkConfig.bandwidth_gb_s": Effect(f"{D}.disaggregated.kv_transfer.bandwidth_gb_s", 50.0, 1.0, "kv_transfer_time", +1, SPLIT),
    "LinkConfig.latency_us": Effect(f"{D}.disaggregated.kv_transfer.latency_us", 20.0, 1e5, "kv_transfer_time", +1, SPLIT),
    "RouterConfig.policy": Effect(f"{D}.router.policy", "round_robin", "kv_aware", HITS, +1, {f"{POOL}.replicas": 4}),
    "RouterConfig.options": Effect(f"{D}.router.options", {"overlap_score_credit": 0.0}, {"overlap_score_credit": 1.0}, HITS, +1, KV_AWARE),
    "RouterConfig.load_report_interval_s": Effect(f"{D}.router.load_report_interval_s", 0.0, 30.0, TTFT, +1, {f"{POOL}.replicas": 4, f"{D}.router.policy": "least_outstanding", "workload.load.rate_rps": 30.0}),
    "RouterConfig.kv_event_lag_s": Effect(f"{D}.router.kv_event_lag_s", 0.0, 1000.0, HITS, -1, KV_AWARE),
    "LocalPrefillConfig.max_uncached_tokens": Effect(f"{D}.disaggregated.local_prefill", {"max_uncached_tokens": 1, "max_uncached_fraction": 1.0}, {"max_uncached_tokens": 3000, "max_uncached_fraction": 1.0}, "kv_transfer_time", -1, SPLIT),
    "LocalPrefillConfig.max_uncached_fraction": Effect(f"{D}.disaggregated.local_prefill", {"max_uncached_tokens": 3000, "max_uncached_fraction": 0.0}, {"max_uncached_tokens": 3000, "max_uncached_fraction": 1.0}, "kv_transfer_time", -1, SPLIT),
    "TopologyConfig.gpus_per_node": Effect(f"{TOPOLOGY}.gpus_per_node", 4, 2, ITL, +1, CROSSING),
    "TopologyConfig.nodes_per_rack": Effect(f"{TOPOLOGY}.nodes_per_rack", 4, 1, "kv_transfer_time", +1, {**RACKS, f"{TOPOLOGY}.rack_uplink_gb_s": 0.5}),
    "TopologyConfig.nvlink_domain": Effect(f"{TOPOLOGY}.nvlink_domain", "node", "rack", "kv_transfer_time", -1, RACKS),
    "TopologyConfig.placement": Effect(f"{TOPOLOGY}.placement", "pack", "spread", "kv_transfer_time", -1, RACKS),
    "TopologyConfig.inter_node_bandwidth_gb_s": Effect(f"{TOPOLOGY}.inter_node_bandwidth_gb_s", 50.0, 1.0, "prefill_time", +1, CROSSING),
    "TopologyConfig.inter_node_latency_us": Effect(f"{TOPOLOGY}.inter_node_latency_us", 5.0, 200.0, ITL, +1, CROSSING),
    "TopologyConfig.rack_uplink_gb_s": Effect(f"{TOPOLOGY}.rack_uplink_gb_s", 1600.0, 0.5, "kv_transfer_time", +1, {**RACKS, f"{TOPOLOGY}.nodes_per_rack": 1}),
    "FailuresConfig.mtbf_s": Effect(f"{FAILURES}.mtbf_s", None, 10.0, "retries", +1, {f"{FAILURES}.mttr_s": 2.0}),
    "FailuresConfig.mttr_s": Effect(f"{FAILURES}.mttr_s", 1.0, 20.0, TTFT, +1, {f"{FAILURES}.mtbf_s": 15.0}),
    "FailuresConfig.on_crash": Effect(f"{FAILURES}.on_crash", "retry", "lose", "failed", +1, {f"{FAILURES}.crashes": [CRASH]}),
    "FailuresConfig.detection_s": Effect(f"{FAILURES}.detection_s", 1.0, 15.0, "request_latency.max", +1, {f"{FAILURES}.crashes": [CRASH]}),
    "CrashConfig.pool": Effect(f"{FAILURES}.crashes", [CRASH | {"pool": "prefill"}], [CRASH | {"pool": "decode"}], TTFT, 0, SPLIT),
    "CrashConfig.replica": Effect(f"{FAILURES}.crashes", [CRASH], [CRASH | {"replica": 1}], TTFT, 0),
    "CrashConfig.at_s": Effect(f"{FAILURES}.crashes", [CRASH], [CRASH | {"at_s": 15.0}], TTFT, 0),
    "CrashConfig.down_s": Effect(f"{FAILURES}.crashes", [CRASH | {"down_s": 2.0}], [CRASH], TTFT, +1, {"workload.load.rate_rps": 18.0}),
    "StragglerConfig.pool": Effect(f"{FAILURES}.stragglers", [SLOW | {"pool": "prefill"}], [SLOW | {"pool": "decode"}], ITL, +1, SPLIT),
    "StragglerConfig.replica": Effect(f"{FAILURES}.stragglers", [SLOW], [SLOW | {"replica": 1}], ITL, 0),
    "StragglerConfig.slowdown": Effect(f"{FAILURES}.stragglers", [SLOW | {"slowdown": 1.5}], [SLOW], ITL, +1),
    "WorkloadConfig.max_requests": Effect("workload.max_requests", 100, 200, "workload.requests", +1),
    "WorkloadConfig.warmup_requests": Effect("workload.warmup_requests", 0, 100, "completed", -1),
    "WorkloadConfig.rate_factor": Effect("workload.rate_factor", 1.0, 2.0, "time_to_first_token.p99", +1),
    "WorkloadConfig.output_tokens_factor": Effect("workload.output_tokens_factor", 1.0, 1.5, "request_latency.avg", +1),
    "WorkloadConfig.shared_prefixes": Effect("workload.shared_prefixes", True, False, "prefix_cache_hit_rate", -1),
    "SyntheticSource.requests": Effect(f"{SOURCE}.requests", 100, 200, "workload.requests", +1),
    "ProfileSource.name": Effect(SOURCE, {"type": "profile", "name": "rag", "requests": 500}, {"type": "profile", "name": "chat", "requests": 500}, MEAN_INPUT, +1),
    "ProfileSource.requests": Effect(SOURCE, {"type": "profile", "requests": 300}, {"type": "profile", "requests": 500}, "workload.requests", +1),
    "FixedLength.tokens": Effect(f"{SOURCE}.input_tokens.tokens", 100, 200, MEAN_INPUT, +1, _length("fixed", tokens=1)),
    "UniformLength.min": Effect(f"{SOURCE}.input_tokens.min", 1, 100, MEAN_INPUT, +1, _length("uniform", min=1, max=200)),
    "UniformLength.max": Effect(f"{SOURCE}.input_tokens.max", 200, 300, MEAN_INPUT, +1, _length("uniform", min=1, max=200)),
    "LognormalLength.median": Effect(f"{SOURCE}.input_tokens.median", 100, 200, MEAN_INPUT, +1, _length("lognormal", median=1, sigma=1.0)),
    "LognormalLength.sigma": Effect(f"{SOURCE}.input_tokens.sigma", 0.1, 1.0, MEAN_INPUT, +1, _length("lognormal", median=100, sigma=1.0)),
    "LognormalLength.min": Effect(f"{SOURCE}.input_tokens.min", 1, 100, MEAN_INPUT, +1, _length("lognormal", median=100, sigma=1.0)),
    "LognormalLength.max": Effect(f"{SOURCE}.input_tokens.max", 5000, 100, MEAN_INPUT, -1, _length("lognormal", median=100, sigma=1.0)),
    "QuantileLength.quantiles": Effect(f"{SOURCE}.input_tokens.quantiles", {0.0: 1, 1.0: 100}, {0.0: 50, 1.0: 200}, MEAN_INPUT, +1, _length("quantiles")),
    "TraceLoad.speedup": Effect("workload.load.speedup", 1.0, 2.0, "workload.mean_rps", +1, _arrivals()),
    "PoissonLoad.rate_rps": Effect("workload.load.rate_rps", 5.0, 10.0, "workload.mean_rps", +1),
    "PoissonLoad.burstiness": Effect("workload.load.burstiness", 1.0, 0.2, "workload.gap_cv", +1),
    "ConstantLoad.rate_rps": Effect("workload.load.rate_rps", 5.0, 10.0, "workload.mean_rps", +1, {"workload.load": {"type": "constant_rate", "rate_rps": 1.0}}),
    "ConcurrencyLoad.concurrency": Effect("workload.load.concurrency", 2, 16, "request_throughput", +1, {"workload.load": {"type": "concurrency"}}),
    "PrefixTree.block_tokens": Effect(f"{SOURCE}.prefix.block_tokens", 256, 2048, SHARED, -1, {f"{SOURCE}.prefix.shared_blocks": 0}),
    "PrefixTree.shared_blocks": Effect(f"{SOURCE}.prefix.shared_blocks", 0, 4, SHARED, +1),
    "PrefixTree.continue_probability": Effect(f"{SOURCE}.prefix.continue_probability", [0.0], [0.8], SHARED, +1),
    "PrefixTree.continue_scale_tokens": Effect(f"{SOURCE}.prefix.continue_scale_tokens", None, 300.0, SHARED, -1),
    "PrefixTree.max_input_tokens": Effect(f"{SOURCE}.prefix.max_input_tokens", 131072, 4000, MEAN_INPUT, -1),
    "PrefixTree.persistence": Effect(f"{SOURCE}.prefix.persistence", 0.0, 1.0, SHARED, 0),
    "PrefixTree.output_persistence": Effect(f"{SOURCE}.prefix.output_persistence", 0.0, 1.0, "workload.output_tokens.mean", 0),
    "PrefixTree.resubmit_probability": Effect(f"{SOURCE}.prefix.resubmit_probability", 0.0, 0.9, SHARED, +1),
    "Arrivals.rates_rps": Effect(f"{SOURCE}.arrivals.rates_rps", [5.0], [10.0], "workload.mean_rps", +1, _arrivals()),
    "Arrivals.window_s": Effect(f"{SOURCE}.arrivals.window_s", 10.0, 1000.0, "workload.mean_rps", -1, _arrivals(rates_rps=[2.0, 20.0])),
    "Arrivals.burstiness": Effect(f"{SOURCE}.arrivals.burstiness", 1.0, 0.2, "workload.gap_cv", +1, _arrivals()),
    "Arrivals.gap_quantiles": Effect(f"{SOURCE}.arrivals.gap_quantiles", {0.0: 1.0, 1.0: 1.0}, {0.0: 0.0, 0.9: 0.1, 1.0: 9.0}, "workload.gap_cv", +1, _arrivals()),
    "Arrivals.quantum_s": Effect(f"{SOURCE}.arrivals.quantum_s", 0.0, 5.0, "workload.gap_cv", +1, _arrivals()),
    "WorkloadConfig.max_virtual_time_s": Effect("workload.max_virtual_time_s", None, 10.0, "incomplete", +1),
    "RequestClass.share": Effect("workload.classes", [{"priority": 1}, {"share": 1.0}], [{"priority": 1}, {"share": 9.0}], "workload.priority", -1),
    "RequestClass.priority": Effect("workload.classes", [{"priority": 1}], [{"priority": 5}], "workload.priority", +1),
    "RequestClass.deadline_s": Effect("workload.classes", [{"deadline_s": 1.0}], [{"deadline_s": 2.0}], "workload.deadline_s", +1),
    "TraceSource.block_tokens": Effect(f"{SOURCE}.block_tokens", 512, 700, "workload.block_tokens", +1, TRACE),
    "TraceSource.max_delay_s": Effect(f"{SOURCE}.max_delay_s", None, 1.0, "workload.delay_s", -1, TRACE),
    "RatioLength.tokens": Effect(f"{SOURCE}.input_tokens.tokens", 100, 200, MEAN_INPUT, +1, _length("ratio", ratio=0.5)),
    "RatioLength.ratio": Effect(f"{SOURCE}.input_tokens.ratio", 0.2, 0.9, MEAN_INPUT, +1, _length("ratio", tokens=1000)),
    "PrefixGroups.groups": Effect(f"{SOURCE}.sessions.groups.groups", 2, 100, SHARED, -1, GROUPS),
    "PrefixGroups.skew": Effect(f"{SOURCE}.sessions.groups.skew", 0.0, 3.0, SHARED, +1, {**GROUPS, f"{SOURCE}.sessions.groups.groups": 200}),
    "FanOut.probability": Effect(f"{SOURCE}.sessions.fan_out.probability", 0.0, 1.0, "workload.roots", -1, FAN_OUT),
    "FanOut.shares_context": Effect(f"{SOURCE}.sessions.fan_out.shares_context", False, True, SHARED, +1, FAN_OUT),
    "Sessions.block_tokens": Effect(f"{SOURCE}.sessions.block_tokens", 16, 1024, SHARED, -1, SESSIONS),
    "Sessions.output_persistence": Effect(f"{SOURCE}.sessions.output_persistence", 0.0, 1.0, "workload.output_tokens.mean", 0, SESSIONS),
    "Sessions.max_input_tokens": Effect(f"{SOURCE}.sessions.max_input_tokens", 131072, 3000, MEAN_INPUT, -1, SESSIONS),
    "FixedDelay.seconds": Effect(f"{THINK}.seconds", 1.0, 5.0, "workload.delay_s", +1, {**SESSIONS, THINK: {"type": "fixed"}}),
    "ExponentialDelay.mean_s": Effect(f"{THINK}.mean_s", 1.0, 5.0, "workload.delay_s", +1, {**SESSIONS, THINK: {"type": "exponential"}}),
    "LognormalDelay.median_s": Effect(f"{THINK}.median_s", 1.0, 5.0, "workload.delay_s", +1, {**SESSIONS, THINK: {"type": "lognormal", "sigma": 1.0}}),
    "LognormalDelay.sigma": Effect(f"{THINK}.sigma", 0.1, 1.5, "workload.delay_s", +1, {**SESSIONS, THINK: {"type": "lognormal", "median_s": 1.0}}),
    "LognormalDelay.max_s": Effect(f"{THINK}.max_s", 3600.0, 1.0, "workload.delay_s", -1, {**SESSIONS, THINK: {"type": "lognormal", "median_s": 1.0, "sigma": 1.0}}),
    "QuantileDelay.quantiles": Effect(f"{THINK}.quantiles", {0.0: 0.0, 1.0: 1.0}, {0.0: 1.0, 1.0: 9.0}, "workload.delay_s", +1, {**SESSIONS, THINK: {"type": "quantiles"}}),
    "DiurnalLoad.base_rps": Effect("workload.load.base_rps", 1.0, 5.0, RATE, +1, DIURNAL),
    "DiurnalLoad.peak_rps": Effect("workload.load.peak_rps", 10.0, 20.0, RATE, +1, DIURNAL),
    "DiurnalLoad.period_s": Effect("workload.load.period_s", 20.0, 2000.0, RATE, -1, DIURNAL),
    "DiurnalLoad.burstiness": Effect("workload.load.burstiness", 1.0, 0.1, GAPS, +1, DIURNAL),
    "StepLoad.before_rps": Effect("workload.load.before_rps", 1.0, 5.0, RATE, +1, STEP),
    "StepLoad.after_rps": Effect("workload.load.after_rps", 10.0, 20.0, RATE, +1, STEP),
    "StepLoad.at_s": Effect("workload.load.at_s", 10.0, 50.0, RATE, -1, STEP),
    "StepLoad.burstiness": Effect("workload.load.burstiness", 1.0, 0.1, GAPS, +1, STEP),
    "SpikeLoad.base_rps": Effect("workload.load.base_rps", 1.0, 5.0, RATE, +1, SPIKE),
    "SpikeLoad.peak_rps": Effect("workload.load.peak_rps", 10.0, 20.0, RATE, +1, SPIKE),
    "SpikeLoad.at_s": Effect("workload.load.at_s", 10.0, 50.0, "workload.gap_cv", 0, SPIKE),
    "SpikeLoad.duration_s": Effect("workload.load.duration_s", 5.0, 10.0, RATE, +1, SPIKE),
    "SpikeLoad.burstiness": Effect("workload.load.burstiness", 1.0, 0.1, GAPS, +1, SPIKE),
    "CurveLoad.path": Effect("workload.load.path", "curve.csv", "flat.csv", GAPS, -1, CURVE),
    "CurveLoad.series": Effect("workload.load.series", "a", "b", RATE, +1, CURVE),
    "CurveLoad.mean_rps": Effect("workload.load.mean_rps", 5.0, 10.0, RATE, +1, CURVE),
    "CurveLoad.speedup": Effect("workload.load.speedup", 1.0, 50.0, RATE, 0, CURVE),
    "CurveLoad.burstiness": Effect("workload.load.burstiness", 1.0, 0.1, GAPS, +1, CURVE),
    **{
        f"Rewrites.{name}": Effect(f"{SOURCE}.prefix.rewrites.{name}", before, after, metric, sign, {
            f"{SOURCE}.prefix.rewrites": {"probability": 0.5, "kept_fraction": {0.0: 0.3, 1.0: 0.5}, "length_ratio": {0.0: 1.0, 1.0: 1.2}},
        })
        for name, before, after, metric, sign in (
            ("probability", 0.0, 1.0, SHARED, -1),
            ("persistence", 0.0, 1.0, SHARED, 0),
            ("min_blocks", 1, 1000, SHARED, +1),
            ("kept_fraction", {0.0: 0.1, 1.0: 0.1}, {0.0: 0.9, 1.0: 0.9}, SHARED, +1),
            ("length_ratio", {0.0: 0.5, 1.0: 0.5}, {0.0: 1.5, 1.0: 1.5}, MEAN_INPUT, +1),
        )
    },
}  # fmt: skip
"""Knob -> what shows it."""


def _put(data: dict[str, Any], path: str, value: Any) -> None:
    *sections, name = path.split(".")
    for section in sections:
        data = data.setdefault(section, {})
    data[name] = copy.deepcopy(value)


@pytest.fixture(autouse=True, scope="module")
def _files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("sources")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    with contextlib.chdir(folder):
        yield


@cache
def _measure(changes: str) -> tuple[Metrics, dict[str, Any]]:
    """Return metrics and workload statistics of the base scenario with the changes, ``[[path, value], ...]`` as JSON."""
    data = copy.deepcopy(BASE)
    for path, value in json.loads(changes):
        _put(data, path, value)
    other = "aggregated" if data["deployment"].get("mode") == "disaggregated" else "disaggregated"
    data["deployment"].pop(other, None)
    workload = load_workload(WorkloadConfig.model_validate(data["workload"]), 1)
    result = simulate(DeploymentConfig.model_validate(data["deployment"]), workload, seed=1)
    roots = np.diff(workload.after_offsets) == 0
    columns = {
        "roots": int(roots.sum()),
        "delay_s": float(workload.delay_s[~roots].sum()),
        "priority": float(workload.priority.mean()),
        "deadline_s": float(workload.deadline_s.mean()),
    }
    return summarize(result, {}, PriceConfig()), describe(workload) | columns


def measure(given: Mapping[str, Any], metric: str) -> float:
    """Return *metric* of the base scenario with the paths of *given* set in turn."""
    metrics, workload = _measure(json.dumps([*given.items()]))
    name, _, stat = metric.partition(".")
    if name != "workload":
        value = metrics.value(name, stat or None)
        assert value is not None
        return value
    found: Any = workload
    for key in stat.split("."):
        found = found[key]
    return float(found)


@pytest.mark.parametrize("knob", EFFECTS)
def test_effect(knob: str) -> None:
    effect = EFFECTS[knob]
    before, after = (
        measure({**effect.given, effect.path: value}, effect.metric) for value in (effect.before, effect.after)
    )
    assert (after != before) if effect.sign == 0 else (after - before) * effect.sign > 0.0, f"{before} -> {after}"
