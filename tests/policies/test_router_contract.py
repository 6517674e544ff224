"""What every registered router must do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim import rng
from dynosim.errors import ConfigError
from dynosim.policies.base import PoolView, RequestView, Router
from dynosim.policies.registry import check_options, make_router, router_class, routers
from dynosim.simulation import simulate
from dynosim.space import SearchSpace
from dynosim.workload import load_workload

ALL = sorted(routers())


def _make_view(seed: int, replicas: int) -> PoolView:
    random = np.random.default_rng(seed)
    columns = [random.integers(0, 50, replicas) * unit for unit in (1, 900, 1000)]
    cached = random.integers(0, 4, replicas) * 256
    for column in columns:
        column.flags.writeable = False
    return _view(*columns, cached)


def _view(outstanding: Any, prefill: Any, kv: Any, cached: Any, role: str = "mixed", host: Any = 0) -> PoolView:
    columns = [np.asarray(column) for column in (outstanding, prefill, kv)]
    here, below = np.asarray(cached), np.zeros(len(cached), np.int64) + host
    return PoolView(role, 16, np.arange(len(here)), *columns, cached_tokens=here.copy, host_cached_tokens=below.copy)


def _request(index: int = 0, input_tokens: int = 700) -> RequestView:
    return RequestView(index, input_tokens, index, 0, np.arange(2), 512)


def _route(router: Router, seed: int, replicas: int, requests: int = 20) -> list[int]:
    return [router.route(_request(i), _make_view(seed + i, replicas)) for i in range(requests)]


@pytest.mark.parametrize("policy", ALL)
@given(seed=st.integers(0, 1000), replicas=st.integers(1, 9))
def test_answers_a_replica_and_the_same_one_again(policy: str, seed: int, replicas: int) -> None:
    routes = [_route(make_router(policy, {}, rng.stream(seed, "routing")), seed, replicas) for _ in range(2)]
    assert routes[0] == routes[1]
    assert all(0 <= chosen < replicas for chosen in routes[0])


@pytest.mark.parametrize("policy", ALL)
def test_declares_whether_it_looks(policy: str) -> None:
    assert isinstance(router_class(policy).looks, bool)  # type: ignore[attr-defined]


@pytest.mark.parametrize("policy", ALL)
def test_unknown_options_are_refused(policy: str) -> None:
    with pytest.raises(ConfigError, match=f"router {policy} takes"):
        check_options(policy, {"no_such_option": 1})


def test_kv_aware_prefers_the_cached_replica_until_it_is_too_busy() -> None:
    def choose(load: int, **options: float) -> int:
        view = _view([1, 1], [0, 0], [load, 0], [640, 0])
        return make_router("kv_aware", options, rng.stream(0, "r")).route(_request(), view)

    # 640 cached tokens are worth 40 blocks of 16: exactly what a load of 640 tokens takes away.
    assert choose(load=639) == 0
    assert choose(load=641) == 1
    assert choose(load=641, overlap_weight=2.0) == 0
    assert choose(load=639, overlap_weight=0.5) == 1
    assert choose(load=1200, prefill_weight=2.0) == 0


def test_kv_aware_at_a_high_temperature_spreads() -> None:
    router = make_router("kv_aware", {"temperature": 50.0}, rng.stream(0, "r"))
    idle, busy = np.zeros(3, np.int64), np.array([9000, 0, 0])
    view = _view(idle, idle, busy, idle)
    chosen = [router.route(_request(i), view) for i in range(300)]
    assert set(chosen) == {0, 1, 2}


def test_names_from_anywhere_and_names_from_nowhere() -> None:
    assert router_class("dynosim.policies.routing.round_robin:RoundRobin") is routers()["round_robin"]
    with pytest.raises(ConfigError, match="did you mean 'kv_aware'"):
        router_class("kv_awar")
    with pytest.raises(ConfigError, match="no_module"):
        router_class("no_module:Router")


class OffByOne:
    """A user's mistake: replicas are numbered from 0."""

    looks = False

    def route(self, request: RequestView, pool: PoolView) -> int:
        return len(pool.outstanding_requests)


@pytest.mark.parametrize("looks", [False, True])
def test_an_answer_outside_the_pool_is_an_error_not_a_crash(looks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OffByOne, "looks", looks)
    scenario = SearchSpace.load("tiny", [f"deployment.router.policy={__name__}:OffByOne"]).reference
    workload = load_workload(scenario.workload, 0).head(3)
    with pytest.raises(ValueError, match="chose replica 2 of 2"):
        simulate(scenario.deployment, workload)
