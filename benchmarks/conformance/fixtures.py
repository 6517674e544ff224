"""The files of recorded scenarios: what was served, on what, and what the engine's own scheduler made of it.

about       one line
deployment  a DeploymentConfig without engine.async_scheduling
workload    columns of dynosim.workload.table.Workload
recorded    mode (sync, async) -> engine version and one column per thing compared
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("CONFORMANCE", Path(__file__).parents[2] / "tests" / "conformance"))
MODES = {"sync": False, "async": True}
"""Name -> engine.async_scheduling."""
COLUMNS = {"ttft_s": 1e-6, "finish_s": 1e-6, "cached_tokens": 0, "preemptions": 0}
"""What is compared of each request -> tolerance, absolute and relative; cached tokens of the first admission."""
DIGITS = 9
"""Times are recorded to the nanosecond."""


Serve = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
"""(deployment, workload) -> what became of each request; see ``COLUMNS``."""


def paths(engine: str, names: list[str] | None = None) -> list[Path]:
    """Return the files of *engine*'s scenarios, or of those named."""
    found = sorted((FOLDER / engine).glob("*.json"))
    unknown = set(names or ()) - {path.stem for path in found}
    if unknown:
        raise SystemExit(f"{', '.join(sorted(unknown))}: allowed: {', '.join(path.stem for path in found)}")
    return [path for path in found if not names or path.stem in names]


def read(path: Path) -> dict[str, Any]:
    """Return one scenario."""
    scenario: dict[str, Any] = json.loads(path.read_text())
    return scenario


def write(path: Path, scenario: dict[str, Any]) -> None:
    """Write one scenario, a column per line."""
    path.write_text(_text(scenario) + "\n")


def deployment(scenario: dict[str, Any], mode: str) -> dict[str, Any]:
    """Return the scenario's deployment in one mode."""
    found = copy.deepcopy(scenario["deployment"])
    found["engine"]["async_scheduling"] = MODES[mode]
    return found


def close(name: str, a: float, b: float) -> bool:
    """Whether two values of column *name* are equal within its tolerance."""
    return abs(a - b) <= COLUMNS[name] * max(1.0, abs(a))


def differences(recorded: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    """Yield one line per value that differs: request, field, recorded, now; nothing where nothing is recorded yet."""
    for name in COLUMNS if recorded else ():
        for i, (a, b) in enumerate(zip(recorded[name], found[name], strict=True)):
            if not close(name, a, b):
                yield f"request {i} {name}: recorded {a} ({recorded['version']}), now {b}"


def rerun(engine: str, version: str, serve: Serve, names: list[str], *, keep: bool) -> int:
    """Serve the scenarios of *engine* in both modes, print what differs and, with *keep*, record; returns the exit
    code."""
    found = 0
    for path in paths(engine, names):
        scenario = read(path)
        for mode in MODES:
            now = serve(deployment(scenario, mode), scenario["workload"]) | {"version": version}
            for line in differences(scenario["recorded"].get(mode, {}), now):
                print(f"{path.stem} {mode} {line}")
                found += 1
            scenario["recorded"][mode] = now
        if keep:
            write(path, scenario)
    print(f"{engine} {version}: {found} differences")
    return int(found > 0 and not keep)


def _text(value: Any, indent: str = "") -> str:
    if not isinstance(value, dict):
        return json.dumps(value, separators=(",", ":"))
    inner = ",\n".join(f'{indent} "{key}": {_text(item, indent + " ")}' for key, item in value.items())
    return f"{{\n{inner}\n{indent}}}"
