"""Feature columns of the points of a space: what closed forms say of them, on logarithmic scales.

The models get capacities and loads beside the raw parameters: they mean the same in every mode and on every GPU, so
what is learned of one region carries over to others. From the same numbers comes a first estimate of the metrics, so of
any objective that is a function of them: the mean that the models start from (``search.priors``).

A search asks for a thousand points per proposal: what a replica can do is kept by what it depends on, and all else is
arithmetic on columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.config import LinkConfig
from dynosim.config.deployment import SECTIONS
from dynosim.errors import DynosimError
from dynosim.estimates import REPLICA_DTYPE, Demand, Deployments, Estimate, Records, demand_of, estimate, replica
from dynosim.hardware.plan import PoolPlan
from dynosim.policies.registry import keeps_prefixes
from dynosim.search.rows import Key, Rows, keys

Array = NDArray[np.float64]

FEATURES = (
    "usd_per_hour",
    "gpus",
    "first_token_s",
    "step_s",
    "prefill_load",
    "decode_load",
    "load",
    "kv_requests",
    "cache_requests",
)
_COUNTS = ("replicas", "max_num_seqs", "max_num_batched_tokens", "block_size")
"""Fields of a pool that enter by arithmetic, not through the tables."""
_BATCH = ("max_num_seqs", "max_num_batched_tokens")
_ELSEWHERE = (
    "workload",
    "slo",
    "seed",
    "deployment.router",
    "deployment.topology",
    "deployment.failures",
    "deployment.disaggregated.kv_transfer",
    "deployment.disaggregated.local_prefill",
    "deployment.disaggregated.decode_router",
)


def columns(of: Estimate) -> Array:
    """Return the logarithms of ``FEATURES``, ``n x 9``."""
    return np.asarray(np.log(np.column_stack([getattr(of, name) for name in FEATURES])))


class ServingEstimates:
    """Closed-form estimates of the points of one space."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._replica = lru_cache(maxsize=None)(self._measure)

    def __call__(self, rows: Array) -> Estimate:
        """Return the estimate of each row (``n x p``)."""
        together = self._holding(rows, "deployment.mode", lambda mode: mode == "aggregated")
        ahead = self._pools(rows, np.where(together, "mixed", "prefill"))
        behind = self._pools(rows, np.where(together, "mixed", "decode"))
        keeps = self._holding(rows, "deployment.router.policy", keeps_prefixes)
        return estimate(self._demand, Deployments(ahead, behind, together, keeps, self._link_bytes_s(rows, ahead)))

    @cached_property
    def _demand(self) -> Demand:
        return demand_of(self._rows.space.reference)

    def _holding(self, rows: Array, path: str, holds: Callable[[Any], bool]) -> NDArray[np.bool_]:
        """Return in which rows the field *path*, searched or not, has a value that *holds* is true of."""
        j = self._rows.column(path)
        if j is None:
            value = attrgetter(path)(self._rows.space.reference)
            return np.full(len(rows), holds(value))
        values = self._rows.parameters[j].domain.values or ()
        return np.isin(rows[:, j], [i for i, value in enumerate(values) if holds(value)])

    def _link_bytes_s(self, rows: Array, pools: Records) -> Array:
        """Return the bandwidth of one replica's link; where it is not searched its scale makes no difference."""
        searched = self._rows.numbers(rows, "deployment.disaggregated.kv_transfer.bandwidth_gb_s")
        default = LinkConfig().bandwidth_gb_s
        gb_s = np.full(len(rows), default) if searched is None else np.where(np.isnan(searched), default, searched)
        return np.asarray(gb_s * 1e9 * pools["gpus"])

    def _pools(self, rows: Array, roles: NDArray[Any]) -> Records:
        """Return one record per row, that of its pool in the role."""
        found = np.empty(len(rows), REPLICA_DTYPE)
        for role in np.unique(roles).tolist():
            at = np.flatnonzero(roles == role)
            found[at] = self._pool(rows[at], role)
        return found

    def _pool(self, rows: Array, role: str) -> Records:
        part = np.full(rows.shape, np.nan)
        part[:, self._relevant[role]] = rows[:, self._relevant[role]]
        names = keys(part)
        place = {name: i for i, name in enumerate(dict.fromkeys(names))}
        different = np.array([self._replica(role, name) for name in place], REPLICA_DTYPE)
        found = different[[place[name] for name in names]]
        for name in ("replicas", "max_num_seqs"):
            searched = self._rows.numbers(rows, f"{SECTIONS[role]}.{name}")
            if searched is not None:
                found[name] = np.where(np.isnan(searched), found[name], searched)
        return found

    @cached_property
    def _relevant(self) -> dict[str, list[int]]:
        """Columns that decide what one replica of a role can do.

        The bounds of an autoscaler belong together with ``replicas``, pipeline stages with the size of a batch, which
        they split: so these stay.
        """
        found = {}
        paths = [parameter.path for parameter in self._rows.parameters]
        for role, section in SECTIONS.items():
            others = (prefix for name, prefix in SECTIONS.items() if name != role)
            scales = any(path.startswith(f"{section}.autoscaler") for path in paths)
            staged = f"{section}.pipeline_parallel_size" in paths
            counts = (name for name in _COUNTS if not ((scales and name == "replicas") or (staged and name in _BATCH)))
            dropped = (*others, *_ELSEWHERE, *(f"{section}.{name}" for name in counts))
            found[role] = [j for j, path in enumerate(paths) if not path.startswith(dropped)]
        return found

    def _measure(self, role: str, name: Key) -> tuple[Any, ...]:
        space = self._rows.space
        try:
            scenario = space.scenario(space.complete(self._rows.point(np.frombuffer(name))))
            return replica(PoolPlan.of(scenario.deployment, role), scenario.prices, self._demand)
        except DynosimError:
            return tuple(np.full(REPLICA_DTYPE[name].shape, np.nan) for name in REPLICA_DTYPE.names or ())
