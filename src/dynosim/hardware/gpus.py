"""GPU cards: memory, bandwidths, tensor-core peaks, price and power.

Leaves out clock throttling and anything that the serving model does not read.

Sources
    specifications: the vendors' data sheets (dense FLOPs, without sparsity).
    memory: what CUDA or HIP gives to programs, as "total capacity" in PyTorch's out-of-memory messages in public issues
        and logs; GB300, H20 and MI325X by what their sister cards keep back of the size that the driver names. Memory,
        specifications and power of the cards under OTHER_PRICE were not checked: they are recalled, or their sisters'.
    prices and power: SemiAnalysis InferenceX-app ``packages/app/src/lib/constants.ts``, April 2026: a survey's cost
        assumptions, not list prices; power is all-in (server, network, cooling).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from dynosim import plugins
from dynosim.errors import ConfigError, nearest
from dynosim.hardware.cards import load_card

PRICE_TABLES = ("hyperscaler", "neocloud", "three_year_rental")
PRECISIONS = ("bf16", "fp8", "fp4")
OWN = "the user's card"
SURVEY = "InferenceX-app constants.ts, April 2026"
A100_PRICE = "not in the survey: its H100 price x 0.52, the ratio of RunPod's list prices, November 2026"
L40S_PRICE = "not in the survey: its H100 price x 0.30, the ratio of on-demand list prices in 2026"

OTHER_PRICE = "not in the survey: a share of its H100 price, an assumption"
RTX_PRICE = "not in the survey: its H100 price x 0.40, the ratio of on-demand list prices in 2026"
H20_PRICE = "not in the survey: its H100 price x 0.60 (x 0.70 with HBM3e), an assumption"


def _of_every_table(price: Any) -> Any:
    """Return one price as that of every table."""
    return dict.fromkeys(PRICE_TABLES, price) if isinstance(price, int | float) else price


Share = Annotated[float, Field(gt=0.0, le=1.0)]


@dataclass(frozen=True, kw_only=True)
class Achieved:
    """What kernels reach of a card's peaks, and what each takes at least: the constants of roofline times.

    The defaults are NVIDIA's: a fit of that source to the kernel tables of A100, H100, H200 and B200 (32 models and
    sizes of all engines), which it meets within 12 % on average (docs/timing.md).
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    bf16: Share = 0.9
    """Of the tensor-core peak, in weight matrices of many rows, beside the traffic of weights and activations."""
    fp8: Share = 0.6
    fp4: Share = 0.3
    attention: Share = 0.6
    """Of the bf16 peak, in prefill attention."""
    memory: Share = 0.85
    fp8_latents: Share | None = None
    """Of the memory bandwidth, in decodes of latent attention over an FP8 cache; None: as elsewhere."""
    network: Share = 0.7
    kernel_s: NonNegativeFloat = 3e-6
    """Floor of a kernel that has next to nothing to do (aiconfigurator-core 0.12.0,
    ``mem_empirical_constant_latency``)."""
    all_reduce_s: NonNegativeFloat = 8e-6
    """Floor of an all-reduce over the scale-up link."""


@dataclass(frozen=True)
class GPU:
    """One accelerator of the type that a deployment names; a card file has these fields."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    memory_bytes: PositiveInt
    memory_bandwidth_bytes_s: PositiveFloat
    flops: Mapping[str, PositiveFloat]
    """Dense tensor-core peak by precision; ``fp8`` and ``fp4`` are absent where the hardware lacks them."""
    nvlink_bytes_s: PositiveFloat
    """Scale-up link, per direction: NVLink, Infinity Fabric, or PCIe where there is none."""
    scale_up_gpus: PositiveInt
    """GPUs that the scale-up link joins: the largest tensor-parallel group."""
    usd_per_hour: Annotated[Mapping[str, PositiveFloat], BeforeValidator(_of_every_table)]
    """Price table -> USD per GPU-hour; a user's card may have one number for all tables."""
    power_w: PositiveFloat
    architecture: str = ""
    """``sm80`` to ``sm121``, ``cdna3``, ``cdna4``: what engines choose kernels and graph sizes by."""
    specification_source: str = OWN
    price_source: str = OWN
    achieved: Achieved = Achieved()

    @property
    def vendor(self) -> str:
        """Who makes it, as its specification says: ``nvidia``, ``amd``; ``own`` of a user's card that does not say."""
        return "own" if self.specification_source == OWN else self.specification_source.partition(" ")[0].lower()

    def __post_init__(self) -> None:
        object.__setattr__(self, "usd_per_hour", _of_every_table(self.usd_per_hour))
        if not {"bf16"} <= set(self.flops) <= set(PRECISIONS):
            raise ValueError(f"flops: {', '.join(self.flops)}: allowed: bf16 and, where it has them, fp8 and fp4")
        if set(self.usd_per_hour) != set(PRICE_TABLES):
            raise ValueError(f"usd_per_hour: allowed: one number, or one for each of {', '.join(PRICE_TABLES)}")


def _gpu(
    name: str,
    memory_gib: float,
    bandwidth_tb_s: float,
    bf16_tflops: float,
    fp8_tflops: float | None,
    link_gb_s: float,
    usd_per_hour: tuple[float, float, float],
    power_kw: float,
    source: str,
    architecture: str,
    *,
    fp4_tflops: float | None = None,
    scale_up_gpus: int = 8,
    price_source: str = SURVEY,
    achieved: Achieved = Achieved(),
) -> GPU:
    tflops = dict(zip(PRECISIONS, (bf16_tflops, fp8_tflops, fp4_tflops), strict=True))
    return GPU(
        name=name,
        memory_bytes=round(memory_gib * 2**30),
        memory_bandwidth_bytes_s=bandwidth_tb_s * 1e12,
        flops=MappingProxyType({name: peak * 1e12 for name, peak in tflops.items() if peak is not None}),
        nvlink_bytes_s=link_gb_s * 1e9,
        scale_up_gpus=scale_up_gpus,
        usd_per_hour=MappingProxyType(dict(zip(PRICE_TABLES, usd_per_hour, strict=True))),
        power_w=power_kw * 1e3,
        architecture=architecture,
        specification_source=source,
        price_source=price_source,
        achieved=achieved,
    )


H20 = Achieved(bf16=0.95, fp8=0.9, attention=0.9)
"""A seventh of an H100's tensor cores with all of its memory and caches, which is what else limits an H100."""
CDNA3 = Achieved(bf16=0.55, fp8=0.35, attention=0.45, memory=0.8, fp8_latents=0.2, kernel_s=4.3e-6, all_reduce_s=16e-6)
CDNA4 = Achieved(
    bf16=0.6, fp8=0.4, fp4=0.3, attention=0.45, memory=0.85, fp8_latents=0.3, kernel_s=2.5e-6, all_reduce_s=10e-6
)
"""Which of these are fitted, and to what, is in docs/timing.md."""

GPUS: Mapping[str, GPU] = MappingProxyType(
    {
        gpu.name: gpu
        for gpu in (
            # A100 power: DGX A100 system power per GPU times the survey's H100 all-in factor (1.73 / 1.275 kW).
            _gpu("a100_sxm", 79.25, 2.039, 312, None, 300, (0.67, 0.87, 0.67), 1.10,
                 "NVIDIA A100 data sheet", "sm80", price_source=A100_PRICE),
            _gpu("h100_sxm", 79.19, 3.35, 989, 1978, 450, (1.30, 1.69, 1.30), 1.73,
                 "NVIDIA H100 data sheet", "sm90"),
            _gpu("h200_sxm", 139.80, 4.8, 989, 1978, 450, (1.41, 1.74, 1.60), 1.73,
                 "NVIDIA H200 data sheet", "sm90"),
            _gpu("b200_sxm", 178.35, 7.7, 2250, 4500, 900, (1.95, 2.34, 2.90), 2.17,
                 "NVIDIA DGX B200 data sheet", "sm100", fp4_tflops=9000),
            _gpu("b300_sxm", 267.69, 7.75, 2250, 4500, 900, (2.34, 2.808, 3.48), 2.17,
                 "NVIDIA DGX B300 data sheet", "sm103", fp4_tflops=14000),
            _gpu("gb200", 184.31, 8.0, 2500, 5000, 900, (2.21, 2.75, 3.30), 2.10,
                 "NVIDIA GB200 NVL72 data sheet", "sm100", fp4_tflops=10000, scale_up_gpus=72),
            _gpu("gb300", 276.6, 8.0, 2500, 5000, 900, (2.652, 3.30, 3.96), 2.10,
                 "NVIDIA GB300 NVL72 data sheet", "sm103", fp4_tflops=15000, scale_up_gpus=72),
            _gpu("l40s", 44.40, 0.864, 362.05, 733, 32, (0.39, 0.51, 0.39), 0.80,
                 "NVIDIA L40S data sheet; PCIe 4.0 x16 in place of NVLink", "sm89", price_source=L40S_PRICE),
            _gpu("rtx_pro_6000_server", 94.97, 1.792, 467.8, 935.6, 64, (0.52, 0.68, 0.52), 1.05,
                 "NVIDIA RTX PRO 6000 Blackwell Server Edition data sheet; PCIe 5.0 x16 in place of NVLink", "sm120",
                 fp4_tflops=1871.2, price_source=RTX_PRICE),
            # H20: Hopper with a seventh of the H100's compute and all of its links; H20-3e has the H200's memory.
            _gpu("h20_sxm", 95.1, 4.0, 148, 296, 450, (0.78, 1.01, 0.78), 1.20,
                 "NVIDIA H20 product brief", "sm90", price_source=H20_PRICE, achieved=H20),
            _gpu("h20_3e", 139.80, 4.8, 148, 296, 450, (0.91, 1.18, 0.91), 1.20,
                 "NVIDIA H20 product brief, HBM3e variant", "sm90", price_source=H20_PRICE, achieved=H20),
            _gpu("h800_sxm", 79.19, 3.35, 989, 1978, 200, (1.04, 1.35, 1.04), 1.73,
                 "NVIDIA H100 data sheet; NVLink of 400 GB/s, DeepSeek-V3 technical report (arXiv 2412.19437)", "sm90",
                 price_source=OTHER_PRICE),
            _gpu("h100_pcie", 79.19, 2.0, 756, 1513, 64, (0.98, 1.27, 0.98), 1.10,
                 "NVIDIA H100 PCIe product brief; PCIe 5.0 x16 in place of NVLink", "sm90", price_source=OTHER_PRICE),
            _gpu("h100_nvl", 93.1, 3.9, 835, 1671, 300, (1.04, 1.35, 1.04), 1.15,
                 "NVIDIA H100 NVL data sheet; a bridge joins two", "sm90", scale_up_gpus=2, price_source=OTHER_PRICE),
            _gpu("h200_nvl", 139.80, 4.8, 835, 1671, 450, (1.27, 1.57, 1.44), 1.25,
                 "NVIDIA H200 NVL data sheet; a bridge joins four", "sm90", scale_up_gpus=4, price_source=OTHER_PRICE),
            _gpu("gh200", 94.5, 4.0, 990, 1979, 450, (1.30, 1.69, 1.30), 1.60,
                 "NVIDIA GH200 Grace Hopper data sheet; one GPU per node", "sm90", scale_up_gpus=1,
                 price_source=OTHER_PRICE),
            _gpu("a100_sxm_40gb", 39.39, 1.555, 312, None, 300, (0.52, 0.68, 0.52), 1.10,
                 "NVIDIA A100 data sheet", "sm80", price_source=OTHER_PRICE),
            _gpu("a100_pcie", 79.25, 1.935, 312, None, 32, (0.61, 0.79, 0.61), 0.80,
                 "NVIDIA A100 data sheet; PCIe 4.0 x16 in place of NVLink", "sm80", price_source=OTHER_PRICE),
            _gpu("a10g", 22.06, 0.6, 70, None, 32, (0.26, 0.34, 0.26), 0.40,
                 "NVIDIA A10G data sheet; PCIe 4.0 x16 in place of NVLink", "sm86", price_source=OTHER_PRICE),
            _gpu("l4", 22.03, 0.3, 121, 242, 32, (0.20, 0.25, 0.20), 0.20,
                 "NVIDIA L4 data sheet; PCIe 4.0 x16 in place of NVLink", "sm89", price_source=OTHER_PRICE),
            _gpu("l40", 44.40, 0.864, 181, 362, 32, (0.33, 0.42, 0.33), 0.70,
                 "NVIDIA L40 data sheet; PCIe 4.0 x16 in place of NVLink", "sm89", price_source=OTHER_PRICE),
            _gpu("rtx_4090", 23.52, 1.008, 165.2, 330.3, 32, (0.16, 0.20, 0.16), 0.75,
                 "NVIDIA Ada GPU architecture white paper; PCIe 4.0 x16 in place of NVLink", "sm89",
                 price_source=OTHER_PRICE),
            _gpu("rtx_5090", 31.36, 1.792, 209.5, 419, 64, (0.26, 0.34, 0.26), 0.95,
                 "NVIDIA RTX Blackwell GPU architecture white paper; PCIe 5.0 x16 in place of NVLink", "sm120",
                 fp4_tflops=1676, price_source=OTHER_PRICE),
            _gpu("mi300x", 191.98, 5.3, 1307.4, 2614.9, 448, (1.12, 1.40, 1.55), 1.79,
                 "AMD Instinct MI300X data sheet", "cdna3", achieved=CDNA3),
            _gpu("mi325x", 255.98, 6.0, 1307.4, 2614.9, 448, (1.28, 1.59, 1.80), 2.18,
                 "AMD Instinct MI325X data sheet", "cdna3", achieved=CDNA3),
            _gpu("mi355x", 287.98, 8.0, 2516.6, 5033.2, 537.6, (1.48, 1.90, 2.10), 2.65,
                 "AMD Instinct MI355X data sheet", "cdna4", fp4_tflops=10066.3, achieved=CDNA4),
        )
    }
)  # fmt: skip


def get_gpu(name: str) -> GPU:
    """Return the card of GPU *name*, a bundled or a user's one; ConfigError naming the nearest where there is none."""
    if name in GPUS:
        return GPUS[name]
    if plugins.is_reference(name):
        return load_card(GPU, name, GPUS, "gpu")
    raise ConfigError(
        f"{name!r}: no such GPU; {nearest(name, GPUS)}known: {', '.join(GPUS)}, or a card file", path="gpu"
    )
