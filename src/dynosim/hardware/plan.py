"""The plan of one pool: its configuration with the cards, rules and sizes that follow from it, looked up once.

The KV cache is what the engine's own rule leaves of a GPU beside weights, activations and runtime
(``hardware.memory``). With pipeline stages every stage must hold its layers of every block: the fullest one counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dynosim.config import DeploymentConfig, EngineConfig, PoolConfig, StartedPool
from dynosim.engines import EngineRules, Graphs, Held, Server, rules_of, started
from dynosim.errors import InfeasibleError
from dynosim.hardware.acceptance import acceptance_rates
from dynosim.hardware.gpus import GPU, get_gpu
from dynosim.hardware.memory import (
    KVCapacity,
    activation_bytes_per_gpu,
    kv_bytes_per_token,
    weights_bytes_per_gpu,
)
from dynosim.hardware.models import ModelCard, get_model

DRAFT_HEADS = ("mtp", "eagle", "eagle3", "dspark")
"""Methods whose drafts one more layer makes."""


@dataclass(frozen=True, eq=False)
class PoolPlan:
    """One pool of *deployment*."""

    role: str
    """``mixed``, ``prefill`` or ``decode``."""
    deployment: DeploymentConfig
    config: StartedPool
    """With what the engine fills in where the deployment leaves it open."""
    model: ModelCard
    gpu: GPU
    rules: EngineRules
    graphs: Graphs

    @classmethod
    def of(cls, deployment: DeploymentConfig, role: str, config: PoolConfig | None = None) -> PoolPlan:
        """Return the plan of the pool of *role*, or of *config* in its place; ConfigError for unknown cards."""
        own = config or deployment.pools()[role]
        model, gpu, rules = get_model(deployment.model), get_gpu(deployment.pool_gpu(own)), rules_of(deployment.engine)
        server = Server(
            role=role,
            engine=deployment.engine,
            pool=own,
            model=model.name,
            mla=model.mla is not None,
            fp8_cache=_kv_dtype(deployment) == "fp8",
            gpu=gpu.name,
            architecture=gpu.architecture,
            memory_bytes=gpu.memory_bytes,
        )
        config = started(server)
        return cls(role, deployment, config, model, gpu, rules, rules.graphs(rules, replace(server, pool=config)))

    @property
    def engine(self) -> EngineConfig:
        """The engine of all pools."""
        return self.deployment.engine

    @property
    def gpu_name(self) -> str:
        """The GPU as the configuration names it."""
        return self.deployment.pool_gpu(self.config)

    @property
    def kv_dtype(self) -> str:
        """``bf16`` or ``fp8``: ``auto`` follows the checkpoint."""
        return _kv_dtype(self.deployment)

    @property
    def offloads_prompt_only(self) -> bool:
        """Whether answers stay out of the tiers below the GPU."""
        own = self.config.kv_offload.offload_prompt_only
        return self.rules.offloads_prompt_only if own is None else own

    @property
    def tokens_per_decode(self) -> int:
        """Tokens of one request that a decode pass computes: one, and those that were drafted."""
        return self.engine.tokens_per_decode

    @cached_property
    def acceptance_rates(self) -> tuple[float, ...]:
        """Probability that draft 1, 2, ... is accepted if all before it were; InfeasibleError where nobody knows."""
        return acceptance_rates(self.engine.speculative, self.model) if self.engine.speculative else (0.0,)

    @property
    def tokens_per_pass(self) -> float:
        """Mean tokens of a request per decode pass: 1 + sum over k of p_1 ... p_k."""
        rates = np.array(self.acceptance_rates)
        drafted = np.minimum(np.arange(self.tokens_per_decode - 1), len(rates) - 1)
        return 1.0 + float(np.cumprod(rates[drafted]).sum())

    @cached_property
    def kv_bytes_per_token(self) -> int:
        """On one GPU, all layers."""
        tp, share = self.config.tensor_parallel_size, self.rules.memory.window_share
        return kv_bytes_per_token(self.model, tp, self.kv_dtype, share)

    @cached_property
    def capacity(self) -> KVCapacity:
        """The KV blocks of one scheduler rank; ``num_gpu_blocks_override`` wins over the computed number.

        ``gpu_memory_utilization`` means what each engine's own argument means (``engines.base.Memory.kv_bytes``).

        Raises InfeasibleError with the sum when not even one block fits.
        """
        stages = [self._stage(stage) for stage in self._held.stages(self.config.pipeline_parallel_size)]
        fullest = min(stages, key=lambda stage: stage.blocks)
        if fullest.blocks < 1:
            raise InfeasibleError(self._does_not_fit(fullest))
        return replace(fullest, bytes_per_token=sum(stage.bytes_per_token for stage in stages))

    @property
    def _held(self) -> ModelCard:
        """The model with the layer that makes its drafts, which has weights and a KV cache as any other."""
        speculative = self.engine.speculative
        heads = speculative is not None and speculative.method in DRAFT_HEADS
        return replace(self.model, layers=self.model.layers + heads)

    def _stage(self, stage: ModelCard) -> KVCapacity:
        pool, memory, tp = self.config, self.rules.memory, self.config.tensor_parallel_size
        weights = weights_bytes_per_gpu(
            stage, tp, self.deployment.quantization, pool.data_parallel_size, pool.enable_expert_parallel
        )
        activations = activation_bytes_per_gpu(stage, memory, pool)
        runtime = memory.resident_bytes[tp * pool.data_parallel_size > 1]
        runtime += memory.graph_bytes if self.graphs.batches else 0.0
        held = Held(weights, activations, runtime)
        budget = memory.kv_bytes(self.gpu.memory_bytes, held, pool.gpu_memory_utilization)
        per_token = kv_bytes_per_token(stage, tp, self.kv_dtype, memory.window_share)
        # A stage of sliding-window layers only keeps next to nothing per token.
        blocks = pool.num_gpu_blocks_override or int(budget // max(per_token * pool.block_size, 1))
        return KVCapacity(
            blocks=blocks - self.rules.null_blocks,
            block_size=pool.block_size,
            bytes_per_token=per_token * tp,
            gpu_memory_bytes=self.gpu.memory_bytes,
            weights_bytes_per_gpu=weights,
            activation_bytes_per_gpu=activations,
            runtime_bytes_per_gpu=round(runtime),
            kv_bytes_per_gpu=int(budget),
        )

    def _does_not_fit(self, full: KVCapacity) -> str:
        return (
            f"{self.model.name} does not fit on {self.config.gpus_per_replica} x {self.gpu_name}:"
            f" {_gib(full.weights_bytes_per_gpu)} weights, {_gib(full.activation_bytes_per_gpu)} activations and"
            f" {_gib(full.runtime_bytes_per_gpu)} runtime leave {_gib(full.kv_bytes_per_gpu)} of"
            f" {_gib(full.gpu_memory_bytes)} per GPU for KV blocks, at {self.rules.title}'s share of"
            f" {self.config.gpu_memory_utilization:g}"
        )


def pool_plans(deployment: DeploymentConfig) -> dict[str, PoolPlan]:
    """Return role -> plan of every pool of *deployment*; ConfigError for unknown cards."""
    return {role: PoolPlan.of(deployment, role) for role in deployment.pools()}


def _kv_dtype(deployment: DeploymentConfig) -> str:
    if deployment.kv_cache_dtype != "auto":
        return deployment.kv_cache_dtype
    return "bf16" if deployment.quantization == "none" else "fp8"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
