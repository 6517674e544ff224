"""How fast the simulator replays a workload: one JSON line, warm, the simulation call only.

python benchmarks/replay.py --trace ../shared/traces/mooncake_conversation_trace.jsonl.gz --replicas 8
python benchmarks/replay.py --prefill 4 --decode 4 --router kv_aware          # the bundled chat profile
"""

from __future__ import annotations

import argparse
import json
import resource
import time

from dynosim.config import DeploymentConfig, PriceConfig, ProfileSource, TraceSource, WorkloadConfig
from dynosim.metrics import summarize
from dynosim.simulation import simulate
from dynosim.workload import load_workload


def rss_mb() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def deployment(args: argparse.Namespace) -> DeploymentConfig:
    """The neighbour's reference deployment: polynomial timing, 16,384 blocks of 512 tokens."""
    pool = {
        "tensor_parallel_size": 4,
        "num_gpu_blocks_override": args.blocks,
        "block_size": args.block_size,
    }
    sections = (
        {
            "mode": "disaggregated",
            "disaggregated": {
                "prefill": pool | {"replicas": args.prefill},
                "decode": pool | {"replicas": args.decode},
            },
        }
        if args.prefill
        else {"aggregated": pool | {"replicas": args.replicas}}
    )
    return DeploymentConfig.model_validate(
        {
            "model": "llama-3.1-70b",
            "gpu": "h200_sxm",
            "timing": {"type": args.timing},
            "router": {"policy": args.router},
            **sections,
        }
    )


def main() -> None:
    """Replay, and print what it took and what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", help="trace file; the bundled chat profile where not given")
    parser.add_argument("--requests", type=int, help="only the first so many requests")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--prefill", type=int, default=0, help="prefill replicas; disaggregates")
    parser.add_argument("--decode", type=int, default=4, help="decode replicas, with --prefill")
    parser.add_argument("--router", default="round_robin")
    parser.add_argument("--timing", default="polynomial", choices=["polynomial", "roofline", "pack"])
    parser.add_argument("--blocks", type=int, default=16384, help="KV blocks per replica")
    parser.add_argument("--block-size", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=5, help="the fastest of so many warm runs counts")
    args = parser.parse_args()
    source = TraceSource(path=args.trace) if args.trace else ProfileSource()
    workload = load_workload(WorkloadConfig(source=source, max_requests=args.requests), 0)
    config, baseline_mb = deployment(args), rss_mb()
    simulate(config, workload.head(10))
    walls = []
    for _ in range(args.repeat):
        start = time.perf_counter()
        result = simulate(config, workload)
        walls.append(time.perf_counter() - start)
    metrics = summarize(result, {}, PriceConfig())
    gaps = metrics.values["inter_chunk_latency"]
    print(
        json.dumps(
            {
                "wall_s": round(min(walls), 4),
                "requests": len(workload),
                "simulated_s": round(result.duration_s, 3),
                "rss_mb": round(rss_mb(), 1),
                "rss_over_imports_mb": round(rss_mb() - baseline_mb, 1),
                "deployment": config.label(),
                "router": args.router,
                "ttft_ms": metrics.value("time_to_first_token"),
                "ttft_p99_ms": metrics.value("time_to_first_token", "p99"),
                "icl_ms": gaps and gaps["avg"],
                "icl_p99_ms": gaps and gaps["p99"],
                "prefix_reuse": metrics.value("prefix_cache_hit_rate"),
            }
        )
    )


if __name__ == "__main__":
    main()
