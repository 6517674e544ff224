"""``calibrate``: from deployments as they ran, and what load generators measured on them, to a profile.

Left out: percentiles. A few constants move means; the spread around them is the simulator's own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from dynosim import __version__
from dynosim.calibration import server
from dynosim.calibration.fit import Calibration, Comparison, fit
from dynosim.calibration.readers import MeasuredRun, read_measured
from dynosim.calibration.replay import Replay, replay
from dynosim.config.base import Config
from dynosim.config.load import read_document
from dynosim.errors import ConfigError
from dynosim.space import SearchSpace, feasibility
from dynosim.timing.calibrated import ServerFact, Source

__all__ = [
    "Calibration",
    "Comparison",
    "Manifest",
    "MeasuredRun",
    "Measurement",
    "Replay",
    "calibrate",
    "read_manifest",
    "read_measured",
    "replay",
]


class Measurement(Config):
    """One deployment as it ran, with the result files of it."""

    config: str
    """YAML file of one configuration; of a space: its baseline."""
    overrides: tuple[str, ...] = ()
    """``PATH=VALUE``, as with ``--set``."""
    measured: tuple[str, ...] = Field(min_length=1)
    workload_hash: str | None = None
    """``Workload.content_hash`` of the requests that were sent, where it is known."""
    server_log: str | None = None
    """What the server wrote while it started."""
    metrics: tuple[str, ...] = Field(default=(), max_length=2)
    """What Prometheus read of it: after all of the runs, or before and after them."""


class Manifest(Config):
    """Several deployments: the file behind ``dynosim calibrate MANIFEST.yaml``."""

    runs: tuple[Measurement, ...] = Field(min_length=1)


def read_manifest(path: str | Path) -> tuple[Measurement, ...]:
    """Return the measurements of a manifest, whose relative paths start at its folder; raises ConfigError."""
    document = read_document(path)
    if "runs" not in document.data:
        raise document.error((), "not a manifest (runs: [...]), and without one result files must be named")
    try:
        runs = Manifest.model_validate(document.data).runs
    except ValidationError as errors:
        error = errors.errors(include_url=False)[0]
        raise document.error(tuple(map(str, error["loc"])), error["msg"]) from None
    folder = Path(path).parent
    return tuple(
        each.model_copy(
            update={
                "config": str(folder / each.config),
                "measured": tuple(str(folder / file) for file in each.measured),
                "server_log": each.server_log and str(folder / each.server_log),
                "metrics": tuple(str(folder / file) for file in each.metrics),
            }
        )
        for each in runs
    )


def calibrate(measurements: Sequence[Measurement], *, name: str, created: str = "") -> Calibration:
    """Fit a profile to *measurements*, not yet saved; *created* is the time that it will bear (ISO 8601).

    Raises ConfigError where a file is not a result file, or does not fit its configuration; InfeasibleError and
    TimingError where that cannot be simulated.
    """
    _check_once([file for measurement in measurements for file in measurement.measured])
    groups = [_replays(measurement) for measurement in measurements]
    facts = [fact for each, own in zip(measurements, groups, strict=True) for fact in _server_facts(each, own)]
    replays = [each for own in groups for each in own]
    files = dict.fromkeys(each.run.file for each in replays)
    sources = tuple(_source(file, [each.run for each in replays if each.run.file == file]) for file in files)
    return fit(replays, name, server=tuple(facts), sources=sources, created=created, dynosim_version=__version__)


def _server_facts(measurement: Measurement, replays: Sequence[Replay]) -> list[ServerFact]:
    stated = server.log_facts(measurement.server_log) if measurement.server_log else {}
    stated |= server.counter_facts(measurement.metrics) if measurement.metrics else {}
    return server.compare(stated, replays) if stated else []


def _replays(measurement: Measurement) -> list[Replay]:
    scenario = SearchSpace.load(measurement.config, measurement.overrides).deployed()
    feasibility.check_start(scenario)
    runs = [run for file in measurement.measured for run in read_measured(file)]
    if not runs:
        raise ConfigError("no measured run", file=measurement.config)
    return [replay(run, scenario, measurement.workload_hash) for run in runs]


def _check_once(files: Sequence[str]) -> None:
    """Raise ConfigError where a file comes twice: its errors would look like those of two runs that agree."""
    seen = set()
    for file in filter(os.path.isfile, files):
        content = Path(file).read_bytes()
        if content in seen:
            raise ConfigError("the same content as a file before it: allowed: each run once", file=file)
        seen.add(content)


def _source(file: str, runs: Sequence[MeasuredRun]) -> Source:
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return Source(file=Path(file).name, sha256=digest, tool=runs[0].tool, runs=len(runs))
