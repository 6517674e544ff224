"""``vllm bench serve --save-result`` and ``--append-result``: one JSON object per run.

As of vLLM's ``benchmarks/serve.py`` at commit 009e6d4. Its TPOT is the mean gap of each request, here
``inter_token_latency``; its ITL pools the gaps between chunks, here ``inter_chunk_latency``. Means of TPOT leave
one-token outputs out (they count as 0 in goodput only). End-to-end latency is there only where
``--percentile-metrics`` asks for ``e2el``. ``--metadata workload_hash=...`` is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynosim.calibration.readers.record import Fields, MeasuredRun, flat_load, flat_run


def matches(documents: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether this is such a file."""
    return {"total_token_throughput", "num_prompts", "mean_ttft_ms"} <= documents[0].keys()


def read(documents: Sequence[Mapping[str, Any]], file: str) -> list[MeasuredRun]:
    """Return one run per object."""
    return [_run(Fields(document, file)) for document in documents]


def _run(fields: Fields) -> MeasuredRun:
    return flat_run(
        fields,
        tool="vllm bench",
        model=fields.text("model_id"),
        load=flat_load(fields),
        failed=fields.count("failed", max(fields.count("num_prompts") - fields.completed("completed"), 0)),
        request_latency="e2el",
        workload_hash=fields.text("workload_hash"),
    )
