"""What engines add to the source's passes, on whole passes as ``timing.base`` composes them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.config import (
    DeploymentConfig,
    EngineConfig,
    FixedTiming,
    PolynomialTiming,
    PoolConfig,
    RooflineTiming,
    SpeculativeConfig,
    TopologyConfig,
)
from dynosim.hardware.gpus import get_gpu
from dynosim.hardware.models import get_model
from dynosim.hardware.plan import PoolPlan
from dynosim.hardware.roofline import verification_cost
from dynosim.timing import effective_tables, forward_times
from dynosim.timing.cuda_graphs import run_batches

SOURCES = (FixedTiming(), PolynomialTiming(), RooflineTiming())
SEQS, BUDGET = 32, 512
BARE = {"name": "sglang", "pass_overhead_us": 0.0, "request_overhead_us": 0.0, "launch_overhead_us": 0.0}
"""An engine that adds nothing to its kernels."""


def _deployment(timing=SOURCES[2], model="llama-3.1-70b", gpu="h200_sxm", engine=None, topology=None, **pool):
    sizes = {"tensor_parallel_size": 4, "max_num_seqs": SEQS, "max_num_batched_tokens": BUDGET} | pool
    return DeploymentConfig(
        model=model,
        gpu=gpu,
        timing=timing,
        topology=topology,
        engine=EngineConfig(**(BARE | (engine or {}))),
        aggregated=PoolConfig(**sizes),
    )


def _effective(*args, **options):
    deployment = _deployment(*args, **options)
    return effective_tables(PoolPlan.of(deployment, "mixed"))


def _line(nodes, values, x):
    j = min(max(np.searchsorted(nodes, x, side="right") - 1, 0), len(nodes) - 2)
    return values[j] + (values[j + 1] - values[j]) / (nodes[j + 1] - nodes[j]) * (x - nodes[j])


def _pass_s(tables, chunks, batch, context, per_decode=1):
    """The formula of ``timing.base`` for prefill *chunks* (new, cached) and *batch* decodes of *context* each."""
    attention = _line(tables.decode_context[batch], tables.decode_s[batch], batch * context) if batch else 0.0
    if not chunks:
        return tables.graph_tokens_s[batch] + attention
    tokens = sum(new for new, _ in chunks) + (batch * per_decode if tables.fused else 0)
    shares = tables.prefill_share_s[min(len(chunks), len(tables.prefill_share_s) - 1)]
    prefill = sum(
        _line(tables.prefill_seq, shares, new + cached) * (1 - (cached / (new + cached)) ** 2) for new, cached in chunks
    )
    return tables.tokens_s[tokens] + prefill + attention + len(chunks) * tables.chunk_s


chunk_lists = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 5000)), max_size=6)


@pytest.mark.parametrize("timing", SOURCES, ids=lambda timing: timing.type)
@given(chunks=chunk_lists, batch=st.integers(0, SEQS), context=st.integers(1, 4000))
def test_each_overhead_is_counted_once_in_every_kind_of_pass(timing, chunks, batch, context):
    if not chunks and not batch:
        return
    plain = _effective(timing)
    loaded = _effective(timing, engine={"pass_overhead_us": 700.0, "request_overhead_us": 30.0})
    more = _pass_s(loaded, chunks, batch, context) - _pass_s(plain, chunks, batch, context)
    assert more == pytest.approx(700e-6 + 30e-6 * (len(chunks) + batch), rel=1e-9)


def test_an_empty_pass_takes_no_time():
    tables = _effective(engine={"pass_overhead_us": 700.0, "request_overhead_us": 30.0}, pipeline_parallel_size=2)
    assert tables.tokens_s[0] == tables.graph_tokens_s[0] == 0.0


@pytest.mark.parametrize("timing", SOURCES, ids=lambda timing: timing.type)
def test_without_additions_the_tables_are_the_source_s(timing):
    deployment = _deployment(timing)
    plan = PoolPlan.of(deployment, "mixed")
    effective = effective_tables(plan)
    source = forward_times(plan).tables(max_num_seqs=SEQS, max_num_batched_tokens=BUDGET)
    assert effective.tokens_s[: BUDGET + 1].tolist() == source.tokens_s.tolist()
    assert effective.graph_tokens_s.tolist() == source.graph_tokens_s[run_batches(plan.graphs, SEQS)].tolist()
    for name in ("decode_context", "decode_s", "prefill_seq", "prefill_share_s"):
        assert getattr(effective, name).tolist() == getattr(source, name).tolist()
    assert effective.chunk_s == 0.0


@pytest.mark.parametrize("drafted", [0, 1, 3, 7])
def test_tables_cover_the_largest_pass_and_are_indexed_by_requests(drafted):
    speculative = (
        {"speculative": SpeculativeConfig(num_speculative_tokens=drafted, acceptance_length=1.5)} if drafted else None
    )
    tables = _effective(engine=speculative)
    assert len(tables.tokens_s) == BUDGET + SEQS * (1 + drafted) + 1
    assert len(tables.graph_tokens_s) == len(tables.decode_s) == len(tables.decode_context) == SEQS + 1


def _speculating(drafted, draft_cost=0.0, **options):
    config = SpeculativeConfig(num_speculative_tokens=drafted, acceptance_length=1.5, draft_cost=draft_cost)
    return _effective(engine={"speculative": config}, **options)


def test_verification_computes_all_tokens_and_reads_the_cache_once():
    plain, tables = _effective(max_num_seqs=4 * SEQS), _speculating(3)
    batches = np.arange(1, SEQS + 1)
    run = run_batches(PoolPlan.of(_deployment(), "mixed").graphs, SEQS)[batches]
    assert tables.graph_tokens_s[batches].tolist() == plain.graph_tokens_s[4 * run].tolist()
    assert tables.decode_s[batches].tolist() == plain.decode_s[batches].tolist()


def test_drafting_costs_a_share_of_a_plain_pass_in_every_pass_with_decodes():
    plain, free, costly = _effective(), _speculating(3), _speculating(3, draft_cost=0.1)
    for chunks in ([], [(50, 0)]):
        more = _pass_s(costly, chunks, 8, 900, per_decode=4) - _pass_s(free, chunks, 8, 900, per_decode=4)
        assert more == pytest.approx(3 * 0.1 * _pass_s(plain, [], 8, 900))


def test_formulas_without_hardware_only_pay_for_drafting():
    tables = _speculating(2, draft_cost=0.25, timing=FixedTiming(decode_ms=8))
    assert _pass_s(tables, [], 5, 100) == pytest.approx(8e-3 * (1 + 2 * 0.25))


@given(query_tokens=st.integers(1, 16), tp=st.sampled_from([1, 2, 4, 8]), model=st.sampled_from(["gqa", "mla"]))
def test_verification_cost_lies_between_one_read_and_one_read_per_token(query_tokens, tp, model):
    card = get_model("llama-3.1-70b" if model == "gqa" else "deepseek-v3")
    cost = verification_cost(card, get_gpu("h200_sxm"), tp, "bf16", query_tokens)
    assert 1.0 <= cost <= query_tokens
    assert cost <= verification_cost(card, get_gpu("h200_sxm"), tp, "bf16", query_tokens + 1)


def test_mla_with_all_heads_on_a_gpu_is_compute_bound_and_gqa_is_not():
    h200 = get_gpu("h200_sxm")
    assert verification_cost(get_model("llama-3.1-70b"), h200, 1, "bf16", 4) == 1.0
    assert verification_cost(get_model("deepseek-v3"), h200, 1, "bf16", 4) > 3.0


def test_stage_transfers_by_hand():
    one, two = _effective(), _effective(pipeline_parallel_size=2)
    per_token = 2 * 8192 * 2 / 4 / 450e9
    assert two.tokens_s[300] - one.tokens_s[300] == pytest.approx(1e-5 + 300 * per_token)
    assert two.graph_tokens_s[7] - one.graph_tokens_s[7] == pytest.approx(1e-5 + 7 * per_token)
    assert two.decode_s.tolist() == one.decode_s.tolist()


def test_stages_beyond_an_nvlink_domain_send_over_the_network():
    one, four = _effective(), _effective(pipeline_parallel_size=4)  # 16 GPUs: two domains
    sent = 2 * 8192 * 2 / 4
    assert four.tokens_s[300] - one.tokens_s[300] == pytest.approx(3e-5 + 300 * sent * (2 / 450e9 + 1 / 50e9))
    placed = _effective(pipeline_parallel_size=4, topology=TopologyConfig())
    assert placed.tokens_s[300] - one.tokens_s[300] == pytest.approx(3e-5 + 300 * sent * 3 / 450e9)


@pytest.mark.parametrize("timing", SOURCES[:2], ids=lambda timing: timing.type)
def test_formulas_without_hardware_have_no_stage_transfers(timing):
    one, two = (_effective(timing, pipeline_parallel_size=stages, num_gpu_blocks_override=1000) for stages in (1, 2))
    assert two.tokens_s.tolist() == one.tokens_s.tolist()


@given(ranks=st.sampled_from([2, 4, 8, 16]), expert_parallel=st.booleans())
def test_data_parallel_ranks_share_the_experts(ranks, expert_parallel):
    """Passes of a rank carry the experts' tokens of all ranks, on as many times the GPUs."""
    pool = {"tensor_parallel_size": 1, "enable_expert_parallel": expert_parallel, "max_num_seqs": 256}
    pool |= {"model": "qwen3-235b-a22b", "gpu": "gb200"}  # one NVLink domain
    one, many = _effective(**pool), _effective(data_parallel_size=ranks, **pool)
    reads = get_model("qwen3-235b-a22b").parameters * 2 / 8e12 / 0.85
    assert reads < one.graph_tokens_s[256] < 1.3 * reads
    assert many.graph_tokens_s[256] < 0.75 * one.graph_tokens_s[256]
    assert (np.diff(many.tokens_s) >= 0).all()
    assert (one.expert_s == 0).all()
    own = many.tokens_s - many.expert_s
    assert (own[1:] > 0).all()
    assert own[-1] < 0.7 * one.tokens_s[-1]


def test_latent_projections_without_tuned_tiles_take_longer():
    """SGLang before 0.5.10 has none for the FP8 of an MI300X."""

    def one_s(version, gpu="mi300x", **deployment):
        engine = EngineConfig(name="sglang", version=version)
        pool = PoolConfig(tensor_parallel_size=8)
        deployment = {"model": "deepseek-v3", "quantization": "fp8", **deployment}
        own = DeploymentConfig(gpu=gpu, engine=engine, timing=RooflineTiming(), aggregated=pool, **deployment)
        return effective_tables(PoolPlan.of(own, "mixed")).graph_tokens_s[1]

    assert one_s("0.5.9") - one_s("0.5.12") == pytest.approx(61 * 160e-6)
    assert one_s("0.5.9", "mi355x") == one_s("0.5.12", "mi355x")
    assert one_s("0.5.9", model="qwen3-235b-a22b") == one_s("0.5.12", model="qwen3-235b-a22b")
