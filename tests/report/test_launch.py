"""Launch scripts: every knob that a server takes is in its command, under the server's own name."""

# ruff: noqa: E501 - one line per case reads as the table that it is

import shlex
import subprocess

import pytest
import yaml

from dynosim.cli import main
from dynosim.config import DeploymentConfig, Scenario
from dynosim.report import launch_script

WORKLOAD = {
    "source": {
        "type": "synthetic",
        "input_tokens": {"type": "fixed", "tokens": 10},
        "output_tokens": {"type": "fixed", "tokens": 3},
    },
    "load": {"type": "poisson", "rate_rps": 1.0},
}


def _script(engine: str, model: str = "llama-3.1-70b", more: dict | None = None, /, **pool: object) -> str:
    deployment = {
        "model": model,
        "gpu": "h200_sxm",
        "engine": {"name": engine, **((more or {}).pop("engine", {}))},
        "aggregated": {"tensor_parallel_size": 4, **pool},
        **(more or {}),
    }
    return launch_script(Scenario.model_validate({"name": "x", "workload": WORKLOAD, "deployment": deployment}))


def _flags(script: str) -> dict[str, str | bool]:
    """Flag -> its value, True for a bare one, of the last command of a script."""
    words = shlex.split(script[script.rindex("\n\n") :].replace("\\\n", " "), comments=True)
    found: dict[str, str | bool] = {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            found[word[2:]] = True if following.startswith("--") else following
    return found


CASES = [
    ("vllm", {"pipeline_parallel_size": 2}, {}, {"tensor-parallel-size": "4", "pipeline-parallel-size": "2"}),
    ("vllm", {"max_num_seqs": 64, "max_num_batched_tokens": 2048}, {}, {"max-num-seqs": "64", "max-num-batched-tokens": "2048"}),
    ("vllm", {"enable_chunked_prefill": False}, {}, {"no-enable-chunked-prefill": True, "enable-prefix-caching": True}),
    ("vllm", {"enable_prefix_caching": False, "block_size": 32}, {}, {"no-enable-prefix-caching": True, "block-size": "32"}),
    ("vllm", {"scheduling_policy": "priority", "scheduler_reserve_full_isl": False}, {}, {"scheduling-policy": "priority", "no-scheduler-reserve-full-isl": True}),
    ("vllm", {"kv_offload": {"host": {"size_gib": 200.0}}}, {}, {"kv-offloading-size": "200", "kv-offloading-backend": "native"}),
    ("vllm", {"num_gpu_blocks_override": 77, "gpu_memory_utilization": 0.8}, {}, {"num-gpu-blocks-override": "77", "gpu-memory-utilization": "0.8"}),
    ("vllm", {}, {"quantization": "fp8"}, {"kv-cache-dtype": "fp8"}),
    ("sglang", {"scheduling_policy": "longest_prefix"}, {"engine": {"schedule_conservativeness": 0.3, "enable_mixed_chunk": True}}, {"schedule-policy": "lpm", "schedule-conservativeness": "0.3", "enable-mixed-chunk": True, "tp-size": "4"}),
    ("sglang", {"max_num_batched_tokens": 4096, "max_num_seqs": 99}, {"engine": {"max_prefill_tokens": 8000}}, {"chunked-prefill-size": "4096", "max-running-requests": "99", "max-prefill-tokens": "8000", "page-size": "1"}),
    ("sglang", {"kv_offload": {"host": {"size_gib": 372.529}}}, {}, {"enable-hierarchical-cache": True, "hicache-size": "100"}),
    ("trtllm", {"pipeline_parallel_size": 2, "max_num_seqs": 32}, {}, {"tp_size": "4", "pp_size": "2", "max_batch_size": "32", "max_num_tokens": "8192"}),
]  # fmt: skip


@pytest.mark.parametrize(("engine", "pool", "more", "expected"), CASES)
def test_every_knob_is_a_flag_of_the_server(engine, pool, more, expected):
    flags = _flags(_script(engine, "llama-3.1-70b", dict(more), **pool))
    assert expected.items() <= flags.items()


def test_attention_ranks_are_part_of_sglangs_tensor_parallel_size():
    flags = _flags(
        _script(
            "sglang",
            "deepseek-v3",
            {"quantization": "fp8"},
            tensor_parallel_size=2,
            data_parallel_size=4,
            enable_expert_parallel=True,
        )
    )
    assert {
        "tp-size": "8",
        "dp-size": "4",
        "enable-dp-attention": True,
        "ep-size": "8",
        "max-running-requests": "8192",
    }.items() <= flags.items()
    vllm = _flags(
        _script(
            "vllm",
            "deepseek-v3",
            {"quantization": "fp8"},
            tensor_parallel_size=2,
            data_parallel_size=4,
            enable_expert_parallel=True,
        )
    )
    assert {
        "tensor-parallel-size": "2",
        "data-parallel-size": "4",
        "enable-expert-parallel": True,
    }.items() <= vllm.items()


def test_tensorrt_llm_takes_the_rest_from_a_file_that_the_script_writes():
    engine = {"capacity_scheduler_policy": "MAX_UTILIZATION"}
    script = _script(
        "trtllm", "llama-3.1-70b", {"engine": engine, "quantization": "fp8"}, kv_offload={"host": {"size_gib": 64.0}}
    )
    written = yaml.safe_load(script.split("<<'EOF'\n")[1].split("EOF\n")[0])
    assert written["scheduler_config"] == {"capacity_scheduler_policy": "MAX_UTILIZATION"}
    assert written["kv_cache_config"] == {
        "enable_block_reuse": True,
        "tokens_per_block": 32,
        "free_gpu_memory_fraction": 0.9,
        "dtype": "fp8",
        "host_cache_size": 16 * 2**30,
    }
    assert _flags(script)["extra_llm_api_options"] == "mixed.yaml"


@pytest.mark.parametrize(
    ("gpu", "ranks", "said"), [("b200_sxm", 1, True), ("b200_sxm", 8, False), ("h200_sxm", 1, False)]
)
def test_tensorrt_llm_is_told_to_use_the_experts_that_were_simulated(gpu, ranks, said):
    sizes = {"tensor_parallel_size": 8 // ranks, "data_parallel_size": ranks}
    script = _script("trtllm", "deepseek-v3", {"gpu": gpu, "quantization": "fp8"}, **sizes)
    assert ("moe_config:\n  backend: TRTLLM\n" in script) is said


def test_vllm_is_told_to_give_experts_mxfp8():
    script = _script("vllm", "gpt-oss-120b", {"gpu": "b200_sxm", "engine": {"mxfp8_activations": True}})
    assert _flags(script)["moe-backend"] == "flashinfer_trtllm_afp8"


def test_pools_of_a_disaggregated_deployment_have_a_command_each():
    pools = {
        "prefill": {"replicas": 3, "tensor_parallel_size": 2},
        "decode": {"tensor_parallel_size": 4, "autoscaler": {"max_replicas": 5}},
    }
    for engine, flag in (
        ("vllm", "--kv-transfer-config"),
        ("sglang", "--disaggregation-mode decode"),
        ("trtllm", "cache_transceiver_config"),
    ):
        deployment = DeploymentConfig.model_validate(
            {
                "model": "llama-3.1-8b",
                "gpu": "h100_sxm",
                "engine": {"name": engine},
                "mode": "disaggregated",
                "disaggregated": pools,
            }
        )
        script = launch_script(
            Scenario.model_validate({"name": "x", "workload": WORKLOAD, "deployment": deployment.model_dump()})
        )
        assert flag in script
        assert "# prefill: 3 x this, each on 2 x h100_sxm" in script
        assert "# decode: 1 to 5 x this, each on 4 x h100_sxm" in script
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(("model", "quantization", "checkpoint"), [
    ("llama-3.1-70b", "fp8", "nvidia/Llama-3.1-70B-Instruct-FP8"),
    ("llama-3.1-70b", "none", "meta-llama/Llama-3.1-70B-Instruct"),
    ("qwen3-32b", "fp8", "Qwen/Qwen3-32B-FP8"),
    ("deepseek-v3", "fp8", "deepseek-ai/DeepSeek-V3"),
    ("Qwen/Qwen3-8B", "none", "Qwen/Qwen3-8B"),
])  # fmt: skip
def test_the_checkpoint_has_the_precision(model, quantization, checkpoint):
    assert f"vllm serve {checkpoint} " in _script("vllm", model, {"quantization": quantization})


def test_what_cannot_start_has_no_command(capsys):
    assert main(["launch", "tiny"]) == 0
    assert "vllm serve meta-llama/Llama-3.1-8B-Instruct" in capsys.readouterr().out
    assert main(["launch", "tiny", "--set", "deployment.model=llama-3.1-70b"]) == 3
    assert "does not fit" in capsys.readouterr().err


def test_what_has_no_flag_is_said():
    script = _script(
        "trtllm",
        scheduling_policy="shortest_prompt",
        num_gpu_blocks_override=9,
        kv_offload={"disk": {"size_gib": 10.0}},
    )
    assert (
        "# no flag for scheduling_policy: shortest_prompt\n# no flag for num_gpu_blocks_override: 9\n# no flag for kv_offload.disk: 10 GiB\n"
        in script
    )
    assert "no flag" not in _script("vllm")


SPECULATIVE = [
    ("vllm", '--speculative-config \'{"method": "mtp", "num_speculative_tokens": 2}\''),
    ("sglang", "--speculative-algorithm EAGLE \\\n  --speculative-num-steps 2 \\\n  --speculative-eagle-topk 1 \\\n  --speculative-num-draft-tokens 3"),
    ("trtllm", "speculative_config:\n  decoding_type: MTP\n  max_draft_len: 2\n"),
]  # fmt: skip


@pytest.mark.parametrize(("engine", "said"), SPECULATIVE)
def test_only_a_model_with_mtp_layers_drafts_with_them(engine, said):
    more = {"speculative": {"num_speculative_tokens": 2}}
    script = _script(engine, "deepseek-v3", {"engine": dict(more), "quantization": "fp8"}, tensor_parallel_size=8)
    assert said in script
    assert "draft model" not in script
    script = _script(engine, "llama-3.1-70b", {"engine": dict(more)})
    assert "speculative" not in script
    assert (
        "# 2 draft tokens by mtp: no layers of llama-3.1-70b make them: add the engine's flags for the drafter\n"
        in script
    )


@pytest.mark.parametrize(
    ("engine", "how"), [("vllm", "--data-parallel-address"), ("sglang", "--nnodes"), ("trtllm", "mpirun")]
)
def test_a_replica_wider_than_a_node_is_said_to_be_multi_node(engine, how):
    ranks = {"tensor_parallel_size": 2, "data_parallel_size": 8, "enable_expert_parallel": True}
    if engine == "trtllm":
        ranks |= {"tensor_parallel_size": 1, "data_parallel_size": 16}
    script = _script(engine, "deepseek-v3", {"quantization": "fp8"}, **ranks)
    (line,) = [line for line in script.splitlines() if line.startswith("# multi-node: 16 GPUs, 8 in a node: ")]
    assert how in line
    assert "# multi-node" not in _script(engine, "llama-3.1-70b")


def test_local_prefill_and_the_second_router_stand_in_the_comments_of_the_decode_pool():
    deployment = {
        "model": "llama-3.1-8b",
        "gpu": "h100_sxm",
        "mode": "disaggregated",
        "disaggregated": {
            "prefill": {},
            "decode": {},
            "local_prefill": {"max_uncached_tokens": 512},
            "decode_router": {"policy": "least_outstanding"},
        },
    }
    script = launch_script(Scenario.model_validate({"name": "x", "workload": WORKLOAD, "deployment": deployment}))
    prefill, decode = script.split("# decode: ")
    assert '# no flag for local_prefill: {"max_uncached_tokens": 512, "max_uncached_fraction": 0.7}\n' in decode
    assert "# router: least_outstanding {}\n" in decode
    assert "local_prefill" not in prefill
    assert "least_outstanding" not in prefill


@pytest.mark.parametrize("model", ["deepseek-v3", "glm-4.5-air", "qwen3-next-80b-a3b"])
def test_drafts_of_the_model_s_own_layers_have_a_flag(model: str) -> None:
    speculative = {"method": "mtp", "num_speculative_tokens": 1, "acceptance_length": 1.8}
    assert '"num_speculative_tokens": 1' in _script("vllm", model, {"engine": {"speculative": speculative}})
