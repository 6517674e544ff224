"""How the model is served: engine, pools of replicas, scheduler limits, KV cache, links, routing.

Names that a server would take are vLLM's argument names; exporters translate them for the other engines.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from dynosim.config.base import CUSTOM, Config, Custom

EngineName = Literal["vllm", "sglang", "trtllm"]
Version = Annotated[str, Field(pattern=r"^(current|v?\d+(\.\d+)+\S*)$", examples=["current", "0.18.0"])]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


SECTIONS = {
    "mixed": "deployment.aggregated",
    "prefill": "deployment.disaggregated.prefill",
    "decode": "deployment.disaggregated.decode",
}
"""Role -> where its pool is configured."""


class SpeculativeConfig(Config):
    """Speculative decoding: every decode pass checks drafted tokens beside the next one."""

    method: Literal["mtp", "eagle", "eagle3", "dspark", "ngram", "draft_model"] = "mtp"
    """What makes the drafts (vLLM's names): the model's own multi-token head, a trained one, earlier text, a model."""
    num_speculative_tokens: int = Field(ge=1, le=16)
    """Draft tokens per request and pass."""
    acceptance_length: float | None = Field(default=None, ge=1.0)
    """Mean tokens of a request per decode pass, the next one included: what servers report. Where neither this nor
    ``acceptance_rates`` is given, what was measured of the model, method and number of drafts."""
    acceptance_rates: tuple[Probability, ...] | None = Field(default=None, min_length=1)
    """Probability that draft token 1, 2, ... is accepted if all before it were; the last value holds for all further
    ones."""
    draft_cost: NonNegativeFloat | None = None
    """Time of making one draft token as a share of a decode pass; not given: 1 / layers for a head of one layer, 0 for
    n-grams."""

    @model_validator(mode="after")
    def _acceptance_is_said_once(self) -> SpeculativeConfig:
        if self.acceptance_length is None:
            return self
        if self.acceptance_rates is not None:
            raise ValueError("acceptance_length and acceptance_rates say the same: give one of them")
        if self.acceptance_length > 1 + self.num_speculative_tokens:
            raise ValueError(
                f"acceptance_length ({self.acceptance_length:g}) must be at most 1 + num_speculative_tokens"
                f" ({1 + self.num_speculative_tokens})"
            )
        return self


class EngineConfig(Config):
    """The serving engine whose kernels and scheduler are modelled."""

    name: EngineName = "vllm"
    version: Version = "current"
    """The engine's own version, such as ``0.18.0``: its defaults and rules are those of the newest record that is not
    newer (``dynosim.engines``), and kernel tables measured on that version are read where there are some. ``current``
    is the newest."""
    async_scheduling: bool | None = None
    """Choose a pass while the one before runs (vLLM's argument; SGLang's and TensorRT-LLM's overlap scheduler): no gap
    between passes, and who comes during a pass misses the next one too. Not given: on, where pass times are those
    of hardware; off under formulas. Pipelines do without."""
    cudagraph_mode: Literal["FULL_AND_PIECEWISE", "FULL_DECODE_ONLY", "NONE"] | None = None
    """Passes that CUDA graphs cover (vLLM's values): decodes and small passes with prompt chunks; decodes only; none.
    Not given: the engine's default."""
    attention_backend: Literal["auto", "FLASHINFER"] = "auto"
    """Decode attention: the kernels of the timing source, or FlashInfer's own (vLLM's ``use_trtllm_attention=0``),
    which take as long as if every context were as long as the longest of the batch."""
    mxfp8_activations: bool = False
    """vLLM on data-centre Blackwell: experts of MXFP4 (gpt-oss) get activations of MXFP8 in place of bf16
    (``--moe-backend flashinfer_trtllm_afp8``; ``VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8`` of older images)."""
    max_cudagraph_capture_size: PositiveInt | None = None
    """Largest pass, in tokens, that is captured (vLLM's argument; SGLang's ``cuda_graph_max_bs``; TensorRT-LLM's
    ``cuda_graph_config.max_batch_size``, with padding). Not given: the engine's default on the GPU."""
    launch_overhead_us: NonNegativeFloat | None = None
    """CPU time to launch the kernels of one layer where no CUDA graph covers a pass: it takes at least so much per
    layer. This and the other overheads, where not given: the engine's (``dynosim.engines``), or none under formulas."""
    pass_overhead_us: NonNegativeFloat | None = None
    """CPU time between passes for which the GPU waits: scheduling, batch preparation, sampling launch."""
    request_overhead_us: NonNegativeFloat | None = None
    """CPU time per request of a pass for which the GPU waits: sampling, detokenising, streaming."""
    frontend_ms: NonNegativeFloat | None = None
    """From the client to the engine and back: HTTP, tokenising, detokenising. Part of the time to first token."""
    frontend_request_us: NonNegativeFloat | None = None
    """CPU time of a replica's frontend per request, one after the other: no two requests reach the engine at once."""
    ignore_eos: bool = False
    """SGLang: requests say that they generate their whole output (benchmarks' ``--ignore-eos``), so admission keeps
    room for all of it, not a share; without prefix caching it looks ahead to when each of them ends."""
    schedule_conservativeness: PositiveFloat = 1.0
    """SGLang: scales the share of the outputs to come that admission keeps tokens for; more retracts less."""
    enable_mixed_chunk: bool = False
    """SGLang: prefill passes carry the running decodes along."""
    max_prefill_tokens: PositiveInt = 16384
    """SGLang: prompt tokens of one prefill pass that holds several requests."""
    scheduler_recv_interval: PositiveInt = 1
    """SGLang: decode passes from one look for new requests to the next; a prefill pass is followed by a look too."""
    capacity_scheduler_policy: Literal["GUARANTEED_NO_EVICT", "MAX_UTILIZATION"] = "GUARANTEED_NO_EVICT"
    """TensorRT-LLM: admit a request when its whole context will fit, or as soon as its next blocks do."""
    batch_wait_timeout_iters: NonNegativeInt = 0
    """TensorRT-LLM: the most passes that prompts wait, while others decode, for
    ``batch_wait_max_tokens_ratio`` x ``max_num_batched_tokens`` tokens of company."""
    batch_wait_max_tokens_ratio: float = Field(default=0.0, ge=0.0, le=1.0)
    attention_dp_enable_balance: bool = False
    """TensorRT-LLM: prompts start on all data-parallel ranks in one pass, which otherwise wait for each other's."""
    attention_dp_timeout_iters: PositiveInt = 50
    """TensorRT-LLM: the most passes that prompts wait for those of the other ranks."""
    attention_dp_batching_wait_iters: NonNegativeInt = 10
    """TensorRT-LLM: passes that they wait on, once all ranks have some."""
    speculative: SpeculativeConfig | None = None

    @property
    def tokens_per_decode(self) -> int:
        """Tokens of one request that a decode pass computes: one, and those that were drafted."""
        return 1 + (self.speculative.num_speculative_tokens if self.speculative else 0)


class PackTiming(Config):
    """Measured kernel tables: a bundled timing pack, or one made by ``dynosim timing build``."""

    type: Literal["pack"] = "pack"


class RooflineTiming(Config):
    """FLOPs, bytes and bandwidths of the model and GPU cards, with efficiency factors: the GPU's own by default."""

    type: Literal["roofline"] = "roofline"
    compute_efficiency: float | None = Field(default=None, gt=0.0, le=1.0)
    """Of every precision, and of attention."""
    memory_efficiency: float | None = Field(default=None, gt=0.0, le=1.0)
    network_efficiency: float | None = Field(default=None, gt=0.0, le=1.0)


class PolynomialTiming(Config):
    """The default formula of NVIDIA's DynoSim and AISimulate, of prefill tokens and KV utilisation."""

    type: Literal["polynomial"] = "polynomial"


class FixedTiming(Config):
    """Constant pass times: the shipped fake, for exact tests."""

    type: Literal["fixed"] = "fixed"
    prefill_ms_per_token: NonNegativeFloat = 0.1
    decode_ms: PositiveFloat = 10.0


class CustomTiming(Config):
    """A timing source of the user's (``dynosim.timing.base.ForwardTimes``)."""

    type: Custom
    """``file.py:Name`` or ``package.module:Name``."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments, after the deployment and the pool."""


def _timing_tag(timing: Any) -> Any:
    name = timing.get("type") if isinstance(timing, dict) else getattr(timing, "type", None)
    return CUSTOM if ":" in str(name) else name


Timing = Annotated[
    Annotated[PackTiming, Tag("pack")]
    | Annotated[RooflineTiming, Tag("roofline")]
    | Annotated[PolynomialTiming, Tag("polynomial")]
    | Annotated[FixedTiming, Tag("fixed")]
    | Annotated[CustomTiming, Tag(CUSTOM)],
    Discriminator(_timing_tag),
    Field(
        json_schema_extra={
            "discriminator": {
                "propertyName": "type",
                "mapping": {
                    "pack": "#/$defs/PackTiming",
                    "roofline": "#/$defs/RooflineTiming",
                    "polynomial": "#/$defs/PolynomialTiming",
                    "fixed": "#/$defs/FixedTiming",
                    CUSTOM: "#/$defs/CustomTiming",
                },
            }
        }
    ),
]


class TierConfig(Config):
    """One tier of KV offloading below the GPU: what it holds and the link to it."""

    size_gib: PositiveFloat
    bandwidth_gb_s: PositiveFloat
    """1e9 bytes/s and direction. Concurrent transfers share it."""
    latency_us: NonNegativeFloat = 10.0


class HostTier(TierConfig):
    """G2: pinned host memory of one replica (vLLM's ``kv_offloading_size``: all its GPUs together)."""

    bandwidth_gb_s: PositiveFloat = 50.0
    """Per GPU, 1e9 bytes/s and direction: 50-55 of a PCIe 5.0 x16 link's 63."""


class DiskTier(TierConfig):
    """G3: local disk of one replica."""

    bandwidth_gb_s: PositiveFloat = 10.0
    """1e9 bytes/s and direction of the replica (the default of NVIDIA's AISimulate 0.13)."""
    latency_us: NonNegativeFloat = 100.0


class RemoteTier(TierConfig):
    """G4: one store shared by all replicas of the pool."""

    bandwidth_gb_s: PositiveFloat = 25.0
    """1e9 bytes/s and direction of one replica's way to the store."""
    store_bandwidth_gb_s: PositiveFloat = 80.0
    """1e9 bytes/s and direction of the store itself, shared by all replicas."""
    latency_us: NonNegativeFloat = 1000.0


class OffloadConfig(Config):
    """Tiers of KV blocks below the GPU. Computed blocks are written through to every tier in turn; a prompt's prefix
    found in one is copied back instead of computed."""

    host: HostTier | None = None
    disk: DiskTier | None = None
    remote: RemoteTier | None = None
    offload_prompt_only: bool | None = None
    """Leave answers on the GPU: a next turn computes them again once they are evicted there. Default: as the engine
    does, which is yes for vLLM (its pull request 43797; before 33881, a defect of async scheduling did the same)."""


class AutoscalerConfig(Config):
    """Replicas follow the load between ``min_replicas`` and ``max_replicas``; ``replicas`` is where they start."""

    policy: str = "queue_depth"
    """An autoscaling policy by name, or ``package.module:Class``."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the policy: targets and thresholds."""
    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt
    interval_s: float = Field(default=30.0, ge=0.1)
    """Time between two decisions of the fast loop, which reacts to load."""
    throughput_interval_s: float | None = Field(default=None, ge=0.1)
    """Time between two decisions of the slow loop, which sizes the pool for the predicted request rate and is the
    lower bound of the fast one; no slow loop where not given."""
    predictor: str = "last_value"
    """Load predictor of the slow loop: last_value, moving_average, holt or seasonal."""
    predictor_options: dict[str, Any] = Field(default_factory=dict)
    scale_up_cooldown_s: NonNegativeFloat = 0.0
    """Time after a scaling action before the next one upwards."""
    scale_down_cooldown_s: NonNegativeFloat = 300.0
    """Time after a scaling action before the next one downwards."""
    max_step: PositiveInt = 8
    """Replicas added or removed by one decision at most."""
    provision_s: NonNegativeFloat = 60.0
    """Cold start, part one: a node is found and the image is there."""
    weights_load_gb_s: PositiveFloat = 2.0
    """Cold start, part two: the replica's weights are read at this rate, 1e9 bytes/s per GPU."""
    startup_s: NonNegativeFloat = 30.0
    """Cold start, part three: compilation, CUDA graphs, memory profiling."""

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> AutoscalerConfig:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas})")
        return self


class PoolConfig(Config):
    """Equal replicas of one role. One replica is one engine on tensor x pipeline x data parallel GPUs."""

    replicas: PositiveInt = 1
    gpu: str | None = None
    """GPU of this pool where it differs from ``deployment.gpu``."""
    tensor_parallel_size: PositiveInt = 1
    pipeline_parallel_size: PositiveInt = 1
    """Stages that the layers are divided into; as many micro-batches are in flight."""
    data_parallel_size: PositiveInt = 1
    """MoE only: attention data-parallel ranks of one replica. Each has its own scheduler and KV cache; they share the
    experts, so every pass ends with the slowest rank."""
    enable_expert_parallel: bool = False
    """MoE only: shard experts over the tensor-parallel group instead of slicing each of them."""
    max_num_seqs: PositiveInt | None = None
    """Requests that run at once on one scheduler. This and what else is not given below is what the engine's version
    takes on the GPU (``dynosim.engines``)."""
    max_num_batched_tokens: PositiveInt | None = None
    """Tokens of one pass of one scheduler (SGLang's ``chunked_prefill_size``)."""
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    block_size: PositiveInt | None = None
    """Tokens per KV block; where not given what the engine's attention kernels take."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0.0, le=1.0)
    """vLLM's argument, SGLang's ``mem_fraction_static`` or TensorRT-LLM's ``free_gpu_memory_fraction``."""
    num_gpu_blocks_override: PositiveInt | None = None
    """KV blocks of one replica, or of one data-parallel rank; computed from GPU memory where not given."""
    scheduling_policy: str = "fcfs"
    """Order of the waiting queue: a scheduling policy by name, or ``package.module:Class``."""
    scheduling_options: dict[str, Any] = Field(default_factory=dict)
    scheduler_reserve_full_isl: bool = True
    """vLLM and MAX_UTILIZATION: admit a request only when its whole prompt fits in the free blocks, not just the next
    chunk. vLLM's default (``SchedulerConfig``)."""
    long_prefill_token_threshold: NonNegativeInt = 0
    """vLLM: prompt tokens of one request in one pass at most, while there is another request; 0 is no limit."""
    long_prefill_token_threshold_adaptive: bool = False
    """vLLM: never below ``max_num_batched_tokens`` over the requests that run or wait."""
    max_num_active_seqs: PositiveInt | None = None
    """vLLM: requests that run at once where fewer than ``max_num_seqs``, for which memory and graphs are sized."""
    watermark: float = Field(default=0.0, ge=0.0, lt=1.0)
    """vLLM: share of the KV blocks that stay free when a request is admitted beside others: fewer preemptions."""
    kv_offload: OffloadConfig = OffloadConfig()
    autoscaler: AutoscalerConfig | None = None

    @model_validator(mode="after")
    def _budget_covers_decodes(self) -> PoolConfig:
        budget, seqs = self.max_num_batched_tokens, self.max_num_seqs
        if budget is not None and seqs is not None and budget < seqs:
            raise ValueError(f"max_num_batched_tokens ({budget}) must be at least max_num_seqs ({seqs})")
        return self

    @model_validator(mode="after")
    def _active_are_seated(self) -> PoolConfig:
        active, seqs = self.max_num_active_seqs, self.max_num_seqs
        if active is not None and seqs is not None and active > seqs:
            raise ValueError(f"max_num_active_seqs ({active}) must be at most max_num_seqs ({seqs})")
        if self.long_prefill_token_threshold_adaptive and not self.long_prefill_token_threshold:
            raise ValueError("long_prefill_token_threshold_adaptive has no effect without long_prefill_token_threshold")
        return self

    @model_validator(mode="after")
    def _parallelism_is_modelled(self) -> PoolConfig:
        if self.pipeline_parallel_size > 1 and self.data_parallel_size > 1:
            raise ValueError("pipeline_parallel_size and data_parallel_size cannot both be above 1: not modelled")
        name = "max_num_active_seqs" if self.max_num_active_seqs else "max_num_seqs"
        running = getattr(self, name)
        if running is not None and running < self.pipeline_parallel_size:
            raise ValueError(
                f"{name} ({running}) must be at least pipeline_parallel_size"
                f" ({self.pipeline_parallel_size}): every micro-batch takes its share of it"
            )
        return self

    @model_validator(mode="after")
    def _replicas_are_in_bounds(self) -> PoolConfig:
        scaler = self.autoscaler
        if scaler is not None and not scaler.min_replicas <= self.replicas <= scaler.max_replicas:
            raise ValueError(
                f"replicas ({self.replicas}) must be between autoscaler.min_replicas ({scaler.min_replicas})"
                f" and autoscaler.max_replicas ({scaler.max_replicas})"
            )
        return self

    @property
    def gpus_per_replica(self) -> int:
        """GPUs of one replica."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size

    @property
    def max_replicas(self) -> int:
        """Most replicas that can be provisioned at once."""
        return self.autoscaler.max_replicas if self.autoscaler else self.replicas


class StartedPool(PoolConfig):
    """A pool whose engine has filled in what was not given."""

    max_num_seqs: PositiveInt
    max_num_batched_tokens: PositiveInt
    block_size: PositiveInt
    gpu_memory_utilization: float

    @property
    def running_seqs(self) -> int:
        """Requests that run at once on one scheduler, at most."""
        return min(self.max_num_active_seqs or self.max_num_seqs, self.max_num_seqs)


class LinkConfig(Config):
    """The KV hand-off network. Concurrent transfers of one sending or receiving replica share its bandwidth."""

    bandwidth_gb_s: PositiveFloat = 50.0
    """Per GPU and direction, in 1e9 bytes/s: 50 is one 400 Gbit/s InfiniBand port per GPU."""
    latency_us: NonNegativeFloat = 20.0


class RouterConfig(Config):
    """The routing policy by name, or ``package.module:Class``, with its options."""

    policy: str = "round_robin"
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the policy, for example ``overlap_score_credit`` of ``kv_aware``."""
    load_report_interval_s: NonNegativeFloat = 0.0
    """Replicas report their load this often; between reports the router sees the last one. 0 is always current."""
    kv_event_lag_s: NonNegativeFloat = 0.0
    """Delay after which the router's prefix index knows of a cached or evicted block."""


class LocalPrefillConfig(Config):
    """Conditional disaggregation: a decode replica prefills a prompt itself when little of it is left to compute.

    Both bounds must hold, as in NVIDIA Dynamo's conditional disaggregation.
    """

    max_uncached_tokens: PositiveInt = 2048
    """Prompt tokens that the decode replica does not have, at most."""
    max_uncached_fraction: Probability = 0.7
    """Their share of the prompt, at most."""


class DisaggregatedConfig(Config):
    """Separate prefill and decode pools with KV transfer between them."""

    prefill: PoolConfig
    decode: PoolConfig
    kv_transfer: LinkConfig = LinkConfig()
    local_prefill: LocalPrefillConfig | None = None
    decode_router: RouterConfig | None = None
    """Routing policy of the second stage where it differs from ``deployment.router``."""


class TopologyConfig(Config):
    """Where replicas stand. Without it every replica has its own network ports and no tensor-parallel group crosses.

    A hand-off inside one NVLink domain takes NVLink; one between nodes of a rack takes both replicas' network ports,
    and one between racks the racks' uplinks as well. A tensor-parallel group that crosses nodes pays for it in every
    pass.
    """

    gpus_per_node: PositiveInt = 8
    nodes_per_rack: PositiveInt = 4
    nvlink_domain: Literal["node", "rack"] = "node"
    """What one NVLink switch joins: ``rack`` for NVL72 systems."""
    placement: Literal["pack", "spread"] = "pack"
    """Fill one node after the other, or put each replica on the emptiest node that it fits on."""
    inter_node_bandwidth_gb_s: PositiveFloat = 50.0
    """Per GPU and direction, 1e9 bytes/s: what a tensor-parallel group that crosses nodes has for its all-reduces."""
    inter_node_latency_us: NonNegativeFloat = 5.0
    rack_uplink_gb_s: PositiveFloat = 1600.0
    """1e9 bytes/s and direction of one rack's uplinks, shared by all transfers that leave or enter it."""


class CrashConfig(Config):
    """One planned crash."""

    pool: Literal["mixed", "prefill", "decode"]
    replica: NonNegativeInt
    at_s: NonNegativeFloat
    down_s: PositiveFloat
    """Until it serves again, with an empty KV cache."""


class StragglerConfig(Config):
    """A replica on a slow node."""

    pool: Literal["mixed", "prefill", "decode"]
    replica: NonNegativeInt
    slowdown: float = Field(gt=1.0)
    """Factor on the time of its passes."""


class FailuresConfig(Config):
    """What goes wrong while serving."""

    mtbf_s: PositiveFloat | None = None
    """Mean time between crashes of one replica, exponentially distributed; none crash by chance where not given."""
    mttr_s: PositiveFloat = 120.0
    """Time from a crash by chance until the replica serves again, with an empty KV cache."""
    crashes: tuple[CrashConfig, ...] = ()
    stragglers: tuple[StragglerConfig, ...] = ()
    on_crash: Literal["retry", "migrate", "lose"] = "retry"
    """What happens to the requests on a crashed replica: start again from the prompt, go on elsewhere with the tokens
    shown so far (computed again as part of the prompt), or fail."""
    detection_s: NonNegativeFloat = 1.0
    """Time after a crash before its requests are sent again; routers avoid the replica from then on too."""


class DeploymentConfig(Config):
    """One complete deployment."""

    model: str
    gpu: str
    quantization: Literal["none", "fp8", "nvfp4"] = "none"
    """The checkpoint: its own precision, FP8, or NVFP4 (Blackwell only)."""
    kv_cache_dtype: Literal["auto", "bf16", "fp8"] = "auto"
    """``auto`` is bf16 for a checkpoint in its own precision and fp8 otherwise."""
    engine: EngineConfig = EngineConfig()
    timing: Timing = PackTiming()
    calibration: str | None = None
    """A profile of ``dynosim calibrate``: its name (the newest), ``NAME@HASH``, or a YAML file."""
    mode: Literal["aggregated", "disaggregated"] = "aggregated"
    aggregated: PoolConfig | None = None
    disaggregated: DisaggregatedConfig | None = None
    router: RouterConfig = RouterConfig()
    topology: TopologyConfig | None = None
    failures: FailuresConfig = FailuresConfig()

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

    def role_router(self, role: str) -> RouterConfig:
        """Return the routing policy of the pool of *role*."""
        if role == "decode" and self.disaggregated is not None and self.disaggregated.decode_router is not None:
            return self.disaggregated.decode_router
        return self.router

    def gpu_counts(self) -> dict[str, int]:
        """Return GPU type -> GPUs of all replicas of all pools, all that an autoscaler may add included."""
        counts: dict[str, int] = {}
        for pool in self.pools().values():
            gpu = self.pool_gpu(pool)
            counts[gpu] = counts.get(gpu, 0) + pool.max_replicas * pool.gpus_per_replica
        return counts

    @property
    def autoscaled(self) -> bool:
        """Whether any pool has an autoscaler."""
        return any(pool.autoscaler is not None for pool in self.pools().values())

    def num_gpus(self) -> int:
        """Return the GPUs of all types."""
        return sum(self.gpu_counts().values())

    def label(self) -> str:
        """Return the field's shorthand: ``2xTP4``, ``2xTP2+1xTP4`` (prefill + decode), ``1-4xTP2PP2`` (autoscaled)."""
        return "+".join(map(_pool_label, self.pools().values()))


def _pool_label(pool: PoolConfig) -> str:
    count = str(pool.replicas)
    if pool.autoscaler is not None:
        count = f"{pool.autoscaler.min_replicas}-{pool.autoscaler.max_replicas}"
    sizes = {"PP": pool.pipeline_parallel_size, "DP": pool.data_parallel_size}
    more = "".join(f"{name}{size}" for name, size in sizes.items() if size > 1)
    return f"{count}x{'TEP' if pool.enable_expert_parallel else 'TP'}{pool.tensor_parallel_size}{more}"
