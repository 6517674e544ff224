"""Pass times of any model on any GPU from its cards: FLOPs and bytes over efficiencies, plus latencies.

FLOPs and bytes are those of ``hardware.roofline`` on a derated GPU: peaks times what kernels reach of them
(``hardware.gpus.Achieved``, or the efficiencies of the configuration). Compute and traffic of weight matrices add up:
kernels overlap them in part only, and are many. Experts are unequally popular, and GPUs with whole ones wait for the
busiest. Left out: what engines do differently; use a timing pack where there is one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dynosim.config import RooflineTiming
from dynosim.hardware.gpus import GPU, Achieved
from dynosim.hardware.models import ModelCard, Role
from dynosim.hardware.roofline import (
    ROLES,
    Array,
    all_reduce_bound_s,
    decode_attention_times_s,
    experts_reached,
    prefill_attention_bound_s,
    weight_times_s,
)
from dynosim.timing.base import PassTables

LAYER_KERNELS = 12
"""Of a dense layer, floors and all: norms, projections, rotary embedding, KV write, attention, activation."""
MOE_KERNELS = 8
"""More of an expert layer: router, top-k, sorting, quantisation, second matrices, sum."""
MLA_KERNELS = 12
"""More of latent attention: low-rank projections and their norms, absorbed matrices, merging of splits."""
LAYER_PASSES = 20
"""Hidden states that a layer's operations read and write, in widths of the model: norms, residuals, quantisation, the
inputs and outputs of matrices."""
EXPERT_PASSES = 8
"""The same of each copy that is routed to an expert: gathering, quantisation, both matrices, the weighted sum."""
EXPERT_ROWS = 32
"""Rows that an expert computes in vain: half a tile."""
BUSIEST_GPU = 2.0
"""Copies at the GPU with the most popular experts over the mean, where GPUs have whole experts: all wait for it. The
kernel tables of expert parallelism are met best by 2 to 3."""
NETWORK_BYTES_S = 50e9
"""Per GPU and direction between NVLink domains: one 400 Gbit/s port (aiconfigurator-core, ``inter_node_bw``)."""
MAX_SEQUENCE_TOKENS = 2**20
SEQUENCE_STEP = 1.02
"""Ratio of neighbouring sequence nodes: chords of a quadratic err by (ratio - 1)^2 / 4 = 1e-4."""
EXPERT: tuple[Role, ...] = ("expert",)
DENSE = tuple(role for role in ROLES if role != "expert")


@dataclass(frozen=True)
class RooflineTimes:
    """The roofline source of one rank."""

    knows_hardware: ClassVar[bool] = True

    model: ModelCard
    gpu: GPU
    tensor_parallel_size: int
    data_parallel_size: int
    expert_parallel: bool
    quantization: str
    kv_dtype: str
    timing: RooflineTiming

    def tables(self, *, max_num_seqs: int, max_num_batched_tokens: int) -> PassTables:
        """Return fused tables."""
        gpu, sequences = self._derated_gpu(), _sequence_nodes()
        contexts = np.tile([0.0, float(MAX_SEQUENCE_TOKENS)], (max_num_seqs + 1, 1))
        share = prefill_attention_bound_s(self.model, self.gpu, self.tensor_parallel_size, sequences)
        return PassTables(
            tokens_s=self._tokens_s(gpu, np.arange(max_num_batched_tokens + 1)),
            graph_tokens_s=self._tokens_s(gpu, np.arange(max_num_seqs + 1)),
            decode_context=contexts,
            decode_s=self._decode_attention_s(gpu, contexts),
            prefill_seq=sequences,
            prefill_share_s=np.tile(share / self.achieved.attention, (2, 1)),
            expert_s=self._expert_s(gpu, np.arange(max_num_batched_tokens + 1)),
            provenance={"source": "roofline", **self.timing.model_dump(exclude={"type"}, exclude_none=True)},
        )

    @property
    def achieved(self) -> Achieved:
        """What kernels reach: the configuration's efficiencies, or the GPU's where it says nothing."""
        own, timing = self.gpu.achieved, self.timing
        compute = timing.compute_efficiency
        return replace(
            own,
            bf16=compute or own.bf16,
            fp8=compute or own.fp8,
            fp4=compute or own.fp4,
            attention=compute or own.attention,
            memory=timing.memory_efficiency or own.memory,
            network=timing.network_efficiency or own.network,
        )

    def _derated_gpu(self) -> GPU:
        reached = self.achieved
        return replace(
            self.gpu,
            flops={precision: peak * getattr(reached, precision) for precision, peak in self.gpu.flops.items()},
            memory_bandwidth_bytes_s=self.gpu.memory_bandwidth_bytes_s * reached.memory,
            nvlink_bytes_s=self.gpu.nvlink_bytes_s * reached.network,
        )

    def _tokens_s(self, gpu: GPU, tokens: NDArray[np.int64]) -> Array:
        model, tp, ranks = self.model, self.tensor_parallel_size, self.data_parallel_size
        exchange = self._exchange_s(gpu, tp, tokens) + self._exchange_s(gpu, tp * ranks, tokens * ranks)
        rows_s = self._rows_s(gpu, LAYER_PASSES * model.layers * tokens)
        weights_s: Array = self._weights_s(gpu, tokens, DENSE) + self._experts_s(gpu, tokens)
        return np.where(tokens > 0, weights_s + rows_s + exchange + self._latency_s(), 0.0)

    def _decode_attention_s(self, gpu: GPU, contexts: Array) -> Array:
        latent = self.gpu.achieved.fp8_latents
        if self.model.mla is not None and self.kv_dtype == "fp8" and latent is not None:
            gpu = replace(gpu, memory_bandwidth_bytes_s=self.gpu.memory_bandwidth_bytes_s * latent)
        compute_s, read_s = decode_attention_times_s(
            self.model, gpu, self.tensor_parallel_size, self.kv_dtype, contexts
        )
        return compute_s + read_s

    def _latency_s(self) -> float:
        """Floors of all kernels and all-reduces of a pass."""
        model, tp, reached = self.model, self.tensor_parallel_size, self.gpu.achieved
        expert_layers = model.layers - model.moe.dense_layers if model.moe else 0
        kernels = model.layers * (LAYER_KERNELS + MLA_KERNELS * (model.mla is not None)) + MOE_KERNELS * expert_layers
        all_reduces = model.layers * ((tp > 1) + (tp * self.data_parallel_size > 1))
        return kernels * reached.kernel_s + all_reduces * reached.all_reduce_s

    def _weights_s(self, gpu: GPU, tokens: NDArray[np.int64], roles: Collection[Role]) -> Array:
        compute_s, traffic_s = weight_times_s(
            self.model, gpu, self.tensor_parallel_size, self.quantization, tokens, self.data_parallel_size, roles
        )
        return compute_s + traffic_s

    def _rows_s(self, gpu: GPU, rows: NDArray[Any]) -> Array:
        """Memory traffic of *rows* hidden states in bf16."""
        return np.asarray(rows * (self.model.hidden * 2 / gpu.memory_bandwidth_bytes_s))

    def _experts_s(self, gpu: GPU, tokens: NDArray[np.int64]) -> Array:
        """Routed experts for *tokens* tokens of every rank, each expert computing whole tiles of rows.

        A GPU moves the copies that go to its own experts: all of them where it has a slice of every expert.
        """
        moe, ranks = self.model.moe, self.data_parallel_size
        if moe is None:
            return np.zeros(len(tokens))
        copies = moe.top_k * ranks * tokens
        reached = moe.experts * experts_reached(moe, tokens * ranks)
        tiles = (copies + EXPERT_ROWS * reached) / np.maximum(copies, 1)
        compute_s, traffic_s = weight_times_s(
            self.model, gpu, self.tensor_parallel_size, self.quantization, tokens, ranks, EXPERT
        )
        gpus = self.tensor_parallel_size * ranks if self.expert_parallel else 1
        busiest = BUSIEST_GPU if gpus > 1 else 1.0
        rows_s = self._rows_s(gpu, EXPERT_PASSES * (self.model.layers - moe.dense_layers) * copies / gpus)
        seconds: Array = busiest * (compute_s * tiles + rows_s) + traffic_s
        return seconds

    def _exchange_s(self, gpu: GPU, gpus: int, tokens: NDArray[np.int64]) -> Array:
        """One all-reduce in every layer, or the same traffic around experts that data-parallel ranks share."""
        return all_reduce_bound_s(self.model, gpu, gpus, tokens, NETWORK_BYTES_S * self.achieved.network)

    def _expert_s(self, gpu: GPU, tokens: NDArray[np.int64]) -> Array:
        ranks = self.data_parallel_size
        if ranks == 1:
            return np.zeros(len(tokens))
        return self._experts_s(gpu, tokens) + self._exchange_s(gpu, self.tensor_parallel_size * ranks, tokens * ranks)


def _sequence_nodes() -> Array:
    """0, then a geometric grid: attention is quadratic in the sequence."""
    steps = int(np.ceil(np.log(MAX_SEQUENCE_TOKENS / 16) / np.log(SEQUENCE_STEP)))
    return np.concatenate([[0.0], np.geomspace(16, MAX_SEQUENCE_TOKENS, steps + 1)])
