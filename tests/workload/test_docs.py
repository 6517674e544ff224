"""docs/workloads.md: its YAML is valid, its Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dynosim.config import WorkloadConfig
from dynosim.workload import load_workload

TEXT = (Path(__file__).parents[2] / "docs/workloads.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL))
def test_yaml(block: str) -> None:
    config = WorkloadConfig.model_validate(yaml.safe_load(block))
    if config.source.type != "trace":
        assert len(load_workload(config, seed=0)) > 0


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
def test_python(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "docs/workloads.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) == 5
