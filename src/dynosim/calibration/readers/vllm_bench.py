"""``vllm bench serve --save-result`` and ``--append-result``: one JSON object per run.

As of vLLM's ``benchmarks/serve.py`` at commit 009e6d4. Its TPOT is the mean gap of each request, here
``inter_token_latency``; its ITL pools the gaps between chunks, here ``inter_chunk_latency``. Means of TPOT leave
one-token outputs out (they count as 0 in goodput only). End-to-end latency is there only where
``--percentile-metrics`` asks for ``e2el``. ``--metadata workload_hash=...`` is read. With ``--save-detailed`` the file
has every request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dynosim.calibration.readers.record import Fields, MeasuredRun, Requests, flat_load, flat_run


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
        requests=_requests(fields.data),
    )


def _requests(data: Mapping[str, Any]) -> Requests | None:
    """Return the requests that were completed; their gaps add up to the time from the first token to the last."""
    if not {"start_times", "ttfts", "itls", "input_lens", "output_lens"} <= data.keys():
        return None
    names = ("start_times", "input_lens", "output_lens", "ttfts", "itls")
    errors = data.get("errors") or [""] * len(data["ttfts"])
    done = [row for *row, error in zip(*(data[name] for name in names), errors, strict=True) if not error]
    sent_s, inputs, outputs, ttft_s, gaps = zip(*done, strict=True)
    streamed_s = [sum(each) for each in gaps]
    itl_ms = [1e3 * s / (n - 1) if n > 1 else math.nan for s, n in zip(streamed_s, outputs, strict=True)]
    return Requests.of(
        {
            "sent_s": sent_s,
            "input_tokens": inputs,
            "output_tokens": outputs,
            "time_to_first_token": [1e3 * s for s in ttft_s],
            "inter_token_latency": itl_ms,
            "request_latency": [1e3 * (first + rest) for first, rest in zip(ttft_s, streamed_s, strict=True)],
        }
    )
