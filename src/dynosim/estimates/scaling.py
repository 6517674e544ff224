"""What pools make of traffic that rises and falls: fluid queues, and replicas that follow the load after a cold start.

Work comes in as the request table has it, window by window, and is done as fast as the serving replicas can. At each
decision of an autoscaler the setpoint of its policy says how many replicas there should be; the slow loop is left out.
One loop over the windows, with arithmetic on columns of ``n`` pools inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynosim.config import AutoscalerConfig
from dynosim.estimates.demand import Demand
from dynosim.estimates.replica import Records, largest_batch, step_s
from dynosim.policies.base import SIGNALS, Setpoint

Array = NDArray[np.float64]

GOLDEN = 0.6180339887498949
"""Its multiples modulo 1 fill the unit interval evenly: the luck of looking at a queue, equal for all pools."""
TARGET_LOAD = Setpoint({"load": 1.0}, up=0.7, down=0.5)
"""Where a policy without a setpoint of its own is taken to hold a pool."""

SCALER_NUMBERS = (
    "min_replicas", "max_replicas", "interval_s", "scale_up_cooldown_s", "scale_down_cooldown_s", "max_step",
    "provision_s", "weights_load_gb_s", "startup_s"
)  # fmt: skip
"""Fields of ``AutoscalerConfig`` that enter as they are."""
_SETPOINT = ("up", "down", "step_up", "step_down")
SCALER_DTYPE = np.dtype([*((name, "f8") for name in (*SCALER_NUMBERS, *_SETPOINT)), ("weights", "f8", len(SIGNALS))])
"""An autoscaler's configuration and the setpoint of its policy; NaN without one."""


def scaler(config: AutoscalerConfig | None, setpoint: Setpoint | None) -> tuple[Any, ...]:
    """Return the fields of ``SCALER_DTYPE``."""
    if config is None:
        return tuple(np.full(SCALER_DTYPE[name].shape, np.nan) for name in SCALER_DTYPE.names or ())
    of = setpoint or TARGET_LOAD
    weights = [of.weights.get(name, 0.0) for name in SIGNALS]
    return (*(getattr(config, name) for name in SCALER_NUMBERS), *(getattr(of, name) for name in _SETPOINT), weights)


@dataclass(frozen=True, eq=False)
class Pools:
    """``n`` pools, and what a rate of one request per second asks of one replica of each."""

    replicas: Records
    scalers: Records
    prefill: Array
    """Share of its time for prompts,"""
    decode: Array
    """and for tokens, in batches as large as they get."""
    rate_rps: Array

    def at(self, rows: NDArray[np.bool_]) -> Pools:
        """Return the pools of *rows*."""
        return Pools(*(getattr(self, each.name)[rows] for each in fields(self)))


@dataclass(frozen=True, eq=False)
class Flow:
    """What came of ``n`` pools."""

    replicas: Array
    """Provisioned on average, those that start included."""
    backlog_s: Array
    """Time until the work before them is done, of ``SHARES`` equal shares of the requests in order: ``n x SHARES``."""
    serving: Array
    """Replicas in each window, ``n x w``."""


def flow(of: Pools, demand: Demand) -> Flow:
    """Return what *demand* does to the pools."""
    windows = demand.windows
    provisioned = np.tile(of.replicas["replicas"], (len(windows.prefill), 1))
    serving = provisioned.copy()
    scaled = ~np.isnan(of.scalers["min_replicas"])
    if scaled.any():
        provisioned[:, scaled], serving[:, scaled] = _follow(of.at(scaled), demand)
    work = np.outer(windows.prefill, of.rate_rps * of.prefill) + np.outer(windows.decode, of.rate_rps * of.decode)
    total = np.cumsum((work - serving) * windows.width_s, axis=0)
    backlog = total - np.minimum(np.minimum.accumulate(total, axis=0), 0.0)  # Lindley's recursion
    return Flow(provisioned.mean(axis=0), (backlog[windows.at] / serving[windows.at]).T, serving.T)


def _follow(of: Pools, demand: Demand) -> tuple[Array, Array]:
    """Return the provisioned and the serving replicas of autoscaled pools in each window (``w x n``)."""
    s = {name: np.ascontiguousarray(of.scalers[name]) for name in SCALER_DTYPE.names or ()}
    windows, n = demand.windows, len(of.rate_rps)
    # A closed loop has no times of its own: as long a window as from one decision to the next.
    width_s = np.full(n, windows.width_s) if windows.width_s else s["interval_s"]
    cold_s = s["provision_s"] + of.replicas["weights_gb"] / s["weights_load_gb_s"] + s["startup_s"]
    count, signal = len(windows.prefill), _Signal(of, demand)
    # Counted from the middle of the window that a decision looks back on.
    delay = np.clip(np.nan_to_num(np.ceil(cold_s / width_s)), 1, count).astype(np.int64)
    serving = np.minimum(np.maximum(of.replicas["replicas"], s["min_replicas"]), s["max_replicas"])
    present, backlog, quiet_s, due_s = serving.copy(), np.zeros(n), np.full(n, np.inf), s["interval_s"] - 1e-9
    coming, (provisioned, served) = np.zeros((2 * count + 1, n)), np.empty((2, count, n))
    for k in range(count):
        serving = serving + coming[k]
        provisioned[k], served[k] = present, serving
        prefill, decode = signal.prefill * windows.prefill[k], signal.decode * windows.decode[k]
        backlog = np.maximum(backlog + (prefill + decode - serving) * width_s, 0.0)
        quiet_s, due_s = quiet_s + width_s, due_s - width_s
        due = due_s <= 0.0
        due_s = np.where(due, np.maximum(due_s + s["interval_s"], 0.0), due_s)
        change = _wish(s, present, serving, signal(k, serving, backlog, prefill, decode)) - present
        change = np.minimum(np.maximum(change, -s["max_step"]), s["max_step"])
        cooldown_s = np.where(change > 0.0, s["scale_up_cooldown_s"], s["scale_down_cooldown_s"])
        change = np.where(due & (quiet_s >= cooldown_s), change, 0.0)
        quiet_s = np.where(change == 0.0, quiet_s, 0.0)
        more = np.flatnonzero(change > 0.0)
        coming[k + delay[more], more] += change[more]
        present, serving = present + change, serving + np.minimum(change, 0.0)
    return provisioned, served


def _wish(s: Mapping[str, Array], present: Array, serving: Array, signal: Array) -> Array:
    """Return the replicas that the policies want, within their bounds (``policies.sizing.between_thresholds``)."""
    load = signal * serving
    up = np.minimum(np.maximum(np.ceil(load / s["up"]), present), present + s["step_up"])
    down = np.minimum(np.maximum(np.ceil(load / np.maximum(s["down"], 1e-9)), present - s["step_down"]), present)
    fewer = (present == serving) & (signal < s["down"])
    wish = np.where(signal > s["up"], up, np.where(fewer, down, present))
    return np.asarray(np.minimum(np.maximum(wish, s["min_replicas"]), s["max_replicas"]))


def _met(k: int, busy: Array) -> Array:
    """Return the queue of *busy* servers that is met at the *k*-th look, over its mean where there is one: the chance
    that an M/G/1 queue is longer falls exponentially."""
    longer = 1.0 - (k + 1) * GOLDEN % 1.0
    return np.asarray(np.maximum(np.log(np.maximum(busy, 1e-9) / longer), 0.0))


class _Signal:
    """What the policies of ``n`` pools watch: of a serving replica, the largest of the weighted ``SIGNALS``."""

    def __init__(self, of: Pools, demand: Demand) -> None:
        self._demand, pool = demand, of.replicas
        self.prefill, self.decode = of.rate_rps * of.prefill, of.rate_rps * of.decode
        self._first_s, self._prompt_s, self._request_s = pool["prefill_s"].copy(), of.prefill, of.prefill + of.decode
        ranks, context = pool["batches"] / pool["stages"], demand.input_tokens + demand.output_tokens
        self._batches, self._seats = pool["batches"].copy(), pool["max_num_seqs"] * ranks
        self._kv_share = (1.0 - demand.output_tokens / 2.0 / context) / pool["kv_requests"]
        computed = of.prefill * pool["batches"] / pool["prefill_s"]
        self._passes = computed * demand.input_tokens / pool["max_num_batched_tokens"] / ranks
        self._token_rate = of.rate_rps * demand.output_tokens / pool["batches"] * (of.decode > 0.0)
        self._most, self._alone = largest_batch(pool), step_s(pool, np.ones(len(pool)))
        self._slope = (step_s(pool, self._most) - self._alone) / np.maximum(self._most - 1.0, 1.0)
        weights = zip(SIGNALS, np.ascontiguousarray(of.scalers["weights"].T), strict=True)
        self._weights = {name: weight for name, weight in weights if (weight > 0.0).any()}

    def __call__(self, k: int, serving: Array, backlog: Array, prefill: Array, decode: Array) -> Array:
        """Return the signal at the end of window *k* (``n``), in which *serving* replicas had work.

        *backlog* seconds of one replica's work wait.
        """
        busy = np.minimum(prefill / serving, 0.98)
        queue = busy * self._demand.input_square / (2.0 * (1.0 - busy))  # M/G/1: mean wait over mean service
        waiting = backlog / self._request_s / serving
        batch = self._batch(k, serving, backlog, busy)
        found: dict[str, Callable[[], Array]] = {
            "load": lambda: (prefill + decode) / serving + (backlog > 0.0),
            "outstanding": lambda: (batch * self._batches + waiting + busy * (1.0 + queue)) / self._seats,
            "kv_utilization": lambda: np.minimum(batch * self._kv_share, 1.0),
            "queued_passes": lambda: (_met(k, busy) * (1.0 + queue) + waiting) * self._passes,
            "queued_requests": lambda: _met(k, busy) * (1.0 + queue) + waiting,
            "ttft_ms": lambda: 1e3 * (self._first_s + queue * self._prompt_s + backlog / serving),
            "itl_ms": lambda: 1e3 * (self._alone + self._slope * batch) / (1.0 - np.minimum(busy, 0.9)),
        }
        return reduce(np.maximum, [found[name]() * weight for name, weight in self._weights.items()])

    def _batch(self, k: int, serving: Array, backlog: Array, busy: Array) -> Array:
        """Return the requests of one batch, where a token takes longer the more there are (Little's law)."""
        rate = self._token_rate * self._demand.windows.decode[k] / serving
        free = 1.0 - busy - rate * self._slope
        full = (free <= 0.0) | (backlog > 0.0)
        return np.where(full, self._most, np.minimum(rate * self._alone / np.where(full, 1.0, free), self._most))
