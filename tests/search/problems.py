"""Small spaces for the search tests; ``analytic.evaluate`` gives them values."""

from dynosim.space import SearchSpace

SERVING = """
name: serving
workload:
  source:
    type: synthetic
    requests: 10
    input_tokens: {type: fixed, tokens: 100}
    output_tokens: {type: fixed, tokens: 10}
  load: {type: poisson, rate_rps: 1.0}
slo:
  time_to_first_token: {p99: 12000}
  inter_token_latency: {p99: 60}
deployment:
  model: llama-3.1-8b
  gpu: {choices: [l40s, h100_sxm, b200_sxm]}
  timing: {type: roofline}
  mode: {choices: [aggregated, disaggregated]}
  aggregated:
    replicas: {range: {min: 1, max: 12}}
    tensor_parallel_size: {choices: [1, 2, 4]}
    max_num_seqs: {range: {min: 16, max: 512, scale: log}}
    max_num_batched_tokens: {choices: [512, 2048, 8192]}
  disaggregated:
    prefill:
      replicas: {range: {min: 1, max: 8}}
      tensor_parallel_size: {choices: [1, 2, 4]}
      max_num_seqs: 32
    decode:
      replicas: {range: {min: 1, max: 8}}
      tensor_parallel_size: {choices: [1, 2, 4]}
      max_num_seqs: {range: {min: 16, max: 512, scale: log}}
    kv_transfer: {bandwidth_gb_s: {range: {min: 10.0, max: 100.0, scale: log}}}
  router:
    policy: {choices: [round_robin, least_outstanding, kv_aware]}
    options:
      overlap_score_credit: {range: {min: 0.0, max: 2.0}, when: {policy: kv_aware}}
budget: {max_gpus: 24}
baseline:
  deployment:
    gpu: h100_sxm
    mode: aggregated
    aggregated: {replicas: 5, tensor_parallel_size: 4, max_num_seqs: 256, max_num_batched_tokens: 2048}
    router: {policy: round_robin}
"""

SMALL = """
name: small
workload:
  source:
    type: synthetic
    requests: 10
    input_tokens: {type: fixed, tokens: 100}
    output_tokens: {type: fixed, tokens: 10}
  load: {type: poisson, rate_rps: 1.0}
deployment:
  model: llama-3.1-8b
  gpu: h100_sxm
  timing: {type: roofline}
  aggregated:
    replicas: {range: {min: 1, max: 6}}
    tensor_parallel_size: {choices: [1, 2, 4]}
budget: {max_gpus: 12}
"""


def serving(*overrides: str) -> SearchSpace:
    """Return a mixed, conditional space with a baseline, a GPU budget and two SLOs."""
    return SearchSpace.parse(SERVING, overrides)


def small(*overrides: str) -> SearchSpace:
    """Return a space of 15 valid points, no SLO and no baseline."""
    return SearchSpace.parse(SMALL, overrides)
