"""Replays of NVIDIA Dynamo 1.6.1 on the workloads of ``tests/conformance/dynamo.json``, recorded from its public wheel.

python benchmarks/conformance/record_dynamo.py --peer .venv-conformance/dynamo-1.6.1/bin/python --write

Without ``--write`` it prints what the peer and this simulator give, side by side; with ``--trace`` and ``--replicas``
it does so for a Mooncake trace under the KV router. The peer adds the times of prefill and decode in a pass, computes a
prompt's last block again on a full hit, admits whole prompts only, and knows no time between passes. What makes this
simulator do the same: ``timing: polynomial``, ``async_scheduling: false``, one block more than the peer has (vLLM's
null block), hand-offs that take no time. The peer counts a batch's new tokens as requests times their mean in whole
tokens, a few tokens off where several prompts start in one pass; that is the 0.05 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dynosim.config import DeploymentConfig, TraceSource, WorkloadConfig
from dynosim.simulation import simulate
from dynosim.workload import load_workload
from dynosim.workload.table import Workload

FILE = Path(__file__).parents[2] / "tests" / "conformance" / "dynamo.json"
VERSION = "1.6.1"
MEASURES = ("mean_ttft_ms", "mean_e2e_latency_ms", "committed_prefill_tokens", "prefix_cache_reused_ratio")
"""What is recorded, under the peer's names."""
REUSE = "first_admission_prefix_cache_reused_ratio"
NO_TIME = {"bandwidth_gb_s": 1e300, "latency_us": 0.0}
CHILD = """
import json, sys
from dynamo._core import KvRouterConfig, run_mocker_trace_replay
call = json.load(sys.stdin)
router, runs = call.pop("router"), call.pop("runs")
for _ in range(runs):
    config = {"router_mode": "kv_router", "router_config": KvRouterConfig(**router)} if router is not None else {}
    print("RUN" + json.dumps(run_mocker_trace_replay(**call, **config).summary))
"""
"""What runs in the peer's environment."""


def deployment(case: dict[str, Any]) -> DeploymentConfig:
    """Return the deployment of *case* as this simulator takes it."""
    pool = {"tensor_parallel_size": 4, "num_gpu_blocks_override": case["blocks"] + 1, "block_size": case["block_size"]}
    config: dict[str, Any] = {
        "model": "llama-3.1-70b",
        "gpu": "h200_sxm",
        "timing": {"type": "polynomial"},
        "engine": {"async_scheduling": False},
        "router": {"policy": "round_robin" if case["router"] is None else "kv_aware", "options": case["router"] or {}},
    }
    if isinstance(case["replicas"], list):
        prefill, decode = (pool | {"replicas": replicas} for replicas in case["replicas"])
        config["mode"] = "disaggregated"
        config["disaggregated"] = {"prefill": prefill, "decode": decode, "kv_transfer": NO_TIME}
    else:
        config["aggregated"] = pool | {"replicas": case["replicas"]}
    return DeploymentConfig.model_validate(config)


def workload(case: dict[str, Any]) -> Workload:
    """Return the requests of *case*: a workload's configuration, or pairs of prompts of which one begins with the
    other."""
    if "pairs" not in case["workload"]:
        return load_workload(WorkloadConfig.model_validate(case["workload"]), 0)
    pairs, blocks, tokens = (case["workload"][name] for name in ("pairs", "blocks", "output_tokens"))
    gap_s, delay_s = case["workload"]["gap_s"], case["workload"]["delay_s"]
    rows = [(k * gap_s + late * delay_s, k, late) for k in range(pairs) for late in (0, 1)]
    rows.sort()
    ids = [k * (blocks + 1) + np.arange(blocks + late) for _, k, late in rows]
    lengths = np.array([len(each) for each in ids])
    return Workload(
        "pairs",
        np.array([row[0] for row in rows]),
        512 * lengths,
        np.full(len(rows), tokens),
        512,
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate(ids),
    )


def ours(case: dict[str, Any], seed: int = 0) -> dict[str, float]:
    """Return what this simulator makes of *case*."""
    result = simulate(deployment(case), workload(case), seed)
    requests, ms = result.requests, 1e3 * result.requests["arrival_s"]
    return {
        "mean_ttft_ms": float((1e3 * requests["first_token_s"] - ms).mean()),
        "mean_e2e_latency_ms": float((1e3 * requests["last_token_s"] - ms).mean()),
        "committed_prefill_tokens": float(sum(pool.prefill_tokens for pool in result.pools)),
        "prefix_cache_reused_ratio": float(requests["cached_tokens"].sum() / requests["input_tokens"].sum()),
    }


def peer(python: str, case: dict[str, Any]) -> list[dict[str, float]]:
    """Return what the peer makes of *case*, run by run: its router draws from a seed that nobody can set."""
    table, roles = workload(case), ("prefill", "decode")
    engine = {"backend": "vllm", "num_gpu_blocks": case["blocks"], "block_size": case["block_size"]}
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(_lines(table))
        file.flush()
        call: dict[str, Any] = {"trace_files": [file.name], "router": case["router"], "runs": case["runs"]}
        call |= {"trace_block_size": table.hash_block_tokens or None, "replay_concurrency": table.concurrency}
        if isinstance(case["replicas"], list):
            call |= {f"{role}_engine_args": {"engine": engine | {"worker_type": role}} for role in roles}
            call |= dict(zip((f"num_{role}_workers" for role in roles), case["replicas"], strict=True))
        else:
            call |= {"extra_engine_args": {"engine": engine}, "num_workers": case["replicas"]}
        found = subprocess.run(
            [python, "-c", CHILD], input=json.dumps(call), env={"DYN_LOG": "error"}, text=True, check=True,
            stdout=subprocess.PIPE,
        )  # fmt: skip
    runs = [json.loads(line[3:]) for line in found.stdout.splitlines() if line.startswith("RUN")]
    return [{name: run[REUSE if "reused" in name else name] for name in MEASURES} for run in runs]


def _lines(table: Workload) -> list[str]:
    lines = []
    for i in range(len(table)):
        line: dict[str, Any] = {
            "timestamp": 1e3 * float(table.arrival_s[i]),
            "input_length": int(table.input_tokens[i]),
            "output_length": int(table.output_tokens[i]),
        }
        if table.hash_block_tokens:
            start = table.hash_offsets[i]
            blocks = -(-table.input_tokens[i] // table.hash_block_tokens)
            line["hash_ids"] = table.hash_ids[start : start + blocks].tolist()
        lines.append(json.dumps(line) + "\n")
    return lines


def show(name: str, found: dict[str, float], runs: list[dict[str, float]]) -> None:
    """Print *found* beside the peer's *runs*."""
    for measure in MEASURES:
        values = [run[measure] for run in runs]
        print(f"{name:24} {measure:28} {found[measure]:14.6g} {min(values):14.6g} to {max(values):.6g}", flush=True)


def main() -> None:
    """Record, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", required=True, help=f"Python with ai-dynamo-runtime=={VERSION}")
    parser.add_argument("--write", action="store_true", help="record what the peer gives")
    parser.add_argument("--case", action="append", help="only this one; repeatable")
    parser.add_argument("--trace", help="Mooncake trace to compare on instead")
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--speedup", type=float, default=8.0)
    args = parser.parse_args()
    cases = json.loads(FILE.read_text())["cases"]
    if args.trace:
        source = WorkloadConfig(source=TraceSource(path=args.trace)).model_dump(mode="json")
        load = {"type": "trace_timestamps", "speedup": args.speedup}
        common = {"blocks": 16384, "block_size": 512, "router": {}, "runs": 2}
        cases = {"trace": common | {"workload": source | {"load": load}, "replicas": args.replicas}}
    for name, case in cases.items():
        if not args.case or name in args.case:
            case["peer"] = peer(args.peer, case)
            show(name, ours(case), case["peer"])
    if args.write and not args.trace:
        FILE.write_text(json.dumps({"version": VERSION, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
