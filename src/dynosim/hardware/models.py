"""Model cards: the dimensions of decoder-only transformers, and every weight matrix that follows from them.

One inventory of weights serves memory (bytes per GPU), roofline (FLOPs per token) and the tests (published parameter
counts). Vision towers, multi-token-prediction heads and FP8 block scales (0.02 % of the weights) are left out.

Sources: each model's ``config.json`` on the Hugging Face Hub; tensor-parallel layout as in vLLM's model definitions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import Literal

from pydantic import ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt

from dynosim import plugins
from dynosim.errors import ConfigError, nearest
from dynosim.hardware.cards import load_card

Role = Literal["embedding", "head", "attention", "mlp", "expert", "router", "norm"]


@dataclass(frozen=True)
class Weight:
    """All copies of one kind of weight matrix over the layers of the model."""

    role: Role
    parameters: int
    max_shards: int | None = None
    """Most tensor-parallel slices it can be cut into; further GPUs hold copies. None is no limit, 1 is replicated."""
    fp8: bool = True
    """Whether an FP8 checkpoint stores it in FP8."""
    nvfp4: bool = True
    """Whether an NVFP4 checkpoint stores it in FP4, where an FP8 one stores it in FP8."""
    native_bytes: float = 2.0
    """Bytes per parameter of the unquantised checkpoint."""

    def bytes_per_gpu(self, tensor_parallel_size: float, quantization: str) -> float:
        """Bytes that one of *tensor_parallel_size* GPUs holds."""
        shards = min(tensor_parallel_size, self.max_shards or tensor_parallel_size)
        return self.parameters / shards * self.bytes_per_parameter(quantization)

    def bytes_per_parameter(self, quantization: str) -> float:
        """1 for FP8 matrices, 9/16 for NVFP4 ones (a scale byte per 16), else the checkpoint's own precision."""
        if quantization == "nvfp4" and self.fp8 and self.nvfp4:
            return 9 / 16
        return 1.0 if quantization == "fp8" and self.fp8 else self.native_bytes


@dataclass(frozen=True)
class MLA:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): one compressed KV vector per token."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    q_lora_rank: NonNegativeInt
    """0: queries are projected at once (DeepSeek-V2-Lite)."""
    kv_lora_rank: PositiveInt
    nope_head_dim: PositiveInt
    rope_head_dim: PositiveInt
    v_head_dim: PositiveInt


@dataclass(frozen=True)
class MoE:
    """Sparse feed-forward layers: *top_k* of *experts* per token, plus shared experts that always run."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    experts: PositiveInt
    top_k: PositiveInt
    intermediate: PositiveInt
    shared_experts: NonNegativeInt = 0
    dense_layers: NonNegativeInt = 0
    """Layers with an ordinary feed-forward block: the leading ones."""
    interleaved: bool = False
    """Dense layers lie evenly among the others instead (Llama 4)."""
    router_bias: bool = False
    native_bytes: PositiveFloat = 2.0
    """Bytes per expert parameter of the published checkpoint: 4.25 bits for MXFP4."""
    expert_biases: bool = False

    def dense_before(self, layer: int, layers: int) -> int:
        """Return how many of the first *layer* of *layers* layers are dense."""
        return -(-layer * self.dense_layers // layers) if self.interleaved else min(layer, self.dense_layers)


@dataclass(frozen=True)
class ModelCard:
    """Dimensions of one model; names follow ``config.json``. A card file has these fields."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    layers: PositiveInt
    hidden: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    intermediate: PositiveInt
    vocabulary: PositiveInt
    aliases: tuple[str, ...] = ()
    """Hugging Face ids; launch scripts name the first."""
    qk_norm: bool = False
    attention_bias: bool = False
    """Biases on Q, K, V and O, and one attention sink per head (gpt-oss)."""
    sliding_window_layers: NonNegativeInt = 0
    """Layers that keep only a short window, whose KV cache does not grow with the context."""
    linear_attention: bool = False
    """Those layers keep a state of fixed size instead, and no cache of tokens."""
    mla: MLA | None = None
    moe: MoE | None = None
    fp8_block: int | None = None
    """Block size of the FP8 checkpoint's weight scales; none for per-tensor scales."""
    fp8_checkpoint: bool = True
    """Whether an FP8 checkpoint exists."""
    tied: bool = False
    """Embedding and vocabulary projection are one matrix."""
    embeds: bool = True
    predicts: bool = True
    """Whether the first and last layers' surroundings are here: not on every stage of a pipeline."""

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads: {self.heads}: allowed: a multiple of kv_heads, {self.kv_heads}")

    @property
    def parameters(self) -> int:
        """Total parameter count."""
        return sum(weight.parameters for weight in self.weights())

    @property
    def active_parameters(self) -> float:
        """Parameters that multiply each token: without the embedding look-up, and only the experts it is sent to."""
        share = {"embedding": 0.0, "expert": self.moe.top_k / self.moe.experts if self.moe else 1.0}
        return sum(weight.parameters * share.get(weight.role, 1.0) for weight in self.weights())

    @property
    def dense_intermediate(self) -> int:
        """Width of what every token passes: the feed-forward block, or the shared experts."""
        if self.moe is None or self.moe.dense_layers:
            return self.intermediate
        return self.moe.shared_experts * self.moe.intermediate

    def weights(self) -> tuple[Weight, ...]:
        """Every weight of the model, norms and biases included."""
        table = self.vocabulary * self.hidden
        norms = self.layers * self._norm_parameters() + (self.hidden if self.predicts else 0)
        return (
            *((Weight("embedding", table, fp8=False),) if self.embeds and not (self.tied and self.predicts) else ()),
            *((Weight("head", table, fp8=False),) if self.predicts else ()),
            Weight("norm", norms, max_shards=1, fp8=False),
            *(self._gqa_weights() if self.mla is None else self._mla_weights(self.mla)),
            *self._feed_forward_weights(),
        )

    def runs_trtllm_gen(self, architecture: str, quantization: str, tensor_parallel: int, data_parallel: int) -> bool:
        """Whether launch scripts of TensorRT-LLM choose its precompiled expert kernels ("trtllm-gen").

        On data-centre Blackwell for block-scaled FP8 and NVFP4 (InferenceX ``dsr1_fp{4,8}_b200_trt.sh``), but not under
        attention data parallelism, where CUTLASS and DeepGEMM have more throughput. NVFP4 experts of DeepSeek inside a
        node are an exception: their CUTLASS table reaches 42 % of the memory roofline at 256 tokens, that of the
        precompiled kernels 83 %, and servers are faster than the former allows.
        """
        nvfp4 = quantization == "nvfp4"
        scaled = nvfp4 or (quantization == "fp8" and self.fp8_block is not None)
        exception = nvfp4 and self.mla is not None and tensor_parallel * data_parallel <= 8
        blackwell = architecture in ("sm100", "sm103")
        return self.moe is not None and blackwell and scaled and (data_parallel == 1 or exception)

    def stages(self, count: int) -> tuple[ModelCard, ...]:
        """Return the layers cut into *count* pipeline stages, as vLLM and SGLang cut them (``get_pp_indices``).

        Equal parts; layers left over go to the stages before the last, which has the vocabulary projection.
        """
        each, more = divmod(self.layers, count)
        sizes = [each + (count - 1 - more <= stage < count - 1) for stage in range(count)]
        ends = [0, *accumulate(sizes)]
        return tuple(self._slice(*span, first=span[0] == 0, last=span[1] == self.layers) for span in pairwise(ends))

    def _slice(self, start: int, end: int, first: bool, last: bool) -> ModelCard:
        windows = [-(-at * self.sliding_window_layers // self.layers) for at in (start, end)]
        moe = self.moe
        if moe is not None:
            moe = replace(moe, dense_layers=moe.dense_before(end, self.layers) - moe.dense_before(start, self.layers))
        return replace(
            self,
            layers=end - start,
            sliding_window_layers=windows[1] - windows[0],
            moe=moe,
            embeds=first,
            predicts=last,
        )

    def _norm_parameters(self) -> int:
        per_layer = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return per_layer + (self.mla.q_lora_rank + self.mla.kv_lora_rank if self.mla else 0)

    def _gqa_weights(self) -> tuple[Weight, ...]:
        q_width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        query_and_output = 2 * self.hidden * q_width
        key_and_value = 2 * self.hidden * kv_width
        biases = self.layers * (q_width + 2 * kv_width + self.hidden + self.heads) if self.attention_bias else 0
        return (
            Weight("attention", self.layers * query_and_output, fp8=self.fp8_checkpoint),
            Weight("attention", self.layers * key_and_value, self.kv_heads, fp8=self.fp8_checkpoint),
            *((Weight("norm", biases, max_shards=1, fp8=False),) if biases else ()),
        )

    def _mla_weights(self, mla: MLA) -> tuple[Weight, ...]:
        down = self.hidden * (mla.q_lora_rank + mla.kv_lora_rank + mla.rope_head_dim)
        query_up = (mla.q_lora_rank or self.hidden) * self.heads * (mla.nope_head_dim + mla.rope_head_dim)
        kv_up = mla.kv_lora_rank * self.heads * (mla.nope_head_dim + mla.v_head_dim)
        output = self.heads * mla.v_head_dim * self.hidden
        return (
            Weight("attention", self.layers * down, max_shards=1, nvfp4=False),
            Weight("attention", self.layers * (query_up + kv_up), self.heads, nvfp4=False),
            Weight("attention", self.layers * output, self.heads),
        )

    def _feed_forward_weights(self) -> tuple[Weight, ...]:
        dense_layers = self.layers if self.moe is None else self.moe.dense_layers
        dense = Weight("mlp", dense_layers * 3 * self.hidden * self.intermediate)
        if self.moe is None:
            return (dense,)
        moe, layers = self.moe, self.layers - dense_layers
        expert = 3 * self.hidden * moe.intermediate
        expert_bias = 2 * moe.intermediate + self.hidden if moe.expert_biases else 0
        router = self.hidden * moe.experts + (moe.experts if moe.router_bias else 0)
        return (
            dense,
            Weight("mlp", layers * moe.shared_experts * expert),
            Weight("expert", layers * moe.experts * expert, native_bytes=moe.native_bytes),
            Weight("norm", layers * moe.experts * expert_bias, fp8=False),
            Weight("router", layers * router, max_shards=1, fp8=False),
        )


def _dense(
    name: str,
    hub: tuple[str, ...],
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    intermediate: int,
    vocabulary: int,
) -> ModelCard:
    return ModelCard(name, layers, hidden, heads, kv_heads, 128, intermediate, vocabulary, aliases=hub)


def _qwen2(size: str, layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, *more: str) -> ModelCard:
    hub = f"Qwen/Qwen2.5-{size.upper()}"
    names = (hub, f"{hub}-Instruct", f"Qwen/Qwen2.5-Coder-{size.upper()}", *more)
    return _dense(f"qwen2.5-{size}", names, layers, hidden, heads, kv_heads, intermediate, 152064)


def _llama(name: str, hub_size: str, layers: int, hidden: int, heads: int, intermediate: int, *more: str) -> ModelCard:
    hub = (f"meta-llama/Llama-3.1-{hub_size}", f"meta-llama/Meta-Llama-3.1-{hub_size}")
    aliases = (*hub, *(f"{hub_name}-Instruct" for hub_name in hub), *more)
    return ModelCard(name, layers, hidden, heads, 8, 128, intermediate, 128256, aliases=aliases)


def _qwen3(
    name: str, layers: int, hidden: int, heads: int, intermediate: int, moe: MoE | None = None, *more: str
) -> ModelCard:
    hub = "Qwen/Qwen3-" + name.removeprefix("qwen3-").upper().replace("CODER", "Coder")
    hub += "-Instruct" if "Coder" in hub else ""
    return ModelCard(
        name, layers, hidden, heads, 4 if moe and heads <= 64 else 8, 128, intermediate, 151936,
        aliases=(hub, f"{hub}-FP8", *more), qk_norm=True, moe=moe, fp8_block=128,
    )  # fmt: skip


_DEEPSEEK_V3 = ModelCard(
    "deepseek-v3",
    aliases=("deepseek-r1", "deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V3-0324", "deepseek-ai/DeepSeek-V3.1",
     "deepseek-ai/DeepSeek-V3.1-Terminus", "deepseek-ai/DeepSeek-R1",
     "deepseek-ai/DeepSeek-R1-0528"),
    layers=61, hidden=7168, heads=128, kv_heads=128, head_dim=56, intermediate=18432, vocabulary=129280,
    fp8_block=128, mla=MLA(1536, 512, 128, 64, 128),
    moe=MoE(experts=256, top_k=8, intermediate=2048, shared_experts=1, dense_layers=3, router_bias=True),
)  # fmt: skip
_MIXTRAL = ModelCard(
    "mixtral-8x7b",
    aliases=("mistralai/Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
    layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, intermediate=14336, vocabulary=32000,
    moe=MoE(experts=8, top_k=2, intermediate=14336),
)  # fmt: skip
_MIXTRAL_22B = ModelCard(
    "mixtral-8x22b",
    aliases=("mistralai/Mixtral-8x22B-v0.1", "mistralai/Mixtral-8x22B-Instruct-v0.1"),
    layers=56, hidden=6144, heads=48, kv_heads=8, head_dim=128, intermediate=16384, vocabulary=32768,
    moe=MoE(experts=8, top_k=2, intermediate=16384),
)  # fmt: skip
_KIMI_K2 = ModelCard(
    "kimi-k2",
    aliases=("moonshotai/Kimi-K2-Instruct", "moonshotai/Kimi-K2-Instruct-0905"),
    layers=61, hidden=7168, heads=64, kv_heads=64, head_dim=112, intermediate=18432, vocabulary=163840,
    fp8_block=128, mla=MLA(1536, 512, 128, 64, 128),
    moe=MoE(experts=384, top_k=8, intermediate=2048, shared_experts=1, dense_layers=1, router_bias=True),
)  # fmt: skip
_KIMI_K25 = replace(
    _KIMI_K2,
    name="kimi-k2.5",
    aliases=("moonshotai/Kimi-K2.5", "nvidia/Kimi-K2.5-NVFP4", "moonshotai/Kimi-K2-Thinking"),
    fp8_block=None,
    moe=MoE(384, 8, 2048, shared_experts=1, dense_layers=1, router_bias=True, native_bytes=0.5 + 2 / 32),
)
"""Its experts are published in INT4 with a bf16 scale per 32 weights."""
_DEEPSEEK_V32 = replace(
    _DEEPSEEK_V3, name="deepseek-v3.2", aliases=("deepseek-ai/DeepSeek-V3.2", "deepseek-ai/DeepSeek-V3.2-Exp")
)
_GLM_5 = ModelCard(
    "glm-5",
    aliases=("zai-org/GLM-5", "zai-org/GLM-5-FP8", "nvidia/GLM-5-NVFP4"),
    layers=78, hidden=6144, heads=64, kv_heads=64, head_dim=96, intermediate=12288, vocabulary=154880,
    fp8_block=128, mla=MLA(2048, 512, 192, 64, 256),
    moe=MoE(experts=256, top_k=8, intermediate=2048, shared_experts=1, dense_layers=3, router_bias=True),
)  # fmt: skip
"""This and DeepSeek-V3.2 look at 2,048 tokens of the context at most: in their tables, not in roofline times. The
indexer's weights are left out."""
_QWEN35 = ModelCard(
    "qwen3.5-397b-a17b",
    aliases=("Qwen/Qwen3.5-397B-A17B", "Qwen/Qwen3.5-397B-A17B-FP8", "nvidia/Qwen3.5-397B-A17B-NVFP4"),
    layers=60, hidden=4096, heads=32, kv_heads=2, head_dim=256, intermediate=1024, vocabulary=248320,
    qk_norm=True, fp8_block=128, sliding_window_layers=45, linear_attention=True,
    moe=MoE(experts=512, top_k=10, intermediate=1024, shared_experts=1),
)  # fmt: skip
"""45 layers of linear attention, whose state does not grow with the context, have the weights of ordinary ones here."""
_MINIMAX_M2 = ModelCard(
    "minimax-m2.5",
    aliases=("MiniMaxAI/MiniMax-M2.5", "MiniMaxAI/MiniMax-M2", "MiniMaxAI/MiniMax-M2.1"),
    layers=62, hidden=3072, heads=48, kv_heads=8, head_dim=128, intermediate=1536, vocabulary=200064,
    qk_norm=True, fp8_block=128, moe=MoE(experts=256, top_k=8, intermediate=1536, router_bias=True),
)  # fmt: skip
_LLAMA4_SCOUT = ModelCard(
    "llama-4-scout",
    aliases=("meta-llama/Llama-4-Scout-17B-16E", "meta-llama/Llama-4-Scout-17B-16E-Instruct"),
    layers=48, hidden=5120, heads=40, kv_heads=8, head_dim=128, intermediate=8192, vocabulary=202048,
    moe=MoE(experts=16, top_k=1, intermediate=8192, shared_experts=1),
)  # fmt: skip


_LLAMA4_MAVERICK = replace(
    _LLAMA4_SCOUT,
    name="llama-4-maverick",
    aliases=("meta-llama/Llama-4-Maverick-17B-128E", "meta-llama/Llama-4-Maverick-17B-128E-Instruct"),
    intermediate=16384,
    moe=MoE(experts=128, top_k=1, intermediate=8192, shared_experts=1, dense_layers=24, interleaved=True),
)
_DEEPSEEK_V2_LITE = ModelCard(
    "deepseek-v2-lite",
    aliases=("deepseek-ai/DeepSeek-V2-Lite", "deepseek-ai/DeepSeek-V2-Lite-Chat",
             "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct"),
    layers=27, hidden=2048, heads=16, kv_heads=16, head_dim=128, intermediate=10944, vocabulary=102400,
    mla=MLA(0, 512, 128, 64, 128), moe=MoE(experts=64, top_k=6, intermediate=1408, shared_experts=2, dense_layers=1),
)  # fmt: skip
_DEEPSEEK_V2 = ModelCard(
    "deepseek-v2",
    aliases=("deepseek-ai/DeepSeek-V2", "deepseek-ai/DeepSeek-V2-Chat", "deepseek-ai/DeepSeek-V2.5"),
    layers=60, hidden=5120, heads=128, kv_heads=128, head_dim=40, intermediate=12288, vocabulary=102400,
    mla=MLA(1536, 512, 128, 64, 128),
    moe=MoE(experts=160, top_k=6, intermediate=1536, shared_experts=2, dense_layers=1),
)  # fmt: skip
_GLM_45 = ModelCard(
    "glm-4.5",
    aliases=("zai-org/GLM-4.5", "zai-org/GLM-4.5-FP8", "zai-org/GLM-4.6", "zai-org/GLM-4.6-FP8", "zai-org/GLM-4.7"),
    layers=92, hidden=5120, heads=96, kv_heads=8, head_dim=128, intermediate=12288, vocabulary=151552, qk_norm=True,
    moe=MoE(experts=160, top_k=8, intermediate=1536, shared_experts=1, dense_layers=3, router_bias=True),
)  # fmt: skip
_GLM_45_AIR = ModelCard(
    "glm-4.5-air",
    aliases=("zai-org/GLM-4.5-Air", "zai-org/GLM-4.5-Air-FP8"),
    layers=46, hidden=4096, heads=96, kv_heads=8, head_dim=128, intermediate=10944, vocabulary=151552,
    moe=MoE(experts=128, top_k=8, intermediate=1408, shared_experts=1, dense_layers=1, router_bias=True),
)  # fmt: skip
_QWEN3_NEXT = ModelCard(
    "qwen3-next-80b-a3b",
    aliases=("Qwen/Qwen3-Next-80B-A3B-Instruct", "Qwen/Qwen3-Next-80B-A3B-Instruct-FP8",
             "Qwen/Qwen3-Next-80B-A3B-Thinking"),
    layers=48, hidden=2048, heads=16, kv_heads=2, head_dim=256, intermediate=512, vocabulary=151936,
    qk_norm=True, fp8_block=128, sliding_window_layers=36, linear_attention=True,
    moe=MoE(experts=512, top_k=10, intermediate=512, shared_experts=1),
)  # fmt: skip
"""As Qwen3.5: its layers of linear attention have the weights of ordinary ones here."""
_PHI_35_MOE = ModelCard(
    "phi-3.5-moe",
    aliases=("microsoft/Phi-3.5-MoE-instruct",),
    layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, intermediate=6400, vocabulary=32064,
    moe=MoE(experts=16, top_k=2, intermediate=6400),
)  # fmt: skip


def _gemma(
    generation: str, size: str, layers: int, local: int, hidden: int, heads: int, kv_heads: int, head_dim: int,
    intermediate: int, vocabulary: int,
) -> ModelCard:  # fmt: skip
    """Gemma; *local* layers look back 4,096 (2) or 1,024 (3) tokens."""
    hub = f"google/gemma-{generation}-{size}"
    return ModelCard(
        f"gemma-{generation}-{size}", layers, hidden, heads, kv_heads, head_dim, intermediate, vocabulary,
        aliases=(f"{hub}-it", hub if generation == "2" else f"{hub}-pt"), qk_norm=generation == "3",
        sliding_window_layers=local, tied=True,
    )  # fmt: skip


def _gpt_oss(size: str, layers: int, experts: int) -> ModelCard:
    return ModelCard(
        f"gpt-oss-{size}",
        aliases=(f"openai/gpt-oss-{size}",),
        layers=layers, hidden=2880, heads=64, kv_heads=8, head_dim=64, intermediate=2880, vocabulary=201088,
        attention_bias=True, sliding_window_layers=layers // 2, fp8_checkpoint=False,
        moe=MoE(experts, top_k=4, intermediate=2880, router_bias=True, expert_biases=True, native_bytes=4.25 / 8),
    )  # fmt: skip


MODELS: Mapping[str, ModelCard] = MappingProxyType(
    {
        card.name: card
        for card in (
            _llama("llama-3.1-8b", "8B", 32, 4096, 32, 14336, "nvidia/Llama-3.1-8B-Instruct-FP8",
                   "meta-llama/Meta-Llama-3-8B", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
            _llama("llama-3.1-70b", "70B", 80, 8192, 64, 28672, "meta-llama/Llama-3.3-70B-Instruct",
                   "meta-llama/Meta-Llama-3-70B", "deepseek-ai/DeepSeek-R1-Distill-Llama-70B",
                   "nvidia/Llama-3.1-70B-Instruct-FP8", "nvidia/Llama-3.3-70B-Instruct-FP8",
                   "nvidia/Llama-3.3-70B-Instruct-FP4"),
            _llama("llama-3.1-405b", "405B", 126, 16384, 128, 53248, "nvidia/Llama-3.1-405B-Instruct-FP8"),
            _dense("llama-2-7b", ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf"),
                   32, 4096, 32, 32, 11008, 32000),
            _dense("llama-2-13b", ("meta-llama/Llama-2-13b-hf", "meta-llama/Llama-2-13b-chat-hf"),
                   40, 5120, 40, 40, 13824, 32000),
            _dense("llama-2-70b", ("meta-llama/Llama-2-70b-hf", "meta-llama/Llama-2-70b-chat-hf"),
                   80, 8192, 64, 8, 28672, 32000),
            _dense("codellama-34b", ("codellama/CodeLlama-34b-Instruct-hf", "codellama/CodeLlama-34b-hf"),
                   48, 8192, 64, 8, 22016, 32000),
            _dense("mistral-7b", ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1"),
                   32, 4096, 32, 8, 14336, 32000),
            _dense("mistral-nemo-12b", ("mistralai/Mistral-Nemo-Instruct-2407",), 40, 5120, 32, 8, 14336, 131072),
            _dense("mistral-small-24b", ("mistralai/Mistral-Small-24B-Instruct-2501",
                                         "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
                                         "mistralai/Mistral-Small-3.2-24B-Instruct-2506",
                                         "mistralai/Devstral-Small-2507"), 40, 5120, 32, 8, 32768, 131072),
            _dense("yi-34b", ("01-ai/Yi-34B", "01-ai/Yi-34B-Chat"), 60, 7168, 56, 8, 20480, 64000),
            _dense("mistral-large-123b", ("mistralai/Mistral-Large-Instruct-2411",
                                          "mistralai/Mistral-Large-Instruct-2407"),
                   88, 12288, 96, 8, 28672, 32768),
            _dense("ministral-8b", ("mistralai/Ministral-8B-Instruct-2410",), 36, 4096, 32, 8, 12288, 131072),
            _dense("codestral-22b", ("mistralai/Codestral-22B-v0.1",), 56, 6144, 48, 8, 16384, 32768),
            _dense("phi-4", ("microsoft/phi-4",), 40, 5120, 40, 10, 17920, 100352),
            _dense("phi-3-medium", ("microsoft/Phi-3-medium-128k-instruct", "microsoft/Phi-3-medium-4k-instruct"),
                   40, 5120, 40, 10, 17920, 32064),
            replace(_dense("phi-3-mini", ("microsoft/Phi-3-mini-128k-instruct", "microsoft/Phi-3.5-mini-instruct",
                                          "microsoft/Phi-3-mini-4k-instruct"),
                           32, 3072, 32, 32, 8192, 32064), head_dim=96),
            replace(_dense("llama-3.2-1b", ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"),
                           16, 2048, 32, 8, 8192, 128256), head_dim=64, tied=True),
            replace(_dense("llama-3.2-3b", ("meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-3B-Instruct"),
                           28, 3072, 24, 8, 8192, 128256), tied=True),
            _gemma("2", "9b", 42, 21, 3584, 16, 8, 256, 14336, 256000),
            _gemma("2", "27b", 46, 23, 4608, 32, 16, 128, 36864, 256000),
            _gemma("3", "4b", 34, 29, 2560, 8, 4, 256, 10240, 262208),
            _gemma("3", "12b", 48, 40, 3840, 16, 8, 256, 15360, 262208),
            _gemma("3", "27b", 62, 52, 5376, 32, 16, 128, 21504, 262208),
            _qwen2("7b", 28, 3584, 28, 4, 18944, "Qwen/Qwen2-7B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
            _qwen2("14b", 48, 5120, 40, 8, 13824, "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"),
            _qwen2("32b", 64, 5120, 40, 8, 27648, "Qwen/QwQ-32B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"),
            _qwen2("72b", 80, 8192, 64, 8, 29568, "Qwen/Qwen2-72B"),
            replace(_qwen3("qwen3-0.6b", 28, 1024, 16, 3072), tied=True),
            replace(_qwen3("qwen3-1.7b", 28, 2048, 16, 6144), tied=True),
            replace(_qwen3("qwen3-4b", 36, 2560, 32, 9728), tied=True),
            _qwen3("qwen3-8b", 36, 4096, 32, 12288),
            _qwen3("qwen3-14b", 40, 5120, 40, 17408),
            _qwen3("qwen3-32b", 64, 5120, 64, 25600),
            _qwen3("qwen3-30b-a3b", 48, 2048, 32, 6144, MoE(experts=128, top_k=8, intermediate=768),
                   "Qwen/Qwen3-Coder-30B-A3B-Instruct"),
            _qwen3("qwen3-235b-a22b", 94, 4096, 64, 12288, MoE(experts=128, top_k=8, intermediate=1536)),
            _qwen3("qwen3-coder-480b-a35b", 62, 6144, 96, 8192, MoE(experts=160, top_k=8, intermediate=2560)),
            _QWEN3_NEXT,
            _QWEN35,
            _DEEPSEEK_V2_LITE,
            _DEEPSEEK_V2,
            _DEEPSEEK_V3,
            _DEEPSEEK_V32,
            _GLM_45,
            _GLM_45_AIR,
            _GLM_5,
            _KIMI_K2,
            _KIMI_K25,
            _MINIMAX_M2,
            _LLAMA4_SCOUT,
            _LLAMA4_MAVERICK,
            _PHI_35_MOE,
            _MIXTRAL,
            _MIXTRAL_22B,
            _gpt_oss("20b", 24, 32),
            _gpt_oss("120b", 36, 128),
        )
    }
)  # fmt: skip

_BY_NAME: Mapping[str, ModelCard] = MappingProxyType(
    {name.lower(): card for card in MODELS.values() for name in (card.name, *card.aliases)}
)


_VARIANT = re.compile(
    r"[-_.](instruct|thinking|preview|chat|base|it|hf|fp8|fp4|nvfp4|bf16|int4|mxfp4|dynamic|static|pertensor|quantized|kv|v0\.\d|\d{4}|"
    r"(nv)?fp4-v\d)$"
)
"""What publishers append to a model's name for a fine-tune, a date or a precision."""


def _family(name: str) -> str:
    """Return the name without publisher and variant: equal for checkpoints of the same dimensions."""
    base = name.lower().rsplit("/", 1)[-1].removeprefix("meta-")
    while (shorter := _VARIANT.sub("", base)) != base:
        base = shorter
    return base


_BY_FAMILY: Mapping[str, ModelCard] = MappingProxyType({_family(name): card for name, card in _BY_NAME.items()})


def get_model(name: str) -> ModelCard:
    """Return the card of a model by name or Hugging Face id, also of a fine-tune or quantised copy of a known one,
    or a user's card; ConfigError naming the nearest one where there is none."""
    if name.lower() in _BY_NAME:
        return _BY_NAME[name.lower()]
    if plugins.is_reference(name):
        return load_card(ModelCard, name, _BY_NAME, "model")
    if "/" in name and _family(name) in _BY_FAMILY:
        return _BY_FAMILY[_family(name)]
    raise ConfigError(
        f"{name!r}: no such model; {nearest(name.lower(), _BY_NAME)}known: {', '.join(MODELS)}, or a card file",
        path="model",
    )


def precision_of(checkpoint: str) -> str:
    """Return the quantization that a checkpoint's name says, ``none`` where it says nothing."""
    said = re.search(r"-(?:(fp8)|(?:nv)?fp4)\b", checkpoint, re.IGNORECASE)
    return "none" if said is None else "fp8" if said[1] else "nvfp4"
