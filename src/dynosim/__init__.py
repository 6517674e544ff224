"""dynosim maps the Pareto frontier of LLM serving. Independent project, not affiliated with NVIDIA.

    import dynosim

    study = dynosim.optimize("llama70b", trials=100)
    for trial in study.frontier():
        print(trial.scenario.deployment.label(), trial.outcome.values)

Names are imported when first used: ``import dynosim`` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynosim.compare import compare_workloads
    from dynosim.config import DeploymentConfig, Scenario, WorkloadConfig
    from dynosim.errors import ConfigError, DynosimError, InfeasibleError, StudyError, TimingError
    from dynosim.metrics import Metrics, summarize
    from dynosim.objectives import Objective, objective
    from dynosim.run.predict import Prediction, predict
    from dynosim.run.study import load_study, open_study, optimize
    from dynosim.search.loop import OpenStudy
    from dynosim.search.study import Listener, Study
    from dynosim.search.trial import Outcome, Trial
    from dynosim.simulation import SimulationResult, simulate
    from dynosim.space import SearchSpace
    from dynosim.workload import Workload, load_workload

__version__ = "0.1.0"

_HOMES = {
    "ConfigError": "errors",
    "DeploymentConfig": "config",
    "DynosimError": "errors",
    "InfeasibleError": "errors",
    "Listener": "search.study",
    "Metrics": "metrics",
    "Objective": "objectives",
    "OpenStudy": "search.loop",
    "Outcome": "search.trial",
    "Prediction": "run.predict",
    "Scenario": "config",
    "SearchSpace": "space",
    "SimulationResult": "simulation",
    "Study": "search.study",
    "StudyError": "errors",
    "TimingError": "errors",
    "Trial": "search.trial",
    "Workload": "workload",
    "WorkloadConfig": "config",
    "compare_workloads": "compare",
    "load_study": "run.study",
    "load_workload": "workload",
    "objective": "objectives",
    "open_study": "run.study",
    "optimize": "run.study",
    "predict": "run.predict",
    "simulate": "simulation",
    "summarize": "metrics",
}

__all__ = [
    "ConfigError",
    "DeploymentConfig",
    "DynosimError",
    "InfeasibleError",
    "Listener",
    "Metrics",
    "Objective",
    "OpenStudy",
    "Outcome",
    "Prediction",
    "Scenario",
    "SearchSpace",
    "SimulationResult",
    "Study",
    "StudyError",
    "TimingError",
    "Trial",
    "Workload",
    "WorkloadConfig",
    "compare_workloads",
    "load_study",
    "load_workload",
    "objective",
    "open_study",
    "optimize",
    "predict",
    "simulate",
    "summarize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dynosim' has no attribute {name!r}")
    return getattr(import_module(f"dynosim.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
