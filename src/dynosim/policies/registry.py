"""Policies by name: every class of a folder of this package, or a user's (``dynosim.plugins``)."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import numpy as np

from dynosim import plugins
from dynosim.errors import ConfigError, nearest
from dynosim.policies.base import SIGNALS, Setpoint

Kind = Literal["router", "scheduling_policy", "autoscaler", "predictor"]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a kind of policy lives and is configured."""

    folder: str
    method: str
    """What makes a class of a file the policy."""
    field: str
    """Of the policy's name in its section of the configuration,"""
    options: str
    """and of its options."""
    attributes: tuple[str, ...] = ()
    """What else a policy must have."""

    @property
    def needs(self) -> str:
        """What a policy must have, in words."""
        return " and ".join([f"{self.method}(...)", *self.attributes])


PLACES: Mapping[Kind, _Place] = {
    "router": _Place("routing", "route", "policy", "options", ("looks",)),
    "scheduling_policy": _Place(
        "scheduling", "keys", "scheduling_policy", "scheduling_options", ("longest_prefix", "add_arrival")
    ),
    "autoscaler": _Place("autoscaling", "desired", "policy", "options"),
    "predictor": _Place("predictors", "observe", "predictor", "predictor_options", ("predict",)),
}


@cache
def policies(kind: Kind) -> Mapping[str, type]:
    """Return name -> class of the built-in policies of *kind*; a file's name is its policy's name."""
    place, found = PLACES[kind], {}
    folder = importlib.import_module(f"dynosim.policies.{place.folder}")
    for info in pkgutil.iter_modules(folder.__path__):
        module = importlib.import_module(f"{folder.__name__}.{info.name}")
        found[info.name] = next(
            cls
            for cls in vars(module).values()
            if inspect.isclass(cls) and hasattr(cls, place.method) and cls.__module__ == module.__name__
        )
    return found


def policy_class(kind: Kind, name: str, path: str = "") -> type:
    """Return the class of policy *name*, set in section *path*; ConfigError with the known names on a miss."""
    known, path = policies(kind), f"{path}.{PLACES[kind].field}"
    if name in known:
        return known[name]
    if not plugins.is_reference(name):
        allowed = f"{', '.join(sorted(known))}, or {plugins.FORMS}"
        raise ConfigError(f"{name!r}: {nearest(name, known)}allowed: {allowed}", path=path)
    found = plugins.load(name, path=path)
    if not inspect.isclass(found):
        raise ConfigError(f"{plugins.short(name)}: allowed: a class with {PLACES[kind].needs}", path=path)
    return found


def keeps_prefixes(router: str) -> bool:
    """Return whether *router* says that prompts with the same beginning go to one replica."""
    return bool(getattr(policy_class("router", router), "keeps_prefixes", False))


def looks(router: str) -> bool:
    """Return whether *router* looks at the pool before it decides."""
    return bool(getattr(policy_class("router", router), "looks", True))


def setpoint(name: str, options: Mapping[str, Any], path: str) -> Setpoint | None:
    """Return what autoscaling policy *name* says that it holds a replica to, None where it says nothing."""
    ask = getattr(make("autoscaler", name, options, path, np.random.default_rng(0)), "setpoint", None)
    if ask is None:
        return None
    said = plugins.call(name, ask, path) if plugins.is_reference(name) else ask()
    if isinstance(said, Setpoint) and said.weights and set(said.weights) <= set(SIGNALS):
        return said
    message = (
        f"{plugins.short(name)}: setpoint() gave {said!r}: allowed: a Setpoint with weights of {', '.join(SIGNALS)}"
    )
    raise ConfigError(message, path=f"{path}.policy")


def _check_options(kind: Kind, name: str, options: Mapping[str, Any], path: str) -> None:
    """Raise ConfigError when policy *name* does not take one of *options*."""
    allowed = [option for option in inspect.signature(policy_class(kind, name, path)).parameters if option != "rng"]
    for option in options:
        if option not in allowed:
            raise ConfigError(
                f"{option!r}: {kind} {name} takes {', '.join(allowed) or 'no options'}",
                path=f"{path}.{PLACES[kind].options}.{option}",
            )


def make(kind: Kind, name: str, options: Mapping[str, Any], path: str, rng: np.random.Generator) -> Any:
    """Return policy *name*, set in section *path*; one that declares an ``rng`` argument gets *rng*."""
    _check_options(kind, name, options, path)
    cls, place = policy_class(kind, name, path), PLACES[kind]
    section, extra = f"{path}.{place.options}", {"rng": rng} if "rng" in inspect.signature(cls).parameters else {}
    build = partial(cls, **options, **extra)
    try:
        made = plugins.call(name, build, "") if plugins.is_reference(name) else build()
    except ConfigError as error:
        raise ConfigError(error.message, path=f"{section}.{error.path}".rstrip(".")) from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"{dict(options)}: {kind} {name}: {error}", path=section) from error
    missing = [needed for needed in (place.method, *place.attributes) if not hasattr(made, needed)]
    if missing:
        message = f"{plugins.short(name)}: a {kind} needs {', '.join(missing)}"
        raise ConfigError(message, path=f"{path}.{place.field}")
    return made
