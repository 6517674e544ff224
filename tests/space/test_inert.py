"""What cannot matter at a point is no part of it: no two points of a space are one configuration."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from dynosim.errors import ConfigError
from dynosim.search.evaluate import evaluate
from dynosim.search.rows import Rows
from dynosim.search.samplers import BayesSampler
from dynosim.search.samplers.base import History
from dynosim.space import SearchSpace
from search.problems import serving

# No ``when`` at all. Pinned values differ from the schema's defaults: kv_aware, holt, an interval of 5 s.
FILE = """
name: forgetful
workload:
  source:
    type: synthetic
    requests: 40
    input_tokens: {type: fixed, tokens: 600}
    output_tokens: {type: fixed, tokens: 20}
    prefix: {block_tokens: 16, shared_blocks: 4}
  load: {type: poisson, rate_rps: 40.0}
deployment:
  model: llama-3.1-8b
  gpu: h100_sxm
  timing: {type: polynomial}
  router:
    policy: {choices: [kv_aware, round_robin, least_outstanding]}
    options:
      router_temperature: {choices: [0.5, 0.0]}
      unit: {choices: [requests, tokens]}
  aggregated:
    replicas: {choices: [1, 2]}
    scheduling_policy: {choices: [fcfs, deadline]}
    scheduling_options: {default_s: {choices: [5.0, 60.0]}}
    autoscaler:
      policy: {choices: [queue_depth, slo]}
      options: {up: {choices: [0.5, 1.0]}, ttft_ms: {choices: [50.0, 500.0]}}
      interval_s: {choices: [0.2, 0.5]}
      throughput_interval_s: {choices: [null, 0.3]}
      predictor: {choices: [holt, seasonal]}
      predictor_options: {period: {choices: [3, 4]}, alpha: {choices: [0.3, 0.6]}}
      max_replicas: {choices: [1, 2, 4]}
      min_replicas: {choices: [1, 2]}
      provision_s: 0.1
      startup_s: 0.1
objectives: [{metric: usd_per_hour}, {metric: time_to_first_token, stat: p99}]
"""


def parse(*overrides: str) -> SearchSpace:
    return SearchSpace.parse(FILE, overrides)


def unruled(space: SearchSpace) -> SearchSpace:
    """Return the space without the rules of what matters."""
    return replace(space, parameters=tuple(replace(each, matters=None) for each in space.parameters))


def test_no_two_points_are_one_configuration() -> None:
    space = parse()
    points = list(space.points())
    assert len({repr(space.resolve(point)) for point in points}) == len(points) == space.size()


def test_every_configuration_is_still_a_point() -> None:
    space, whole = parse(), unruled(parse())
    found = {repr(space.resolve(point)) for point in space.points()}
    standing = {repr(space.resolve(space.complete(point))) for point in whole.points()}
    assert standing == found
    assert whole.size() > 1.5 * space.size()


def test_an_option_belongs_to_the_policies_that_take_it() -> None:
    when = {p.path.removeprefix("deployment."): dict(p.when) for p in parse().parameters}
    assert when["router.options.unit"] == {"deployment.router.policy": ("least_outstanding",)}
    assert when["aggregated.autoscaler.options.up"] == {"deployment.aggregated.autoscaler.policy": ("queue_depth",)}
    assert when["aggregated.scheduling_options.default_s"] == {"deployment.aggregated.scheduling_policy": ("deadline",)}


def test_an_option_that_no_policy_takes_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes"):
        parse("deployment.router.options.temperature={choices: [0.1, 0.2]}")


def test_written_conditions_win() -> None:
    space = parse("deployment.router.options.unit.when={policy: [least_outstanding]}")
    assert next(p for p in space.parameters if p.path.endswith("unit")).when == {
        "deployment.router.policy": ("least_outstanding",)
    }
    # The bound depends on the policy by the file, so the policy cannot depend on the bound.
    circle = parse("deployment.aggregated.autoscaler.min_replicas.when={policy: slo}")
    assert next(p for p in circle.parameters if p.path.endswith("autoscaler.policy")).matters is None


def test_rows_leave_out_what_the_space_leaves_out() -> None:
    space, rng = parse(), np.random.default_rng(0)
    rows = Rows(space)
    drawn = rows.sample(200, rng)
    for row in itertools.chain(drawn, rows.mutate(drawn, rng), rows.cross(drawn, drawn[::-1], rng)):
        assert list(rows.point(row)) == [parameter.path for parameter in space.active(rows.point(row))]
    assert len(rows.all()) == space.size()


def test_what_is_left_out_changes_no_outcome() -> None:
    """The simulator is the judge: points that differ in inert fields only have equal values."""
    space = parse()
    whole, rng, seen = unruled(space), np.random.default_rng(0), {}
    for _ in range(400):
        point = whole.sample(rng)
        if whole.infeasible_reason(point) is None:
            seen.setdefault(repr(space.complete(point)), []).append(point)
    groups = [points[:3] for points in seen.values() if len(points) > 1]
    assert len(groups) > 10
    for points in groups[:20]:
        assert len({evaluate(whole.scenario(point)).values for point in points}) == 1


def test_the_baseline_keeps_what_it_says_of_inert_fields() -> None:
    space = serving("baseline.deployment.aggregated.replicas=1", "baseline.deployment.router.policy=kv_aware",
                    "baseline.deployment.router.options={overlap_score_credit: 0.5}")  # fmt: skip
    point = space.baseline_point()
    assert point is not None
    assert "deployment.router.policy" not in point
    router = space.reference.deployment.router
    assert (router.policy, router.options) == ("kv_aware", {"overlap_score_credit": 0.5})


@pytest.mark.parametrize(
    "held", ["deployment.router.options.router_queue_threshold=0.5", "deployment.disaggregated.local_prefill={}"]
)
def test_a_router_that_does_more_than_choose_always_matters(held: str) -> None:
    if "disaggregated" in held:
        space = serving(held)
        policy = next(p for p in space.parameters if p.path == "deployment.router.policy")
        assert policy.matters is None
    else:
        space = parse("deployment.router.policy=kv_aware", "deployment.router.options.unit.when={policy: x}", held)
        assert all(p.matters is None for p in space.parameters if "router." in p.path)


def test_a_bad_value_is_found_where_it_is_inert() -> None:
    with pytest.raises(ConfigError, match="typo"):
        parse("deployment.aggregated.replicas=1", "deployment.aggregated.autoscaler=null",
              "deployment.router.policy={choices: [kv_aware, typo]}")  # fmt: skip


def test_a_sampler_proposes_no_configuration_twice() -> None:
    space = parse("deployment.aggregated.autoscaler=null", "deployment.aggregated.scheduling_policy=fcfs",
                  "deployment.aggregated.scheduling_options={}")  # fmt: skip
    sampler, told = BayesSampler(space), []
    for number in range(int(space.size())):
        history = History(("minimize", "minimize"), told, np.ones((number, 2)), {}, [], [])
        told.append(sampler.propose(space, history, np.random.default_rng(number)))
    assert len({repr(space.resolve(point)) for point in told}) == space.size()
