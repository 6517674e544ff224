"""Feature columns of the points of a space: what closed forms say of them, on logarithmic scales.

The models get capacities and loads beside the raw parameters: they mean the same in every mode and on every GPU, so
what is learned of one region carries over to others. From the same numbers comes a first estimate of the metrics, so of
any objective that is a function of them: the mean that the models start from (``search.priors``).

A search asks for a thousand points per proposal: what a replica can do is kept by what it depends on, and all else is
arithmetic on columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property, lru_cache, reduce
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.config import AutoscalerConfig, LinkConfig, cases_of, schema
from dynosim.config.deployment import SECTIONS
from dynosim.config.load import validate
from dynosim.errors import DynosimError
from dynosim.estimates import (
    REPLICA_DTYPE,
    SCALER_DTYPE,
    SCALER_NUMBERS,
    Demand,
    Deployments,
    Estimate,
    Records,
    demand_of,
    estimate,
    replica,
    scaler,
)
from dynosim.hardware.plan import PoolPlan
from dynosim.policies.registry import keeps_prefixes, looks, setpoint
from dynosim.search.cases import by_load
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
    "backlog_s",
)
_UNKNOWN = tuple(np.full(REPLICA_DTYPE[name].shape, np.nan) for name in REPLICA_DTYPE.names or ())
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
    """Return the logarithms of ``FEATURES``, ``n x 10``."""
    return np.asarray(np.log(np.column_stack([getattr(of, name) for name in FEATURES])))


class ServingEstimates:
    """Closed-form estimates of the points of one space."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._replica = lru_cache(maxsize=None)(self._measure)
        self._scaler = lru_cache(maxsize=None)(self._scale)

    def __call__(self, rows: Array) -> Estimate:
        """Return the estimate of each row (``n x p``)."""
        together = self._holding(rows, "deployment.mode", lambda mode: mode == "aggregated")
        ahead = self._pools(rows, np.where(together, "mixed", "prefill"))
        behind = self._pools(rows, np.where(together, "mixed", "decode"))
        keeps, sees = (self._holding(rows, "deployment.router.policy", has) for has in (keeps_prefixes, looks))
        first, second = (self._scalers(rows, np.where(together, "mixed", role)) for role in ("prefill", "decode"))
        links = self._link_bytes_s(rows, ahead)
        return estimate(self._demand, Deployments(ahead, behind, together, first, second, keeps, sees, links))

    @cached_property
    def _demand(self) -> Demand:
        """Of several workloads, that of the one that asks for most: it decides what is feasible."""
        as_they_are = self._rows.space.reference.model_copy(update={"scenarios": {}})
        return demand_of(by_load(cases_of(as_they_are))[0].scenario)

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
        return self._by_role(rows, roles, REPLICA_DTYPE, self._pool)

    def _scalers(self, rows: Array, roles: NDArray[Any]) -> Records:
        return self._by_role(rows, roles, SCALER_DTYPE, self._scaling)

    def _by_role(self, rows: Array, roles: NDArray[Any], dtype: np.dtype[Any], of: Callable[..., Records]) -> Records:
        found = np.empty(len(rows), dtype)
        for role in np.unique(roles).tolist():
            at = np.flatnonzero(roles == role)
            found[at] = of(rows[at], role)
        return found

    def _pool(self, rows: Array, role: str) -> Records:
        found = self._distinct(rows, role, self._relevant[role], REPLICA_DTYPE, self._replica)
        return self._with_numbers(found, rows, SECTIONS[role], ("replicas", "max_num_seqs", "max_num_batched_tokens"))

    def _scaling(self, rows: Array, role: str) -> Records:
        found = self._distinct(rows, role, self._deciding[role], SCALER_DTYPE, self._scaler)
        return self._with_numbers(found, rows, f"{SECTIONS[role]}.autoscaler", SCALER_NUMBERS)

    @staticmethod
    def _distinct(
        rows: Array, role: str, columns: list[int], dtype: np.dtype[Any], make: Callable[..., Any]
    ) -> Records:
        """Return one record per row, made once for those that are equal in *columns*."""
        part = np.full(rows.shape, np.nan)
        part[:, columns] = rows[:, columns]
        names = keys(part)
        place = {name: i for i, name in enumerate(dict.fromkeys(names))}
        different = np.array([make(role, name) for name in place], dtype)
        return different[[place[name] for name in names]]

    def _with_numbers(self, found: Records, rows: Array, section: str, names: Iterable[str]) -> Records:
        """Return records with the values of fields that enter by arithmetic."""
        for name in names:
            searched = self._rows.numbers(rows, f"{section}.{name}")
            if searched is not None:
                found[name] = np.where(np.isnan(searched), found[name], searched)
        return found

    @cached_property
    def _relevant(self) -> dict[str, list[int]]:
        """Columns that decide what one replica of a role can do; pipeline stages split the batch, so its size stays."""
        found = {}
        paths = [parameter.path for parameter in self._rows.parameters]
        for role, section in SECTIONS.items():
            others = (prefix for name, prefix in SECTIONS.items() if name != role)
            staged = f"{section}.pipeline_parallel_size" in paths
            counts = (name for name in _COUNTS if not (staged and name in _BATCH))
            dropped = (*others, *_ELSEWHERE, *(f"{section}.{name}" for name in (*counts, "autoscaler")))
            found[role] = [j for j, path in enumerate(paths) if not path.startswith(dropped)]
        return found

    @cached_property
    def _deciding(self) -> dict[str, list[int]]:
        """Columns that decide the autoscaler of a role, but for those that enter by arithmetic."""
        found = {}
        for role, section in SECTIONS.items():
            numbers = [f"{section}.autoscaler.{name}" for name in SCALER_NUMBERS]
            own = [
                p for p in self._rows.parameters if p.path.startswith(f"{section}.autoscaler") and p.path not in numbers
            ]
            paths = {"deployment.mode", *(path for p in own for path in (p.path, *p.when))}
            found[role] = [j for j, p in enumerate(self._rows.parameters) if p.path in paths]
        return found

    def _data(self, name: Key) -> dict[str, Any]:
        """Return the values of a scenario with the columns of *name*, also those that would not matter in it."""
        space, point = self._rows.space, self._rows.point(np.frombuffer(name))
        return space.resolve({**space.complete(point), **point})

    def _scale(self, role: str, name: Key) -> tuple[Any, ...]:
        path = f"{SECTIONS[role]}.autoscaler"
        section = _section(self._data(name), path)
        if not section:
            return scaler(None, None)
        config = AutoscalerConfig.model_construct(**section)
        with suppress(DynosimError):
            return scaler(config, setpoint(config.policy, config.options, path))
        return scaler(config, None)

    def _measure(self, role: str, name: Key) -> tuple[Any, ...]:
        data = self._data(name)
        for section in SECTIONS.values():  # its bounds and the replicas, of other columns, may contradict each other
            (_section(data, section) or {}).pop("autoscaler", None)
        scenario = validate(data)
        if isinstance(scenario, list):
            return _UNKNOWN
        try:
            return replica(PoolPlan.of(scenario.deployment, role), scenario.prices, self._demand)
        except DynosimError:
            return _UNKNOWN


def _section(data: Any, path: str) -> Any:
    """Return the section at *path*, None where there is none."""
    return reduce(schema.step, path.split("."), data)
