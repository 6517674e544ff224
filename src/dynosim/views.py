"""What dynosim says about studies, trials and predictions as JSON objects: one schema for command line and service."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dynosim.engines import rules_of
from dynosim.hardware.prices import price_list
from dynosim.metrics import slo_violations
from dynosim.objectives import resolve
from dynosim.report.analysis import prices
from dynosim.report.bottleneck import bottleneck
from dynosim.report.infeasible import why_infeasible
from dynosim.run.predict import Prediction
from dynosim.search.view import case_views, known, noise, objective_view, trial_detail, trial_view

if TYPE_CHECKING:
    from dynosim.search.study import Study
    from dynosim.search.trial import Trial


def explained(trial: Trial) -> dict[str, Any]:
    """Return ``trial_detail`` and where the time of its slowest requests goes."""
    return {**trial_detail(trial), "bottleneck": bottleneck(trial.outcome.flat_metrics(), trial.scenario.slo)}


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
    outcome = prediction.outcome
    violations = outcome.constraints if outcome else slo_violations(metrics, scenario.slo)
    values = outcome.values or () if outcome else ()
    return {
        "name": scenario.name,
        "label": scenario.deployment.label(),
        "gpus": scenario.deployment.num_gpus(),
        "config_hash": scenario.content_hash(),
        "metrics": metrics.to_dict(),
        "objectives": dict(zip((resolve(config).name for config in scenario.objectives), values, strict=False)),
        "cases": case_views(outcome) if outcome else {},
        "evidence": prediction.evidence,
        "seeds": prediction.seeds,
        **noise(metrics, prediction.model_bands()),
        "slo_violations": known(violations),
        "feasible": all(violation <= 0.0 for violation in violations.values()),
        "bottleneck": bottleneck(metrics.flat(), scenario.slo),
        "prices": price_list(scenario.deployment.gpu_counts(), scenario.prices),
        "timing": prediction.result.timing,
        "engine_rules": rules_of(scenario.deployment.engine).label,
    }
