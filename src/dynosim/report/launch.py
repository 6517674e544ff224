"""How a real server is started like a simulated deployment: one command per pool, in each engine's own flags.

Flags are those of ``dynosim.engines``; where the simulator has a knob that a server has no flag for, the script says so
in a comment. Left out: hosts and ports, and the router in front of the replicas.
"""

from __future__ import annotations

import json
from typing import Any

from dynosim.config import DeploymentConfig, PoolConfig, Scenario
from dynosim.config.deployment import TopologyConfig
from dynosim.engines import Launch, block_size, rules_of
from dynosim.hardware.memory import kv_dtype
from dynosim.hardware.models import get_model, precision_of

MTP = ("deepseek-v3", "deepseek-v3.2", "glm-5")
"""Models whose checkpoint has layers for multi-token prediction."""


def launch_script(scenario: Scenario) -> str:
    """Return a shell script with the command that starts one replica, for every pool of *scenario*."""
    deployment = scenario.deployment
    lines = ["#!/bin/sh", f"# {scenario.name or 'dynosim'}: {deployment.label()} of {deployment.model}, simulated"]
    for role, pool in deployment.pools().items():
        launch = _launch(deployment, role, pool)
        lines += ["", *_comments(deployment, launch), rules_of(deployment.engine).command(launch)]
    return "\n".join(lines) + "\n"


def _launch(deployment: DeploymentConfig, role: str, pool: PoolConfig) -> Launch:
    return Launch(
        role=role,
        engine=deployment.engine,
        pool=pool,
        checkpoint=checkpoint(deployment),
        block_size=block_size(deployment, pool),
        fp8_cache=kv_dtype(deployment) == "fp8",
        quantises=_quantises(deployment),
        draft_tokens=_drafts(deployment),
    )


def _comments(deployment: DeploymentConfig, launch: Launch) -> list[str]:
    """Return what no flag says: how many replicas, on what, behind what."""
    role, pool = launch.role, launch.pool
    scaler, gpus = pool.autoscaler, pool.gpus_per_replica
    count = f"{pool.replicas} x" if scaler is None else f"{scaler.min_replicas} to {scaler.max_replicas} x"
    out = [f"# {role}: {count} this, each on {gpus} x {deployment.pool_gpu(pool)}"]
    router = deployment.role_router(role)
    out.append(f"# router: {router.policy} {json.dumps(router.options)}")
    if scaler is not None:
        said = json.dumps(scaler.model_dump(exclude_defaults=True, exclude={"min_replicas", "max_replicas"}))
        out.append(f"# autoscaler: {scaler.policy} {said}")
    if gpus > (node := (deployment.topology or TopologyConfig()).gpus_per_node):
        out.append(f"# multi-node: {gpus} GPUs, {node} in a node: {rules_of(deployment.engine).multi_node}")
    if deployment.engine.speculative and not launch.draft_tokens:
        drafts = deployment.engine.speculative.num_speculative_tokens
        out.append(
            f"# {drafts} draft tokens: {deployment.model} has no MTP layer: choose a draft model or n-gram method"
        )
    if deployment.quantization == "nvfp4" and precision_of(launch.checkpoint) != "nvfp4":
        out.append(f"# no NVFP4 checkpoint of {deployment.model} is known here: quantise {launch.checkpoint} first")
    out += [f"# no flag for {name}: {value}" for name, value in _without_flag(launch, deployment).items()]
    return out


def _drafts(deployment: DeploymentConfig) -> int | None:
    """Return the draft tokens that the model makes itself; None where it does not."""
    speculative = deployment.engine.speculative
    has_mtp = get_model(deployment.model).name in MTP
    return speculative.num_speculative_tokens if speculative and has_mtp else None


def _without_flag(launch: Launch, deployment: DeploymentConfig) -> dict[str, Any]:
    """Return the settings that the engine has no flag for, where they differ from what it does by itself."""
    pool, split = launch.pool, deployment.disaggregated
    local = split.local_prefill if split and launch.role == "decode" else None
    found = {
        "local_prefill": local and json.dumps(local.model_dump()),
        "scheduling_options": json.dumps(pool.scheduling_options) if pool.scheduling_options else None,
        **rules_of(launch.engine).without_flag(launch),
    }
    return {name: value for name, value in found.items() if value is not None}


def checkpoint(deployment: DeploymentConfig) -> str:
    """Return the checkpoint on the Hugging Face Hub, an instruction-tuned and published FP8 one where there is one."""
    if "/" in deployment.model:
        return deployment.model
    known = [name for name in get_model(deployment.model).aliases if "/" in name]
    known = [name for name in known if precision_of(name) == deployment.quantization] or known
    return next((name for name in known if "Instruct" in name), known[0])


def _quantises(deployment: DeploymentConfig) -> bool:
    """Return whether the server has to quantise the checkpoint itself."""
    published = checkpoint(deployment).endswith("-FP8") or get_model(deployment.model).fp8_block is not None
    return deployment.quantization == "fp8" and not published
