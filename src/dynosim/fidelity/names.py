"""What sources call engines, GPUs, precisions and images, and what dynosim calls them."""

from __future__ import annotations

import re

from dynosim.engines import ENGINES
from dynosim.errors import ConfigError
from dynosim.fidelity.measurements import Measurement
from dynosim.hardware.models import get_model, precision_of

_GPUS = (
    (r"A100.*40 ?GB", "a100_sxm_40gb"), (r"A100.*PCIe", "a100_pcie"), (r"A100", "a100_sxm"), (r"A10G?\b", "a10g"),
    (r"GH200", "gh200"), (r"H100.*PCIe", "h100_pcie"), (r"H100.*NVL", "h100_nvl"), (r"H100", "h100_sxm"),
    (r"H200.*NVL", "h200_nvl"), (r"H200", "h200_sxm"), (r"H800", "h800_sxm"), (r"H20-3e", "h20_3e"),
    (r"H20\b", "h20_sxm"), (r"L40S", "l40s"), (r"L40\b", "l40"), (r"L4\b", "l4"), (r"(RTX\W*)?4090", "rtx_4090"),
    (r"(RTX\W*)?5090", "rtx_5090"), (r"RTX\W*PRO\W*6000", "rtx_pro_6000_server"), (r"GB200", "gb200"),
    (r"GB300", "gb300"), (r"B200", "b200_sxm"), (r"B300", "b300_sxm"), (r"MI300X", "mi300x"), (r"MI325X", "mi325x"),
    (r"MI35[05]X", "mi355x"),
)  # fmt: skip
"""Beginning of a word in a GPU's name -> card; the first that fits. An MI350X is an MI355X at lower power."""

_ENGINES = {"tensorrt-llm": "trtllm", "trt-llm": "trtllm", "trt": "trtllm", "nim": "trtllm", "atom": "vllm"}
"""First word of an engine's name -> engine. NIM packs TensorRT-LLM where it has a profile for the GPU (NVIDIA's
support matrix of NIM for LLMs); ATOM, AMD's engine, calls itself a vLLM-like implementation (README of ROCm/ATOM)."""

_QUANTIZATIONS = {
    "bf16": "none", "fp16": "none", "fp8": "fp8", "fp4": "nvfp4", "nvfp4": "nvfp4", "int4": "none", "mxfp4": "none",
}  # fmt: skip

_DYNAMO = {
    "trtllm": {
        "0.6": "1.1.0rc5", "0.7.0": "1.2.0rc2", "0.7": "1.2.0rc3", "0.8": "1.2.0rc6.post1",
        "0.8.1.post2": "1.2.0rc6.post2", "0.8.1.post3": "1.2.0rc6.post3", "0.9": "1.3.0rc1", "1.1": "1.3.0rc11",
        "1.2": "1.3.0rc14", "1.3": "1.3.0rc19", "1.5": "1.3.0rc25",
    },
    "vllm": {"0.6": "0.11.0", "0.7": "0.11.0", "0.8": "0.12.0", "0.9": "0.14.1", "1.1": "0.19.0", "1.2": "0.20.1",
             "1.3": "0.23.0", "1.5": "0.28.0"},
    "sglang": {"0.6": "0.5.3.post2", "0.7": "0.5.4.post3", "0.8": "0.5.6.post2", "0.9": "0.5.8",
               "1.1": "0.5.10.post1", "1.2": "0.5.11", "1.3": "0.5.14", "1.5": "0.5.18"},
}  # fmt: skip
"""Engine -> beginning of a Dynamo version -> the version in its image (Dynamo's support matrices)."""

_VERSION = r"\d+\.\d+(?:\.\d+)?(?:rc\d+)?(?:\.post\d+)?"


def engine_of(row: Measurement) -> str:
    """Return the engine; ConfigError for what dynosim does not know."""
    words = row.engine.lower().replace("(", " ").split()
    named = [word.strip("()") for word in words if word.strip("()") in ENGINES]
    engine = named[0] if named else _ENGINES.get(words[0] if words else "")
    if engine is None:
        raise ConfigError(f"{row.engine!r}: allowed: {', '.join((*ENGINES, *_ENGINES))}", path="engine")
    return engine


def version_of(row: Measurement, engine: str) -> str:
    """Return the engine's own version by the column or the image, ``current`` where neither says it."""
    image = row.facts.get("image", "")
    if row.engine.lower().startswith(tuple(_ENGINES.keys() & {"nim", "atom"})):
        return "current"  # their numbers are their own
    said = re.match(_VERSION, (row.engine_version or "").removeprefix("v"))
    tag = re.search(rf"{engine}[:-]v?({_VERSION})|:v?({_VERSION})", image)
    version = said.group() if said else tag and (tag[1] or tag[2])
    if version is None:
        return "current"
    if "ai-dynamo" in image or (said and "Dynamo" in row.engine):
        found = [begin for begin in _DYNAMO[engine] if version.startswith(begin)]
        return _DYNAMO[engine][max(found, key=len)] if found else "current"
    return version


def card_of(gpu: str) -> str:
    """Return the card of a row's GPU; a name that is none of a card's stays as it is."""
    return next((card for pattern, card in _GPUS if re.search(rf"\b{pattern}", gpu, re.IGNORECASE)), gpu)


def quantization_of(row: Measurement) -> str:
    """Return the quantization of the row's checkpoint; ConfigError for one that no engine here loads."""
    if row.precision is None:
        return precision_of(row.model)
    precision = row.precision.lower()
    if precision not in _QUANTIZATIONS:
        raise ConfigError(f"{row.precision!r}: allowed: {', '.join(_QUANTIZATIONS)}", path="precision")
    model = get_model(row.model)
    if model.moe is not None and model.moe.native_bytes < 1:  # gpt-oss, Kimi-K2.5
        return "none" if not model.fp8_checkpoint else _QUANTIZATIONS[precision]
    if precision == "int4":
        raise ConfigError(f"{precision}: no {precision} checkpoint of {model.name} is modelled", path="precision")
    return "nvfp4" if precision == "mxfp4" else _QUANTIZATIONS[precision]
