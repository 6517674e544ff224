"""Recorded scenarios of a real engine's scheduler, and how far a simulation is from them, request by request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import fixtures
import numpy as np
from numpy.typing import NDArray

from dynosim.config import DeploymentConfig
from dynosim.simulation import SimulationResult
from dynosim.workload.table import Workload

Simulate = Callable[[DeploymentConfig, Workload], SimulationResult]


@dataclass(frozen=True)
class Case:
    """One scenario in one mode, as one version of the engine decided."""

    name: str
    """Scenario and mode, ``seats-async``."""
    deployment: dict[str, Any]
    workload: dict[str, Any]
    recorded: dict[str, Any]

    def simulated(self, simulate: Simulate) -> dict[str, NDArray[np.float64]]:
        """Return column -> what *simulate* makes of each request."""
        deployment = DeploymentConfig.model_validate(self.deployment)
        requests = simulate(deployment, Workload(name=self.name, **_columns(self.workload)).checked()).requests
        return {
            "ttft_s": requests["first_token_s"] - requests["arrival_s"],
            "finish_s": requests["last_token_s"],
            "cached_tokens": requests["cached_tokens"].astype(float),
            "preemptions": requests["preemptions"].astype(float),
        }

    def equal(self, found: dict[str, NDArray[np.float64]]) -> NDArray[np.bool_]:
        """Return, per request and column, whether both are equal; shape (n, columns)."""
        pairs = ((np.array(self.recorded[name], float), found[name], limit) for name, limit in fixtures.COLUMNS.items())
        return np.stack([np.abs(a - b) <= limit * np.maximum(1.0, np.abs(a)) for a, b, limit in pairs], axis=1)

    def differences(self, found: dict[str, NDArray[np.float64]]) -> dict[str, tuple[float, float]]:
        """Return what differs: (recorded, found) of each request and column."""
        names = list(fixtures.COLUMNS)
        return {
            f"request {i} {names[k]}": (self.recorded[names[k]][i], found[names[k]][i])
            for i, k in np.argwhere(~self.equal(found))
        }


def cases(engine: str, names: list[str] | None = None) -> Iterator[Case]:
    """Return the recorded cases of *engine*, or those of the scenarios that are named."""
    for path in fixtures.paths(engine, names):
        scenario = fixtures.read(path)
        for mode, recorded in scenario["recorded"].items():
            deployment = fixtures.deployment(scenario, mode)
            yield Case(f"{path.stem}-{mode}", deployment, scenario["workload"], recorded)


def _columns(workload: dict[str, Any]) -> dict[str, Any]:
    columns = {"arrival_s": [0.0] * len(workload["input_tokens"])} | workload
    return {name: np.array(column) if isinstance(column, list) else column for name, column in columns.items()}
