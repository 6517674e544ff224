"""Which knobs the simulator models: one row per field of a deployment and a workload, and the table for the docs.

A space that searches a knob that is not modelled is refused: the search would tune noise. The tests hold this table to
the models (nothing missing, nothing stale), to ``docs/simulator.md`` and to the effects that they measure.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from pydantic import BaseModel

from dynosim.config import DeploymentConfig, WorkloadConfig
from dynosim.config.load import show
from dynosim.config.schema import Path, scenario_schema
from dynosim.config.schema import child as schema_child
from dynosim.config.schema import resolve as schema_resolve
from dynosim.config.schema import step as value_step
from dynosim.config.unmodelled import UNMODELLED


class State(StrEnum):
    """How well the simulator follows a knob."""

    MODELLED = "modelled"
    APPROXIMATED = "approximated"
    NOT_MODELLED = "not modelled"


@dataclass(frozen=True)
class Knob:
    """What the simulator makes of one field."""

    state: State
    changes: str
    """What it changes; what is approximated, where something is."""
    test: str
    """Node of the test that shows it, under ``tests/``."""


EFFECT = "simulation/test_knobs.py::test_effect"
"""The test that measures a knob's effect, with the knob as its parameter; meant where a row names no other test."""

_TABLE = """
[DeploymentConfig]
model | weights, KV bytes per token and kernels, by the model's card
gpu | pass times, memory, price; each pool may have its own
quantization | ~ bytes per weight and kernels of the published FP8 or NVFP4 checkpoint; the accuracy it costs is not looked at
kv_cache_dtype | ~ bytes per token in memory and on every link, attention kernels; not accuracy
calibration | ~ pass times, hand-offs and frontend with a few constants that `dynosim calibrate` fitted; extrapolated outside what was measured
mode | aggregated: one pool serves all; disaggregated: a prefill pool hands KV caches to a decode pool

[EngineConfig]
name | scheduler, memory rules, kernels, block size and first-token rule of vLLM V1, SGLang or TensorRT-LLM
version | ~ defaults and rules of that version, and kernel tables measured on it where there are some; the scheduler is the newest one's | engines/test_rules.py::test_defaults_move_with_the_version
async_scheduling | a pass is chosen while the one before runs: no gaps, and who comes during a pass misses the next one too
cudagraph_mode | ~ passes without a graph take at least the launch time of their layers
attention_backend | ~ vLLM: FlashInfer's own decode kernels, which pad to the longest context of the batch
mxfp8_activations | ~ vLLM: kernels of MXFP4 experts on data-centre Blackwell, of measured tables only
max_cudagraph_capture_size | largest batch, under vLLM also largest pass with prompt chunks, that a graph covers
launch_overhead_us | ~ a constant per layer of a pass that no graph covers
pass_overhead_us | ~ a constant added to every pass
request_overhead_us | ~ a constant per request of a pass
frontend_ms | ~ a constant in front of every request: HTTP, tokenising, detokenising
frontend_request_us | ~ how far apart requests that are sent together reach the engine; not the queue on the way back
ignore_eos | SGLang: room for whole outputs at admission; without prefix caching a look ahead to every end
schedule_conservativeness | SGLang: how much room admission keeps for outputs to come; more retracts less
enable_mixed_chunk | SGLang: prefill passes carry running decodes along
max_prefill_tokens | SGLang: prompt tokens of one prefill pass over several requests
scheduler_recv_interval | SGLang: decode passes from one look for new requests to the next; prefill passes look too
capacity_scheduler_policy | TensorRT-LLM: whole contexts reserved at admission, or only the next blocks
batch_wait_timeout_iters | TensorRT-LLM: passes for which prompts wait for company
batch_wait_max_tokens_ratio | TensorRT-LLM: tokens of a pass, as a share of the budget, at which prompts stop waiting
attention_dp_enable_balance | TensorRT-LLM: prompts of all data-parallel ranks start in one pass
attention_dp_timeout_iters | TensorRT-LLM: passes that they wait for each other
attention_dp_batching_wait_iters | TensorRT-LLM: passes that they wait on once all ranks have some

[SpeculativeConfig]
method | acceptance and time of a draft, where they are not given
num_speculative_tokens | longer bursts of tokens, more work per pass
acceptance_length | ~ tokens per pass, at one rate for every draft
acceptance_rates | ~ tokens per pass; drawn independently per request and pass, not from text
draft_cost | ~ time of a draft token as a share of a decode pass

[RooflineTiming]
compute_efficiency | time of compute-bound operations
memory_efficiency | time of memory-bound operations
network_efficiency | time of collectives

[CustomTiming]
options | arguments of your own timing source | timing/test_custom.py::test_a_timing_source_of_a_file_serves_requests

[FixedTiming]
prefill_ms_per_token | time of a pass per prompt token
decode_ms | time of a pass that decodes

[PoolConfig]
replicas | engines of the pool (with an autoscaler: at the start) and GPUs paid for
gpu | GPU type of this pool: prefill and decode may differ
tensor_parallel_size | pass times, KV blocks, bandwidth of the links
pipeline_parallel_size | ~ KV blocks, micro-batches, bubbles; stages are equal, chunks of one prompt do not overlap: TTFT up to P times
data_parallel_size | attention ranks with a queue and cache each; every pass waits for the slowest rank
enable_expert_parallel | ~ kernels and exchanges of MoE layers from the tables; expert imbalance is theirs
max_num_seqs | requests that run at once; not given, the engine's default on the GPU, as for the next two
max_num_batched_tokens | tokens of a pass: chunk size, stalls of decodes, activation memory (SGLang's chunked_prefill_size)
enable_chunked_prefill | off: a prompt is computed in one pass, and rejected if longer than one
enable_prefix_caching | ~ reuse of equal beginnings of prompts; within a pass too except under SGLang; eviction is LRU
block_size | granularity of allocation and reuse; not given, that of the attention kernels
gpu_memory_utilization | KV blocks, by each engine's own rule
num_gpu_blocks_override | KV blocks, of which vLLM never gives out one
scheduling_policy | order of the waiting queue
scheduling_options | arguments of the scheduling policy | policies/test_contracts.py::test_wrong_options_are_named
scheduler_reserve_full_isl | admission waits until the whole prompt fits
long_prefill_token_threshold | vLLM: long prompts take smaller chunks, so that short ones come through beside them
long_prefill_token_threshold_adaptive | vLLM: those chunks grow when few requests share the budget
max_num_active_seqs | vLLM: requests that run at once, below the seats
watermark | vLLM: KV blocks kept free at admission; fewer preemptions, longer queues

[OffloadConfig]
offload_prompt_only | answers are computed again by the next turn once the GPU has evicted them

[HostTier]
size_gib | blocks that stay
bandwidth_gb_s | time of copies to and from the GPUs; concurrent ones share it
latency_us | time before the first byte

[DiskTier]
size_gib | blocks that stay
bandwidth_gb_s | time of copies; the host link is taken too
latency_us | time before the first byte

[RemoteTier]
size_gib | blocks that stay, for all replicas
bandwidth_gb_s | time of copies of one replica
store_bandwidth_gb_s | time of copies when many replicas use the store
latency_us | time before the first byte

[AutoscalerConfig]
policy | what is looked at: queue, KV cache, concurrency or latencies
options | targets and thresholds of the policy
min_replicas | least that are kept
max_replicas | most that are bought
interval_s | how soon a change of load is noticed
throughput_interval_s | how often the predicted rate sizes the pool
predictor | what rate is expected next
predictor_options | arguments of the predictor | policies/test_contracts.py::test_wrong_options_are_named
scale_up_cooldown_s | pause before growing again
scale_down_cooldown_s | pause before shrinking
max_step | replicas per decision
provision_s | ~ cold start: a constant until a node with the image is there
weights_load_gb_s | ~ cold start: weights of the replica over a constant rate
startup_s | ~ cold start: a constant for compilation and graphs

[LinkConfig]
bandwidth_gb_s | time of hand-offs; those of one replica share its ports
latency_us | time before the first byte of a hand-off

[RouterConfig]
policy | which replica gets a request
options | arguments of the policy
load_report_interval_s | how old the load is that the router sees
kv_event_lag_s | how old the prefix index is that the router sees

[LocalPrefillConfig]
max_uncached_tokens | longest rest of a prompt that a decode replica computes itself
max_uncached_fraction | largest share of a prompt that it computes itself

[TopologyConfig]
gpus_per_node | which replicas share a node
nodes_per_rack | which nodes share a rack
nvlink_domain | whether hand-offs in a rack take NVLink
placement | which hand-offs and all-reduces leave a node
inter_node_bandwidth_gb_s | ~ all-reduce time of a group that crosses nodes: a ring over the slowest link
inter_node_latency_us | ~ the same, per pass and layer
rack_uplink_gb_s | hand-offs between racks share it

[FailuresConfig]
mtbf_s | ~ crashes by chance, exponential and independent
mttr_s | ~ a constant until a crashed replica serves again
on_crash | start again, go on elsewhere with the tokens shown, or fail
detection_s | time before the requests are sent again

[CrashConfig]
pool | where
replica | which
at_s | when
down_s | for how long

[StragglerConfig]
pool | where
replica | which
slowdown | by how much

[WorkloadConfig]
max_requests | how many of the source
max_virtual_time_s | when the run stops, whatever is in flight
warmup_requests | the first ones count for no metric
rate_factor | how many per second, or how many clients
output_tokens_factor | how long answers are
shared_prefixes | whether caches can find anything

[RequestClass]
share | how many sessions are of the class
priority | who goes first under a priority policy
deadline_s | who goes first under a deadline policy

[TraceSource]
path | which file | workload/test_readers.py::test_mooncake
format | how it is read | workload/test_readers.py::test_azure
block_tokens | prompt tokens per block id
max_delay_s | cap on the think and tool times of the trace

[SyntheticSource]
requests | how many

[ProfileSource]
name | which mix
requests | how many

[FixedLength]
tokens | how long

[UniformLength]
min | shortest
max | longest

[RatioLength]
tokens | longest
ratio | shortest, as a share of it

[LognormalLength]
median | the middle
sigma | the spread
min | shortest
max | longest

[QuantileLength]
quantiles | probability -> tokens

[TraceLoad]
speedup | how much faster

[PoissonLoad]
rate_rps | how many per second
burstiness | how regular: below 1 in bursts

[ConstantLoad]
rate_rps | how many per second

[DiurnalLoad]
base_rps | the rate at night
peak_rps | the rate at noon
period_s | the length of a day
burstiness | how regular

[StepLoad]
before_rps | the rate before
after_rps | the rate after
at_s | when it changes
burstiness | how regular

[SpikeLoad]
base_rps | the rate around the spike
peak_rps | the rate in it
at_s | when it begins
duration_s | how long it lasts
burstiness | how regular

[CurveLoad]
path | which file of rates
series | which rows of it
mean_rps | rates scaled to this mean
speedup | how much faster the curve plays
burstiness | how regular

[ConcurrencyLoad]
concurrency | sessions in flight
[PrefixTree]
block_tokens | granularity of what prompts share
shared_blocks | the system prompt
continue_probability | how many turns conversations have
continue_scale_tokens | long first prompts are followed up less often
max_input_tokens | where conversations end
persistence | conversations keep their own pace
output_persistence | conversations keep their own answer length
resubmit_probability | prompts that come again

[PrefixGroups]
groups | how many texts prompts start with
skew | how unequal their use

[FanOut]
probability | turns that call tools or sub-agents before the next
shares_context | whether a call can reuse the context of its turn

[Sessions]
block_tokens | granularity of what turns share
output_persistence | sessions keep their own answer length
max_input_tokens | where sessions end

[FixedDelay]
seconds | think or tool time

[ExponentialDelay]
mean_s | think or tool time

[LognormalDelay]
median_s | the middle
sigma | the spread
max_s | the longest

[QuantileDelay]
quantiles | probability -> seconds

[Rewrites]
probability | further turns that keep only part of the history
persistence | whether the same conversations rewrite again
min_blocks | histories long enough to be rewritten
kept_fraction | share that stays
length_ratio | prompt tokens afterwards

[Arrivals]
rates_rps | requests per second in successive windows
window_s | how long a window is
burstiness | how regular
gap_quantiles | gaps as measured
quantum_s | times rounded, as recorders do
"""  # noqa: E501


@cache
def coverage() -> dict[str, Knob]:
    """Return ``Model.field`` -> what the simulator makes of it, of every field that holds a value and not a section."""
    knobs, model = {}, ""
    for line in filter(None, _TABLE.splitlines()):
        if line.startswith("["):
            model = line.strip("[]")
            continue
        field, changes, *test = (cell.strip() for cell in line.split("|"))
        name = f"{model}.{field}"
        state = {"~": State.APPROXIMATED, "!": State.NOT_MODELLED}.get(changes[0], State.MODELLED)
        knobs[name] = Knob(state, changes.lstrip("~! "), test[0] if test else f"{EFFECT}[{name}]")
    return knobs


def not_modelled(path: Path, data: Any) -> str | None:
    """Return what is left out where the field at *path* of a file that says *data* is not modelled, else None."""
    node, model = schema_resolve(scenario_schema(), data), "Scenario"
    for key in path:
        knob = coverage().get(f"{model}.{key}")
        if knob is not None and knob.state is State.NOT_MODELLED:
            return knob.changes
        data, node = value_step(data, key), schema_child(node, key) or {}
        node = schema_resolve(node, data)
        model = node.get("title", "")
    return None


def sections(root: type[BaseModel], place: str) -> dict[type[BaseModel], list[str]]:
    """Return every model under *root* -> the places in a file where it stands, *place* being the root's."""
    found: dict[type[BaseModel], list[str]] = {root: [place]}
    for name, field in root.model_fields.items():
        for model in _models(field.annotation):
            chosen = model.model_fields.get("type")
            tag = "" if chosen is None or chosen.is_required() else chosen.default
            inner = f"{place}.{name}" + (f" with type {tag}" if tag else "")
            for below, places in sections(model, inner).items():
                found.setdefault(below, []).extend(places)
    return found


def leaves(model: type[BaseModel]) -> list[str]:
    """Return the fields of *model* that hold values: neither sections nor the ``type`` that chooses one."""
    fields = model.model_fields.items()
    return [name for name, field in fields if name != "type" and not any(_models(field.annotation))]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models(inner)


def markdown() -> str:
    """Return the coverage table of ``docs/simulator.md``, and the server settings that have no field at all."""
    parts = [
        _section(model, places)
        for root, place in ((DeploymentConfig, "deployment"), (WorkloadConfig, "workload"))
        for model, places in sections(root, place).items()
        if leaves(model)
    ]
    rows = "".join(f"\n| `{name}` | {what} |" for name, what in UNMODELLED.items())
    parts.append(f"### Settings of real servers that have no field\n\n| setting | left out |\n|---|---|{rows}\n")
    return "\n\n".join(parts)


def _section(model: type[BaseModel], places: list[str]) -> str:
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    head = f"### {', '.join(f'`{place}`' for place in places[:3])}{more}\n"
    rows = ["| field | default | state | what it changes | test |", "|---|---|---|---|---|"]
    for name in leaves(model):
        field, knob = model.model_fields[name], coverage()[f"{model.__name__}.{name}"]
        default = "" if field.is_required() else _default(field.get_default(call_default_factory=True))
        test = knob.test.rpartition("/")[2].replace("test_knobs.py::test_effect", "test_knobs")
        rows.append(f"| `{name}` | {default} | {knob.state} | {knob.changes} | `{test}` |")
    return "\n".join([head, *rows])


def _default(value: Any) -> str:
    return "none" if value is None else show(list(value) if isinstance(value, tuple) else value)
