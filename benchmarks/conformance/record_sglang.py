"""Record what SGLang's own scheduler decides in every scenario of tests/conformance/sglang, and name what differs.

    python benchmarks/conformance/record_sglang.py                  # compare with what is recorded; 1 on a difference
    python benchmarks/conformance/record_sglang.py --write          # record
    python benchmarks/conformance/record_sglang.py --passes NAME    # and print each pass: [request, prompt tokens] ...

Runs in an environment with SGLang and without dynosim: ``make conformance`` builds it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import sys
from functools import partial
from typing import Any

import fixtures
from sglang_engine import Engine


def serve(deployment: dict[str, Any], workload: dict[str, Any], show: bool) -> dict[str, list[Any]]:
    """Return what became of each request; see ``fixtures.COLUMNS``."""
    engine = Engine(deployment, workload)
    engine.run()
    for decision in engine.passes if show else ():
        print(*decision)
    requests = range(len(engine.tokens))
    return {
        "ttft_s": [round(engine.first[i] - engine.sent[i], fixtures.DIGITS) for i in requests],
        "finish_s": [round(engine.last[i], fixtures.DIGITS) for i in requests],
        "cached_tokens": [engine.reqs[i].cached_tokens for i in requests],
        "preemptions": [engine.reqs[i].retraction_count for i in requests],
    }


def main() -> int:
    """Run every scenario in both modes; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="record instead of comparing")
    parser.add_argument("--passes", action="store_true", help="print every pass")
    parser.add_argument("names", nargs="*", help="scenarios; all where none is named")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    version, serves = importlib.metadata.version("sglang"), partial(serve, show=arguments.passes)
    return fixtures.rerun("sglang", version, serves, arguments.names, keep=arguments.write)


if __name__ == "__main__":
    sys.exit(main())
