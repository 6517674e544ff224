"""Loading: every mistake is one line that says where and what is allowed; what is dumped loads to an equal scenario."""

import json
from contextlib import suppress
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.config import Scenario
from dynosim.config.load import dump, dump_scenario, find_domains, load_scenario, parse_document, to_scenario
from dynosim.errors import ConfigError
from dynosim.rng import stream
from dynosim.space import SearchSpace, bundled_spaces

FILE = """\
schema_version: "1"
name: test
workload:
  source:
    type: synthetic
    input_tokens: {type: quantiles, quantiles: {0: 10, 0.5: 30, 1.0: 50}}
    output_tokens: {type: fixed, tokens: 3}
  load: {type: constant_rate, rate_rps: 2}
deployment:
  model: llama-3.1-8b
  gpu: h100_sxm
  aggregated:
    replicas: 2
  router: {policy: kv_aware, options: {prefill_load_scale: 1.0}}
objectives:
  - {metric: request_latency, stat: p99}
"""


@cache
def bundled_space(name):
    return SearchSpace.load(name)


def load(text=FILE, *overrides):
    return to_scenario(parse_document(text, "f.yaml", overrides))


def test_file_is_read_as_written(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text(FILE)
    scenario = load_scenario(path, ["seed=7"])
    assert scenario.seed == 7
    assert scenario.deployment.num_gpus() == 2
    assert scenario.workload.source.input_tokens.quantiles == {0.0: 10, 0.5: 30, 1.0: 50}


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("replicas: 2", "replicas: 0", "f.yaml:13: deployment.aggregated.replicas: 0: allowed: an integer > 0"),
        ("replicas: 2", "replicas: '2'", "f.yaml:13: deployment.aggregated.replicas: '2': allowed: an integer > 0"),
        ("replicas: 2", "replicas: 2.0", "f.yaml:13: deployment.aggregated.replicas: 2.0: allowed: an integer > 0"),
        ("replicas: 2", "replicas: true", "f.yaml:13: deployment.aggregated.replicas: true: allowed: an integer > 0"),
        ("replicas: 2", "replicas: [1, 2]", "f.yaml:13: deployment.aggregated.replicas: [1, 2]: allowed: an integer > 0"
            ", or a search domain {choices: [...]} or {range: {min: ..., max: ...}}"),
        ("replicas: 2", "replicas: {choices: [1, 2]}", "f.yaml:13: deployment.aggregated.replicas: {choices: [1, 2]}: "
            "a search domain, where a scenario needs one value"),
        ("replicas: 2", "enable_prefix_caching: 1",
            "f.yaml:13: deployment.aggregated.enable_prefix_caching: 1: allowed: true or false"),
        ("replicas: 2", "gpu_memory_utilization: 1.5",
            "f.yaml:13: deployment.aggregated.gpu_memory_utilization: 1.5: allowed: a number > 0 and <= 1"),
        ("replicas: 2", "max_num_batched_tokens: 8192\n    max_num_seqs: 9000",
            "f.yaml:12: deployment.aggregated: max_num_batched_tokens (8192) must be at least max_num_seqs (9000)"),
        ("replicas: 2", "max_num_seqs: 256\n    max_num_active_seqs: 300",
            "f.yaml:12: deployment.aggregated: max_num_active_seqs (300) must be at most max_num_seqs (256)"),
        ("replicas: 2", "pipeline_parallel_size: 2\n    max_num_active_seqs: 1",
            "f.yaml:12: deployment.aggregated: max_num_active_seqs (1) must be at least pipeline_parallel_size (2): "),
        ("gpu: h100_sxm", "gpu: 100", "f.yaml:11: deployment.gpu: 100: allowed: text"),
        ("gpu: h100_sxm", "gpu: h100_sxm\n  quantization: fp9",
            "f.yaml:12: deployment.quantization: fp9: did you mean 'fp8'? allowed: one of none, fp8"),
        ("  gpu: h100_sxm\n", "", "f.yaml:9: deployment.gpu: missing: allowed: text"),
        ("gpu: h100_sxm", "gpus: h100_sxm", "f.yaml:11: deployment.gpus: unknown key: did you mean 'gpu'? allowed: mo"),
        ("model:", "mdoel:", "f.yaml:10: deployment.mdoel: unknown key: did you mean 'model'? allowed: model, gpu, "),
        ("type: synthetic", "type: synthtic", "f.yaml:5: workload.source.type: synthtic: did you mean 'synthetic'? "
            "allowed: one of profile, synthetic, trace"),
        ("    type: synthetic\n", "", "f.yaml:4: workload.source.type: missing: allowed: one of profile, synthetic, t"),
        ("tokens: 3}", "token: 3}", "f.yaml:7: workload.source.output_tokens.token: unknown key: did you mean 'tokens"),
        ("tokens: 3}", "tokens: x}", "f.yaml:7: workload.source.output_tokens.tokens: x: allowed: an integer > 0"),
        ("type: fixed", "type: {a: 1}", "f.yaml:7: workload.source.output_tokens.type: {a: 1}: allowed: one of fixed"),
        ("0.5: 30", "half: 30", "f.yaml:6: workload.source.input_tokens.quantiles.half: key half: "),
        ("0: 10, ", "", "f.yaml:6: workload.source.input_tokens.quantiles: quantiles must start at probability 0.0"),
        ("stat: p99}", "stat: p99, python: f:g}", "f.yaml:16: objectives.0: give either 'metric' or 'python'"),
        ("- {metric:", "- {metrics:", "f.yaml:16: objectives.0.metrics: unknown key: did you mean 'metric'? "),
        ("objectives:", "optimizer: {workers: many}\nobjectives:",
            "f.yaml:15: optimizer.workers: many: allowed: an integer > 0 or 'auto'"),
        ("objectives:", "slo: {goodput: 3}\nobjectives:", "f.yaml:15: slo.goodput: 3: allowed: a bound for each"),
        ("name: test", "name: test\nname: again", "f.yaml:3: name: duplicate key"),
        ("replicas: 2", "replicas: 2\n    replicas: 2", "f.yaml:14: deployment.aggregated.replicas: duplicate key"),
        ("prefill_load_scale: 1.0", "prefill_load_scale: .nan", "f.yaml:14: deployment.router.options.prefill_load_sc"),
        ("prefill_load_scale: 1.0", "prefill_load_scale: 1e999", "f.yaml:14: deployment.router.options.prefill_load_s"),
        ("name: test", "name: !!python/name:os.system x", "f.yaml:2: name: tag tag:yaml.org,2002:python/name:os.syste"),
        ("name: test", "name: &a test\ndescription: *a", "f.yaml:3: YAML: aliases are not supported"),
        ("name: test", "name: [", "f.yaml:4: YAML: "),
        ("name: test", "? [a]\n: test", "f.yaml:2: a key must be plain text"),
        ("name: test", "name: " + "[" * 1000, "f.yaml:1: YAML: nested too deeply"),
        (FILE, "", "f.yaml:1: must be a mapping of keys to values"),
        (FILE, "- a", "f.yaml:1: must be a mapping of keys to values"),
        ("schema_version: \"1\"", "schema_version: 1", "f.yaml:1: schema_version: 1: allowed: '1'"),
    ],
)  # fmt: skip
def test_mistake_is_one_line_with_its_place(old, new, error):
    assert old in FILE
    with pytest.raises(ConfigError) as caught:
        load(FILE.replace(old, new, 1))
    assert str(caught.value).startswith(error)
    assert "\n" not in str(caught.value)


def test_misspelt_key_is_reported_before_what_is_missing_because_of_it():
    with pytest.raises(ConfigError, match="modell: unknown key: did you mean 'model'"):
        load(FILE.replace("model:", "modell:"))


def test_yaml_is_read_by_the_core_schema_of_1_2():
    data = parse_document("a: no\nb: 1e3\nc: 010\nd: 1:30\ne: 2026-11-21\nf: ~\ng: True\nh: 0o17\ni: 1_000").data
    assert data == {
        "a": "no", "b": 1000.0, "c": 10.0, "d": "1:30", "e": "2026-11-21", "f": None,
        "g": True, "h": "0o17", "i": "1_000"
    }  # fmt: skip


def test_unreadable_files_are_configuration_errors(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read: No such file"):
        load_scenario(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(ConfigError, match=r"latin\.yaml: cannot be read: not a UTF-8 text file"):
        load_scenario(tmp_path / "latin.yaml")


def test_overrides_apply_left_to_right_and_make_what_is_missing():
    scenario = load(
        FILE, "deployment.aggregated={}",
       "deployment.aggregated.replicas=3", "budget.max_gpus=8", "objectives.0.stat=p50",
        "deployment.router.options={}", "deployment.router.policy=round_robin", "name=a=b",
    )  # fmt: skip
    assert scenario.deployment.aggregated.replicas == 3
    assert scenario.budget.max_gpus == 8
    assert scenario.objectives[0].stat == "p50"
    assert scenario.deployment.router.options == {}
    assert scenario.name == "a=b"


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("seed", "override 'seed': must be PATH=VALUE"),
        ("=1", "override '=1': must be PATH=VALUE"),
        ("a..b=1", "override 'a..b=1': must be PATH=VALUE"),
        ("seed.x=1", "override 'seed.x=1': seed: 0: has no keys"),
        ("objectives.7.stat=p50", "override 'objectives.7.stat=p50': objectives.7: None: has no keys"),
        ("objectives.7={}", "override 'objectives.7={}': objectives.7: allowed: 0 to 0"),
        ("seed=x", "override 'seed=x': seed: x: allowed: an integer"),
        ("deployment.aggregated.replicas=0", "override 'deployment.aggregated.replicas=0': deployment.aggregated.repl"),
        ("budgets.max_gpus=1", "override 'budgets.max_gpus=1': budgets: unknown key: did you mean 'budget'?"),
        ("name=[", "override 'name=[': YAML: "),
    ],
)  # fmt: skip
def test_error_of_an_override_names_it(override, error):
    with pytest.raises(ConfigError) as caught:
        load(FILE + "seed: 0\n", override)
    assert str(caught.value).startswith(error)


def test_the_last_override_is_the_one_named():
    with pytest.raises(ConfigError, match="override 'seed=y'"):
        load(FILE, "seed=x", "seed=y")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_with_its_file(text):
    with suppress(ConfigError):
        assert isinstance(parse_document(text, "f.yaml").data, dict)


KEYS = st.text(max_size=8).filter(lambda key: "." not in key)  # one with dots is refused
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
TRICKY = st.sampled_from(
    [
        "no",
        "1e9",
        "1e+9",
        "010",
        "0x1f",
        "1:30",
        "2026-11-21",
        "~",
        ".nan",
        "=",
        "<<",
        "*a",
        "a: b",
        "é",
        "\x85",
        "\U0001f600",
    ]
)


@given(st.dictionaries(KEYS | TRICKY, PLAIN | TRICKY, max_size=5))
def test_plain_data_survive_dumping(data):
    try:
        json.dumps(data).encode()
        text = dump(data)
        text.encode()
    except UnicodeEncodeError:
        return  # half of a surrogate pair is no text
    assert parse_document(text).data == data


NAMES = KEYS.filter(lambda name: name not in ("", "choices", "range"))  # those make a domain
OPTIONS = st.dictionaries(NAMES, PLAIN | TRICKY, max_size=3).filter(lambda options: not list(find_domains(options)))


@given(st.text(max_size=30) | TRICKY, OPTIONS)
def test_scenario_survives_dumping(name, options):
    base = load().model_dump()
    base["deployment"]["router"]["options"] = options
    scenario = Scenario.model_validate({**base, "name": name, "baseline": options})
    assert to_scenario(parse_document(dump_scenario(scenario))) == scenario


@pytest.mark.parametrize("name", bundled_spaces())
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_random_scenarios_of_bundled_spaces_survive_dumping(name, seed):
    space = bundled_space(name)
    scenario = space.scenario(space.sample(stream(seed, "test")))
    assert to_scenario(parse_document(dump_scenario(scenario))) == scenario


def test_aliases_of_metrics_are_read_as_their_names() -> None:
    text = FILE + "slo: {ttft: {p99: 800}, itl: {p50: 20}}\n"
    document = parse_document(text, "f.yaml", ["slo.time_to_first_token.p50=300", "slo.tpot.p50=30"])
    assert document.data["slo"] == {
        "time_to_first_token": {"p99": 800, "p50": 300},
        "inter_token_latency": {"p50": 30},
    }
    assert document.aliases.keys() == {"ttft", "itl", "tpot"}
    document = parse_document(FILE, "f.yaml", ["objectives=[{metric: e2el, stat: p50}]"])
    assert document.data["objectives"][0]["metric"] == "request_latency"


def test_an_alias_beside_its_metric_is_refused_only_for_the_same_statistic() -> None:
    both = FILE + "slo: {ttft: {p99: 800}, time_to_first_token: {%s: 1}}\n"
    assert parse_document(both % "p50").data["slo"] == {"time_to_first_token": {"p50": 1, "p99": 800}}
    with pytest.raises(ConfigError, match=r"slo.ttft.p99: given twice: ttft is time_to_first_token"):
        parse_document(both % "p99")


@pytest.mark.parametrize("key", ["deployment.model", "a.b.c", "Slo.ttft"])
def test_a_key_with_dots_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"f.yaml:2: {key}: a key with dots: nest it"):
        parse_document(f"name: x\n{key}: 1\n", "f.yaml")
