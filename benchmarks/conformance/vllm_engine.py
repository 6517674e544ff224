"""vLLM's own ``EngineCore`` on a virtual clock: its scheduler and KV cache manager decide, a pass only takes time.

The model executor is the one part that is replaced. Waiting for a pass moves the clock to its end, so
``EngineCore.step`` and ``EngineCore.step_with_batch_queue`` run as they are. Work between passes takes no time.
"""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from pass_times import PassTime, pass_time
from token_ids import Tokens
from vllm import SamplingParams
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine.core import EngineCore
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput
from vllm.v1.request import Request

CARD = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 128,
    "max_position_embeddings": 1 << 22,
}
"""A model that nobody loads: the scheduler reads its lengths only."""
SCHEDULER_FIELDS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_num_active_seqs",
    "enable_chunked_prefill",
    "scheduler_reserve_full_isl",
    "long_prefill_token_threshold",
    "long_prefill_token_threshold_adaptive",
    "watermark",
)
"""Pool fields that are vLLM's scheduler arguments by the same name."""
DEFAULT_BLOCK_SIZE = 16


class Clock:
    """Virtual time in seconds."""

    now = 0.0


class _Pass(Future):  # type: ignore[type-arg]
    """A pass in flight: its result moves the clock to its end."""

    def __init__(self, clock: Clock, end: float, output: Any) -> None:
        super().__init__()
        self.clock, self.end, self.output = clock, end, output

    def result(self, timeout: float | None = None) -> ModelRunnerOutput | None:
        self.clock.now = max(self.clock.now, self.end)
        return self.output()


class Startup:
    """What ``EngineCore`` asks of an executor while it starts, answered without a model."""

    block_size: int

    def get_kv_cache_specs(self) -> list[dict[str, FullAttentionSpec]]:
        spec = FullAttentionSpec(block_size=self.block_size, num_kv_heads=1, head_size=64, dtype=torch.bfloat16)
        return [{"layer": spec}]

    def determine_available_memory(self) -> list[int]:
        return [1 << 50]

    def get_supported_kv_cache_layouts(self) -> list[list[str]]:
        return [["LBNHC"]]

    def set_kv_cache_layout(self, name: str) -> None: ...

    def initialize_from_config(self, configs: Any) -> None: ...

    def compile_or_warm_up_model(self) -> None: ...


class Executor(Startup):
    """Takes the time of each pass and returns the workload's tokens: what a GPU would do."""

    def __init__(self, clock: Clock, config: VllmConfig, seconds: PassTime, tokens: Tokens) -> None:
        self.clock, self.seconds, self.tokens = clock, seconds, tokens
        self.block_size = config.cache_config.block_size
        self.requests: dict[str, Request] = {}
        self.free_at, self.passes = 0.0, 0
        self._known: dict[str, tuple[int, int]] = {}

    def execute_model(self, scheduled: SchedulerOutput, non_block: bool = False) -> _Pass:
        if not scheduled.num_scheduled_tokens:
            return _Pass(self.clock, self.clock.now, lambda: EMPTY_MODEL_RUNNER_OUTPUT)
        self.passes += 1
        self.free_at = max(self.clock.now, self.free_at) + self.seconds(*self._work(scheduled))
        self.sampling = [name for name in scheduled.num_scheduled_tokens if not self.requests[name].is_prefill_chunk]
        self.names = list(scheduled.num_scheduled_tokens)
        return _Pass(self.clock, self.free_at, lambda: None)

    def sample_tokens(self, grammar: Any, non_block: bool = False) -> _Pass | ModelRunnerOutput | None:
        names, sampling = self.names, set(self.sampling)

        def output() -> ModelRunnerOutput:
            sampled = [[self._token(name)] if name in sampling else [] for name in names]
            return ModelRunnerOutput(names, {name: i for i, name in enumerate(names)}, sampled)

        done = _Pass(self.clock, self.free_at, output)
        return done if non_block else done.result()

    def _token(self, name: str) -> int:
        request = self.requests[name]
        return self.tokens.at(int(name), request.num_prompt_tokens + request.num_output_tokens)

    def _work(self, scheduled: SchedulerOutput) -> tuple[int, int, int]:
        """Return (prefill tokens, decodes, their context): a request decodes from where it was admitted with."""
        prefill = decodes = context = 0
        for name, count in scheduled.num_scheduled_tokens.items():
            request = self.requests[name]
            admissions, known = self._known.get(name, (-1, 0))
            if admissions != request.num_preemptions:
                known = request.num_tokens
                self._known[name] = (request.num_preemptions, known)
            if request.num_computed_tokens - count < known:
                prefill += count
            else:
                decodes, context = decodes + 1, context + request.num_computed_tokens
        return prefill, decodes, context


def _config(deployment: dict[str, Any], max_model_len: int) -> VllmConfig:
    pool = deployment["aggregated"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CARD))
        model = ModelConfig(
            model=folder, tokenizer=folder, skip_tokenizer_init=True, dtype="bfloat16", max_model_len=max_model_len
        )
        config = VllmConfig(
            model_config=model,
            cache_config=CacheConfig(
                block_size=pool.get("block_size", DEFAULT_BLOCK_SIZE),
                enable_prefix_caching=pool.get("enable_prefix_caching", True),
                num_gpu_blocks_override=pool["num_gpu_blocks_override"],
            ),
            scheduler_config=SchedulerConfig(
                max_model_len=max_model_len,
                is_encoder_decoder=False,
                policy=pool.get("scheduling_policy", "fcfs"),
                **{name: pool[name] for name in SCHEDULER_FIELDS if name in pool},
            ),
        )
    config.scheduler_config.async_scheduling = deployment["engine"]["async_scheduling"]  # the CPU platform turns it off
    return config


class Engine:
    """One replica of vLLM that serves the requests of *tokens* on a virtual clock."""

    def __init__(self, deployment: dict[str, Any], tokens: Tokens) -> None:
        pool, self.clock, self.tokens = deployment["aggregated"], Clock(), tokens
        longest = max(tokens.lengths(i)[0] + tokens.lengths(i)[1] for i in range(len(tokens)))
        config = _config(deployment, longest + 8)
        capacity = (pool["num_gpu_blocks_override"] - 1) * config.cache_config.block_size
        seconds = pass_time(deployment["timing"], capacity)

        def executor(config: VllmConfig) -> Executor:
            self.executor = Executor(self.clock, config, seconds, tokens)
            return self.executor

        self.core = EngineCore(config, executor, log_stats=False)  # type: ignore[arg-type]
        self.requests = self.executor.requests
        self.cached: list[Any] = [None] * len(tokens)

    def add(self, i: int, arrival_s: float, priority: int) -> None:
        """Send request *i*; names are padded, so that their order is that of the indices."""
        prompt, answer = self.tokens.lengths(i)
        request = Request(
            f"{i:06d}",
            [self.tokens.at(i, p) for p in range(prompt)],
            SamplingParams(max_tokens=answer, ignore_eos=True),
            None,
            arrival_time=arrival_s,
            priority=priority,
            block_hasher=self.core.request_block_hasher,
        )
        self.cached[i] = request.prefill_stats
        self.requests[request.request_id] = request
        self.core.add_request(request)

    @property
    def busy(self) -> bool:
        """Whether the engine has work, of which finished requests to forget are a part."""
        return self.core.scheduler.has_requests() or bool(self.core.batch_queue)

    def step(self) -> list[tuple[int, bool]]:
        """Run one step; return (request, whether it has ended) of each token that came out, at the clock's time."""
        outputs, _ = self.core.step_fn()
        found = [output for batch in (outputs or {}).values() for output in batch.outputs if output.new_token_ids]
        return [(int(output.request_id), output.finish_reason is not None) for output in found]
