"""What routers see and where their answers lead: reports, ranks, both stages of a disaggregated deployment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dynosim.config import FixedTiming
from dynosim.simulation import simulate
from dynosim.workload.table import Workload
from simulation.scripted import Fixed
from simulation.tables import deployment, make_table

FIXED = {"policy": "simulation.scripted:Fixed"}
SPLIT = {"prefill": {"replicas": 2}, "decode": {"replicas": 2}}
SHARED = {"hash_block_tokens": 512, "hash_offsets": np.arange(0, 9, 2), "hash_ids": np.tile([0, 1], 4)}
"""Block ids of four equal prompts of 1,024 tokens."""


def _four(output_tokens: int = 101) -> Workload:
    """Equal prompts at 0, 1, 2 and 3 s; each is served for 0.1 + 1 s, so the last one is still there."""
    return make_table([1024] * 4, [output_tokens] * 4, [0.0, 1.0, 2.0, 3.0], session=[7, 8, 9, 10], **SHARED)


def test_a_router_sees_the_request_and_the_present_state() -> None:
    workload = _four()
    simulate(deployment(pool={"replicas": 2}, router=FIXED), workload)
    assert [seen[2] for seen in Fixed.seen] == [[0, 0], [1, 0], [1, 0], [1, 0]]
    assert [seen[3] for seen in Fixed.seen] == [[0, 0]] + [[1024, 0]] * 3
    request, pool, _, _ = Fixed.seen[2]
    assert (request.number, request.input_tokens, request.session, request.hash_block_tokens) == (2, 1024, 9, 512)
    assert request.block_hashes.tolist() == [0, 1]
    assert (pool.role, pool.block_size, pool.targets.tolist()) == ("mixed", 16, [0, 1])


def test_loads_are_those_of_the_last_report() -> None:
    """Reports at 0, 1.5, 3.0 s; the request at 3.0 s still comes before that report, and sees the one of 1.5 s."""
    router = FIXED | {"load_report_interval_s": 1.5}
    simulate(deployment(pool={"replicas": 2}, router=router), _four(401))
    assert [seen[2] for seen in Fixed.seen] == [[0, 0], [0, 0], [2, 0], [2, 0]]


def test_the_prefix_index_lags() -> None:
    """The first prompt's blocks have their names when they are scheduled, at 0 s (as vLLM's); a router that hears of it
    2.5 s later knows them at 3 s."""
    router = FIXED | {"kv_event_lag_s": 2.5}
    simulate(deployment(pool={"replicas": 2}, router=router), _four())
    assert [seen[3][0] for seen in Fixed.seen] == [0, 0, 0, 1024]


def test_an_answer_that_is_no_position_is_named() -> None:
    router = FIXED | {"options": {"position": 2}}
    with pytest.raises(ValueError, match="chose replica 2 of 2"):
        simulate(deployment(pool={"replicas": 2}, router=router), _four())


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_each_stage_has_its_router(engine: str) -> None:
    second = {"decode_router": FIXED | {"options": {"position": 1}}}
    config = deployment(engine={"name": engine}, disaggregated=SPLIT | second)
    requests = simulate(config, _four()).requests
    assert requests["prefill_replica"].tolist() == [0, 1, 0, 1]
    assert requests["decode_replica"].tolist() == [1] * 4
    assert {seen[1].role for seen in Fixed.seen} == {"decode"}


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize(
    ("bounds", "local"),
    [
        (None, [False] * 4),
        ({"max_uncached_tokens": 1024, "max_uncached_fraction": 1.0}, [True] * 4),
        ({"max_uncached_tokens": 1023, "max_uncached_fraction": 1.0}, [False, True, True, True]),
        ({"max_uncached_tokens": 1024, "max_uncached_fraction": 0.5}, [False, True, True, True]),
        ({"max_uncached_tokens": 15, "max_uncached_fraction": 1.0}, [False] * 4),
    ],
)
def test_a_decode_replica_keeps_prompts_of_which_little_is_left(
    engine: str, bounds: dict[str, Any] | None, local: list[bool]
) -> None:
    """The first prompt leaves its KV on the decode replica, where 16 tokens (one block) of the next are to compute."""
    pool = {"replicas": 1, "block_size": 16}
    config = deployment(
        engine={"name": engine}, disaggregated={"prefill": pool, "decode": pool, "local_prefill": bounds}
    )
    requests = simulate(config, _four()).requests
    assert (requests["kv_transfer_s"] == 0.0).tolist() == local
    kept = requests[local]
    assert (kept["first_token_s"] == kept["prefill_done_s"]).all()
    assert (requests["cached_tokens"][1:] == 1008).all()


def test_local_prefill_saves_the_hand_off_and_disturbs_the_decodes() -> None:
    rng = np.random.default_rng(4)
    workload = make_table([900] * 300, [150] * 300, np.cumsum(rng.exponential(0.12, 300)).tolist())
    link = {"kv_transfer": {"bandwidth_gb_s": 1.0}}
    everything = {"local_prefill": {"max_uncached_fraction": 1.0}}
    never, always = (
        simulate(deployment("roofline", disaggregated=SPLIT | link | more), workload) for more in ({}, everything)
    )
    assert always.requests["kv_transfer_s"].sum() == 0.0 < never.requests["kv_transfer_s"].sum()
    assert always.requests["stall_s"].mean() > never.requests["stall_s"].mean() == 0.0


@pytest.mark.parametrize(("replicas", "clients"), [(1, 9), (2, 3)])
def test_a_client_goes_on_when_a_router_looks_the_moment_its_answer_ends(replicas: int, clients: int) -> None:
    """A pass of 64 prompt tokens and one of decodes take 1/128 s each, exactly, so both end together."""
    timing = FixedTiming(type="fixed", prefill_ms_per_token=1000 / 128 / 64, decode_ms=1000 / 128)
    workload = make_table([128] * 60, [9] * 60, session=list(range(60)), concurrency=clients)
    instant = {"bandwidth_gb_s": 1e300, "latency_us": 0.0}
    split = {"prefill": {"replicas": replicas}, "decode": {"replicas": replicas}, "kv_transfer": instant}
    usual = deployment(disaggregated=split, router={"policy": "llm_d"})
    requests = simulate(usual.model_copy(update={"timing": timing}), workload).requests
    assert np.sort(requests["arrival_s"])[clients:].tolist() == np.sort(requests["last_token_s"])[:-clients].tolist()
