"""What every engine's file says: its rules where they differ from those of others, and how a server of it is started.

Rules are what a server does that no setting of the configuration asks for. Sources stand at the values.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from dynosim.config import EngineConfig, PoolConfig, StartedPool, TierConfig

Flags = dict[str, Any]
"""Flag without dashes -> value; True is a bare flag, None and False are left out."""
SPARSE = ("deepseek-v3.2", "glm-5")
"""Models whose latent attention chooses tokens by an indexer."""


class Limits(NamedTuple):
    """What a server takes on GPUs of at least *memory_gib* where it is not told."""

    memory_gib: float
    max_num_seqs: int
    max_num_batched_tokens: int
    graph_batches: tuple[int, int] = (0, 0)
    """Largest captured batch on fewer than four GPUs, and on more."""
    excepted: str = " "
    """Beginning of the names of GPUs that count as smaller ones."""


@dataclass(frozen=True)
class Server:
    """One server as its engine finds it when it starts: what it was told, the model, and one of its GPUs."""

    role: str
    engine: EngineConfig
    pool: PoolConfig
    model: str
    mla: bool
    fp8_cache: bool
    gpu: str
    architecture: str
    """``sm90``, ``cdna3``, ...; empty where the GPU's card does not say."""
    memory_bytes: int

    @property
    def gpus(self) -> int:
        """GPUs of all attention ranks of one pipeline stage."""
        return self.pool.tensor_parallel_size * self.pool.data_parallel_size

    @property
    def blackwell(self) -> bool:
        """Whether it runs on data-centre Blackwell: the SM100 family."""
        return self.architecture in ("sm100", "sm103")

    def among(self, limits: tuple[Limits, ...]) -> Limits:
        """Return the class of *limits*, the largest first, that its GPU is in."""
        gib = self.memory_bytes / 2**30
        return next(own for own in limits if gib >= own.memory_gib and not self.gpu.startswith(own.excepted))


class Graphs(NamedTuple):
    """The passes that CUDA graphs cover."""

    batches: tuple[int, ...] = ()
    """Requests of the captured decode passes, increasing."""
    padded: bool = True
    """A batch between two of them runs the larger graph, with dummy requests; else it is launched kernel by kernel."""
    mixed_tokens: int = 0
    """Largest pass with prompt chunks that a graph covers."""


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What an engine adds to its kernels: CPU work between passes, launches without CUDA graphs, the HTTP server.

    Few numbers, each for one cause, fitted to all calibration measurements of the engine together (docs/fidelity.md)
    and never to one run, unless they say otherwise. The defaults are those of formulas that know no hardware.
    """

    overlap: bool = False
    """Passes are chosen while the one before runs."""
    launch_us: float = 0.0
    """Per layer of a pass that no graph covers, at least. What is fitted agrees with the 0.8 ms of "dispatch overhead"
    in AIConfigurator 0.12.0 (TTFT of vLLM)."""
    pass_us: float = 0.0
    request_us: float = 0.0
    frontend_ms: float = 0.0
    frontend_request_us: float = 0.0
    """Chosen in sight of vLLM 0.32 with known pass times (benchmarks/closed_loop.py); of other versions and engines,
    which have Python frontends too, it is an assumption."""
    serial_us: float = 0.0
    """Added to ``pass_us`` where passes are not chosen ahead: the GPU waits for the scheduler."""
    prefill_slowdown: float = 1.0
    """Passes with prompt chunks over the sum of their kernels: attention, and all beyond the first 1,024 tokens."""
    moe_launches: float = 1.0
    """Launches of an expert layer over those of a dense one."""
    mla_launches: float = 0.0
    """Further ones of latent attention, and of the shared experts beside it."""
    untuned_us: Mapping[str, float] = field(default_factory=dict)
    """GPU architecture -> per layer of latent attention whose FP8 projections have no tuned tiles there, on top of the
    source's kernels."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What an engine keeps beside weights and KV blocks, and how it divides the memory of a GPU."""

    resident_bytes: tuple[float, float]
    """CUDA context, libraries and communication buffers: of a GPU alone, of one of several."""
    logit_bytes: float
    """Of one logit while the engine tries out sampling at start-up: copies, sorted copies, indices."""
    graph_bytes: float = 0.0
    """Of CUDA graphs, where they are counted before the KV cache is sized."""
    kv_bytes: Callable[[float, Held, float], float]
    """(memory of a GPU, what else is in it, ``gpu_memory_utilization``) -> KV bytes."""
    window_share: float = 0.0
    """Tokens that layers with a sliding window have room for, over those of the other layers."""


class Held(NamedTuple):
    """What stands beside the KV cache in the memory of a GPU, in bytes."""

    weights: float
    activations: float
    runtime: float


def share_of_all(memory: float, held: Held, utilization: float) -> float:
    """Return the KV bytes where the utilization is a share of the whole GPU, out of which all else is paid."""
    return memory * utilization - sum(held)


def share_of_initial(memory: float, held: Held, utilization: float) -> float:
    """Return the KV bytes where it is a share of what the runtime leaves, for weights and KV: the rest is for all
    else."""
    return (memory - held.runtime) * utilization - held.weights


def share_of_free(memory: float, held: Held, utilization: float) -> float:
    """Return the KV bytes where it is a share of what all else leaves."""
    return (memory - sum(held)) * utilization


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Which kernels an engine runs where others run others, as the tables of aiconfigurator-core have them."""

    fp8_attention: bool = True
    """Prefill attention computes in FP8 over an FP8 cache."""
    mxfp8_experts: bool = True
    """On Blackwell experts of MXFP4 get activations of MXFP8, not of bf16."""
    mxfp8_experts_of: str | None = None
    """Engine whose tables price those where they are only chosen on request."""
    hopper_mxfp4_experts_of: str | None = None
    """Engine whose tables price experts of MXFP4 on Hopper; None: its own."""
    block_fp8_gemms_of: str | None = None
    """Engine whose tables price block-scaled FP8 GEMMs; None: its own."""
    evened_experts: str | None = None
    """Name of the distribution under which its tables have experts that a load balancer evens out, if not the usual."""
    trtllm_gen_experts_of: str | None = None
    """Engine whose tables price the precompiled experts of ``ModelCard.runs_trtllm_gen``; None: its own."""


class NewTokenRatio(NamedTuple):
    """Share of the outputs to come that admission keeps tokens for: from *first*, times the conservativeness, to
    *least* of that in *steps* decode passes."""

    first: float
    least: float
    steps: int


@dataclass(frozen=True)
class Launch:
    """One server to be started: its configuration, and what follows from that."""

    role: str
    engine: EngineConfig
    pool: StartedPool
    checkpoint: str
    """On the Hugging Face Hub, or a path."""
    fp8_cache: bool
    quantises: bool
    """The server has to quantise the checkpoint itself."""
    trtllm_gen: bool
    """Launch scripts choose TensorRT-LLM's precompiled expert kernels for it."""
    draft_tokens: int | None
    """That the model makes itself."""

    def said(self, name: str) -> Any:
        """Return the engine's setting *name* unless it has its default."""
        value = getattr(self.engine, name)
        return None if value == EngineConfig.model_fields[name].default else value


@dataclass(frozen=True, kw_only=True)
class EngineRules:
    """One version of an engine."""

    title: str
    version: str
    """The first release, of those that were read, that has these rules."""
    until: str
    """The last one."""
    as_of: str
    """Month in which they were read."""
    settings: tuple[str, ...] = ()
    """Fields of ``EngineConfig`` and ``PoolConfig`` that no other engine has."""
    limits: tuple[Limits, ...]
    """By GPU memory, the largest first."""
    ranks_share_limits: bool = False
    """The token budget is divided over attention data-parallel ranks."""
    drafting_seqs: int | None = None
    """Requests of a server that speculates and is not told how many; None: as many as others. Divided as above."""
    unchunked_tokens: int = 0
    """The token budget where chunked prefill is off, if that lifts it."""
    decodes_take_budget: bool = True
    """Decodes are in the token budget, so no more requests run than it has tokens."""
    utilization: Callable[[EngineRules, Server], float]
    """``gpu_memory_utilization`` where it is not given."""
    graphs: Callable[[EngineRules, Server], Graphs]
    graph_tokens: Mapping[str, int] = field(default_factory=dict)
    """Architecture or model -> largest captured pass in tokens; ``""`` is any other."""
    block_size: int
    """Tokens per KV block."""
    attention_backend: Callable[[Server], str] = lambda server: ""
    """The backend that a server chooses, as far as its block size differs."""
    backend_block_sizes: Mapping[str, int] = field(default_factory=dict)
    """Attention backend -> tokens per KV block under it, where that differs."""
    null_blocks: int = 0
    """Blocks that are never given out."""
    whole_pages: bool = False
    """Prompts are computed in whole blocks, so a pass must hold one."""
    offloads_prompt_only: bool = False
    """Answers stay out of the tiers below the GPU."""
    memory: Memory
    one_gpu_per_rank: bool = False
    """Attention data-parallel ranks are single GPUs."""
    slices_scale_blocks: bool = True
    """Loads block-scaled FP8 experts that tensor parallelism slices across a scale block."""
    kernels: Kernels = Kernels()
    behaviour: Behaviour
    scheduler: Literal["in_turn", "prompts_first", "no_evict"]
    """A pass serves running requests in their order, then the queue's head; prompts and decodes in passes of their own;
    or as the first, but admits only what will never have to be evicted."""
    new_token_ratio: NewTokenRatio | None = None
    first_token: Literal["decode", "transfer", "prefill"]
    """When a disaggregated deployment shows the first token: the decode replica computes it; it shows the prefill
    replica's once the request is in its batch; or the prefill replica shows it at once."""
    overlaps_prefill: bool = True
    """A prefill replica chooses passes while the one before runs, where the engine does."""
    hand_off_seats: Callable[[int], int] = lambda seats: 1 << 40
    """Seats of a decode replica -> its requests that run or hold blocks for a prompt on its way, at most."""
    destination_first: bool = False
    """A decode replica has reserved its blocks before the prompt goes to a prefill replica."""
    command: Callable[[Launch], str]
    """The command that starts one replica."""
    without_flag: Callable[[Launch], dict[str, Any]]
    """Settings that the server has no flag for, where they differ from what it does by itself; others are None."""
    multi_node: str
    """How a replica larger than a node is started."""

    @property
    def label(self) -> str:
        """The rules in words."""
        return f"{self.title} {self.version} to {self.until}, read {self.as_of}"


def shell(words: list[str], flags: Mapping[str, Any]) -> str:
    """Return a command with one flag per line."""
    said = [(name, value) for name, value in flags.items() if value is not None and value is not False]
    lines = [shlex.join(words)]
    lines += [f"--{name}" if value is True else f"--{name} {shlex.quote(str(value))}" for name, value in said]
    return " \\\n  ".join(lines)


def gib(tier: TierConfig | None) -> str | None:
    """Return the size of a KV tier in words."""
    return None if tier is None else f"{tier.size_gib:g} GiB"
