"""What holds for policies of every kind: names, options, and what they may see."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dynosim.errors import ConfigError
from dynosim.policies.base import PoolView, QueueView, RequestView, ScalingView
from dynosim.policies.registry import PLACES, Kind, make, policies, policy_class
from dynosim.rng import stream
from dynosim.space import SearchSpace

ALL: list[tuple[Kind, str]] = [(kind, name) for kind in PLACES for name in policies(kind)]


def _make(kind: Kind, name: str, path: str = "section", **options: Any) -> Any:
    return make(kind, name, options, path, stream(0, "test"))


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_needs_no_options(kind: Kind, name: str) -> None:
    assert hasattr(_make(kind, name), PLACES[kind].method)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_unknown_options_are_refused(kind: Kind, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind} {name} takes") as caught:
        _make(kind, name, no_such_option=1)
    assert caught.value.path == f"section.{PLACES[kind].options}.no_such_option"


@pytest.mark.parametrize(
    ("kind", "name", "options", "wrong"),
    [
        ("router", "kv_aware", {"router_temperature": -1.0}, "router_temperature"),
        ("router", "kv_aware", {"overlap_score_credit": "much"}, "overlap_score_credit"),
        ("router", "kv_aware", {"host_cache_hit_weight": float("nan")}, "host_cache_hit_weight"),
        ("router", "kv_aware", {"router_predicted_ttl_secs": True}, "router_predicted_ttl_secs"),
        ("router", "least_outstanding", {"unit": "words"}, "unit"),
        ("router", "prefix_affinity", {"max_blocks": 0}, "max_blocks"),
        ("router", "prefix_affinity", {"balance_rel_threshold": 0.5}, "balance_rel_threshold"),
        ("router", "priority_aware", {"reserved": 1.5}, "reserved"),
        ("scheduling_policy", "shortest_prompt", {"tokens_per_s": 0}, "tokens_per_s"),
        ("scheduling_policy", "deadline", {"default_s": float("inf")}, "default_s"),
        ("autoscaler", "queue_depth", {"up": 0.0}, "up"),
        ("autoscaler", "queue_depth", {"unit": "tokens"}, "unit"),
        ("autoscaler", "kv_utilization", {"up": 0.5, "down": 0.6}, "down"),
        ("autoscaler", "slo", {"ttft_ms": 0}, "ttft_ms"),
        ("autoscaler", "slo", {"sensitivity": 80}, "sensitivity"),
        ("predictor", "moving_average", {"window": 2.5}, "window"),
        ("predictor", "seasonal", {"period": 10**30}, "period"),
        ("predictor", "holt", {"alpha": None}, "alpha"),
    ],
)
def test_wrong_options_are_named(kind: Kind, name: str, options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _make(kind, name, **options)
    assert caught.value.path == f"section.{PLACES[kind].options}.{wrong}"
    assert repr(options[wrong]) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", PLACES)
def test_names_from_anywhere_and_names_from_nowhere(kind: Kind) -> None:
    name, known = next(iter(policies(kind).items()))
    assert policy_class(kind, f"{known.__module__}:{known.__name__}") is known
    with pytest.raises(ConfigError, match=f"did you mean '{name}'") as caught:
        policy_class(kind, name[:-1], "section")
    assert caught.value.path == f"section.{PLACES[kind].field}"
    for nowhere, reason in (
        ("no_module:Policy", "No module"),
        ("os.path:join", "a class with"),
        (":Policy", "file.py"),
    ):
        with pytest.raises(ConfigError, match=f"{nowhere}.*{reason}") as caught:
            policy_class(kind, nowhere, "section")
        assert caught.value.path == f"section.{PLACES[kind].field}"


class Nothing:
    """A user's policy that is none."""


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("router", "route, looks"),
        ("scheduling_policy", "keys, longest_prefix, add_arrival"),
        ("autoscaler", "desired"),
        ("predictor", "observe, predict"),
    ],
)
def test_what_a_policy_lacks_is_said(kind: Kind, missing: str) -> None:
    with pytest.raises(ConfigError, match=f"a {kind} needs {missing}$") as caught:
        _make(kind, f"{__name__}:Nothing")
    assert caught.value.path == f"section.{PLACES[kind].field}"


class Raises:
    """A user's policy with a bug."""

    def __init__(self) -> None:
        {}["absent"]


class Exits:
    """A user's policy that ends the process."""

    def __init__(self) -> None:
        raise SystemExit(0)


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize(("name", "said"), [("Raises", "KeyError: 'absent'"), ("Exits", "SystemExit: 0")])
def test_a_policy_that_cannot_be_made_is_one_line(kind: Kind, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: .*{said}$") as caught:
        _make(kind, f"{__name__}:{name}")
    assert caught.value.path == f"section.{PLACES[kind].options}"


SPLIT = ("deployment.mode=disaggregated", "deployment.aggregated=null")


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("router.policy=kv_awar", "router.policy"),
        ("router={policy: kv_aware, options: {overlap_wait: 1}}", "router.options.overlap_wait"),
        ("aggregated.scheduling_policy=fifo", "aggregated.scheduling_policy"),
        ("aggregated.scheduling_options={aging: 1}", "aggregated.scheduling_options.aging"),
        ("aggregated.autoscaler={max_replicas: 9, policy: cpu}", "aggregated.autoscaler.policy"),
        ("aggregated.autoscaler={max_replicas: 9, options: {down: 2}}", "aggregated.autoscaler.options.down"),
        ("aggregated.autoscaler={max_replicas: 9, predictor: prophet}", "aggregated.autoscaler.predictor"),
        (
            "aggregated.autoscaler={max_replicas: 9, predictor: holt, predictor_options: {alpha: 2}}",
            "aggregated.autoscaler.predictor_options.alpha",
        ),
        (
            "disaggregated={prefill: {}, decode: {}, decode_router: {policy: random, options: {seed: 1}}}",
            "disaggregated.decode_router.options.seed",
        ),
        ("disaggregated={prefill: {scheduling_policy: lpm}, decode: {}}", "disaggregated.prefill.scheduling_policy"),
    ],
)
def test_a_file_with_a_wrong_policy_is_refused(override: str, path: str) -> None:
    split = SPLIT if override.startswith("disaggregated") else ()
    with pytest.raises(ConfigError) as caught:
        SearchSpace.load("tiny", [*split, f"deployment.{override}"])
    assert caught.value.path == f"deployment.{path}"


def test_views_do_not_show_the_answers_length() -> None:
    queue, scaling = ({field.name for field in dataclasses.fields(view)} for view in (QueueView, ScalingView))
    names = {*RequestView._fields, *PoolView._fields, *queue, *scaling}
    assert not [name for name in names if "output" in name or "generated" in name]


def test_the_examples_of_the_page_work() -> None:
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    space: dict[str, Any] = {"__name__": "examples"}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], space)
    loads, cached = np.array([9, 2, 0]), np.array([512, 256, 0])
    view: Any = SimpleNamespace(outstanding_requests=loads, cached_tokens=lambda: cached)
    request = RequestView(0, 700, 0, 0, np.arange(2), 512)
    assert [space["ShortestQueue"](spill).route(request, view) for spill in (8, 9, 1)] == [1, 0, 2]
    queue = QueueView(np.array([50, 20, 10]), np.array([0, 0, 1]), np.full(3, np.inf))
    assert space["ShortPromptsOfUrgentUsers"]().keys(queue).argsort().tolist() == [1, 0, 2]
    assert space["OneReplicaPer100Requests"]().desired(SimpleNamespace(outstanding_requests=101)) == 2
