"""Bundled profiles: named synthetic workloads fitted to the statistics of public traces.

A profile is ``profiles/<name>.json``: data only, no rows of a trace. ``benchmarks/fit_profiles.py`` regenerates them.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

from dynosim.config import Config, SyntheticSource
from dynosim.errors import ConfigError, nearest


class Profile(Config):
    """A synthetic source and where its numbers come from."""

    name: str
    description: str
    fitted_to: str
    """The trace: publisher, file and commit."""
    licence: str
    notes: str
    """What is assumed, not fitted."""
    source: SyntheticSource

    def sized(self, requests: int | None) -> SyntheticSource:
        """Return the source with another number of requests, or as it is for None."""
        return self.source if requests is None else self.source.model_copy(update={"requests": requests})


def profile_names() -> list[str]:
    """Return the names of the bundled profiles, sorted."""
    return sorted(file.name.removesuffix(".json") for file in _folder().iterdir() if file.name.endswith(".json"))


@lru_cache
def get_profile(name: str) -> Profile:
    """Return the bundled profile *name*; raises ConfigError naming the nearest."""
    if name not in profile_names():
        near, known = nearest(name, profile_names()), ", ".join(profile_names())
        raise ConfigError(f"{name!r}: no such profile: {near}allowed: {known}", path="workload.source.name")
    return Profile.model_validate_json((_folder() / f"{name}.json").read_text(encoding="utf-8"))


def _folder() -> resources.abc.Traversable:
    return resources.files("dynosim.workload") / "profiles"
