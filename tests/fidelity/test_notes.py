"""What notes state is read by name, and what nobody knows is said."""

from __future__ import annotations

import pytest

from dynosim.fidelity.measurements import read_measurements
from dynosim.fidelity.notes import read_notes
from dynosim.fidelity.validate import MEASURED


@pytest.mark.parametrize(
    ("notes", "flags"),
    [
        ("vLLM kv-cache fp8, block 32", {"kv_cache_dtype": "fp8", "block_size": "32"}),
        ("prefix caching and chunked prefill on", {"enable_prefix_caching": "on", "enable_chunked_prefill": "on"}),
        (
            "chunked prefill / radix cache / HiCache off",
            {"enable_chunked_prefill": "off", "enable_prefix_caching": "off", "hicache": "off"},
        ),
        ("max_num_seqs=conc, max_num_tokens 2*ISL", {"max_num_seqs": "conc", "max_num_tokens": "2*ISL"}),
        ("chunked_prefill_size 32k", {"chunked_prefill_size": "32k"}),
        ("free_gpu_memory_fraction 0.8 of what weights leave", {"free_gpu_memory_fraction": "0.8"}),
        ("kv_cache_free_gpu_mem_fraction 0.90-0.95, best of", {"kv_cache_free_gpu_mem_fraction": "0.90-0.95"}),
        ("some_new_flag=7; --other_flag on", {"some_new_flag": "7", "other_flag": "on"}),
        ("async scheduling, stream-interval 20", {"async_scheduling": "async", "stream_interval": "20"}),
        ("async scheduling off", {"async_scheduling": "off"}),
    ],
)  # fmt: skip
def test_settings_are_flags_by_their_own_names(notes: str, flags: dict[str, str]) -> None:
    read = read_notes(notes)
    assert read.flags == flags
    assert not read.unread


@pytest.mark.parametrize(
    ("notes", "facts"),
    [
        (
            "disaggregated: prefill 5 worker(s) x (tp1 adp8 ep8); decode 1 worker(s) x (tp16 adp1 ep16)",
            {"prefill_workers": "5", "prefill_dp": "8", "decode_tp": "16", "decode_ep": "16"},
        ),
        ("disaggregated 1P3D, TP4 each", {"prefill_workers": "1", "decode_workers": "3", "each_tp": "4"}),
        ("layout DEP2,PP2; pipeline parallel 2", {"layout": "DEP2,PP2", "pipeline_parallel": "2"}),
        (
            "spec_decoding mtp (drafts by the model's own multi-token head); MTP drafts 3 per pass"
            " (speculative_num_steps 3, eagle_topk 1, num_draft_tokens 4)",
            {"spec_decoding": "mtp", "drafts": "3"},
        ),
        ("image lmsysorg/sglang:v0.5.12-cu130; measured 2026-05-20", {"image": "lmsysorg/sglang:v0.5.12-cu130"}),
        ("E2E mean 10371 p99 13579.1; num_requests 1280", {"e2e_ms_p99": "13579.1", "num_requests": "1280"}),
    ],
)
def test_what_was_run_and_measured_are_facts(notes: str, facts: dict[str, str]) -> None:
    read = read_notes(notes)
    assert facts.items() <= read.facts.items()
    assert not read.flags
    assert not read.unread


def test_a_tree_of_drafts_is_not_taken_for_a_chain() -> None:
    read = read_notes("MTP drafts 3 per pass (speculative_num_steps 3, eagle_topk 4, num_draft_tokens 9)")
    assert read.flags["eagle_topk"] == "4"


@pytest.mark.parametrize(
    ("notes", "unread"),
    [
        ("prefix caching off; overclocked by a tenth; max_num_seqs 8", ("overclocked by a tenth",)),
        ("QUALITY: odd numbers, of an old run; https://example.org/run/1", ()),
        ("measured on a Sunday", ("measured on a Sunday",)),
    ],
)
def test_phrases_that_nobody_knows_are_said(notes: str, unread: tuple[str, ...]) -> None:
    assert read_notes(notes).unread == unread


def test_every_phrase_of_the_package_s_rows_is_known() -> None:
    assert {phrase for row in read_measurements(MEASURED) for phrase in row.unread} == set()
