"""Cards of the user's: YAML files and objects, every field checked; deployed, priced and named like bundled ones."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

import dynosim
from dynosim.config import PriceConfig
from dynosim.errors import ConfigError
from dynosim.hardware.gpus import GPUS, get_gpu
from dynosim.hardware.models import MODELS, get_model
from dynosim.hardware.prices import price
from dynosim.report.analysis import data
from dynosim.run.spaces import load_space

GPU_CARD = """
name: mi999
memory_bytes: 309.2e9
memory_bandwidth_bytes_s: 10.0e12
flops: {bf16: 3.0e15, fp8: 6.0e15}
nvlink_bytes_s: 900.0e9
scale_up_gpus: 8
usd_per_hour: 3.5
power_w: 1500
"""
MODEL_CARD = """
name: my-moe
aliases: [my-org/My-MoE]
layers: 16
hidden: 1024
heads: 16
kv_heads: 4
head_dim: 64
intermediate: 4096
vocabulary: 32000
moe: {experts: 8, top_k: 2, intermediate: 2048}
"""
OBJECTS = """
from dataclasses import replace
from dynosim.hardware.gpus import GPUS
from dynosim.hardware.models import MODELS

H100_96GB = replace(GPUS["h100_sxm"], name="h100_96gb", memory_bytes=96 * 2**30, usd_per_hour=2.0)
BROKEN = replace(GPUS["h100_sxm"], name="broken", power_w=-1)
SAME = GPUS["h100_sxm"]
DEEP = replace(MODELS["llama-3.1-8b"], name="deep", layers=64)
"""
FAST = ("workload.source.requests=60", "workload.warmup_requests=0", "baseline={}", "deployment={model: model.yaml, "
        "gpu: gpu.yaml, timing: {type: roofline}, aggregated: {}}")  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with cards in it."""
    for name, text in (("gpu.yaml", GPU_CARD), ("model.yaml", MODEL_CARD), ("cards.py", OBJECTS)):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DYNOSIM_TRACKING", "off")
    return tmp_path


def test_cards_of_files_are_deployed_and_go_by_their_names(folder: Path) -> None:
    found = dynosim.optimize(
        "tiny",
        trials=3,
        workers=1,
        overrides=[
            *FAST,
            "deployment.gpu={choices: [gpu.yaml, cards.py:H100_96GB, h100_sxm]}",
            "optimizer.sampler=random",
            "prices={usd_per_gpu_hour: {mi999: 5.0}}",
            "budget={inventory: {mi999: 1, h100_96gb: 1, h100_sxm: 1}}",
        ],
    )
    assert [trial.outcome.reason for trial in found.trials if not trial.outcome.values] == []
    shown = data(found)
    assert {gpu for trial in shown["trials"] for gpu in trial["gpu_counts"]} == {"mi999", "h100_96gb", "h100_sxm"}
    for trial in found.trials:
        gpu = Path(trial.scenario.deployment.gpu).name
        price = {"gpu.yaml": 5.0, "cards.py:H100_96GB": 2.0, "h100_sxm": get_gpu("h100_sxm").usd_per_hour["neocloud"]}
        assert trial.outcome.known_metrics().value("usd_per_hour") == pytest.approx(price[gpu])
    with pytest.raises(ConfigError, match=r"budget.inventory.mi998: 'mi998': no such GPU"):
        load_space("tiny", overrides=[*FAST, "budget={inventory: {mi998: 1}}"])


def test_a_card_has_its_own_price_in_every_table() -> None:
    assert get_gpu("gpu.yaml").memory_bytes == 309_200_000_000
    for table in ("hyperscaler", "neocloud", "three_year_rental"):
        assert price("gpu.yaml", PriceConfig(table=table)).usd_per_gpu_hour == 3.5
    assert get_gpu("cards.py:H100_96GB").flops == dict(GPUS["h100_sxm"].flops)
    assert get_model("cards.py:DEEP").parameters > MODELS["llama-3.1-8b"].parameters
    assert get_model("model.yaml").moe is not None


def test_a_changed_card_is_read_again(folder: Path) -> None:
    assert get_gpu("gpu.yaml").power_w == 1500
    (folder / "gpu.yaml").write_text(GPU_CARD.replace("1500", "1200.5"))
    assert get_gpu("gpu.yaml").power_w == 1200.5


def test_packs_are_measured_on_bundled_cards_only() -> None:
    with pytest.raises(ConfigError, match=r"no timing pack for model.yaml: use timing type 'roofline'"):
        dynosim.predict("tiny", overrides=[*FAST, "deployment.timing={type: pack}"])


@pytest.mark.parametrize("card", ["gpu.yaml", "model.yaml"])
def test_every_field_without_a_default_is_asked_for_by_name(folder: Path, card: str) -> None:
    text = (folder / card).read_text()
    for line in filter(None, text.splitlines()):
        name = line.partition(":")[0]
        if name not in ("aliases", "moe"):
            (folder / card).write_text(text.replace(f"\n{line}\n", "\n"))
            with pytest.raises(ConfigError, match=rf"{card}:1: {name}: missing$"):
                load_space("tiny", overrides=FAST)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("309.2e9", "-1", "gpu.yaml:3: memory_bytes: -1: should be greater than 0"),
        ("309.2e9", "80 GB", "gpu.yaml:3: memory_bytes: 80 GB: should be a valid integer"),
        ("power_w", "power_kw", r"gpu.yaml:9: power_kw: unknown key: did you mean 'power_w'\?"),
        ("bf16", "fp16", "gpu.yaml:1: flops: fp16, fp8: allowed: bf16 and"),
        ("3.5", "{neocloud: 3.5}", "gpu.yaml:1: usd_per_hour: allowed: one number, or one for each of hyperscaler"),
        ("mi999", "h100_sxm", "gpu.yaml: name: 'h100_sxm' is a bundled card's"),
        ("name: mi999", "name: mi999\nname: mi998", "gpu.yaml:3: name: duplicate key"),
    ],
)
def test_a_wrong_gpu_card_is_one_line(folder: Path, old: str, new: str, said: str) -> None:
    (folder / "gpu.yaml").write_text(GPU_CARD.replace(old, new))
    with pytest.raises(ConfigError, match=f"deployment.gpu: .*{said}") as caught:
        load_space("tiny", overrides=FAST)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kv_heads: 4", "kv_heads: 3", "model.yaml:1: heads: 16: allowed: a multiple of kv_heads, 3"),
        ("top_k: 2", "topk: 2", "model.yaml:11: moe.topk: unknown key"),
        ("top_k: 2, ", "", "model.yaml:11: moe.top_k: missing"),
        ("my-moe", "Qwen/Qwen3-8B", "model.yaml: name: 'Qwen/Qwen3-8B' is a bundled card's"),
    ],
)
def test_a_wrong_model_card_is_one_line(folder: Path, old: str, new: str, said: str) -> None:
    (folder / "model.yaml").write_text(MODEL_CARD.replace(old, new))
    with pytest.raises(ConfigError, match=f"deployment.model: .*{said}") as caught:
        load_space("tiny", overrides=FAST)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("cards.py:BROKEN", "cards.py:BROKEN: power_w: -1: should be greater than 0"),
        ("cards.py:SAME", "name: 'h100_sxm' is a bundled card's"),
        ("cards.py:DEEP", "allowed: a dynosim.hardware.gpus.GPU"),
        ("nowhere.yaml", "nowhere.yaml cannot be read"),
    ],
)
def test_an_object_that_is_no_card_is_one_line(reference: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"deployment.gpu: .*{said}"):
        load_space("tiny", overrides=[*FAST, f"deployment.gpu={reference}"])


def test_every_bundled_card_passes_the_checks_of_users_cards(folder: Path) -> None:
    text = (
        "from dataclasses import replace\nfrom dynosim.hardware.{0} import {1}\n"
        "for i, card in enumerate({1}.values()):\n    globals()[f'C{{i}}'] = replace(card, name=f'own{{i}}')\n"
    )
    (folder / "all_gpus.py").write_text(text.format("gpus", "GPUS"))
    (folder / "all_models.py").write_text(text.format("models", "MODELS"))
    for i, gpu in enumerate(GPUS.values()):
        found = get_gpu(f"all_gpus.py:C{i}")
        assert all(getattr(found, f.name) == getattr(gpu, f.name) for f in fields(gpu) if f.name != "name")
    for i, model in enumerate(MODELS.values()):
        assert get_model(f"all_models.py:C{i}").weights() == model.weights()
