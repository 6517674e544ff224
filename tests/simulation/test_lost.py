"""Lost causes: a stopped run would have missed the SLO by what it tells, and one that is not stopped is untouched."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dynosim.config import SLO, DeploymentConfig, PriceConfig, WorkloadConfig
from dynosim.errors import DynosimError
from dynosim.metrics import slo_violations, summarize
from dynosim.simulation import LostCause, SimulationResult, simulate
from dynosim.simulation.lost import Progress
from dynosim.simulation.records import INCOMPLETE, REJECTED, REQUEST_DTYPE
from dynosim.workload import load_workload
from dynosim.workload.table import Workload
from simulation import laws
from simulation.scenarios import Choices, Drawn, make_configured_workload, make_deployment, make_workload

SERVED = {"served_request_fraction": {"min": 0.9}}
LATENCIES = ("time_to_first_token", "request_latency", "inter_token_latency")
STATISTICS = ("p99", "avg", "p50", "p90", "min", "max", "p999", "std")


def _violations(result: SimulationResult, slo: SLO) -> dict[str, float]:
    return slo_violations(summarize(result, slo, PriceConfig()), slo)


def _make_slo(choices: Choices) -> SLO:
    slo: SLO = dict(choices.of(SERVED, {"served_request_fraction": {"min": 0.999}}, {}))
    for metric in LATENCIES:
        bounds = {choices.of(*STATISTICS): choices.of(300.0, 30.0, 3.0, 3000.0, 0.0) for _ in range(2)}
        slo |= choices.of({metric: bounds}, {})
    return slo


def _assert_told_truly(told: Mapping[str, float], slo: SLO, truth: Mapping[str, float]) -> None:
    """What was told holds, or too few requests were served, which is an SLO too."""
    served = "served_request_fraction.min"
    assert max(truth.values()) > 0.0, "stopped, but it would have met every SLO"
    if served in told or truth.get(served, 0.0) <= 0.0:
        for name, least in told.items():
            assert 0.0 < least <= truth[name] * (1 + 1e-9), name


@settings(max_examples=200)
@given(data=st.data())
def test_a_stopped_run_is_lost_and_any_other_is_untouched(data: st.DataObject) -> None:
    choices = Drawn(data)
    slo, margin = _make_slo(choices), choices.of(1.0, 1.5, 4.0)
    try:
        deployment = make_deployment(choices)
        workload = choices.of(make_workload, make_configured_workload)(choices)
        whole = simulate(deployment, workload)
    except DynosimError:
        assume(False)
    stop = LostCause(slo, margin)
    result = simulate(deployment, workload, stop=stop)
    again = simulate(deployment, workload, stop=stop)
    assert (laws.fingerprint(result), result.lost) == (laws.fingerprint(again), again.lost)
    if result.stopped != "slo":
        assert (laws.fingerprint(result), result.stopped) == (laws.fingerprint(whole), whole.stopped)
        assert not result.lost
        return
    assert result.lost
    assert result.duration_s <= whole.duration_s
    _assert_told_truly(result.lost, slo, _violations(whole, slo))
    assert "served_request_fraction.min" in result.lost or max(result.lost.values()) >= margin - 1.0
    summarize(result, slo, PriceConfig())


def _make_ending(seen: Progress, rng: np.random.Generator) -> NDArray[Any]:
    """Return the requests of an ending by chance: who is not done ends now, later or never; new ones take no time."""
    sent, done = len(seen.arrival_s), np.isfinite(seen.last_token_s)
    later_s = seen.time_s + rng.exponential(3.0, (2, sent)).cumsum(0) * rng.integers(0, 2)
    more = int(rng.integers(0, seen.total - seen.unserved - sent + 1))
    requests = np.zeros(sent + more + seen.unserved, REQUEST_DTYPE)
    requests["output_tokens"], requests["output_tokens"][:sent] = 2, seen.output_tokens
    requests["arrival_s"][:sent] = seen.arrival_s
    requests["first_token_s"][:sent] = np.where(np.isnan(seen.first_token_s), later_s[0], seen.first_token_s)
    requests["last_token_s"][:sent] = np.where(done, seen.last_token_s, later_s[1])
    never = rng.permutation(np.flatnonzero(~done))[: rng.integers(0, 4)]
    requests["status"][never] = INCOMPLETE
    requests["status"][sent + more :] = REJECTED
    return requests


@settings(max_examples=300)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_no_ending_of_a_lost_run_meets_its_slo(data: st.DataObject, seed: int) -> None:
    choices, rng = Drawn(data), np.random.default_rng(seed)
    sent, mean_s = choices.integer(1, 60), choices.of(1.0, 5.0)
    arrival_s = rng.uniform(0.0, 5.0, sent)
    first_s, last_s = arrival_s + rng.exponential(mean_s, (2, sent)).cumsum(0)
    unserved = choices.integer(0, 3)
    seen = Progress(
        time_s=5.0,
        arrival_s=arrival_s,
        first_token_s=np.where(first_s <= 5.0, first_s, np.nan),
        last_token_s=np.where(last_s <= 5.0, last_s, np.nan),
        output_tokens=rng.integers(2, 6, sent),
        total=sent + choices.integer(0, 8) + unserved,
        unserved=unserved,
        certain=False,
    )
    slo = _make_slo(choices)
    told = LostCause(slo, 1.0).violations(seen)
    for _ in range(10 if told else 0):
        ending = replace(_anything(), requests=_make_ending(seen, rng))
        _assert_told_truly(told, slo, _violations(ending, slo))


@functools.cache
def _anything() -> SimulationResult:
    return simulate(_make_deployment(), _make_workload(1.0, requests=1))


def _make_deployment(router: str = "round_robin", timing: str = "fixed", **pool: Any) -> DeploymentConfig:
    return DeploymentConfig.model_validate(
        {
            "model": "llama-3.1-70b",
            "gpu": "h200_sxm",
            "timing": {"type": timing},
            "aggregated": {"tensor_parallel_size": 4} | pool,
            "router": {"policy": router},
        }
    )


def _make_workload(rate_rps: float, requests: int = 1000, **source: Any) -> Workload:
    lengths = {"input_tokens": {"type": "fixed", "tokens": 1000}, "output_tokens": {"type": "fixed", "tokens": 11}}
    config = {
        "source": {"type": "synthetic", "requests": requests, **lengths, **source},
        "load": {"type": "poisson", "rate_rps": rate_rps},
        "warmup_requests": requests // 20,
    }
    return load_workload(WorkloadConfig.model_validate(config), 0)


@pytest.mark.parametrize("router", ["round_robin", "kv_aware"])
def test_sums_over_replicas_are_byte_equal_in_a_run_that_is_not_lost(router: str) -> None:
    """Thousands of unequal token gaps share each bin of the histogram: added in another order they differ."""
    deployment = _make_deployment(router, "roofline", replicas=4)
    workload = _make_workload(20.0, output_tokens={"type": "uniform", "min": 1, "max": 300})
    whole, result = (simulate(deployment, workload, stop=stop) for stop in (None, LostCause(dict(SERVED))))
    assert result.gaps.count.sum() > 1e5
    assert laws.fingerprint(result) == laws.fingerprint(whole)


@pytest.mark.parametrize(
    ("slo", "pool", "rate_rps"),
    [
        ({"time_to_first_token": {"p99": 2000.0}}, {}, 40.0),
        ({"time_to_first_token": {"avg": 500.0}}, {}, 40.0),
        ({"request_latency": {"p50": 1000.0}}, {}, 40.0),
        ({"inter_token_latency": {"p99": 5.0}}, {}, 1.0),
        ({"inter_token_latency": {"max": 5.0}}, {}, 1.0),
        ({}, {"num_gpu_blocks_override": 100}, 1.0),
    ],
)
def test_hopeless_runs_end_early(slo: SLO, pool: dict[str, Any], rate_rps: float) -> None:
    """Four times overloaded, decoding too slowly, or half of the requests larger than the KV cache."""
    workload = _make_workload(rate_rps, input_tokens={"type": "uniform", "min": 500, "max": 2500})
    deployment, slo = _make_deployment(**pool), SERVED | slo
    whole, result = simulate(deployment, workload), simulate(deployment, workload, stop=LostCause(slo))
    assert result.stopped == "slo"
    assert set(result.lost) & {f"{metric}.{stat}" for metric, bounds in slo.items() for stat in bounds}
    assert result.duration_s < 0.6 * whole.duration_s
    _assert_told_truly(result.lost, slo, _violations(whole, slo))


def test_the_later_it_stops_the_more_it_tells() -> None:
    """Waiting grows with every request of an overload, and a larger margin sees more of it."""
    slo, workload = SERVED | {"time_to_first_token": {"p50": 500.0}}, _make_workload(40.0)
    results = [simulate(_make_deployment(), workload, stop=LostCause(slo, margin)) for margin in (1.0, 4.0, 16.0)]
    told = [result.lost["time_to_first_token.p50"] for result in results]
    assert told == sorted(told)
    assert told[-1] >= 15.0
    assert results[0].duration_s < results[-1].duration_s


def test_a_deployment_that_no_request_fits_is_not_stopped() -> None:
    result = simulate(_make_deployment(num_gpu_blocks_override=20), _make_workload(1.0), stop=LostCause(dict(SERVED)))
    assert (result.requests["status"] == REJECTED).all()
    assert not result.stopped
