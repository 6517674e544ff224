"""One trial, and an objective, as JSON objects: files, page, MLflow, command line and service say it in these words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dynosim import plugins
from dynosim.hardware.gpus import get_gpu
from dynosim.metrics import Metrics
from dynosim.objectives import Objective
from dynosim.search.trial import Outcome, Trial, objective_name
from dynosim.uncertainty.model_band import Band


def objective_view(objective: Objective) -> dict[str, str]:
    """Return what is needed to label an objective."""
    return {
        "name": objective.name,
        "display": objective.display,
        "unit": objective.unit,
        "direction": objective.direction,
        "kind": objective.kind,
    }


def gpu_counts(trial: Trial) -> dict[str, int]:
    """Return GPU name -> GPUs of all pools, all that an autoscaler may add included."""
    counts = trial.scenario.deployment.gpu_counts()
    return {get_gpu(gpu).name: count for gpu, count in counts.items()}


def layout(trial: Trial) -> dict[str, str]:
    """Return what people call a deployment by beside its label: engine, weights (and KV cache), router, GPU types."""
    deployment = trial.scenario.deployment
    weights, kv = deployment.quantization.replace("none", "native"), deployment.kv_cache_dtype
    routers = dict.fromkeys(plugins.short(deployment.role_router(role).policy) for role in deployment.pools())
    return {
        "engine": deployment.engine.name,
        "precision": weights if kv == "auto" else f"{weights}, KV {kv}",
        "router": "+".join(routers),
        "gpu": "+".join(gpu_counts(trial)),
    }


def trial_view(trial: Trial) -> dict[str, Any]:
    """Return a trial without its metrics; ``reason`` of a failure is its last line."""
    deployment, outcome = trial.scenario.deployment, trial.outcome
    return {
        "number": trial.number,
        "status": outcome.status.value,
        "feasible": outcome.feasible,
        "saturated": trial.saturated,
        "evidence": outcome.evidence or None,
        "label": deployment.label(),
        **layout(trial),
        "gpus": deployment.num_gpus(),
        "gpu_counts": gpu_counts(trial),
        "autoscaled": deployment.autoscaled,
        "point": dict(trial.point),
        "values": outcome.values,
        **_objective_ends(trial),
        "constraints": known(outcome.constraints),
        "reason": outcome.headline,
    }


def trial_detail(trial: Trial) -> dict[str, Any]:
    """Return a trial with its metrics, its complete scenario and its full reason."""
    outcome = trial.outcome
    return {
        **trial_view(trial),
        "reason": outcome.reason,
        "metrics": outcome.metrics,
        "cases": case_views(outcome),
        **noise(outcome.known_metrics(), trial.model_bands()),
        "scenario": trial.scenario.model_dump(mode="json"),
        "wall_s": outcome.wall_s,
    }


def case_views(outcome: Outcome) -> dict[str, Any]:
    """Return case -> its metrics, objective values and violations, where there are several."""
    return {name: {**case, "constraints": known(case["constraints"])} for name, case in outcome.cases.items()}


def lossless(trial: Trial) -> dict[str, Any]:
    """Return everything known about a trial, what its intervals are made of included."""
    return {**trial_detail(trial), "deviations": trial.outcome.deviations, "noise": trial.outcome.noise}


def known(violations: Mapping[str, float]) -> dict[str, float | None]:
    """Return violations as JSON can hold them: None where the metric has no value, which is a violation too."""
    return {name: violation if math.isfinite(violation) else None for name, violation in violations.items()}


def noise(metrics: Metrics, bands: Mapping[str, Band]) -> dict[str, Any]:
    """Return the sampling interval of each number by its name in ``Metrics.flat``, the model's factors by metric."""
    return {
        "intervals": metrics.intervals(),
        "model_bands": {metric: (band.low, band.high) for metric, band in bands.items()},
    }


def _objective_ends(trial: Trial) -> dict[str, list[tuple[float, float] | None]]:
    """Return the sampling interval and the model band around each objective value; None where it is unknown."""
    named = zip(trial.scenario.objectives, trial.outcome.values or (), strict=False)
    found = [trial.ends(objective_name(objective), value) for objective, value in named]
    return {"sampling": [sampling for sampling, _ in found], "model": [model for _, model in found]}
