"""How fast and small the simulator is: one table of CPU seconds and bytes with the values to reach.

python benchmarks/replay.py --trace mooncake_conversation_trace.jsonl.gz                    # the whole table
python benchmarks/replay.py --trace TRACE --peer dynamo/bin/python                          # NVIDIA's replay beside it
python benchmarks/replay.py --trace TRACE --replicas 64 --router kv_aware --speedup 8 --json  # one run, one JSON line

Times are CPU seconds, as other processes disturb them least: of one call of ``simulate``, warm, the fastest of
``--repeat``; of whole commands, of all their processes. Every row is measured in a process of its own, so that
its memory is its own too. The deployment is NVIDIA DynoSim's default: polynomial timing, 16,384 blocks of 512 tokens.
``--peer`` is a Python with ai-dynamo-runtime 1.6.1; its time is that of its replay call, reading of the trace included.
The values to reach hold for the 12,031 requests of the conversation trace on two cores.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dynosim.config import DeploymentConfig, PriceConfig, ProfileSource, TraceLoad, TraceSource, WorkloadConfig
from dynosim.metrics import summarize
from dynosim.simulation import SimulationResult, simulate
from dynosim.workload import load_workload
from dynosim.workload.table import Workload

POOL = {"tensor_parallel_size": 4, "num_gpu_blocks_override": 16384, "block_size": 512}
KV_BYTES_PER_TOKEN = 327_680
"""Of Llama 3.1 70B in bf16."""
LINK_GB_S = 50.0
PEER = """
import json, sys, time
from dynamo._core import run_mocker_trace_replay
given = json.loads(sys.argv[1])
start = time.process_time()
result = run_mocker_trace_replay(**given)
cpu_s = time.process_time() - start
found = result.summary
print(json.dumps({"cpu_s": cpu_s, "ttft_ms": found["mean_ttft_ms"], "reuse": found["prefix_cache_reused_ratio"]}))
"""


@dataclass(frozen=True)
class Run:
    """A deployment and its load."""

    replicas: int = 8
    router: str = "round_robin"
    speedup: float = 1.0
    """Factor on the rate of arrivals."""
    split: bool = False
    """Half of the replicas prefill, half decode, and hand-offs share the links of both."""

    def deployment(self) -> DeploymentConfig:
        """Return the deployment to be simulated."""
        half = POOL | {"replicas": self.replicas // 2}
        split = {"prefill": half, "decode": half, "kv_transfer": {"bandwidth_gb_s": LINK_GB_S / 4.0}}
        mode = {"mode": "disaggregated", "disaggregated": split}
        fields = mode if self.split else {"aggregated": POOL | {"replicas": self.replicas}}
        common = {"model": "llama-3.1-70b", "gpu": "h200_sxm", "timing": {"type": "polynomial"}}
        return DeploymentConfig.model_validate(common | fields | {"router": {"policy": self.router}})

    def workload(self, trace: str | None, requests: int | None) -> Workload:
        """Return the first *requests* of the trace, or of the bundled chat profile, repeated where there are fewer."""
        source = TraceSource(path=trace) if trace else ProfileSource()
        load = {"load": TraceLoad(speedup=self.speedup)} if trace else {}
        found = load_workload(WorkloadConfig(source=source, **load), 0)
        return repeated(found, requests or len(found))

    def of_peer(self, trace: str, requests: int | None) -> dict[str, Any]:
        """Return the arguments of the same run of ``dynamo.replay``."""
        replicas, half = self.replicas, self.replicas // 2
        engines: dict[str, Any] = {"extra_engine_args": _engine("aggregated"), "num_workers": replicas}
        if self.split:
            engines = {f"{role}_engine_args": _engine(role) for role in ("prefill", "decode")}
            engines |= {"num_prefill_workers": half, "num_decode_workers": half}
        router = "kv_router" if self.router == "kv_aware" else "round_robin"
        return engines | {"router_mode": router, "arrival_speedup_ratio": self.speedup, "trace_block_size": 512}


def _engine(role: str) -> dict[str, Any]:
    engine = {"backend": "vllm", "num_gpu_blocks": 16384, "block_size": 512, "worker_type": role}
    if role != "aggregated":
        engine |= {"kv_transfer_bytes_per_token": KV_BYTES_PER_TOKEN, "kv_transfer_bandwidth": LINK_GB_S}
    return {"engine": engine, "tensor_parallel_size": 4, "num_gpu_blocks_is_explicit": True}


@dataclass(frozen=True)
class Row:
    """One row of the table: a kind of measurement, of a run where it is one, and the value to reach."""

    measure: str
    goal: float
    unit: str
    run: Run = Run()
    requests: int | None = None


ROWS = {
    "8 round robin": Row("simulate_s", 0.04, "s"),
    "8 KV-aware": Row("simulate_s", 0.06, "s", Run(8, "kv_aware")),
    "64 KV-aware, speed-up 8": Row("simulate_us", 10.0, "us/request", Run(64, "kv_aware", 8.0)),
    "1,000 KV-aware, speed-up 125": Row("simulate_s", 0.36, "s", Run(1000, "kv_aware", 125.0)),
    "4 prefill + 4 decode, KV-aware, links": Row("simulate_s", 0.09, "s", Run(8, "kv_aware", split=True)),
    "summary": Row("summarize_us", 1.0, "us/request"),
    "memory per request, 240,000 requests": Row("bytes_per_request", 1000.0, "B", requests=240_000),
    "memory of 1,000 replicas": Row("engine_mb", 100.0, "MB", Run(1000, "kv_aware", 125.0)),
    "predict, 10 requests, whole command": Row("predict_s", 0.8, "s", requests=10),
    "predict, nothing compiled yet": Row("cold_s", 15.0, "s", requests=10),
}


def repeated(workload: Workload, requests: int) -> Workload:
    """Return *requests* requests: copies of *workload* one after the other, each with prompts of its own."""
    copies = -(-requests // len(workload))
    if copies <= 1:
        return workload.head(requests)
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


# -------------------------------------------------------------------------------------------------------- measurements


def resident_bytes() -> int:
    """Return the resident memory of this process now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def reset_peak() -> None:
    """Forget the largest resident memory that this process has had (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return the largest resident memory since ``reset_peak``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def fastest(call: Callable[[], Any], repeat: int) -> tuple[float, Any]:
    """Return the CPU seconds of the fastest of *repeat* calls, and what the last one returned."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        found = call()
        times.append(time.process_time() - start)
    return min(times), found


def measure(run: Run, trace: str | None, requests: int | None, repeat: int) -> dict[str, Any]:
    """Return what one run took and gave. Memory per request is what the process grew by, its workload included (not
    reading it); ``engine_mb`` is what it grew by once the workload was there."""
    config = run.deployment()
    summarize(simulate(Run(1).deployment(), run.workload(trace, 10)), {}, PriceConfig())
    gc.collect()
    before = resident_bytes()
    workload = run.workload(trace, requests)
    loaded = resident_bytes()
    reset_peak()
    once: SimulationResult = simulate(config, workload)
    metrics = summarize(once, {}, PriceConfig())
    peak = peak_bytes()
    simulate_s, _ = fastest(lambda: simulate(config, workload), repeat)
    summarize_s, _ = fastest(lambda: summarize(once, {}, PriceConfig()), repeat)
    n = len(workload)
    return {
        **asdict(run),
        "requests": n,
        "simulate_s": simulate_s,
        "simulate_us": 1e6 * simulate_s / n,
        "summarize_us": 1e6 * summarize_s / n,
        "engine_mb": (peak - loaded) / 1e6,
        "bytes_per_request": (peak - before) / n,
        "simulated_s": once.duration_s,
        "ttft_ms": metrics.value("time_to_first_token"),
        "ttft_p99_ms": metrics.value("time_to_first_token", "p99"),
        "icl_ms": metrics.value("inter_chunk_latency"),
        "reuse": metrics.value("prefix_cache_hit_rate"),
    }


def command_s(requests: int, cache: str | None, repeat: int) -> float:
    """Return the CPU seconds of a whole ``dynosim predict``, compiled code being in *cache* (None: the usual place)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scenario.yaml"
        workload = {"source": {"type": "profile", "requests": requests}}
        file.write_text(
            yaml.safe_dump(
                {"name": "replay", "deployment": Run().deployment().model_dump(mode="json"), "workload": workload}
            )
        )
        environment = os.environ | ({"DYNOSIM_CACHE_DIR": cache} if cache else {})
        command = [sys.executable, "-m", "dynosim", "predict", str(file)]
        times = []
        for _ in range(repeat):
            start = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
            end = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime)
    return min(times)


def peer_s(python: str, run: Run, trace: str, requests: int | None) -> dict[str, Any]:
    """Return CPU seconds and results of the same run by ``dynamo.replay``, which reads uncompressed JSON lines."""
    with tempfile.TemporaryDirectory() as folder:
        opened = gzip.open(trace, "rt") if trace.endswith(".gz") else open(trace)  # noqa: SIM115
        with opened as lines:
            kept = [line for number, line in enumerate(lines) if requests is None or number < requests]
        file = Path(folder) / "trace.jsonl"
        file.write_text("".join(kept))
        given = run.of_peer(trace, requests) | {"trace_files": [str(file)]}
        quiet = os.environ | {"DYN_LOG": "error"}
        command = [python, "-c", PEER, json.dumps(given)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=quiet)
    return dict(json.loads(done.stdout.splitlines()[-1]))


# --------------------------------------------------------------------------------------------------------- the table


def measured(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return a row: what was measured, the value to reach, whether it was, and the peer's CPU seconds."""
    row, peer = ROWS[name], None
    requests = row.requests if args.requests is None else min(args.requests, row.requests or args.requests)
    if row.measure == "predict_s":
        value = command_s(requests or 10, None, 3)
    elif row.measure == "cold_s":
        with tempfile.TemporaryDirectory() as cache:
            value = command_s(requests or 10, cache, 1)
    else:
        found = of_process(row.run, args, requests, 1 if row.requests else args.repeat)
        value = found[row.measure]
        if args.peer and row.measure.startswith("simulate"):
            peer = peer_s(args.peer, row.run, args.trace, requests)["cpu_s"]
    return {"row": name, "value": value, "goal": row.goal, "unit": row.unit, "met": value <= row.goal, "peer_s": peer}


def of_process(run: Run, args: argparse.Namespace, requests: int | None, repeat: int) -> dict[str, Any]:
    """Return what ``measure`` finds in a process of its own."""
    command = [sys.executable, __file__, "--json", f"--replicas={run.replicas}", f"--router={run.router}"]
    command += [f"--speedup={run.speedup}", f"--repeat={repeat}", *(["--split"] if run.split else [])]
    command += [f"--trace={args.trace}"] if args.trace else []
    command += [f"--requests={requests}"] if requests else []
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as text."""
    lines = [("", "measured", "to reach", "", "peer")]
    for row in rows:
        peer = "" if row["peer_s"] is None else f"{row['peer_s']:.2f} s"
        verdict = "ok" if row["met"] else "MISSED"
        lines.append((row["row"], f"{row['value']:.3g} {row['unit']}", f"{row['goal']:g} {row['unit']}", verdict, peer))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(" ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trace", help="Mooncake trace file; the bundled chat profile where not given")
    parser.add_argument("--row", action="append", choices=ROWS, help="only this one of the table; repeatable")
    parser.add_argument("--replicas", type=int, help="one run instead of the table, on N replicas")
    parser.add_argument("--router", default="round_robin", help="of the one run")
    parser.add_argument("--speedup", type=float, default=1.0, help="factor on the rate of arrivals of the one run")
    parser.add_argument("--split", action="store_true", help="half of the replicas prefill, half decode")
    parser.add_argument("--requests", type=int, help="requests taken from the start of the source")
    parser.add_argument("--repeat", type=int, default=7, help="warm runs, of which the fastest counts")
    parser.add_argument("--peer", metavar="PYTHON", help="a Python with ai-dynamo-runtime 1.6.1, to run the same")
    parser.add_argument("--json", action="store_true", help="one JSON line instead of a table")
    args = parser.parse_args(arguments)
    if args.peer and not args.trace:
        parser.error("--peer needs a --trace that both can read")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Measure one run or the table, and print it."""
    args = parse(arguments)
    if args.replicas is None:
        rows = [measured(name, args) for name in args.row or ROWS]
        print(json.dumps(rows) if args.json else table(rows), flush=True)
        return
    run = Run(args.replicas, args.router, args.speedup, args.split)
    found = measure(run, args.trace, args.requests, args.repeat)
    if args.peer:
        found["peer"] = peer_s(args.peer, run, args.trace, args.requests)
    print(json.dumps(found) if args.json else "\n".join(f"{name:20} {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
