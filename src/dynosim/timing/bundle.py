"""Which timing packs ship with dynosim, and how they are made again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

from dynosim.engines import ENGINES
from dynosim.errors import TimingError
from dynosim.timing.pack import DEFAULT_SIZES, PackKey, Size

LARGE_GPUS = ("h200_sxm", "b200_sxm")
MODERN_GPUS = ("h100_sxm", *LARGE_GPUS)


def bundled_keys() -> Iterator[tuple[PackKey, list[Size]]]:
    """Yield every key of the bundle with its parallel sizes."""
    dense = [Size(tp) for tp in DEFAULT_SIZES]
    for model, engine in product(("llama-3.1-8b", "llama-3.1-70b", "qwen3-32b"), ENGINES):
        yield PackKey(model, "a100_sxm", engine), dense
        for gpu, quantization in product(MODERN_GPUS, ("none", "fp8")):
            yield PackKey(model, gpu, engine, quantization), dense
    for engine, expert_parallel in product(ENGINES, (False, True)):
        for gpu, quantization in product(MODERN_GPUS, ("none", "fp8")):
            key = PackKey("qwen3-235b-a22b", gpu, engine, quantization, expert_parallel=expert_parallel)
            yield key, [Size(4), Size(8), *(data_parallel_sizes(engine, 4, 8) if gpu in LARGE_GPUS else ())]
        for gpu in LARGE_GPUS:
            key = PackKey("deepseek-v3", gpu, engine, "fp8", expert_parallel=expert_parallel)
            yield key, [*_small(gpu), Size(8), *data_parallel_sizes(engine, 8, 16)]
    yield from _further_keys(dense)


def _further_keys(dense: list[Size]) -> Iterator[tuple[PackKey, list[Size]]]:
    """What the calibration measurements were run on, beyond the bundled spaces' models."""
    for model, gpu in product(("qwen2.5-7b", "qwen3-14b", "mixtral-8x7b"), ("a100_sxm", "h100_sxm", "h200_sxm")):
        yield PackKey(model, gpu, "vllm"), dense
    for model in ("llama-3.1-8b", "qwen3-32b", "qwen3-30b-a3b"):
        yield PackKey(model, "rtx_pro_6000_server", "vllm"), dense
    for gpu, engine in product(MODERN_GPUS, ENGINES):
        yield PackKey("gpt-oss-120b", gpu, engine), dense
        yield PackKey("minimax-m2.5", gpu, engine, "fp8"), dense[1:]
    yield PackKey("gpt-oss-120b", "b200_sxm", "vllm", mxfp8_activations=True), dense
    for engine in ENGINES:
        yield PackKey("llama-3.1-70b", "b200_sxm", engine, "nvfp4"), dense
        yield PackKey("deepseek-v3", "b200_sxm", engine, "nvfp4"), dense[2:]
        ranks = data_parallel_sizes(engine, 4, 8)
        yield PackKey("deepseek-v3", "b200_sxm", engine, "nvfp4", expert_parallel=True), [*dense[2:], *ranks]
    for gpu, engine, model in product(MODERN_GPUS, ("vllm", "sglang"), ("llama-3.1-8b", "llama-3.1-70b")):
        yield PackKey(model, gpu, engine, "fp8", "bf16"), dense
    for gpu, expert_parallel in product(LARGE_GPUS, (False, True)):
        sizes = [*_small(gpu), Size(8), *data_parallel_sizes("sglang", 8)]
        yield PackKey("deepseek-v3", gpu, "sglang", "fp8", "bf16", expert_parallel), sizes
    yield PackKey("qwen3-235b-a22b", "h200_sxm", "vllm", "fp8", "bf16"), [Size(4), Size(8)]


def _small(gpu: str) -> list[Size]:
    """Return the sizes that hold DeepSeek-V3 in FP8 below a whole node."""
    return [Size(4)] if gpu == "b200_sxm" else []


def data_parallel_sizes(engine: str, *gpus: int) -> list[Size]:
    """Return the sizes with several attention ranks on each number of *gpus*."""
    ranks = (2, 4, 8, 16)
    sizes = [Size(total // size, size) for total in gpus for size in ranks if size <= total]
    return [size for size in sizes if size.tensor_parallel == 1 or not ENGINES[engine]["current"].one_gpu_per_rank]


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
