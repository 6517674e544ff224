"""How a real server is started like a simulated deployment: one command per pool, in each engine's own flags.

Flags are those of ``dynosim.engines``; where the simulator has a knob that a server has no flag for, the script says so
in a comment. Left out: hosts and ports, and the router in front of the replicas.
"""

from __future__ import annotations

import json
from typing import Any

from dynosim.config import Scenario, TopologyConfig
from dynosim.engines import Launch, rules_of
from dynosim.hardware.models import precision_of
from dynosim.hardware.plan import PoolPlan, pool_plans

MTP = (
    "deepseek-v3", "deepseek-v3.2", "glm-4.5", "glm-4.5-air", "glm-5", "qwen3.5-397b-a17b", "qwen3-next-80b-a3b",
)  # fmt: skip
"""Models whose checkpoint has layers for multi-token prediction."""


def launch_script(scenario: Scenario) -> str:
    """Return a shell script with the command that starts one replica, for every pool of *scenario*."""
    deployment = scenario.deployment
    lines = ["#!/bin/sh", f"# {scenario.name or 'dynosim'}: {deployment.label()} of {deployment.model}, simulated"]
    lines.append(
        f"# defaults of {rules_of(deployment.engine).label}; flags of a recent release, which others may not have"
    )
    for plan in pool_plans(deployment).values():
        launch = _launch(plan)
        lines += ["", *_comments(plan, launch), plan.rules.command(launch)]
    return "\n".join(lines) + "\n"


def _launch(plan: PoolPlan) -> Launch:
    published = _checkpoint(plan).endswith("-FP8") or plan.model.fp8_block is not None
    return Launch(
        role=plan.role,
        engine=plan.engine,
        pool=plan.config,
        checkpoint=_checkpoint(plan),
        fp8_cache=plan.kv_dtype == "fp8",
        quantises=plan.deployment.quantization == "fp8" and not published,
        trtllm_gen=plan.model.runs_trtllm_gen(
            plan.gpu.architecture,
            plan.deployment.quantization,
            plan.config.tensor_parallel_size,
            plan.config.data_parallel_size,
        ),
        draft_tokens=_own_drafts(plan),
    )


def _own_drafts(plan: PoolPlan) -> int | None:
    """Return the number of drafts that the checkpoint's own layers make."""
    speculative = plan.engine.speculative
    own = speculative is not None and speculative.method == "mtp" and plan.model.name in MTP
    return plan.tokens_per_decode - 1 if own else None


def _checkpoint(plan: PoolPlan) -> str:
    """Return the checkpoint on the Hugging Face Hub, an instruction-tuned and published FP8 one where there is one."""
    if "/" in plan.deployment.model:
        return plan.deployment.model
    known = [name for name in plan.model.aliases if "/" in name]
    known = [name for name in known if precision_of(name) == plan.deployment.quantization] or known
    return next((name for name in known if "Instruct" in name), known[0])


def _comments(plan: PoolPlan, launch: Launch) -> list[str]:
    """Return what no flag says: how many replicas, on what, behind what."""
    deployment, pool = plan.deployment, plan.config
    scaler, gpus = pool.autoscaler, pool.gpus_per_replica
    count = f"{pool.replicas} x" if scaler is None else f"{scaler.min_replicas} to {scaler.max_replicas} x"
    out = [f"# {plan.role}: {count} this, each on {gpus} x {plan.gpu_name}"]
    router = deployment.role_router(plan.role)
    out.append(f"# router: {router.policy} {json.dumps(router.options)}")
    if scaler is not None:
        said = json.dumps(scaler.model_dump(exclude_defaults=True, exclude={"min_replicas", "max_replicas"}))
        out.append(f"# autoscaler: {scaler.policy} {said}")
    if gpus > (node := (deployment.topology or TopologyConfig()).gpus_per_node):
        out.append(f"# multi-node: {gpus} GPUs, {node} in a node: {plan.rules.multi_node}")
    if plan.engine.speculative and not launch.draft_tokens:
        drafts = f"# {plan.tokens_per_decode - 1} draft tokens by {plan.engine.speculative.method}"
        out.append(f"{drafts}: no layers of {deployment.model} make them: add the engine's flags for the drafter")
    if deployment.quantization == "nvfp4" and precision_of(launch.checkpoint) != "nvfp4":
        out.append(f"# no NVFP4 checkpoint of {deployment.model} is known here: quantise {launch.checkpoint} first")
    out += [f"# no flag for {name}: {value}" for name, value in _without_flag(plan, launch).items()]
    return out


def _without_flag(plan: PoolPlan, launch: Launch) -> dict[str, Any]:
    """Return the settings that the engine has no flag for, where they differ from what it does by itself."""
    pool, split = plan.config, plan.deployment.disaggregated
    local = split.local_prefill if split and plan.role == "decode" else None
    found = {
        "local_prefill": local and json.dumps(local.model_dump()),
        "scheduling_options": json.dumps(pool.scheduling_options) if pool.scheduling_options else None,
        **plan.rules.without_flag(launch),
    }
    return {name: value for name, value in found.items() if value is not None}
