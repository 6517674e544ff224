"""Several workloads and scenarios: laws of the risk measures, what a case changes, the race, and what is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.config import cases_of
from dynosim.config.load import dump_scenario, parse_document, to_scenario
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.metrics import Metrics, bounds_of
from dynosim.objectives import resolve
from dynosim.run.predict import predict
from dynosim.search import evaluate as evaluation
from dynosim.search.cases import by_load, tail_weights
from dynosim.search.evaluate import evaluate
from dynosim.search.loop import run_study
from dynosim.search.trial import Status
from dynosim.space import SearchSpace, feasibility
from dynosim.workload import load_workload

LENGTHS = "input_tokens: {type: fixed, tokens: %d}, output_tokens: {type: fixed, tokens: %d}"
CHAT = (
    "{source: {type: synthetic, requests: 60, prefix: {block_tokens: 64, shared_blocks: 4}, "
    + LENGTHS % (600, 60)
    + "}"
)
CODE = "{source: {type: synthetic, requests: 60, " + LENGTHS % (2000, 10) + "}"
HEAD = """\
name: several
slo: {time_to_first_token: {p99: 2000}}
objectives: [{metric: usd_per_million_output_tokens}, {metric: time_to_first_token, stat: p99}]
deployment:
  model: llama-3.1-8b
  gpu: h100_sxm
  timing: {type: polynomial}
  aggregated: {replicas: 2, num_gpu_blocks_override: 4000}
"""
TWO = f"""workloads:
  chat: {CHAT}, load: {{type: poisson, rate_rps: 2}}, weight: 3}}
  code: {CODE}, load: {{type: poisson, rate_rps: 1}}}}
"""
VARIED = """scenarios:
  busier: {load: 1.2}
  longer: {output_tokens: 1.3}
  cold: {prefix_hits: none}
  dearer: {prices: {usd_per_gpu_hour: {h100_sxm: 3.5}, factor: 2}}
  degraded: {lost_replicas: 1}
"""
ONE = f"workload: {CHAT}, load: {{type: poisson, rate_rps: 2}}}}\n"
BOTH = ONE.replace("rate_rps: 2", "rate_rps: 9") + "workloads:"
SEARCHED = ("replicas: 2", "replicas: {choices: [1, 2, 3]}, max_num_seqs: {choices: [1, 64]}")

losses_and_weights = st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(0.01, 100.0)), min_size=1, max_size=8).map(
    lambda pairs: (np.array([loss for loss, _ in pairs]), np.array([weight for _, weight in pairs]))
)


def scenario(text: str):
    return to_scenario(parse_document(HEAD + text, "f.yaml"))


def risk(losses, weights, level):
    return float(tail_weights(losses, weights, level) @ losses)


@given(losses_and_weights, st.floats(0.001, 1.0))
def test_the_risk_lies_between_mean_and_worst_and_falls_with_its_level(pair, level):
    losses, weights = pair
    mean, slack = float(np.average(losses, weights=weights)), 1e-9 * (1.0 + float(np.abs(losses).max()))
    assert mean - slack <= risk(losses, weights, level) <= losses.max() + slack
    assert risk(losses, weights, level) <= risk(losses, weights, level / 2.0) + slack
    assert risk(losses, weights, 1.0) == pytest.approx(mean, abs=slack)
    assert risk(losses, weights, 0.0) == pytest.approx(losses.max(), abs=slack)


@given(losses_and_weights, st.floats(0.001, 1.0), st.floats(0.1, 10.0), st.floats(-5.0, 5.0))
def test_the_risk_is_free_of_the_scale_of_weights_and_follows_that_of_losses(pair, level, scale, shift):
    losses, weights = pair
    slack = 1e-8 * (1.0 + float(np.abs(losses).max()))
    assert risk(losses, weights * scale, level) == pytest.approx(risk(losses, weights, level), abs=slack)
    assert risk(losses * scale + shift, weights, level) == pytest.approx(
        risk(losses, weights, level) * scale + shift, abs=20.0 * slack
    )


@given(losses_and_weights, st.floats(0.001, 1.0))
def test_the_risk_is_rockafellar_and_uryasevs_minimum(pair, level):
    losses, weights = pair
    p = weights / weights.sum()
    minimum = min(z + float(p @ np.maximum(losses - z, 0.0)) / level for z in losses)
    assert risk(losses, weights, level) == pytest.approx(
        minimum, abs=1e-6 * (1.0 + float(np.abs(losses).max()) / level)
    )


def test_the_risk_of_what_is_maximised_is_its_low_end():
    text = HEAD.replace("{metric: time_to_first_token, stat: p99}", "{metric: output_token_throughput, over: %s}") + TWO
    values = []
    for over in ("mean", "{cvar: 0.5}", "worst"):
        outcome = evaluate(to_scenario(parse_document(text % over)))
        values.append(outcome.values[1])
    of_cases = [case["values"][1] for case in outcome.cases.values()]
    assert values[0] >= values[1] >= values[2] == min(of_cases)


def test_every_workload_is_a_case_as_it_is_and_under_every_scenario():
    cases = {case.name: case for case in cases_of(scenario(TWO + VARIED))}
    assert [*cases][:6] == ["chat", "chat/busier", "chat/longer", "chat/cold", "chat/dearer", "chat/degraded"]
    assert len(cases) == 12
    assert cases["chat/busier"].weight == 3.0 * cases["code/busier"].weight == 3.0
    tables = {name: load_workload(case.scenario.workload, 0) for name, case in cases.items()}
    base = tables["chat"]
    assert tables["chat/busier"].arrival_s == pytest.approx(base.arrival_s / 1.2)
    assert (tables["chat/longer"].output_tokens == 78).all()
    assert (tables["chat/longer"].input_tokens == base.input_tokens).all()
    assert len(base.hash_ids)
    assert not len(tables["chat/cold"].hash_ids)
    assert cases["chat/dearer"].scenario.prices.model_dump() == {
        "usd_per_gpu_hour": {"h100_sxm": 3.5}, "table": "neocloud", "factor": 2.0
    }  # fmt: skip
    assert cases["chat/degraded"].scenario.deployment.label() == "1xTP1"
    assert [case.name for case in cases_of(scenario(ONE + VARIED))][:2] == ["unvaried", "busier"]


def test_the_outcome_is_that_of_its_cases_each_simulated_alone():
    whole = scenario(TWO + VARIED)
    outcome = evaluate(whole)
    assert outcome.status is Status.COMPLETE
    weights = {case.name: case.weight for case in cases_of(whole)}
    values = {case.name: evaluate(case.scenario).values for case in cases_of(whole)}
    assert {name: tuple(case["values"]) for name, case in outcome.cases.items()} == values
    together = np.average(list(values.values()), axis=0, weights=list(weights.values()))
    assert outcome.values == pytest.approx(tuple(together))
    worst = max(case["constraints"]["time_to_first_token.p99"] for case in outcome.cases.values())
    assert outcome.constraints["time_to_first_token.p99"] == worst
    assert outcome.values[1] == pytest.approx(outcome.known_metrics().value("time_to_first_token", "p99"))
    assert outcome.flat_metrics()["chat/cold/prefix_cache_hit_rate"] == 0.0


def test_weights_have_no_scale_and_make_the_heavier_case_count():
    light, heavy = (evaluate(scenario(TWO.replace("weight: 3", f"weight: {w}"))).values for w in (3e-3, 3e3))
    scaled = evaluate(
        scenario(TWO.replace("weight: 3", "weight: 30").replace("rate_rps: 1}", "rate_rps: 1}, weight: 10"))
    )
    alone = evaluate(scenario(ONE)).values
    assert scaled.values == pytest.approx(evaluate(scenario(TWO)).values)
    assert abs(heavy[0] / alone[0] - 1.0) < 0.01 < abs(light[0] / alone[0] - 1.0)


def test_one_case_is_the_plain_study():
    named = TWO[: TWO.index("  code")]
    studies = [run_study(SearchSpace.parse((HEAD + text).replace(*SEARCHED)), trials=5) for text in (ONE, named)]
    trials = [[(t.point, replace(t.outcome, wall_s=0.0)) for t in study.trials] for study in studies]
    assert trials[0] == trials[1]
    assert not trials[1][0][1].cases


def test_a_study_of_several_is_the_same_in_any_number_of_processes():
    space = SearchSpace.parse((HEAD + TWO + VARIED).replace(*SEARCHED))
    found = []
    for workers in (1, 2):
        trials = run_study(space, trials=4, workers=workers, sampler="random").trials
        found.append([(trial.point, replace(trial.outcome, wall_s=0.0)) for trial in trials])
    assert found[0] == found[1]


def test_the_race_ends_with_the_first_case_that_is_lost(monkeypatch):
    whole = scenario(TWO.replace("rate_rps: 1}", "rate_rps: 400}") + VARIED)
    whole = whole.model_copy(update={"slo": {"time_to_first_token": {"p99": 100.0}}})
    calls = []
    simulate = evaluation.simulate
    monkeypatch.setattr(evaluation, "simulate", lambda *a, **k: calls.append(a) or simulate(*a, **k))
    outcome = evaluate(whole)
    assert outcome.status is Status.LOST
    assert len(calls) == 1
    assert "code" in outcome.reason
    assert "of 12 cases" in outcome.reason
    to_its_end = whole.model_copy(update={"optimizer": whole.optimizer.model_copy(update={"stop_lost_runs": False})})
    known = evaluate(to_its_end)
    assert known.status is Status.COMPLETE
    assert len(calls) == 1 + 10
    for name, at_least in outcome.constraints.items():
        assert 0.0 < at_least <= known.constraints[name]


def test_cases_race_in_the_order_of_what_they_ask_of_a_gpu():
    names = [case.name for case in by_load(cases_of(scenario(TWO + VARIED)))]
    assert names.index("code/degraded") < names.index("code/busier") < names.index("code")
    assert names.index("chat/cold") < names.index("chat")


def test_a_bound_over_the_mean_neither_ends_a_run_nor_the_race():
    slow = scenario(TWO.replace("rate_rps: 1}", "rate_rps: 400}"))
    update = {"slo": {"time_to_first_token": {"p99": 100.0}}, "slo_over": {"time_to_first_token": {"p99": "mean"}}}
    outcome = evaluate(slow.model_copy(update=update))
    assert outcome.status is Status.COMPLETE
    bound = bounds_of(update["slo"])[0]
    mean = outcome.known_metrics().value("time_to_first_token", "p99")
    assert outcome.constraints[bound.name] == pytest.approx(bound.violation(outcome.known_metrics()))
    assert bound.at(outcome.constraints[bound.name]) == pytest.approx(mean)


def test_results_are_shared_with_studies_of_one_workload(tmp_path):
    file = tmp_path / "results.db"
    for case in cases_of(scenario(TWO)):
        assert not evaluate(case.scenario, file).cached
    assert evaluate(scenario(TWO), file).cached
    assert evaluate(scenario(ONE), file).cached


def test_several_workloads_cost_less_than_several_searches(monkeypatch):
    """Counted in simulations: lost configurations are dropped after one, and prices are free."""
    counts = []
    simulate = evaluation.simulate
    monkeypatch.setattr(evaluation, "simulate", lambda *a, **k: counts.append(1) or simulate(*a, **k))
    text = (HEAD + TWO.replace("rate_rps: 1}", "rate_rps: 20}")).replace(*SEARCHED).replace("p99: 2000", "p99: 400")
    space = SearchSpace.parse(text)
    study = run_study(space, trials=6)
    assert any(trial.outcome.status is Status.LOST for trial in study.trials)
    assert study.feasible
    assert len(counts) < 2 * len(study.trials)


def test_deviations_of_a_mean_are_those_of_its_cases():
    text = TWO.replace("requests: 60", "requests: 400")
    outcome = evaluate(scenario(text))
    cases = {case.name: evaluate(case.scenario) for case in cases_of(scenario(text))}
    name, weights = "request_latency", {"chat": 0.75, "code": 0.25}
    parts = [
        weights[case] * known.known_metrics().value(name) * np.array(known.deviations[name])
        for case, known in cases.items()
    ]
    mean = outcome.known_metrics().value(name)
    assert outcome.deviations[name] == pytest.approx((np.sum(parts, axis=0) / mean).tolist(), abs=1e-4)
    low, high = outcome.known_metrics().interval(name)
    assert low < mean < high


def test_the_worst_case_has_its_own_interval_or_none():
    config = scenario(TWO).objectives[1].model_copy(update={"over": "worst"})
    objective = resolve(config)
    assert (objective.name, objective.plain_name) == ("worst/time_to_first_token.p99", "time_to_first_token.p99")
    text = TWO.replace("requests: 60", "requests: 1200")
    outcome = evaluate(scenario(text).model_copy(update={"objectives": (config,)}))
    worst = max(outcome.cases, key=lambda name: outcome.cases[name]["values"][0])
    known = {case.name: evaluate(case.scenario) for case in cases_of(scenario(text))}[worst]
    assert outcome.deviations.get(objective.name) == known.deviations.get(objective.plain_name)
    short = evaluate(scenario(TWO).model_copy(update={"objectives": (config,)}))
    assert objective.name not in short.deviations


def test_predict_says_every_case_and_all_together(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text(dump_scenario(scenario(TWO + VARIED)))
    prediction = predict(path)
    outcome = evaluate(scenario(TWO + VARIED))
    assert prediction.outcome.values == outcome.values
    assert prediction.outcome.cases == outcome.cases
    assert prediction.metrics == Metrics(outcome.metrics, outcome.deviations)


def test_a_pool_that_would_be_lost_is_infeasible_before_it_is_simulated():
    alone = to_scenario(parse_document((HEAD + TWO + VARIED).replace("replicas: 2", "replicas: 1")))
    with pytest.raises(InfeasibleError, match="scenario degraded: the mixed pool has 1 replicas and loses 1"):
        feasibility.check(alone)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("workloads:", BOTH, "f.yaml:9: workload: given beside workloads: allowed is one of them"),
        ("weight: 3", "weight: 0", "f.yaml:10: workloads.chat.weight: 0: allowed: a number > 0"),
        ("load: 1.2", "lode: 1.2", "f.yaml:13: scenarios.busier.lode: unknown key: did you mean 'load'?"),
        ("load: 1.2", "load: 0", "f.yaml:13: scenarios.busier.load: 0: allowed: a number > 0"),
        ("none", "never", "f.yaml:15: scenarios.cold.prefix_hits: never: allowed: 'none'"),
        ("h100_sxm: 3.5", "h1000: 3.5", "f.yaml:16: scenarios.dearer.prices.usd_per_gpu_hour.h1000"),
        ("  chat:", "  my chat:", "f.yaml:10: workloads.my chat: key my chat"),
        ("stat: p99}", "stat: p99, over: {cvar: 1.5}}", "f.yaml:3: objectives.1.over: cvar: 1.5: allowed: mean, worst"),
        ("stat: p99}", "stat: p99, over: {cvar: 0}}", "f.yaml:3: objectives.1.over: cvar: 0: allowed: mean, worst"),
        ("stat: p99}", "stat: p99, over: median}", "f.yaml:3: objectives.1.over: median: allowed: mean, worst"),
        ("objectives:", "slo_over: {itl: {p99: mean}}\nobjectives:", "inter_token_latency.p99: the slo has no"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(old, new, error):
    text = (HEAD + TWO + VARIED).replace(old, new, 1)
    with pytest.raises(ConfigError) as caught:
        SearchSpace.parse(text, file="f.yaml")
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_dumped_loads_to_an_equal_scenario():
    for text in (ONE, TWO, ONE + VARIED, TWO + VARIED):
        assert to_scenario(parse_document(dump_scenario(scenario(text)))) == scenario(text)
    assert "workloads" not in dump_scenario(scenario(ONE))
    assert "scenarios" not in dump_scenario(scenario(ONE))
