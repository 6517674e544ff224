import re
from pathlib import Path

import pytest

from dynosim.config import PriceConfig
from dynosim.errors import ConfigError
from dynosim.hardware.gpus import GPUS, get_gpu
from dynosim.hardware.prices import price_list

PAGE = (Path(__file__).parents[2] / "docs" / "hardware.md").read_text()
SURVEYED = {
    "h100_sxm": (1.30, 1.69, 1.30, 1730),
    "h200_sxm": (1.41, 1.74, 1.60, 1730),
    "b200_sxm": (1.95, 2.34, 2.90, 2170),
    "b300_sxm": (2.34, 2.808, 3.48, 2170),
    "gb200": (2.21, 2.75, 3.30, 2100),
    "gb300": (2.652, 3.30, 3.96, 2100),
    "mi300x": (1.12, 1.40, 1.55, 1790),
    "mi325x": (1.28, 1.59, 1.80, 2180),
    "mi355x": (1.48, 1.90, 2.10, 2650),
}
"""SemiAnalysis InferenceX-app ``constants.ts``, April 2026: hyperscaler, neocloud, three-year rental, W."""


@pytest.mark.parametrize("name", SURVEYED)
def test_prices_and_power_are_the_survey_s(name):
    gpu = get_gpu(name)
    assert (*gpu.usd_per_hour.values(), gpu.power_w) == SURVEYED[name]


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS.keys())
def test_every_card_is_complete_and_sourced(gpu):
    assert set(gpu.usd_per_hour) == {"hyperscaler", "neocloud", "three_year_rental"}
    assert gpu.flops.get("fp8", 2 * gpu.flops["bf16"]) == pytest.approx(2 * gpu.flops["bf16"], rel=0.03)
    assert gpu.specification_source
    assert gpu.price_source


def test_a100_has_no_fp8():
    assert "fp8" not in get_gpu("a100_sxm").flops


def test_unknown_gpu_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'h100_sxm'"):
        get_gpu("h100")


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS.keys())
def test_the_page_has_the_card(gpu):
    (row,) = re.findall(rf"^\| `{gpu.name}` \| (.+) \|$", PAGE, re.MULTILINE)
    prices = ", ".join(f"{price:.2f}" for price in gpu.usd_per_hour.values())
    assert row.split(" | ")[0] == f"{gpu.memory_bytes / 2**30:.0f}"
    assert row.split(" | ")[-3:] == [str(gpu.scale_up_gpus), prices, f"{gpu.power_w / 1e3:.2f}"]


def test_prices_say_where_they_come_from() -> None:
    prices = PriceConfig(usd_per_gpu_hour={"h100_sxm": 3.5}, table="hyperscaler")
    said = price_list(["l40s", "h100_sxm", "l40s"], prices)
    assert said["h100_sxm"] == {"usd_per_gpu_hour": 3.5, "source": "given in prices.usd_per_gpu_hour"}
    assert said["l40s"]["source"] == f"table hyperscaler: {get_gpu('l40s').price_source}"
    assert len(said) == 2
