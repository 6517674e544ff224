"""Calibration profiles: a few physical parameters that bring passes, hand-offs and the frontend to those of a cluster.

``dynosim calibrate`` fits them and writes ``calibrations/NAME@HASH.yaml``, the hash being that of the content; a
deployment names one in ``calibration``. A profile belongs to what it was fitted on. Left out: multipliers that depend
on batch or context, which would fit more than they explain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, ValidationError

from dynosim.config import DeploymentConfig
from dynosim.config.base import Config
from dynosim.config.load import dump, read_document
from dynosim.errors import ConfigError, TimingError
from dynosim.files import write_whole
from dynosim.hardware.models import get_model
from dynosim.timing.base import PassTables

FOLDER = Path("calibrations")
HASH_DIGITS = 8
FILES = (".yaml", ".yml")
MARGIN = 1.25
"""Conditions within a quarter of what was measured count as measured."""


class ProfileError(TimingError, ConfigError):
    """A profile that is not there, or was fitted on something else than the deployment that names it."""


class Source(Config):
    """A result file that was fitted."""

    file: str
    """Its name, without folders."""
    sha256: str
    tool: str
    runs: int


class Residual(Config):
    """How far predictions of one metric are from what was measured, over all runs."""

    runs: int
    bias: float
    """Mean of predicted / measured - 1, with the profile."""
    mape_before: NonNegativeFloat
    """Mean of |predicted / measured - 1|, without the profile."""
    mape: NonNegativeFloat
    """The same with the profile, on the runs that it was fitted on."""
    mape_left_out: NonNegativeFloat | None = None
    """The same on runs that the parameters were not fitted on, each group of them left out in turn."""


class ServerFact(Config):
    """What a server says of itself beside what is simulated of it."""

    name: Literal["version", "kv_cache_tokens", "prefix_cache_hit_rate", "preemptions"]
    stated: str | float
    simulated: str | float

    @property
    def differs(self) -> bool:
        """Whether the two are further apart than rounding: 2 % of a number of tokens, 0.02 of a share, one event.

        What follows ``+`` in a version is the build.
        """
        if isinstance(self.stated, str) or isinstance(self.simulated, str):
            stated, simulated = (str(x).removeprefix("v").partition("+")[0] for x in (self.stated, self.simulated))
            return stated != simulated and simulated != "current"
        allowed = {"kv_cache_tokens": 0.02 * self.stated, "prefix_cache_hit_rate": 0.02}.get(self.name, 1.0)
        return abs(self.simulated - self.stated) > allowed


class Profile(Config):
    """A few physical parameters with where they come from. The default is neutral: it changes nothing."""

    schema_version: Literal["1"] = "1"
    name: str = Field(pattern=r"^[\w.-]+$")
    prefill: PositiveFloat = 1.0
    """Times of passes with prompt tokens: operations by token and prefill attention."""
    decode: PositiveFloat = 1.0
    """Times of decode-only passes, and of decode attention in all."""
    overhead_ms: NonNegativeFloat = 0.0
    """Added to every pass."""
    request_us: NonNegativeFloat = 0.0
    """Added to every pass for each of its requests."""
    frontend_ms: float = 0.0
    """Added to the time between client and engine, there and back; negative where the engine's own is too long."""
    transfer: PositiveFloat = 1.0
    """Times of hand-offs between prefill and decode pools."""
    generic: bool = False
    """Whether the profile may be used for models, GPUs and engines that it was not fitted on."""
    fitted_on: Mapping[str, tuple[str, ...]] = {}
    """model, gpu, engine, quantization and timing -> the values that were measured."""
    ranges: Mapping[str, tuple[float, float]] = {}
    """Condition -> smallest and largest value that was measured (``conditions``)."""
    standard_errors: Mapping[str, NonNegativeFloat] = {}
    """Parameter -> standard error, in its own unit; of a factor in shares of it."""
    not_determined: tuple[str, ...] = ()
    """Parameters that stay as the model has them: what the runs say of them is within two standard errors of that."""
    left_out: Literal["configuration", "length", "load point"] | None = None
    """What ``mape_left_out`` leaves out in turn; none where there is one run only."""
    at_bounds: tuple[str, ...] = ()
    """Parameters that ended at a bound: what they stand for is not what is wrong."""
    recommended: bool = True
    """Whether it helps on runs that it was not fitted on."""
    residuals: Mapping[str, Residual] = {}
    server: tuple[ServerFact, ...] = ()
    """From its log and counters, where they were given."""
    sources: tuple[Source, ...] = ()
    created: str = ""
    """ISO 8601."""
    dynosim_version: str = ""

    def content_hash(self) -> str:
        """As of all configurations, but without defaults: a field of a later version renames no earlier profile."""
        canonical = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """The name with the hash of the content."""
        return f"{self.name}@{self.content_hash()[:HASH_DIGITS]}"

    @property
    def pass_times(self) -> tuple[float, ...]:
        """What it does to the times of passes."""
        return self.prefill, self.decode, self.overhead_ms, self.request_us

    def outside(self, conditions: Mapping[str, float]) -> list[str]:
        """Return the conditions that are outside what was measured, or ``MARGIN`` from it: there it extrapolates."""
        limits = {name: self.ranges[name] for name in conditions if name in self.ranges}
        return [name for name, (low, high) in limits.items() if not low / MARGIN <= conditions[name] <= high * MARGIN]

    def save(self, folder: Path = FOLDER) -> Path:
        """Write it under its label and return the path."""
        return write_whole(folder / f"{self.label}.yaml", dump(self.model_dump(mode="json")))


class CalibratedDeployment(DeploymentConfig):
    """A deployment with a profile that is in no file, such as one that a fit tries."""

    profile: Profile

    @classmethod
    def of(cls, deployment: DeploymentConfig, profile: Profile) -> CalibratedDeployment:
        """Return *deployment* under *profile* instead of the one that it names."""
        return cls(**{**dict(deployment), "calibration": None}, profile=profile)


def profile_of(deployment: DeploymentConfig) -> Profile | None:
    """Return the profile of a deployment, None where it names none.

    Raises ProfileError where there is no such profile, or one that was fitted on something else.
    """
    if isinstance(deployment, CalibratedDeployment):
        return deployment.profile
    if deployment.calibration is None:
        return None
    profile = load_profile(deployment.calibration)
    for what, found in {} if profile.generic else fitted_on(deployment).items():
        allowed = profile.fitted_on.get(what, ())
        if not allowed or not set(found) <= set(allowed):
            message = f"{profile.label}: is for {what} {', '.join(allowed) or 'none'}, not {', '.join(found)}"
            raise ProfileError(message, path="deployment.calibration")
    return profile


def fitted_on(*deployments: DeploymentConfig) -> dict[str, tuple[str, ...]]:
    """Return what a profile of *deployments* belongs to."""
    values: dict[str, set[str]] = {
        "model": {get_model(each.model).name for each in deployments},
        "gpu": {each.pool_gpu(pool) for each in deployments for pool in each.pools().values()},
        "engine": {each.engine.name for each in deployments},
        "quantization": {each.quantization for each in deployments},
        "timing": {each.timing.type for each in deployments},
    }
    return {name: tuple(sorted(found)) for name, found in values.items()}


def conditions(deployment: DeploymentConfig, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return what decides whether a profile extrapolates under *metrics* (``Metrics.flat``), as far as they are known.

    Requests per replica (of the pool that decodes) and tokens of a prompt with its answer are means over the run.
    """
    pools = deployment.pools().values()
    sizes, decoding = [pool.tensor_parallel_size for pool in pools], [*pools][-1]
    found = {"smallest_tensor_parallel_size": float(min(sizes)), "largest_tensor_parallel_size": float(max(sizes))}
    if "effective_concurrency" in metrics:
        ranks = decoding.replicas * decoding.data_parallel_size
        found["requests_per_replica"] = metrics["effective_concurrency"] / ranks
    if metrics.get("request_throughput"):
        found["context_tokens"] = metrics["total_token_throughput"] / metrics["request_throughput"]
    return found


def calibrate(tables: PassTables, profile: Profile | None) -> PassTables:
    """Return *tables* under *profile*; the very same where it is neutral.

    A pass reads exactly one of the token-wise curves, which carry the overhead therefore; ``expert_s`` is a part of the
    one with prompt tokens, and ``eager_s`` the least that such a pass takes. A request is a row of ``decode_s`` or a
    chunk.
    """
    if profile is None or profile.pass_times == Profile(name="neutral").pass_times:
        return tables
    some_tokens, some_requests = np.arange(len(tables.tokens_s)) > 0, np.arange(len(tables.graph_tokens_s)) > 0
    overhead_s, request_s = profile.overhead_ms * 1e-3, profile.request_us * 1e-6
    return replace(
        tables,
        tokens_s=profile.prefill * tables.tokens_s + overhead_s * some_tokens,
        graph_tokens_s=profile.decode * tables.graph_tokens_s + overhead_s * some_requests,
        decode_s=profile.decode * tables.decode_s + request_s * np.arange(len(tables.decode_s))[:, None],
        prefill_share_s=profile.prefill * tables.prefill_share_s,
        expert_s=profile.prefill * tables.expert_s,
        eager_s=profile.prefill * tables.eager_s + overhead_s * (tables.eager_s > 0.0),
        chunk_s=profile.prefill * tables.chunk_s + request_s,
        provenance={**tables.provenance, "calibration": profile.label},
    )


def pinned(name: str) -> str:
    """Return what names the same profile even when there is a newer one; a file's name stays. Raises ProfileError."""
    return name if Path(name).suffix in FILES else load_profile(name).label


def load_profile(name: str) -> Profile:
    """Return a profile by path, by ``NAME@HASH``, or the newest of a name; ProfileError where there is none."""
    path = Path(name)
    if path.suffix in FILES:
        return _read(path)
    found = list(_named(name))
    if not found:
        labels = sorted(file.stem for file in FOLDER.glob("*@*.yaml"))
        message = f"{name}: no such profile under {FOLDER}/: allowed: a YAML file, {', '.join(labels) or 'none yet'}"
        raise ProfileError(message, path="deployment.calibration")
    return max(found, key=lambda profile: (profile.created, profile.label))


def _named(name: str) -> Iterator[Profile]:
    stem, _, digits = name.partition("@")
    for path in sorted(FOLDER.glob("*@*.yaml")):
        if path.stem.rpartition("@")[0] == stem and path.stem.rpartition("@")[2].startswith(digits):
            profile = _read(path)
            if profile.label != path.stem:
                raise ProfileError(f"{path}: was edited: its content is {profile.label}", path="deployment.calibration")
            yield profile


def _read(path: Path) -> Profile:
    try:
        stat = path.stat()
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}", path="deployment.calibration") from None
    return _parsed(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _parsed(path: Path, mtime_ns: int, size: int) -> Profile:
    try:
        return Profile.model_validate(read_document(path).data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(first["msg"], file=str(path), path=".".join(map(str, first["loc"]))) from None
