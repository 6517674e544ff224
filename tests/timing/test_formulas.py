"""Fixed, polynomial and roofline sources against their closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.config import DeploymentConfig, FixedTiming, PackTiming, PolynomialTiming, PoolConfig, RooflineTiming
from dynosim.errors import NoPackError
from dynosim.hardware.gpus import get_gpu
from dynosim.hardware.models import get_model
from dynosim.hardware.plan import PoolPlan
from dynosim.hardware.roofline import decode_bound_s, prefill_bound_s
from dynosim.timing import forward_times

LIMITS = {"max_num_seqs": 256, "max_num_batched_tokens": 8192}


def _tables(timing, model="llama-3.1-70b", gpu="h200_sxm", tp=4, quantization="none", **pool):
    deployment = DeploymentConfig(
        model=model,
        gpu=gpu,
        quantization=quantization,
        timing=timing,
        aggregated=PoolConfig(tensor_parallel_size=tp, **pool),
    )
    return forward_times(PoolPlan.of(deployment, "mixed")).tables(**LIMITS)


def _decode_s(tables, batch, total_context):
    return tables.graph_tokens_s[batch] + np.interp(total_context, tables.decode_context[batch], tables.decode_s[batch])


def test_fixed_times_are_what_was_configured():
    tables = _tables(FixedTiming(prefill_ms_per_token=0.5, decode_ms=7))
    assert tables.tokens_s[[0, 1, 8192]].tolist() == [0, 0.0005, 4.096]
    assert _decode_s(tables, 1, 5) == _decode_s(tables, 256, 1e9) == 0.007
    assert not tables.fused


def test_polynomial_prefill_of_the_published_probes():
    tables = _tables(PolynomialTiming())
    for tokens, probe_ms in ((512, 24.386), (4096, 85.756), (8192, 169.137)):  # AISimulate 0.13, one request
        assert tables.tokens_s[tokens] * 1e3 == pytest.approx(probe_ms, abs=1e-3)
    assert tables.tokens_s[0] == 0


@given(utilization=st.floats(0, 1.5))
def test_polynomial_decode_is_its_closed_form_to_a_millionth(utilization):
    tables = _tables(PolynomialTiming(), num_gpu_blocks_override=16385, block_size=64)
    u = min(1.0, utilization)
    expected_ms = max(1.0, -25.74 * u * u + 54.01 * u + 5.74)
    assert _decode_s(tables, 7, utilization * 16384 * 64) * 1e3 == pytest.approx(expected_ms, rel=1e-6)


def test_polynomial_passes_are_additive():
    tables = _tables(PolynomialTiming())
    assert not tables.fused
    assert tables.graph_tokens_s.max() == 0
    assert np.diff(tables.decode_s[1])[-1] == 0


ROOF = RooflineTiming(compute_efficiency=1.0, memory_efficiency=1.0, network_efficiency=1.0)


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3-235b-a22b", "deepseek-v3"])
def test_roofline_at_full_efficiency_is_above_the_bound_and_not_far(model):
    """What is not in the bound: floors of kernels, activations, and compute and traffic that do not overlap."""
    tables = _tables(ROOF, model=model, tp=1)
    card, gpu = get_model(model), get_gpu("h200_sxm")
    decode = decode_bound_s(card, gpu, 1, "none", "bf16", 64, 4096)
    assert decode < _decode_s(tables, 64, 64 * 4096) < 1.4 * decode
    prefill = tables.tokens_s[8192] + np.interp(8192, tables.prefill_seq, tables.prefill_share_s[1])
    bound = prefill_bound_s(card, gpu, 1, "none", 8192)
    assert bound < prefill < 2 * bound


def test_roofline_efficiencies_divide_what_they_are_of():
    half = RooflineTiming(compute_efficiency=0.5, memory_efficiency=1.0, network_efficiency=1.0)
    full_s, half_s = (_tables(timing, tp=1).tokens_s for timing in (ROOF, half))
    compute_s = 2 * (70_553_706_496 - 2 * 128256 * 8192) / 989e12
    assert half_s[[1, 8192]] - full_s[[1, 8192]] == pytest.approx(np.array([1, 8192]) * compute_s, rel=1e-3)


NO_PACK = [("a100_sxm", model) for model in ("qwen3-235b-a22b", "gpt-oss-120b", "deepseek-v3")]
NO_PACK += [("h100_sxm", "deepseek-v3")]


@pytest.mark.parametrize("gpu", ["a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm"])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.1-70b", "qwen3-235b-a22b", "gpt-oss-120b", "deepseek-v3"])
def test_roofline_is_near_the_measured_kernels(model, gpu):
    """Decodes of 1 and 64, prompts of 256 and 8,192 tokens."""
    quantization = "fp8" if model == "deepseek-v3" else "none"
    deployment = {"model": model, "gpu": gpu, "tp": 8, "quantization": quantization}
    try:
        packed = _tables(PackTiming(), **deployment)
    except NoPackError:
        assert (gpu, model) in NO_PACK
        return
    found = []
    for tables in (packed, _tables(RooflineTiming(), **deployment)):
        decodes = [_decode_s(tables, batch, batch * 1024) for batch in (1, 64)]
        prefills = [
            tables.tokens_s[tokens] + np.interp(tokens, tables.prefill_seq, tables.prefill_share_s[1])
            for tokens in (256, 8192)
        ]
        found.append(np.array(decodes + prefills))
    ratios = found[1] / found[0]
    assert ratios == pytest.approx(np.ones(4), abs=0.45)
    assert ratios.mean() == pytest.approx(1.0, abs=0.25)


BETTER = [("h100_sxm", "h200_sxm"), ("h200_sxm", "b200_sxm"), ("mi300x", "mi325x"), ("mi325x", "mi355x")]


@pytest.mark.parametrize("gpus", BETTER, ids="-".join)
@given(
    tokens=st.integers(1, 8192),
    tp=st.sampled_from([1, 2, 4, 8]),
    model=st.sampled_from(["llama-3.1-8b", "deepseek-v3"]),
)
def test_roofline_of_a_better_gpu_is_never_slower(gpus, tokens, tp, model):
    slow, fast = (_tables(RooflineTiming(), model=model, gpu=gpu, tp=tp, quantization="fp8") for gpu in gpus)
    batch = min(tokens, 256)
    assert fast.tokens_s[tokens] <= slow.tokens_s[tokens]
    assert _decode_s(fast, batch, 4096 * batch) <= _decode_s(slow, batch, 4096 * batch)


@pytest.mark.parametrize("gpu", ["h200_sxm", "mi300x", "mi355x"])
@pytest.mark.parametrize("model", ["llama-3.1-70b", "qwen3-235b-a22b", "deepseek-v3"])
def test_roofline_is_monotone(gpu, model):
    """In tokens, in fewer bits, and in tensor parallelism where there is work to share."""
    one, fp8, eight = (
        _tables(RooflineTiming(), model=model, gpu=gpu, tp=tp, quantization=quantization)
        for tp, quantization in ((1, "none"), (1, "fp8"), (8, "none"))
    )
    assert (np.diff(one.tokens_s) > 0).all()
    assert (fp8.tokens_s <= one.tokens_s).all()
    assert eight.tokens_s[8192] < one.tokens_s[8192]
    assert _decode_s(eight, 64, 64 * 8192) < _decode_s(one, 64, 64 * 8192)


def test_an_efficiency_of_the_configuration_replaces_the_gpu_s():
    own, said = (_tables(RooflineTiming(**more), gpu="mi300x") for more in ({}, {"memory_efficiency": 0.4}))
    assert said.tokens_s[1] > 1.5 * own.tokens_s[1]
    assert said.provenance["memory_efficiency"] == 0.4
    assert "memory_efficiency" not in own.provenance


def test_gpus_move_the_copies_of_their_own_experts():
    """Whole experts on 8 GPUs get an eighth of what slices of all of them get; the busiest GPU gets more and computes
    more."""
    full = RooflineTiming(compute_efficiency=1.0, memory_efficiency=1.0, network_efficiency=1.0)
    whole, sliced = (
        _tables(full, model="deepseek-v3", tp=8, quantization="fp8", enable_expert_parallel=parallel)
        for parallel in (True, False)
    )
    saved, passes = sliced.tokens_s - whole.tokens_s, 8 * 8 * 58 * 7168 * 2 / 4.8e12
    compute = 58 * 3 * 2048 * 7168 * 2 / 8 / 1978e12
    assert saved[8192] == pytest.approx(8192 * passes * 6 / 8 - (8192 * 8 + 32 * 256) * compute, rel=0.01)
    assert (saved[1:32] < 0).all()
