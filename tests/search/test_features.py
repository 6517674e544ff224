"""Closed-form features by hand, with constant pass times."""

from pathlib import Path

import numpy as np
import pytest

from dynosim.estimates import Estimate
from dynosim.hardware.gpus import get_gpu
from dynosim.search.features import FEATURES, ServingEstimates, columns
from dynosim.search.rows import Rows
from dynosim.space import SearchSpace
from search.problems import serving, small

# 100 prompt tokens at 1 ms, 10 output tokens at 20 ms, one request per second.
FIXED = "deployment.timing={type: fixed, prefill_ms_per_token: 1.0, decode_ms: 20.0}"


def _estimate(space: SearchSpace, **values: object) -> Estimate:
    rows = Rows(space)
    point = space.complete({f"deployment.{path.replace('__', '.')}": value for path, value in values.items()})
    return ServingEstimates(rows)(rows.of([point]))


def _features(space: SearchSpace, **values: object) -> dict[str, float]:
    (row,) = np.exp(columns(_estimate(space, **values)))
    return dict(zip(FEATURES, row.tolist(), strict=True))


def test_aggregated_by_hand() -> None:
    space = small(FIXED, "workload.load={type: constant_rate, rate_rps: 1.0}")
    found = _features(space, aggregated__replicas=2, aggregated__tensor_parallel_size=4)
    rate_rps = 10 / 9  # ten requests in nine gaps
    assert found["gpus"] == pytest.approx(8)
    assert found["usd_per_hour"] == pytest.approx(8 * get_gpu("h100_sxm").usd_per_hour["neocloud"])
    assert found["first_token_s"] == pytest.approx(0.1)
    assert found["step_s"] == pytest.approx(0.02)
    assert found["prefill_load"] == pytest.approx(rate_rps * 0.1 / 2)
    # The tokens of the tenth request come after the last window.
    assert found["decode_load"] == pytest.approx(0.9 * rate_rps / 2 * 10 * 0.02 / 1024)
    assert found["load"] == pytest.approx(found["prefill_load"] + found["decode_load"])
    assert found["kv_requests"] == pytest.approx(1024)  # max_num_seqs of an H100; memory would hold far more


ROUTER = """
class Mine:
    looks = False
    keeps_prefixes = {keeps}

    def route(self, request, pool):
        return 0
"""


@pytest.mark.parametrize("keeps", [False, True])
def test_a_router_says_itself_whether_it_keeps_prefixes_together(tmp_path: Path, keeps: bool) -> None:
    file = tmp_path / "mine.py"
    file.write_text(ROUTER.format(keeps=keeps))
    groups = "workload.source.prefix={block_tokens: 16, shared_blocks: 2}"
    one, mine = (
        _estimate(small(FIXED, groups, f"deployment.router.policy={policy}"), aggregated__replicas=4).computed
        for policy in ("kv_aware", f"{file}:Mine")
    )
    assert (one == mine).all() == keeps


def test_disaggregated_pools_are_apart_and_the_hop_counts() -> None:
    space = serving(FIXED)
    slow, fast = (
        _features(space, mode="disaggregated", disaggregated__kv_transfer__bandwidth_gb_s=gb_s)
        for gb_s in (10.0, 100.0)
    )
    assert slow["load"] == pytest.approx(max(slow["prefill_load"], slow["decode_load"]))
    assert slow["first_token_s"] - 0.1 == pytest.approx(10 * (fast["first_token_s"] - 0.1))
    assert slow["first_token_s"] > 0.1


def test_more_replicas_mean_less_load_and_more_cost() -> None:
    space = serving()
    one, two = (_features(space, mode="aggregated", aggregated__replicas=n) for n in (2, 4))
    assert one["load"] == pytest.approx(2 * two["load"], rel=0.05)
    assert two["usd_per_hour"] == pytest.approx(2 * one["usd_per_hour"])
    assert two["first_token_s"] == pytest.approx(one["first_token_s"])


def test_ranks_and_stages_run_batches_side_by_side() -> None:
    one, ranks, stages = (
        _features(small(FIXED, "workload.load={type: constant_rate, rate_rps: 1.0}", *more), aggregated__replicas=1)
        for more in (
            ("deployment.model=qwen3-30b-a3b",),
            ("deployment.model=qwen3-30b-a3b", "deployment.aggregated.data_parallel_size=2"),
            ("deployment.model=qwen3-30b-a3b", "deployment.aggregated.pipeline_parallel_size=2"),
        )
    )
    assert ranks["gpus"] == stages["gpus"] == pytest.approx(2 * one["gpus"])
    assert ranks["prefill_load"] == pytest.approx(one["prefill_load"] / 2)
    # Transfers between the stages make a pass a little longer.
    assert stages["prefill_load"] == pytest.approx(one["prefill_load"] / 2, rel=0.01)
    assert stages["first_token_s"] == pytest.approx(one["first_token_s"], rel=0.01)
    assert stages["kv_requests"] == pytest.approx(one["kv_requests"])  # max_num_seqs in both
    assert ranks["cache_requests"] > 2 * one["cache_requests"]  # the experts are stored once


def test_drafts_that_are_accepted_shorten_the_time_between_tokens() -> None:
    drafts = "{num_speculative_tokens: 3, acceptance_rates: [0.8, 0.5], draft_cost: 0.1}"
    plain, drafted = (
        _features(small(FIXED, *more), aggregated__replicas=1)
        for more in ((), (f"deployment.engine.speculative={drafts}",))
    )
    per_pass = 1 + 0.8 + 0.8 * 0.5 + 0.8 * 0.5 * 0.5
    assert drafted["step_s"] == pytest.approx(plain["step_s"] * 1.3 / per_pass)


def test_tiers_add_to_what_is_kept() -> None:
    tiers = "{host: {size_gib: 10}, remote: {size_gib: 100}}"
    plain, tiered = (
        _features(small(FIXED, *more), aggregated__replicas=3)
        for more in ((), (f"deployment.aggregated.kv_offload={tiers}",))
    )
    prompt_bytes = 100 * 2 * 32 * 8 * 128 * 2
    added = (3 * 10 + 100) * 2**30 / prompt_bytes
    assert tiered["cache_requests"] - plain["cache_requests"] == pytest.approx(added)
    assert tiered["kv_requests"] == pytest.approx(plain["kv_requests"])


def test_unknown_where_the_deployment_cannot_be() -> None:
    space = small("deployment.model=llama-3.1-70b")
    point = space.complete({"deployment.aggregated.tensor_parallel_size": 1})
    assert space.infeasible_reason(point) is not None
    rows = Rows(space)
    assert np.isnan(columns(ServingEstimates(rows)(rows.of([point])))).all()


def test_a_mode_that_is_always_disaggregated() -> None:
    space = SearchSpace.load(
        "tiny", ["deployment.mode={choices: [disaggregated]}", "deployment.aggregated=null", "baseline=null"]
    )
    rows = Rows(space)
    assert not ServingEstimates(rows)(rows.sample(5, np.random.default_rng(0))).together.any()
