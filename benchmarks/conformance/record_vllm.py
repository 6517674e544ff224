"""Record what vLLM's own scheduler decides in every scenario of tests/conformance/vllm, and name what differs.

    python benchmarks/conformance/record_vllm.py            # compare with what is recorded; exit code 1 on a difference
    python benchmarks/conformance/record_vllm.py --write    # record

Runs in an environment with vLLM and without dynosim: ``make conformance`` builds it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import fixtures
import vllm
from clients import Clients
from token_ids import Tokens
from vllm_engine import Engine

IDLE_STEPS = 8
"""Steps without a pass after which the engine has nothing to do until another request comes."""


def serve(deployment: dict[str, Any], workload: dict[str, Any]) -> dict[str, list[Any]]:
    """Return what became of each request; see ``fixtures.COLUMNS``."""
    tokens, clients = Tokens(workload), Clients(workload)
    engine, count = Engine(deployment, tokens), len(tokens)
    priority = workload.get("priority", [0] * count)
    sent, first, last = [0.0] * count, [None] * count, [0.0] * count
    idle = 0
    while engine.busy or clients.next_s is not None:
        if not engine.busy or idle > IDLE_STEPS:
            if clients.next_s is None:
                raise SystemExit("a request waits for room that never comes: it fits in no KV cache of this size")
            engine.clock.now, idle = max(engine.clock.now, clients.next_s), 0
        for time, i in clients.due(engine.clock.now):
            sent[i] = time
            engine.add(i, time, priority[i])
        before = engine.executor.passes
        outputs = engine.step()
        idle = 0 if outputs or engine.executor.passes > before else idle + 1
        for i, ended in outputs:
            first[i], last[i] = first[i] or engine.clock.now, engine.clock.now
            if ended:
                clients.end(i, last[i])
    return {
        "ttft_s": [round(shown - since, fixtures.DIGITS) for shown, since in zip(first, sent, strict=True)],
        "finish_s": [round(time, fixtures.DIGITS) for time in last],
        "cached_tokens": [stats.num_local_cached_tokens for stats in engine.cached],
        "preemptions": [engine.requests[f"{i:06d}"].num_preemptions for i in range(count)],
    }


def main() -> int:
    """Run every scenario in both modes; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="record instead of comparing")
    parser.add_argument("names", nargs="*", help="scenarios; all where none is named")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # that a CPU is slower than a GPU
    return fixtures.rerun("vllm", vllm.__version__, serve, arguments.names, keep=arguments.write)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # an orderly end prints pages about what Triton's bindings have not freed
