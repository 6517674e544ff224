"""What every registered router must do, and what each one is there for."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim import rng
from dynosim.policies.base import PoolView, RequestView, Router
from dynosim.policies.registry import make, policies, policy_class
from dynosim.simulation import simulate
from dynosim.space import SearchSpace
from dynosim.workload import load_workload

ALL = sorted(policies("router"))


def _view(
    outstanding: Any = (0, 0),
    prefill: Any = 0,
    kv: Any = 0,
    active: Any = 0,
    waiting: Any = 0,
    used: Any = 0.0,
    overlap: Any = (0, 0, 0, 0),
    targets: Any = None,
    role: str = "mixed",
) -> PoolView:
    """*overlap* is what is cached, in use, in host memory and on disk, in blocks."""
    zeros = np.zeros(len(outstanding), np.int64)
    loads = [zeros + np.asarray(column) for column in (outstanding, prefill, kv, active, waiting, used)]
    blocks = [zeros + np.asarray(column) for column in overlap]
    names = np.arange(len(zeros)) if targets is None else np.asarray(targets)
    for column in (names, *loads, *blocks):
        column.flags.writeable = False
    late = [partial(np.asarray, column) for column in (*loads[4:], *blocks)]
    return PoolView(role, 16, names, *loads[:4], *late)


def _random_view(seed: int, replicas: int) -> PoolView:
    random = np.random.default_rng(seed)
    loads = [random.integers(0, 90, replicas) * unit for unit in (1, 900, 1000, 60, 1, 1 / 90)]
    overlap = random.integers(0, 43, (4, replicas))
    return _view(*loads, overlap=overlap, targets=np.sort(random.choice(20, replicas, replace=False)))


def _request(number: int = 0, input_tokens: int = 700, **fields: Any) -> RequestView:
    given = {"session": number % 5, "priority": number % 3, "block_hashes": np.arange(2), "hash_block_tokens": 512}
    return RequestView(number=number, input_tokens=input_tokens, **{**given, **fields})


def _make(policy: str, **options: Any) -> Router:
    made: Router = make("router", policy, options, "deployment.router", rng.stream(0, "routing"))
    return made


@pytest.mark.parametrize("policy", ALL)
@given(seed=st.integers(0, 1000), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_answers_a_position_and_the_same_one_again(policy: str, seed: int, sizes: list[int]) -> None:
    """Replicas come and go between requests; views that are written to would raise."""
    views = [_random_view(seed + i, size) for i, size in enumerate(sizes)]
    one, two = _make(policy), _make(policy)
    chosen = [one.route(_request(i), view) for i, view in enumerate(views)]
    assert chosen == [two.route(_request(i), view) for i, view in enumerate(views)]
    assert all(type(position) is int and 0 <= position < size for position, size in zip(chosen, sizes, strict=True))


@pytest.mark.parametrize("policy", ALL)
def test_works_without_block_ids(policy: str) -> None:
    request = _request(block_hashes=np.zeros(0, np.int64), hash_block_tokens=0)
    router = _make(policy)
    assert {router.route(request, _view([3, 1])) for _ in range(9)} <= {0, 1}


@pytest.mark.parametrize("policy", ALL)
def test_declares_whether_it_looks(policy: str) -> None:
    """One that says it does not look decides the same on an empty pool."""
    assert isinstance(policy_class("router", policy).looks, bool)  # type: ignore[attr-defined]
    if not policy_class("router", policy).looks:  # type: ignore[attr-defined]
        one, two = _make(policy), _make(policy)
        empty = _view([0] * 6)
        for i in range(30):
            assert one.route(_request(i), empty) == two.route(_request(i), _random_view(i, 6))


def test_round_robin_takes_turns() -> None:
    router = _make("round_robin")
    assert [router.route(_request(), _view([9, 0, 0])) for _ in range(5)] == [0, 1, 2, 0, 1]


def test_random_is_uniform() -> None:
    router = _make("random")
    counts = Counter(router.route(_request(), _view([9, 0, 0, 0])) for _ in range(4000))
    # 1000 +- 5 standard deviations of a binomial count.
    assert all(abs(counts[i] - 1000) < 5 * np.sqrt(4000 * 0.25 * 0.75) for i in range(4))


def test_least_outstanding_counts_requests_or_prompt_tokens() -> None:
    view = _view([3, 2, 2], kv=[100, 900, 800])
    assert _make("least_outstanding").route(_request(), view) == 1
    assert _make("least_outstanding", unit="tokens").route(_request(), view) == 0


def test_power_of_two_draws_two_different_ones() -> None:
    router = _make("power_of_two")
    counts = Counter(router.route(_request(), _view([7, 3, 5])) for _ in range(3000))
    # The most loaded of three never wins; the least loaded wins 2 of 3 pairs.
    assert counts.keys() == {1, 2}
    assert abs(counts[1] - 2000) < 5 * np.sqrt(3000 * 2 / 9)


def test_session_affinity_stays_until_the_replica_goes() -> None:
    router = _make("session_affinity")
    assert router.route(_request(session=8), _view([4, 1, 2])) == 1
    assert router.route(_request(session=8), _view([0, 9, 0])) == 1
    assert router.route(_request(session=9), _view([0, 9, 0])) == 0
    assert router.route(_request(session=8), _view([9, 9, 0], targets=[1, 3, 4])) == 0
    assert router.route(_request(session=8), _view([9, 0], targets=[2, 3])) == 1
    assert router.route(_request(session=8), _view([0, 0, 9], targets=[1, 2, 3])) == 2


def test_prefix_affinity_sticks_to_what_it_sent() -> None:
    router = _make("prefix_affinity")
    first = _request(input_tokens=1000, block_hashes=np.array([1, 2]))
    assert router.route(first, _view([0, 1, 2])) == 0
    longer = _request(input_tokens=1500, block_hashes=np.array([1, 2, 3]))
    assert router.route(longer, _view([5, 0, 2])) == 0, "two of three blocks are known"
    other = _request(input_tokens=1500, block_hashes=np.array([1, 8, 9]))
    assert router.route(other, _view([5, 0, 2])) == 1, "one of three is not more than half"
    assert router.route(other, _view([5, 6, 2], targets=[0, 5, 6])) == 2, "its replica has gone"


def test_prefix_affinity_gives_way_to_balance() -> None:
    def second(loads: list[int], **options: Any) -> int:
        router = _make("prefix_affinity", **options)
        router.route(_request(), _view([0, 1]))
        return router.route(_request(), _view(loads))

    assert second([32, 0]) == 0
    assert second([33, 0]) == 1
    assert second([133, 100], balance_rel_threshold=1.5) == 0, "both thresholds must be passed"
    assert second([5, 0], balance_abs_threshold=4) == 1


def test_prefix_affinity_forgets_the_least_recently_used() -> None:
    router = _make("prefix_affinity", max_blocks=4)
    old, new, third = (_request(block_hashes=np.array(ids)) for ids in ([1, 2], [3, 4], [5, 6]))
    for request in (old, new, old, third):
        assert router.route(request, _view([0, 1])) == 0
    assert router.route(old, _view([5, 0])) == 0
    assert router.route(new, _view([5, 0])) == 1


def test_priority_aware_keeps_replicas_for_the_urgent() -> None:
    router = _make("priority_aware", reserved=0.5)
    view = _view([0, 0, 3, 2])
    assert router.route(_request(priority=0), view) == 0
    assert router.route(_request(priority=1), view) == 3
    assert _make("priority_aware", reserved=0.5, urgent=1).route(_request(priority=1), view) == 0
    assert _make("priority_aware", reserved=1.0).route(_request(priority=1), view) == 3, "one replica is for all"


def _chosen(role: str = "mixed", options: dict[str, Any] | None = None, **view: Any) -> int:
    """Return the replica that kv_aware sends a prompt of 700 tokens to, which is 43.75 blocks."""
    return _make("kv_aware", **(options or {})).route(_request(), _view([1, 1], role=role, **view))


def test_kv_aware_prefers_the_cached_replica_until_it_is_too_busy() -> None:
    def choose(active: int, **options: float) -> int:
        return _chosen(options=options, active=[active, 0], overlap=[[40, 0], 0, 0, 0])

    # 40 cached blocks are worth exactly what 40 active ones take away.
    assert choose(39) == 0
    assert choose(41) == 1
    assert choose(41, overlap_score_credit=1.08) == 0
    assert choose(39, overlap_score_credit=0.5) == 1
    assert choose(75, prefill_load_scale=2.0) == 0


def test_kv_aware_charges_no_block_twice() -> None:
    """Blocks that a request there uses already take no room."""
    in_use = {"active": [40, 0], "overlap": [[40, 0], [40, 0], 0, 0]}
    assert _chosen(**in_use) == 0
    assert _chosen(prefill=[16 * 39, 0], **in_use) == 0
    assert _chosen(prefill=[16 * 41, 0], **in_use) == 1


def test_kv_aware_gives_less_credit_to_lower_tiers() -> None:
    def choose(here: int, below: list[Any], **options: float) -> int:
        return _chosen(options=options, overlap=[[here, 0], 0, *below])

    assert (choose(31, [[0, 40], 0]), choose(29, [[0, 40], 0])) == (0, 1)
    assert (choose(11, [0, [0, 40]]), choose(9, [0, [0, 40]])) == (0, 1)
    assert choose(29, [[0, 40], 0], host_cache_hit_weight=0.5) == 0
    assert choose(9, [0, [0, 40]], disk_cache_hit_weight=0.2) == 0


def test_kv_aware_trusts_the_cache_of_a_busy_replica_less_where_credit_decays() -> None:
    """44 blocks, and 22 more queued than elsewhere: 40 cached ones count as 40 / (1 + 0.5 decay)."""
    busy = {"prefill": [16 * 22, 0], "overlap": [[40, 0], 0, 0, 0]}
    assert _chosen(**busy) == 0
    assert _chosen(options={"overlap_score_credit_decay": 1.6}, **busy) == 0
    assert _chosen(options={"overlap_score_credit_decay": 1.7}, **busy) == 1


def test_kv_aware_counts_requests_where_asked_to() -> None:
    view = {"outstanding": [4, 1], "active": [0, 30]}
    for weight, expected in ((0.0, 0), (9.0, 0), (11.0, 1)):
        router = _make("kv_aware", decode_active_request_weight=weight)
        assert router.route(_request(), _view(**view)) == expected


def test_kv_aware_looks_at_what_its_pool_does() -> None:
    """Prefill pools decode nothing; in decode pools nothing is prefilled, and what is cached counts on demand."""
    for role, expected in (("mixed", 1), ("decode", 1), ("prefill", 0)):
        assert _chosen(role, prefill=[100, 200], active=[5000, 0]) == expected
    cached = {"prefill": [100, 0], "active": [30, 0], "overlap": [[40, 0], 0, 0, 0]}
    for credit, expected in ((0.0, 1), (1.0, 0)):
        assert _chosen("decode", {"decode_overlap_score_credit": credit}, **cached) == expected


def test_kv_aware_breaks_ties_at_random_and_spreads_when_hot() -> None:
    for options, busy in (({}, 0), ({"router_temperature": 50.0}, 9000)):
        router = _make("kv_aware", **options)
        chosen = Counter(router.route(_request(i), _view([0, 0, 0], active=[busy, 0, 0])) for i in range(900))
        assert all(abs(chosen[i] - 300) < 5 * np.sqrt(900 * 2 / 9) for i in range(3))


def test_kv_aware_draws_by_the_documented_softmax() -> None:
    router = _make("kv_aware", router_temperature=1.0)
    chosen = Counter(router.route(_request(i), _view([0, 0, 0], active=[0, 1000, 2000])) for i in range(6000))
    weights = np.exp([0.0, -0.5, -1.0])
    expected = 6000 * weights / weights.sum()
    assert all(abs(chosen[i] - expected[i]) < 5 * np.sqrt(expected[i]) for i in range(3))


def test_llm_d_weighs_queue_cache_and_prefix() -> None:
    def second(waiting: Any = 0, used: Any = 0.0, **options: float) -> int:
        """Return where a prompt goes whose equal went to replica 0, which scores 3 for it."""
        router = _make("llm_d", **options)
        router.route(_request(), _view(used=[0.0, 0.1]))
        return router.route(_request(), _view(waiting=waiting, used=used))

    assert second() == 0
    assert second(waiting=[9, 0]) == 0, "2 for the shorter queue"
    assert second(waiting=[9, 0], used=[0.6, 0.0]) == 1, "and 1.2 for the emptier cache"
    assert second(waiting=[9, 0], used=[0.4, 0.0]) == 0
    assert second(waiting=[9, 0], queue_scorer_weight=4.0) == 1
    assert second(used=[0.9, 0.0], kv_cache_utilization_scorer_weight=4.0) == 1
    assert second(waiting=[9, 0], prefix_cache_scorer_weight=1.0) == 1


def test_llm_d_forgets_what_it_has_no_room_for() -> None:
    def again(**options: int) -> int:
        router = _make("llm_d", **options)
        router.route(_request(), _view(used=[0.0, 0.1]))
        other = _request(input_tokens=1024, block_hashes=np.arange(2, 4))
        router.route(other, _view(used=[0.0, 0.9]))
        return router.route(_request(), _view(used=[0.2, 0.0]))

    assert again() == 0
    assert again(lru_capacity_per_server=64) == 1
    assert again(max_prefix_tokens=500) == 1
    assert again(lru_capacity_per_server=64, block_size=32) == 0


class OffByOne:
    """A user's mistake: replicas are numbered from 0."""

    looks = False

    def route(self, request: RequestView, pool: PoolView) -> int:
        return len(pool.targets)


@pytest.mark.parametrize("looks", [False, True])
def test_an_answer_outside_the_pool_is_an_error_not_a_crash(looks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OffByOne, "looks", looks)
    scenario = SearchSpace.load("tiny", [f"deployment.router.policy={__name__}:OffByOne"]).reference
    workload = load_workload(scenario.workload, 0).head(3)
    with pytest.raises(ValueError, match="chose replica 2 of 2"):
        simulate(scenario.deployment, workload)
