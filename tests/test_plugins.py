"""What users bring, found by file and by module: relative to whom, run how often, part of a result's name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import dynosim
from dynosim import plugins
from dynosim.config.load import dump
from dynosim.errors import ConfigError, StudyError
from dynosim.run.spaces import load_space
from dynosim.run.study import identity
from dynosim.search import cache
from dynosim.space import SearchSpace
from dynosim.workload import load_workload

ROUTER = """
from my_helpers import choose

class Mine:
    looks = False

    def route(self, request, pool):
        return choose(pool)
"""
HELPERS = "def choose(pool):\n    return {position}\n"
GOAL = """
from dynosim import objective

@objective(direction="minimize", unit="ms")
def worst(metrics):
    return metrics.value("request_latency", "max")
"""
FAST = (
    "deployment={model: llama-3.1-8b, gpu: h100_sxm, timing: {type: polynomial}, aggregated: {replicas: 3}}",
    "workload.source.requests=60",
    "workload.warmup_requests=0",
    "baseline={}",
)


def _helpers(folder: Path, position: str) -> None:
    (folder / "my_helpers.py").write_text(HELPERS.format(position=position))
    sys.modules.pop("my_helpers", None)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a space and what it brings; the working directory is another one."""
    folder, elsewhere = tmp_path / "mine", tmp_path / "elsewhere"
    for each in (folder, elsewhere):
        each.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("DYNOSIM_TRACKING", "off")
    (folder / "my_router.py").write_text(ROUTER)
    _helpers(folder, "len(pool.outstanding_requests) - 1")
    (folder / "my_goals.py").write_text(GOAL)
    fields = dict(SearchSpace.load("tiny", FAST).fields)
    fields["deployment"] |= {"router": {"policy": "my_router.py:Mine"}}
    fields["objectives"] = [{"metric": "usd_per_hour"}, {"python": "my_goals:worst"}]
    (folder / "space.yaml").write_text(dump(fields))
    return folder


def test_a_space_finds_what_lies_beside_it_and_so_does_its_copy_anywhere(mine: Path, tmp_path: Path) -> None:
    here = dynosim.predict(mine / "space.yaml")
    assert here.scenario.deployment.router.policy == f"{mine}/my_router.py:Mine"
    assert here.scenario.objectives[1].python == f"{mine}/my_goals.py:worst"
    copy = tmp_path / "copy.yaml"
    copy.write_text(load_space(mine / "space.yaml").to_yaml())
    assert dynosim.predict(copy).metrics.flat() == here.metrics.flat()


def test_what_the_command_line_and_python_bring_is_relative_to_the_working_directory(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mine)
    for written in ("my_router.py:Mine", "my_router:Mine", "./my_router.py:Mine"):
        found = load_space("tiny", overrides=[*FAST, f"deployment.router.policy={written}"])
        assert Path(found.reference.deployment.router.policy) == mine / "my_router.py:Mine"
    searched = load_space("tiny", overrides=["deployment.router={policy: {choices: [round_robin, my_router.py:Mine]}}"])
    assert searched.fields["deployment"]["router"]["policy"]["choices"][1] == f"{mine}/my_router.py:Mine"


def test_a_file_is_run_once_for_each_content(tmp_path: Path) -> None:
    file = tmp_path / "counted.py"
    file.write_text("class A: pass\n")
    first = plugins.load(f"{file}:A")
    assert plugins.load("counted.py:A", tmp_path) is first
    file.write_text("class A: changed = True\n")
    assert plugins.load(f"{file}:A").changed
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "counted.py").write_text("class A: pass\n")
    assert plugins.load(f"{tmp_path}/other/counted.py:A") is not first, "two files of one name are two modules"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nowhere_to_be_found", "my.py, line 1: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("x = 1\nx / 0", "my.py, line 2: ZeroDivisionError: division by zero"),
        ("x = (1\n", "my.py, line 1: '\\(' was never closed"),
        ("raise SystemExit(3)", "my.py, line 1: SystemExit: 3"),
        ("class Router: pass", "my.py has no 'Ruoter': did you mean 'Router'\\?$"),
        (None, "my.py cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_does_not_load_is_one_line(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "my.py").write_text(text)
    with pytest.raises(ConfigError, match=f"deployment.router.policy: my.py:Ruoter: .*{said}") as caught:
        load_space("tiny", overrides=[f"deployment.router.policy={tmp_path}/my.py:Ruoter"])
    assert "\n" not in str(caught.value)


def test_changed_code_is_another_run_and_another_result(mine: Path) -> None:
    def names() -> tuple[str, str | None]:
        space = load_space(mine / "space.yaml")
        scenario = space.reference
        key = cache.result_key(scenario, load_workload(scenario.workload, 0), stopped=True)
        return identity(space, "", "", None), key

    before = names()
    assert names() == before
    _helpers(mine, "0")
    changed = names()
    assert changed[0] != before[0], "a helper of the router decides its trials"
    assert None not in (changed[1], before[1])
    assert changed[1] != before[1]
    (mine / "my_goals.py").write_text(GOAL + "# objectives are computed again from the metrics\n")
    assert names()[0] != changed[0]
    assert names()[1] == changed[1]


def test_a_run_of_changed_code_does_not_go_on_under_its_name(mine: Path) -> None:
    asked = {"overrides": ["deployment.aggregated.replicas={choices: [1, 2, 3]}", "optimizer.workers=1"]}
    dynosim.optimize(mine / "space.yaml", trials=1, run_id="named", **asked)
    assert len(dynosim.optimize(mine / "space.yaml", trials=2, run_id="named", **asked).trials) == 2
    (mine / "my_goals.py").write_text(GOAL.replace('"max"', '"avg"'))
    with pytest.raises(StudyError, match="named was started with code"):
        dynosim.optimize(mine / "space.yaml", trials=3, run_id="named", **asked)


def test_results_of_code_that_is_no_file_are_not_kept() -> None:
    scenario = load_space(
        "tiny", overrides=["deployment.router.policy=dynosim.policies.routing.random:Random"]
    ).reference
    assert cache.result_key(scenario, load_workload(scenario.workload, 0), stopped=True) is None


def test_worker_processes_find_it_too(mine: Path) -> None:
    study = dynosim.optimize(
        mine / "space.yaml", trials=2, workers=2, overrides=["deployment.aggregated.replicas={choices: [2, 3]}"]
    )
    assert [trial.outcome.reason for trial in study.trials if trial.outcome.values is None] == []


READER = """
import dynosim
def read(path):
    return dynosim.Workload("mine", [0.0, 1.0, 2.0], [100, 200, {tokens}], [5, 6, 7])
def nothing(path):
    return 3
def raises(path):
    return 1 / 0
"""


def _trace(folder: Path, name: str, tokens: str = "300") -> list[str]:
    (folder / "log.txt").write_text("3 requests\n")
    (folder / "reader.py").write_text(READER.format(tokens=tokens))
    source = f"{{type: trace, path: '{folder}/log.txt', format: '{folder}/reader.py:{name}'}}"
    return [*FAST[:1], "baseline={}", f"workload={{source: {source}}}"]


def test_a_reader_of_a_file_gives_the_requests_and_is_run_again_when_it_changes(tmp_path: Path) -> None:
    for tokens in ("300", "3001"):
        config = load_space("tiny", overrides=_trace(tmp_path, "read", tokens)).reference.workload
        assert load_workload(config, 0).input_tokens.tolist() == [100, 200, int(tokens)]


@pytest.mark.parametrize(
    ("name", "tokens", "said"),
    [
        ("raed", "300", "has no 'raed': did you mean 'read'"),
        ("nothing", "300", "reader.py:nothing: returned no dynosim.Workload"),
        ("raises", "300", "reader.py, line 8: ZeroDivisionError"),
        ("read", "0", "ValueError: input_tokens of the workload"),
        ("read", "4, 5", "ValueError: input_tokens: shape .4,.: allowed: .3,."),
    ],
)
def test_a_wrong_reader_is_one_line(tmp_path: Path, name: str, tokens: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"workload.source.format: .*{said}") as caught:
        dynosim.predict("tiny", overrides=_trace(tmp_path, name, tokens))
    assert "\n" not in str(caught.value)


SAMPLER = """
from dynosim.search.samplers import RandomSampler
class Mine(RandomSampler):
    pass
def number(seed):
    return seed
"""


def test_a_sampler_of_a_file_or_of_optuna_proposes_the_trials(mine: Path) -> None:
    (mine / "sampler.py").write_text(f"{SAMPLER}\nNUMBER = 3\n")
    searched = ["deployment.aggregated.replicas={choices: [1, 2, 3, 4]}", "optimizer.workers=1"]
    names = ("random", f"{mine}/sampler.py:Mine", "optuna.samplers:RandomSampler")
    chosen = [
        [
            trial.point
            for trial in dynosim.optimize(
                mine / "space.yaml", trials=3, overrides=[*searched, f"optimizer.sampler={name}"]
            ).trials
        ]
        for name in names
    ]
    assert chosen[0] == chosen[1]
    assert len(chosen[2]) == 3
    for name, said in (
        ("number", "allowed: a class or function that gives an optuna"),
        ("NUMBER", "'int' object is not callable"),
        ("Min", "did you mean 'Mine'"),
    ):
        with pytest.raises(ConfigError, match=f"optimizer.sampler: .*{said}"):
            dynosim.optimize(
                mine / "space.yaml", trials=3, overrides=[*searched, f"optimizer.sampler={mine}/sampler.py:{name}"]
            )
