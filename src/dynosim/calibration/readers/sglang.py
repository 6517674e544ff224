"""``python -m sglang.bench_serving --output-file``: JSONL, one run per line (SGLang 0.5.10, ``bench_serving.py``).

Names are vLLM's: TPOT is the mean gap of each request with more than one token, ITL pools the gaps between chunks. The
file counts completed requests only; with ``--output-details`` it also lists the errors of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynosim.calibration.readers.record import Fields, MeasuredRun, flat_load, flat_run


def matches(documents: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether this is such a file."""
    return {"mean_e2e_latency_ms", "mean_ttft_ms", "total_output_tokens"} <= documents[0].keys()


def read(documents: Sequence[Mapping[str, Any]], file: str) -> list[MeasuredRun]:
    """Return one run per line."""
    return [_run(Fields(document, file)) for document in documents]


def _run(fields: Fields) -> MeasuredRun:
    server = Fields(fields.data.get("server_info") or {}, fields.file, "server_info")
    return flat_run(
        fields,
        tool="sglang bench_serving",
        model=server.text("model_path"),
        load=None if fields.data.get("request_rate") == "trace" else flat_load(fields),
        failed=sum(map(bool, fields.data.get("errors") or ())),
        request_latency="e2e_latency",
    )
