"""What GPUs cost, and who says so: the user, or the table of the user's choice on the GPU's card."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from dynosim.config import PriceConfig
from dynosim.hardware.gpus import get_gpu


class Price(NamedTuple):
    """Of one GPU."""

    usd_per_gpu_hour: float
    source: str
    """The user, or a table with its source and date."""


def price(gpu: str, prices: PriceConfig) -> Price:
    """Return the price that *prices* gives to the name of *gpu*'s card, else the card's own."""
    card, times = get_gpu(gpu), "" if prices.factor == 1.0 else f", x {prices.factor:g}"
    if card.name in prices.usd_per_gpu_hour:
        return Price(prices.usd_per_gpu_hour[card.name] * prices.factor, f"given in prices.usd_per_gpu_hour{times}")
    table = f"table {prices.table}: {card.price_source}{times}"
    return Price(card.usd_per_hour[prices.table] * prices.factor, table)


def usd(gpu_hours: Iterable[tuple[str, float]], prices: PriceConfig) -> float:
    """Return what hours of GPUs cost, given as (GPU, hours); GPUs in place of hours give USD per hour."""
    return sum(hours * price(gpu, prices).usd_per_gpu_hour for gpu, hours in gpu_hours)


def price_list(gpus: Iterable[str], prices: PriceConfig) -> dict[str, dict[str, Any]]:
    """Return the name of each card of *gpus* -> the fields of its price."""
    return {get_gpu(gpu).name: price(gpu, prices)._asdict() for gpu in sorted(set(gpus))}
