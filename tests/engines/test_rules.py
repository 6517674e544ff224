"""Every engine's file says the same things; what an engine could not be started with is said before it is simulated."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

import dynosim
from dynosim.config import DeploymentConfig, EngineConfig, PoolConfig
from dynosim.engines import ENGINES, contradictions, rules_of
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.hardware.startup import check
from dynosim.space import SearchSpace

SRC = Path(dynosim.__file__).parent
VERSIONS = [(name, version) for name, versions in ENGINES.items() for version in versions]
LISTS = ("config/deployment.py", "timing/bundle.py", "fidelity/names.py", "fidelity/flags.py", "fidelity/scripts.py")
"""Files that list names: the schema's, the bundled packs, and the launch scripts of measured runs."""


def test_a_new_engine_is_its_file_and_its_name_in_the_schema() -> None:
    files = {path.stem for path in (SRC / "engines").glob("*.py")}
    assert files - {"__init__", "base"} == {*ENGINES}


def test_no_other_file_asks_for_an_engine_by_name() -> None:
    for path in SRC.rglob("*.py"):
        if path.parent.name == "engines" or str(path.relative_to(SRC)) in LISTS:
            continue
        compared = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Compare | ast.Dict)]
        named = [node for each in compared for node in ast.walk(each) if isinstance(node, ast.Constant)]
        assert not [node.value for node in named if node.value in ENGINES], path


@pytest.mark.parametrize(("name", "version"), VERSIONS)
def test_limits_cover_every_gpu_and_settings_are_fields(name: str, version: str) -> None:
    rules = ENGINES[name][version]
    sizes = [limits.memory_gib for limits in rules.limits]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 0
    assert {*rules.settings} <= {*EngineConfig.model_fields, *PoolConfig.model_fields}
    assert "current" in ENGINES[name]


def test_a_setting_belongs_to_one_engine() -> None:
    settings = Counter(setting for versions in ENGINES.values() for setting in versions["current"].settings)
    assert max(settings.values()) == 1


def test_a_version_without_rules_of_its_own_has_those_of_the_newest() -> None:
    assert rules_of(EngineConfig(name="sglang", version="0.0.1")) is ENGINES["sglang"]["current"]


def _deployment(pool: dict[str, object] | None = None, **engine: object) -> DeploymentConfig:
    return DeploymentConfig.model_validate(
        {"model": "llama-3.1-8b", "gpu": "h100_sxm", "engine": engine, "aggregated": pool or {}}
    )


FOREIGN = "deployment.engine: max_prefill_tokens has no effect under engine vllm: it is a setting of sglang"
PAGES = "max_num_batched_tokens (256) must be at least block_size (512): SGLang prefills whole pages"
NULL = "num_gpu_blocks_override (1) must be above 1, the blocks that vLLM never gives out"


@pytest.mark.parametrize(
    ("deployment", "said"),
    [
        (_deployment({"num_gpu_blocks_override": 1}, name="vllm"), f"deployment: {NULL}"),
        (_deployment(name="vllm", max_prefill_tokens=7), FOREIGN),
        (_deployment({"block_size": 512, "max_num_batched_tokens": 256}, name="sglang"), f"deployment: {PAGES}"),
    ],
)
def test_what_an_engine_could_not_be_started_with(deployment: DeploymentConfig, said: str) -> None:
    with pytest.raises(InfeasibleError) as error:
        check(deployment)
    assert str(error.value) == said


SPACE = """\
name: x
workload:
  source: {type: synthetic, input_tokens: {type: fixed, tokens: 10}, output_tokens: {type: fixed, tokens: 3}}
  load: {type: poisson, rate_rps: 1}
deployment:
  model: llama-3.1-8b
  gpu: h100_sxm
  engine: ENGINE
  aggregated: {replicas: {choices: [1, 2]}}
"""


def test_a_file_says_it_at_its_line_unless_other_points_do_without() -> None:
    with pytest.raises(ConfigError) as error:
        SearchSpace.parse(SPACE.replace("ENGINE", "{name: vllm, max_prefill_tokens: 7}"), file="f.yaml")
    assert str(error.value) == f"f.yaml:8: {FOREIGN}"
    space = SearchSpace.parse(SPACE.replace("ENGINE", "{name: {choices: [vllm, sglang]}, max_prefill_tokens: 7}"))
    vllm, *_, sglang = space.points()
    assert space.infeasible_reason(vllm) == FOREIGN
    assert space.infeasible_reason(sglang) is None


def test_the_same_setting_is_no_contradiction_under_its_own_engine() -> None:
    assert not list(contradictions(_deployment(name="sglang", max_prefill_tokens=7)))
    assert not list(contradictions(_deployment({"block_size": 512, "max_num_batched_tokens": 256}, name="vllm")))
