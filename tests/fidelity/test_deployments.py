"""A row is read as the deployment that was measured, from its columns, its notes and its source's launch scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dynosim.config import Config, DeploymentConfig, EngineConfig, PoolConfig
from dynosim.engines import ENGINES
from dynosim.errors import ConfigError
from dynosim.fidelity.deployments import deployment_of, run_of
from dynosim.fidelity.flags import FIELDS, setting_of
from dynosim.fidelity.measurements import Measurement, read_measurements
from dynosim.fidelity.names import card_of, engine_of, quantization_of, version_of
from dynosim.fidelity.replay import replay
from dynosim.fidelity.scripts import SCRIPTS
from dynosim.fidelity.workloads import requests_of
from dynosim.hardware.gpus import get_gpu
from fidelity.rows import write_set

R1 = {"model": "deepseek-ai/DeepSeek-R1-0528", "precision": "fp8", "gpu": "H200-SXM-141GB", "n_gpus": "8", "tp": "8"}
INFERENCEX = {"source": "SemiAnalysisAI/InferenceX results"}


def _row(folder: Path, **changes: str) -> Measurement:
    return read_measurements(write_set(folder, changes))[0]


def _pool(deployment: DeploymentConfig) -> PoolConfig:
    assert deployment.aggregated is not None
    return deployment.aggregated


# ---- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "card"),
    [
        ("H100-SXM-80GB", "h100_sxm"), ("H100-PCIe-80GB", "h100_pcie"), ("H100 NVL", "h100_nvl"), ("H800", "h800_sxm"),
        ("NVIDIA H200", "h200_sxm"), ("GH200-96GB", "gh200"), ("H20-3e-143GB", "h20_3e"), ("H20-96GB", "h20_sxm"),
        ("B200-180GB", "b200_sxm"), ("GB200", "gb200"), ("B300-SXM", "b300_sxm"), ("GB300 NVL72", "gb300"),
        ("A100-40GB", "a100_sxm_40gb"), ("A100-80GB", "a100_sxm"), ("A10G", "a10g"), ("L40S", "l40s"), ("L4", "l4"),
        ("RTX 4090", "rtx_4090"), ("RTX-PRO-6000-96GB", "rtx_pro_6000_server"), ("AMD MI325X", "mi325x"),
    ],
)  # fmt: skip
def test_gpus_have_their_cards(gpu: str, card: str) -> None:
    assert card_of(gpu) == card
    assert get_gpu(card).name == card


def test_a_gpu_without_a_card_is_named(tmp_path: Path) -> None:
    assert "'TPU v5': no such GPU" in (replay(_row(tmp_path, gpu="TPU v5")).problem or "")


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        ("vllm (Dynamo runtime)", "vllm"), ("sglang (MoRI)", "sglang"), ("sglang + Mooncake", "sglang"),
        ("TensorRT-LLM", "trtllm"), ("NIM", "trtllm"), ("NIM (vllm)", "vllm"), ("atom", "vllm"),
    ],
)  # fmt: skip
def test_engines_go_by_their_makers_names(engine: str, name: str, tmp_path: Path) -> None:
    assert engine_of(_row(tmp_path, engine=engine)) == name


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'lmdeploy': allowed: vllm"):
        engine_of(_row(tmp_path, engine="lmdeploy"))


@pytest.mark.parametrize(
    ("row", "version"),
    [
        ({"engine": "vllm", "engine_version": "0.18.0"}, "0.18.0"),
        ({"engine": "vllm", "engine_version": "v0.18.0"}, "0.18.0"),
        ({"engine": "vllm", "engine_version": "main@43124cdd (2026-07-15)"}, "current"),
        ({"engine": "sglang", "notes": "image lmsysorg/sglang:v0.5.8.post1-cu130"}, "0.5.8.post1"),
        ({"engine": "sglang", "notes": "image rocm/sgl-dev:sglang-0.5.9-rocm720-mi35x-mori-0227-2"}, "0.5.9"),
        ({"engine": "trtllm", "notes": "image nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc14"}, "1.3.0rc14"),
        (
            {"engine": "trtllm (Dynamo runtime)",
             "notes": "image nvcr.io/nvidia/ai-dynamo/tensorrtllm-runtime:0.8.1.post2"},
            "1.2.0rc6.post2",
        ),
        ({"engine": "trtllm (Dynamo runtime)", "engine_version": "0.7.1"}, "1.2.0rc3"),
        ({"engine": "atom", "notes": "image rocm/atom:rocm7.1.1-ubuntu24.04-pytorch2.9-atom0.1.1-MI350x"}, "current"),
    ],
)  # fmt: skip
def test_the_version_is_the_engine_s_own(row: dict[str, str], version: str, tmp_path: Path) -> None:
    read = _row(tmp_path, **row)
    assert version_of(read, engine_of(read)) == version


@pytest.mark.parametrize(
    ("model", "precision", "quantization"),
    [
        ("openai/gpt-oss-120b", "fp4", "none"), ("gpt-oss-20b", "mxfp4", "none"),
        ("deepseek-ai/DeepSeek-R1", "NVFP4", "nvfp4"), ("amd/DeepSeek-R1-0528-MXFP4-Preview", "mxfp4", "nvfp4"),
        ("moonshotai/Kimi-K2.5", "int4", "none"), ("Qwen/Qwen3-32B", "bf16", "none"),
    ],
)  # fmt: skip
def test_precisions_are_those_of_checkpoints(model: str, precision: str, quantization: str, tmp_path: Path) -> None:
    assert quantization_of(_row(tmp_path, model=model, precision=precision)) == quantization


def test_a_checkpoint_that_nobody_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no int4 checkpoint of qwen3-32b"):
        quantization_of(_row(tmp_path, model="Qwen/Qwen3-32B", precision="int4"))


# ---- settings -----------------------------------------------------------------------------------------------------


def test_every_flag_has_a_field_and_every_script_says_flags() -> None:
    sections: dict[str, type[Config]] = {"pool": PoolConfig, "engine": EngineConfig, "deployment": DeploymentConfig}
    assert {*FIELDS} == {*ENGINES}
    assert all(
        field.name in sections[field.section].model_fields for flags in FIELDS.values() for field in flags.values()
    )
    said = {(script.engine, flag) for script in SCRIPTS for flag in script.flags if flag != "drafts"}
    assert not [(engine, flag) for engine, flag in said if setting_of(engine, flag, "FLASHINFER") is None]


def test_flags_are_the_settings_of_their_engine(tmp_path: Path) -> None:
    notes = "mem_fraction_static 0.8, chunked_prefill_size 32k, max_running_requests 256, attention_backend trtllm_mla"
    deployment = deployment_of(_row(tmp_path, engine="sglang", notes=notes))
    pool = _pool(deployment)
    assert (pool.gpu_memory_utilization, pool.max_num_batched_tokens, pool.max_num_seqs) == (0.8, 32768, 256)
    assert pool.block_size == 64


def test_sglang_s_limits_are_of_all_ranks(tmp_path: Path) -> None:
    notes = "moe_ep=8 attention_dp=8; chunked_prefill_size 131072, max_running_requests 4096"
    pool = _pool(deployment_of(_row(tmp_path, **R1, engine="sglang", notes=notes)))
    assert (pool.data_parallel_size, pool.max_num_batched_tokens, pool.max_num_seqs) == (8, 16384, 512)


@pytest.mark.parametrize(("engine", "block_tokens"), [("vllm", 16), ("sglang", 1), ("trtllm", 32)])
def test_kv_tokens_of_a_log_are_divided_by_the_engine_s_block_size(
    engine: str, block_tokens: int, tmp_path: Path
) -> None:
    deployment = deployment_of(_row(tmp_path, engine=engine, notes="GPU KV cache 320000 tokens (server log)"))
    assert _pool(deployment).num_gpu_blocks_override == 320_000 // block_tokens


def test_limits_that_a_row_does_not_state_are_the_engine_s(tmp_path: Path) -> None:
    pool = _pool(deployment_of(_row(tmp_path, notes="")))
    assert (pool.max_num_seqs, pool.max_num_batched_tokens, pool.gpu_memory_utilization) == (None, None, None)


@pytest.mark.parametrize(
    ("notes", "unread"),
    [
        ("max_num_seqs 8, num_continuous_decode_steps 4", ("num_continuous_decode_steps 4",)),
        ("MoE backend triton; painted red", ("moe_backend triton", "painted red")),
        ("max_model_len 4096; HiCache off; ignore-eos", ()),
    ],
)
def test_what_is_not_simulated_is_said(notes: str, unread: tuple[str, ...], tmp_path: Path) -> None:
    assert run_of(_row(tmp_path, notes=notes)).unread == unread


def test_notes_win_over_launch_scripts(tmp_path: Path) -> None:
    row = R1 | INFERENCEX | {"engine": "sglang"}
    scripted, stated = (
        _pool(deployment_of(_row(tmp_path, **row, notes=notes))) for notes in ("", "chunked_prefill_size 2048")
    )
    assert (scripted.max_num_batched_tokens, stated.max_num_batched_tokens) == (32768, 2048)


def test_scripts_are_those_of_the_date(tmp_path: Path) -> None:
    row = R1 | INFERENCEX | {"engine": "trtllm", "isl": "1024"}
    before, after = (
        _pool(deployment_of(_row(tmp_path, **row, notes=f"measured {day}"))) for day in ("2025-12-01", "2026-03-01")
    )
    assert (before.max_num_batched_tokens, after.max_num_batched_tokens) == (1152, 8192)


# ---- speculation --------------------------------------------------------------------------------------------------


def test_drafts_are_those_of_the_notes(tmp_path: Path) -> None:
    notes = "spec_decoding mtp; MTP drafts 2 per pass"
    speculative = deployment_of(_row(tmp_path, **R1, engine="sglang", notes=notes)).engine.speculative
    assert speculative is not None
    assert (speculative.method, speculative.num_speculative_tokens) == ("mtp", 2)


@pytest.mark.parametrize(("notes", "drafts"), [("moe_ep=8 attention_dp=8", 1), ("attention_dp=1", 3)])
def test_drafts_that_notes_do_not_state_are_the_script_s(notes: str, drafts: int, tmp_path: Path) -> None:
    row = _row(tmp_path, **R1, **INFERENCEX, engine="trtllm", notes=f"spec_decoding mtp; {notes}")
    speculative = deployment_of(row).engine.speculative
    assert speculative is not None
    assert speculative.num_speculative_tokens == drafts


def test_drafts_that_nobody_states_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="how many tokens are drafted"):
        deployment_of(_row(tmp_path, **R1, engine="vllm", notes="spec_decoding mtp"))


# ---- layout -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({"n_gpus": "2", "tp": "1", "notes": "layout TP1,PP2; pipeline parallel 2"}, "1xTP1PP2"),
        (R1 | {"engine": "trtllm", "tp": "1", "notes": "layout DEP8; moe_ep=8 attention_dp=8"}, "1xTEP1DP8"),
        (R1 | {"engine": "trtllm", "notes": "moe_tp=1 moe_ep=8 attention_dp=8"}, "1xTEP1DP8"),
        (R1 | {"engine": "sglang", "notes": "moe_tp=8 moe_ep=1 attention_dp=1"}, "1xTP8"),
        (R1 | {"engine": "sglang", "n_gpus": "16", "tp": "16"}, "1xTP16"),
        (
            R1 | {"engine": "sglang", "n_gpus": "64", "tp": "",
                  "notes": "prefill 2 worker(s) x (tp8 adp1 ep1); decode 1 worker(s) x (tp1 adp48 ep48)"},
            "2xTP8+1xTEP1DP48",
        ),
        ({"n_gpus": "8", "notes": "disaggregated 1P1D, TP4 each", "engine": "sglang"}, "1xTP4+1xTP4"),
    ],
)  # fmt: skip
def test_layouts(row: dict[str, str], label: str, tmp_path: Path) -> None:
    assert deployment_of(_row(tmp_path, **row)).label() == label


def test_gpus_that_the_layout_does_not_have_are_a_problem(tmp_path: Path) -> None:
    notes = "disaggregated; prefill 1 worker(s) x (tp8 adp1 ep1); decode 1 worker(s) x (tp8 adp1 ep1)"
    problem = replay(_row(tmp_path, **(R1 | {"n_gpus": "24", "notes": notes}))).problem
    assert problem == "n_gpus: 24: the layout 1xTP8+1xTP8 has 16"


def test_a_pipeline_of_data_parallel_ranks_keeps_one_stage_of_weights(tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "model": "Qwen/Qwen3-235B-A22B", "precision": "fp4", "gpu": "B200", "engine": "trtllm", "tp": "1",
    }  # fmt: skip
    piped, plain = (
        _pool(deployment_of(_row(tmp_path, **row, n_gpus=gpus, notes=notes)))
        for gpus, notes in (("4", "layout DEP2,PP2"), ("2", "layout DEP2"))
    )
    assert (piped.replicas, piped.data_parallel_size, plain.replicas) == (2, 2, 1)
    assert piped.num_gpu_blocks_override is not None
    assert plain.num_gpu_blocks_override is None


def test_pools_have_the_settings_of_their_recipes(tmp_path: Path) -> None:
    notes = "disaggregated; prefill 1 worker(s) x (tp16 adp1 ep1); decode 1 worker(s) x (tp16 adp1 ep1)"
    row = (
        R1 | INFERENCEX | {"gpu": "H100-SXM-80GB", "n_gpus": "32", "engine": "sglang (Dynamo runtime)", "notes": notes}
    )
    pools = deployment_of(_row(tmp_path, **row)).pools()
    assert (pools["prefill"].max_num_seqs, pools["prefill"].max_num_batched_tokens) == (2, 2048)
    assert pools["decode"].max_num_seqs == 128


@pytest.mark.parametrize(
    ("load", "decode", "seats"),
    [
        ("4096", "1 worker(s) x (tp1 adp8 ep8)", 512),  # of the recipe of this layout and load
        ("300", "2 worker(s) x (tp1 adp8 ep8)", 16),  # no recipe: the power of two that the load fills on every rank
        ("300", "2 worker(s) x (tp8 adp1 ep8)", 256),  # no recipe: the one that holds it
    ],
)
def test_seats_of_decode_servers_are_those_of_the_recipe_of_layout_and_load(
    load: str, decode: str, seats: int, tmp_path: Path
) -> None:
    notes = f"disaggregated; prefill 1 worker(s) x (tp1 adp4 ep4); decode {decode}"
    gpus = str(4 + 8 * int(decode[0]))
    row = R1 | INFERENCEX | {"gpu": "B200", "precision": "fp4", "n_gpus": gpus, "isl": "1024", "osl": "1024"}
    row |= {"engine": "trtllm (Dynamo runtime)", "concurrency_or_rate": load, "notes": notes}
    assert deployment_of(_row(tmp_path, **row)).pools()["decode"].max_num_seqs == seats


# ---- the workload -------------------------------------------------------------------------------------------------


def test_a_chat_template_adds_tokens_to_every_prompt(tmp_path: Path) -> None:
    plain, wrapped = (
        requests_of(_row(tmp_path, notes=f"num_requests 20; {notes}"))
        for notes in ("", "prompts wrapped in the chat template")
    )
    assert set(wrapped.input_tokens - plain.input_tokens) == {4}


def test_the_first_prompts_of_sglang_s_runs_on_amd_wait_and_delay_the_rest(tmp_path: Path, monkeypatch: Any) -> None:
    row = _row(tmp_path, engine="sglang", gpu="MI300X")
    with_wait = replay(row).predicted
    monkeypatch.setattr("dynosim.fidelity.deployments.FIRST_PROMPTS_S", 0.0)
    without = replay(row).predicted
    # 4 of 20 requests come first.
    assert with_wait["ttft_ms_mean"] == pytest.approx(without["ttft_ms_mean"] + 3000 * 4 / 20)
    assert with_wait["ttft_ms_p99"] > 3000 > without["ttft_ms_p99"]
    assert with_wait["tpot_ms_mean"] == pytest.approx(without["tpot_ms_mean"])
    assert with_wait["output_tok_s_per_gpu"] < without["output_tok_s_per_gpu"]
