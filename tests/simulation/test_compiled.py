"""Compiled code on disk belongs to exactly the sources, the compiler and the processor it was made for."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from dynosim.simulation import build, compiled, engine, gaps
from dynosim.simulation.compiled import Floats, Handle
from simulation.histogram import make_gaps

FOLDER = Path(compiled.__file__).parent
CALLERS = {"build.py", "pool.py"}
"""Modules that import from ``compiled`` without compiled functions of their own."""


def test_every_module_with_compiled_functions_is_in_the_digest() -> None:
    users = {path.name for path in FOLDER.glob("*.py") if "compiled import" in path.read_text()}
    shared = {Path(inspect.getfile(function)) for function in compiled.shared_functions}
    known = {(FOLDER / name).resolve() for name in compiled.SOURCES}
    assert known == {FOLDER / name for name in (users - CALLERS) | {"build.py", "compiled.py"}} | shared


def test_a_change_of_one_source_makes_compiled_code_stale(tmp_path: Path) -> None:
    shutil.copytree(FOLDER.parents[1], tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "packs"))
    code = "from dynosim.simulation import compiled; print(compiled._key())"

    def key() -> str:
        run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'src')!r}); {code}"]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout

    before = key()
    changed = tmp_path / "src" / "dynosim" / "simulation" / "kv_cache.py"
    changed.write_text(changed.read_text() + "\n")
    assert key() != before


def test_another_processor_or_compiler_has_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = compiled._key()
    monkeypatch.setattr(compiled.binding, "get_host_cpu_name", lambda: "another")
    other = compiled._key()
    monkeypatch.setattr(compiled, "version", lambda name: "0.0")
    assert len({before, other, compiled._key()}) == 3


def test_damaged_code_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bytes] = []
    monkeypatch.setattr(compiled, "_compile", lambda: made.append(b"code") or b"code")
    monkeypatch.setattr(compiled, "_folders", lambda: iter([tmp_path]))
    assert compiled._object_code() == compiled._object_code() == b"code"
    assert len(made) == 1
    (path,) = tmp_path.glob("*.o")
    path.write_bytes(path.read_bytes()[:-1])
    assert compiled._object_code() == b"code"
    assert len(made) == 2


def test_a_folder_that_cannot_be_written_to_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(compiled, "_compile", lambda: b"code")
    monkeypatch.setattr(compiled, "_folders", lambda: iter([tmp_path / "file" / "below"]))
    assert compiled._object_code() == b"code"


def test_a_process_that_reads_compiled_code_does_not_import_numba() -> None:
    compiled.load()
    code = (
        "import json, sys; from dynosim.simulation import compiled; compiled.load(); print(json.dumps([*sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "numba" not in json.loads(run.stdout)


def test_entries_refuse_what_they_were_not_compiled_for() -> None:
    compiled.load()
    for wrong in ((), (0, 0.0), (np.zeros(3, np.int64), 0.0), (np.zeros((3, 3), np.int32), 0.0)):
        with pytest.raises((TypeError, BufferError)):
            engine.settle_all(*wrong)


def _count(count: Floats, total: Floats, limits: Floats) -> None:
    gaps.record_gaps(count, total, limits, 0.5, 0.25, 4, 1)


def test_a_process_that_has_used_numba_otherwise_compiles_all_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was compiled before, as numba does it by itself or by a try that failed, is part of the object file too."""
    make_gaps([(0.5, 0.25, 4, 1)])
    njit(_count)(np.zeros(gaps.BINS), np.zeros(gaps.BINS), np.array([1.0, 0.0]))
    monkeypatch.setattr(build, "entries", [_count])
    assert all(build.object_code() for _ in range(2))


def test_parameters_of_entries_are_of_known_types() -> None:
    def strange(handle: Handle, colour: complex) -> None: ...

    with pytest.raises(TypeError, match="colour"):
        build._kinds(strange)
