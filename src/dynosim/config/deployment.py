"""How the model is served: engine, pools of replicas, scheduler limits, KV cache, links, routing.

Names that a server would take are vLLM's argument names; exporters translate them for the other engines.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from dynosim.config.base import Config

EngineName = Literal["vllm", "sglang", "trtllm"]


class EngineConfig(Config):
    """The serving engine whose kernels and scheduler are modelled."""

    name: EngineName = "vllm"
    version: str = "current"
    """Version slot of the timing data; ``current`` is the newest measured one."""


class PackTiming(Config):
    """Measured kernel tables: a bundled timing pack, or one made by ``dynosim timing build``."""

    type: Literal["pack"] = "pack"


class RooflineTiming(Config):
    """FLOPs, bytes and bandwidths of the model and GPU cards, with efficiency factors."""

    type: Literal["roofline"] = "roofline"
    compute_efficiency: float = Field(default=0.6, gt=0.0, le=1.0)
    memory_efficiency: float = Field(default=0.75, gt=0.0, le=1.0)
    network_efficiency: float = Field(default=0.7, gt=0.0, le=1.0)


class PolynomialTiming(Config):
    """The neighbour's default polynomial of prefill tokens and KV utilisation (research/dynosim.md, section 6)."""

    type: Literal["polynomial"] = "polynomial"


class FixedTiming(Config):
    """Constant pass times: the shipped fake, for exact tests."""

    type: Literal["fixed"] = "fixed"
    prefill_ms_per_token: NonNegativeFloat = 0.1
    decode_ms: PositiveFloat = 10.0


Timing = Annotated[PackTiming | RooflineTiming | PolynomialTiming | FixedTiming, Field(discriminator="type")]


class PoolConfig(Config):
    """Equal replicas of one role. One replica is one engine on ``tensor_parallel_size`` GPUs."""

    replicas: PositiveInt = 1
    gpu: str | None = None
    """GPU of this pool where it differs from ``deployment.gpu``."""
    tensor_parallel_size: PositiveInt = 1
    enable_expert_parallel: bool = False
    """MoE only: shard experts over the tensor-parallel group instead of slicing each of them."""
    max_num_seqs: PositiveInt = 256
    max_num_batched_tokens: PositiveInt = 8192
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    block_size: PositiveInt = 16
    gpu_memory_utilization: float = Field(default=0.9, gt=0.0, le=1.0)
    num_gpu_blocks_override: PositiveInt | None = None
    """KV blocks of one replica; computed from GPU memory where not given."""
    scheduler_reserve_full_isl: bool = False
    """Admit a request only when its whole prompt fits in the free blocks, not just the next chunk."""

    @model_validator(mode="after")
    def _budget_covers_decodes(self) -> PoolConfig:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least"
                f" max_num_seqs ({self.max_num_seqs})"
            )
        return self


class LinkConfig(Config):
    """The KV hand-off network. Concurrent transfers of one sending or receiving replica share its bandwidth."""

    bandwidth_gb_s: PositiveFloat = 50.0
    """Per GPU and direction, in 1e9 bytes/s: 50 is one 400 Gbit/s InfiniBand port per GPU."""
    latency_us: NonNegativeFloat = 20.0


class DisaggregatedConfig(Config):
    """Separate prefill and decode pools with KV transfer between them."""

    prefill: PoolConfig
    decode: PoolConfig
    kv_transfer: LinkConfig = LinkConfig()


class RouterConfig(Config):
    """The routing policy by name, or ``package.module:Class``, with its options."""

    policy: str = "round_robin"
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the policy, for example ``overlap_weight`` of ``kv_aware``."""


class DeploymentConfig(Config):
    """One complete deployment."""

    model: str
    gpu: str
    quantization: Literal["none", "fp8"] = "none"
    kv_cache_dtype: Literal["auto", "bf16", "fp8"] = "auto"
    """``auto`` is fp8 for an fp8 checkpoint and bf16 otherwise."""
    engine: EngineConfig = EngineConfig()
    timing: Timing = PackTiming()
    mode: Literal["aggregated", "disaggregated"] = "aggregated"
    aggregated: PoolConfig | None = None
    disaggregated: DisaggregatedConfig | None = None
    router: RouterConfig = RouterConfig()

    @model_validator(mode="after")
    def _sections_match_mode(self) -> DeploymentConfig:
        sections = {"aggregated": self.aggregated, "disaggregated": self.disaggregated}
        if sections.pop(self.mode) is None:
            raise ValueError(f"mode {self.mode} needs a section {self.mode!r}")
        for name, section in sections.items():
            if section is not None:
                raise ValueError(f"section {name!r} has no effect under mode {self.mode}: remove it")
        return self

    def pools(self) -> dict[str, PoolConfig]:
        """Return role -> pool: ``mixed``, or ``prefill`` and ``decode``."""
        if self.aggregated is not None:
            return {"mixed": self.aggregated}
        assert self.disaggregated is not None
        return {"prefill": self.disaggregated.prefill, "decode": self.disaggregated.decode}

    def pool_gpu(self, pool: PoolConfig) -> str:
        """Return the GPU type that *pool* runs on."""
        return pool.gpu or self.gpu

    def num_gpus(self) -> int:
        """Return the GPUs of all replicas of all pools."""
        return sum(pool.replicas * pool.tensor_parallel_size for pool in self.pools().values())

    def label(self) -> str:
        """Return the field's shorthand: ``2xTP4``, or ``2xTP2+1xTP4`` (prefill + decode)."""
        return "+".join(
            f"{pool.replicas}x{'TEP' if pool.enable_expert_parallel else 'TP'}{pool.tensor_parallel_size}"
            for pool in self.pools().values()
        )
