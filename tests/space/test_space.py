"""Search spaces: what they refuse at loading, which points they have, and what is known before simulating."""

import copy
import itertools
import math
import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.config.load import dump, parse_document
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.rng import stream
from dynosim.space import SearchSpace, bundled_spaces

FILE = """\
schema_version: "1"
name: test
workload:
  source: {type: synthetic, input_tokens: {type: fixed, tokens: 10}, output_tokens: {type: fixed, tokens: 3}}
  load: {type: poisson, rate_rps: {choices: [1, 2.5]}}
deployment:
  model: llama-3.1-8b
  gpu: {choices: [h100_sxm, l40s]}
  timing: {type: fixed}
  mode: {choices: [aggregated, disaggregated]}
  aggregated:
    replicas: {range: {min: 1, max: 4}}
    max_num_seqs: {range: {min: 8, max: 100, scale: log}}
  disaggregated:
    prefill: {replicas: {choices: [1, 2]}}
    decode: {gpu_memory_utilization: {range: {min: 0.8, max: 0.95, step: 0.05}}}
  router:
    policy: {choices: [round_robin, kv_aware]}
    options:
      prefill_load_scale: {choices: [0.5, 1.0], when: {policy: kv_aware}}
budget: {max_gpus: 3}
baseline:
  workload: {load: {rate_rps: 1}}
  deployment:
    gpu: h100_sxm
    mode: aggregated
    aggregated: {replicas: 2, max_num_seqs: 64}
    router: {policy: round_robin}
"""
BASELINE = {
    "workload.load.rate_rps": 1.0,
    "deployment.gpu": "h100_sxm",
    "deployment.mode": "aggregated",
    "deployment.aggregated.replicas": 2,
    "deployment.aggregated.max_num_seqs": 64,
    "deployment.router.policy": "round_robin",
}
DISAGGREGATED = {
    "workload.load.rate_rps": 1.0,
    "deployment.gpu": "h100_sxm",
    "deployment.mode": "disaggregated",
    "deployment.disaggregated.prefill.replicas": 1,
    "deployment.disaggregated.decode.gpu_memory_utilization": 0.9,
    "deployment.router.policy": "kv_aware",
    "deployment.router.options.prefill_load_scale": 0.5,
}


def parse(text=FILE, *overrides):
    return SearchSpace.parse(text, overrides, file="f.yaml")


@cache
def bundled(name):
    return SearchSpace.load(name)


def test_baseline_is_a_point():
    assert parse().baseline_point() == BASELINE
    assert parse().reference == parse().scenario(BASELINE)
    assert parse(FILE, "baseline={}").baseline_point() is None


def test_scenario_has_the_values_of_the_point_and_only_the_selected_section():
    scenario = parse().scenario(DISAGGREGATED)
    assert scenario.workload.load.rate_rps == 1.0
    assert scenario.deployment.aggregated is None
    assert scenario.deployment.disaggregated.decode.gpu_memory_utilization == 0.9
    assert scenario.deployment.router.options == {"prefill_load_scale": 0.5}
    assert scenario.baseline == {}
    assert parse().scenario(BASELINE).deployment.router.options == {}


def test_conditions_come_from_structure_and_from_when():
    when = {p.path: dict(p.when) for p in parse().parameters}
    assert when["deployment.aggregated.replicas"] == {"deployment.mode": ("aggregated",)}
    assert when["deployment.disaggregated.prefill.replicas"] == {"deployment.mode": ("disaggregated",)}
    assert when["deployment.router.options.prefill_load_scale"] == {"deployment.router.policy": ("kv_aware",)}
    assert when["deployment.gpu"] == {}


def test_absolute_paths_and_lists_of_values_in_when():
    text = FILE.replace("when: {policy: kv_aware}", "when: {deployment.gpu: [l40s, h100_sxm], policy: kv_aware}")
    when = next(p for p in parse(text).parameters if p.path.endswith("prefill_load_scale")).when
    assert when == {"deployment.gpu": ("l40s", "h100_sxm"), "deployment.router.policy": ("kv_aware",)}


def test_parameters_follow_their_conditions_wherever_those_are_written():
    text = FILE.replace("  mode: {choices: [aggregated, disaggregated]}\n", "").replace(
        "budget:", "  mode: {choices: [aggregated, disaggregated]}\nbudget:"
    )
    paths = [p.path for p in parse(text).parameters]
    assert paths.index("deployment.mode") < paths.index("deployment.aggregated.replicas")


def test_override_fixes_a_field_and_settles_what_depends_on_it():
    space = parse(FILE, "deployment.router.policy=round_robin", "deployment.mode=aggregated")
    assert not any("prefill_load_scale" in p.path or "disaggregated" in p.path for p in space.parameters)
    assert all(p.when == {} for p in space.parameters)
    assert space.scenario(space.sample(stream(0, ""))).deployment.disaggregated is None
    space = parse(FILE, "deployment.router.policy=kv_aware", "deployment.gpu=l40s", "baseline={}")
    assert next(p for p in space.parameters if p.path.endswith("prefill_load_scale")).when == {}
    assert space.reference.deployment.gpu == "l40s"


def test_file_without_domains_has_one_point():
    text = dump(parse().scenario(BASELINE).model_dump(exclude_none=True))
    space = parse(text)
    assert space.baseline_point() == {}
    assert list(space.points()) == [{}]
    assert space.size() == 1
    assert space.reference == parse().scenario(BASELINE)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("choices: [h100_sxm, l40s]", "choices: []", "8: deployment.gpu: choices: []: allowed: a list of at least one"),
        ("choices: [h100_sxm, l40s]", "choices: h100_sxm", "8: deployment.gpu: choices: h100_sxm: allowed: a list"),
        ("choices: [h100_sxm, l40s]", "choices: [l40s, l40s]", "8: deployment.gpu: l40s: listed twice"),
        ("choices: [h100_sxm, l40s]", "choices: [h100_sxm, h100]", "8: deployment.gpu: 'h100': no such GPU; did you m"),
        ("choices: [h100_sxm, l40s]", "choices: [\n    h100_sxm,\n    7\n    ]", "10: deployment.gpu: 7: allowed: tex"),
        ("choices: [h100_sxm, l40s]", "choice: [h100_sxm]", "8: deployment.gpu: {choice: [h100_sxm]}: allowed: text, "),
        ("choices: [h100_sxm, l40s]", "choices: [{choices: [a]}]", "8: deployment.gpu: {choices: [a]}: a choice is on"),
        ("choices: [h100_sxm, l40s]", "range: {min: 1, max: 2}", "8: deployment.gpu: a range needs a number; allowed:"),
        ("{choices: [h100_sxm, l40s]}", "[h100_sxm, l40s]", "8: deployment.gpu: [h100_sxm, l40s]: allowed: text, or a"),
        ("llama-3.1-8b", "llama-3.1-9b", "7: deployment.model: 'llama-3.1-9b': no such model; did you mean 'llama-3.1"),
        ("round_robin, kv", "kv_awar, kv", "18: deployment.router.policy: 'kv_awar': did you mean 'kv_aware'"),
        ("prefill_load_scale:", "overlap_wait:", "20: deployment.router.options.overlap_wait: 'overlap_wait': router "),
        ("[aggregated, disagg", "[aggregate, disagg", "10: deployment.mode: aggregate: did you mean 'aggregated'? all"),
        ("min: 1, max: 4", "min: 5, max: 4", "12: deployment.aggregated.replicas: range: min 5 is above max 4"),
        ("min: 1, max: 4", "min: 0, max: 4", "12: deployment.aggregated.replicas: 0: allowed: an integer > 0"),
        ("min: 1, max: 4", "min: 1.5, max: 4", "12: deployment.aggregated.replicas: range: min: 1.5: allowed: an inte"),
        ("min: 1, max: 4", "min: 1", "12: deployment.aggregated.replicas: range: max: null: allowed: an integer"),
        ("min: 1, max: 4", "min: 1, max: 4, stop: 1", "12: deployment.aggregated.replicas: range: unknown key 'stop':"),
        ("min: 1, max: 4", "min: 1, max: 4, step: 2", "12: deployment.aggregated.replicas: range: max 4 is not min 1 "),
        ("min: 1, max: 4", "min: 1, max: 4, step: 0", "12: deployment.aggregated.replicas: range: step 0: allowed: a "),
        ("min: 1, max: 4", "min: 1, max: 4, step: true", "12: deployment.aggregated.replicas: range: step: true: allo"),
        ("{min: 1, max: 4}", "[1, 4]", "12: deployment.aggregated.replicas: range: [1, 4]: allowed: {min, max, step o"),
        ("scale: log", "scale: log2", "13: deployment.aggregated.max_num_seqs: range: scale: log2: allowed: linear, l"),
        ("scale: log", "scale: log, step: 2", "13: deployment.aggregated.max_num_seqs: range: a log scale has no step"),
        ("max: 0.95", "max: 1.05", "16: deployment.disaggregated.decode.gpu_memory_utilization: 1.05: allowed: a numb"),
        ("{policy: kv_aware}}", "{policy: kv_awar}}", "20: deployment.router.options.prefill_load_scale: when: kv_awa"),
        ("{policy: kv_aware}}", "{polic: kv_aware}}", "20: deployment.router.options.prefill_load_scale: when: polic:"),
        ("{policy: kv_aware}}", "{router: kv_aware}}", "20: deployment.router.options.prefill_load_scale: when: deplo"),
        ("{policy: kv_aware}}", "kv_aware}", "20: deployment.router.options.prefill_load_scale: kv_aware: allowed: a "),
        ("when: {policy", "wen: {policy", "20: deployment.router.options.prefill_load_scale: unknown key 'wen': did y"),
        ("robin, kv_aware]", "robin, kv_aware], when: {prefill_load_scale: 0.5}",
            "18: deployment.router.policy: when: prefill_load_scale: no such field"),
        ("robin, kv_aware]", "robin, kv_aware], when: {options.prefill_load_scale: 0.5}",
            "18: deployment.router.policy: conditions go round in a circle"),
        ("max_gpus: 3", "max_gpus: {choices: [3, 4]}", "21: budget.max_gpus: cannot be searched; allowed: fields unde"),
        ("budget:", "slo: {time_to_first_tokn: {p99: 1}}\nbudget:", "21: slo.time_to_first_tokn.p99: 'time_to_f"),
        ("budget:", "slo: {request_latency: {p42: 1}}\nbudget:", "21: slo.request_latency.p42: 'p42': did you"),
        ("budget:", "objectives:\n  - {metric: goodputs}\nbudget:", "22: objectives.0.metric: 'goodputs': no s"),
        ("budget:", "type:\nbudget:", "21: type: unknown key: allowed: "),
        ("max_gpus: 3", "max_gpu: 3", "21: budget.max_gpu: unknown key: did you mean 'max_gpus'"),
        ("  disaggregated:\n", "  disagregated:\n", "10: deployment.mode: disaggregated: needs a section deployment.d"),
        ("rate_rps: 1}", "rate_rps: 3}", "23: baseline.workload.load.rate_rps: 3: allowed: one of 1.0, 2.5 (or drop t"),
        ("    router: {policy: round_robin}\n", "", "24: baseline.deployment.router.policy: missing: allowed: one of "),
        ("max_num_seqs: 64}", "max_num_seqs: 64, block_size: 32}", "27: baseline.deployment.aggregated.block_size: 32"),
        ("replicas: 2, ", "replicas: {choices: [1]}, ", "27: baseline.deployment.aggregated.replicas: cannot be searc"),
    ],
)  # fmt: skip
def test_mistake_is_found_at_loading_with_its_line(old, new, error):
    assert old in FILE
    with pytest.raises(ConfigError) as caught:
        parse(FILE.replace(old, new, 1))
    assert str(caught.value).startswith(f"f.yaml:{error}")


ONE_MODE = FILE.replace("{choices: [aggregated, disaggregated]}", "aggregated")


@pytest.mark.parametrize(
    ("text", "overrides", "error"),
    [
        (ONE_MODE, (), "f.yaml:14: deployment.disaggregated: has no effect under mode aggregated"),
        (ONE_MODE.replace("\n  mode: aggregated\n", "\n"), (), "f.yaml:13: deployment.disaggregated: has no effect"),
        (FILE, ["deployment.mode={choices: [disaggregated]}"], None),
        (FILE.replace("prefill: {", "prefill: {nosuch: 1, "), ["deployment.mode=aggregated"],
            "f.yaml:15: deployment.disaggregated.prefill.nosuch: unknown key"),
        (FILE.replace("prefill: {", "prefill: {nosuch: 1, "), (),
            "f.yaml:15: deployment.disaggregated.prefill.nosuch: unknown key"),
        (ONE_MODE.replace("  disaggregated:\n    prefill: {replicas: {choices: [1, 2]}}\n", "").replace(
            "    decode: {gpu_memory_utilization: {range: {min: 0.8, max: 0.95, step: 0.05}}}\n", ""),
            ["deployment.disaggregated.prefill.replicas=99"],
            "override 'deployment.disaggregated.prefill.replicas=99': deployment.disaggregated: has no effect"),
    ],
)  # fmt: skip
def test_section_of_the_other_mode_is_refused_or_left_behind_by_an_override_but_never_unread(text, overrides, error):
    if error is None:
        space = parse(text, *overrides, "baseline={}")
        assert "aggregated" not in space.fields["deployment"]
        assert parse(space.to_yaml()).content_hash() == space.content_hash()
        return
    with pytest.raises(ConfigError) as caught:
        parse(text, *overrides)
    assert str(caught.value).startswith(error)


def test_a_misspelt_choice_is_found_before_the_condition_that_spells_it_right():
    with pytest.raises(ConfigError, match="'kv_awar': did you mean 'kv_aware'"):
        parse(FILE.replace("[round_robin, kv_aware]", "[round_robin, kv_awar]"))


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("slo={request_latency: {p99: -1}}", "slo.request_latency.p99: -1: allowed: a number >= 0"),
        ("slo={good_request_fraction: {min: 1.5}}", "slo.good_request_fraction.min: 1.5: allowed: a number fro"),
        ("workload={source: {type: profile, name: chatt}}", "workload.source.name: 'chatt': no such profile: did you "),
        ("workload={source: {type: profile, name: chat, requests: 50}, warmup_requests: 50}",
            "workload.warmup_requests: 50: allowed: less than the number of requests, 50"),
    ],
)  # fmt: skip
def test_what_no_point_can_have_is_refused_at_loading(override, error):
    with pytest.raises(ConfigError) as caught:
        parse(FILE, override, "baseline={}")
    assert f": {error}" in str(caught.value)


def test_a_crash_of_a_replica_that_only_some_points_have_makes_the_others_infeasible():
    space = parse(FILE, "deployment.failures.crashes=[{pool: mixed, replica: 2, at_s: 1, down_s: 1}]")
    reason = "deployment.failures.crashes.0.replica: 2: allowed: 0 to 1"
    assert space.infeasible_reason(BASELINE) == reason
    assert space.infeasible_reason(BASELINE | {"deployment.aggregated.replicas": 3}) is None
    plain = dump(space.resolve(BASELINE))
    with pytest.raises(ConfigError, match=reason):
        parse(plain)


def test_only_a_baseline_says_what_is_deployed():
    assert parse().deployed() == parse().reference
    with pytest.raises(ConfigError, match=r"f\.yaml: no baseline: .*workload\.load\.rate_rps"):
        SearchSpace.parse(FILE, ["baseline={}"], file="f.yaml").deployed()


def walk(data, path=()):
    if path:
        yield path
    for key, value in data.items() if isinstance(data, dict) else ():
        yield from walk(value, (*path, key))


ODD_VALUES = st.sampled_from(
    [
        None, 3, -1, 1.5, "x", True, [], {}, [1, 2], "aggregated", {"choices": []}, {"choices": 3},
        {"choices": [None, 3]},
        {"range": 3}, {"range": {"min": 1, "max": 2}}, {"range": {"min": 1, "max": 2}, "choices": [1]}, {"when": {}},
        {"choices": [1], "when": {"mode": "aggregated"}}, {"choices": [1], "when": {"policy": 3}}, {"type": {"a": 1}},
        {"choices": ["disaggregated", "aggregated"], "when": {"gpu": "l40s"}},
        {"a": {"choices": [1]}}, [{"choices": [1]}],
    ]
)  # fmt: skip


def refusal(text):
    try:
        space = parse(text)
    except ConfigError as error:
        return error
    point = space.sample(stream(0, "test"))
    assert space.infeasible_reason(point) != ""
    assert parse(space.to_yaml()) == space
    return None


@settings(max_examples=100)
@given(st.data())
def test_any_change_of_a_file_is_read_or_refused_with_its_line(data):
    fields = parse_document(FILE).data
    for _ in range(data.draw(st.integers(1, 2))):
        *above, last = data.draw(st.sampled_from(list(walk(fields))))
        place = fields
        for key in above:
            place = place[key]
        place[data.draw(st.sampled_from([last, last, "type", "when", "other"]))] = copy.deepcopy(data.draw(ODD_VALUES))
    error = refusal(dump(fields))
    assert error is None or (error.file == "f.yaml" and error.line and "\n" not in str(error))


def test_values_that_contradict_each_other_make_a_point_infeasible_not_the_file_wrong():
    space = parse(FILE, "deployment.aggregated.max_num_batched_tokens={choices: [50, 8192]}", "baseline={}")
    point = {**BASELINE, "deployment.aggregated.max_num_batched_tokens": 50}
    with pytest.raises(InfeasibleError, match="must be at least max_num_seqs"):
        space.scenario(point)
    assert "must be at least max_num_seqs (64)" in space.infeasible_reason(point)


@pytest.mark.parametrize(
    ("overrides", "values", "reason"),
    [
        ((), {}, None),
        ((), {"deployment.aggregated.replicas": 4}, "needs 4 GPUs, budget.max_gpus is 3"),
        (["budget={max_usd_per_hour: 3}"], {}, r"costs 3\.38 USD per hour, budget.max_usd_per_hour is 3"),
        (["budget={max_usd_per_hour: 3}"], {"deployment.gpu": "l40s"}, None),
        (["budget={max_usd_per_hour: 3}", "prices.usd_per_gpu_hour={h100_sxm: 1.4}"], {}, None),
        (["deployment.model=llama-3.1-70b"], {}, "does not fit on 1 x h100_sxm"),
        (["deployment.aggregated.tensor_parallel_size=3", "budget={}"], {}, "attention heads"),
        (["deployment.quantization=fp8", "deployment.gpu=a100_sxm"], {}, "no FP8 tensor cores"),
    ],
)
def test_what_is_known_before_simulating(overrides, values, reason):
    space = parse(FILE, *overrides)
    found = space.infeasible_reason(space.complete(BASELINE | values))
    assert found is None if reason is None else re.search(reason, found)


def test_points_are_all_distinct_and_lexicographic():
    space = parse()
    points = list(space.points())
    routed, alone = 3 * 5 + 1 * 4, 1 * 5 + 1 * 4  # a router makes a difference to several replicas only
    assert len(points) == space.size() == 2 * 2 * (routed * (1 + 2) + alone)
    order = [
        tuple(p.domain.values.index(point[p.path]) if p.path in point else -1 for p in space.parameters)
        for point in points
    ]
    assert order == sorted(set(order))


def test_continuous_range_is_infinite_and_cannot_be_enumerated():
    space = parse(FILE, "deployment.disaggregated.kv_transfer.latency_us={range: {min: 1, max: 50}}")
    assert space.size() == math.inf
    with pytest.raises(ConfigError, match=r"latency_us: numbers from 1 to 50 cannot be enumerated"):
        next(space.points())


def test_coupled_knobs_change_together():
    space = parse(
        FILE, "deployment.aggregated={choices: [{replicas: 1, max_num_seqs: 8}, {replicas: 2}]}", "baseline={}"
    )
    point = space.complete({"deployment.aggregated": {"replicas": 2}})
    assert space.scenario(point).deployment.num_gpus() == 2
    with pytest.raises(ConfigError, match=r"deployment\.aggregated\.replica: unknown key"):
        parse(FILE, "deployment.aggregated={choices: [{replica: 1}]}", "baseline={}")


def test_completing_across_a_change_of_mode_keeps_fields_of_the_same_name():
    point = parse().complete(BASELINE | {"deployment.mode": "disaggregated"})
    assert point["deployment.disaggregated.prefill.replicas"] == 2
    assert point["deployment.disaggregated.decode.gpu_memory_utilization"] == 0.8


def test_neighbours_are_one_step_away_in_one_parameter():
    found = parse().neighbours(BASELINE)
    changed = [
        {path for path in BASELINE.keys() | near.keys() if BASELINE.get(path) != near.get(path)} for near in found
    ]
    assert sorted(map(sorted, changed)) == sorted([
        ["workload.load.rate_rps"],
        ["deployment.gpu"],
        sorted({"deployment.mode", "deployment.aggregated.replicas", "deployment.aggregated.max_num_seqs",
                "deployment.disaggregated.prefill.replicas", "deployment.disaggregated.decode.gpu_memory_utilization"}),
        ["deployment.aggregated.replicas"], ["deployment.aggregated.replicas", "deployment.router.policy"],
        ["deployment.aggregated.max_num_seqs"], ["deployment.aggregated.max_num_seqs"],
        ["deployment.router.options.prefill_load_scale", "deployment.router.policy"],
    ])  # fmt: skip
    assert {near.get("deployment.aggregated.max_num_seqs") for near in found} == {32, 64, 100, None}


def test_content_hash_names_what_is_searched_and_judged():
    same = [parse(), parse(parse().to_yaml()), parse(FILE, "name=other"), parse(FILE, "optimizer.trials=7")]
    assert len({space.content_hash() for space in same}) == 1
    other = [
        FILE.replace("max: 4", "max: 5"),
        FILE.replace("max_gpus: 3", "max_gpus: 4"),
        FILE.replace("replicas: 2,", "replicas: 1,"),
    ]
    assert len({parse(text).content_hash() for text in [FILE, *other]}) == 4


def test_description_has_a_row_per_parameter():
    rows = {row["parameter"]: row for row in parse().describe()}
    assert rows["deployment.aggregated.max_num_seqs"] == {
        "parameter": "deployment.aggregated.max_num_seqs",
        "domain": "one of 8, 16, 32, 64, 100",
        "values": 5,
        "when": "deployment.mode = aggregated",
        "baseline": 64,
    }
    assert (
        rows["deployment.disaggregated.decode.gpu_memory_utilization"]["domain"]
        == "numbers from 0.8 to 0.95 in steps of 0.05"
    )


def test_unknown_space_names_the_nearest():
    with pytest.raises(ConfigError, match="lama70b: no such space: did you mean 'llama70b'"):
        SearchSpace.load("lama70b")
    with pytest.raises(ConfigError, match=r"lama70b\.yaml: cannot be read"):
        SearchSpace.load("lama70b.yaml")


@pytest.mark.parametrize("name", bundled_spaces())
def test_bundled_space_loads_and_its_baseline_can_be_deployed(name):
    space = bundled(name)
    assert space.name == name
    assert space.infeasible_reason(space.baseline_point()) is None
    assert parse(space.to_yaml()).content_hash() == space.content_hash()


@pytest.mark.parametrize("name", bundled_spaces())
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_every_operation_yields_points_of_the_space(name, seed):
    space, rng = bundled(name), stream(seed, "test")
    point = space.sample(rng)
    assert space.complete(point) == point
    for some in [point, *itertools.islice(space.neighbours(point), 5)]:
        assert list(some) == [p.path for p in space.active(some)]
        assert all(p.domain.contains(some[p.path]) for p in space.active(some))
        reason = space.infeasible_reason(some)
        assert reason is None or "\n" not in reason


@pytest.mark.parametrize(
    ("bounds", "baseline", "values"),
    [
        ("min: 16, max: 512, scale: log", 256, [16, 32, 64, 128, 256, 512]),
        ("min: 1, max: 1, scale: log", 1, [1]),
        ("min: 12, max: 100, scale: log", 64, [12, 16, 32, 64, 100]),
        ("min: 16, max: 128, scale: log", 48, [16, 32, 48, 64, 128]),
        ("min: 3, max: 9, scale: log, step: 1", 5, [3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_integers_on_a_log_scale_are_powers_of_two_their_bounds_and_the_baseline(
    bounds: str, baseline: int, values: list[int]
) -> None:
    text = FILE.replace("min: 8, max: 100, scale: log", bounds).replace(
        "max_num_seqs: 64}", f"max_num_seqs: {baseline}}}"
    )
    space = SearchSpace.parse(text)
    path = "deployment.aggregated.max_num_seqs"
    domain = next(parameter.domain for parameter in space.parameters if parameter.path == path)
    assert list(domain.values or ()) == values
    assert {domain.sample(stream(seed, "test")) for seed in range(200)} == set(values)
    assert all(domain.contains(value) == (value in values) for value in range(600))
    assert {near for value in values for near in domain.neighbours(value)} <= set(values)
    assert (space.baseline_point() or {})[path] == baseline
    assert SearchSpace.parse(space.to_yaml()).content_hash() == space.content_hash()
