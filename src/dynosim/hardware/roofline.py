"""Closed-form bounds of a forward pass: FLOPs, bytes and the times that no implementation can beat.

The roofline model (Williams, Waterman, Patterson, CACM 52(4), 2009): an operation takes at least its FLOPs over the
peak rate and its bytes over the memory bandwidth. Counted are the weight matrices, attention and the KV cache; norms,
activations and communication are left out, so every function here is a lower bound. Lengths in tokens, times in
seconds, everything per GPU of a tensor-parallel group.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dynosim.hardware.gpus import GPU
from dynosim.hardware.memory import kv_bytes_per_token
from dynosim.hardware.models import ModelCard

Array = NDArray[np.float64]


def peak_flops(gpu: GPU, quantization: str) -> float:
    """Return the dense tensor-core peak in the precision of the weights."""
    return gpu.flops["fp8" if quantization == "fp8" else "bf16"]


def flops_per_token(model: ModelCard) -> float:
    """Return 2 FLOPs per active parameter: one multiply-add each (Kaplan et al., arXiv 2001.08361, section 2.1)."""
    return 2.0 * model.active_parameters


def attention_flops(model: ModelCard, new_tokens: ArrayLike, cached_tokens: ArrayLike = 0) -> Array:
    """Return the FLOPs of causal attention of *new_tokens* behind *cached_tokens*, all layers and heads.

    Q K^T and P V cost 2 FLOPs per head, head dimension and visible (query, key) pair; n queries behind c keys see
    n c + n^2 / 2 pairs. MLA prefill uses its uncompressed head sizes.
    """
    new, cached = np.asarray(new_tokens, dtype=float), np.asarray(cached_tokens, dtype=float)
    pairs = new * (cached + new / 2)
    return 2.0 * _attention_width(model) * model.layers * pairs


def _attention_width(model: ModelCard) -> int:
    if model.mla is None:
        return model.heads * 2 * model.head_dim
    return model.heads * (model.mla.nope_head_dim + model.mla.rope_head_dim + model.mla.v_head_dim)


def weight_bytes_read(model: ModelCard, tensor_parallel_size: int, quantization: str, tokens: ArrayLike) -> Array:
    """Return the weight bytes that one GPU reads in a pass of *tokens* tokens.

    An MoE pass reads the experts that its tokens reach, E (1 - (1 - k / E)^n) of E under uniform routing.
    """
    count = np.asarray(tokens, dtype=float)
    share = {"embedding": np.zeros_like(count)}
    if model.moe is not None:
        share["expert"] = 1.0 - (1.0 - model.moe.top_k / model.moe.experts) ** count
    always = np.ones_like(count)
    return sum(
        (
            share.get(weight.role, always) * weight.bytes_per_gpu(tensor_parallel_size, quantization)
            for weight in model.weights()
        ),
        start=np.zeros_like(count),
    )


def token_wise_bound_s(
    model: ModelCard, gpu: GPU, tensor_parallel_size: int, quantization: str, tokens: ArrayLike
) -> Array:
    """Return the least time of the weight matrices for *tokens* tokens: the larger of compute and weight traffic.

    Only the last token of each request needs the vocabulary projection; it is counted in bytes but not in FLOPs.
    """
    count = np.asarray(tokens, dtype=float)
    head = sum(weight.parameters for weight in model.weights() if weight.role == "head")
    flops = count * (flops_per_token(model) - 2.0 * head) / tensor_parallel_size
    traffic = weight_bytes_read(model, tensor_parallel_size, quantization, count)
    return np.maximum(flops / peak_flops(gpu, quantization), traffic / gpu.memory_bandwidth_bytes_s)


def prefill_attention_bound_s(
    model: ModelCard, gpu: GPU, tensor_parallel_size: int, new_tokens: ArrayLike, cached_tokens: ArrayLike = 0
) -> Array:
    """Return the least time of causal attention in bf16."""
    return attention_flops(model, new_tokens, cached_tokens) / tensor_parallel_size / gpu.flops["bf16"]


def decode_attention_bound_s(
    model: ModelCard, gpu: GPU, tensor_parallel_size: int, kv_dtype: str, total_context_tokens: ArrayLike
) -> Array:
    """Return the least time to read the KV cache of *total_context_tokens* tokens once."""
    per_token = kv_bytes_per_token(model, tensor_parallel_size, kv_dtype)
    return np.asarray(total_context_tokens, dtype=float) * per_token / gpu.memory_bandwidth_bytes_s


def all_reduce_bound_s(model: ModelCard, gpu: GPU, tensor_parallel_size: int, tokens: ArrayLike) -> Array:
    """Return the least time of the two bf16 all-reduces of every layer (Megatron-LM, arXiv 1909.08053, section 3).

    Each GPU sends 2 (t - 1) / t of the hidden states (Patarasuk and Yuan, JPDC 69(2), 2009).
    """
    hidden_bytes = np.asarray(tokens, dtype=float) * model.hidden * 2
    sent = 2.0 * (tensor_parallel_size - 1) / tensor_parallel_size * hidden_bytes
    return 2.0 * model.layers * sent / gpu.nvlink_bytes_s


def prefill_bound_s(
    model: ModelCard,
    gpu: GPU,
    tensor_parallel_size: int,
    quantization: str,
    new_tokens: int,
    cached_tokens: int = 0,
) -> float:
    """Return the least time of a pass over one prompt's *new_tokens* behind *cached_tokens*."""
    attention = prefill_attention_bound_s(model, gpu, tensor_parallel_size, new_tokens, cached_tokens)
    return float(token_wise_bound_s(model, gpu, tensor_parallel_size, quantization, new_tokens) + attention)


def decode_bound_s(
    model: ModelCard,
    gpu: GPU,
    tensor_parallel_size: int,
    quantization: str,
    kv_dtype: str,
    batch: int,
    context: int,
) -> float:
    """Return the least time of a decode pass of *batch* requests of *context* tokens each."""
    attention = decode_attention_bound_s(model, gpu, tensor_parallel_size, kv_dtype, batch * context)
    return float(token_wise_bound_s(model, gpu, tensor_parallel_size, quantization, batch) + attention)
