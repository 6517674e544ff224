"""The public API is one sorted list, and every name in it is there."""

from __future__ import annotations

import subprocess
import sys

import dynosim


def test_public_names_are_sorted_and_exist() -> None:
    assert dynosim.__all__ == sorted(dynosim.__all__)
    assert set(dynosim.__all__) == set(dynosim._HOMES)
    assert set(dynosim.__all__) <= set(dir(dynosim))
    for name in dynosim.__all__:
        assert getattr(dynosim, name).__name__ == name


def test_importing_dynosim_imports_nothing_heavy() -> None:
    code = "import sys, dynosim; print(sorted({m.split('.')[0] for m in sys.modules}))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("numpy", "numba", "torch", "optuna", "mlflow", "pandas", "pydantic"):
        assert f"'{heavy}'" not in modules
