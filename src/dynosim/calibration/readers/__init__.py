"""Result files of load generators into measured runs, one module per format, recognised by content.

A reader has ``matches(documents) -> bool`` and ``read(documents, file) -> list[MeasuredRun]``, where the documents are
the JSON objects of the file: one, or one per line. Definitions are converted to those of ``dynosim.metrics``; the
modules say how.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dynosim.calibration.readers import aiperf, guidellm, sglang, vllm_bench
from dynosim.calibration.readers.record import Fields, MeasuredRun, Requests
from dynosim.errors import ConfigError

__all__ = ["READERS", "Fields", "MeasuredRun", "Requests", "read_measured", "read_metrics"]


class Reader(Protocol):
    """What a module must have."""

    def matches(self, documents: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether it reads these."""
        ...

    def read(self, documents: Sequence[Mapping[str, Any]], file: str) -> list[MeasuredRun]:
        """Return the runs; ConfigError naming file and key where something is missing."""
        ...


READERS: Mapping[str, Reader] = {
    "AIPerf": aiperf,
    "vLLM bench": vllm_bench,
    "GuideLLM": guidellm,
    "SGLang bench_serving": sglang,
}


def read_measured(path: str | Path) -> list[MeasuredRun]:
    """Return the runs of a result file; ConfigError, one line, where it is none."""
    file = str(path)
    return convert(_documents(file), file)


def read_metrics(path: str | Path) -> dict[str, Any]:
    """Return the metrics of the one run of a result file, or the JSON object that the file is, as it is.

    Raises ConfigError, one line, for anything else.
    """
    file = str(path)
    documents = _documents(file)
    known = any(reader.matches(documents) for reader in READERS.values())
    found: Sequence[Any] = convert(documents, file) if known else documents
    if len(found) != 1:
        raise ConfigError(f"holds {len(found)} runs: allowed: one", file=file)
    return _metrics(found[0]) if known else dict(found[0])


def _metrics(run: MeasuredRun) -> dict[str, Any]:
    output = run.metrics["output_token_throughput"]["avg"]
    return {
        **run.metrics,
        "completed": run.completed,
        "failed": run.failed,
        "request_throughput": output / run.output_tokens,
        "input_token_throughput": output * run.input_tokens / run.output_tokens,
        "total_token_throughput": output * (1.0 + run.input_tokens / run.output_tokens),
    }


def convert(documents: Sequence[Mapping[str, Any]], file: str) -> list[MeasuredRun]:
    """Return the runs of the JSON objects of *file*; ConfigError, one line, where they are of no known tool."""
    tool = next((name for name, reader in READERS.items() if reader.matches(documents)), None)
    if tool is None:
        raise ConfigError(f"not a known result file: allowed are those of {', '.join(READERS)}", file=file)
    try:
        return _checked(READERS[tool].read(documents, file))
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        problem = " ".join(str(error).split())[:200]
        raise ConfigError(f"not as {tool} writes it: {problem}", file=file) from error


def _documents(file: str) -> list[dict[str, Any]]:
    """Return the JSON objects of a file: it is one, or each line is."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a UTF-8 text file"
        raise ConfigError(f"cannot be read: {reason}", file=file) from None
    try:
        found = [json.loads(text)]
    except json.JSONDecodeError:
        found = [_line(line, file, number) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not found or not all(isinstance(document, dict) for document in found):
        raise ConfigError("must hold a JSON object, or one per line", file=file)
    return found


def _line(line: str, file: str, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not JSON: {error.msg}", file=file, line=number) from None


def _checked(runs: list[MeasuredRun]) -> list[MeasuredRun]:
    for run in runs:
        if "output_token_throughput" not in run.metrics or not run.metrics.keys() - {"output_token_throughput"}:
            raise ConfigError("has no latencies or no throughput: the answers must be streamed", file=run.file)
    return runs
