"""Fixed, polynomial and roofline sources against their closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.config import DeploymentConfig, FixedTiming, PolynomialTiming, PoolConfig, RooflineTiming
from dynosim.hardware.gpus import get_gpu
from dynosim.hardware.models import get_model
from dynosim.hardware.plan import PoolPlan
from dynosim.hardware.roofline import decode_bound_s, prefill_bound_s
from dynosim.timing import forward_times

LIMITS = {"max_num_seqs": 256, "max_num_batched_tokens": 8192}


def _tables(timing, model="llama-3.1-70b", gpu="h200_sxm", tp=4, **pool):
    deployment = DeploymentConfig(
        model=model, gpu=gpu, timing=timing, aggregated=PoolConfig(tensor_parallel_size=tp, **pool)
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
def test_roofline_at_full_efficiency_is_the_bound_plus_latencies(model):
    tables = _tables(ROOF, model=model, tp=1)
    card, gpu = get_model(model), get_gpu("h200_sxm")
    latency = card.layers * 6 * 3e-6
    decode = decode_bound_s(card, gpu, 1, "none", "bf16", 64, 4096)
    assert _decode_s(tables, 64, 64 * 4096) == pytest.approx(decode + latency)
    prefill = tables.tokens_s[4096] + np.interp(4096, tables.prefill_seq, tables.prefill_share_s[1])
    assert prefill == pytest.approx(prefill_bound_s(card, gpu, 1, "none", 4096) + latency, rel=1e-4)


def test_roofline_efficiencies_divide_the_limit_that_binds():
    half = RooflineTiming(compute_efficiency=0.5, memory_efficiency=1.0, network_efficiency=1.0)
    full_s, half_s = (_tables(timing, tp=1).tokens_s for timing in (ROOF, half))
    latency = 80 * 6 * 3e-6
    assert half_s[1] == full_s[1]  # bandwidth-bound
    more = 1.0 + 3.35 / 4.8  # twice the time on an H100; an H200 computes less per byte that it moves
    assert half_s[8192] - latency == pytest.approx(more * (full_s[8192] - latency))  # compute-bound


def test_roofline_is_near_the_measured_kernels():
    tables = _tables(RooflineTiming())
    assert _decode_s(tables, 1, 512) == pytest.approx(12.2e-3, rel=0.1)
    assert tables.tokens_s[2048] == pytest.approx(128e-3 * 0.96, rel=0.25)
