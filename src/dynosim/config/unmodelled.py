"""Settings of real servers that a reader of their documentation would look for here and not find.

Names are the engines' own (vLLM 0.24, SGLang 0.5, TensorRT-LLM 1.3), without dashes. Naming one in a file is an error
that says whether it is left out or called something else.
"""

from __future__ import annotations

UNMODELLED = {
    "enable_lora": "adapters: their kernels, memory and scheduling",
    "max_loras": "adapters",
    "max_lora_rank": "adapters",
    "structured_outputs_config": "guided decoding: grammar masks",
    "guided_decoding_backend": "guided decoding: grammar masks",
    "grammar_backend": "guided decoding: grammar masks",
    "guided_decoding": "guided decoding: grammar masks",
    "guided_decoding_config": "guided decoding: grammar masks",
    "structured_outputs": "guided decoding: grammar masks",
    "structured_output": "guided decoding: grammar masks",
    "response_format": "guided decoding: grammar masks",
    "compilation_config": "most of graph capture: engine.cudagraph_mode and max_cudagraph_capture_size are fields",
    "cudagraph_capture_sizes": "other graph sizes than the engine's own up to max_cudagraph_capture_size",
    "cuda_graph_config": "other graph sizes than the engine's own up to max_cudagraph_capture_size",
    "cuda_graph_max_bs": "other graph sizes than the engine's own up to max_cudagraph_capture_size",
    "enforce_eager": "engine.cudagraph_mode NONE runs without graphs",
    "num_scheduler_steps": "multi-step scheduling (vLLM V0)",
    "stream_interval": "tokens are shown at the end of every pass",
    "max_model_len": "requests are as long as the workload says; those that can never fit the KV cache are rejected",
    "swap_space": "preemption by swapping (vLLM V0): preempted requests are computed again",
    "cpu_offload_gb": "weights in host memory",
    "max_num_partial_prefills": "concurrent partial prefills",
    "max_long_partial_prefills": "concurrent partial prefills",
    "limit_mm_per_prompt": "images, audio and video",
    "mm_processor_cache_gb": "images, audio and video",
    "disable_sliding_window": "sliding-window layers: every layer keeps every token",
    "disable_hybrid_kv_cache_manager": "sliding-window and state-space layers",
    "prefix_caching_hash_algo": "CPU cost of hashing",
    "decode_context_parallel_size": "context parallelism",
    "prefill_context_parallel_size": "context parallelism",
    "enable_dbo": "dual-batch overlap",
    "enable_two_batch_overlap": "dual-batch overlap",
    "enable_eplb": "rebalancing of experts; their imbalance is the timing source's",
    "all2all_backend": "choice of the exchange kernels: the timing source's",
    "moe_a2a_backend": "choice of the exchange kernels: the timing source's",
    "disable_custom_all_reduce": "choice of the all-reduce kernels: the timing source's",
    "num_beams": "beam search",
    "best_of": "several answers per prompt",
    "context_chunking_policy": "TensorRT-LLM's equal-progress chunking",
    "tokenizer": "tokenising: CPU time before a request arrives",
    "power_limit_w": "GPU clocks and power caps",
}
"""Setting -> what it would change, none of which is modelled."""

RENAMED = {
    "tp_size": "tensor_parallel_size",
    "pp_size": "pipeline_parallel_size",
    "dp_size": "data_parallel_size",
    "ep_size": "enable_expert_parallel",
    "enable_dp_attention": "data_parallel_size",
    "enable_attention_dp": "data_parallel_size",
    "max_running_requests": "max_num_seqs",
    "max_batch_size": "max_num_seqs",
    "max_num_tokens": "max_num_batched_tokens",
    "chunked_prefill_size": "max_num_batched_tokens",
    "enable_chunked_context": "enable_chunked_prefill",
    "mem_fraction_static": "gpu_memory_utilization",
    "free_gpu_memory_fraction": "gpu_memory_utilization",
    "page_size": "block_size",
    "tokens_per_block": "block_size",
    "disable_radix_cache": "enable_prefix_caching",
    "enable_block_reuse": "enable_prefix_caching",
    "schedule_policy": "scheduling_policy",
    "kv_offloading_size": "kv_offload.host.size_gib",
    "hicache_size": "kv_offload.host.size_gib",
    "host_cache_size": "kv_offload.host.size_gib",
    "kv_transfer_config": "disaggregated.kv_transfer.bandwidth_gb_s",
    "kv_connector": "disaggregated.kv_transfer.bandwidth_gb_s",
    "cache_transceiver_config": "disaggregated.kv_transfer.bandwidth_gb_s",
    "disaggregation_transfer_backend": "disaggregated.kv_transfer.bandwidth_gb_s",
    "speculative_config": "engine.speculative",
    "num_nextn_predict_layers": "engine.speculative.num_speculative_tokens",
    "speculative_num_steps": "engine.speculative.num_speculative_tokens",
}
"""Another engine's name of a setting -> its name here."""


def foreign(key: str) -> str | None:
    """Return what to say about *key* of a file where it is a real server's setting; None where it is not."""
    if key in RENAMED:
        return f"is called {RENAMED[key]} here"
    if key in UNMODELLED:
        return f"not modelled ({UNMODELLED[key]}): remove it"
    return None
