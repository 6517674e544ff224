"""Bundled profiles against the published statistics of the traces they were fitted to.

The constants are plain statistics over the trace files named in each profile; a statistic is the mean over five seeds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from dynosim.config import ProfileSource, WorkloadConfig
from dynosim.workload import Workload, describe, get_profile, load_workload, lru_reuse, profile_names, reuse_bound

SEEDS = range(5)


@lru_cache
def seeds(name: str) -> list[Workload]:
    return [load_workload(WorkloadConfig(source=ProfileSource(name=name)), seed) for seed in SEEDS]


@lru_cache
def means(name: str) -> dict[str, Any]:
    """Return ``describe`` with each number averaged over the seeds, nested names joined by a dot."""
    rows = [_flat(describe(workload)) for workload in seeds(name)]
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif key != "name":
            flat[prefix + key] = value
    return flat


def test_profiles_say_where_they_come_from() -> None:
    assert profile_names() == ["agentic", "chat", "code", "multiturn", "rag"]
    for name in profile_names():
        profile = get_profile(name)
        assert profile.name == name
        assert profile.description
        assert "commit" in profile.fitted_to
        assert profile.licence


@pytest.mark.parametrize(
    ("statistic", "published", "tolerance"),
    [
        ("requests", 12031, 0.0),
        ("span_s", 3537, 0.03),
        ("mean_rps", 3.401, 0.03),
        ("peak_minute_rps", 4.12, 0.08),
        ("gap_cv", 3.03, 0.03),
        ("input_tokens.mean", 12035, 0.05),
        ("input_tokens.p50", 6909, 0.05),
        ("input_tokens.p90", 27367, 0.06),
        ("input_tokens.p99", 85400, 0.10),
        ("input_tokens.max", 126195, 0.03),
        ("output_tokens.mean", 342.6, 0.03),
        ("output_tokens.p50", 350, 0.03),
        ("output_tokens.p99", 1118, 0.12),
        ("output_tokens.max", 2000, 0.001),
        ("blocks", 288500, 0.05),
        ("unique_blocks", 182790, 0.05),
    ],
)
def test_chat(statistic: str, published: float, tolerance: float) -> None:
    """Mooncake conversation trace: load and lengths within a relative tolerance."""
    assert means("chat")[statistic] == pytest.approx(published, rel=tolerance)


@pytest.mark.parametrize(
    ("statistic", "published", "points"),
    [
        ("blocks_reused", 36.64, 1.5),
        ("tokens_reused", 37.36, 1.5),
        ("blocks_used_once", 75.8, 4.0),
        ("requests_reusing_two_blocks", 38.7, 1.5),
    ],
)
def test_chat_prefix_tree(statistic: str, published: float, points: float) -> None:
    """Mooncake conversation trace: shape of the prefix tree, in percentage points."""
    assert 100 * means("chat")[statistic] == pytest.approx(published, abs=points)


@pytest.mark.parametrize(("workers", "published"), [(2, 27.6), (4, 19.6), (8, 13.9)])
def test_chat_reuse_behind_round_robin(workers: int, published: float) -> None:
    reuse = np.mean([reuse_bound(workload, workers) for workload in seeds("chat")])
    assert 100 * reuse == pytest.approx(published, abs=2.5)


@pytest.mark.parametrize(
    ("capacity_blocks", "published"),
    [(1000, 4.5), (3000, 6.7), (10000, 21.6), (30000, 33.2), (50000, 36.2)],
)
def test_chat_reuse_by_cache_size(capacity_blocks: int, published: float) -> None:
    reuse = np.mean([lru_reuse(workload, capacity_blocks) for workload in seeds("chat")])
    assert 100 * reuse == pytest.approx(published, abs=2.5)


def test_chat_starts_with_one_system_prompt_in_batches() -> None:
    for workload in seeds("chat"):
        assert not workload.hash_ids[workload.hash_offsets[:-1]].any()
        assert not (workload.arrival_s % 3.0).any()


@pytest.mark.parametrize(
    ("statistic", "published", "tolerance"),
    [
        ("requests", 8819, 0.0),
        ("gap_cv", 13.15, 0.1),
        ("mean_rps", 2.567, 0.25),
        ("input_tokens.mean", 2048, 0.03),
        ("input_tokens.p50", 1469, 0.04),
        ("input_tokens.p99", 7436, 0.01),
        ("output_tokens.mean", 27.9, 0.06),
        ("output_tokens.p50", 13, 0.08),
        ("output_tokens.p99", 251, 0.15),
    ],
)
def test_code(statistic: str, published: float, tolerance: float) -> None:
    """Azure LLM inference trace 2023, code."""
    assert means("code")[statistic] == pytest.approx(published, rel=tolerance)


@pytest.mark.parametrize(
    ("statistic", "published", "tolerance"),
    [
        ("input_tokens.mean", 2588, 0.02),
        ("input_tokens.p50", 2730, 0.02),
        ("input_tokens.p99", 3933, 0.02),
        ("output_tokens.mean", 291, 0.05),
        ("output_tokens.p50", 167, 0.04),
        ("output_tokens.p99", 3271, 0.06),
        ("gap_cv", 1.0, 0.03),
    ],
)
def test_rag(statistic: str, published: float, tolerance: float) -> None:
    """arXiv summarisation lengths (Vidur), Poisson arrivals."""
    assert means("rag")[statistic] == pytest.approx(published, rel=tolerance)


@pytest.mark.parametrize(
    ("statistic", "published", "tolerance"),
    [
        ("requests", 5737, 0.0),
        ("sessions", 1221, 0.02),
        ("input_tokens.mean", 1945, 0.07),
        ("input_tokens.p50", 1542, 0.07),
        ("input_tokens.p99", 7704, 0.08),
        ("output_tokens.mean", 583, 0.03),
        ("output_tokens.p50", 505, 0.03),
        ("output_tokens.p99", 2110, 0.06),
        ("tokens_reused", 0.885, 0.02),
    ],
)
def test_multiturn(statistic: str, published: float, tolerance: float) -> None:
    """InferenceX multi-turn WildChat: conversations, each turn repeating all before it."""
    assert means("multiturn")[statistic] == pytest.approx(published, rel=tolerance)


@pytest.mark.parametrize(
    ("statistic", "published", "tolerance"),
    [
        ("input_tokens.mean", 71869, 0.04),
        ("input_tokens.p50", 70641, 0.04),
        ("input_tokens.p99", 125955, 0.02),
        ("output_tokens.mean", 419, 0.05),
        ("output_tokens.p50", 216, 0.05),
        ("output_tokens.p99", 3896, 0.12),
        ("delay_s.p50", 15, 0.1),
        ("delay_s.p90", 133, 0.15),
        ("tokens_reused", 0.941, 0.05),
    ],
)
def test_agentic(statistic: str, published: float, tolerance: float) -> None:
    """InferenceX agentic coding turns: prompts, answers, pauses, and 94.1 % of prompt tokens seen before."""
    assert means("agentic")[statistic] == pytest.approx(published, rel=tolerance)
