"""Closed-form bounds of a forward pass: FLOPs, bytes and the times that no implementation can beat.

The roofline model (Williams, Waterman, Patterson, CACM 52(4), 2009): an operation takes at least its FLOPs over the
peak rate and its bytes over the memory bandwidth. Counted are the weight matrices, attention and the KV cache; norms,
activations and communication are left out, so every function here is a lower bound. Lengths in tokens, times in
seconds, everything per GPU of a tensor-parallel group.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dynosim.hardware.gpus import GPU
from dynosim.hardware.memory import kv_bytes_per_token
from dynosim.hardware.models import ModelCard, MoE, Role, Weight

Array = NDArray[np.float64]


ROLES: tuple[Role, ...] = get_args(Role)


POPULARITY_SHAPE = 1.5
"""Of the experts' popularity: the kernel tables of AIConfigurator, timed under power laws, are met best by 1.5 to 2."""


def _peak_flops(gpu: GPU, weight: Weight, quantization: str) -> float:
    """Return the dense tensor-core peak in the precision that *weight* is multiplied in: experts that are published in
    four bits (gpt-oss, Kimi-K2.5) meet activations of bf16."""
    stored = weight.bytes_per_parameter(quantization)
    if quantization == "none" or stored >= 2:
        return gpu.flops["bf16"]
    return gpu.flops["fp8" if stored >= 1 else "fp4"]


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


def weight_bytes_read(
    model: ModelCard,
    tensor_parallel_size: int,
    quantization: str,
    tokens: ArrayLike,
    data_parallel_size: int = 1,
    roles: Collection[Role] = ROLES,
) -> Array:
    """Return the bytes of the weights of *roles* that one GPU reads for *tokens* tokens of every data-parallel rank.

    An MoE pass reads the experts that the tokens of all ranks, whose GPUs share them, reach.
    """
    count = np.asarray(tokens, dtype=float)
    share = {"embedding": np.zeros_like(count)}
    if model.moe is not None:
        share["expert"] = experts_reached(model.moe, count * data_parallel_size)
    gpus = {"expert": tensor_parallel_size * data_parallel_size}
    read = np.zeros_like(count)
    for weight in (weight for weight in model.weights() if weight.role in roles):
        size = weight.bytes_per_gpu(gpus.get(weight.role, tensor_parallel_size), quantization)
        read = read + share.get(weight.role, 1.0) * size
    return read


def experts_reached(moe: MoE, tokens: ArrayLike) -> Array:
    """Return the share of a layer's experts that *tokens* tokens reach.

    Popularity of experts that is gamma-distributed with shape s gives 1 - (1 + m / s)^-s for m = n k / E tokens per
    expert in the mean (the zero class of a negative binomial distribution); equal popularity, s without bounds, is
    1 - exp(-m).
    """
    mean = np.asarray(tokens, dtype=float) * moe.top_k / moe.experts
    return 1.0 - (1.0 + mean / POPULARITY_SHAPE) ** -POPULARITY_SHAPE


def weight_times_s(
    model: ModelCard,
    gpu: GPU,
    tensor_parallel_size: int,
    quantization: str,
    tokens: ArrayLike,
    data_parallel_size: int = 1,
    roles: Collection[Role] = ROLES,
) -> tuple[Array, Array]:
    """Return the least times of the FLOPs and of the bytes of the weight matrices of *roles* for *tokens* tokens of
    every data-parallel rank.

    2 FLOPs per active parameter, one multiply-add each (Kaplan et al., arXiv 2001.08361, section 2.1). Only the last
    token of each request needs the vocabulary projection; it is counted in bytes but not in FLOPs. The experts compute
    the tokens of all ranks on the GPUs of all ranks: as many FLOPs per GPU as for one rank.
    """
    count = np.asarray(tokens, dtype=float)
    active = {"embedding": 0.0, "head": 0.0, "expert": model.moe.top_k / model.moe.experts if model.moe else 1.0}
    token_s = sum(
        2.0 * weight.parameters * active.get(weight.role, 1.0) / _peak_flops(gpu, weight, quantization)
        for weight in model.weights()
        if weight.role in roles
    )
    traffic = weight_bytes_read(model, tensor_parallel_size, quantization, count, data_parallel_size, roles)
    return count * token_s / tensor_parallel_size, traffic / gpu.memory_bandwidth_bytes_s


def token_wise_bound_s(
    model: ModelCard,
    gpu: GPU,
    tensor_parallel_size: int,
    quantization: str,
    tokens: ArrayLike,
    data_parallel_size: int = 1,
) -> Array:
    """Return the least time of the weight matrices for *tokens* tokens of every data-parallel rank: the larger of
    compute and weight traffic."""
    return np.maximum(*weight_times_s(model, gpu, tensor_parallel_size, quantization, tokens, data_parallel_size))


def prefill_attention_bound_s(
    model: ModelCard, gpu: GPU, tensor_parallel_size: int, new_tokens: ArrayLike, cached_tokens: ArrayLike = 0
) -> Array:
    """Return the least time of causal attention in bf16."""
    return attention_flops(model, new_tokens, cached_tokens) / tensor_parallel_size / gpu.flops["bf16"]


def decode_attention_times_s(
    model: ModelCard, gpu: GPU, tensor_parallel_size: int, kv_dtype: str, total_context_tokens: ArrayLike
) -> tuple[Array, Array]:
    """Return the least times of the FLOPs of decode attention over *total_context_tokens* tokens, in bf16, and of
    reading their KV cache once.

    MLA decodes on the compressed cache: every head scores and sums whole latents (arXiv 2405.04434, section 2.1.2).
    """
    context = np.asarray(total_context_tokens, dtype=float)
    layers = model.layers - model.sliding_window_layers
    width = 2 * model.head_dim if model.mla is None else 2 * model.mla.kv_lora_rank + model.mla.rope_head_dim
    flops = layers * 2 * model.heads / tensor_parallel_size * width
    per_token = kv_bytes_per_token(model, tensor_parallel_size, kv_dtype)
    return context * flops / gpu.flops["bf16"], context * per_token / gpu.memory_bandwidth_bytes_s


def decode_attention_bound_s(
    model: ModelCard, gpu: GPU, tensor_parallel_size: int, kv_dtype: str, total_context_tokens: ArrayLike
) -> Array:
    """Return the least time of decode attention over *total_context_tokens* tokens: the larger of compute and KV
    traffic."""
    return np.maximum(*decode_attention_times_s(model, gpu, tensor_parallel_size, kv_dtype, total_context_tokens))


def verification_cost(model: ModelCard, gpu: GPU, tensor_parallel_size: int, kv_dtype: str, query_tokens: int) -> float:
    """Return how much longer decode attention takes at least for *query_tokens* tokens of a request than for one.

    One read of the KV cache serves them all, so it is 1 until the FLOPs take longer.
    """
    compute_s, read_s = decode_attention_times_s(model, gpu, tensor_parallel_size, kv_dtype, 1)
    return float(max(read_s, query_tokens * compute_s) / max(read_s, compute_s))


def all_reduce_bound_s(
    model: ModelCard, gpu: GPU, gpus: int, tokens: ArrayLike, network_bytes_s: float = math.inf
) -> Array:
    """Return the least time of one bf16 all-reduce in every layer over a group of *gpus*.

    There are two: after attention and after the feed-forward block (Megatron-LM, arXiv 1909.08053, section 3). Each
    GPU sends 2 (n - 1) / n of the hidden states (Patarasuk and Yuan, JPDC 69(2), 2009); the gather and reduce-scatter
    around experts that data-parallel ranks share send as much. What leaves a scale-up domain goes through the network
    ports of all its GPUs, of *network_bytes_s* each.
    """
    sent = 2.0 * (gpus - 1) / gpus * np.asarray(tokens, dtype=float) * model.hidden * 2
    link = gpu.nvlink_bytes_s
    if gpus > gpu.scale_up_gpus:
        link = min(link, network_bytes_s * gpu.scale_up_gpus)
    return model.layers * sent / link


def prefill_bound_s(
    model: ModelCard,
    gpu: GPU,
    tensor_parallel_size: int,
    quantization: str,
    new_tokens: int,
    cached_tokens: int = 0,
    data_parallel_size: int = 1,
) -> float:
    """Return the least time of a pass over one prompt's *new_tokens* behind *cached_tokens* on every rank."""
    attention = prefill_attention_bound_s(model, gpu, tensor_parallel_size, new_tokens, cached_tokens)
    weights = token_wise_bound_s(model, gpu, tensor_parallel_size, quantization, new_tokens, data_parallel_size)
    return float(weights + attention)


def decode_bound_s(
    model: ModelCard,
    gpu: GPU,
    tensor_parallel_size: int,
    quantization: str,
    kv_dtype: str,
    batch: int,
    context: int,
    data_parallel_size: int = 1,
) -> float:
    """Return the least time of a decode pass of *batch* requests of *context* tokens each on every rank."""
    attention = decode_attention_bound_s(model, gpu, tensor_parallel_size, kv_dtype, batch * context)
    weights = token_wise_bound_s(model, gpu, tensor_parallel_size, quantization, batch, data_parallel_size)
    return float(weights + attention)
