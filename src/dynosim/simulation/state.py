"""The compiled engine's state: flat arrays of records, and how they are reached from a handle.

A *row* is one scheduler with its batch. A replica is one row; or ``data_parallel_size`` rows (ranks: own queue, own KV
cache, passes in lock-step); or ``pipeline_parallel_size`` rows (lanes: one micro-batch each, queue and KV cache shared
and owned by the first).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynosim.simulation.compiled import Opener, State

NONE = np.int64(-1)  # a typed constant: a literal would compile every function twice
LOCAL, REMOTE, MOVING, LANDED, LOADING, LOADED = 0, 1, 2, 3, 4, 5
"""Where a job's prompt KV is: computed here; on another replica; on its way from there; arrived from there, about to
decode; on its way from a lower tier; arrived from there, the rest of the prompt still to compute."""
PREFILL_DONE, FINISHED, RESERVED, PROMPT_DONE = 0, 1, 2, 3
"""Kinds of events the cluster may watch."""
VLLM, SGLANG, NO_EVICT = 0, 1, 2
"""Schedulers; TensorRT-LLM under MAX_UTILIZATION schedules like vLLM."""
BY_DECODE, BY_TRANSFER, BY_PREFILL = 0, 1, 2
"""Who shows the first token of a handed-off request."""
REASONS = ("prefill_busy", "decode_busy", "batch_slots", "token_budget", "kv_blocks", "kv_link")
PREFILL_BUSY, DECODE_BUSY, BATCH_SLOTS, TOKEN_BUDGET, KV_BLOCKS, KV_LINK = 0, 1, 2, 3, 4, 5
"""What a queued request waits for."""
HAND_OFF, STORE, LOAD = 0, 1, 2
"""Kinds of transfers."""
MAX_TIERS = 3
ROUTES = ("d2h", "h2d", "disk_write", "disk_read", "remote_write", "remote_read", "store_write", "store_read")
PORTS = ("net_out", "net_in", "nvlink_out", "nvlink_in", "rack_out", "rack_in")
LINK_COLUMNS = ROUTES + PORTS
NET_OUT, NET_IN, NVLINK_OUT, NVLINK_IN, RACK_OUT, RACK_IN = range(len(ROUTES), len(LINK_COLUMNS))
"""Columns of ``row_links``: a row's links by what they are for; NONE where it has none."""

ROW = np.dtype(
    [
        ("now", "f8"),  # start of the planned pass, or of the next one
        ("end", "f8"),  # end of the planned passes; inf when there is nothing to do
        ("last_end", "f8"),  # of the previous pass
        ("last_start", "f8"),  # of it: who has come later is not in the batch yet, under overlapped scheduling
        ("planned", "i8"),
        ("passes_planned", "i8"),
        ("n_running", "i8"),
        ("n_left", "i8"),  # with the last choice, preempted ones included
        ("n_ended", "i8"),  # of those, ended by the last pass
        ("orders", "i8"),  # admissions so far, of the queue's row
        ("n_coming", "i8"),  # decode pool, of the queue's row: hold blocks for a prompt computed elsewhere, in no batch
        ("n_decode", "i8"),  # in the planned pass
        ("n_measured", "i8"),  # decodes whose gap counts: after the warm-up, not resumed from preemption
        ("prefill_tokens", "i8"),  # in the planned pass
        ("decode_tokens", "i8"),  # drafts included
        ("context", "i8"),  # total context of the planned pass's decodes
        ("queue", "i8"),  # row that owns the waiting queue
        ("cache", "i8"),  # cache that holds the KV blocks
        ("arrive_head", "i8"),
        ("arrive_tail", "i8"),
        ("wait_head", "i8"),
        ("wait_tail", "i8"),
        ("n_waiting", "i8"),
        ("n_arriving", "i8"),
        ("reason", "i8"),  # what the queue waits for, since:
        ("reason_since", "f8"),
        ("unpolled", "i8"),  # decode passes since new requests were last looked for
        ("batch_waits", "i8"),  # passes that prompts have waited for company, or for those of other ranks,
        ("rank_waits", "i8"),  # and then on, once all ranks had some
        ("held", "i8"),  # prompts wait in this pass, on all ranks of this leader
        ("refreshes", "i8"),  # SGLang: times that a queue by arrival has been looked at
        ("full", "i8"),  # SGLang: nothing is admitted until a request leaves
        ("ratio_base", "f8"),  # SGLang: new-token ratio, less its decay over
        ("ratio_steps", "i8"),
        ("reserved_blocks", "i8"),  # no-evict: still to be taken by jobs whose KV is on its way
        ("slowdown", "f8"),
        ("crossing_s", "f8"),  # of a tensor-parallel group over several nodes: per pass,
        ("crossing_token_s", "f8"),  # and per token of it
        ("domain", "i8"),  # NVLink domain and
        ("rack", "i8"),
        ("outstanding", "i8"),  # what a router sees: requests sent here and not finished,
        ("prefill_load", "i8"),  # their uncached prompt tokens before the first token,
        ("kv_load", "i8"),  # their prompt tokens, and
        ("active_blocks", "i8"),  # the blocks of these, shared ones once
        ("busy_s", "f8"),
        ("passes", "i8"),
        ("prefill_done_tokens", "i8"),
        ("decode_done_tokens", "i8"),
        ("finished", "i8"),
        ("left", "f8"),  # when the last request left
        ("batch_time", "f8"),
        ("block_time", "f8"),
        ("stall_planned", "f8"),  # what prefill chunks add to the planned pass, and
        ("stalled", "f8"),  # have added to all passes with decodes so far
        ("extrapolated_s", "f8"),
    ]
)

JOB = np.dtype(
    [
        ("visible", "f8"),  # in the queue from then on
        ("arrived", "f8"),  # there for the first time
        ("key", "f8"),  # place in the queue: lower first
        ("order", "i4"),  # place among all admissions to its queue
        ("static_key", "f8"),  # what the scheduling policy says of it
        ("scheduled", "f8"),
        ("landed", "f8"),
        ("first", "f8"),
        ("second", "f8"),
        ("last", "f8"),
        ("gap_from", "f8"),  # when the last token was shown, if not one pass ago
        ("gap_s", "f8"),  # its last token gap, if not one pass
        ("preempted_at", "f8"),  # NaN unless it has lost its blocks and not caught up yet
        ("preempted_prefill_s", "f8"),  # without blocks before the first token,
        ("preempted_decode_s", "f8"),  # and after it, until the next one
        ("stall_mark", "f8"),  # the row's ``stalled`` when this job's decoding last began
        ("stall_s", "f8"),
        ("load_from", "f8"),  # when its KV started to come up from lower tiers
        ("hash_start", "i4"),
        ("hash_count", "i4"),
        ("nodes", "i4"),  # leading nodes that are computed,
        ("before", "i4"),  # their blocks,
        ("filled", "i4"),  # and those computed of the next node
        ("named", "i4"),  # most leading nodes it ever had whole in the cache
        ("offloaded", "i4"),  # leading nodes that lower tiers may have
        ("stored", "i4"),  # of those, already sent there
        ("storing", "i1"),
        ("loading", "i1"),  # copies on their way up
        ("input", "i4"),
        ("output", "i4"),
        ("generated", "i4"),
        ("unseen", "i1"),  # SGLang: of those, tokens that the choice of the next pass does not know yet
        ("place", "i4"),  # SGLang: in a queue by prefix
        ("later", "i8"),  # SGLang: who ends next, or NONE
        ("ctx", "i4"),
        ("chunk", "i4"),  # tokens in the planned pass
        ("prefilling", "i1"),
        ("fresh", "i1"),  # the last pass computed the last of its prompt
        ("ended", "i1"),  # its last token is out; it stays until the next pass is chosen
        ("marked", "i1"),  # its waits are being counted
        ("rounds", "i4"),  # speculation rounds so far
        ("blocks", "i4"),  # held, shared ones included
        ("own", "i4"),  # held and not shared
        ("cached", "i4"),
        ("cached_host", "i4"),
        ("cached_disk", "i4"),
        ("cached_remote", "i4"),
        ("preemptions", "i4"),
        ("row", "i8"),
        ("next", "i4"),
        ("kv", "i1"),
        ("prefill_load", "i4"),
    ]
)

EVENT = np.dtype([("time", "f8"), ("kind", "i8"), ("job", "i8")])

LIMITS = np.dtype(
    [
        ("pool", "i8"),
        ("scheduler", "i8"),
        ("ranks", "i8"),
        ("lanes", "i8"),
        ("max_num_seqs", "i8"),  # of one row: that may run
        ("most_held", "i8"),  # of one queue: that run, or hold blocks for a prompt computed elsewhere
        ("max_num_batched_tokens", "i8"),
        ("long_prefill_tokens", "i8"),  # of one request in a pass while there is another; 0: no limit,
        ("long_prefill_adaptive", "i8"),  # or a fair share of the budget if that is more
        ("watermark_blocks", "i8"),  # stay free when a request is admitted beside others
        ("max_prefill_tokens", "i8"),
        ("mixed_chunk", "i8"),
        ("init_ratio", "f8"),
        ("min_ratio", "f8"),
        ("ratio_decay", "f8"),
        ("foresees", "i8"),  # SGLang: admission looks ahead to the end of every request
        ("chunked", "i8"),
        ("reserve_full", "i8"),
        ("ordered", "i8"),  # the queue is not first come, first served
        ("longest_prefix", "i8"),
        ("key_adds_time", "i8"),
        ("remote", "i8"),  # decode pool: prompts are prefilled elsewhere
        ("hold", "i8"),  # prefill pool: blocks stay until released, outputs end after one token
        ("first_token", "i8"),
        ("watch", "i8"),  # whether finishes are reported as events,
        ("watch_prompts", "i8"),  # and ends of prompts in pools that decode too
        ("fused", "i8"),
        ("tokens_per_decode", "i8"),
        ("seed", "i8"),
        ("chunk_s", "f8"),  # of every prefill chunk of a pass
        ("overlap", "i8"),  # the next pass is chosen while this one runs
        ("eager_tokens", "i8"),  # passes with prompt chunks and more tokens than these
        ("eager_s", "f8"),  # take at least this long
        ("skew", "f8"),  # share of the padding to the longest context that decode attention computes
        ("recv_interval", "i8"),  # SGLang: decode passes from one look for new requests to the next
        ("batch_wait_iters", "i8"),  # TensorRT-LLM: prompts wait at most this many passes
        ("batch_wait_tokens", "f8"),  # for a pass of at least this many tokens
        ("balance_iters", "i8"),  # TensorRT-LLM: prompts wait at most this many passes for those of all ranks,
        ("balance_wait_iters", "i8"),  # and this many more
        ("destination_first", "i8"),  # decode pool: blocks are reserved before the prompt is prefilled
        ("tiers", "i8"),
        ("tier_cache", "i8"),  # row r keeps tier k (0, 1, ...) in cache tier_cache + k rows + r
        ("tier_kind", "i8", (MAX_TIERS,)),  # 0 host, 1 disk, 2 remote
        ("block_size", "i8"),
        ("block_bytes", "f8"),
        ("num_blocks", "i8"),
        ("warmup", "i8"),
        ("measured_tokens", "f8"),
        ("measured_context", "f8"),
        ("indexed", "i8"),  # the router looks: it has a prefix index,
        ("entries_used", "i8"),
        ("entry_head", "i8"),  # free entries
        ("predict_s", "f8"),  # which believes for so long what a request will leave; 0: not at all
        ("lag_s", "f8"),  # and hears of changes so late:
        ("log_head", "i8"),  # not yet of log_head .. log_tail of the log
        ("log_tail", "i8"),
        ("clock", "f8"),
        ("n_events", "i8"),
    ]
)

CACHE = np.dtype(
    [
        ("lru_head", "i8"),
        ("lru_tail", "i8"),
        ("slot_head", "i8"),  # free slots
        ("slots_used", "i8"),
        ("slot_base", "i8"),
        ("bucket_base", "i8"),
        ("bucket_mask", "i8"),
        ("copies", "i8"),  # slots of copies
        ("empty", "i8"),  # free blocks without content
        ("free_blocks", "i8"),  # all of them
        ("num_blocks", "i8"),
    ]
)
SLOT_FIELDS = ("key", "count", "refs", "prev", "next", "chain", "more", "at", "owner", "joint", "joined")
SLOT = np.dtype([(name, "i4") for name in SLOT_FIELDS])
ENTRY = np.dtype(
    [
        ("expires", "f8"),  # of what is predicted
        ("node", "i4"),
        ("row", "i4"),
        ("cached", "i4"),  # leading blocks in the KV cache, as far as the router has heard
        ("predicted", "i4"),
        ("active", "i4"),  # leading blocks of prompts of unfinished requests,
        ("refs", "i4"),  # and the number of those requests
        ("next", "i4"),  # entry of this node
        ("prev", "i4"),
        ("chain", "i4"),
    ]
)
CACHED, REFERENCED, HOST, DISK = 0, 1, 2, 3
"""Rows of ``overlap``: blocks of one prompt in each row's KV cache; in use there; and beyond that cache in host memory
and in the tiers below."""
LOG = np.dtype([("time", "f8"), ("key", "i8"), ("cache", "i8"), ("count", "i8")])
NET = np.dtype([("now", "f8"), ("next", "f8"), ("which", "i8"), ("active", "i8")])
LINK = np.dtype([("bytes_s", "f8"), ("latency_s", "f8"), ("users", "i8"), ("bytes", "f8")])
TRANSFER = np.dtype(
    [
        ("remaining", "f8"),  # bytes
        ("rate", "f8"),  # bytes/s; 0 before ``starts``
        ("starts", "f8"),
        ("size", "f8"),
        ("kind", "i8"),
        ("pool", "i8"),
        ("row", "i8"),
        ("job", "i8"),
        ("first", "i8"),  # node
        ("last", "i8"),
        ("tier", "i8"),
        ("n_links", "i8"),
        ("links", "i8", (4,)),
    ]
)


class Engine(NamedTuple):
    """All state of one pool. Row r of a two-dimensional array is row r's."""

    limits: NDArray[Any]
    rows: NDArray[Any]
    jobs: NDArray[Any]
    running: NDArray[np.int64]
    caches: NDArray[Any]
    slots: NDArray[Any]
    buckets: NDArray[np.int32]
    node_blocks: NDArray[np.int32]  # whole KV blocks of each prefix node
    hash_ids: NDArray[np.int32]  # the nodes of each job,
    held: NDArray[np.int32]  # and how many blocks of each it holds
    events: NDArray[Any]
    waits: NDArray[np.float64]  # seconds that a row's queue has waited for each reason
    job_waits: NDArray[np.float64]
    stage_free: NDArray[np.float64]
    row_links: NDArray[np.int64]
    log: NDArray[Any]
    entries: NDArray[Any]  # of the prefix index (``index``)
    entry_buckets: NDArray[np.int32]
    node_entry: NDArray[np.int32]  # of each node that requests can share: its first entry
    overlap: NDArray[np.int64]  # of one prompt with every row
    costs: NDArray[np.float64]  # scratch
    due: NDArray[np.float64]  # of each replica: when it next has something to do, or earlier
    evicts: NDArray[np.int8]  # of each row that leads others: whether its run of decodes may evict
    net: NDArray[Any]  # shared by all pools, as are links and transfers
    links: NDArray[Any]
    transfers: NDArray[Any]
    accept: NDArray[np.float64]  # acceptance rates of draft tokens
    tier_blocks: NDArray[np.int64]  # scratch
    gap_count: NDArray[np.float64]
    gap_sum: NDArray[np.float64]
    gap_range: NDArray[np.float64]
    tokens_s: NDArray[np.float64]
    graph_tokens_s: NDArray[np.float64]
    decode_context: NDArray[np.float64]
    decode_s: NDArray[np.float64]
    prefill_seq: NDArray[np.float64]
    prefill_share_s: NDArray[np.float64]
    expert_s: NDArray[np.float64]


_DTYPES: dict[str, Any] = {
    "limits": LIMITS, "rows": ROW, "jobs": JOB, "caches": CACHE, "slots": SLOT, "events": EVENT, "log": LOG,
    "entries": ENTRY, "overlap": np.int64, "evicts": np.int8,
    "net": NET, "links": LINK, "transfers": TRANSFER, "tier_blocks": np.int64, "running": np.int64,
    "row_links": np.int64,
} | dict.fromkeys(("buckets", "node_blocks", "hash_ids", "held", "entry_buckets", "node_entry"), np.int32)  # fmt: skip
_TABLES = (
    "running", "waits", "job_waits", "stage_free", "row_links", "overlap",
    "decode_context", "decode_s", "prefill_share_s",
)  # fmt: skip
ENGINE = State(
    "Engine", {name: (np.dtype(_DTYPES.get(name, np.float64)), 2 if name in _TABLES else 1) for name in Engine._fields}
)
open_engine = Opener(ENGINE)
"""In compiled code: the Engine behind a handle."""
