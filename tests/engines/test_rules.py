"""Every engine's file says the same things; what an engine could not be started with is said before it is simulated."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

import dynosim
from dynosim.config import DeploymentConfig, EngineConfig, PoolConfig
from dynosim.engines import ENGINES, behaviour, contradictions, rules_of
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.hardware.plan import PoolPlan
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


@pytest.mark.parametrize(
    ("name", "version", "found"),
    [
        ("sglang", "current", "0.5.20"),
        ("sglang", "0.5.23", "0.5.20"),
        ("sglang", "v0.5.12.post1", "0.5.12"),
        ("sglang", "0.5.9", "0.5"),
        ("sglang", "0.4.6", "0.5"),
        ("vllm", "0.27.1rc1.dev3+gabc", "0.23"),
        ("vllm", "1.0.0", "0.28"),
        ("vllm", "0.20.0", "0.20"),
        ("trtllm", "1.2.0rc6.post3", "1.0"),
    ],
)
def test_a_version_has_the_newest_rules_that_are_not_newer(name: str, version: str, found: str) -> None:
    assert rules_of(EngineConfig(name=name, version=version)) is ENGINES[name][found]


def test_a_version_is_a_number() -> None:
    with pytest.raises(ValueError, match="version"):
        EngineConfig(version="newest")


@pytest.mark.parametrize(
    ("engine", "gpu", "pool", "seqs", "budget", "share"),
    [
        ("vllm", "h200_sxm", {}, 1024, 8192, 0.92),
        ("vllm", "b200_sxm", {}, 1024, 16384, 0.92),
        ("vllm", "a100_sxm", {}, 256, 2048, 0.92),
        ("vllm", "l40s", {}, 256, 2048, 0.92),
        ("vllm", "h200_sxm", {"max_num_batched_tokens": 512}, 512, 512, 0.92),
        ("vllm", "h200_sxm", {"gpu_memory_utilization": 0.8, "max_num_seqs": 7}, 7, 8192, 0.8),
        ("sglang", "h200_sxm", {}, 2048, 8192, 0.903),
        ("trtllm", "b200_sxm", {}, 2048, 8192, 0.9),
    ],
)
def test_what_is_not_given_is_the_engine_s_own_on_the_gpu(
    engine: str, gpu: str, pool: dict[str, object], seqs: int, budget: int, share: float
) -> None:
    deployment = _deployment(pool, name=engine).model_copy(update={"gpu": gpu})
    plan = PoolPlan.of(deployment, "mixed")
    assert (plan.config.max_num_seqs, plan.config.max_num_batched_tokens) == (seqs, budget)
    assert plan.config.gpu_memory_utilization == pytest.approx(share, abs=0.0015)


@pytest.mark.parametrize(
    ("version", "budget", "share", "overlap"),
    [("0.28", 16384, 0.92, True), ("0.26", 8192, 0.92, True), ("0.19", 8192, 0.9, True), ("0.13", 8192, 0.9, False)],
)
def test_defaults_move_with_the_version(version: str, budget: int, share: float, overlap: bool) -> None:
    deployment = _deployment(name="vllm", version=version).model_copy(update={"gpu": "b200_sxm"})
    config = PoolPlan.of(deployment, "mixed").config
    assert (config.max_num_batched_tokens, config.gpu_memory_utilization) == (budget, share)
    assert behaviour(deployment.engine, hardware=True).overlap is overlap


def test_seats_that_are_given_do_not_widen_sglang_s_chunk() -> None:
    """Its decodes take no part of the token budget, as vLLM's do."""
    pools = {
        name: PoolPlan.of(
            DeploymentConfig.model_validate(
                {
                    "model": "llama-3.1-8b",
                    "gpu": "h100_sxm",
                    "engine": {"name": name},
                    "aggregated": {"max_num_seqs": 20000},
                }
            ),
            "mixed",
        ).config
        for name in ("sglang", "vllm")
    }
    assert {name: pool.max_num_batched_tokens for name, pool in pools.items()} == {"sglang": 8192, "vllm": 20000}


def test_attention_ranks_share_sglang_s_chunk() -> None:
    deployment = DeploymentConfig.model_validate(
        {
            "model": "deepseek-v3", "gpu": "h200_sxm", "quantization": "fp8", "engine": {"name": "sglang"},
            "aggregated": {"data_parallel_size": 8, "enable_expert_parallel": True},
        }
    )  # fmt: skip
    assert PoolPlan.of(deployment, "mixed").config.max_num_batched_tokens == 1024


@pytest.mark.parametrize(("name", "ranks", "said", "seqs"), [
    ("sglang", 1, None, 48), ("sglang", 8, None, 6), ("sglang", 1, 256, 256), ("vllm", 1, None, 1024),
])  # fmt: skip
def test_sglang_runs_few_requests_where_it_drafts(name: str, ranks: int, said: int | None, seqs: int) -> None:
    deployment = DeploymentConfig.model_validate(
        {
            "model": "deepseek-v3", "gpu": "h200_sxm", "quantization": "fp8",
            "engine": {"name": name, "speculative": {"method": "mtp", "num_speculative_tokens": 3}},
            "aggregated": {
                "tensor_parallel_size": 8 // ranks, "data_parallel_size": ranks, "enable_expert_parallel": True,
                "max_num_seqs": said,
            },
        }
    )  # fmt: skip
    assert PoolPlan.of(deployment, "mixed").config.max_num_seqs == seqs


@pytest.mark.parametrize(
    ("engine", "model", "gpu", "dtype", "block"),
    [
        ("vllm", "llama-3.1-8b", "h200_sxm", "auto", 16),
        ("vllm", "deepseek-v3", "h200_sxm", "bf16", 16),
        ("vllm", "deepseek-v3", "h200_sxm", "fp8", 64),
        ("vllm", "deepseek-v3", "b200_sxm", "bf16", 32),
        ("vllm", "deepseek-v3.2", "b200_sxm", "bf16", 64),
        ("sglang", "deepseek-v3", "h200_sxm", "bf16", 1),
        ("sglang", "deepseek-v3", "b200_sxm", "bf16", 64),
        ("sglang", "gpt-oss-120b", "b200_sxm", "auto", 64),
        ("sglang", "gpt-oss-120b", "h200_sxm", "auto", 1),
        ("trtllm", "deepseek-v3", "b200_sxm", "auto", 32),
    ],
)
def test_blocks_are_those_of_the_attention_kernels(engine: str, model: str, gpu: str, dtype: str, block: int) -> None:
    deployment = _deployment(name=engine).model_copy(update={"model": model, "gpu": gpu, "kv_cache_dtype": dtype})
    assert PoolPlan.of(deployment, "mixed").config.block_size == block


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
        (
            _deployment({"block_size": 512, "max_num_batched_tokens": 256}, name="sglang"),
            f"deployment.aggregated: {PAGES}",
        ),
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


def test_a_version_that_is_none_is_refused_with_examples() -> None:
    with pytest.raises(ConfigError, match=r"engine.version: newest: allowed: such as current or 0\.18\.0"):
        dynosim.predict("tiny", overrides=["deployment.engine.version=newest"])
