"""From a configuration to the request table: loads, limits, warm-up, caching."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from dynosim.config import (
    Arrivals,
    ConcurrencyLoad,
    ConstantLoad,
    FixedLength,
    Load,
    LognormalLength,
    PoissonLoad,
    ProfileSource,
    SyntheticSource,
    TraceLoad,
    TraceSource,
    WorkloadConfig,
)
from dynosim.errors import ConfigError
from dynosim.workload import load_workload

SOURCE = SyntheticSource(
    requests=2000,
    input_tokens=LognormalLength(median=500, sigma=1),
    output_tokens=FixedLength(tokens=3),
    arrivals=Arrivals(rates_rps=(4.0,)),
)


def config(load: Load = TraceLoad(), **changes: object) -> WorkloadConfig:  # noqa: B008 (frozen)
    return WorkloadConfig.model_validate({"source": SOURCE, "load": load, **changes})


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "".join(
            json.dumps({"timestamp": 500 * i, "input_length": 10, "output_length": 1, "hash_ids": [i]}) + "\n"
            for i in range(9)
        )
    )
    return path


def test_trace_with_speedup(trace: Path) -> None:
    source = TraceSource(path=str(trace))
    workload = load_workload(WorkloadConfig(source=source, load=TraceLoad(speedup=4.0)), seed=0)
    assert workload.arrival_s.tolist() == [0.125 * i for i in range(9)]
    assert workload.name == "trace.jsonl"


def test_a_changed_trace_is_read_again(trace: Path) -> None:
    case = WorkloadConfig(source=TraceSource(path=str(trace)))
    assert len(load_workload(case, seed=0)) == 9
    trace.write_text("".join(trace.read_text().splitlines(keepends=True)[:4]))
    assert len(load_workload(case, seed=0)) == 4


def test_equal_arguments_give_the_same_table() -> None:
    assert load_workload(config(), seed=1) is load_workload(config(), seed=1)


@pytest.mark.parametrize("burstiness", [0.25, 1.0])
def test_poisson(burstiness: float) -> None:
    arrival_s = load_workload(config(PoissonLoad(rate_rps=8.0, burstiness=burstiness)), seed=2).arrival_s
    gaps_s = np.diff(arrival_s, prepend=0.0)
    assert gaps_s.mean() == pytest.approx(1 / 8, rel=0.1)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(burstiness**-0.5, rel=0.1)


def test_constant_rate() -> None:
    arrival_s = load_workload(config(ConstantLoad(rate_rps=8.0)), seed=2).arrival_s
    np.testing.assert_allclose(arrival_s, np.arange(2000) / 8)


def test_concurrency() -> None:
    workload = load_workload(config(ConcurrencyLoad(concurrency=7)), seed=2)
    assert workload.concurrency == 7
    assert not workload.arrival_s.any()


@pytest.mark.parametrize("load", [PoissonLoad(rate_rps=8.0), ConcurrencyLoad(concurrency=7)])
def test_the_load_leaves_the_requests_as_they_are(load: Load) -> None:
    plain, loaded = load_workload(config(), seed=3), load_workload(config(load), seed=3)
    assert np.array_equal(plain.input_tokens, loaded.input_tokens)
    assert np.array_equal(plain.hash_ids, loaded.hash_ids)


def test_max_requests_takes_the_first() -> None:
    part = load_workload(config(max_requests=50), seed=3)
    whole = replace(load_workload(config(), seed=3), end_s=part.end_s)
    assert part.content_hash() == whole.head(50).content_hash()
    assert len(load_workload(config(max_requests=10**6), seed=3)) == 2000


def test_warmup() -> None:
    assert load_workload(config(warmup_requests=1999), seed=0).warmup_requests == 1999
    with pytest.raises(
        ConfigError, match=r"workload\.warmup_requests: 50: allowed is less than the number of requests, 50"
    ):
        load_workload(config(max_requests=50, warmup_requests=50), seed=0)


def test_no_times_no_trace_timestamps() -> None:
    untimed = SOURCE.model_copy(update={"arrivals": None})
    with pytest.raises(ValidationError, match="the synthetic source has no arrivals; allowed are poisson"):
        WorkloadConfig(source=untimed)
    assert len(load_workload(WorkloadConfig(source=untimed, load=ConstantLoad(rate_rps=1.0)), seed=0)) == 2000


def test_profile_size_and_name() -> None:
    workload = load_workload(WorkloadConfig(source=ProfileSource(name="rag", requests=123)), seed=0)
    assert (len(workload), workload.name) == (123, "rag")


def test_unknown_profile_and_trace() -> None:
    with pytest.raises(ConfigError, match="'chatt': no such profile, nearest is 'chat'; allowed are chat, code, rag"):
        load_workload(WorkloadConfig(source=ProfileSource(name="chatt")), seed=0)
    with pytest.raises(ConfigError, match=r"absent\.jsonl: cannot read the trace: No such file"):
        load_workload(WorkloadConfig(source=TraceSource(path="absent.jsonl")), seed=0)
