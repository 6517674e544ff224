"""How the engine is compiled, and how Python hands it its state cheaply.

Compiled code is cached on disk. Only functions called from Python get Python wrappers, and those take a *handle*, one
small array with the addresses and shapes of all state arrays: unpacking twenty arrays at every call would cost more
than most calls do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

SOURCES = ("compiled.py", "engine.py", "gaps.py", "kv_cache.py")
"""Modules whose functions are compiled into each other."""
DIGEST = hashlib.sha256(b"".join((Path(__file__).parent / name).read_bytes() for name in SOURCES)).hexdigest()


def entry(function: Callable[..., Any], **options: bool) -> Any:
    """Compile *function* and cache it on disk until any of SOURCES changes.

    numba alone asks only whether the function's own file has changed, and would go on with old code of the others.
    """
    dispatcher = njit(cache=True, **options)(function)
    dispatcher._cache._cache_file._source_stamp = DIGEST
    return dispatcher


def inner(function: Callable[..., Any]) -> Any:
    """Compile a function that only compiled code calls."""
    return entry(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


INT32, INT64, FLOAT64 = np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.float64)


def handle_of(arrays: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """Return (address, length, width) of each array. The caller keeps the arrays alive; they must be C-contiguous."""
    rows = [(a.ctypes.data, a.shape[0], a.shape[1] if a.ndim == 2 else 1) for a in arrays]
    if not all(a.flags.c_contiguous for a in arrays):
        raise ValueError("engine arrays must be contiguous")
    return np.array(rows, np.int64)


@intrinsic
def _pointer(typing_context, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), codegen


@inner
def view(handle, row, dtype):
    """Return array *row* of a handle, one-dimensional."""
    return carray(_pointer(handle[row, 0]), (handle[row, 1],), dtype)


@inner
def view2(handle, row, dtype):
    """Return array *row* of a handle, two-dimensional."""
    return carray(_pointer(handle[row, 0]), (handle[row, 1], handle[row, 2]), dtype)
