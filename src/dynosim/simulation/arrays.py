"""Arrays of zeros of which most is never touched: they take the memory of what is used."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

LARGE = 1 << 20
"""Bytes from which on an array gets pages of its own."""


def sparse_zeros(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return ``np.zeros(shape, dtype)`` in small pages: of the huge ones that numpy asks for, a byte takes 2 MB."""
    shape = shape if isinstance(shape, tuple) else (int(shape),)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < LARGE or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(shape, dtype)
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel that has no huge pages knows no such advice
        area.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(area, dtype, math.prod(shape)).reshape(shape)
