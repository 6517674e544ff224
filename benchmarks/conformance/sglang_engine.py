"""SGLang's own ``Scheduler`` on a virtual clock: its loops, policy and KV cache decide, a pass only takes time.

Replaced are the model worker, the mail, and everything that reports. Waiting for the result of a pass moves the clock
to its end, so ``event_loop_normal`` and ``event_loop_overlap`` run as they are. Work between passes takes no time.
"""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import sglang_stubs
import torch
from clients import Clients
from pass_times import pass_time
from token_ids import Tokens

sglang_stubs.install()

from sglang.srt.disaggregation.utils import DisaggregationMode  # noqa: E402
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch  # noqa: E402
from sglang.srt.managers.scheduler import Scheduler  # noqa: E402
from sglang.srt.managers.utils import GenerationBatchResult  # noqa: E402
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator  # noqa: E402
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator  # noqa: E402
from sglang.srt.mem_cache.cache_init_params import CacheInitParams  # noqa: E402
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool  # noqa: E402
from sglang.srt.mem_cache.unified_cache.components import ComponentType  # noqa: E402
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache  # noqa: E402
from sglang.srt.runtime_context import get_context, get_memory, get_schedule  # noqa: E402
from sglang.srt.sampling.sampling_params import SamplingParams  # noqa: E402
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm  # noqa: E402

QUIET = (
    "_last_logged_elastic_radix_namespace",
    "dp_attn_adapter",
    "draft_worker",
    "flush_wrapper",
    "grammar_manager",
    "invariant_checker",
    "kv_events_publisher",
    "load_inquirer",
    "load_publisher",
    "metrics_collector",
    "metrics_reporter",
    "model_worker",
    "ngram_embedding_manager",
    "output_streamer",
    "pool_stats_observer",
    "scheduler_stage_metrics",
    "tp_worker",
)
"""Parts that report or belong to features that are off."""
OFF = (
    "decode_offload_manager",
    "dllm_config",
    "dynamic_chunk_sizer",
    "future_map",
    "hisparse_coordinator",
    "max_queued_requests",
    "min_free_slots_delayer",
    "truncation_align_size",
    "_prev_step",
    "_prev_prefill_end_ts",
    "_pause_started_at",
)
UNUSED = (
    "_engine_paused",
    "_war_barrier_enabled",
    "abort_on_priority_when_disabled",
    "enable_fpm",
    "enable_hicache_storage",
    "enable_hierarchical_cache",
    "enable_hisparse",
    "enable_lmcache",
    "enable_lora",
    "enable_overlap_mlx",
    "enable_unified_cache_external_linker",
    "enable_unified_memory",
    "gracefully_exit",
    "is_hybrid_swa",
    "require_mlp_sync",
)


def arguments(deployment: dict[str, Any]) -> dict[str, Any]:
    """Return SGLang's arguments of *deployment*."""
    pool, engine = deployment["aggregated"], deployment["engine"]
    policy = pool.get("scheduling_policy", "fcfs")
    chunked = pool.get("enable_chunked_prefill", True)
    return {
        "device": "cpu",
        "attention_backend": "torch_native",
        "page_size": pool["block_size"],
        "max_running_requests": pool["max_num_seqs"],
        "pp_max_micro_batch_size": pool["max_num_seqs"],
        "chunked_prefill_size": pool["max_num_batched_tokens"] if chunked else -1,
        "max_prefill_tokens": engine.get("max_prefill_tokens", 16384),
        "enable_mixed_chunk": engine.get("enable_mixed_chunk", False),
        "schedule_conservativeness": engine.get("schedule_conservativeness", 1.0),
        "disable_radix_cache": not pool.get("enable_prefix_caching", True),
        "disable_overlap_schedule": not engine["async_scheduling"],
        "schedule_policy": "lpm" if policy == "longest_prefix" else "fcfs",
        "enable_priority_scheduling": policy == "priority",
        "schedule_low_priority_values_first": True,
    }


class _Pass:
    """A pass in flight: waiting for its result moves the clock to its end."""

    def __init__(self, engine: Engine, reqs: list[Req], end: float) -> None:
        self.engine, self.reqs, self.end = engine, reqs, end
        self.result = GenerationBatchResult(copy_done=self)

    def synchronize(self) -> None:
        self.engine.now = max(self.engine.now, self.end)
        self.result.next_token_ids = torch.tensor([self.engine.next_token(req) for req in self.reqs])


class Engine(Scheduler):
    """One replica of SGLang that serves a workload on a virtual clock: see ``run``."""

    def __init__(self, deployment: dict[str, Any], workload: dict[str, Any]) -> None:
        pool, self.tokens = deployment["aggregated"], Tokens(workload)
        self.clients = Clients(workload)
        self.priorities = workload.get("priority", [None] * len(self.tokens))
        self.ignore_eos = deployment["engine"].get("ignore_eos", False)
        self.page_size, blocks = pool["block_size"], pool["num_gpu_blocks_override"]
        self.max_total_num_tokens = blocks * self.page_size
        self.seconds = pass_time(deployment["timing"], self.max_total_num_tokens)
        self.now = self.free_at = 0.0
        self.sent: dict[int, float] = {}
        self.first: dict[int, float] = {}
        self.last: dict[int, float] = {}
        self.reqs: dict[int, Req] = {}
        self.passes: list[list[Any]] = []
        self.context = get_context().override_server_args(**arguments(deployment))
        self.context.install()
        self._settings()
        self._memory(pool["max_num_seqs"])
        self._start()

    # ------------------------------------------------------------------------------------------------ as SGLang starts

    def _settings(self) -> None:
        schedule = get_schedule()
        for names, value in ((QUIET, None), (OFF, None), (UNUSED, False)):
            for name in names:
                setattr(self, name, MagicMock() if names is QUIET else value)
        self.grammar_manager.has_waiting_grammars.return_value = False
        for name in ("maybe_prepare_mlp_sync_batch", "maybe_convert_decode_to_extend"):
            getattr(self.dp_attn_adapter, name).side_effect = lambda batch, **_: batch
        self.ngram_embedding_manager.prepare_for_forward.side_effect = lambda batch, **_: batch
        self.metrics_reporter.num_generated_tokens = self.metrics_reporter.forward_ct_decode = 0
        self.tp_worker.model_runner.prefill_aware_swa = False
        self.draft_worker = None
        self.is_generation, self.disaggregation_mode = True, DisaggregationMode.NULL
        self.spec_algorithm = SpeculativeAlgorithm.from_string(None)
        self.enable_overlap = not schedule.disable_overlap_schedule
        self.enable_priority_scheduling = schedule.enable_priority_scheduling
        self.schedule_low_priority_values_first = schedule.schedule_low_priority_values_first
        self.priority_scheduling_preemption_threshold = schedule.priority_scheduling_preemption_threshold
        self.schedule_policy, self.max_prefill_tokens = schedule.schedule_policy, schedule.max_prefill_tokens
        self.max_running_requests = schedule.max_running_requests
        self.processed_tokens_counter = 0

    def _memory(self, seats: int) -> None:
        longest = max(sum(self.tokens.lengths(i)) for i in range(len(self.tokens)))
        self.req_to_token_pool = ReqToTokenPool(seats, longest + 8, "cpu", enable_memory_saver=False)
        size, kinds = self.max_total_num_tokens, {"dtype": torch.int64, "device": "cpu", "kvcache": None}
        if self.page_size == 1:
            allocator = TokenToKVPoolAllocator(size, need_sort=False, **kinds)
        else:
            allocator = PagedTokenToKVPoolAllocator(size, self.page_size, need_sort=False, **kinds)
            allocator.use_triton_kernels = False
        self.token_to_kv_pool_allocator = allocator
        self.tree_cache = UnifiedRadixCache(
            CacheInitParams(
                disable=get_memory().disable_radix_cache,
                req_to_token_pool=self.req_to_token_pool,
                token_to_kv_pool_allocator=allocator,
                page_size=self.page_size,
                tree_components=(ComponentType.FULL,),
            )
        )

    def _start(self) -> None:
        self.model_config = SimpleNamespace(
            vocab_size=1 << 62, is_encoder_decoder=False, self_opened_think_start_ids=None, think_end_ids=None
        )
        self.init_running_status()
        self.dynamic_chunk_sizer = None
        chunk = get_schedule().chunked_prefill_size
        self.chunked_prefill_size = chunk if chunk > 0 else None
        self.is_mixed_chunk = self.chunked_prefill_size is not None and get_schedule().enable_mixed_chunk
        self.chunked_req = self._pending_chunked_abort_req = None
        self._prefill_decode_interval_remaining = self.prefill_decode_interval = 0
        self.init_schedule_policy()
        self.max_req_len = 1 << 30
        self.init_batch_result_processor()

    # ---------------------------------------------------------------------------------------------------- in every step

    def ingest_requests(self, stop_at_pause: bool = False) -> list[Any]:
        """Take in who has come; where there is nothing to do, wait for the next one, and leave after the last."""
        idle = not (self.last_batch or self.result_queue or self.waiting_queue or self.running_batch.reqs)
        coming = self.clients.next_s
        self.gracefully_exit = idle and coming is None
        if idle and coming is not None:
            self.now = max(self.now, coming)
        for time, i in self.clients.due(self.now):
            self.sent[i] = time
            self._arrive(i)
        return []

    def _arrive(self, i: int) -> None:
        prompt, answer = self.tokens.lengths(i)
        parameters = SamplingParams(max_new_tokens=answer, ignore_eos=self.ignore_eos)
        parameters.normalize(None)
        ids = array("q", (self.tokens.at(i, p) for p in range(prompt)))
        req = Req(str(i), "", ids, parameters, priority=self.priorities[i], eos_token_ids=set())
        self.reqs[i] = req
        self._add_request_to_queue(req)

    def run_batch(self, batch: ScheduleBatch, pp_proxy_tensors: Any = None) -> GenerationBatchResult:
        """Launch a pass: it starts when the one before has ended."""
        self.forward_ct += 1
        decodes = batch.reqs if batch.forward_mode.is_decode() else batch.decoding_reqs or []
        prefills = [] if batch.forward_mode.is_decode() else batch.reqs[: len(batch.reqs) - len(decodes)]
        context = sum(batch.seq_lens_cpu[len(prefills) :].tolist())
        tokens = sum(req.extend_len for req in prefills)
        self.free_at = max(self.now, self.free_at) + self.seconds(tokens, len(decodes), context)
        self.passes.append([[int(req.rid), req.extend_len] for req in prefills] + [int(req.rid) for req in decodes])
        return _Pass(self, batch.reqs[:], self.free_at).result

    def next_token(self, req: Req) -> int:
        """Return the token that a pass computes for *req*, which knows all tokens before it by now."""
        return self.tokens.at(int(req.rid), len(req.origin_input_ids) + len(req.output_ids))

    def launch_batch_sample_if_needed(self, *_: Any) -> None: ...

    def process_batch_result(self, batch: ScheduleBatch, result: GenerationBatchResult) -> None:
        """Let SGLang process a result; note the times of first and last tokens."""
        if batch.forward_mode.is_decode():
            self.batch_result_processor.process_batch_result_decode(batch, result)
        else:
            self.batch_result_processor.process_batch_result_prefill(batch, result)
        for req in batch.reqs:
            if req.output_ids:
                self.first.setdefault(int(req.rid), self.now)
            if req.finished() and int(req.rid) not in self.last:
                self.last[int(req.rid)] = self.now
                self.clients.end(int(req.rid), self.now)

    def on_idle(self) -> None:
        """What SGLang sets back when it has nothing to do."""
        if not (self.waiting_queue or self.running_batch.reqs):
            self.new_token_ratio_tracker.reset()

    def run(self) -> None:
        """Serve all requests."""
        self.event_loop_overlap() if self.enable_overlap else self.event_loop_normal()
        self.context.restore()
