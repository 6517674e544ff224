"""What users bring: an object of a Python file or module, or a card file, wherever a built-in may be named.

``file.py:Name`` and card files (``gpu.yaml``) are paths: relative to the file that says so, or to the working directory
on the command line and in Python. ``module:Name`` is a file too where ``module.py`` lies there; else it is what Python
imports under that name. Configurations hold absolute paths from the moment they are read (``absolute``), so worker
processes, resumed runs and recommendations find the same file from any directory.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from dynosim.errors import ConfigError, DynosimError, nearest

CARD_FILES = (".yaml", ".yml")
FORMS = "file.py:Name or package.module:Name"

Value = TypeVar("Value")


def is_reference(name: str) -> bool:
    """Return whether *name* is something of the user's, and no built-in's name."""
    return ":" in name or is_card_file(name)


def is_card_file(name: str) -> bool:
    """Return whether *name* is a path of a card file."""
    return name.endswith(CARD_FILES)


def absolute(reference: str, base: Path) -> str:
    """Return *reference* with the path of its file, if it names one, made absolute from the folder *base*."""
    if is_card_file(reference):
        return str(base.absolute() / reference)
    source, _, name = reference.rpartition(":")
    beside = base.absolute() / (source if source.endswith(".py") else f"{source}.py")
    return f"{beside}:{name}" if source.endswith(".py") or (source.isidentifier() and beside.is_file()) else reference


def _source(reference: str) -> str:
    """Return the file or module that *reference* is in."""
    return reference if is_card_file(reference) else reference.rpartition(":")[0]


def short(reference: str) -> str:
    """Return *reference* without folders, as tables show it: ``my_router.py:ShortestQueue``."""
    return Path(reference).name if is_reference(reference) else reference


def load(reference: str, base: Path | None = None, *, path: str = "") -> Any:
    """Return the object that ``file.py:Name`` or ``package.module:Name`` names.

    Raises ConfigError, about the field *path*, where there is none. A file is run once for each content it has.
    """
    source, _, name = absolute(reference, base or Path()).rpartition(":")
    if not source or not name or source.startswith("."):
        raise ConfigError(f"{reference!r}: allowed: {FORMS}", path=path)
    try:
        module = _module_of(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except (Exception, SystemExit) as error:  # whatever a user's file does when it is run
        raise ConfigError(f"{short(reference)}: {_said(error, source)}", path=path) from error
    if not hasattr(module, name):
        near = nearest(name, (word for word in vars(module) if not word.startswith("_"))).strip()
        raise ConfigError(f"{short(reference)}: {source} has no {name!r}{near and f': {near}'}", path=path)
    return getattr(module, name)


def call(reference: str, task: Callable[[], Value], path: str) -> Value:
    """Return what *task*, code of the user's *reference*, gives; what it raises is a ConfigError about *path*."""
    try:
        return task()
    except DynosimError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's code does
        raise ConfigError(f"{short(reference)}: {_said(error, _source(reference))}", path=path) from error


def stamp(reference: str) -> tuple[int, int]:
    """Return what changes when the file of *reference* does: (mtime in ns, size in bytes); zeros for a module."""
    source = _source(reference)
    if not source.endswith((".py", *CARD_FILES)):
        return 0, 0
    try:
        status = os.stat(source)
    except OSError as error:
        raise ConfigError(f"{short(reference)}: {source} cannot be read: {error.strerror}") from error
    return status.st_mtime_ns, status.st_size


def _said(error: BaseException, source: str) -> str:
    """Return *error* in one line, with the line of the user's file that raised it."""
    if isinstance(error, OSError) and str(error.filename) == source:
        return f"{source} cannot be read: {error.strerror}"
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source]
    where = f"{source}, line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {' '.join(str(error).split())}"


def _module_of(path: Path) -> ModuleType:
    return _run(path, hashlib.sha256(path.read_bytes()).hexdigest()[:12])


@lru_cache(maxsize=256)
def _run(path: Path, content: str) -> ModuleType:
    """Return the module that the file *path* makes; it may import its neighbours, as a script may."""
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    name = f"dynosim_user_{path.stem}_{hashlib.sha256(f'{path}{content}'.encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    _being_run.append(path)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        _being_run.pop()
    return module


_being_run: list[Path] = []


def check_not_imported() -> None:
    """Raise ConfigError where a file of the user's is being imported: a script that searches would search again."""
    if _being_run:
        raise ConfigError(
            f"{_being_run[-1].name} searches when it is imported: put that below if __name__ == '__main__'"
        )


def content_hash(reference: str) -> str | None:
    """Return a hash of the user's code or card; None for a module that Python imports, whose parts are not known.

    The code of a file is that of the files beside it that it imports, too.
    """
    source = _source(reference)
    if not source.endswith((".py", *CARD_FILES)):
        return None
    digest = hashlib.sha256()
    for file in sorted(_sources(Path(source), set())):
        with suppress(OSError):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _sources(path: Path, seen: set[Path]) -> set[Path]:
    """Add *path* and what it imports from its own folder to *seen*, and return it."""
    if path in seen or not path.is_file():
        return seen
    seen.add(path)
    for name in _imported(path) if path.suffix == ".py" else ():
        beside = path.parent / name
        for file in (beside.with_suffix(".py"), *sorted(beside.rglob("*.py"))):
            _sources(file, seen)
    return seen


def _imported(path: Path) -> Iterator[str]:
    """Yield the top-level names that the Python file *path* imports."""
    with suppress(SyntaxError, ValueError):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module.partition(".")[0]
