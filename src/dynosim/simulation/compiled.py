"""Which functions are compiled, and how Python gets at them cheaply.

All of them become one object file (``build.py``), kept on disk for exactly these sources, this numba and this
processor. To read it takes LLVM only; numba, half a second to import and set up, is for making it.

Python hands over a *handle*, one small array with the addresses and shapes of all state arrays: unpacking twenty arrays
at every call would cost more than most calls do.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock
from llvmlite import binding
from numpy.typing import NDArray

from dynosim.files import write_whole

SOURCES = (
    "admission.py", "batching.py", "build.py", "compiled.py", "engine.py", "gaps.py", "index.py", "kv_cache.py",
    "links.py", "passes.py", "queueing.py", "queues.py", "routing.py", "sglang.py", "state.py", "tiers.py", "vllm.py",
    "../policies/routing/kv_aware.py",
)  # fmt: skip
"""Modules whose functions are compiled, and those that say how."""
FOLDER = Path(__file__).parent
DIGEST = hashlib.sha256(b"".join((FOLDER / name).read_bytes() for name in SOURCES)).hexdigest()

PYTHON_API = (
    "PyBuffer_Release", "PyErr_BadArgument", "PyErr_Occurred", "PyFloat_AsDouble", "PyLong_AsLongLong",
    "PyObject_GetBuffer", "Py_BuildValue",
)  # fmt: skip
"""What entries call to unpack their arguments and to return."""
METH_FASTCALL = 0x80

Function = TypeVar("Function", bound=Callable[..., Any])
Handle = Handles = Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
"""Annotations of an entry's parameters: a handle, those of several pools, arrays."""

inner_functions: list[Callable[..., Any]] = []
shared_functions: list[Callable[..., Any]] = []
entries: list[Callable[..., Any]] = []


def inner(function: Callable[..., Any]) -> Any:
    """Declare a function that only compiled code calls: whole numbers of any kind come as 64 bits."""
    inner_functions.append(function)
    return function


def share(*functions: Callable[..., Any]) -> None:
    """Declare functions of a policy, which Python goes on to call as they are: compiled code may call them too."""
    shared_functions.extend(functions)


def entry(function: Function) -> Function:
    """Declare a function for Python to call; the annotations of its parameters say what it takes (``build.TYPES``)."""
    entries.append(function)
    return function


class State:
    """In compiled code: the address of a handle, with the arrays as attributes. One word to pass on, whatever it holds.

    *fields* is name -> (dtype, dimensions) in the order of the handle.
    """

    def __init__(self, name: str, fields: Mapping[str, tuple[np.dtype[Any], int]]) -> None:
        self.name, self.fields = name, fields


class Opener:
    """In compiled code: the function from a handle to *state*."""

    def __init__(self, state: State) -> None:
        self.state = state


def handle_of(arrays: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """Return (address, length, width) of each array. The caller keeps the arrays alive; they must be C-contiguous."""
    rows = [(a.ctypes.data, a.shape[0], a.shape[1] if a.ndim == 2 else 1) for a in arrays]
    if not all(a.flags.c_contiguous for a in arrays):
        raise ValueError("engine arrays must be contiguous")
    return np.array(rows, np.int64)


# ----------------------------------------------------------------------------------------------------------- on disk


def load() -> None:
    """Put the compiled functions in the place of the entries; once per process, before the first call of one."""
    if _kept:
        return
    for name in PYTHON_API:
        binding.add_symbol(name, ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value)
    _kept.append(_engine(_object_code()))
    for function in entries:
        function.__globals__[function.__name__] = _builtin(function)


_kept: list[Any] = []
"""What has to outlive every call: LLVM's engine, and the definitions of the built-in functions."""


def _object_code() -> bytes:
    """Return the compiled functions, from disk if they are there; a folder that cannot be written to keeps nothing."""
    paths = [folder / f"engine.{_key()}.o" for folder in _folders()]
    for path in paths:
        if (found := _read(path)) is not None:
            return found
    for path in paths:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):  # several workers start at once
                return _read(path) or _write(path)
    return _compile()


def _key() -> str:
    """Return what compiled code depends on, as a name."""
    parts = [DIGEST, version("numba"), binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()]
    parts += [binding.get_process_triple(), sys.implementation.cache_tag]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _folders() -> Iterator[Path]:
    """Yield where compiled code may be kept, the best first: ``DYNOSIM_CACHE_DIR`` where it is set."""
    if given := os.environ.get("DYNOSIM_CACHE_DIR"):
        yield Path(given)
        return
    if os.access(FOLDER, os.W_OK):
        yield FOLDER / "__pycache__"
    with suppress(RuntimeError):  # no home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynosim"


def _read(path: Path) -> bytes | None:
    """Return the code in *path*, which begins with its checksum; None where it is absent or damaged."""
    with suppress(OSError):
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            return content[32:]
    return None


def _write(path: Path) -> bytes:
    code = _compile()
    write_whole(path, hashlib.sha256(code).digest() + code)
    return code


def _compile() -> bytes:
    from dynosim.simulation.build import object_code

    return object_code()


# ------------------------------------------------------------------------------------------------------------ calling


def _engine(code: bytes) -> binding.ExecutionEngine:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_triple(binding.get_process_triple()).create_target_machine(jit=True)
    arm = platform.machine() in ("aarch64", "arm64")  # where sections of one file may lie too far apart without it
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine, use_lmm=arm)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine


class _MethodDef(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_new_function = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(
    ("PyCFunction_NewEx", ctypes.pythonapi)
)


def _builtin(function: Callable[..., Any]) -> Any:
    """Return the compiled *function* as a built-in one, which costs a tenth of a call through ``ctypes``."""
    definition = _MethodDef(
        function.__name__.encode(), _kept[0].get_function_address(symbol(function)), METH_FASTCALL, None
    )
    _kept.append(definition)
    return _new_function(ctypes.addressof(definition), None, None)


def symbol(function: Callable[..., Any]) -> str:
    """Return the name of an entry in the object file."""
    return f"dynosim.{function.__module__}.{function.__name__}"
