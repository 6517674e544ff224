"""Compiled code on disk belongs to exactly the sources it was made of."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from dynosim.simulation import compiled, engine

FOLDER = Path(compiled.__file__).parent


def test_every_module_with_compiled_functions_is_in_the_digest() -> None:
    users = {path.name for path in FOLDER.glob("*.py") if "compiled import" in path.read_text()}
    assert set(compiled.SOURCES) == (users | {"compiled.py"}) - {"pool.py"}  # the pool only makes handles


def test_a_change_of_one_source_makes_all_compiled_code_stale(tmp_path: Path) -> None:
    shutil.copytree(FOLDER.parents[1], tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "packs"))
    code = "from dynosim.simulation import engine; print(engine.submit._cache._cache_file._source_stamp)"

    def stamp() -> str:
        run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'src')!r}); {code}"]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout

    before = stamp()
    changed = tmp_path / "src" / "dynosim" / "simulation" / "kv_cache.py"
    changed.write_text(changed.read_text() + "\n")
    assert stamp() != before


def test_all_that_is_on_disk_carries_the_stamp() -> None:
    compiled.load_units()
    entries = [function for function in vars(engine).values() if getattr(function, "_can_compile", False)]
    caches = [entry._cache for entry in entries] + [unit._cache for unit in compiled._loaded]
    kept = [cache._cache_file for cache in caches if hasattr(cache, "_cache_file")]
    assert len(kept) > 10
    assert {files._source_stamp for files in kept} == {compiled.DIGEST}
    assert all(compiled.DIGEST[:8] in files._index_path for files in kept)
    assert all(compiled.DIGEST[:8] in files._data_name_pattern for files in kept)
