"""A timing source of the user's: one file, held to its contract; tables that check their own shapes."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dynosim
from dynosim.config import DeploymentConfig, PoolConfig
from dynosim.errors import ConfigError
from dynosim.hardware.plan import PoolPlan
from dynosim.run.spaces import load_space
from dynosim.timing import PassTables, effective_tables, forward_times

TIMES = """
import numpy as np
from dynosim.timing import PassTables

class MyTimes:
    knows_hardware = False

    def __init__(self, deployment, pool, ms_per_token=0.1, path=""):
        self.s_per_token = ms_per_token / 1e3 / pool.tensor_parallel_size

    def tables(self, *, max_num_seqs, max_num_batched_tokens):
        batches = np.arange(max_num_seqs + 1)
        return PassTables(
            tokens_s=np.arange(max_num_batched_tokens + 1 - {short}) * self.s_per_token,
            graph_tokens_s=batches * self.s_per_token,
            decode_context=np.tile([0.0, 1e6], (max_num_seqs + 1, 1)),
            decode_s=np.full((max_num_seqs + 1, 2), 0.01),
            prefill_seq=[0.0, 1e6],
            prefill_share_s=np.zeros((2, 2)),
            expert_s=np.zeros(max_num_batched_tokens + 1 - {short}),
        )

class NoTables:
    knows_hardware = True

    def __init__(self, deployment, pool):
        pass

def Exits(deployment, pool):
    raise SystemExit(3)
"""
FAST = ("workload.source.requests=60", "workload.warmup_requests=0", "baseline={}")


def _space(file: Path, name: str = "MyTimes", options: str = "{}", short: int = 0) -> list[str]:
    file.write_text(TIMES.format(short=short))
    timing = f"{{type: '{file}:{name}', options: {options}}}"
    deployment = f"{{model: llama-3.1-8b, gpu: h100_sxm, timing: {timing}, aggregated: {{}}}}"
    return [*FAST, f"deployment={deployment}"]


def test_a_timing_source_of_a_file_serves_requests(tmp_path: Path) -> None:
    slow, fast = (
        dynosim.predict(
            "tiny", overrides=_space(tmp_path / "times.py", options=f"{{ms_per_token: {ms}, path: measured.csv}}")
        ).metrics
        for ms in (0.2, 0.1)
    )
    assert slow.value("completed") == fast.value("completed") == 60
    assert slow.value("prefill_time", "avg") > 1.5 * fast.value("prefill_time", "avg")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "MyTime"}, "has no 'MyTime': did you mean 'MyTimes'"),
        ({"name": "NoTables"}, "a timing source needs tables$"),
        ({"options": "{ms: 3}"}, "TypeError: .*unexpected keyword argument 'ms'"),
        ({"options": "{ms_per_token: many}"}, "times.py, line 9: TypeError"),
        ({"name": "np"}, "TypeError: 'module' object is not callable"),
        ({"name": "Exits"}, "times.py, line 30: SystemExit: 3"),
        ({"short": 1}, "tokens_s: 64 entries: allowed: 65, from 0 to the limit"),
    ],
)
def test_a_wrong_timing_source_is_one_line_at_load(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load_space("tiny", overrides=_space(tmp_path / "times.py", **given))
    assert caught.value.path == "deployment.timing"
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def tables() -> PassTables:
    """Those of the roofline."""
    pool = PoolConfig()
    deployment = DeploymentConfig(model="llama-3.1-8b", gpu="h100_sxm", timing={"type": "roofline"}, aggregated=pool)
    return forward_times(PoolPlan.of(deployment, "mixed")).tables(max_num_seqs=8, max_num_batched_tokens=64)


ARRAYS = [field.name for field in fields(PassTables) if field.type == "Array"]


@pytest.mark.parametrize("name", ARRAYS)
def test_a_table_one_entry_short_or_without_a_number_is_refused_by_name(tables: PassTables, name: str) -> None:
    array = getattr(tables, name)
    for wrong in [array[..., :-1]] if name == "prefill_share_s" else [array[:-1], array[..., :-1]]:
        with pytest.raises(ValueError, match=r": allowed: |: shape "):
            replace(tables, **{name: wrong}).check_limits(8, 64)
    for value in (np.nan, np.inf, -1.0):
        wrong = array.copy()
        wrong.flat[-1] = value
        with pytest.raises(ValueError, match=f"^{name}: "):
            replace(tables, **{name: wrong})


def test_nodes_that_do_not_rise_and_a_pass_without_tokens_that_takes_time_are_refused(tables: PassTables) -> None:
    for name in ("decode_context", "prefill_seq"):
        with pytest.raises(ValueError, match=f"^{name}: allowed: at least two nodes, each above"):
            replace(tables, **{name: getattr(tables, name)[..., ::-1]})
    for name in ("tokens_s", "graph_tokens_s"):
        with pytest.raises(ValueError, match=f"^{name}: 1: a pass without tokens"):
            replace(tables, **{name: np.ones_like(getattr(tables, name))})


def test_what_knows_hardware_says_so_and_only_then_engines_add_to_it(tmp_path: Path) -> None:
    file = tmp_path / "times.py"
    file.write_text(TIMES.format(short=0) + "\nclass Kernels(MyTimes):\n    knows_hardware = True\n")
    fields = {"model": "llama-3.1-8b", "gpu": "h100_sxm", "aggregated": PoolConfig()}
    deployments = [DeploymentConfig(**fields, timing={"type": f"{file}:{name}"}) for name in ("MyTimes", "Kernels")]
    plain, kernels = (effective_tables(PoolPlan.of(deployment, "mixed")) for deployment in deployments)
    assert not plain.overlap
    assert kernels.overlap
    assert (kernels.tokens_s[1:] > plain.tokens_s[1:]).all()
