"""Outcomes as JSON: what ``validate --format json`` prints of each row, and saved ones that need no second replay."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynosim.config import DeploymentConfig
from dynosim.errors import ConfigError
from dynosim.fidelity.measurements import Measurement
from dynosim.fidelity.names import card_of
from dynosim.fidelity.replay import Outcome
from dynosim.files import write_whole
from dynosim.uncertainty.model_band import class_bands


def row_of(outcome: Outcome) -> dict[str, Any]:
    """Return id, what was simulated, measured and predicted of a row, its class of evidence and the bands that the
    package states for it, why there is no prediction, and what of its notes nobody read."""
    row, stated = outcome.measurement, class_bands(outcome.evidence, (card_of(outcome.measurement.gpu),))
    return {
        "id": row.id,
        "evidence": outcome.evidence,
        "flagged": row.flagged,
        "problem": outcome.problem,
        "unread": outcome.unread,
        **_simulated(outcome.deployment),
        "measured": dict(row.measured),
        "predicted": dict(outcome.predicted),
        "bands": {metric: (band.low, band.high) for metric, band in stated.items()},
    }


def _simulated(deployment: DeploymentConfig | None) -> dict[str, Any]:
    if deployment is None:
        return {"layout": None, "engine": None, "engine_version": None, "deployment": None}
    said = deployment.model_dump(mode="json", exclude_defaults=True)
    return {
        "layout": deployment.label(),
        "engine": deployment.engine.name,
        "engine_version": deployment.engine.version,
        "deployment": said | {"timing": {"type": deployment.timing.type, **said.get("timing", {})}},
    }


def save(file: Path, outcomes: Sequence[Outcome]) -> Path:
    """Write *outcomes* with their per-request columns; ``read_outcomes`` reads them."""
    rows = [
        row_of(o) | {"requests": o.requests and {name: values.tolist() for name, values in o.requests.items()}}
        for o in outcomes
    ]
    return write_whole(file, json.dumps({"rows": rows}))


def read_outcomes(file: Path, rows: Sequence[Measurement]) -> list[Outcome]:
    """Return the saved outcomes of *rows*, in their order; ConfigError for another file or a row it lacks."""
    try:
        saved = {told["id"]: told for told in json.loads(file.read_text(encoding="utf-8"))["rows"]}
        missing = [row.id for row in rows if row.id not in saved]
        if missing:
            raise ConfigError(f"no outcome of {', '.join(missing[:3])}: save them again", file=str(file))
        return [_outcome(row, saved[row.id]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"no file of outcomes: {error}; `dynosim validate --save` makes one", file=str(file)
        ) from None


def _outcome(row: Measurement, told: Mapping[str, Any]) -> Outcome:
    requests = told.get("requests")
    return Outcome(
        row,
        told["predicted"],
        told["evidence"],
        told["problem"],
        requests=requests and {name: np.array(values) for name, values in requests.items()},
        deployment=told["deployment"] and DeploymentConfig.model_validate(told["deployment"]),
        unread=tuple(told["unread"]),
    )
