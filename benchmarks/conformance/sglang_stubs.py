"""Stand-ins for what SGLang imports and its scheduler does not need: kernels, layers, and the packages behind them.

``install`` comes before the first import of ``sglang``.
"""

from __future__ import annotations

import abc
import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any, ClassVar

import torch
import torch._dynamo
import transformers  # noqa: F401  it looks for the real triton, so it comes before the stand-ins

PACKAGES = ("compressed_tensors", "gguf", "partial_json_parser", "sentencepiece", "sgl_kernel", "torchvision", "triton")
SGLANG_MODULES = (
    "sglang.kernels",
    "sglang.srt.layers.activation",
    "sglang.srt.layers.attention",
    "sglang.srt.model_executor.runner",
)


class _Anything:
    """Any value that a module computes while it is imported."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else self

    def __getattr__(self, name: str) -> _Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


class _Type(abc.ABCMeta):
    """Any name of a module: a base class, a decorator with or without arguments, a type in an annotation."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _named(name)

    def __or__(cls, other: Any) -> Any:
        return cls

    def __ror__(cls, other: Any) -> Any:
        return cls

    def __iter__(cls) -> Any:
        return iter(())

    def __getitem__(cls, key: Any) -> Any:
        return cls

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and isinstance(args[0], types.FunctionType | type):
            return args[0]
        return _Anything() if cls.__bases__ == (object,) else super().__call__(*args, **kwargs)


def _named(name: str) -> _Type:
    return _Type(name, (object,), {})


class _Module(types.ModuleType):
    __path__: ClassVar[list[str]] = []
    __version__ = "99.0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _named(name)
        setattr(self, name, value)
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] in PACKAGES or name.startswith(SGLANG_MODULES):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None: ...


def _compile(function: Any = None, **_: Any) -> Any:
    return function if function is not None else lambda f: f


def install() -> None:
    """Put the stand-ins in front of the real modules; functions are not compiled."""
    sys.meta_path.insert(0, _Finder())
    torch.compile = _compile  # type: ignore[assignment]
