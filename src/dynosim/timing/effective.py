"""What an engine adds to the bare passes of a timing source: speculation, pipeline stages, CPU time between passes.

Left out: the draft model's own prefill of each prompt, and the imbalance of pipeline stages (at most one layer, and the
vocabulary projection on the last).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dynosim.config import TopologyConfig
from dynosim.engines import Behaviour, behaviour
from dynosim.hardware.acceptance import draft_cost
from dynosim.hardware.models import ModelCard
from dynosim.hardware.plan import PoolPlan
from dynosim.hardware.roofline import verification_cost
from dynosim.hardware.topology import stage_bytes
from dynosim.timing.base import PassTables
from dynosim.timing.cuda_graphs import launch_uncovered

PADDED = {"auto": 0.0, "FLASHINFER": 1.0}
"""Attention backend -> share of the padding that decode attention computes. The tables' kernels split long contexts
over idle multiprocessors; FlashInfer's own on Blackwell, under CUDA graphs, end with the longest (docs/fidelity.md,
multi-turn runs)."""
SMALL_PASS_TOKENS = 1024
"""Passes up to this size take what their kernels take alone; larger ones fall behind (``prefill_slowdown``)."""
POINT_TO_POINT_LATENCY_S = 1e-5
"""Latency of one send and receive (aiconfigurator-core 0.12.0, ``systems/*.yaml``, ``p2p_latency``)."""


def verify_drafts(tables: PassTables, plan: PoolPlan, *, hardware: bool) -> PassTables:
    """Return tables by requests from *tables* by decode tokens, 1 + d to each request.

    The operations by token work on all of them; attention reads the KV cache once for all tokens of a request and is
    the dearer only where that makes it compute-bound. Formulas that know no *hardware* decode any
    number of tokens in the same time. Making d drafts takes d x ``draft_cost`` of a pass that decodes one token each.
    """
    speculative, tokens = plan.engine.speculative, plan.tokens_per_decode
    if speculative is None:
        return tables
    rows = slice(None, len(tables.graph_tokens_s[::tokens]))
    plain_s, context = tables.decode_s[rows] + tables.graph_tokens_s[rows, None], tables.decode_context[rows]
    cost = 1.0
    if hardware:
        cost = verification_cost(plan.model, plan.gpu, plan.config.tensor_parallel_size, plan.kv_dtype, tokens)
    return replace(
        tables,
        graph_tokens_s=tables.graph_tokens_s[::tokens],
        decode_context=context,
        decode_s=cost * tables.decode_s[rows] + (tokens - 1) * draft_cost(speculative, plan.model) * plain_s,
    )


def point_to_point_s(plan: PoolPlan) -> tuple[float, float]:
    """Return what all transfers between the pipeline stages of one pass take: (s, s per token).

    Stages inside one NVLink domain send over NVLink. A replica without a place in a topology fills domains of its own,
    which the network joins; what a topology's placement adds is ``hardware.topology``'s.
    """
    gpu, tp, placed = plan.gpu, plan.config.tensor_parallel_size, plan.deployment.topology is not None
    seconds = token_s = 0.0
    for boundary in range(tp, tp * plan.config.pipeline_parallel_size, tp):
        crosses = not placed and (boundary - tp) // gpu.scale_up_gpus != boundary // gpu.scale_up_gpus
        network = TopologyConfig().inter_node_bandwidth_gb_s * 1e9
        seconds += POINT_TO_POINT_LATENCY_S
        token_s += stage_bytes(plan) / (network if crosses else gpu.nvlink_bytes_s)
    return seconds, token_s


def add_stage_transfers(tables: PassTables, plan: PoolPlan) -> PassTables:
    """Add the transfers between pipeline stages."""
    if plan.config.pipeline_parallel_size == 1:
        return tables
    seconds, token_s = point_to_point_s(plan)
    return _add(tables, seconds, token_s, plan.tokens_per_decode * token_s)


def add_write_through(tables: PassTables, plan: PoolPlan) -> PassTables:
    """Add the memory traffic of KV offloading.

    The copy down reads the KV of every token that goes there once more, while the pass needs the same memory.
    """
    offload = plan.config.kv_offload
    if not (offload.host or offload.disk or offload.remote):
        return tables
    token_s = plan.kv_bytes_per_token / plan.gpu.memory_bandwidth_bytes_s
    return _add(tables, 0.0, token_s, 0.0 if plan.offloads_prompt_only else token_s)


def add_overheads(tables: PassTables, plan: PoolPlan, *, hardware: bool) -> PassTables:
    """Add what the engine adds to its kernels: see ``engines.base.Behaviour``.

    Each request's overhead is in ``decode_s`` for decodes, which all passes with decodes read; the pass's own is in
    both token-wise curves, of which every pass reads exactly one.
    """
    engine = plan.engine
    own = behaviour(engine, hardware=hardware, role=plan.role)
    request_s, launch_s = own.request_us * 1e-6, _launch_s(own, plan.model)
    beyond_s = np.maximum(tables.tokens_s - tables.tokens_s[min(SMALL_PASS_TOKENS, len(tables.tokens_s) - 1)], 0.0)
    tables = replace(
        tables,
        tokens_s=tables.tokens_s + (own.prefill_slowdown - 1.0) * beyond_s,
        prefill_share_s=tables.prefill_share_s * own.prefill_slowdown,
        overlap=own.overlap,
        decode_skew=PADDED[engine.attention_backend],
        eager_tokens=plan.graphs.mixed_tokens,
        eager_s=launch_s,
    )
    tables = _add(tables, own.pass_us * 1e-6 + _untuned_s(own, plan), 0.0, 0.0)
    batches = np.arange(len(tables.decode_s))[:, None]
    tables = replace(tables, decode_s=tables.decode_s + request_s * batches, chunk_s=tables.chunk_s + request_s)
    return launch_uncovered(tables, plan.graphs, launch_s)


def _launch_s(own: Behaviour, model: ModelCard) -> float:
    """CPU time to launch a pass: an expert layer has more kernels than a dense one, and so has latent attention."""
    kernels = own.moe_launches if model.moe else 1.0
    return own.launch_us * 1e-6 * model.layers * (kernels + own.mla_launches * (model.mla is not None))


def _untuned_s(own: Behaviour, plan: PoolPlan) -> float:
    if plan.model.mla is None or plan.deployment.quantization != "fp8":
        return 0.0
    return own.untuned_us.get(plan.gpu.architecture, 0.0) * 1e-6 * plan.model.layers


def _add(tables: PassTables, pass_s: float, token_s: float, request_s: float) -> PassTables:
    tokens, batches = np.arange(len(tables.tokens_s)), np.arange(len(tables.graph_tokens_s))
    return replace(
        tables,
        tokens_s=tables.tokens_s + pass_s * (tokens > 0) + token_s * tokens,
        graph_tokens_s=tables.graph_tokens_s + pass_s * (batches > 0) + request_s * batches,
    )
