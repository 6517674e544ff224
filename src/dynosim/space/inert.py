"""Which searched fields cannot change anything at a point: points that differ only in these are one configuration.

Options of a policy that is not chosen, the router of a single replica, everything about an autoscaler that has no room
to move, and the predictor of a slow loop that does not run.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from dynosim import plugins
from dynosim.config import schema
from dynosim.config.deployment import SECTIONS
from dynosim.config.load import is_domain
from dynosim.config.schema import Path
from dynosim.errors import ConfigError
from dynosim.policies.registry import PLACES, Kind, policy_class
from dynosim.space.domains import Matters

_BOUNDS = ("min_replicas", "max_replicas")
_KINDS: Mapping[str, Kind] = {
    "router.options": "router",
    "decode_router.options": "router",
    "autoscaler.options": "autoscaler",
    "autoscaler.predictor_options": "predictor",
    **{f"{pool.rpartition('.')[2]}.scheduling_options": "scheduling_policy" for pool in SECTIONS.values()},
}
"""Section and field of the options -> the kind of policy that takes them."""


def takers(data: Any, path: Path) -> dict[str, tuple[Any, ...]]:
    """Return the condition that an option at *path* implies: searched policy -> those of its values that take it.

    Empty where the policy is not searched and where none takes the option, which is the user's mistake.
    """
    kind = _KINDS.get(".".join(path[-3:-1]))
    if kind is None:
        return {}
    policy = (*path[:-2], PLACES[kind].field)
    searched = _said(data, policy)
    found = tuple(name for name in _values(searched) if _takes(kind, name, path[-1], policy))
    return {".".join(policy): found} if found and is_domain(searched) else {}


def _takes(kind: Kind, name: Any, option: str, path: Path) -> bool:
    try:
        return option in inspect.signature(policy_class(kind, str(name), ".".join(path[:-1]))).parameters
    except ConfigError:  # an unknown policy is reported where it stands
        return True


def mattering(data: Any, path: Path) -> Matters | None:
    """Return the rule that tells whether the field at *path* can change anything; None where it always may."""
    for pool in SECTIONS.values():
        scaler, fields = f"{pool}.autoscaler", path[len(pool.split(".")) + 1 :]
        if ".".join(path).startswith(f"{scaler}.") and fields[0] not in _BOUNDS:
            if fields[0].startswith("predictor"):
                return _rule(partial(_predicts, data, scaler), scaler, (*_BOUNDS, "throughput_interval_s"))
            return _rule(partial(_moves, data, scaler), scaler, _BOUNDS)
    split = _said(data, ("deployment", "disaggregated"))
    if path[:2] == ("deployment", "router") and _only_chooses(_said(data, path[:2])):
        roles = [role for role in SECTIONS if role != "decode" or schema.step(split, "decode_router") is None]
    elif path[1:3] == ("disaggregated", "decode_router") and _only_chooses(_said(data, path[:3])):
        roles = ["decode"]
    else:
        return None
    if schema.step(split, "local_prefill") is not None:  # it asks the decode router for cached prompts
        return None
    return _rule(partial(_routes, data, roles), "deployment", ("mode", *(p for role in roles for p in _targets(role))))


def _rule(holds: Callable[[Mapping[str, Any]], bool], section: str, fields: Iterable[str]) -> Matters:
    return Matters(tuple(f"{section}.{field}" for field in fields), holds)


def _moves(data: Any, scaler: str, point: Mapping[str, Any]) -> bool:
    """Whether the autoscaler has room between its bounds."""
    low = _value(data, point, f"{scaler}.min_replicas", 1)
    return low is None or low != _value(data, point, f"{scaler}.max_replicas")


def _predicts(data: Any, scaler: str, point: Mapping[str, Any]) -> bool:
    """Whether a slow loop runs."""
    path = f"{scaler}.throughput_interval_s"
    runs = point[path] is not None if path in point else _value(data, point, path, 0) != 0
    return runs and _moves(data, scaler, point)


def _routes(data: Any, roles: Iterable[str], point: Mapping[str, Any]) -> bool:
    """Whether one of the pools has more than one target: a replica, or a data-parallel rank of it."""
    mode = _value(data, point, "deployment.mode", "aggregated")
    used = [role for role in roles if (role == "mixed") == (mode == "aggregated")]
    counts = [_value(data, point, f"deployment.{path}", 1) for role in used for path in _targets(role)]
    return any(count != 1 for count in counts)


def _targets(role: str) -> tuple[str, ...]:
    """Return the fields below ``deployment`` that are all 1 where requests of *role* have one place to go."""
    pool = SECTIONS[role].removeprefix("deployment.")
    return f"{pool}.replicas", f"{pool}.data_parallel_size", f"{pool}.autoscaler.max_replicas"


def _only_chooses(router: Any) -> bool:
    """Whether a router does nothing but choose a replica: Dynamo's may hold requests back, a user's is not known."""
    names = [name for each in _values(router) for name in _values(schema.step(each, "policy"))]
    return "router_queue_threshold" not in json.dumps(router) and not any(map(plugins.is_reference, map(str, names)))


def _values(said: Any) -> Sequence[Any]:
    return said.get("choices", ()) if is_domain(said) else [said]


def _said(data: Any, path: Path) -> Any:
    for key in path:
        data = schema.step(data, key)
    return data


def _value(data: Any, point: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """Return the value of *path* at *point*, *default* where nothing is said, None where it is not known."""
    if path in point:
        return point[path]
    for key in path.split("."):
        if is_domain(data):
            return None
        data = schema.step(data, key)
    return None if is_domain(data) else default if data is None else data
