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
}
ACTIVE_BILLIONS = {
    "deepseek-v3": 37,
    "qwen3-235b-a22b": 22,
    "qwen3-30b-a3b": 3.3,
    "mixtral-8x7b": 12.9,
    "gpt-oss-120b": 5.1,
}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_equal_the_published_total(name):
    assert MODELS[name].parameters == PUBLISHED[name]


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
        ("LLAMA-3.1-8B", "llama-3.1-8b"),
    ],
)
def test_aliases_name_the_same_card(alias, name):
    assert get_model(alias).name == name


def test_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 'llama-3.1-70b'"):
        get_model("llama-3-70b")
