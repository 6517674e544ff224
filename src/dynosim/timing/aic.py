"""Builds timing packs from the measured kernel tables of NVIDIA's aiconfigurator-core 0.12.0 (extra ``[aic]``).

The library prices a pass as a sum of kernels. This module samples that sum and applies the guard rails that its data
need, as found by reading version 0.12.0's tables:

- GEMMs are read at tile-aligned token counts only. The tables also hold m = k 2^n + 1, just above a tile edge, whose
  times make an interpolated curve jump by up to 90 %. What noise is left is smoothed to a monotone curve.
- vLLM's block-FP8 GEMMs were timed with launch overhead and are priced with SGLang's tables; the weight GEMMs of every
  pack must then reach 25 % of the HBM roofline at m = 8.
- The part of prefill attention that does not grow with the sequence is charged once per pass.
- TensorRT-LLM's experts on Blackwell come from SGLang's tables, which have the precompiled kernels that launch scripts
  choose.
- vLLM's all-reduces of MLA models are in the tables twice.
- MLA blocks contain their projections. They are split into a token-wise part and attention proper, which the library's
  own mixed passes do not do (they drop decode attention).
- Quantisation modes are given, never inferred.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import aiconfigurator_core
import numpy as np
import pyarrow.compute
import pyarrow.parquet
from aiconfigurator_core.sdk import EngineHandle
from aiconfigurator_core.sdk.common import MoEQuantMode
from aiconfigurator_core.sdk.engine import build_ops_json
from aiconfigurator_core.sdk.operations import MoEExpertCompute
from aiconfigurator_core.sdk.perf_database import resolve_query_version
from aiconfigurator_core.sdk.utils import HuggingFaceDownloadError
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from dynosim.engines import ENGINES
from dynosim.errors import TimingError
from dynosim.hardware.gpus import get_gpu
from dynosim.hardware.models import ModelCard, MoE, get_model
from dynosim.timing.pack import RULES, Pack, PackKey, Size, interpolate

SHIPPED_CONFIGS = {
    "llama-3.1-8b": "meta-llama/Meta-Llama-3.1-8B",
    "llama-3.1-70b": "meta-llama/Meta-Llama-3.1-70B",
    "llama-3.1-405b": "meta-llama/Meta-Llama-3.1-405B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "qwen3-32b": "Qwen/Qwen3-32B",
    "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B",
    "qwen3-235b-a22b": "Qwen/Qwen3-235B-A22B",
    "qwen3-coder-480b-a35b": "Qwen/Qwen3-Coder-480B-A35B-Instruct",
    "deepseek-v3": "deepseek-ai/DeepSeek-V3",
    "deepseek-v3.2": "deepseek-ai/DeepSeek-V3.2",
    "glm-5": "zai-org/GLM-5-FP8",
    "qwen3.5-397b-a17b": "Qwen/Qwen3.5-397B-A17B",
    "kimi-k2": "moonshotai/Kimi-K2-Instruct",
    "kimi-k2.5": "moonshotai/Kimi-K2.5",
    "gpt-oss-20b": "openai/gpt-oss-20b",
    "gpt-oss-120b": "openai/gpt-oss-120b",
}
"""Models whose ``config.json`` ships in the wheel and is found there; of others the card is written out as one."""

GEMM_NODES = np.array(
    [1, 2, 4, 8, 16, *range(32, 128, 16), *range(128, 257, 32), *range(512, 4353, 256), 8192, 16384, 32768]
)
"""The tile-aligned token counts of the measured GEMM grid."""
TOKEN_NODES = np.union1d(GEMM_NODES, [320, 384, 6144, 12288])
"""Expert and all-reduce tables have these as well."""
BATCH_NODES = 2 ** np.arange(12)
GRAPH_NODES = TOKEN_NODES[: np.searchsorted(TOKEN_NODES, 2048) + 1]
CONTEXT_NODES = np.union1d([2, 64], np.concatenate([2 ** np.arange(7, 18), 3 * 2 ** np.arange(6, 16)]))
CHUNK_NODES = 2 ** np.arange(7)
SEQUENCE_NODES = np.union1d(
    [16, 32, 64, 128, 192, 256, 384, 512, 640, 768, 896], np.outer(2 ** np.arange(7, 14), np.arange(8, 17))
)
"""Eight per octave from 1024 to 131,072: chords of a quadratic err by at most 0.4 %."""
MLA_SLICE = 256
"""Sequence length at which the attention part of an MLA block is negligible against its projections."""

NARROW_GPUS = 8
"""Most GPUs over which expert-parallel servers gather tokens and leave experts where they are."""
DEEP_EP_NETWORK_BYTES_S = 43e9
DEEP_EP_LATENCY_MS = {"moe_pre_dispatch": 0.118, "moe_post_dispatch": 0.195}
"""DeepEP's measurements between two nodes of H800 (its README): RDMA bandwidth of a GPU, latency of a small dispatch
and combine; hidden states go out in FP8 and come back in bf16."""
ALL_TO_ALL_SHARE = 0.65
ALL_TO_ALL_LATENCY_MS = {"moe_pre_dispatch": 0.021, "moe_post_dispatch": 0.033}
"""All-to-all inside a scale-up domain: share of its link that a large exchange has, and what a small one takes, in the
library's table of TensorRT-LLM's one-sided kernels on GB200 (4 to 64 GPUs)."""

ATTENTION = ("attention", "mla_block")
EXPERTS = ("moe_pre_dispatch", "moe", "moe_post_dispatch")
MIN_ROOFLINE_SHARE = 0.25
SMALLEST_JUDGED_MS = 4e-3
LIBRARY_ERRORS = (ValueError, KeyError, RuntimeError, AssertionError, HuggingFaceDownloadError)
"""What the library raises for a configuration it cannot price (its error classes derive from these)."""

Array = NDArray[np.float64]
Operations = dict[str, float]


def build_pack(key: PackKey, sizes: Iterable[Size]) -> Pack:
    """Measure *key* at each size that has data; TimingError when none has."""
    rows, reasons = {}, {}
    for size in sizes:
        try:
            rows[size] = _sampled(key, size)
        except (TimingError, *LIBRARY_ERRORS) as error:
            reasons[size.label] = (str(error).splitlines() or [type(error).__name__])[0]
    if not rows:
        raise TimingError(f"aiconfigurator-core has no data for {key.stem}: {next(iter(reasons.values()))}")
    tables = {
        name: np.stack([row[name] for row in rows.values()]).astype(np.float32)
        for name in ("tokens_s", "expert_s", "graph_s", "prefill_s", "decode_s")
    }
    nodes = {
        "tokens": TOKEN_NODES,
        "graph_batch": GRAPH_NODES,
        "chunks": CHUNK_NODES,
        "sequence": SEQUENCE_NODES,
        "batch": BATCH_NODES,
        "context": CONTEXT_NODES,
    }
    return Pack(
        tensor_parallel_sizes=np.array([size.tensor_parallel for size in rows]),
        data_parallel_sizes=np.array([size.data_parallel for size in rows]),
        provenance=_provenance(key) | {"without_data": reasons},
        **{name: values.astype(np.float32) for name, values in nodes.items()},
        **tables,
    )


def _sampled(key: PackKey, size: Size) -> dict[str, Array]:
    """Return the row of *size*; expert groups are measured at powers of two, others lie between two of them."""
    ranks = size.data_parallel
    if not key.expert_parallel or ranks & (ranks - 1) == 0:
        return _Sampler(key, size).sample()
    below = 2 ** (ranks.bit_length() - 1)
    low, high = (_Sampler(key, size._replace(data_parallel=near)).sample() for near in (below, 2 * below))
    return {name: low[name] + (ranks / below - 1.0) * (high[name] - low[name]) for name in low}


@dataclass(frozen=True)
class Kernels:
    """The compiled engine of one configuration: milliseconds of each kernel of a pass."""

    handle: EngineHandle
    expert_tp: int = 1
    """Slices of each expert; the GPUs hold 1 / (size / expert_tp) of the experts."""

    @classmethod
    def compile(cls, key: PackKey, size: Size, engine: str) -> Kernels:
        """Return the kernels of the layout that the tables have, experts sliced as far as they tell of.

        Some experts are not measured in narrow slices (block FP8 that 128 does not divide). Whole experts on fewer GPUs
        each read as many bytes and compute as much per GPU.
        """
        gpus, moe = size.gpus, get_model(key.model).moe is not None
        slices = [gpus >> i for i in range(gpus.bit_length())] if moe and not key.expert_parallel else [1]
        for expert_tp in slices:
            try:
                kernels = cls(cls._handle(key, size, engine, expert_tp, gpus // expert_tp if moe else 1), expert_tp)
                kernels.prefill(1, 8)
                return kernels
            except LIBRARY_ERRORS:
                if expert_tp == slices[-1]:
                    raise
        raise AssertionError("the last slice returned or raised")

    @staticmethod
    def _handle(key: PackKey, size: Size, engine: str, expert_tp: int, expert_ep: int) -> EngineHandle:
        return EngineHandle.compile(
            _model_path(key.model),
            key.gpu,
            engine,
            backend_version=key.version,
            tp_size=size.tensor_parallel,
            attention_dp_size=size.data_parallel,
            moe_tp_size=expert_tp,
            moe_ep_size=expert_ep,
            **quant_modes(key, engine),
        )

    def prefill(self, chunks: int, new: int, cached: int = 0) -> Operations:
        """Kernels of a pass of *chunks* chunks with *new* tokens behind *cached* each."""
        ops, _ = self.handle.run_static_per_op(
            batch_size=chunks, isl=new + cached, osl=1, prefix=cached, mode="static_ctx"
        )
        return {name.removeprefix("context_"): latency for name, latency, *_ in ops}

    def decode(self, batch: int, context: int) -> Operations:
        """Kernels of a decode pass of *batch* requests whose contexts, the new token included, are *context* long."""
        _, ops = self.handle.run_static_per_op(batch_size=batch, isl=context - 1, osl=2, mode="static_gen")
        return {name.removeprefix("generation_"): latency for name, latency, *_ in ops}


@lru_cache
def _model_path(name: str) -> str:
    """Return what the library calls the model: a hub id, or a folder with the card as a ``config.json``."""
    if name in SHIPPED_CONFIGS:
        return SHIPPED_CONFIGS[name]
    model = get_model(name)
    if model.mla or model.sliding_window_layers or (model.moe and (model.moe.shared_experts or model.moe.dense_layers)):
        raise TimingError(f"aiconfigurator-core has no architecture with the layers of {name}")
    config: dict[str, Any] = {
        "architectures": ["Qwen3ForCausalLM" if model.qk_norm else "LlamaForCausalLM"],
        "num_hidden_layers": model.layers,
        "hidden_size": model.hidden,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.intermediate,
        "vocab_size": model.vocabulary,
        "max_position_embeddings": 131072,
    }
    if model.moe is not None:
        config |= {
            "architectures": ["MixtralForCausalLM"],
            "num_local_experts": model.moe.experts,
            "num_experts_per_tok": model.moe.top_k,
            "intermediate_size": model.moe.intermediate,
        }
    folder = Path(tempfile.mkdtemp(prefix="dynosim-")) / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def quant_modes(key: PackKey, engine: str) -> dict[str, str]:
    """Return the library's precision modes; the kernels that each engine picks for the published checkpoints."""
    model, kernels = get_model(key.model), ENGINES[engine]["current"].kernels
    fp8 = "fp8_block" if model.fp8_block else "fp8_static"
    gemm = {"none": "bfloat16", "fp8": fp8, "nvfp4": "nvfp4"}[key.quantization]
    experts = {"fp8_static": "fp8"}.get(gemm, gemm)
    if model.mla is not None and key.quantization == "nvfp4":
        gemm = "bfloat16"  # NVFP4 checkpoints leave latent attention as it is
    if model.mla is not None and key.quantization == "none" and model.moe and model.moe.native_bytes < 1:
        experts = "int4_wo"
    elif key.quantization == "none" and model.moe is not None and model.moe.native_bytes < 1:
        blackwell = "fp4" in get_gpu(key.gpu).flops
        experts = "w4a8_mxfp4_mxfp8" if blackwell and kernels.mxfp8_experts else "w4a16_mxfp4"
    kv_fp8 = key.quantization != "none" if key.kv_cache_dtype == "auto" else key.kv_cache_dtype == "fp8"
    # MLA attention computes in bf16 whatever the cache holds; the tables have nothing else.
    fp8_attention = kv_fp8 and kernels.fp8_attention and model.mla is None
    return {
        "gemm_quant_mode": gemm,
        "moe_quant_mode": experts,
        "kvcache_quant_mode": "fp8" if kv_fp8 else "bfloat16",
        "fmha_quant_mode": "fp8" if fp8_attention else "bfloat16",
    }


def gemm_engine(key: PackKey) -> str:
    """Return the engine whose GEMM tables price *key*."""
    block_fp8 = key.quantization == "fp8" and get_model(key.model).fp8_block is not None
    return (block_fp8 and ENGINES[key.engine]["current"].kernels.block_fp8_gemms_of) or key.engine


def expert_engine(key: PackKey, size: Size) -> str:
    """Return the engine whose tables price the experts of *key*."""
    kernels, architecture = ENGINES[key.engine]["current"].kernels, get_gpu(key.gpu).architecture
    if key.mxfp8_activations:
        return kernels.mxfp8_experts_of or key.engine
    if architecture == "sm90" and quant_modes(key, key.engine)["moe_quant_mode"] == "w4a16_mxfp4":
        return kernels.hopper_mxfp4_experts_of or key.engine
    chosen = get_model(key.model).runs_trtllm_gen(architecture, key.quantization, *size)
    return (chosen and kernels.trtllm_gen_experts_of) or key.engine


class _Sampler:
    """Samples one parallel size: one row of a pack."""

    def __init__(self, key: PackKey, size: Size) -> None:
        self.key, self.size, self.model = key, size, get_model(key.model)
        self.kernels = Kernels.compile(key, size, key.engine)
        self.bf16_cache = self._with_bf16_cache()
        donors = {"_gemm": gemm_engine(key), "moe": expert_engine(key, size), "moe_overlap": self._overlap_engine()}
        self.donors = {
            ending: Kernels.compile(key, size, engine) for ending, engine in donors.items() if engine != key.engine
        }

    def _overlap_engine(self) -> str:
        """The one whose experts or whose GEMMs run beside them: decodes tell of both in one number."""
        experts = expert_engine(self.key, self.size)
        return gemm_engine(self.key) if experts == self.key.engine else experts

    def _with_bf16_cache(self) -> Kernels | None:
        """The same with a bf16 cache, where latent attention has an FP8 one: some tables of that are several times
        slower, and an engine takes the faster kernel."""
        if self.model.mla is None or quant_modes(self.key, self.key.engine)["kvcache_quant_mode"] != "fp8":
            return None
        return Kernels.compile(replace(self.key, kv_cache_dtype="bf16"), self.size, self.key.engine)

    def _decode_block(self, batch: int, context: int) -> float:
        found = _block(self.kernels.decode(batch, context))
        return min(found, _block(self.bf16_cache.decode(batch, context))) if self.bf16_cache else found

    def sample(self) -> dict[str, Array]:
        """Return the tables in seconds; TimingError where the GEMM times are not plausible."""
        self._check_gemms()
        if self.model.mla is None:
            passes, graphs, prefill, decode = self._sample_attention()
        else:
            passes, graphs, prefill, decode = self._sample_mla()
        token_wise = _monotone(self._token_wise(self._prefill_operations, TOKEN_NODES) + passes)
        milliseconds = {
            "tokens_s": token_wise,
            "expert_s": np.minimum(_monotone(self._experts(TOKEN_NODES)), token_wise),
            "graph_s": _monotone(self._token_wise(self._decode_operations, GRAPH_NODES) + graphs),
            "prefill_s": _monotone(prefill),
            "decode_s": _monotone(decode),
        }
        return {name: table / 1e3 for name, table in milliseconds.items()}

    def _prefill_operations(self, tokens: int) -> Operations:
        own = self._of_donors(lambda of: self._across_nodes(of, of.prefill(1, tokens), tokens, "context"))
        return own | self._all_reduces(own, tokens)

    def _decode_operations(self, batch: int) -> Operations:
        context = int(CONTEXT_NODES[0])
        return self._of_donors(lambda of: self._across_nodes(of, of.decode(batch, context), batch, "generation"))

    def _once(self, operations: Operations) -> Operations:
        """Leave out vLLM's all-reduces of models with latent attention where they are those before and after the
        experts over again."""
        if self.size.data_parallel > 1:
            return operations
        return {name: time for name, time in operations.items() if name != "tp_allreduce"}

    def _all_reduces(self, own: Operations, tokens: int) -> Operations:
        """Large all-reduces over several nodes: each node reduces first and every GPU sends its share through its own
        port. The tables send all of them through one."""
        domain = get_gpu(self.key.gpu).scale_up_gpus
        if self.size.tensor_parallel <= domain or self.size.data_parallel > 1 or self.key.expert_parallel:
            return {}
        inside = Kernels.compile(self.key, self.size._replace(tensor_parallel=domain), self.key.engine)
        nodes = self.size.tensor_parallel / domain
        sent = 2 * (1 - 1 / nodes) * 2 * tokens * self.model.hidden / domain / DEEP_EP_NETWORK_BYTES_S * 1e3
        small, reduced = self.kernels.prefill(1, 1), inside.prefill(1, tokens)
        return {
            name: min(own[name], small[name] + reduced[name] + self.model.layers * sent)
            for name in ("moe_pre_dispatch", "moe_post_dispatch", "ar_1", "ar_2")
            if name in own
        }

    def _across_nodes(self, kernels: Kernels, operations: Operations, tokens: int, phase: str) -> Operations:
        """Price expert parallelism beyond a node as engines run it: all-to-all instead of gathering every token on
        every GPU, 10 times as many bytes, and redundant experts that even out what the GPUs have to do."""
        if not (self.key.expert_parallel and self.model.moe and self.size.gpus > NARROW_GPUS):
            return operations
        wide = self._exchange(tokens, self.model.moe) | self._even_experts(tokens, phase, self.model.moe)
        if "moe_overlap" not in operations:
            return operations | wide
        # Decodes tell of the experts, their exchange and what runs beside them in one number.
        told = kernels.prefill(1, tokens)
        overlap = max(operations["moe_overlap"] - sum(told[name] for name in wide), 0.0) + sum(wide.values())
        return operations | {"moe_overlap": overlap}

    def _exchange(self, tokens: int, moe: MoE) -> Operations:
        """A token is sent once to each node, or each GPU of a scale-up domain, that has an expert for it."""
        gpu, gpus = get_gpu(self.key.gpu), self.size.gpus
        inside = gpus <= gpu.scale_up_gpus
        peers = gpus if inside else -(-gpus // gpu.scale_up_gpus)
        bandwidth = ALL_TO_ALL_SHARE * gpu.nvlink_bytes_s if inside else DEEP_EP_NETWORK_BYTES_S
        reached = (peers - 1) * (1.0 - (1.0 - 1.0 / peers) ** moe.top_k)
        sent = tokens / self.size.tensor_parallel * self.model.hidden * reached / bandwidth * 1e3
        dispatched = 9 / 16 if inside and self.key.quantization == "nvfp4" else 1.0
        sizes = {"moe_pre_dispatch": dispatched, "moe_post_dispatch": 2.0}
        each = {
            name: ALL_TO_ALL_LATENCY_MS[name] + sent * size if inside else max(DEEP_EP_LATENCY_MS[name], sent * size)
            for name, size in sizes.items()
        }
        return {name: (self.model.layers - moe.dense_layers) * time for name, time in each.items()}

    def _even_experts(self, tokens: int, phase: str, moe: MoE) -> Operations:
        """Experts under load balancing, where the tables have them; vLLM's DeepGEMM kernels are SGLang's."""
        handle = self.donors.get("moe_overlap", self.kernels).handle
        own = ENGINES[self.key.engine]["current"].kernels.evened_experts
        experts = MoEExpertCompute(
            "moe",
            self.model.layers - moe.dense_layers,
            hidden_size=self.model.hidden,
            inter_size=moe.intermediate,
            topk=moe.top_k,
            num_experts=moe.experts,
            moe_ep_size=self.size.gpus,
            quant_mode=MoEQuantMode[quant_modes(self.key, self.key.engine)["moe_quant_mode"]],
            workload_distribution=own or "power_law_0.6",
            attention_dp_size=self.size.data_parallel,
            inference_phase=phase,
            is_gated=True,
            enable_eplb=own is None,
        )
        context = phase == "context"
        batch, length = (1, tokens) if context else (tokens, 1)
        try:
            (found,) = handle.evaluate_ops_json(
                build_ops_json([experts]), is_context=context, batch_size=batch, s=length, x=tokens
            )
        except LIBRARY_ERRORS:
            return {}
        return {"moe": found[1]}

    def _of_donors(self, query: Callable[[Kernels], Operations]) -> Operations:
        """Take from each donor engine the kernels whose names end as it says."""
        own = self._once(query(self.kernels))
        for ending, donor in self.donors.items():
            own = own | {name: time for name, time in query(donor).items() if name in own and name.endswith(ending)}
        return own

    @staticmethod
    def _token_wise(operations: Callable[[int], Operations], nodes: NDArray[np.int64]) -> Array:
        """Sum everything but attention, GEMMs interpolated between tile-aligned nodes."""
        passes = {int(tokens): operations(int(tokens)) for tokens in nodes}
        aligned = [tokens for tokens in passes if tokens in GEMM_NODES]
        gemms = [sum(time for name, time in passes[tokens].items() if name.endswith("_gemm")) for tokens in aligned]
        others = [
            sum(time for name, time in ops.items() if not name.endswith("_gemm") and name not in ATTENTION)
            for ops in passes.values()
        ]
        token_wise: Array = interpolate(nodes, aligned, gemms) + np.array(others)
        return token_wise

    def _experts(self, nodes: NDArray[np.int64]) -> Array:
        passes = (self._prefill_operations(int(tokens)) for tokens in nodes)
        return np.array([sum(ops.get(name, 0.0) for name in EXPERTS) for ops in passes])

    def _sample_attention(self) -> tuple[Array, Array, Array, Array]:
        """Per-pass constant of prefill attention (ms), nothing for graphs, C without that constant, and G.

        The library scales attention behind c cached tokens by 1 - (c / s)^2 but for the constant: two queries give it.
        """
        cached, new = 1536, 512
        seen = 1.0 - (cached / (cached + new)) ** 2
        whole, part = (self.kernels.prefill(1, n, c)["attention"] for n, c in ((cached + new, 0), (new, cached)))
        constant = np.array((part - whole * seen) / (1.0 - seen))
        prefill = [[self.kernels.prefill(int(k), int(s))["attention"] for s in SEQUENCE_NODES] for k in CHUNK_NODES]
        decode = [[self.kernels.decode(int(b), int(c))["attention"] for c in CONTEXT_NODES] for b in BATCH_NODES]
        return constant, np.zeros(1), np.maximum(np.array(prefill) - constant, 0.0), np.array(decode)

    def _sample_mla(self) -> tuple[Array, Array, Array, Array]:
        """Projections of prefill and of decode passes (ms by tokens), then C and G without them."""
        slices = [_block(self.kernels.prefill(max(int(t) // MLA_SLICE, 1), min(int(t), MLA_SLICE))) for t in GEMM_NODES]
        projections = _monotone(np.array(slices))
        whole = [_block(self.kernels.prefill(1, int(s))) for s in SEQUENCE_NODES]
        prefill = np.maximum(np.array(whole) - interpolate(SEQUENCE_NODES, GEMM_NODES, projections), 0.0)
        decode = np.array([[self._decode_block(int(b), int(c)) for c in CONTEXT_NODES] for b in BATCH_NODES])
        return (
            interpolate(TOKEN_NODES, GEMM_NODES, projections),
            interpolate(GRAPH_NODES, BATCH_NODES, decode[:, 0]),
            np.multiply.outer(CHUNK_NODES.astype(float), prefill),
            np.maximum(decode - decode[:, :1], 0.0),
        )

    def _check_gemms(self) -> None:
        """Refuse weight GEMMs below a quarter of the memory roofline at m = 8: they were timed with launch overhead.

        Judged on matrices that take at least 4 us to read: smaller ones are launch-bound on a real engine too.
        """
        operations = self._prefill_operations(8)
        weight_bytes = {"none": 2, "fp8": 1, "nvfp4": 9 / 16}[self.key.quantization]
        bandwidth_ms = get_gpu(self.key.gpu).memory_bandwidth_bytes_s / 1e3
        bounds = {
            name: n * k * weight_bytes / bandwidth_ms
            for name, (n, k) in gemm_shapes(self.model, self.size.tensor_parallel).items()
            if name in operations
        }
        large = [name for name, bound in bounds.items() if bound >= SMALLEST_JUDGED_MS]
        if not large:
            return
        share = self.model.layers * sum(bounds[name] for name in large) / sum(operations[name] for name in large)
        if share < MIN_ROOFLINE_SHARE:
            raise TimingError(
                f"the weight GEMMs reach {share:.0%} of the memory roofline at 8 tokens"
                f" (at least {MIN_ROOFLINE_SHARE:.0%} is plausible): measured with launch overhead"
            )


def _block(operations: Operations) -> float:
    """Return the latent-attention block, projections included; sparse attention has it under another name."""
    return operations["mla_block"] if "mla_block" in operations else operations["attention"]


def gemm_shapes(model: ModelCard, tensor_parallel_size: int) -> Mapping[str, tuple[int, int]]:
    """Return (n, k) of each weight GEMM on one GPU, by the library's names; MLA projections are not among them."""
    tp, kv_heads = tensor_parallel_size, -(-model.kv_heads // tensor_parallel_size)
    shapes = {}
    if model.mla is None:
        shapes["qkv_gemm"] = ((model.heads // tp + 2 * kv_heads) * model.head_dim, model.hidden)
        shapes["proj_gemm"] = (model.hidden, model.heads * model.head_dim // tp)
    width = model.moe.shared_experts * model.moe.intermediate if model.moe else model.intermediate
    prefix = "shared_gate_up" if model.moe else "gate_ffn1"
    shapes[f"{prefix}_gemm"] = (2 * width // tp, model.hidden)
    shapes["shared_ffn2_gemm" if model.moe else "ffn2_gemm"] = (model.hidden, width // tp)
    return shapes


def _monotone(table: Array) -> Array:
    """Return the nearest table that does not decrease along any axis (isotonic regression, one axis at a time).

    Isotonic regression preserves order, so the second axis does not undo the first.
    """
    for axis in reversed(range(table.ndim)):
        table = np.asarray(np.apply_along_axis(lambda line: isotonic_regression(line).x, axis, table))
    return table


def _provenance(key: PackKey) -> dict[str, Any]:
    gemms, experts = gemm_engine(key), expert_engine(key, Size(1))
    engines = {key.engine, gemms, experts}
    measured = {engine: resolve_query_version(key.gpu, engine, key.version) for engine in engines}
    moe = get_model(key.model).moe is not None
    expert_tokens = _grid_limit(key, measured, "moe/moe_perf", "num_tokens") if moe else 0
    tokens = (_grid_limit(key, measured, "gemm/gemm_perf", "m"), expert_tokens)
    contexts = [
        _grid_limit(key, measured, f"{family}_perf", "step")
        for family in ("attention/generation_attention", "mla/mla_generation_module", "mla/generation_mla")
        if ("mla/" in family) == (get_model(key.model).mla is not None)
    ]
    return {
        "source": f"aiconfigurator-core {installed_version('aiconfigurator-core')}",
        "license": "Apache-2.0; derived from NVIDIA aiconfigurator-core tables, changed: sampled, smoothed, recombined",
        "copyright": "Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES. All rights reserved.",
        "rules": RULES,
        "system": key.gpu,
        "engine": key.engine,
        "engine_version": measured[key.engine],
        "gemm_tables": f"{gemms} {measured[gemms]}",
        **({"expert_tables": f"{experts} {measured[experts]}"} if experts != key.engine else {}),
        "quant_modes": quant_modes(key, key.engine),
        "measured_tokens": min(limit for limit in tokens if limit),
        **({"measured_expert_tokens": expert_tokens} if expert_tokens else {}),
        "measured_context": max(limit for limit in contexts if limit),
    }


def _grid_limit(key: PackKey, versions: Mapping[str, str], table: str, column: str) -> int:
    """Return the largest value of *column* in a measured table, 0 where this engine version has no such table."""
    family, file = table.split("/")
    root = Path(aiconfigurator_core.__file__).parent / "systems" / "data"
    path = root / key.gpu / family / key.engine / versions[key.engine] / f"{file}.parquet"
    if not path.is_file():
        return 0
    return int(pyarrow.compute.max(pyarrow.parquet.read_table(path, columns=[column])[column]).as_py())
