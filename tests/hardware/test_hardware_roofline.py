"""Bounds by hand at both ends of the roofline."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.hardware import roofline
from dynosim.hardware.gpus import get_gpu
from dynosim.hardware.models import get_model

LLAMA, H200 = get_model("llama-3.1-70b"), get_gpu("h200_sxm")


def test_one_decode_is_bound_by_bandwidth():
    weights = (70_553_706_496 - 128256 * 8192) * 2  # all but the embedding table
    assert roofline.decode_bound_s(LLAMA, H200, 1, "none", "bf16", 1, 0) == pytest.approx(weights / 4.8e12)


def test_decode_context_adds_its_kv_bytes():
    empty = roofline.decode_bound_s(LLAMA, H200, 4, "none", "bf16", 64, 0)
    full = roofline.decode_bound_s(LLAMA, H200, 4, "none", "bf16", 64, 8192)
    assert full - empty == pytest.approx(64 * 8192 * 327_680 / 4 / 4.8e12)


def test_long_prefill_is_bound_by_compute():
    tokens = 8192
    matrices = LLAMA.parameters - 2 * 128256 * 8192  # neither the embedding nor the vocabulary projection
    attention = 80 * 2 * 2 * 64 * 128 * tokens**2 / 2
    expected = (2 * matrices * tokens + attention) / 4 / 989e12
    assert roofline.prefill_bound_s(LLAMA, H200, 4, "none", tokens) == pytest.approx(expected)


def test_chunks_of_a_prompt_cost_as_much_attention_as_the_whole():
    whole = roofline.attention_flops(LLAMA, 4096)
    assert roofline.attention_flops(LLAMA, [1024, 3072], [0, 1024]).sum() == pytest.approx(float(whole))


def test_moe_reads_the_experts_that_its_tokens_reach():
    model = get_model("mixtral-8x7b")  # 2 of 8 experts
    one, two, many = roofline.weight_bytes_read(model, 1, "none", [1, 2, 1000])
    experts = 32 * 8 * 3 * 4096 * 14336 * 2
    reached = roofline.experts_reached(model.moe, [1, 2, 1000])
    assert two - one == pytest.approx(experts * (reached[1] - reached[0]))
    assert many == pytest.approx(2 * (model.parameters - 32000 * 4096), rel=1e-3)


@given(tokens=st.floats(0, 1e6))
def test_tokens_reach_no_more_experts_than_there_are_copies_of_them(tokens):
    moe = get_model("deepseek-v3").moe
    reached = moe.experts * roofline.experts_reached(moe, tokens)
    assert 0 <= reached <= min(moe.experts, moe.top_k * tokens + 1e-9)
    assert reached <= moe.experts * roofline.experts_reached(moe, tokens + 1)


def test_all_reduce_sends_nothing_alone_and_almost_twice_the_data_in_a_group():
    assert roofline.all_reduce_bound_s(LLAMA, H200, 1, 1024) == 0
    assert roofline.all_reduce_bound_s(LLAMA, H200, 8, 1024) == pytest.approx(80 * 1.75 * 1024 * 8192 * 2 / 450e9)


def test_groups_beyond_the_scale_up_link_take_the_ports_of_all_gpus():
    sent = 80 * 2 * 15 / 16 * 1024 * 8192 * 2
    assert roofline.all_reduce_bound_s(LLAMA, H200, 16, 1024, 50e9) == pytest.approx(sent / (8 * 50e9))
    assert roofline.all_reduce_bound_s(LLAMA, get_gpu("gb200"), 16, 1024, 50e9) == pytest.approx(sent / 900e9)


@pytest.mark.parametrize("tokens", [1, 64, 8192])
def test_experts_are_a_part_of_the_weights(tokens):
    model = get_model("qwen3-235b-a22b")
    for ranks in (1, 8):
        parts = [
            roofline.weight_times_s(model, H200, 1, "none", tokens, ranks, roles)
            for roles in (("expert",), [role for role in roofline.ROLES if role != "expert"])
        ]
        whole = roofline.weight_times_s(model, H200, 1, "none", tokens, ranks)
        assert min(map(min, parts)) > 0
        assert [sum(times) for times in zip(*parts, strict=True)] == pytest.approx(list(map(float, whole)))


def test_matrices_are_multiplied_in_the_precision_that_they_are_stored_in():
    """An NVFP4 checkpoint of DeepSeek has FP8 projections in its latent attention; experts that are published in four
    bits meet activations of bf16."""
    b200 = get_gpu("b200_sxm")
    times = [
        float(roofline.weight_times_s(get_model(model), b200, 1, quantization, 1)[0])
        for model, quantization in (
            ("deepseek-v3", "none"), ("deepseek-v3", "fp8"), ("deepseek-v3", "nvfp4"), ("gpt-oss-120b", "none"),
        )
    ]  # fmt: skip
    bf16, fp8, fp4, gpt_oss = times
    assert fp8 == pytest.approx(bf16 / 2, rel=0.01)
    assert bf16 / 4 < fp4 < fp8
    card = get_model("gpt-oss-120b")
    assert gpt_oss == pytest.approx(2 * (card.active_parameters - 201088 * 2880) / 2250e12)
