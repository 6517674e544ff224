"""Which timing packs ship with dynosim, and how they are made again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

from dynosim.errors import TimingError
from dynosim.timing.pack import DEFAULT_SIZES, PackKey

ENGINES = ("vllm", "sglang", "trtllm")
MODERN_GPUS = ("h100_sxm", "h200_sxm", "b200_sxm")


def bundled_keys() -> Iterator[tuple[PackKey, tuple[int, ...]]]:
    """Yield every key of the bundle with its tensor-parallel sizes."""
    for model, engine in product(("llama-3.1-8b", "llama-3.1-70b", "qwen3-32b"), ENGINES):
        yield PackKey(model, "a100_sxm", engine), DEFAULT_SIZES
        for gpu, quantization in product(MODERN_GPUS, ("none", "fp8")):
            yield PackKey(model, gpu, engine, quantization), DEFAULT_SIZES
    for engine, expert_parallel in product(ENGINES, (False, True)):
        for gpu, quantization in product(MODERN_GPUS, ("none", "fp8")):
            yield PackKey("qwen3-235b-a22b", gpu, engine, quantization, expert_parallel=expert_parallel), (4, 8)
        for gpu in ("h200_sxm", "b200_sxm"):
            yield PackKey("deepseek-v3", gpu, engine, "fp8", expert_parallel=expert_parallel), (8,)


def rebuild(folder: Path) -> dict[str, str]:
    """Make the whole bundle in *folder* (needs the extra ``[aic]``) and return file -> reason of what has no data."""
    from dynosim.timing.aic import build_pack

    missing = {}
    for key, sizes in bundled_keys():
        try:
            build_pack(key, sizes).save(folder / key.filename)
        except TimingError as error:
            missing[key.filename] = str(error)
    return missing
