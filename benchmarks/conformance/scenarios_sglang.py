"""Make the scenarios of tests/conformance/sglang: small, each about one rule of the scheduler, or several together.

    python benchmarks/conformance/scenarios_sglang.py [NAME ...]

What a scenario was recorded with is lost when it changes: record again after this.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

import fixtures
import numpy as np
from scenarios_vllm import FIXED, POLYNOMIAL, Draw, plain, repeats, shared


@dataclass(frozen=True)
class Scenario:
    """One scenario: the fields beside a default of 16 seats, chunks of 1,024 tokens and room for all."""

    about: str
    workload: Draw
    pool: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, Any] = field(default_factory=lambda: FIXED)

    def content(self, name: str) -> dict[str, Any]:
        """Return the file's content, without recorded results; the generator's seed is the name."""
        pool = {"block_size": 1, "max_num_seqs": 16, "max_num_batched_tokens": 1024, "num_gpu_blocks_override": 16000}
        deployment = {
            "model": "llama-3.1-8b",
            "gpu": "h200_sxm",
            "engine": {"name": "sglang"} | self.engine,
            "timing": self.timing,
            "aggregated": pool | self.pool,
        }
        columns = self.workload(np.random.default_rng(list(name.encode())))
        workload = {
            key: column.tolist() if isinstance(column, np.ndarray) else column for key, column in columns.items()
        }
        return {"about": self.about, "deployment": deployment, "workload": workload, "recorded": {}}


PAGES = {"block_size": 16, "num_gpu_blocks_override": 4000}
SCENARIOS: dict[str, Scenario] = {
    "light": Scenario("few requests at a time", plain(40, 4.0, (10, 400), (1, 60))),
    "burst": Scenario("all at once", plain(60, np.inf, (5, 400), (1, 50)), {"max_num_seqs": 64}, timing=POLYNOMIAL),
    "seats": Scenario("the batch is full", plain(60, 40.0, (5, 200), (5, 60)), {"max_num_seqs": 8}),
    "short_answers": Scenario(
        "answers of one to three tokens, and no seat to spare", plain(80, 60.0, (5, 300), (1, 3)), {"max_num_seqs": 4}
    ),
    "chunks": Scenario(
        "prompts of several passes",
        plain(30, 6.0, (100, 3000), (1, 40)),
        {"max_num_batched_tokens": 512},
        timing=POLYNOMIAL,
    ),
    "chunks_pages": Scenario(
        "prompts of several passes of whole pages",
        plain(30, 6.0, (100, 3000), (1, 40)),
        PAGES | {"max_num_batched_tokens": 512},
    ),
    "prefill_tokens": Scenario(
        "max_prefill_tokens below the chunk", plain(50, 30.0, (20, 900), (1, 30)), PAGES, {"max_prefill_tokens": 700}
    ),
    "unchunked": Scenario(
        "chunked prefill is off",
        plain(40, 20.0, (20, 900), (1, 30)),
        {"enable_chunked_prefill": False},
        {"max_prefill_tokens": 1024},
    ),
    "mixed": Scenario(
        "prefills carry decodes along",
        plain(40, 20.0, (50, 1500), (5, 60)),
        {"max_num_batched_tokens": 512},
        {"enable_mixed_chunk": True},
        POLYNOMIAL,
    ),
    "reserve": Scenario(
        "room for a share of the answers to come",
        plain(60, 40.0, (20, 300), (20, 200)),
        {"num_gpu_blocks_override": 3000},
    ),
    "reserve_ignore_eos": Scenario(
        "room for whole answers",
        plain(60, 40.0, (20, 300), (20, 200)),
        {"num_gpu_blocks_override": 3000},
        {"ignore_eos": True},
    ),
    "reserve_pages": Scenario(
        "room for whole answers, in pages",
        plain(60, 40.0, (20, 300), (20, 200)),
        {"block_size": 16, "num_gpu_blocks_override": 200},
        {"ignore_eos": True},
    ),
    "retraction": Scenario(
        "KV runs out while answers grow",
        plain(60, 40.0, (20, 200), (100, 400)),
        {"num_gpu_blocks_override": 2500},
        {"schedule_conservativeness": 0.1},
    ),
    "retraction_pages": Scenario(
        "KV pages run out while answers grow",
        plain(60, 40.0, (20, 200), (100, 400)),
        {"block_size": 16, "num_gpu_blocks_override": 160},
        {"schedule_conservativeness": 0.1},
    ),
    "retraction_mixed": Scenario(
        "KV runs out while prefills carry decodes along",
        plain(60, 40.0, (20, 900), (50, 300)),
        {"num_gpu_blocks_override": 3500, "max_num_batched_tokens": 256},
        {"schedule_conservativeness": 0.1, "enable_mixed_chunk": True},
    ),
    "retraction_prefix": Scenario(
        "KV runs out while answers to shared prompts grow",
        shared(60, 40.0, 4, 8, (20, 100), (100, 400)),
        {"num_gpu_blocks_override": 2500},
        {"schedule_conservativeness": 0.1},
    ),
    "conservative": Scenario(
        "more room than the answers need", plain(60, 40.0, (20, 200), (50, 300)), {"num_gpu_blocks_override": 3000},
        {"schedule_conservativeness": 1.3},
    ),
    "no_cache": Scenario(
        "no radix cache and known lengths: the frees to come are foreseen",
        plain(60, 40.0, (20, 300), (20, 200)),
        {"num_gpu_blocks_override": 3000, "enable_prefix_caching": False},
        {"ignore_eos": True},
    ),
    "no_cache_pages": Scenario(
        "no radix cache, known lengths, pages and chunks",
        plain(60, 40.0, (20, 900), (20, 200)),
        {
            "block_size": 16,
            "num_gpu_blocks_override": 250,
            "enable_prefix_caching": False,
            "max_num_batched_tokens": 256,
        },
        {"ignore_eos": True},
    ),
    "no_cache_eos": Scenario(
        "no radix cache and lengths that only the client knows",
        plain(60, 40.0, (20, 300), (20, 200)),
        {"num_gpu_blocks_override": 2000, "enable_prefix_caching": False},
        {"schedule_conservativeness": 0.2},
    ),
    "prefix": Scenario("system prompts", shared(60, 30.0, 4, 12, (5, 120), (1, 40))),
    "prefix_lpm": Scenario(
        "longest prefix first, and the first of a kind alone",
        shared(60, 60.0, 5, 12, (5, 120), (5, 40)),
        {"max_num_seqs": 8, "scheduling_policy": "longest_prefix"},
    ),
    "prefix_pages": Scenario(
        "heads of one text, longest prefix first",
        repeats(60, 40.0, [40, 90, 200, 333, 500], (1, 40)),
        {"max_num_seqs": 8, "scheduling_policy": "longest_prefix", **PAGES},
    ),
    "prefix_burst": Scenario(
        "the same prompts at once, found by those who come later",
        shared(60, np.inf, 5, 20, (5, 120), (5, 40)),
        {"max_num_seqs": 12, "num_gpu_blocks_override": 6000},
    ),
    "prefix_eviction": Scenario(
        "more system prompts than the cache holds",
        shared(80, 20.0, 12, 20, (5, 120), (5, 60)),
        {"max_num_seqs": 6, "num_gpu_blocks_override": 3500},
    ),
    "prefix_eviction_pages": Scenario(
        "more system prompts than the cache holds, in pages",
        shared(80, 20.0, 12, 20, (5, 120), (5, 60)),
        {"max_num_seqs": 6, "block_size": 16, "num_gpu_blocks_override": 220},
    ),
    "prefix_lpm_eviction": Scenario(
        "longest prefix first, and more system prompts than the cache holds",
        shared(80, 60.0, 12, 20, (5, 120), (5, 60)),
        {"max_num_seqs": 6, "num_gpu_blocks_override": 3500, "scheduling_policy": "longest_prefix"},
    ),
    "lpm_crowd": Scenario(
        "longest prefix first, until more than 128 wait",
        shared(200, np.inf, 6, 12, (5, 60), (2, 20)),
        {"max_num_seqs": 12, "scheduling_policy": "longest_prefix"},
    ),
    "prefix_chunks": Scenario(
        "chunks of a prompt are found while the next is computed",
        shared(40, 20.0, 3, 100, (20, 400), (1, 40)),
        {"max_num_batched_tokens": 512},
        timing=POLYNOMIAL,
    ),
    "priority_reserve": Scenario(
        "three classes wait for KV",
        plain(60, 40.0, (20, 300), (20, 200), priorities=3),
        {"num_gpu_blocks_override": 3000, "scheduling_policy": "priority"},
    ),
    "priority": Scenario(
        "three classes wait for seats",
        plain(60, 40.0, (5, 200), (5, 60), priorities=3),
        {"max_num_seqs": 6, "scheduling_policy": "priority"},
    ),
}  # fmt: skip


def main() -> None:
    """Write the named scenarios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="scenarios; all where none is named")
    arguments = parser.parse_args()
    for name, scenario in SCENARIOS.items():
        if not arguments.names or name in arguments.names:
            fixtures.write(fixtures.FOLDER / "sglang" / f"{name}.json", scenario.content(name))


if __name__ == "__main__":
    main()
