"""Bounds by hand at both ends of the roofline."""

import pytest

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
    assert two - one == pytest.approx(experts * (0.75 - 0.75**2))
    assert many == pytest.approx(2 * (model.parameters - 32000 * 4096), rel=1e-9)


def test_all_reduce_sends_nothing_alone_and_almost_twice_the_data_in_a_group():
    assert roofline.all_reduce_bound_s(LLAMA, H200, 1, 1024) == 0
    assert roofline.all_reduce_bound_s(LLAMA, H200, 8, 1024) == pytest.approx(80 * 1.75 * 1024 * 8192 * 2 / 450e9)


def test_groups_beyond_the_scale_up_link_take_the_network():
    sent = 80 * 2 * 15 / 16 * 1024 * 8192 * 2
    assert roofline.all_reduce_bound_s(LLAMA, H200, 16, 1024, 50e9) == pytest.approx(sent / 50e9)
    assert roofline.all_reduce_bound_s(LLAMA, get_gpu("gb200"), 16, 1024, 50e9) == pytest.approx(sent / 900e9)


@pytest.mark.parametrize("tokens", [1, 64, 8192])
def test_experts_are_a_part_of_the_weights(tokens):
    model = get_model("qwen3-235b-a22b")
    for ranks in (1, 8):
        experts = roofline.expert_bound_s(model, H200, 1, "none", tokens, ranks)
        assert 0 < experts < roofline.token_wise_bound_s(model, H200, 1, "none", tokens, ranks)
    mixtral, one = get_model("mixtral-8x7b"), 32 * 3 * 4096 * 14336 * 2
    assert roofline.expert_bound_s(mixtral, H200, 1, "none", 1) == pytest.approx(2 * one / 4.8e12)
