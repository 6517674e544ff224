"""What is known of a scenario before it is simulated: names, budgets, memory, and whether timing data exist."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from dynosim import engines, plugins
from dynosim.config import (
    CrashConfig,
    CustomTiming,
    DeploymentConfig,
    ProfileSource,
    Scenario,
    StragglerConfig,
    SyntheticSource,
    TraceSource,
    cases_of,
)
from dynosim.config.deployment import SECTIONS
from dynosim.config.load import Problem
from dynosim.config.schema import Path
from dynosim.errors import ConfigError, InfeasibleError, TimingError
from dynosim.hardware import startup
from dynosim.hardware.gpus import get_gpu
from dynosim.hardware.models import get_model
from dynosim.hardware.plan import pool_plans
from dynosim.hardware.prices import usd
from dynosim.policies.registry import Kind, make, setpoint
from dynosim.rng import stream
from dynosim.timing import forward_times, source_tables
from dynosim.timing.calibrated import load_profile, profile_of
from dynosim.workload.profiles import get_profile
from dynosim.workload.readers import custom_reader


def check(scenario: Scenario) -> None:
    """Raise InfeasibleError or TimingError with the numbers when *scenario* cannot be deployed or predicted."""
    _check_budget(scenario)
    check_start(scenario)


def check_start(scenario: Scenario) -> None:
    """Like ``check`` without the budget: whether *scenario* can be simulated."""
    for case in cases_of(scenario):
        for problem in contradictions(case.scenario):
            raise InfeasibleError(f"{'.'.join(problem.path)}: {problem.message}")
    plans = startup.check(scenario.deployment)
    profile_of(scenario.deployment)
    for plan in plans.values():
        forward_times(plan)


def _check_budget(scenario: Scenario) -> None:
    budget, gpus = scenario.budget, scenario.deployment.num_gpus()
    for reference, count in scenario.deployment.gpu_counts().items():
        gpu = get_gpu(reference).name
        available = budget.inventory.get(gpu, 0)
        if budget.inventory and count > available:
            raise InfeasibleError(f"needs {count} x {gpu}, budget.inventory has {available}")
    if budget.max_gpus is not None and gpus > budget.max_gpus:
        raise InfeasibleError(f"needs {gpus} GPUs, budget.max_gpus is {budget.max_gpus}")
    if budget.max_usd_per_hour is not None:
        cost = usd(scenario.deployment.gpu_counts().items(), scenario.prices)
        if cost > budget.max_usd_per_hour:
            limit = budget.max_usd_per_hour
            raise InfeasibleError(f"costs {cost:.2f} USD per hour, budget.max_usd_per_hour is {limit:g}")


def contradictions(scenario: Scenario) -> list[Problem]:
    """Return the values of *scenario* that other values of it rule out."""
    kinds = {
        "contradiction": (*_warmup(scenario), *_failures(scenario)),
        "value_error": engines.contradictions(scenario.deployment),
    }
    return [Problem(path, message, kind) for kind, found in kinds.items() for path, message in found]


def _warmup(scenario: Scenario) -> Iterator[tuple[Path, str]]:
    """The warm-up must leave requests; how many a trace has is known only once it is read."""
    for path, workload in scenario.named_workloads().items():
        source = workload.source
        if isinstance(source, ProfileSource):
            source = get_profile(source.name).sized(source.requests)
        counts = [source.requests] if isinstance(source, SyntheticSource) else []
        limit = min([*counts, *([workload.max_requests] if workload.max_requests else [])], default=None)
        if limit is not None and workload.warmup_requests >= limit:
            message = f"{workload.warmup_requests}: allowed: less than the number of requests, {limit}"
            yield (*path, "warmup_requests"), message


def _failures(scenario: Scenario) -> Iterator[tuple[Path, str]]:
    """Crashes and stragglers must name replicas that there may be."""
    failures, pools = scenario.deployment.failures, scenario.deployment.pools()
    kinds: dict[str, Sequence[CrashConfig | StragglerConfig]]
    kinds = {"crashes": failures.crashes, "stragglers": failures.stragglers}
    for kind, named in kinds.items():
        for index, failure in enumerate(named):
            path = ("deployment", "failures", kind, str(index))
            if failure.pool not in pools:
                yield (*path, "pool"), f"{failure.pool}: allowed: {', '.join(pools)}"
            elif failure.replica >= pools[failure.pool].max_replicas:
                yield (*path, "replica"), f"{failure.replica}: allowed: 0 to {pools[failure.pool].max_replicas - 1}"


def unknown_names(scenario: Scenario, cards: Sequence[str] = ()) -> list[Problem]:
    """Return the names in *scenario* that nothing answers to: model, GPUs, router and options, metrics, statistics.

    What is the user's is loaded and held to its contract. *cards*: users' GPUs that other points of the space have.
    """
    problems = []
    for path, look_up, name in _names(scenario, cards):
        try:
            look_up(name)
        except ConfigError as error:
            problems.append(Problem(path or tuple(error.path.split(".")), error.message, "unknown_name"))
    return problems


def _names(scenario: Scenario, cards: Sequence[str]) -> Iterator[tuple[Path, Callable[[Any], object], Any]]:
    """Yield (path, function that raises ConfigError for an unknown name, name); without a path the error has it."""
    from dynosim.metrics import METRICS, check_slo  # imports the simulator
    from dynosim.objectives import resolve

    deployment = scenario.deployment
    for place, workload in scenario.named_workloads().items():
        if isinstance(workload.source, ProfileSource):
            yield (*place, "source", "name"), get_profile, workload.source.name
        if isinstance(workload.source, TraceSource) and plugins.is_reference(workload.source.format):
            yield (*place, "source", "format"), custom_reader, workload.source.format
    if plugins.is_reference(scenario.optimizer.sampler):
        yield ("optimizer", "sampler"), plugins.load, scenario.optimizer.sampler
    yield ("deployment", "model"), get_model, deployment.model
    yield ("deployment", "gpu"), get_gpu, deployment.gpu
    if deployment.calibration is not None:
        yield ("deployment", "calibration"), load_profile, deployment.calibration
    for role, pool in deployment.pools().items():
        yield (*SECTIONS[role].split("."), "gpu"), get_gpu, deployment.pool_gpu(pool)
    varied = [(("scenarios", name, "prices"), variation.prices) for name, variation in scenario.scenarios.items()]
    for section, prices in [(("prices",), scenario.prices), *varied]:
        for name in prices.usd_per_gpu_hour:
            yield (*section, "usd_per_gpu_hour", name), partial(_check_gpu, cards=cards), name
    for name in scenario.budget.inventory:
        yield ("budget", "inventory", name), partial(_check_gpu, cards=cards), name
    if isinstance(deployment.timing, CustomTiming):
        yield ("deployment", "timing"), _check_timing, deployment
    for kind, where, name, options in _policies(deployment):
        if kind == "autoscaler":
            yield (), partial(setpoint, options=options, path=where), name
        else:
            yield (), partial(make, kind, options=options, path=where, rng=stream(0, "")), name
    for index, objective in enumerate(scenario.objectives):
        yield ("objectives", str(index), "metric" if objective.metric else "python"), resolve, objective
    for metric, bounds in scenario.slo.items():
        for stat, bound in bounds.items():
            yield ("slo", metric, stat), check_slo, {metric: {stat: bound}}
            if metric in METRICS and METRICS[metric].unit == "ratio":
                yield ("slo", metric, stat), _check_ratio, bound


def _check_gpu(name: str, cards: Sequence[str]) -> None:
    if plugins.is_reference(name):
        raise ConfigError(f"{plugins.short(name)}: allowed: the name in the card")
    if name not in [get_gpu(card).name for card in cards]:
        get_gpu(name)


def _check_timing(deployment: DeploymentConfig) -> None:
    """Let the user's timing source make small tables; that it has no data for a deployment is no mistake."""
    with suppress(TimingError, InfeasibleError):
        for plan in pool_plans(deployment).values():
            source_tables(plan, max_num_seqs=8, max_num_batched_tokens=64)


def _check_ratio(bound: float) -> None:
    if bound > 1.0:
        raise ConfigError(f"{bound:g}: allowed: a number from 0 to 1")


def _policies(deployment: DeploymentConfig) -> Iterator[tuple[Kind, str, str, dict[str, Any]]]:
    """Yield (kind, section, name, options) of every policy of *deployment*."""
    yield "router", "deployment.router", deployment.router.policy, deployment.router.options
    split = deployment.disaggregated
    if split is not None and split.decode_router is not None:
        second = split.decode_router
        yield "router", "deployment.disaggregated.decode_router", second.policy, second.options
    for role, pool in deployment.pools().items():
        section = SECTIONS[role]
        yield "scheduling_policy", section, pool.scheduling_policy, pool.scheduling_options
        if pool.autoscaler is not None:
            scaler, section = pool.autoscaler, f"{section}.autoscaler"
            yield "autoscaler", section, scaler.policy, scaler.options
            yield "predictor", section, scaler.predictor, scaler.predictor_options
