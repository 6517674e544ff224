"""Parameter counts against the totals that the models' publishers print (Hugging Face safetensors metadata)."""

import pytest

from dynosim.errors import ConfigError
from dynosim.hardware.models import MODELS, get_model

PUBLISHED = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "deepseek-v3": 671_026_419_200,
    "mixtral-8x7b": 46_702_792_704,
    "gpt-oss-120b": 116_829_156_672,
    "mistral-large-123b": 122_610_069_504,
    "ministral-8b": 8_019_808_256,
    "codestral-22b": 22_247_282_688,
    "phi-4": 14_659_507_200,
    "phi-3-mini": 3_821_079_552,
    "phi-3-medium": 13_960_238_080,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v2": 235_741_434_880,
}
PUBLISHED_BILLIONS = {
    "llama-2-7b": 6.74,
    "llama-2-13b": 13.02,
    "llama-2-70b": 68.98,
    "codellama-34b": 33.74,
    "mistral-7b": 7.24,
    "mistral-nemo-12b": 12.25,
    "mistral-small-24b": 23.57,
    "yi-34b": 34.39,
    "qwen2.5-7b": 7.62,
    "qwen2.5-14b": 14.77,
    "qwen2.5-32b": 32.76,
    "qwen2.5-72b": 72.71,
    "qwen3-14b": 14.77,
    "qwen3-coder-480b-a35b": 480.2,
    "kimi-k2": 1026,
    "kimi-k2.5": 1026,  # without its vision tower
    "deepseek-v3.2": 671.0,  # without its indexer
    "glm-5": 744,
    "qwen3.5-397b-a17b": 397,
    "minimax-m2.5": 228.7,
    "llama-4-scout": 107.8,  # without its vision tower
    "mixtral-8x22b": 140.6,
    "gpt-oss-20b": 20.91,
    "gemma-2-9b": 9.24,
    "gemma-2-27b": 27.23,
    "gemma-3-4b": 3.88,  # this and the next two without their vision towers
    "gemma-3-12b": 11.77,
    "gemma-3-27b": 27.01,
    "qwen3-next-80b-a3b": 79.7,  # this and the next two without their multi-token heads
    "glm-4.5": 355,
    "glm-4.5-air": 106,
    "llama-4-maverick": 400.7,  # without its vision tower
    "phi-3.5-moe": 41.87,
}
"""Of the other cards, as their pages round them."""
ACTIVE_BILLIONS = {
    "deepseek-v3": 37,
    "qwen3-235b-a22b": 22,
    "qwen3-30b-a3b": 3.3,
    "mixtral-8x7b": 12.9,
    "gpt-oss-120b": 5.1,
    "llama-4-maverick": 17,
    "deepseek-v2": 21,
    "glm-4.5": 32,
}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_equal_the_published_total(name):
    if name in PUBLISHED:
        assert MODELS[name].parameters == PUBLISHED[name]
    else:
        assert MODELS[name].parameters / 1e9 == pytest.approx(PUBLISHED_BILLIONS[name], rel=1e-2)


@pytest.mark.parametrize("name", ACTIVE_BILLIONS)
def test_active_parameters_are_as_published(name):
    model = MODELS[name]
    with_embedding = model.active_parameters + model.vocabulary * model.hidden
    assert ACTIVE_BILLIONS[name] * 0.96 < with_embedding / 1e9 < ACTIVE_BILLIONS[name] * 1.13


def test_dense_models_multiply_every_parameter_but_the_embedding():
    model = get_model("llama-3.1-8b")
    assert model.active_parameters == model.parameters - 128256 * 4096


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("meta-llama/Llama-3.3-70B-Instruct", "llama-3.1-70b"),
        ("meta-llama/Llama-3.1-70B-Instruct", "llama-3.1-70b"),
        ("meta-llama/Meta-Llama-3.1-8B", "llama-3.1-8b"),
        ("Qwen/Qwen3-235B-A22B-FP8", "qwen3-235b-a22b"),
        ("deepseek-r1", "deepseek-v3"),
        ("nvidia/DeepSeek-R1-0528-FP4-v2", "deepseek-v3"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic", "llama-3.1-8b"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", "qwen3-235b-a22b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
        ("LLAMA-3.1-8B", "llama-3.1-8b"),
        ("amd/DeepSeek-R1-0528-MXFP4-Preview", "deepseek-v3"),
        ("Qwen/Qwen3-235B-A22B-Thinking-2507", "qwen3-235b-a22b"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3.1-8b"),
        ("Qwen/Qwen2.5-Coder-32B-Instruct", "qwen2.5-32b"),
    ],
)
def test_aliases_name_the_same_card(alias, name):
    assert get_model(alias).name == name


def test_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 'llama-3.1-70b'"):
        get_model("llama-3-70b")


def test_dense_layers_lie_at_the_front_or_among_the_others():
    front, among = (
        [(stage.moe.dense_layers, stage.layers) for stage in get_model(name).stages(4) if stage.moe]
        for name in ("deepseek-v3", "llama-4-maverick")
    )
    assert front == [(3, 15), (0, 15), (0, 16), (0, 15)]
    assert among == [(6, 12)] * 4


def test_a_tied_model_has_one_table():
    model = get_model("qwen3-0.6b")
    assert [weight.role for weight in model.weights()].count("embedding") == 0
    tables = [
        [weight.role for weight in stage.weights() if weight.role in ("embedding", "head")] for stage in model.stages(2)
    ]
    assert tables == [["embedding"], ["head"]], "each end of a pipeline has its own"
