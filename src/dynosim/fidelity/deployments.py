"""The deployment that a measured row was run on: from its columns, its notes, and its source's launch scripts.

What a row leaves open is taken from public launch scripts (``scripts``) or the engine's defaults, never from the row's
measured numbers. A flag that is not simulated is unread, and said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from dynosim.config import DeploymentConfig
from dynosim.engines import ENGINES
from dynosim.errors import ConfigError
from dynosim.fidelity.flags import (
    FP8_CACHE_OF_CHECKPOINT,
    Field,
    is_idle,
    setting_of,
)
from dynosim.fidelity.measurements import Measurement
from dynosim.fidelity.names import card_of, engine_of, quantization_of, version_of
from dynosim.fidelity.recipes import NVL72_NODE_GPUS, RECIPES
from dynosim.fidelity.scripts import SCRIPTS, flags_of
from dynosim.hardware.plan import PoolPlan

RDMA_EFFICIENCY = 0.85
HAND_OFF_LATENCY_US = 1500.0
"""Of Mooncake's hand-offs: 84 % of the line rate and 1.6 ms each, over all lengths of its disaggregated runs."""
NIXL, NIXL_HAND_OFF_LATENCY_US = "sglang.*Dynamo", 150_000.0
"""Of SGLang's under Dynamo: what unloaded requests wait beyond passes and bytes, the median over runs on H100, H200,
B200 and GB200; polls of both schedulers and the transfer's descriptors are not told apart."""
RANDOM_WORDS_RATE = 0.618
"""Of drafts where prompts are random words: 1.99 tokens per pass of 2 drafts by DeepSeek-V4-Flash's MTP, vLLM's random
data set (vllm-project/vllm, pull request 41044, rejection sampling). Text that means something is accepted more often.
"""
FIRST_PROMPTS_S = 3.0
"""How much longer than their passes the first prompts of a run take under SGLang on AMD: 1.3 to 4.4 s in 47 of 53 runs
of one server, whatever the load and length (median 3.0), as if kernels were made at first use. Nobody has shown why."""

Sizes = dict[str, Any]
"""Replicas and parallel sizes of a pool, as ``PoolConfig`` has them."""


class Run(NamedTuple):
    """What a row says was run."""

    deployment: DeploymentConfig
    unread: tuple[str, ...]
    """Flags and phrases of its notes that are not simulated."""


def deployment_of(row: Measurement) -> DeploymentConfig:
    """Return the deployment that *row* was measured on; ConfigError for what dynosim does not know."""
    return run_of(row).deployment


def run_of(row: Measurement) -> Run:
    """Return what *row* says was run; ConfigError for what dynosim does not know."""
    engine, layout = engine_of(row), _layout(row, engine_of(row))
    said = {name: _value(row, text) for name, text in row.flags.items()}
    flags = {role: flags_of((*SCRIPTS, *RECIPES), row, engine, role) | said for role in layout}
    settings = {role: _settings(engine, flags[role]) for role in layout}
    every = {name: value for role in reversed(layout) for name, value in flags[role].items()}
    fields = _settings(engine, every).values()
    deployment = DeploymentConfig.model_validate(
        {
            "model": row.model,
            "gpu": card_of(row.gpu),
            **_precisions(row, engine, every.get("kv_cache_dtype")),
            "engine": {
                "name": engine,
                "version": version_of(row, engine),
                "speculative": _speculative(row, every),
                **{field.name: value for field, value in fields if field.section == "engine"},
            },
            **_sections(row, {role: _pool(row, layout[role], settings[role].values()) for role in layout}),
        }
    )
    if "mixed" in layout and layout["mixed"].get("replicas", 1) > 1:
        deployment = _lanes(deployment)
    if "mixed" in layout and "gpu_kv_cache_tokens" in row.facts:
        block_tokens = PoolPlan.of(deployment, "mixed").config.block_size
        deployment = _with_blocks(deployment, int(row.facts["gpu_kv_cache_tokens"]) // block_tokens)
    if deployment.num_gpus() != row.n_gpus:
        raise ConfigError(f"{row.n_gpus}: the layout {deployment.label()} has {deployment.num_gpus()}", path="n_gpus")
    known = set().union(*settings.values())
    unread = [f"{name} {text}" for name, text in row.flags.items() if name not in known and not is_idle(name)]
    return Run(deployment, (*unread, *row.unread))


def _settings(engine: str, flags: Mapping[str, Any]) -> dict[str, tuple[Field, Any]]:
    return {name: found for name, value in flags.items() if (found := setting_of(engine, name, value))}


def first_prompts_s(row: Measurement) -> float:
    """Return how long the first prompts of *row*'s run wait for more than their passes."""
    burst = "closed-loop concurrency" in row.load_kind and not row.disaggregated
    return FIRST_PROMPTS_S if burst and re.match("sglang", row.engine) and row.gpu.startswith("MI") else 0.0


def _sections(row: Measurement, pools: Mapping[str, Sizes]) -> dict[str, Any]:
    if "mixed" in pools:
        # A request goes to the attention rank with the fewest (TensorRT-LLM's ``executor_request_queue.py``, vLLM).
        return {"mode": "aggregated", "aggregated": pools["mixed"], "router": {"policy": "least_outstanding"}}
    return {"mode": "disaggregated", "disaggregated": {**pools, "kv_transfer": _link(row)}}


def _link(row: Measurement) -> dict[str, Any]:
    """Return the hand-off network of ``RoCE 4x400GbE per node``; a node has 8 GPUs. RDMA gets most of the line rate."""
    if "ports_per_node" not in row.facts:
        return {"latency_us": NIXL_HAND_OFF_LATENCY_US} if re.match(NIXL, row.engine) else {}
    per_gpu = int(row.facts["ports_per_node"]) * int(row.facts["port_gbit_s"]) / 8 / 8
    return {"bandwidth_gb_s": RDMA_EFFICIENCY * per_gpu, "latency_us": HAND_OFF_LATENCY_US}


# ---- settings -----------------------------------------------------------------------------------------------------


_WORDS = {"on": True, "async": True, "ignore-eos": True, "off": False, "no": False}


def _value(row: Measurement, text: str) -> Any:
    """Return what notes write as ``on``, ``32k``, ``2*ISL``, ``conc`` or ``0.90-0.95``."""
    if text in _WORDS:
        return _WORDS[text]
    if text == "conc":
        return row.concurrency
    if found := re.fullmatch(r"(\d+)\*ISL", text):
        return int(found[1]) * int(row.isl)
    if found := re.fullmatch(r"(?:[\d.]+-)?(\d+(?:\.\d+)?)(k?)", text):  # of several, the largest was the best
        number = float(found[1]) * (1024 if found[2] else 1)
        return int(number) if number.is_integer() else number
    return text


def _precisions(row: Measurement, engine: str, kv_cache_dtype: str | None) -> dict[str, str]:
    """Return checkpoint and KV precision."""
    quantization = quantization_of(row)
    if kv_cache_dtype == "fp8":
        dtype = "auto" if quantization != "none" else "fp8"
    else:
        dtype = "auto" if quantization == "none" or engine in FP8_CACHE_OF_CHECKPOINT else "bf16"
    return {"quantization": quantization, "kv_cache_dtype": dtype}


def _pool(row: Measurement, sizes: Sizes, settings: Iterable[tuple[Field, Any]]) -> Sizes:
    fields: Sizes = {}
    for field, value in settings:
        if field.section == "pool":
            ranks = sizes.get("data_parallel_size", 1) if field.of_all_ranks else 1
            fields[field.name] = max(value // ranks, 1) if ranks > 1 else value
    if row.gpu.startswith("B200") and "max_num_seqs_on_b200" in row.facts:
        fields["max_num_seqs"] = int(row.facts["max_num_seqs_on_b200"])
    if {"max_num_seqs", "max_num_batched_tokens"} <= {*fields}:
        fields["max_num_seqs"] = min(fields["max_num_seqs"], fields["max_num_batched_tokens"])
    if "cpu_kv_offload_gib" in row.facts:
        fields["kv_offload"] = {"host": {"size_gib": float(row.facts["cpu_kv_offload_gib"])}}
    return sizes | fields


def _speculative(row: Measurement, flags: Mapping[str, Any]) -> dict[str, Any] | None:
    method = row.facts.get("spec_decoding", "none")
    if method == "none":
        return None
    drafts = int(row.facts.get("drafts") or flags.get("drafts") or 0)
    if not drafts:
        raise ConfigError(f"{method}: neither notes nor a launch script say how many tokens are drafted", path="notes")
    rates = {"acceptance_rates": [RANDOM_WORDS_RATE]} if "random_range_ratio" in row.facts else {}
    return {"method": method, "num_speculative_tokens": drafts, **rates}


# ---- layout -------------------------------------------------------------------------------------------------------


def _layout(row: Measurement, engine: str) -> dict[str, Sizes]:
    """Return role -> replicas and parallel sizes; ConfigError where the notes do not say them."""
    if not row.disaggregated:
        return {"mixed": _aggregated(row, engine)}
    if "layout_not_stated" in row.facts:
        raise ConfigError("the layout of the pools is not stated", path="notes")
    return {role: _workers(row, engine, role) for role in ("prefill", "decode")}


def _workers(row: Measurement, engine: str, role: str) -> Sizes:
    each = row.facts.get("each_tp", row.n_gpus)
    said = {name: int(row.facts.get(f"{role}_{name}", default)) for name, default in
            (("workers", 1), ("tp", each), ("dp", 1), ("ep", 1))}  # fmt: skip
    width = said["tp"] * said["dp"]
    if "layout_completed" in row.facts and width <= NVL72_NODE_GPUS:
        # The source lists data-parallel attention; the recipes (gb200-fp8/*/low-latency.yaml) start such groups with
        # tensor parallelism, and DeepSeek-R1 in FP8 would not fit otherwise.
        said |= {"tp": width, "dp": 1, "ep": 1}
    return {"replicas": said["workers"], **_parallel(engine, said["tp"], said["dp"], said["ep"])}


def _aggregated(row: Measurement, engine: str) -> Sizes:
    """Return the sizes of ``layout DEP2,PP2``, or of the columns and ``moe_ep=4 attention_dp=4``."""
    said = {kind: int(size) for kind, size in re.findall(r"([A-Z]+)(\d+)", row.facts.get("layout", ""))}
    stages = said.get("PP") or int(row.facts.get("pipeline_parallel", 1))
    if not said.keys() - {"PP"}:
        ranks, experts = (int(row.facts.get(name, 1)) for name in ("attention_dp", "moe_ep"))
        tp = row.tp or row.n_gpus // stages
        said["TP"] = tp if tp * ranks <= row.n_gpus else max(row.n_gpus // ranks, 1)
        said["DEP" if experts > 1 else "DP"] = ranks
        said["TEP"] = said["TP"] if experts > 1 else 1
    ranks, tp = max(said.get("DEP", 1), said.get("DP", 1)), max(said.get("TP", 1), said.get("TEP", 1))
    experts = said.get("DEP", 1) * said.get("TEP", 1)
    return {"replicas" if ranks > 1 else "pipeline_parallel_size": stages, **_parallel(engine, tp, ranks, experts)}


def _lanes(deployment: DeploymentConfig) -> DeploymentConfig:
    """Return the pipeline of data-parallel ranks that *deployment* stands for, whose replicas are its lanes.

    A pass of a lane takes as long through all stages as on a replica of that size. But each GPU holds one stage's
    weights and the blocks of all lanes in that stage's layers.
    """
    pool, plan = deployment.aggregated, PoolPlan.of(deployment, "mixed")
    assert pool is not None
    blocks = min(replace(plan, model=stage).capacity.blocks for stage in plan.model.stages(pool.replicas))
    return _with_blocks(deployment, blocks // pool.replicas + plan.rules.null_blocks)


def _with_blocks(deployment: DeploymentConfig, blocks: int) -> DeploymentConfig:
    """Return *deployment*, an aggregated one, with *blocks* KV blocks in each scheduler."""
    assert deployment.aggregated is not None
    pool = deployment.aggregated.model_copy(update={"num_gpu_blocks_override": blocks})
    return deployment.model_copy(update={"aggregated": pool})


def _parallel(engine: str, tp: int, ranks: int, experts: int) -> Sizes:
    """Return the sizes of a replica; the attention ranks of some engines are single GPUs."""
    if ENGINES[engine]["current"].one_gpu_per_rank and ranks > 1:
        tp, ranks = 1, tp * ranks
    return {"tensor_parallel_size": tp, "data_parallel_size": ranks, "enable_expert_parallel": experts > 1}
