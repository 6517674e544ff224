"""What InferenceX's public recipes start disaggregated servers with, as data.

Its ``nvidia-master.yaml`` says which recipe of srt-slurm serves which loads.

A decode server has a bound number of seats, and loads are chosen a little above them: who finds no seat waits, and that
is most of the time to first token. ``recipes.csv`` has the seats by layout and load.
"""

from __future__ import annotations

import csv
import math
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

from dynosim.fidelity.measurements import Measurement
from dynosim.fidelity.scripts import Script, has_mtp

NVL72_NODE_GPUS = 4


class Recipe(NamedTuple):
    """A line of the table: one server layout of TensorRT-LLM and the loads that it was started for."""

    gpu: str
    precision: str
    isl: str
    osl: str
    prefill: str
    """``2xdep4``: two workers of four GPUs with data-parallel attention and experts spread over them; ``tep``: tensor
    parallel with experts spread; ``dp`` and ``tp``: with sliced experts."""
    decode: str
    drafts: str
    """Of multi-token prediction; 0 is none."""
    max_batch_size: str
    """Of a decode server, or of one of its attention ranks."""
    concurrency: str


@lru_cache
def _table() -> tuple[Recipe, ...]:
    lines = (files("dynosim.fidelity") / "recipes.csv").read_text(encoding="utf-8").splitlines()
    return tuple(map(Recipe._make, csv.reader(lines[1:])))


def _layout(row: Measurement, role: str) -> str:
    workers, tp, ranks, experts = (int(row.facts.get(f"{role}_{name}", 1)) for name in ("workers", "tp", "dp", "ep"))
    kind = ("d" if ranks > 1 else "t") + ("ep" if experts > 1 else "p")
    return f"{workers}x{kind}{tp * ranks}"


def recipe_of(row: Measurement) -> Recipe | None:
    """Return the recipe that started the servers of *row*; None where the table has none of its layout and load."""
    key = (row.gpu.partition("-")[0], row.precision, f"{row.isl:g}", f"{row.osl:g}")
    layouts, drafts, load = (_layout(row, "prefill"), _layout(row, "decode")), has_mtp(row), f"{row.load or 0:g}"
    same = [recipe for recipe in _table() if recipe[:4] == key and (recipe.drafts != "0") == drafts]
    fitting = [r for r in same if r.decode == layouts[1] and load in r.concurrency.split()]
    return next((r for r in fitting if r.prefill == layouts[0]), next(iter(fitting), None))


def _dp(row: Measurement, role: str) -> bool:
    return int(row.facts.get(f"{role}_dp", 1)) > 1


def _wide(row: Measurement, role: str) -> bool:
    """Whether attention of the pool of *role* is data-parallel over more than the GPUs of one node of an NVL72."""
    return int(row.facts.get(f"{role}_dp", 1)) > NVL72_NODE_GPUS


def _seats(row: Measurement) -> int:
    """Return the seats of a decode server of TensorRT-LLM, or of each rank.

    Where the table lacks the layout: a power of two, the most that the load fills with data-parallel attention, else
    enough for it.
    """
    if recipe := recipe_of(row):
        return int(recipe.max_batch_size)
    # TensorRT-LLM's attention ranks are single GPUs, whatever the source calls their tensor parallelism.
    workers, ranks, tp = (int(row.facts.get(f"decode_{name}", 1)) for name in ("workers", "dp", "tp"))
    each = max((row.load or 1) / workers / (ranks * tp if ranks > 1 else 1), 1.0)
    return int(2 ** (math.floor if ranks > 1 else math.ceil)(math.log2(each)))


def _drafts(row: Measurement) -> int:
    recipe = recipe_of(row)
    return int(recipe.drafts) if recipe else 3 if _seats(row) <= 32 else 1


def _prefill_tokens(row: Measurement) -> int:
    """Return ``max_num_tokens`` of a context server of TensorRT-LLM: two long prompts, or the length of one."""
    gpu, short = row.gpu.partition("-")[0], row.isl < 4096
    by_gpu = {
        ("H100", "fp8"): (2048, 8224), ("H200", "fp8"): (8192, 16640), ("B200", "fp8"): (16384, 8320),
        ("B300", "fp8"): (16384, 8320), ("B300", "fp4"): (10240, 16896), ("B200", "fp4"): (16384, 16896),
    }  # fmt: skip
    return by_gpu.get((gpu, row.precision or ""), (16384, 16640))[not short]


def _prefill_seats(row: Measurement) -> int:
    return max(int(_prefill_tokens(row) // row.isl), 1)


def _long(row: Measurement) -> bool:
    return row.isl >= 4096


RECIPES = (
    Script(
        name="recipes/trtllm/*/*/*/ctx*_gen*.yaml, prefill",
        engine="trtllm", role="prefill",
        flags={
            "max_num_tokens": _prefill_tokens, "max_batch_size": _prefill_seats,
            "kv_cache_dtype": "fp8", "free_gpu_memory_fraction": 0.6,
        },
    ),
    Script(
        name="recipes/trtllm/*/*/*/ctx*_gen*.yaml, decode",
        engine="trtllm", role="decode",
        flags={
            "max_batch_size": _seats, "cuda_graph_max_bs": _seats,
            "kv_cache_dtype": "fp8", "free_gpu_memory_fraction": 0.8,
            "max_num_tokens": lambda row: max(_seats(row) * (_drafts(row) + 1 if has_mtp(row) else 1), 8192),
        },
    ),
    Script(
        name="recipes/trtllm/*/*/mtp/ctx*_gen*_mtp*.yaml",
        engine="trtllm", role="decode", when=has_mtp,
        flags={"drafts": _drafts},
    ),
    Script(
        name="recipes/h200/*/*.yaml, prefill",
        engine="sglang", role="prefill", gpu="H200",
        flags={
            "chunked_prefill_size": lambda row: (
                262144 if _dp(row, "prefill")
                else 32768 if _long(row) and not _dp(row, "decode") else 163840
            ),
            "max_prefill_tokens": lambda row: (
                65536 if _dp(row, "prefill")
                else 32768 if _long(row) and not _dp(row, "decode") else 163840
            ),
            "max_running_requests": lambda row: 16 if _long(row) else 512,
            "mem_fraction_static": lambda row: 0.82 if _long(row) else 0.75,
        },
    ),
    Script(
        name="recipes/h200/*/*.yaml, decode",
        engine="sglang", role="decode", gpu="H200",
        flags={
            "max_running_requests": lambda row: (256 if _dp(row, "decode") else 128) if _long(row) else 512,
            "mem_fraction_static": lambda row: 0.88 if _long(row) and _dp(row, "decode") else 0.82,
        },
    ),
    Script(
        name="recipes/h100/*/*/h100-fp8-*.yaml, prefill",
        engine="sglang", role="prefill", gpu="H100",
        flags={
            "chunked_prefill_size": 2048, "max_prefill_tokens": 2048, "mem_fraction_static": 0.6,
            "max_running_requests": lambda row: 4 if _dp(row, "decode") else 2,
        },
    ),
    Script(
        name="recipes/h100/*/*/h100-fp8-*.yaml, decode",
        engine="sglang", role="decode", gpu="H100",
        flags={
            "max_running_requests": lambda row: 64 if _dp(row, "decode") else 128,
            "cuda_graph_max_bs": lambda row: 64 if _dp(row, "decode") else 128,
            "mem_fraction_static": lambda row: 0.85 if _dp(row, "decode") else 0.9,
        },
    ),
    Script(
        name="recipes/b200-fp[48]/*/*/*.yaml, prefill",
        engine="sglang", role="prefill", gpu="B200",
        flags={
            "kv_cache_dtype": "fp8", "attention_backend": "trtllm_mla", "mem_fraction_static": 0.85,
            "chunked_prefill_size": lambda row: 65536 if _long(row) and _dp(row, "decode") else 32768,
            "max_prefill_tokens": lambda row: 65536 if _long(row) and _dp(row, "decode") else 32768,
            "max_running_requests": lambda row: 1024 if _dp(row, "decode") else 512,
        },
    ),
    Script(
        name="recipes/b200-fp[48]/*/*/*.yaml, decode",
        engine="sglang", role="decode", gpu="B200",
        flags={
            "attention_backend": "trtllm_mla", "mem_fraction_static": 0.85,
            "max_running_requests": lambda row: 2048 if _dp(row, "decode") else 512,
        },
    ),
    Script(
        name="recipes/gb[23]00-fp[48]/*/*.yaml, prefill",
        engine="sglang", role="prefill", gpu="GB[23]00",
        flags={
            "kv_cache_dtype": "fp8", "attention_backend": "trtllm_mla",
            "mem_fraction_static": lambda row: 0.8 if _wide(row, "prefill") else 0.95,
            "chunked_prefill_size": lambda row: (
                131072 if _wide(row, "decode") else 24576 if row.precision == "fp4" else 8192
            ),
            "max_running_requests": lambda row: 30000 if _wide(row, "prefill") else 512,
        },
    ),
    Script(
        name="recipes/gb[23]00-fp[48]/*/*.yaml, decode",
        engine="sglang", role="decode", gpu="GB[23]00",
        flags={
            "attention_backend": "trtllm_mla",
            "mem_fraction_static": lambda row: 0.82 if _wide(row, "decode") else 0.95,
            "max_running_requests": lambda row: 8192 if _wide(row, "decode") else 128,
            "scheduler_recv_interval": lambda row: 1 if _wide(row, "decode") else 10,
        },
    ),
    Script(
        name="recipes/*/*/*-mtp.yaml",
        engine="sglang", role="decode", gpu="G?[BH][123]00", when=has_mtp,
        flags={"drafts": 2},
    ),
    Script(
        name="benchmarks/multi_node/amd_utils/models.yaml",
        engine="sglang", gpu="MI", role="prefill",
        flags={
            "mem_fraction_static": 0.8, "kv_cache_dtype": "fp8",
            "chunked_prefill_size": lambda row: (
                (98304 if row.precision == "fp4" else 131072) if _dp(row, "prefill")
                else 16384 if row.precision == "fp4" else 262144
            ),
            "max_running_requests": lambda row: 24 if _dp(row, "prefill") else 128,
        },
    ),
    Script(
        name="benchmarks/multi_node/amd_utils/models.yaml",
        engine="sglang", gpu="MI", role="decode",
        flags={
            "mem_fraction_static": 0.85, "kv_cache_dtype": "fp8", "drafts": 2,
            "max_running_requests": lambda row: (
                4096 if _dp(row, "decode") else 256 if int(row.facts.get("decode_ep", 1)) > 1 else 128
            ),
        },
    ),
)  # fmt: skip
