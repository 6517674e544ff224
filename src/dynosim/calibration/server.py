"""What a server says of itself: version and KV capacity in its log, cache hits and preemptions in its counters.

Logs are read of vLLM ("GPU KV cache size: N tokens"), SGLang ("max_total_num_tokens=N") and TensorRT-LLM ("max tokens
in paged KV cache (N)"). Counters are what Prometheus reads (``/metrics``): they count from the server's start, so that
a run needs one reading before it and one after it. Left out: times in them, which the load generators' files have as
clients see them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynosim.calibration.replay import Replay
from dynosim.errors import ConfigError
from dynosim.hardware.plan import PoolPlan
from dynosim.timing.calibrated import Profile, ServerFact

VERSION = (
    r"LLM engine \(v([^)\s]+)\)",
    r"LLM version[:= ]+v?(\d[^\s,]*)",
    r"sglang[^\n]{0,40}version[:= ]+v?(\d[^\s,]*)",
)
CAPACITY = (
    r"KV cache size: ([\d,]+) tokens",
    r"max_total_num_tokens=(\d+)",
    r"max tokens in paged KV cache \((\d+)\)",
)
"""The last one counts: TensorRT-LLM logs an estimate first."""
HITS = (
    ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"),
    ("sglang:cached_tokens_total", "sglang:prompt_tokens_total"),
    ("trtllm_prompt_cached_tokens_total", "trtllm_prompt_tokens_total"),
)
"""Counters of prompt tokens that were found and that were looked for."""
PREEMPTIONS = ("vllm:num_preemptions_total", "sglang:num_retracted_requests_total")
SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{[^}]*\})?\s+(\S+)")


def log_facts(file: str) -> dict[str, str | float]:
    """Return version and KV capacity (tokens of one scheduler rank) in a server's log; ConfigError for neither."""
    text = _text(file)
    version, tokens = _last(VERSION, text), _last(CAPACITY, text)
    found: dict[str, str | float] = {"version": version} if version else {}
    if tokens:
        found["kv_cache_tokens"] = float(tokens.replace(",", ""))
    if not found:
        raise ConfigError("no version and no KV capacity: allowed: a log of vLLM, SGLang or TensorRT-LLM", file=file)
    return found


def counter_facts(files: Sequence[str]) -> dict[str, str | float]:
    """Return hit rate and preemptions between the readings before and after, or since the start where there is one."""
    *before, after = map(_counters, files)
    start = before[0] if before else {}
    grown = {name: value - start.get(name, 0.0) for name, value in after.items()}
    found: dict[str, str | float] = {}
    for hits, queries in HITS:
        if grown.get(queries, 0.0) > 0.0:
            found["prefix_cache_hit_rate"] = grown.get(hits, 0.0) / grown[queries]
    for name in PREEMPTIONS:
        if name in grown:
            found["preemptions"] = grown[name]
    if not found:
        raise ConfigError("no counter that is known: allowed: /metrics of vLLM, SGLang or TensorRT-LLM", file=files[-1])
    return found


def compare(stated: Mapping[str, Any], replays: Sequence[Replay]) -> list[ServerFact]:
    """Return what a server stated beside what is simulated of the same runs, those of one configuration.

    Of a disaggregated one it is the server of the prefill pool.
    """
    deployment, results = replays[0].deployment, [each.predict(Profile(name="none")) for each in replays]
    plan = PoolPlan.of(deployment, next(iter(deployment.pools())))
    prompts = [int(each.workload.input_tokens.sum()) for each in replays]
    hits = [n * (result.value("prefix_cache_hit_rate") or 0.0) for n, result in zip(prompts, results, strict=True)]
    simulated: dict[str, str | float] = {
        "version": deployment.engine.version,
        "kv_cache_tokens": float(plan.capacity.tokens),
        "prefix_cache_hit_rate": sum(hits) / sum(prompts),
        "preemptions": sum(result.value("preemptions") or 0.0 for result in results),
    }
    return [ServerFact(name=name, stated=value, simulated=simulated[name]) for name, value in stated.items()]


def _text(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=file) from None


def _last(patterns: Sequence[str], text: str) -> str | None:
    found = (re.findall(pattern, text) for pattern in patterns)
    return next((matches[-1] for matches in found if matches), None)


def _counters(file: str) -> dict[str, float]:
    """Return counter -> value, summed over its labels."""
    found: dict[str, float] = {}
    for match in filter(None, map(SAMPLE.match, _text(file).splitlines())):
        try:
            found[match[1]] = found.get(match[1], 0.0) + float(match[2])
        except ValueError:
            raise ConfigError(f"{match[1]}: {match[2]!r} is no number", file=file) from None
    return found
