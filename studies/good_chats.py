"""A worked study: what does one thousand answers that users find fast enough cost?

Cost per token rewards deployments that serve many tokens late. This objective charges the whole deployment to the
requests that met every SLO, so a cheap deployment that is often too slow is an expensive one. Run it with

    python studies/good_chats.py                       # this file
    dynosim optimize llama8b --objective studies/good_chats.py:usd_per_1k_good_requests \\
        --objective output_token_throughput_per_user.p5 --set slo.time_to_first_token.p99=2000
"""

from __future__ import annotations

import dynosim


@dynosim.objective(direction="minimize", unit="USD/1k good requests", display="cost of good requests")
def usd_per_1k_good_requests(metrics: dynosim.Metrics) -> float:
    """USD per thousand requests inside the SLO; a run without any has no value and counts as failed."""
    usd_per_1k, attained = metrics.value("usd_per_1k_requests"), metrics.value("good_request_fraction")
    if not usd_per_1k or not attained:
        raise ValueError("no request met the SLO")
    return usd_per_1k / attained


def main() -> None:
    """Search llama8b for cheap good answers that also read fast for the slowest 5 % of users."""
    study = dynosim.optimize(
        "llama8b",
        objectives=[usd_per_1k_good_requests, "output_token_throughput_per_user.p5"],
        overrides=["slo={time_to_first_token: {p99: 4000}}"],
        trials=60,
    )
    for trial in study.frontier():
        cost, speed = trial.outcome.values or (0.0, 0.0)
        print(f"{trial.scenario.deployment.label():>14}  {cost:6.2f} USD/1k good requests  {speed:5.1f} tok/s/user")


if __name__ == "__main__":
    main()
