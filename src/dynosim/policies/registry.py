"""Policies by name: every class of a folder of this package, or ``package.module:Class`` from anywhere."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import numpy as np

from dynosim.errors import ConfigError
from dynosim.policies import routing
from dynosim.policies.base import Router


@cache
def routers() -> Mapping[str, type]:
    """Return name -> class of the built-in routers; a file's name is its policy's name."""
    found = {}
    for info in pkgutil.iter_modules(routing.__path__):
        module = importlib.import_module(f"{routing.__name__}.{info.name}")
        found[info.name] = next(
            cls
            for cls in vars(module).values()
            if inspect.isclass(cls) and hasattr(cls, "route") and cls.__module__ == module.__name__
        )
    return found


def router_class(policy: str) -> type:
    """Return the class of router *policy*; ConfigError with the known names on a miss."""
    if policy in routers():
        return routers()[policy]
    module, colon, name = policy.partition(":")
    if not colon:
        near = difflib.get_close_matches(policy, routers(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"{policy!r}: {hint}allowed: {', '.join(sorted(routers()))}, or package.module:Class",
            path="deployment.router.policy",
        )
    try:
        return cast(type, getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{policy!r}: {error}", path="deployment.router.policy") from error


def check_options(policy: str, options: Mapping[str, Any]) -> None:
    """Raise ConfigError when *policy* does not take one of *options*."""
    parameters = inspect.signature(router_class(policy)).parameters
    allowed = [name for name in parameters if name != "rng"]
    for name in options:
        if name not in allowed:
            raise ConfigError(
                f"{name!r}: router {policy} takes {', '.join(allowed) or 'no options'}",
                path=f"deployment.router.options.{name}",
            )


def make_router(policy: str, options: Mapping[str, Any], rng: np.random.Generator) -> Router:
    """Return a router; one that declares an ``rng`` argument gets the run's stream for routing."""
    check_options(policy, options)
    cls = router_class(policy)
    extra = {"rng": rng} if "rng" in inspect.signature(cls).parameters else {}
    try:
        return cast(Router, cls(**options, **extra))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{dict(options)}: router {policy}: {error}", path="deployment.router.options") from error
