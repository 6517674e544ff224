"""Laws of every bundled pack, the published tables, and where packs are looked up."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dynosim import timing
from dynosim.config import DeploymentConfig, EngineConfig, PoolConfig
from dynosim.errors import TimingError
from dynosim.hardware.gpus import get_gpu
from dynosim.hardware.models import get_model
from dynosim.hardware.plan import PoolPlan, pool_plans
from dynosim.hardware.roofline import decode_bound_s, prefill_bound_s
from dynosim.timing.pack import BUNDLED, BY_SIZE, RULES, Pack, PackKey, Size, find_pack, interpolate, load_pack

FILES = sorted(BUNDLED.glob("*.npz"))
LIMITS = {"max_num_seqs": 256, "max_num_batched_tokens": 8192}


def _tables(model, gpu, tp, quantization="none", engine="vllm", **pool):
    deployment = DeploymentConfig(
        model=model,
        gpu=gpu,
        quantization=quantization,
        engine=EngineConfig(name=engine),
        aggregated=PoolConfig(tensor_parallel_size=tp, **pool),
    )
    return timing.forward_times(PoolPlan.of(deployment, "mixed")).tables(**LIMITS)


def _decode_ms(tables, batch, context):
    attention = np.interp(batch * context, tables.decode_context[batch], tables.decode_s[batch])
    return (tables.graph_tokens_s[batch] + attention) * 1e3


def _prefill_ms(tables, tokens):
    return (tables.tokens_s[tokens] + np.interp(tokens, tables.prefill_seq, tables.prefill_share_s[1])) * 1e3


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_pack_is_monotone_and_positive(path):
    pack = load_pack(path)
    assert (pack.tokens_s > 0).all()
    assert (pack.graph_s > 0).all()
    for table in (pack.tokens_s, pack.graph_s, pack.prefill_s, pack.decode_s):
        assert np.isfinite(table).all()
        for axis in range(1, table.ndim):
            assert (np.diff(table, axis=axis) >= -1e-6 * table.max()).all()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_pack_beats_physics(path):
    stem, _, kv_dtype = path.stem.replace(".ep", "").replace(".mxfp8", "").partition(".kv_")
    model_name, gpu_name, _, quantization = stem.rsplit(".", 3)
    model, gpu, pack = get_model(model_name), get_gpu(gpu_name), load_pack(path)
    kv_dtype = kv_dtype or ("bf16" if quantization == "none" else "fp8")
    for size in pack.sizes:
        tables, tp, dp = pack.tables(size, **LIMITS), *size
        for batch, context in ((1, 512), (64, 8192), (256, 2048)):
            bound_ms = decode_bound_s(model, gpu, tp, quantization, kv_dtype, batch, context, dp) * 1e3
            assert _decode_ms(tables, batch, context) > bound_ms
        bound_ms = prefill_bound_s(model, gpu, tp, quantization, 8192, data_parallel_size=dp) * 1e3
        assert _prefill_ms(tables, 8192) > bound_ms


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_pack_says_where_it_comes_from(path):
    provenance = load_pack(path).provenance
    assert provenance["source"] == "aiconfigurator-core 0.12.0"
    assert "Apache-2.0" in provenance["license"]
    assert "NVIDIA" in provenance["copyright"]
    assert provenance["engine_version"]
    assert provenance["measured_tokens"] >= 8192
    assert provenance["measured_context"] >= 65536


def test_the_bundle_is_small_and_carries_its_notice():
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 3 * 2**20
    assert "Copyright (c) 2025-2026 NVIDIA" in (BUNDLED / "NOTICE").read_text()


PREFILL_TOKENS = (512, 1024, 2048, 4096, 8192)
PREFILL_MS = {
    ("a100_sxm", "none", 4): (105, 182, 337, 666, 1372),
    ("h100_sxm", "none", 8): (26.5, 46.2, 85.9, 170, 344),
    ("h100_sxm", "fp8", 4): (30.1, 56.1, 108, 211, 394),
    ("h200_sxm", "none", 1): (93.1, 199, 391, 832, 1686),
    ("h200_sxm", "fp8", 2): (39.2, 72.9, 142, 297, 585),
    ("b200_sxm", "none", 4): (24.1, 39.3, 72.0, 137, 285),
    ("b200_sxm", "fp8", 1): (34.9, 60.2, 117, 235, 544),
}
DECODES = ((32, 512), (32, 8192), (64, 512), (64, 8192), (256, 512), (256, 8192))
DECODE_MS = {
    ("a100_sxm", "none", 4): (32.1, 46.1, 34.6, 59.1, 63.2, 191),
    ("h100_sxm", "none", 8): (10.9, 14.4, 12.1, 18.9, 18.3, 44.4),
    ("h100_sxm", "fp8", 4): (12.1, 16.1, 12.6, 20.0, 22.1, 50.7),
    ("h200_sxm", "none", 1): (39.6, 58.5, 42.7, 79.2, 62.8, 207),
    ("h200_sxm", "fp8", 8): (8.3, 10.2, 8.7, 12.1, 15.4, 29.2),
    ("b200_sxm", "none", 4): (10.9, 13.9, 11.2, 17.1, 16.7, 39.9),
    ("b200_sxm", "fp8", 4): (9.2, 10.8, 9.4, 12.4, 15.1, 27.8),
}


@pytest.mark.parametrize(("gpu", "quantization", "tp"), PREFILL_MS)
def test_llama_70b_prefill_as_published(gpu, quantization, tp):
    """Sums of aiconfigurator-core 0.12.0's vLLM tables; smoothing moves up to 6 % at 128 and 256 tokens."""
    tables = _tables("llama-3.1-70b", gpu, tp, quantization)
    got = [_prefill_ms(tables, tokens) for tokens in PREFILL_TOKENS]
    assert got == pytest.approx(PREFILL_MS[gpu, quantization, tp], rel=0.02)


@pytest.mark.parametrize(("gpu", "quantization", "tp"), DECODE_MS)
def test_llama_70b_decode_as_published(gpu, quantization, tp):
    """Same source; batches of FP8 on B200 come 3.5 % off because smoothing levels its slow kernels below m = 8."""
    tables = _tables("llama-3.1-70b", gpu, tp, quantization)
    got = [_decode_ms(tables, batch, context) for batch, context in DECODES]
    tolerance = 0.04 if (gpu, quantization) == ("b200_sxm", "fp8") else 0.02
    assert got == pytest.approx(DECODE_MS[gpu, quantization, tp], rel=tolerance)


def test_slow_small_batches_of_fp8_on_b200_are_levelled():
    """The table has 12.2 ms at batch 1 and 7.8 at batch 8; a monotone curve lies between."""
    tables = _tables("llama-3.1-70b", "b200_sxm", 4, "fp8")
    one, eight = _decode_ms(tables, 1, 512), _decode_ms(tables, 8, 512)
    assert 7.8 < one < eight < 1.02 * one < 12.2


def test_block_fp8_on_blackwell_is_priced_with_sglang_gemms():
    """vLLM's own tables give 54 ms for this decode (research, section 5.3)."""
    tables = _tables("qwen3-32b", "b200_sxm", 2, "fp8")
    assert tables.provenance["gemm_tables"].startswith("sglang")
    assert _decode_ms(tables, 32, 2048) == pytest.approx(
        _decode_ms(_tables("qwen3-32b", "b200_sxm", 2, "fp8", "sglang"), 32, 2048), rel=0.2
    )


def test_mla_decode_responds_to_context_in_mixed_passes():
    tables = _tables("deepseek-v3", "h200_sxm", 8, "fp8", enable_expert_parallel=True)
    attention = np.interp([128 * 1024, 128 * 8192], tables.decode_context[128], tables.decode_s[128])
    assert attention[1] > 3 * attention[0] > 0


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("model", ["qwen3-235b-a22b", "deepseek-v3"])
def test_data_parallel_ranks_decode_more_tokens_in_slower_passes(model, engine):
    """Why attention data parallelism is used: 8 ranks of a large batch beat one, and lose at a small one."""
    tensor = _tables(model, "h200_sxm", 8, "fp8", engine, enable_expert_parallel=True)
    ranks = _tables(model, "h200_sxm", 1, "fp8", engine, enable_expert_parallel=True, data_parallel_size=8)
    assert _decode_ms(ranks, 1, 1024) > _decode_ms(tensor, 1, 1024)
    assert 8 * 64 / _decode_ms(ranks, 64, 1024) > 1.3 * 256 / _decode_ms(tensor, 256, 1024)


@pytest.mark.parametrize(("batch", "measured_ms"), [(8, 34.69), (16, 40.62)])
def test_data_parallel_decode_is_near_the_measured(batch, measured_ms):
    """fidelity/measured/runs.csv, ifx-disagg-dsr1-h200-sglang cfg434: 64 and 128 clients on 8 ranks, 8k + 1k."""
    tables = _tables("deepseek-v3", "h200_sxm", 1, "fp8", "sglang", enable_expert_parallel=True, data_parallel_size=8)
    assert _decode_ms(tables, batch, 0.9 * (8192 + 512)) == pytest.approx(measured_ms, rel=0.25)


def test_the_experts_of_all_ranks_share_the_measured_grid():
    pool = {"enable_expert_parallel": True, "quantization": "fp8"}
    limits = [_tables("deepseek-v3", "h200_sxm", 8 // n, data_parallel_size=n, **pool).measured_tokens for n in (1, 8)]
    assert limits == [16384, 16384 // 8]


@pytest.mark.parametrize("path", [path for path in FILES if "a22b" in path.stem or "v3" in path.stem], ids=str)
def test_experts_are_a_growing_part_of_every_data_parallel_row(path):
    pack = load_pack(path)
    for size in pack.sizes:
        tables = pack.tables(size, **LIMITS)
        own = tables.tokens_s - tables.expert_s
        assert (own[1:] > 0).all()
        assert (np.diff(tables.expert_s) >= 0).all()
        assert (tables.expert_s[1:] > 0).all() == (size.data_parallel > 1)


def test_experts_work_on_the_tokens_of_all_ranks_and_attention_does_not():
    """8 ranks: the experts' part grows with the ranks, what is left is a rank's own whatever their number."""
    pool = {"quantization": "fp8", "enable_expert_parallel": True}
    few, many = (_tables("qwen3-235b-a22b", "h200_sxm", 1, data_parallel_size=ranks, **pool) for ranks in (4, 8))
    own = [tables.tokens_s[8192] - tables.expert_s[8192] for tables in (few, many)]
    assert own[1] == pytest.approx(own[0], rel=0.01)
    # twice the tokens on twice the GPUs, and more of them on their way
    assert 1.0 < many.expert_s[8192] / few.expert_s[8192] < 2.0


def test_packs_from_before_data_parallelism_have_one_rank(tmp_path):
    pack = _tiny_pack()
    pack.save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as arrays:
        np.savez(tmp_path / "old.npz", **{name: arrays[name] for name in arrays if name != "data_parallel_sizes"})
    assert load_pack(tmp_path / "old.npz").sizes == pack.sizes


def test_equal_chunks_cost_the_whole_kernel_and_the_floor_is_charged_once():
    tables = _tables("llama-3.1-70b", "h200_sxm", 4)
    pack = load_pack(BUNDLED / "llama-3.1-70b.h200_sxm.vllm.none.npz")
    row, seq = list(pack.tensor_parallel_sizes).index(4), list(pack.sequence).index(512)
    for chunks, whole in zip(pack.chunks.astype(int), pack.prefill_s[row, :, seq], strict=True):
        share = np.interp(512, tables.prefill_seq, tables.prefill_share_s[chunks])
        assert chunks * share == pytest.approx(whole, rel=1e-6)


def test_equal_limits_share_one_expansion():
    assert _tables("llama-3.1-8b", "h100_sxm", 1) is _tables("llama-3.1-8b", "h100_sxm", 1)


def test_interpolation_continues_on_the_last_slope():
    assert interpolate([0, 1, 1.5, 4], [1, 2], [[10.0], [20.0]]).ravel().tolist() == [10, 10, 15, 40]


def test_a_missing_pack_names_the_command(monkeypatch):
    with pytest.raises(TimingError, match=r"dynosim timing build --model llama-3.1-8b --gpu l40s --engine trtllm`"):
        _tables("llama-3.1-8b", "l40s", 1, engine="trtllm")
    key = PackKey("qwen3-30b-a3b", "h100_sxm", "vllm", "fp8", "bf16", True, "0.27.0", mxfp8_activations=True)
    command = key.build_command(Size(16, 2))
    for option in (
        "--quantization fp8",
        "--kv-cache-dtype bf16",
        "--engine-version 0.27.0",
        "--enable-expert-parallel",
        "--mxfp8-activations",
        "--tensor-parallel-size 16",
        "--data-parallel-size 2",
    ):
        assert option in command


def _tiny_pack(**provenance):
    ones = np.ones(2, np.float32)
    return Pack(
        tensor_parallel_sizes=np.array([2]),
        data_parallel_sizes=np.array([1]),
        tokens=np.array([1, 2], np.float32),
        tokens_s=ones[None],
        expert_s=np.zeros((1, 2), np.float32),
        graph_batch=np.array([1, 2], np.float32),
        graph_s=ones[None],
        chunks=np.array([1, 2], np.float32),
        sequence=np.array([16, 32], np.float32),
        prefill_s=np.ones((1, 2, 2), np.float32),
        batch=np.array([1, 2], np.float32),
        context=np.array([1, 2], np.float32),
        decode_s=np.ones((1, 2, 2), np.float32),
        provenance={"measured_tokens": 2, "measured_context": 2, "without_data": {}} | provenance,
    )


def test_user_packs_come_before_the_bundle(tmp_path, monkeypatch):
    key = PackKey("llama-3.1-8b", "h100_sxm", "vllm")
    monkeypatch.chdir(tmp_path)
    assert find_pack(key, Size(2)).path.parent == BUNDLED.resolve()
    _tiny_pack().save(tmp_path / "timing_packs" / key.filename)
    assert find_pack(key, Size(2)).path.parent == tmp_path / "timing_packs"
    assert find_pack(key, Size(1)).path.parent == BUNDLED.resolve()  # the user's has no TP 1
    _tiny_pack().save(tmp_path / "elsewhere" / key.filename)
    monkeypatch.setenv("DYNOSIM_TIMING_PACKS", str(tmp_path / "elsewhere"))
    assert find_pack(key, Size(2)).path.parent == tmp_path / "elsewhere"


def test_a_users_pack_of_older_rules_is_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    key, source = PackKey("llama-3.1-8b", "h100_sxm", "vllm"), "aiconfigurator-core 0.12.0"
    for rules, folder in ((RULES, tmp_path / "timing_packs"), (RULES - 1, BUNDLED.resolve())):
        _tiny_pack(source=source, rules=rules).save(tmp_path / "timing_packs" / key.filename)
        assert find_pack(key, Size(2)).path.parent == folder


def test_a_size_without_data_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    key = PackKey("llama-3.1-8b", "l40s", "vllm")
    _tiny_pack(without_data={"16": "no table"}).save(tmp_path / "timing_packs" / key.filename)
    with pytest.raises(TimingError, match=r"no kernel times for llama-3.1-8b on 16 x l40s.*no table"):
        find_pack(key, Size(16))


def test_saving_and_loading_keeps_everything(tmp_path):
    pack = _tiny_pack(engine="vllm")
    pack.save(tmp_path / "a.npz")
    loaded = load_pack(tmp_path / "a.npz")
    assert json.dumps(loaded.provenance) == json.dumps(pack.provenance)
    assert loaded.decode_s.tolist() == pack.decode_s.tolist()


def test_sizes_join_those_that_a_file_has_unless_they_were_made_otherwise():
    first, second = _tiny_pack(engine="vllm", without_data={"8": "no table"}), _tiny_pack(engine="vllm")
    second = replace(second, tensor_parallel_sizes=np.array([4]), tokens_s=second.tokens_s * 2)
    both = first.joined(second)
    assert both.sizes == [Size(2), Size(4)]
    assert both.tokens_s.tolist() == [[1, 1], [2, 2]]
    assert both.provenance["without_data"] == {"8": "no table"}
    assert first.joined(first).sizes == [Size(2)]
    assert first.joined(_tiny_pack(engine="sglang")).provenance["engine"] == "sglang"
    assert _tiny_pack(engine="sglang").joined(second).sizes == [Size(4)]


def test_all_pools_of_a_deployment_get_their_packs(monkeypatch, tmp_path):
    made = []

    def build_pack(key, sizes):
        made.append((key, list(sizes)))
        pack = _tiny_pack()
        rows = {name: np.repeat(getattr(pack, name), len(sizes), axis=0) for name in BY_SIZE}
        return replace(pack, **rows | {"tensor_parallel_sizes": np.array([size.tensor_parallel for size in sizes])})

    monkeypatch.setitem(sys.modules, "dynosim.timing.aic", SimpleNamespace(build_pack=build_pack))
    monkeypatch.chdir(tmp_path)
    deployment = DeploymentConfig.model_validate(
        {
            "model": "llama-3.1-8b", "gpu": "l4", "quantization": "fp8", "mode": "disaggregated",
            "disaggregated": {"prefill": {"tensor_parallel_size": 2}, "decode": {"tensor_parallel_size": 4}},
        }
    )  # fmt: skip
    plans = pool_plans(deployment).values()
    timing.build_missing(plans)
    assert [sizes for _, sizes in made] == [[Size(2), Size(4)]]
    assert [timing.forward_times(plan).size for plan in plans] == [Size(2), Size(4)]
    timing.build_missing(plans)
    assert len(made) == 1, "nothing is missing any more"


def test_a_file_that_is_no_pack_is_named(tmp_path):
    path = tmp_path / "broken.npz"
    path.write_text("nothing")
    with pytest.raises(TimingError, match=r"broken.npz: not a timing pack"):
        load_pack(path)


def test_building_without_the_extra_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "dynosim.timing.aic", None)
    with pytest.raises(TimingError, match=r"pip install 'dynosim\[aic\]'"):
        timing.build("llama-3.1-8b", "h100_sxm", "vllm", out_dir=tmp_path)
