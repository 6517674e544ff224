"""What dynosim says about studies, trials and predictions as JSON objects: one schema for command line and service."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dynosim.hardware.prices import price_list
from dynosim.metrics import Metrics, slo_violations
from dynosim.objectives import Objective
from dynosim.report.analysis import layout, prices
from dynosim.report.bottleneck import bottleneck
from dynosim.report.infeasible import why_infeasible
from dynosim.run import Prediction
from dynosim.uncertainty.model_band import Band

if TYPE_CHECKING:
    from dynosim.search.study import Study
    from dynosim.search.trial import Trial


def objective_view(objective: Objective) -> dict[str, str]:
    """Return what is needed to label an objective."""
    return {
        "name": objective.name,
        "display": objective.display,
        "unit": objective.unit,
        "direction": objective.direction,
        "kind": objective.kind,
    }


def _known(violations: Mapping[str, float]) -> dict[str, float | None]:
    """Return violations as JSON can hold them: None where the metric has no value, which is a violation too."""
    return {name: violation if math.isfinite(violation) else None for name, violation in violations.items()}


def trial_view(trial: Trial) -> dict[str, Any]:
    """Return a trial without its metrics; ``reason`` of a failure is its last line."""
    deployment, outcome = trial.scenario.deployment, trial.outcome
    return {
        "number": trial.number,
        "status": outcome.status.value,
        "feasible": outcome.feasible,
        "label": deployment.label(),
        **layout(trial),
        "gpus": deployment.num_gpus(),
        "values": outcome.values,
        **_objective_ends(trial),
        "evidence": outcome.evidence or None,
        "saturated": trial.saturated,
        "constraints": _known(outcome.constraints),
        "point": dict(trial.point),
        "reason": outcome.headline,
    }


def _objective_ends(trial: Trial) -> dict[str, list[tuple[float, float] | None]]:
    """Return the sampling interval and the model band around each objective value; None where it is unknown."""
    named = zip(trial.scenario.objectives, trial.outcome.values or (), strict=False)
    found = [trial.ends(f"{objective.metric}.{objective.stat or 'avg'}", value) for objective, value in named]
    return {"sampling": [sampling for sampling, _ in found], "model": [model for _, model in found]}


def _noise(metrics: Metrics, bands: Mapping[str, Band]) -> dict[str, Any]:
    """Return the sampling interval of each number by its name in ``Metrics.flat``, the model's factors by metric."""
    return {
        "intervals": metrics.intervals(),
        "model_bands": {metric: (band.low, band.high) for metric, band in bands.items()},
    }


def trial_detail(trial: Trial) -> dict[str, Any]:
    """Return a trial with its metrics, its complete scenario and its full reason."""
    return {
        **trial_view(trial),
        "reason": trial.outcome.reason,
        "metrics": trial.outcome.metrics,
        **_noise(trial.outcome.known_metrics(), trial.model_bands()),
        "bottleneck": bottleneck(trial.outcome.flat_metrics(), trial.scenario.slo),
        "scenario": trial.scenario.model_dump(mode="json"),
        "wall_s": trial.outcome.wall_s,
    }


def frontier_view(study: Study) -> dict[str, Any]:
    """Return the frontier in the order of its files, the named picks and the baseline.

    ``groups``: trials that cannot be told apart from the first, which may be off the exact frontier.
    """
    return {
        "study": study.id,
        "space": study.space.name,
        "objectives": [objective_view(objective) for objective in study.objectives],
        "slo": study.slo,
        "trials": len(study.trials),
        "feasible": len(study.feasible),
        "hypervolume": study.hypervolume(),
        "gap": None if study.gap is None else asdict(study.gap),
        "infeasible": why_infeasible(study),
        "prices": prices(study),
        "frontier": [trial_view(trial) for trial in study.recommended()],
        "groups": [[trial.number for trial in group] for group in study.groups()],
        "picks": {name: trial.number for name, trial in study.picks().items()},
        "baseline": None if study.baseline is None else trial_view(study.baseline),
    }


def prediction_view(prediction: Prediction) -> dict[str, Any]:
    """Return the metrics of one simulated scenario by their canonical names, with what was simulated."""
    scenario, metrics = prediction.scenario, prediction.metrics
    violations = slo_violations(metrics, scenario.slo)
    return {
        "name": scenario.name,
        "label": scenario.deployment.label(),
        "gpus": scenario.deployment.num_gpus(),
        "config_hash": scenario.content_hash(),
        "metrics": metrics.to_dict(),
        "evidence": prediction.evidence,
        "seeds": prediction.seeds,
        **_noise(metrics, prediction.model_bands()),
        "slo_violations": _known(violations),
        "feasible": all(violation <= 0.0 for violation in violations.values()),
        "bottleneck": bottleneck(metrics.flat(), scenario.slo),
        "prices": price_list(scenario.deployment.gpu_counts(), scenario.prices),
        "timing": prediction.result.timing,
    }
