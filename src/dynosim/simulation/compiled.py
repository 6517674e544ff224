"""How the engine is compiled, and how Python hands it its state cheaply.

Compiled code is cached on disk. Only functions called from Python get Python wrappers, and those take a *handle*, one
small array with the addresses and shapes of all state arrays: unpacking twenty arrays at every call would cost more
than most calls do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import from_dtype, njit, types
from numba.core import sigutils
from numba.core.ccallback import CFunc
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, intrinsic, lower_getattr_generic, models, register_model
from numba.np.arrayobj import populate_array
from numpy.typing import NDArray

SOURCES = (
    "admission.py", "batching.py", "compiled.py", "engine.py", "gaps.py", "kv_cache.py", "links.py", "passes.py",
    "queues.py", "sglang.py", "state.py", "tiers.py", "vllm.py",
)  # fmt: skip
"""Modules whose functions are compiled into each other."""
DIGEST = hashlib.sha256(b"".join((Path(__file__).parent / name).read_bytes() for name in SOURCES)).hexdigest()


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function for Python to call, and cache it on disk until any of SOURCES changes."""
    dispatcher = njit(cache=True)(function)
    _stamp(dispatcher._cache)
    return dispatcher


def _stamp(cache: Any) -> None:
    """Let cached code go stale with any of SOURCES: numba asks only whether the function's own file has changed.

    It also reads an index before it compares stamps, and one of other sources may name what is no longer there.
    """
    files = cache._cache_file
    files._source_stamp = DIGEST
    files._index_path += f".{DIGEST[:8]}"
    files._data_name_pattern += f".{DIGEST[:8]}"


_units: list[tuple[str, CFunc]] = []


def unit(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a large inner function by itself, to be called by its address; ``load_units`` makes it callable.

    Numba links all that a function calls into it and optimises it again there, which takes most of the compile time of
    deep trees of calls.
    """

    def declare(function: Callable[..., Any]) -> Any:
        arguments, result = sigutils.normalize_signature(signature)
        callback = CFunc(function, (arguments, result), locals={}, options={"nopython": True})
        callback.enable_caching()
        _stamp(callback._cache)
        name = f"dynosim.{DIGEST[:8]}.{function.__name__}"
        _units.append((name, callback))
        return types.ExternalFunction(name, signature)

    return declare


def load_units() -> None:
    """Compile all units, or read them from disk; once per process, before anything that calls them."""
    while _units:
        name, callback = _units.pop(0)
        callback.compile()
        binding.add_symbol(name, callback.address)
        _loaded.append(callback)


_loaded: list[CFunc] = []


def inner(function: Callable[..., Any]) -> Any:
    """Compile a function that only compiled code calls, once: whole numbers of any kind come as 64 bits."""
    dispatcher = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    template = dispatcher.get_call_template
    dispatcher.get_call_template = lambda args, kws: template(tuple(map(_widest, args)), kws)
    return dispatcher


def _widest(kind: types.Type) -> types.Type:
    kind = types.unliteral(kind)
    return types.int64 if kind in (types.int8, types.int32) else kind


def handle_of(arrays: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """Return (address, length, width) of each array. The caller keeps the arrays alive; they must be C-contiguous."""
    rows = [(a.ctypes.data, a.shape[0], a.shape[1] if a.ndim == 2 else 1) for a in arrays]
    if not all(a.flags.c_contiguous for a in arrays):
        raise ValueError("engine arrays must be contiguous")
    return np.array(rows, np.int64)


class State(types.Type):
    """In compiled code: the address of a handle, with the arrays as attributes. One word to pass on, whatever it holds.

    *fields* is name -> (dtype, dimensions) in the order of the handle.
    """

    def __init__(self, name: str, fields: Mapping[str, tuple[np.dtype[Any], int]]) -> None:
        super().__init__(name)
        self.arrays = {
            field: (row, types.Array(from_dtype(dtype), ndim, "C"))
            for row, (field, (dtype, ndim)) in enumerate(fields.items())
        }


@register_model(State)
class _StateModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, ir.IntType(64))


@infer_getattr
class _StateAttributes(AttributeTemplate):
    key = State

    def generic_resolve(self, state, name):
        return state.arrays[name][1] if name in state.arrays else None


@lower_getattr_generic(State)
def _lower_attribute(context, builder, state, address, name):
    """Build the array from its row of the handle."""
    row, array_type = state.arrays[name]
    table = builder.inttoptr(address, ir.IntType(64).as_pointer())
    data, length, width = (builder.load(builder.gep(table, [ir.IntType(64)(3 * row + i)])) for i in range(3))
    size = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
    one = ir.IntType(64)(size)
    shape, strides = [length], [one]
    if array_type.ndim == 2:
        shape, strides = [length, width], [builder.mul(width, one), one]
    array = context.make_array(array_type)(context, builder)
    pointer = builder.inttoptr(data, array.data.type)
    populate_array(array, data=pointer, shape=shape, strides=strides, itemsize=one, meminfo=None)
    return array._getvalue()


def opener(state: State) -> Any:
    """Return the compiled function from a handle to *state*."""

    @intrinsic
    def open_state(typing_context, handle):
        def codegen(context, builder, signature, args):
            array = context.make_array(signature.args[0])(context, builder, args[0])
            return builder.ptrtoint(array.data, ir.IntType(64))

        return state(handle), codegen

    return open_state
