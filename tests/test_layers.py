"""Imports point one way, and each third party lives behind one package."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "dynosim"
LAYERS = [
    ["errors", "rng", "files"],
    ["plugins", "addresses"],
    ["config"],
    ["engines"],
    ["workload", "hardware"],
    ["timing"],
    ["policies"],
    ["simulation"],
    ["uncertainty"],
    ["metrics"],
    ["objectives", "estimates"],
    ["space"],
    ["calibration"],
    ["search"],
    ["tracking", "report", "fidelity"],
    ["run"],
    ["views", "progress", "compare"],
    ["service"],
    ["cli"],
    ["__main__", "__init__"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
HOMES = {
    "simpy": {"simulation"},
    "numba": {"simulation", "timing"},
    "optuna": {"search"},
    "botorch": {"search"},
    "gpytorch": {"search"},
    "loky": {"search"},
    "torch": {"search"},
    "matplotlib": {"fidelity"},
    "mlflow": {"tracking"},
    "fastapi": {"service"},
    "aiconfigurator_core": {"timing"},
}
MODULES = sorted(SRC.rglob("*.py"))


def _imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def _part(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_point_down_the_layers(path: Path) -> None:
    part = _part(path)
    for name in _imported(path):
        if name.startswith("dynosim."):
            below = name.split(".")[1]
            below = below if below in RANK else "__init__"
            allowed = below == part or RANK[below] < RANK[part] or name == "dynosim.__version__"
            assert allowed, f"{part} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_third_parties_stay_at_home(path: Path) -> None:
    for name in _imported(path):
        homes = HOMES.get(name.split(".")[0])
        assert homes is None or _part(path) in homes, f"{path.name} imports {name}"


BROUGHT = {"yaml": "pyyaml", "aiconfigurator_core": "aiconfigurator-core", "starlette": "fastapi", "llvmlite": "numba"}
"""Import -> the distribution that it is declared by, where names differ or one pins the other exactly."""


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((SRC.parents[1] / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    declared = {re.match(r"[\w-]+", line).group().lower() for line in lines}  # type: ignore[union-attr]
    imported = {name.partition(".")[0] for path in MODULES for name in _imported(path)}
    foreign = imported - {*sys.stdlib_module_names, "dynosim"}
    assert not sorted(name for name in foreign if BROUGHT.get(name, name).lower() not in declared)


def test_the_held_out_measurements_are_never_named() -> None:
    held_out = "silicon" + "_sample"
    assert not [path for path in MODULES if held_out in path.read_text()]
