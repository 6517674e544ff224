"""Packs against the library they come from; runs where the extra ``[aic]`` is installed."""

import numpy as np
import pytest

pytest.importorskip("aiconfigurator_core")

from dynosim import timing
from dynosim.errors import TimingError
from dynosim.hardware.gpus import get_gpu
from dynosim.hardware.models import get_model
from dynosim.timing import aic
from dynosim.timing.aic import build_pack
from dynosim.timing.pack import BUNDLED, PackKey, Size, load_pack

KEY = PackKey("llama-3.1-8b", "h100_sxm", "vllm")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    path = timing.build(
        KEY.model, KEY.gpu, KEY.engine, tensor_parallel_sizes=(1, 2), out_dir=tmp_path_factory.mktemp("p")
    )
    return load_pack(path)


def test_build_makes_the_bundled_pack_again(built):
    bundled = load_pack(BUNDLED / KEY.filename)
    rows = [list(bundled.tensor_parallel_sizes).index(size) for size in built.tensor_parallel_sizes]
    for table in ("tokens_s", "graph_s", "prefill_s", "decode_s"):
        np.testing.assert_allclose(getattr(built, table), getattr(bundled, table)[rows], rtol=1e-6)


def test_passes_between_the_nodes_agree_with_the_library(built):
    tables = built.tables(Size(2), 256, 8192)
    kernels = aic.Kernels.compile(KEY, Size(2), "vllm")
    for batch, context in ((24, 700), (40, 3000), (200, 5000), (144, 100)):
        attention = np.interp(batch * context, tables.decode_context[batch], tables.decode_s[batch])
        library_s = sum(kernels.decode(batch, context).values()) / 1e3
        assert tables.graph_tokens_s[batch] + attention == pytest.approx(library_s, rel=0.03)
    for new, cached in ((1500, 0), (700, 5000), (6000, 1000)):
        share = np.interp(new + cached, tables.prefill_seq, tables.prefill_share_s[1])
        library_s = sum(kernels.prefill(1, new, cached).values()) / 1e3
        pass_s = tables.tokens_s[new] + share * (1 - (cached / (new + cached)) ** 2)
        assert pass_s == pytest.approx(library_s, rel=0.03)


def test_data_parallel_rows_agree_with_the_library():
    key, size = PackKey("qwen3-235b-a22b", "h200_sxm", "trtllm", "fp8", expert_parallel=True), Size(1, 8)
    tables = load_pack(BUNDLED / key.filename).tables(size, 256, 8192)
    kernels = aic.Kernels.compile(key, size, "trtllm")
    for batch, context in ((16, 1000), (64, 4000)):
        attention = np.interp(batch * context, tables.decode_context[batch], tables.decode_s[batch])
        library_s = sum(kernels.decode(batch, context).values()) / 1e3
        assert tables.graph_tokens_s[batch] + attention == pytest.approx(library_s, rel=0.03)


def test_launch_bound_gemms_are_refused(monkeypatch):
    monkeypatch.setattr(aic, "gemm_engine", lambda key: key.engine)  # vLLM's own block-FP8 tables on Blackwell
    with pytest.raises(TimingError, match="of the memory roofline"):
        aic.build_pack(PackKey("qwen3-32b", "b200_sxm", "vllm", "fp8"), [Size(2)])


def test_tensorrt_llm_on_blackwell_has_the_precompiled_experts_but_for_attention_data_parallelism():
    key = PackKey("deepseek-v3", "b200_sxm", "trtllm", "fp8")
    pack = load_pack(BUNDLED / key.filename)
    for size, share in ((Size(8), 0.6), (Size(1, 8), 1.0)):
        library_s = sum(aic.Kernels.compile(key, size, "trtllm").decode(4, 2).values()) / 1e3
        tables = pack.tables(size, 8, 8192)
        assert tables.graph_tokens_s[4] + tables.decode_s[4, 0] == pytest.approx(share * library_s, rel=0.1)


def test_mxfp8_activations_are_those_of_flashinfer_whoever_runs_it():
    asked = load_pack(BUNDLED / PackKey("gpt-oss-120b", "b200_sxm", "vllm", mxfp8_activations=True).filename)
    own, same = (
        load_pack(BUNDLED / PackKey("gpt-oss-120b", "b200_sxm", engine).filename) for engine in ("vllm", "sglang")
    )
    row = asked.sizes.index(Size(2))
    assert asked.tokens_s[row, -1] < 0.6 * own.tokens_s[row, -1]
    np.testing.assert_allclose(asked.tokens_s[row, 20:], same.tokens_s[row, 20:], rtol=0.15)


def test_gpt_oss_on_hopper_runs_the_same_triton_kernels_under_vllm_and_sglang():
    keys = (PackKey("gpt-oss-120b", "h100_sxm", engine) for engine in ("vllm", "sglang"))
    vllm, sglang = (load_pack(BUNDLED / key.filename) for key in keys)
    np.testing.assert_allclose(sglang.graph_s, vllm.graph_s, rtol=0.25)


def test_all_reduces_of_vllm_are_charged_once():
    key = PackKey("deepseek-v3", "h200_sxm", "vllm", "fp8")
    operations = aic.Kernels.compile(key, Size(8), "vllm").prefill(1, 8192)
    assert operations["tp_allreduce"] == pytest.approx(operations["moe_pre_dispatch"] + operations["moe_post_dispatch"])
    table = load_pack(BUNDLED / key.filename).tables(Size(8), 8, 8192)
    pass_s = table.tokens_s[8192] + np.interp(8192, table.prefill_seq, table.prefill_share_s[1])
    own, gemms = sum(operations.values()), sum(time for name, time in operations.items() if name.endswith("_gemm"))
    assert own - 2 * gemms < 1e3 * pass_s + operations["tp_allreduce"] < 1.1 * own


def test_a_gpu_without_tables_is_a_timing_error(tmp_path):
    with pytest.raises(TimingError, match="has no data"):
        timing.build("llama-3.1-8b", "mi300x", "vllm", tensor_parallel_sizes=(1,), out_dir=tmp_path)


def test_a_model_without_a_shipped_config_is_described_by_its_card(tmp_path):
    path = timing.build("qwen3-14b", "h100_sxm", "vllm", tensor_parallel_sizes=(1,), out_dir=tmp_path)
    weights_s = get_model("qwen3-14b").active_parameters * 2 / get_gpu("h100_sxm").memory_bandwidth_bytes_s
    assert weights_s < load_pack(path).graph_s[0, 0] < 1.5 * weights_s


@pytest.mark.parametrize("model", ["llama-4-maverick", "deepseek-v2-lite", "gemma-3-27b", "glm-4.5"])
def test_a_model_of_other_layers_is_not_priced_as_a_simpler_one(model):
    with pytest.raises(TimingError, match=f"no architecture with the layers of {model}"):
        build_pack(PackKey(model, "h200_sxm", "vllm"), [Size(8)])


def test_expert_groups_that_are_not_measured_lie_between_two_that_are(monkeypatch):
    class Sampler:
        def __init__(self, key, size):
            self.ranks = size.data_parallel

        def sample(self):
            return {"tokens_s": np.full(3, float(self.ranks))}

    monkeypatch.setattr(aic, "_Sampler", Sampler)
    key = PackKey("deepseek-v3", "gb200", "sglang", "fp8", expert_parallel=True)
    assert [aic._sampled(key, Size(1, ranks))["tokens_s"][0] for ranks in (24, 32, 40, 48)] == [24, 32, 40, 48]


def test_experts_on_two_nodes_are_sent_and_not_gathered():
    near, far = (
        build_pack(PackKey("deepseek-v3", "h200_sxm", "sglang", "fp8", expert_parallel=True), [Size(1, ranks)])
        for ranks in (8, 16)
    )
    assert far.tokens_s[0, -1] < 2.0 * near.tokens_s[0, -1]  # gathered: 3.5 times
    assert far.graph_s[0, -1] < 2.0 * near.graph_s[0, -1]


@pytest.mark.parametrize(
    ("model", "quantization", "engine", "modes"),
    [
        ("llama-3.1-70b", "none", "vllm", ("bfloat16", "bfloat16", "bfloat16")),
        ("llama-3.1-70b", "fp8", "vllm", ("fp8_static", "fp8", "bfloat16")),
        ("qwen3-32b", "fp8", "sglang", ("fp8_block", "fp8", "fp8")),
        ("deepseek-v3", "fp8", "trtllm", ("fp8_block", "fp8", "bfloat16")),
    ],
)
def test_precision_modes_are_explicit(model, quantization, engine, modes):
    given = aic.quant_modes(PackKey(model, "h200_sxm", engine, quantization), engine)
    assert (given["gemm_quant_mode"], given["kvcache_quant_mode"], given["fmha_quant_mode"]) == modes


def test_gemm_shapes_hold_every_dense_weight():
    model = get_model("llama-3.1-70b")
    per_gpu = 80 * sum(n * k for n, k in aic.gemm_shapes(model, 8).values())
    norms = (2 * 80 + 1) * 8192
    assert 8 * per_gpu == model.parameters - 2 * 128256 * 8192 - norms
