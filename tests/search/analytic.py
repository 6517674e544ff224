"""A closed-form stand-in for the simulator: queueing formulas over a serving scenario, microseconds per evaluation.

It has what makes the real problem hard for a search: latencies that explode at saturation, plateaus, and SLOs that
are known only afterwards. Its numbers mean nothing.
"""

from __future__ import annotations

from dynosim.config import PoolConfig, Scenario
from dynosim.search.trial import Outcome, Status

PRICE = {"l40s": 1.0, "a100_sxm": 2.0, "h100_sxm": 3.0, "h200_sxm": 3.8, "b200_sxm": 5.5}
SPEED = {"l40s": 0.3, "a100_sxm": 0.5, "h100_sxm": 1.0, "h200_sxm": 1.25, "b200_sxm": 2.2}
ENGINE = {"vllm": 1.0, "sglang": 1.05, "trtllm": 1.12}
ROUTER = {"round_robin": 1.0, "least_outstanding": 0.8, "kv_aware": 0.7}
RATE_RPS, INPUT_TOKENS, OUTPUT_TOKENS, HOUR_S = 3.4, 12_000, 350, 3600.0


def evaluate(scenario: Scenario) -> Outcome:
    """Return cost, p99 TTFT and p99 ITL of *scenario*."""
    d = scenario.deployment
    speed = SPEED[d.gpu] * ENGINE[d.engine.name] * (1.6 if d.quantization == "fp8" else 1.0)
    pools = d.pools()
    prefill, decode = pools.get("prefill", pools.get("mixed")), pools.get("decode", pools.get("mixed"))
    assert prefill is not None
    assert decode is not None
    budget, seats = prefill.max_num_batched_tokens or 8192, decode.max_num_seqs or 256
    prefill_s = INPUT_TOKENS / (9_000 * speed * _parallel(prefill)) * (1 + 500 / budget)
    in_flight = min(seats, 1 + RATE_RPS / decode.replicas * OUTPUT_TOKENS * 0.02)
    step_s = 0.03 / (speed * _parallel(decode)) + in_flight * 2e-4 / _parallel(decode)
    decode_s = OUTPUT_TOKENS * step_s / in_flight
    shuffle = ROUTER.get(d.router.policy, 1.0) * (1 - 0.1 * d.router.options.get("overlap_score_credit", 0.0) / 2)
    if "mixed" in pools:
        ttft_s = prefill_s + shuffle * _wait(decode.replicas, prefill_s + decode_s)
        itl_s = step_s * (1 + budget / 2048 * RATE_RPS * prefill_s / prefill.replicas)
    else:
        assert d.disaggregated is not None
        hop_s = 0.5 / d.disaggregated.kv_transfer.bandwidth_gb_s
        waits_s = _wait(prefill.replicas, prefill_s) + _wait(decode.replicas, decode_s)
        ttft_s = hop_s + prefill_s + shuffle * waits_s
        itl_s = step_s
    usd = d.num_gpus() * PRICE[d.gpu] / (RATE_RPS * OUTPUT_TOKENS * HOUR_S) * 1e6
    values = (usd, 1e3 * ttft_s, 1e3 * itl_s)
    known = {"time_to_first_token.p99": values[1], "inter_token_latency.p99": values[2]}
    bounds = {f"{metric}.{stat}": bound for metric, stats in scenario.slo.items() for stat, bound in stats.items()}
    # Every request is served here: SLOs other than those on latencies are met.
    violations = {name: known.get(name, 0.0) / bound - 1.0 for name, bound in bounds.items()}
    return Outcome(Status.COMPLETE, values, violations, {"usd_per_million_output_tokens": usd})


def _parallel(pool: PoolConfig) -> float:
    return float(pool.tensor_parallel_size**0.85)


def _wait(replicas: int, service_s: float) -> float:
    """Return an M/D/1-like p99 wait of one replica's share of the arrivals; linear in the backlog beyond saturation."""
    load = RATE_RPS / replicas * service_s
    return min(3 * service_s * load / (1 - load), 600.0) if load < 1 else 600.0 + HOUR_S * (load - 1)
