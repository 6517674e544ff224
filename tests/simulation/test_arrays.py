"""Large arrays of zeros cost what is touched of them."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from dynosim.simulation import arrays
from dynosim.simulation.arrays import LARGE, sparse_zeros


@pytest.mark.parametrize("shape", [0, 3, (2, 3), LARGE, (LARGE, 2)])
def test_they_are_zeros_that_can_be_written(shape: int | tuple[int, ...]) -> None:
    made, usual = sparse_zeros(shape, np.int32), np.zeros(shape, np.int32)
    assert made.shape == usual.shape
    assert made.dtype == usual.dtype
    assert made.flags.c_contiguous
    assert not made.any()
    made[...] = 1
    assert made.all()


def test_a_kernel_without_huge_pages_has_none_to_avoid(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses the advice as one that it does not know."""
    monkeypatch.setattr(arrays.mmap, "MADV_NOHUGEPAGE", 1 << 20)
    assert not sparse_zeros(LARGE, np.int8).any()


def test_a_touched_byte_takes_a_page_and_not_a_huge_one() -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return

    def resident() -> int:
        return int(statm.read_text().split()[1]) * resource.getpagesize()

    table = sparse_zeros((64, 1 << 22), np.int8)
    before = resident()
    table[:, 0] = 1
    assert resident() - before < 64 * (1 << 20)
