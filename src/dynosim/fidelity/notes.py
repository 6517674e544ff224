"""The grammar of a row's notes: which words state what, and which words nobody knows.

Notes are phrases between semicolons and commas. FACTS are the forms that state the layout, the client's doing and what
was measured; FLAGS state settings of the server in words, and any other ``snake_case value`` is one of that name; PROSE
is known to state nothing that could be simulated. What is left is unread, and ``dynosim validate`` reports it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple


class Notes(NamedTuple):
    """What notes say."""

    facts: Mapping[str, str]
    """Name -> value as it is written: groups of FACTS."""
    flags: Mapping[str, str]
    """The same of settings of the server."""
    unread: tuple[str, ...]
    """Phrases of no known form."""


def _workers(role: str) -> str:
    """``prefill 5 worker(s) x (tp1 adp8 ep8)``: replicas, their tensor and data parallelism, expert shards."""
    sizes = rf"\(tp(?P<{role}_tp>\d+) adp(?P<{role}_dp>\d+) ep(?P<{role}_ep>\d+)\)"
    return rf"{role} (?P<{role}_workers>\d+) worker\(s\) x {sizes}"


_NUMBER = r"\d+(?:\.\d+)?"
FACTS = (
    # Layout.
    _workers("prefill"),
    _workers("decode"),
    r"disaggregated (?P<prefill_workers>\d+)P(?P<decode_workers>\d+)D, TP(?P<each_tp>\d+) each",
    r"(?P<layout_not_stated>layout not stated) \(source lists 0 workers and \d+ GPUs for either pool[^)]*\)",
    r"(?P<layout_completed>layout completed): [^;]*",
    r"(?P<disaggregated>disaggregated)\b:?",
    r"layout (?P<layout>[A-Z]+\d+(?:, ?[A-Z]+\d+)*)",
    r"pipeline parallel (?P<pipeline_parallel>\d+)",
    r"RoCE (?P<ports_per_node>\d+)x(?P<port_gbit_s>\d+)GbE per node",
    r"moe_tp=(?P<moe_tp>\d+)",
    r"moe_ep=(?P<moe_ep>\d+)",
    r"attention_dp=(?P<attention_dp>\d+)",
    # Software and memory.
    r"GPU KV cache (?P<gpu_kv_cache_tokens>\d+) tokens(?: \(server log\))?",
    r"CPU KV offload on: [^;]*?(?P<cpu_kv_offload_gib>\d+) GiB(?: \(--kv_offloading_size\))?",
    r"image (?P<image>\S+?)(?=[;,]|$)",
    r"measured (?P<measured_on>\d{4}-?\d{2}-?\d{2})(?:-\d{6})?",
    r"\(script of (?P<script_of>\d{4}-\d{2}-\d{2})\)",
    r"\((?P<max_num_seqs_on_b200>\d+) on B200\)",
    # Speculation.
    r"spec_decoding (?P<spec_decoding>\w+)(?: \(drafts by [^)]*\))?",
    r"MTP drafts (?P<drafts>\d+) per pass(?: \((?:num_nextn_predict_layers \d+"
    r"|speculative_num_steps \d+, eagle_topk 1, num_draft_tokens \d+)\))?",
    # The client.
    r"\(RANDOM_RANGE_RATIO (?P<random_range_ratio>[\d.]+)\)",
    r"num_prompts=(?P<prompts_per_client>\d+)\*conc",
    r"num_requests (?P<num_requests>\d+)",
    r"(?P<chat_template>prompts wrapped in the chat template)",
    r"the server counted about (?P<template_tokens>\d+) \+ (?P<message_tokens>\d+) per message more[^);]*\)",
    r"(?P<shared_prefix>shared_prefix)",
    r"stage (?P<stage>\d+) of \d+",
    r"replay (?:\S*/)?(?P<trace>[\w.-]+\.(?:jsonl|csv)(?:\.gz)?)(?: \((?P<trace_block_tokens>\d+)-token blocks\))?",
    r"stop issuing after (?P<stop_after>\d+) completed requests(?: \(\d+ logged\))?",
    r"per-request log (?P<log>[\w.-]+_requests\.(?:csv|jsonl)\.gz)",
    # Measured values.
    rf"E2E mean (?P<e2e_ms_mean>{_NUMBER})(?: p99 (?P<e2e_ms_p99>{_NUMBER}))?(?: ms)?",
    rf"(?:measured )?KV transfer time (?P<kv_transfer_ms>{_NUMBER}) ms",
    rf"GPU prefix-cache hit tokens (?P<prefix_hit_percent>{_NUMBER}) % of prompt tokens",
    rf"CPU-tier hit tokens (?P<host_hit_percent>{_NUMBER}) % of prompt tokens",
)
"""In the order in which they are looked for; named groups are the facts."""

FLAGS = (
    r"(?:kv-cache|KV) (?P<kv_cache_dtype>fp8|bf16|fp16|auto)\b",
    r"(?:prefix caching|block reuse|radix cache) (?P<enable_prefix_caching>on|off)",
    r"(?P<enable_prefix_caching>no) prefix reuse",
    r"chunked prefill (?P<enable_chunked_prefill>on|off)",
    r"HiCache (?P<hicache>on|off)",
    r"async scheduling (?P<async_scheduling>on|off)",
    r"(?P<async_scheduling>async) scheduling",
    r"(?P<ignore_eos>ignore-eos)",
    r"MoE backend (?P<moe_backend>\w+)",
    r"stream-interval (?P<stream_interval>\d+)",
    r"block (?P<block_size>\d+)\b",
    r"max_num_seqs=(?P<max_num_seqs>conc)",
    r"free_gpu_memory_fraction (?P<free_gpu_memory_fraction>[\d.]+) of what weights leave",
    r"CUDA graphs with padding up to (?P<cuda_graph_max_bs>\d+)",
)
"""Settings of the server that notes state in words; named groups are the flags."""

PROSE = (
    # Of what was judged, and where it is from.
    r"QUALITY:[^;]*",
    r"https?://\S+",
    r"source_id \S+",
    r"InferenceX(?:/InferenceMAX)? fixed-seq run: random prompts",
    r"NVIDIA AIConfigurator gap-analysis run",
    r"(?:source|table) (?:lists|calls)[^;]*",
    r"(?:precision blank in source|GPU named only|repeat measurements in source)[^;]*",
    r"(?<=; )[\d.]+/[\d.]+(?=;|$)",
    r"(?<![\w_])[A-Za-z][a-zA-Z, -]*\bnot stated(?: in (?:the )?source)?",
    r"read as output \(if total, output is [\d.]+\)",
    r"(?:launch script at that date|source repo flags(?: at that date)?(?: \([\w ]+\))?)[ :]*",
    # Of how numbers were counted.
    r"(?:stage rates|throughput =|n_gpus =|per-GPU =)[^;]*",
    r"tpot column holds mean ITL|TTFT counted from queued_ts|isl/osl are means|lengths as counted|fixed lengths",
    r"TTFT p\d\d [\d.]+(?: ms)?|run time \d+ s|includes ramp-up and drain|best of(?: several)?",
    # Of what clients did.
    r"(?:input and output )?lengths (?:each )?uniform in \[[^\]]*\]|lengths are the client's",
    r"\d+\*conc warm-ups|request-rate inf|next turn sent as soon as[^;]*|\d+ clients",
    r"each running one WildChat conversation at a time|prompt = whole history",
    r"workload '[\w-]+': [\w-]+|system prompt \d+ \+ question \d+ tokens nominal|nominal output \d+",
    r"multi-turn chat flag on \([^)]*\)|gpu_mem_util n/s|exactly|vLLM(?= \n)",
    # Of what servers are called and said.
    r"trtllm-bench throughput|PyTorch backend|trtllm-serve|CPU KV offload off|of prompt tokens",
    r"\(vLLM counter ratio[^)]*\)|KV usage peak \d+ %|preemptions \d+|history upper bound [\d.]+ %",
)
"""Forms of phrases that say nothing that could be simulated."""

_SWITCHES = re.compile(r"([\w ]+?(?:(?: / | and )[\w ]+?)+) (on|off)\b")
_FACTS, _FLAGS, _PROSE = (tuple(map(re.compile, table)) for table in (FACTS, FLAGS, PROSE))
_FLAG = re.compile(r"(?:--)?\b(?P<name>[A-Za-z]+(?:_[a-z]+)+)[= ](?P<value>[\w.*+-]*[\w*])")


@lru_cache(maxsize=4096)
def read_notes(text: str) -> Notes:
    """Return what the notes *text* say; where a fact is stated twice, the first form in its table wins."""
    rest, facts = _taken(_SWITCHES.sub(_one_by_one, text), _FACTS)
    rest, flags = _taken(rest, _FLAGS)
    for pattern in _PROSE:
        rest = pattern.sub("\n", rest)
    other = {found["name"].lower(): found["value"] for found in _FLAG.finditer(rest)}
    phrases = (phrase.strip(" .:()") for phrase in re.split(r"[;,\n]", _FLAG.sub("\n", rest)))
    unread = tuple(phrase for phrase in phrases if re.search(r"\w", phrase))
    return Notes(facts, other | flags, unread)


def _taken(text: str, forms: tuple[re.Pattern[str], ...]) -> tuple[str, dict[str, str]]:
    """Return *text* without the phrases of *forms*, and what they state."""
    said: dict[str, str] = {}
    for form in forms:
        for found in form.finditer(text):
            said = {name: value for name, value in found.groupdict().items() if value is not None} | said
        text = form.sub("\n", text)
    return text, said


def _one_by_one(found: re.Match[str]) -> str:
    """Return ``A on, B on`` for ``A and B on``."""
    return ", ".join(f"{name} {found[2]}" for name in re.split(" / | and ", found[1]))
