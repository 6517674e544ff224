"""Pass times of any model on any GPU from its cards: roofline bounds over efficiencies, plus launch latencies.

The bounds of ``hardware.roofline`` are evaluated on a derated GPU: peak FLOPs, memory and link bandwidth times the
efficiencies of the configuration. Kernel sums of real engines (the timing packs) reach 0.46-0.75 of the compute peak in
long prefill and 0.70-0.82 of the memory bandwidth in decode. Left out: expert load imbalance, and what engines do
differently; use a timing pack where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dynosim.config import RooflineTiming
from dynosim.hardware.gpus import GPU
from dynosim.hardware.models import ModelCard
from dynosim.hardware.roofline import (
    all_reduce_bound_s,
    decode_attention_bound_s,
    expert_bound_s,
    prefill_attention_bound_s,
    token_wise_bound_s,
)
from dynosim.timing.base import PassTables

KERNEL_LATENCY_S = 3e-6
"""Floor of one memory-bound kernel (aiconfigurator-core 0.12.0, ``mem_empirical_constant_latency``)."""
H100_FLOPS_PER_BYTE = 989e12 / 3.35e12
"""Balance of the GPU that ``compute_efficiency`` is that of."""
SMALL_KERNELS_PER_LAYER = 6
"""Two norms, rotary embedding, KV write, activation and attention epilogue."""
ALL_REDUCE_LATENCY_S = 8e-6
"""Floor of a small custom all-reduce over NVLink."""
NETWORK_BYTES_S = 50e9
"""Per GPU and direction between NVLink domains: one 400 Gbit/s port (aiconfigurator-core, ``inter_node_bw``)."""
MAX_SEQUENCE_TOKENS = 2**20
SEQUENCE_STEP = 1.02
"""Ratio of neighbouring sequence nodes: chords of a quadratic err by (ratio - 1)^2 / 4 = 1e-4."""


@dataclass(frozen=True)
class RooflineTimes:
    """The roofline source of one rank."""

    knows_hardware: ClassVar[bool] = True

    model: ModelCard
    gpu: GPU
    tensor_parallel_size: int
    data_parallel_size: int
    quantization: str
    kv_dtype: str
    timing: RooflineTiming

    def tables(self, *, max_num_seqs: int, max_num_batched_tokens: int) -> PassTables:
        """Return fused tables."""
        gpu, sequences = self._derated_gpu(), _sequence_nodes()
        contexts = np.tile([0.0, float(MAX_SEQUENCE_TOKENS)], (max_num_seqs + 1, 1))
        share = prefill_attention_bound_s(self.model, gpu, self.tensor_parallel_size, sequences)
        return PassTables(
            tokens_s=self._tokens_s(gpu, np.arange(max_num_batched_tokens + 1)),
            graph_tokens_s=self._tokens_s(gpu, np.arange(max_num_seqs + 1)),
            decode_context=contexts,
            decode_s=decode_attention_bound_s(self.model, gpu, self.tensor_parallel_size, self.kv_dtype, contexts),
            prefill_seq=sequences,
            prefill_share_s=np.tile(share, (2, 1)),
            expert_s=self._expert_s(gpu, np.arange(max_num_batched_tokens + 1)),
            provenance={"source": "roofline", **self.timing.model_dump(exclude={"type"})},
        )

    def _derated_gpu(self) -> GPU:
        timing = self.timing
        # The less a GPU computes per byte that it moves, the closer it comes to its peak: an H20, an H100 with a
        # seventh of the tensor cores, prefills at 0.7-0.8 of its peak (calibration runs ``mooncake-pd-*``).
        balance = self.gpu.flops["bf16"] / self.gpu.memory_bandwidth_bytes_s / H100_FLOPS_PER_BYTE
        compute = 1.0 / (1.0 + balance * (1.0 / timing.compute_efficiency - 1.0))
        return replace(
            self.gpu,
            flops={precision: peak * compute for precision, peak in self.gpu.flops.items()},
            memory_bandwidth_bytes_s=self.gpu.memory_bandwidth_bytes_s * timing.memory_efficiency,
            nvlink_bytes_s=self.gpu.nvlink_bytes_s * timing.network_efficiency,
        )

    def _tokens_s(self, gpu: GPU, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        model, tp, dp = self.model, self.tensor_parallel_size, self.data_parallel_size
        all_reduces = (tp > 1) + (tp * dp > 1)
        latency = model.layers * (
            SMALL_KERNELS_PER_LAYER * KERNEL_LATENCY_S + all_reduces * ALL_REDUCE_LATENCY_S
        )  # fmt: skip
        network = NETWORK_BYTES_S * self.timing.network_efficiency
        exchange = all_reduce_bound_s(model, gpu, tp, tokens, network) + self._expert_exchange_s(gpu, tokens)
        compute = token_wise_bound_s(model, gpu, tp, self.quantization, tokens, dp)
        return np.where(tokens > 0, compute + exchange + latency, 0.0)

    def _expert_exchange_s(self, gpu: GPU, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        network = NETWORK_BYTES_S * self.timing.network_efficiency
        ranks = self.data_parallel_size
        return all_reduce_bound_s(self.model, gpu, self.tensor_parallel_size * ranks, tokens * ranks, network)

    def _expert_s(self, gpu: GPU, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        if self.data_parallel_size == 1:
            return np.zeros(len(tokens))
        compute = expert_bound_s(
            self.model, gpu, self.tensor_parallel_size, self.quantization, tokens, self.data_parallel_size
        )
        return compute + self._expert_exchange_s(gpu, tokens)


def _sequence_nodes() -> NDArray[np.float64]:
    """0, then a geometric grid: attention is quadratic in the sequence."""
    steps = int(np.ceil(np.log(MAX_SEQUENCE_TOKENS / 16) / np.log(SEQUENCE_STEP)))
    return np.concatenate([[0.0], np.geomspace(16, MAX_SEQUENCE_TOKENS, steps + 1)])
