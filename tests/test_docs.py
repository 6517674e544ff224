"""The documentation works as it stands: its Python runs, its YAML loads, its tables and lists are complete."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from dynosim.calibration import Manifest
from dynosim.cli import _parser
from dynosim.config import SLO, DeploymentConfig, LinkConfig, PoolConfig, RouterConfig, Scenario, WorkloadConfig
from dynosim.metrics import METRICS, STATS, check_slo
from dynosim.policies.registry import PLACES, Kind, policies, policy_class
from dynosim.simulation import simulate
from dynosim.simulation.records import COMPLETED
from dynosim.space import SearchSpace, bundled_spaces
from dynosim.workload import load_workload

ROOT = Path(__file__).parents[1]
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
DOCS = "\n".join(text for name, text in PAGES.items() if name != "README")
TERMS = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", DOCS, flags=re.DOTALL))
"""What stands in backticks in the text of docs/."""


SMALL = """
deployment:
  model: llama-3.1-8b
  gpu: h100_sxm
  timing: {type: roofline}
  aggregated: {}
workload:
  source:
    type: synthetic
    requests: 60
    input_tokens: {type: uniform, min: 50, max: 2000}
    output_tokens: {type: uniform, min: 2, max: 60}
    sessions: {turns: {type: fixed, tokens: 3}}
  load: {type: poisson, rate_rps: 10}
"""
"""What the YAML of the simulator's page is laid over."""


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if _blocks(page, "python")])
def test_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DYNOSIM_TRACKING", "off")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in _blocks(page, "python"):
        exec(compile(block, f"{page}.md", "exec"), namespace)


def test_the_space_of_the_page_loads_and_its_baseline_works() -> None:
    (text,) = _blocks("spaces", "yaml")
    space = SearchSpace.parse(text)
    assert space.infeasible_reason(space.baseline_point()) is None


@pytest.mark.parametrize("block", _blocks("workloads", "yaml"))
def test_workloads_of_the_page_load(block: str) -> None:
    config = WorkloadConfig.model_validate(yaml.safe_load(block))
    if config.source.type != "trace":
        assert len(load_workload(config, seed=0)) > 0


def _laid_over(base: Any, more: Any) -> Any:
    """Return *more* with what only *base* has, mapping by mapping."""
    if (
        not isinstance(base, dict)
        or not isinstance(more, dict)
        or more.get("type", base.get("type")) != base.get("type")
    ):
        return more
    return {**base, **{key: _laid_over(base.get(key), value) for key, value in more.items()}}


@pytest.mark.parametrize("block", _blocks("simulator", "yaml"))
def test_deployments_of_the_page_serve_requests(block: str) -> None:
    base = yaml.safe_load(SMALL)
    data = _laid_over(base, yaml.safe_load(block))
    if data["deployment"].get("mode") == "disaggregated":
        del data["deployment"]["aggregated"]
    scenario = Scenario.model_validate({"name": "page", **data})
    result = simulate(scenario.deployment, load_workload(scenario.workload, 0))
    assert (result.requests["status"] == COMPLETED).all()


def test_other_yaml_is_valid() -> None:
    (router,), (slo,) = _blocks("extending", "yaml"), _blocks("metrics", "yaml")
    RouterConfig.model_validate(yaml.safe_load(router)["router"])
    bounds: SLO = yaml.safe_load(slo)["slo"]
    check_slo(bounds)
    (manifest,) = _blocks("calibration", "yaml")
    Manifest.model_validate(yaml.safe_load(manifest))


def test_every_metric_has_a_row_with_its_unit() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", PAGES["metrics"], re.MULTILINE)
    assert rows == [(name, info.unit) for name, info in METRICS.items()]
    assert set(STATS) <= set(TERMS)


def test_bundled_spaces_are_listed() -> None:
    listed = re.search(r"asked for by name:\n(.*)\.", PAGES["spaces"])
    assert listed is not None
    assert set(re.findall(r"`(.*?)`", listed[1])) == set(bundled_spaces())


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in PLACES for name in policies(kind)])
def test_every_policy_has_a_row_with_its_options(kind: Kind, name: str) -> None:
    options = inspect.signature(policy_class(kind, name)).parameters.values()
    defaults = [f"`{option.name}` {option.default}" for option in options if option.name != "rng"]
    rows = re.findall(rf"^\| `{name}` \| .+ \| (.*)\|$", PAGES["policies"], re.MULTILINE)
    assert [row.replace('"', "").strip() for row in rows] == [", ".join(defaults)]


@pytest.mark.parametrize("model", [DeploymentConfig, PoolConfig, LinkConfig])
def test_every_field_of_a_deployment_is_described(model: type[BaseModel]) -> None:
    words = {word for term in TERMS for word in re.findall(r"\w+", term)}
    assert model.model_fields.keys() <= words


def _verbs(parser: argparse.ArgumentParser) -> Iterator[tuple[str, ...]]:
    """Yield every verb as its words, such as ("trace", "stats")."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for name, inner in (pair for group in groups for pair in group.choices.items()):
        below = list(_verbs(inner))
        yield from ((name, *rest) for rest in below or [()])


@pytest.mark.parametrize("verb", list(_verbs(_parser())), ids=" ".join)
def test_every_verb_is_described(verb: tuple[str, ...]) -> None:
    """``dynosim config validate``, or `` `dynosim config validate`, `expand` `` for further ones of a group."""
    assert re.search(rf"`dynosim {verb[0]}\b.*\b{verb[-1]}\b", DOCS) or re.search(rf"`dynosim {verb[-1]}\b", DOCS)
