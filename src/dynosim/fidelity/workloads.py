"""The requests that a measured row was measured with, as the set's README says each ``load_kind`` was produced."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from dynosim.config import (
    ConcurrencyLoad,
    FixedLength,
    Length,
    PoissonLoad,
    RatioLength,
    SyntheticSource,
    TraceLoad,
    TraceSource,
    WorkloadConfig,
)
from dynosim.config.workload import PrefixGroups, Sessions
from dynosim.errors import ConfigError
from dynosim.fidelity.measurements import Measurement
from dynosim.workload import load_workload
from dynosim.workload.table import Workload

LOADS = ("closed-loop", "open-loop", "offline", "sequential")
"""Beginnings of the load kinds."""
BLIS_PROMPTS = 100
"""Distinct prompts that the client of the constant-rate stages cycled: mean lengths over 16,800 requests are exact
multiples of 0.01."""
CHAT_TEMPLATE_TOKENS = 4
"""That a chat template adds to one message: DeepSeek's adds begin-of-sentence, user, assistant and think tokens."""


def requests_of(row: Measurement) -> Workload:
    """Return the requests of *row*, the chat template's tokens included."""
    return _with_template(row, load_workload(workload_of(row), seed=0))


def workload_of(row: Measurement) -> WorkloadConfig:
    """Return what *row* was measured with; ConfigError for a load that is not known."""
    kind = row.load_kind
    if not kind.startswith(LOADS):
        raise ConfigError(f"{kind!r}: allowed: {', '.join(LOADS)}, and words after it", path="load_kind")
    if kind.startswith("open-loop trace"):
        return WorkloadConfig(source=_trace(row), load=TraceLoad())
    if kind.startswith("open-loop"):
        return _stage(row)
    load = ConcurrencyLoad(concurrency=row.concurrency)
    if kind.startswith("closed-loop multi-turn"):
        return WorkloadConfig(source=_trace(row), load=load)
    source = SyntheticSource(
        requests=_requests(row, load.concurrency),
        input_tokens=_length(row, row.isl),
        output_tokens=_length(row, row.osl),
    )
    return WorkloadConfig(source=source, load=load)


def _with_template(row: Measurement, workload: Workload) -> Workload:
    """Add the chat template's tokens, which a server counts and its client does not: per prompt and per message."""
    each = CHAT_TEMPLATE_TOKENS if "chat_template" in row.facts else 0
    prompt, message = (int(row.facts.get(name, each)) for name in ("template_tokens", "message_tokens"))
    if not prompt:
        return workload
    first = np.unique(workload.session, return_index=True)[1]
    turn = np.arange(len(workload)) - first[workload.session]
    messages = message * (2 * turn + 1) if "message_tokens" in row.facts else 0
    return replace(workload, input_tokens=workload.input_tokens + prompt + messages)


def _requests(row: Measurement, concurrency: int) -> int:
    each = re.search(r"\((\d+) per length", row.load_kind)
    said = row.facts.get("num_requests") or (each and each[1])
    return int(said) if said else int(row.facts.get("prompts_per_client", 10)) * concurrency


def _length(row: Measurement, tokens: float) -> Length:
    ratio = row.facts.get("random_range_ratio")
    return RatioLength(tokens=round(tokens), ratio=float(ratio)) if ratio else FixedLength(tokens=round(tokens))


def _stage(row: Measurement) -> WorkloadConfig:
    """A stage of requests at a rate. Where its client cycles few prompts, a later stage finds their blocks cached."""
    if row.load is None:
        raise ConfigError("open-loop without a rate: allowed: requests per second", path="concurrency_or_rate")
    seconds = float((re.search(r"([\d.]+) s\)", row.load_kind) or [0, 600])[1])
    cycled = "shared_prefix" in row.facts
    warm = 3 * BLIS_PROMPTS if cycled and row.facts.get("stage") != "0" else 0
    prompt, prefix = _length(row, row.isl), FixedLength(tokens=max(round(row.isl) - 1, 1))
    source = SyntheticSource(
        requests=round(seconds * row.load) + warm,
        input_tokens=FixedLength(tokens=1) if cycled else prompt,
        output_tokens=_length(row, row.osl),
        sessions=Sessions(groups=PrefixGroups(groups=BLIS_PROMPTS, prefix_tokens=prefix)) if cycled else None,
    )
    return WorkloadConfig(source=source, load=PoissonLoad(rate_rps=row.load), warmup_requests=warm)


def _trace(row: Measurement) -> TraceSource:
    """Return the trace that the notes name, beside the rows' file or in a folder ``traces`` beside its folder."""
    named = row.facts.get("trace")
    if named is None:
        raise ConfigError(f"{row.load_kind}: the notes name no .csv or .jsonl (.gz) to replay", path="notes")
    path = next((path for path in (row.folder / named, row.folder.parent / "traces" / named) if path.is_file()), None)
    if path is None:
        raise ConfigError(f"{named}: not beside the measurements, nor in ../traces from there", path="notes")
    blocks = row.facts.get("trace_block_tokens")
    return TraceSource(path=str(path), block_tokens=int(blocks) if blocks else None)
