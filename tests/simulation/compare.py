"""Runs the cluster over the oracle, and compares what comes out."""

from __future__ import annotations

import importlib
import pkgutil
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np

from dynosim import simulation
from dynosim.config import DeploymentConfig
from dynosim.simulation import SimulationResult, cluster, simulate
from dynosim.simulation.records import COMPLETED
from dynosim.workload.table import Workload
from simulation.oracle import OracleCore

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
POOL_FIELDS = ("busy_s", "passes", "prefill_tokens", "decode_tokens", "mean_batch", "gpu_seconds")


def run_oracle(deployment: DeploymentConfig, workload: Workload, seed: int = 0) -> tuple[SimulationResult, OracleCore]:
    """Return what ``simulate`` gives over the oracle's functions, and the oracle."""
    core, make_pool = OracleCore(), cluster.Pool

    def add(*args: Any, **kwargs: Any) -> Any:
        return core.add(make_pool(*args, **kwargs), workload)

    with ExitStack() as patches:
        for info in pkgutil.iter_modules(simulation.__path__):
            module = importlib.import_module(f"dynosim.simulation.{info.name}")
            if hasattr(module, "core"):
                patches.enter_context(mock.patch.object(module, "core", core))
        patches.enter_context(mock.patch.object(cluster, "Pool", add))
        return simulate(deployment, workload, seed), core


def assert_equal(fast: SimulationResult, slow: SimulationResult, core: OracleCore) -> None:
    """Every field of every request, every token gap, and what the pools did."""
    for name in fast.requests.dtype.names:
        # What a request that was sent again has waited for is filled up in an order of its own (``split._waits``).
        settled = np.isfinite(slow.requests["queue_s"]) & (slow.requests["retries"] == 0)
        rows = settled if name.startswith("wait_") else slice(None)
        np.testing.assert_allclose(fast.requests[name][rows], slow.requests[name][rows], **CLOSE, err_msg=name)
    if fast.stopped == "":
        assert (fast.requests["status"] == COMPLETED).sum() == np.isfinite(fast.requests["last_token_s"]).sum()
    gaps = np.array([gap for oracle in core.pools for gap in oracle.gaps])
    assert fast.gaps.count.sum() == len(gaps)
    np.testing.assert_allclose(fast.gaps.sum_s.sum(), gaps.sum(), rtol=1e-9, atol=1e-12)
    if len(gaps):
        np.testing.assert_allclose([fast.gaps.min_s, fast.gaps.max_s], [gaps.min(), gaps.max()], **CLOSE)
    for ours, theirs in zip(fast.pools, slow.pools, strict=True):
        for name in POOL_FIELDS:
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), **CLOSE, err_msg=name)
