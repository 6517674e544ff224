"""How fast the simulator replays a workload: one table with targets, warm, the simulation call only.

python benchmarks/replay.py --trace mooncake_conversation_trace.jsonl.gz
python benchmarks/replay.py --case "8 KV-aware" --json      # the bundled chat profile, one JSON line

Every case runs in a process of its own, so that memory is its own too. The deployment is NVIDIA DynoSim's default:
polynomial timing, 16,384 blocks of 512 tokens. Targets hold for the 12,031-request conversation
trace on two cores.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dynosim.config import DeploymentConfig, PriceConfig, ProfileSource, TraceSource, WorkloadConfig
from dynosim.metrics import summarize
from dynosim.simulation import simulate
from dynosim.workload import load_workload
from dynosim.workload.table import Workload

POOL = {"tensor_parallel_size": 4, "num_gpu_blocks_override": 16384, "block_size": 512}
PRESSED = POOL | {"num_gpu_blocks_override": 512}
"""262,144 tokens: the longest prompts take half of it."""


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    pools: dict[str, dict[str, Any]]
    """Role -> pool; ``aggregated`` or ``prefill`` and ``decode``."""
    target_s: float | None = None
    """Wall time wanted; none where the target is relative."""
    router: str = "round_robin"
    copies: float = 1
    """Times the workload is repeated, one after the other."""
    more: dict[str, Any] = field(default_factory=dict)

    def deployment(self) -> DeploymentConfig:
        """Return the deployment to be simulated."""
        split = "prefill" in self.pools
        return DeploymentConfig.model_validate(
            {
                "model": "llama-3.1-70b",
                "gpu": "h200_sxm",
                "timing": {"type": "polynomial"},
                "router": {"policy": self.router},
                **({"mode": "disaggregated", "disaggregated": self.pools} if split else self.pools),
            }
        )


def _same(replicas: int, pool: dict[str, Any] = POOL, **more: Any) -> dict[str, dict[str, Any]]:
    return {"aggregated": pool | {"replicas": replicas} | more}


LARGE, SMALL = "1,000,000 requests, 64 KV-aware", "64 KV-aware"
CASES = {
    "8 round robin": Case(_same(8), 0.10),
    "8 KV-aware": Case(_same(8), 0.35, "kv_aware"),
    "64 round robin": Case(_same(64), 0.20),
    "4 prefill + 4 decode": Case({"prefill": POOL | {"replicas": 4}, "decode": POOL | {"replicas": 4}}, 0.40),
    "8 with host tier, KV pressure": Case(_same(8, PRESSED, kv_offload={"host": {"size_gib": 400.0}}), 0.40),
    SMALL: Case(_same(64), None, "kv_aware"),
    LARGE: Case(_same(64), None, "kv_aware", copies=1_000_000),
}
LARGE_FACTOR, LARGE_BYTES, COLD_START_S = 1.3, 1000.0, 2.0
"""Time per request against the small run, bytes per request, and a second process to its first result."""


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes() -> int:
    """Resident memory of this process now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def repeated(workload: Workload, requests: int) -> Workload:
    """Return *requests* requests: copies of *workload* one after the other, each with prompts of its own."""
    copies = -(-requests // len(workload))
    if copies <= 1:
        return workload
    number, ids = np.arange(copies), workload.hash_ids

    def shifted(column: Any, by: Any) -> Any:
        return (column + number[:, None] * by).ravel()

    whole = Workload(
        workload.name,
        shifted(workload.arrival_s, float(workload.arrival_s[-1]) + 1.0),
        np.tile(workload.input_tokens, copies),
        np.tile(workload.output_tokens, copies),
        workload.hash_block_tokens,
        np.append(shifted(workload.hash_offsets[:-1], len(ids)), copies * len(ids)),
        shifted(ids, int(ids.max()) + 1),
    )
    return whole.head(requests)


def run(name: str, trace: str | None, requests: int | None, repeat: int) -> dict[str, Any]:
    """Return what one case took and gave; its memory is what the process grew by from before the workload is there."""
    case, source = CASES[name], TraceSource(path=trace) if trace else ProfileSource()
    workload = load_workload(WorkloadConfig(source=source, max_requests=requests), 0)
    config = case.deployment()
    simulate(config, workload.head(10))
    gc.collect()
    before = resident_bytes()
    workload = repeated(workload, int(case.copies)) if case.copies > 1 else workload
    walls = []
    for _ in range(1 if case.copies > 1 else repeat):
        start = time.perf_counter()
        result = simulate(config, workload)
        walls.append(time.perf_counter() - start)
    grown = peak_bytes() - before
    metrics = summarize(result, {}, PriceConfig())
    return {
        "case": name,
        "requests": len(workload),
        "wall_s": min(walls),
        "us_per_request": 1e6 * min(walls) / len(workload),
        "target_s": case.target_s,
        "grown_mb": grown / 1e6,
        "bytes_per_request": grown / len(workload),
        "simulated_s": result.duration_s,
        "ttft_ms": metrics.value("time_to_first_token"),
        "ttft_p99_ms": metrics.value("time_to_first_token", "p99"),
        "icl_ms": metrics.value("inter_chunk_latency"),
        "icl_p99_ms": metrics.value("inter_chunk_latency", "p99"),
        "prefix_reuse": metrics.value("prefix_cache_hit_rate"),
        "host_reuse": metrics.value("host_cache_hit_rate"),
    }


def cold_start_s() -> float:
    """Return how long a process takes from its start to its first result once the compiled code is on disk."""
    code = "import dynosim; print(dynosim.predict('tiny').metrics.value('time_to_first_token'))"
    walls = []
    for _ in range(4):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        walls.append(time.perf_counter() - start)
    return min(walls[1:])


def rows(found: dict[str, dict[str, Any]], cold_s: float | None) -> list[tuple[str, str, str, str]]:
    """Return (case, target, measured, verdict) of the table."""
    out = []
    for name, got in found.items():
        if got["target_s"] is not None:
            out.append(_row(name, got["wall_s"], got["target_s"], "{:.3f} s"))
    if LARGE in found:
        ratio = found[LARGE]["us_per_request"] / found[SMALL]["us_per_request"]
        requests = f"{found[LARGE]['requests']:,}"
        out.append(_row(f"{LARGE}: time per request / {SMALL}", ratio, LARGE_FACTOR, "{:.2f}"))
        out.append(
            _row(f"{requests} requests: memory each", found[LARGE]["bytes_per_request"], LARGE_BYTES, "{:.0f} B")
        )
    if cold_s is not None:
        out.append(_row("second process to its first result", cold_s, COLD_START_S, "{:.2f} s"))
    return out


def _row(name: str, measured: float, target: float, form: str) -> tuple[str, str, str, str]:
    return name, "<= " + form.format(target), form.format(measured), "ok" if measured <= target else "MISSED"


def main() -> None:
    """Run the cases and print the table, or what they gave as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", help="trace file; the bundled chat profile where not given")
    parser.add_argument("--case", action="append", choices=CASES, help="only this one; repeatable")
    parser.add_argument("--requests", type=int, help="requests taken from the start of the source")
    parser.add_argument("--repeat", type=int, default=7, help="warm runs, of which the fastest counts")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of the table")
    args = parser.parse_args()
    if args.json and args.case and len(args.case) == 1:
        return print(json.dumps(run(args.case[0], args.trace, args.requests, args.repeat)), flush=True)
    found = {}
    for name in args.case or CASES:
        given = [
            f"--{key}={value}" for key, value in vars(args).items() if value and key in ("trace", "requests", "repeat")
        ]
        command = [sys.executable, __file__, "--json", "--case", name, *given]
        line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[name] = json.loads(line)
        if args.json:
            print(line, end="", flush=True)
    cold_s = None if args.case else cold_start_s()
    if args.json:
        return print(json.dumps({"case": "cold start", "wall_s": cold_s}) if cold_s else "", end="\n" if cold_s else "")
    table = [("case", "target", "measured", ""), *rows(found, cold_s)]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    for row in table:
        print(row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)))
    return None


if __name__ == "__main__":
    main()
