"""Make the scenarios of tests/conformance/vllm: small, each about one rule of the scheduler, or several together.

    python benchmarks/conformance/scenarios_vllm.py [NAME ...]                    # those without a trace
    python benchmarks/conformance/scenarios_vllm.py --traces FOLDER [NAME ...]    # slices of public traces too

What a scenario was recorded with is lost when it changes: record again after this.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fixtures
import numpy as np

FIXED = {"type": "fixed", "prefill_ms_per_token": 0.10037, "decode_ms": 19.93713}
POLYNOMIAL = {"type": "polynomial"}
Columns = dict[str, Any]
Draw = Callable[[np.random.Generator], Columns]


@dataclass(frozen=True)
class Scenario:
    """One scenario: the pool's fields beside a default of 16 seats, 1,024 tokens and room for all, and its requests."""

    about: str
    workload: Draw
    pool: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, Any] = field(default_factory=lambda: FIXED)

    def content(self, name: str) -> dict[str, Any]:
        """Return the file's content, without recorded results; the generator's seed is the name."""
        pool = {"max_num_seqs": 16, "max_num_batched_tokens": 1024, "num_gpu_blocks_override": 4000} | self.pool
        deployment = {
            "model": "llama-3.1-8b",
            "gpu": "h200_sxm",
            "engine": {"name": "vllm"},
            "timing": self.timing,
            "aggregated": pool,
        }
        columns = self.workload(np.random.default_rng(list(name.encode())))
        workload = {
            key: column.tolist() if isinstance(column, np.ndarray) else column for key, column in columns.items()
        }
        return {"about": self.about, "deployment": deployment, "workload": workload, "recorded": {}}


def _arrivals(rng: np.random.Generator, n: int, rate: float) -> Any:
    """Return *n* arrivals at *rate* per second on microseconds, all at once for an infinite rate."""
    return np.zeros(n) if rate == np.inf else np.round(rng.exponential(1.0 / rate, n).cumsum(), 6)


def plain(
    n: int, rate: float, inputs: tuple[int, int], outputs: tuple[int, int], priorities: int = 1, batch: int = 1
) -> Draw:
    """Requests of uniform lengths, *batch* of them at a time, without block ids."""

    def draw(rng: np.random.Generator) -> Columns:
        columns: Columns = {"arrival_s": np.repeat(_arrivals(rng, n // batch, rate / batch), batch)}
        columns["input_tokens"] = rng.integers(inputs[0], inputs[1] + 1, n)
        columns["output_tokens"] = rng.integers(outputs[0], outputs[1] + 1, n)
        return columns | ({"priority": rng.integers(0, priorities, n)} if priorities > 1 else {})

    return draw


def _ids(columns: Columns, block: int, prompts: list[list[int]]) -> Columns:
    """Add block ids; hashed_tokens where the columns do not say it is the whole prompt."""
    offsets = np.concatenate(([0], np.cumsum([len(ids) for ids in prompts])))
    return columns | {
        "hash_block_tokens": block,
        "hash_offsets": offsets,
        "hash_ids": [i for ids in prompts for i in ids],
    }


def shared(
    n: int,
    rate: float,
    groups: int,
    prefix: int,
    tail: tuple[int, int],
    outputs: tuple[int, int],
    block: int = 16,
    priorities: int = 1,
) -> Draw:
    """Requests that begin with one of *groups* system prompts of *prefix* blocks."""

    def draw(rng: np.random.Generator) -> Columns:
        columns = plain(n, rate, tail, outputs, priorities)(rng)
        group, fresh, prompts = rng.integers(0, groups, n), groups * prefix, []
        for g, own in zip(group, columns["input_tokens"], strict=True):
            new = -(-int(own) // block)
            prompts.append([*range(g * prefix, (g + 1) * prefix), *range(fresh, fresh + new)])
            fresh += new
        columns["input_tokens"] = columns["input_tokens"] + prefix * block
        return _ids(columns, block, prompts)

    return draw


def repeats(n: int, rate: float, lengths: list[int], outputs: tuple[int, int], block: int = 16) -> Draw:
    """Requests that are, but for their length, heads of the same text."""

    def draw(rng: np.random.Generator) -> Columns:
        columns = plain(n, rate, (1, 1), outputs)(rng) | {"input_tokens": rng.choice(lengths, n)}
        return _ids(columns, block, [list(range(-(-int(length) // block))) for length in columns["input_tokens"]])

    return draw


SCENARIOS: dict[str, Scenario] = {
    "light": Scenario("few requests at a time", plain(40, 4.0, (10, 400), (1, 60))),
    "burst": Scenario("all at once", plain(60, np.inf, (5, 400), (1, 50)), {"max_num_seqs": 64}, POLYNOMIAL),
    "seats": Scenario("the batch is full", plain(60, 40.0, (5, 200), (5, 60)), {"max_num_seqs": 8}),
    "short_answers": Scenario(
        "answers of one to three tokens, and no seat to spare", plain(80, 60.0, (5, 300), (1, 3)), {"max_num_seqs": 4}
    ),
    "token_budget": Scenario(
        "prompts of several passes", plain(30, 6.0, (100, 3000), (1, 40)), {"max_num_batched_tokens": 512}, POLYNOMIAL
    ),
    "kv_pressure": Scenario(
        "preemptions behind the reservation of whole prompts",
        plain(50, 30.0, (20, 300), (20, 120)),
        {"num_gpu_blocks_override": 80},
    ),
    "prefix": Scenario("system prompts", shared(50, 20.0, 4, 12, (5, 120), (1, 40))),
    "priority_seats": Scenario(
        "three classes wait for seats",
        plain(60, 40.0, (5, 200), (5, 60), priorities=3),
        {"max_num_seqs": 6, "scheduling_policy": "priority"},
    ),
}  # fmt: skip


def main() -> None:
    """Write the named scenarios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, help="folder with the traces' files")
    parser.add_argument("names", nargs="*", help="scenarios; all where none is named")
    arguments = parser.parse_args()
    for name, scenario in SCENARIOS.items():
        if not arguments.names or name in arguments.names:
            fixtures.write(fixtures.FOLDER / "vllm" / f"{name}.json", scenario.content(name))


if __name__ == "__main__":
    main()
