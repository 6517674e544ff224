"""KV capacity by hand and against the figures that NVIDIA's planner prints for the same deployments."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.config import DeploymentConfig, EngineConfig, PoolConfig, TopologyConfig
from dynosim.errors import InfeasibleError
from dynosim.hardware.memory import kv_bytes_per_token, weights_bytes_per_gpu
from dynosim.hardware.models import MODELS, get_model
from dynosim.hardware.plan import PoolPlan
from dynosim.hardware.startup import check

STATED = {"block_size": 1, "gpu_memory_utilization": 0.9, "max_num_batched_tokens": 8192}


def _deployment(model, gpu, tp, quantization="none", engine="vllm", kv_cache_dtype="auto", **pool):
    return DeploymentConfig(
        model=model,
        gpu=gpu,
        quantization=quantization,
        kv_cache_dtype=kv_cache_dtype,
        engine=EngineConfig(name=engine),
        aggregated=PoolConfig(tensor_parallel_size=tp, **{**STATED, **pool}),
    )


def _capacity(*args, **options):
    deployment = _deployment(*args, **options)
    return check(deployment)["mixed"].capacity


@pytest.mark.parametrize(
    ("model", "dtype", "by_hand"),
    [
        ("llama-3.1-70b", "bf16", 80 * 2 * 8 * 128 * 2),
        ("llama-3.1-70b", "fp8", 163_840),
        ("deepseek-v3", "bf16", 61 * (512 + 64) * 2),
    ],
)
def test_kv_bytes_per_token_by_hand(model, dtype, by_hand):
    assert kv_bytes_per_token(get_model(model), 1, dtype) == by_hand


def test_kv_heads_are_copied_when_there_are_more_gpus_than_heads():
    model = get_model("qwen3-235b-a22b")  # 4 KV heads
    assert kv_bytes_per_token(model, 4, "bf16") == kv_bytes_per_token(model, 8, "bf16") == 94 * 2 * 128 * 2


def test_mla_latent_is_whole_on_every_gpu():
    one = _capacity("deepseek-v3", "b200_sxm", 8, "fp8", enable_expert_parallel=True)
    assert one.bytes_per_token == 8 * 61 * 576


def test_tensor_parallel_slices_add_up_to_the_model():
    model = get_model("llama-3.1-70b")
    replicated = (2 * 80 + 1) * 8192 * 2
    assert 8 * weights_bytes_per_gpu(model, 8, "none") == 2 * model.parameters + 7 * replicated
    embeddings = 2 * 128256 * 8192
    matrices = model.parameters - embeddings - replicated // 2
    assert weights_bytes_per_gpu(model, 1, "fp8") == matrices + 2 * embeddings + replicated


# aiconfigurator-core 0.12.0's own planner: memory fraction 0.9, 8,192-token budget, tokens per replica.
PLANNER = [
    ("llama-3.1-70b", "h200_sxm", 2, "none", 371e3),
    ("llama-3.1-70b", "h200_sxm", 4, "none", 1.17e6),
    ("llama-3.1-70b", "h200_sxm", 8, "none", 2.78e6),
    ("llama-3.1-70b", "h100_sxm", 2, "none", 10.8e3),
    ("llama-3.1-70b", "a100_sxm", 4, "none", 454e3),
    ("llama-3.1-70b", "h100_sxm", 8, "none", 1.34e6),
    ("llama-3.1-70b", "b200_sxm", 2, "none", 601e3),
    ("llama-3.1-70b", "b200_sxm", 8, "none", 3.70e6),
    ("llama-3.1-70b", "h200_sxm", 1, "fp8", 356e3),
    ("llama-3.1-70b", "h200_sxm", 8, "fp8", 5.97e6),
    ("llama-3.1-8b", "h100_sxm", 1, "none", 433e3),
    ("llama-3.1-8b", "h200_sxm", 1, "none", 883e3),
    ("qwen3-32b", "h100_sxm", 1, "none", 25e3),
    ("qwen3-32b", "h100_sxm", 2, "none", 302e3),
    ("llama-3.1-405b", "h200_sxm", 8, "none", 454e3),
]


@pytest.mark.parametrize(("model", "gpu", "tp", "quantization", "tokens"), PLANNER)
def test_capacity_agrees_with_the_planner(model, gpu, tp, quantization, tokens):
    assert _capacity(model, gpu, tp, quantization).tokens == pytest.approx(tokens, rel=0.006)


def test_deepseek_capacity_exceeds_the_planner_by_its_surplus_weights():
    """The planner holds 90.85 GB per GPU, as if all 61 layers were sparse: 726 GB for a 671-GB checkpoint."""
    capacity = _capacity("deepseek-v3", "h200_sxm", 8, "fp8", enable_expert_parallel=True)
    surplus = 90_845_872_128 - capacity.weights_bytes_per_gpu
    assert capacity.weights_bytes_per_gpu * 8 == pytest.approx(671e9, rel=0.015)
    assert capacity.tokens - surplus // (61 * 576) == pytest.approx(1.127e6, rel=0.001)


def test_engines_apply_the_memory_fraction_as_their_own_argument_does():
    by_engine = {
        engine: _capacity("llama-3.1-70b", "h200_sxm", 4, engine=engine).tokens
        for engine in ("vllm", "sglang", "trtllm")
    }
    assert by_engine["vllm"] == pytest.approx(1_173_601, rel=1e-3)
    assert by_engine["sglang"] == pytest.approx(1_160_371, rel=1e-3)
    assert by_engine["trtllm"] == pytest.approx(1_222_571, rel=1e-3)


def test_breakdown_adds_up_for_vllm():
    capacity = _capacity("llama-3.1-8b", "h100_sxm", 1, block_size=16)
    used = capacity.weights_bytes_per_gpu + capacity.activation_bytes_per_gpu + capacity.runtime_bytes_per_gpu
    assert used + capacity.kv_bytes_per_gpu == pytest.approx(0.9 * 80 * 2**30, abs=1)
    assert capacity.blocks + 1 == capacity.kv_bytes_per_gpu // (16 * 131072)  # one is never given out


def test_override_wins_even_where_nothing_would_fit():
    capacity = _capacity("llama-3.1-70b", "h100_sxm", 1, num_gpu_blocks_override=16384, block_size=512)
    assert capacity.tokens == 16383 * 512


@pytest.mark.parametrize(
    ("arguments", "options", "reason"),
    [
        (("llama-3.1-70b", "h100_sxm", 1), {}, r"does not fit on 1 x h100_sxm: 0.9 x 80.0 GiB less 131.4 GiB weights"),
        (("llama-3.1-70b", "h100_sxm", 3), {}, "does not divide the 64 attention heads"),
        (("llama-3.1-70b", "a100_sxm", 4, "fp8"), {}, "no FP8 tensor cores"),
        (("llama-3.1-70b", "a100_sxm", 4), {"kv_cache_dtype": "fp8"}, "no FP8 tensor cores"),
        (("llama-3.1-70b", "h100_sxm", 4, "nvfp4"), {}, "no FP4 tensor cores"),
        (("nvidia/Llama-3.1-8B-Instruct-FP8", "h100_sxm", 1), {}, "of another precision: use quantization 'fp8'"),
        (("llama-3.1-70b", "h100_sxm", 4), {"enable_expert_parallel": True}, "is dense"),
        (("llama-3.1-70b", "h100_sxm", 12), {}, "exceeds the 8 GPUs that h100_sxm links, and is no multiple"),
        (("qwen3-235b-a22b", "h200_sxm", 8, "fp8", "sglang"), {}, "to 192 columns, not a multiple of their 128-wide"),
        (("gpt-oss-120b", "h200_sxm", 2, "fp8"), {}, "published in its own precision only"),
        (("llama-3.1-70b", "h200_sxm", 2), {"data_parallel_size": 2}, "is dense: data_parallel_size has no experts"),
        (("llama-3.1-8b", "h200_sxm", 1), {"pipeline_parallel_size": 33}, "exceeds the 32 layers"),
        (
            ("qwen3-235b-a22b", "h200_sxm", 2),
            {"data_parallel_size": 5},
            "tensor_parallel_size 2 x data_parallel_size 5 does not divide the 1536 expert width",
        ),
        (("qwen3-235b-a22b", "h200_sxm", 1), {"data_parallel_size": 7}, "does not divide the 1536 expert width"),
        (("qwen3-235b-a22b", "h200_sxm", 2, "fp8", "sglang"), {"data_parallel_size": 4}, "to 192 columns, not"),
        (
            ("qwen3-235b-a22b", "h200_sxm", 4, "fp8", "trtllm"),
            {"data_parallel_size": 2, "enable_expert_parallel": True},
            "one rank per GPU: use tensor_parallel_size 1",
        ),
    ],
)
def test_check_says_why_not(arguments, options, reason):
    with pytest.raises(InfeasibleError, match=reason):
        check(_deployment(*arguments, **options))


def test_a_topology_cannot_join_more_gpus_than_their_switches_do():
    deployment = _deployment("llama-3.1-70b", "h100_sxm", 4)
    check(deployment.model_copy(update={"topology": TopologyConfig(gpus_per_node=8)}))
    with pytest.raises(InfeasibleError, match="joins 32 x h100_sxm by NVLink, which links 8"):
        check(deployment.model_copy(update={"topology": TopologyConfig(nvlink_domain="rack")}))


@given(model=st.sampled_from(sorted(MODELS)), stages=st.integers(1, 32))
def test_pipeline_stages_add_up_to_the_model(model, stages):
    card = get_model(model)
    parts = card.stages(min(stages, card.layers))
    again = card.vocabulary * card.hidden * (card.tied and len(parts) > 1)  # both ends hold the one table
    assert sum(part.parameters for part in parts) == card.parameters + again
    assert sum(kv_bytes_per_token(part, 1, "bf16") for part in parts) == kv_bytes_per_token(card, 1, "bf16")
    assert max(part.layers for part in parts) - min(part.layers for part in parts) <= 1


def test_layers_left_over_go_to_the_stages_before_the_last():
    assert [stage.layers for stage in get_model("deepseek-v3").stages(4)] == [15, 15, 16, 15]
    assert [stage.moe.dense_layers for stage in get_model("deepseek-v3").stages(61)][:4] == [1, 1, 1, 0]


def test_the_fullest_stage_bounds_the_blocks_of_a_pipeline():
    one, two = (_capacity("llama-3.1-70b", "h200_sxm", 2, pipeline_parallel_size=stages) for stages in (1, 2))
    table = 128256 * 8192 * 2 / 2
    layers = (one.weights_bytes_per_gpu - 2 * table) / 2
    assert two.weights_bytes_per_gpu == pytest.approx(layers + table, rel=1e-6)
    assert two.blocks + 1 == two.kv_bytes_per_gpu // (one.bytes_per_token // 2 // 2)  # two stages of two GPUs
    assert two.bytes_per_token == one.bytes_per_token


def test_data_parallel_ranks_copy_attention_and_share_experts():
    model = get_model("qwen3-235b-a22b")
    experts = sum(weight.parameters for weight in model.weights() if weight.role == "expert")
    alone, shared = (weights_bytes_per_gpu(model, 1, "none", ranks) for ranks in (1, 8))
    assert alone - shared == pytest.approx(2 * experts * 7 / 8)
    sliced = weights_bytes_per_gpu(model, 8, "none")
    copied = sum(weight.parameters for weight in model.weights() if weight.role in ("attention", "embedding", "head"))
    # K and V of 4 heads are cut in 4 only
    key_value = 94 * 2 * 4096 * 4 * 128
    assert shared - sliced == pytest.approx(2 * ((copied - key_value) * 7 / 8 + key_value * 3 / 4))


def test_mla_ranks_hold_their_own_latents_where_tensor_parallel_copies_them():
    """The reason for attention data parallelism: a TP group keeps the same latent on every GPU."""
    options = {"enable_expert_parallel": True, "max_num_batched_tokens": 1024}
    tensor = _capacity("deepseek-v3", "b200_sxm", 8, "fp8", **options)
    data = _capacity("deepseek-v3", "b200_sxm", 1, "fp8", data_parallel_size=8, **options)
    assert data.bytes_per_token == tensor.bytes_per_token // 8 == 61 * 576
    assert 8 * data.tokens > 5 * tensor.tokens


@given(
    model=st.sampled_from(sorted(MODELS)),
    tp=st.sampled_from([1, 2, 4, 8]),
    engine=st.sampled_from(["vllm", "sglang", "trtllm"]),
    fraction=st.floats(0.5, 0.9),
)
def test_more_memory_fraction_or_fewer_pass_tokens_never_cost_blocks(model, tp, engine, fraction):
    def blocks(fraction, tokens):
        deployment = _deployment(
            model, "mi355x", tp, engine=engine, gpu_memory_utilization=fraction, max_num_batched_tokens=tokens
        )
        try:
            return PoolPlan.of(deployment, "mixed").capacity.blocks
        except InfeasibleError:
            return 0

    assert blocks(fraction, 8192) <= blocks(fraction + 0.05, 8192)
    assert blocks(fraction, 8192) <= blocks(fraction, 2048)


def test_experts_that_the_gpus_do_not_divide_are_there_more_than_once():
    capacity = {
        gpus: _capacity(
            "deepseek-v3", "gb200", 1, "fp8", "sglang", data_parallel_size=gpus, enable_expert_parallel=True
        )
        for gpus in (32, 43, 48, 64)
    }
    slots = {gpus: -(-256 // gpus) for gpus in capacity}
    weights = {gpus: sized.weights_bytes_per_gpu for gpus, sized in capacity.items()}
    expert = (weights[32] - weights[64]) / (slots[32] - slots[64])
    assert weights[32] - weights[48] == pytest.approx(2 * expert, rel=1e-6)
    assert weights[43] == weights[48], "6 experts on each"


def test_a_tensor_parallel_group_may_fill_several_nodes():
    check(_deployment("llama-3.1-70b", "h100_sxm", 16))


@pytest.mark.parametrize(("engine", "layers"), [("vllm", 18), ("sglang", 18 + 0.8 * 18), ("trtllm", 36)])
def test_sliding_windows_take_what_each_engine_keeps_for_them(engine, layers):
    capacity = _capacity("gpt-oss-120b", "h200_sxm", 1, "none", engine)
    assert capacity.bytes_per_token == pytest.approx(layers * 2 * 8 * 64 * 2, abs=1)
