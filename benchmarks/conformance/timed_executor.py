"""An executor for a real ``vllm serve``: every pass takes a known time, and nothing is computed.

    PYTHONPATH=benchmarks/conformance vllm serve MODEL --distributed-executor-backend timed_executor.TimedExecutor \\
        --additional-config '{"timing": {"type": "fixed", "prefill_ms_per_token": 0.1, "decode_ms": 20}}'

HTTP, tokenising, the engine process, its scheduler and streaming are vLLM's own; the passes follow one another as on a
GPU. ``async_scheduling`` beside ``timing`` turns on what vLLM turns off for CPUs.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any

from pass_times import pass_time
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.executor.abstract import Executor
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput
from vllm.v1.utils import compute_iteration_details
from vllm_engine import Startup

TOKEN = 5
"""What every answer consists of."""


class _Pass(Future):  # type: ignore[type-arg]
    """A pass in flight: whoever asks for its result waits until its end."""

    def __init__(self, end_s: float, output: ModelRunnerOutput | None) -> None:
        super().__init__()
        self.end_s, self.output = end_s, output

    def result(self, timeout: float | None = None) -> ModelRunnerOutput | None:
        time.sleep(max(self.end_s - time.monotonic(), 0.0))
        return self.output


class TimedExecutor(Startup, Executor):
    """A device on which a pass takes the time that its tokens take by a formula of ``pass_times``."""

    def _init_executor(self) -> None:
        options = self.vllm_config.additional_config
        self.seconds = pass_time(options["timing"], kv_capacity_tokens=1)
        self.vllm_config.scheduler_config.async_scheduling = options.get("async_scheduling", True)
        self.block_size = self.vllm_config.cache_config.block_size
        self.free_at_s = 0.0
        self._prompts: dict[str, int] = {}

    def collective_rpc(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        return [("generate",)] if method == "get_supported_tasks" else [None]

    def check_health(self) -> None: ...

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        return True

    def execute_model(self, scheduled: SchedulerOutput, non_block: bool = False) -> _Pass:
        if not scheduled.num_scheduled_tokens:
            return _Pass(0.0, EMPTY_MODEL_RUNNER_OUTPUT)
        work = compute_iteration_details(scheduled)
        took_s = self.seconds(work.num_ctx_tokens, work.num_generation_requests, 0)
        self.free_at_s = max(time.monotonic(), self.free_at_s) + took_s
        self._output = self._sampled(scheduled)
        return _Pass(self.free_at_s, None)

    def sample_tokens(self, grammar: Any, non_block: bool = False) -> Any:
        done = _Pass(self.free_at_s, self._output)
        return done if non_block else done.result()

    def _sampled(self, scheduled: SchedulerOutput) -> ModelRunnerOutput:
        """Return a token for every request whose prompt is computed by the end of the pass."""
        for name in scheduled.finished_req_ids:
            self._prompts.pop(name, None)
        cached = scheduled.scheduled_cached_reqs
        computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for new in scheduled.scheduled_new_reqs:
            computed[new.req_id], self._prompts[new.req_id] = new.num_computed_tokens, len(new.prompt_token_ids)
        counts = scheduled.num_scheduled_tokens
        tokens = [[TOKEN] if computed[name] + counts[name] >= self._prompts[name] else [] for name in counts]
        return ModelRunnerOutput(list(counts), {name: i for i, name in enumerate(counts)}, tokens)
