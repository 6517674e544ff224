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
    CurveLoad,
    DiurnalLoad,
    FixedDelay,
    FixedLength,
    Load,
    LognormalLength,
    PoissonLoad,
    ProfileSource,
    RequestClass,
    Sessions,
    SpikeLoad,
    StepLoad,
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
    with pytest.raises(
        ConfigError,
        match=r"'chatt': no such profile: did you mean 'chat'\? allowed: agentic, chat, code, multiturn, rag",
    ):
        load_workload(WorkloadConfig(source=ProfileSource(name="chatt")), seed=0)
    with pytest.raises(ConfigError, match=r"absent\.jsonl: cannot read the trace: No such file"):
        load_workload(WorkloadConfig(source=TraceSource(path="absent.jsonl")), seed=0)


def counts(load: Load, edges_s: list[float], requests: int = 20000) -> list[int]:
    """Return the arrivals between the edges."""
    source = SOURCE.model_copy(update={"requests": requests})
    arrival_s = load_workload(config(load, source=source), seed=0).arrival_s
    assert (np.diff(arrival_s) >= 0).all()
    assert arrival_s[-1] > edges_s[-1]
    found: list[int] = np.histogram(arrival_s, edges_s)[0].tolist()
    return found


def test_step() -> None:
    load = StepLoad(before_rps=10.0, after_rps=40.0, at_s=200.0)
    assert counts(load, [0, 100, 200, 300, 400]) == pytest.approx([1000, 1000, 4000, 4000], rel=0.08)


def test_spike() -> None:
    load = SpikeLoad(base_rps=10.0, peak_rps=60.0, at_s=100.0, duration_s=50.0)
    assert counts(load, [0, 100, 150, 250, 350]) == pytest.approx([1000, 3000, 1000, 1000], rel=0.08)


def test_diurnal() -> None:
    """Around night and noon the mean of a quarter of the day is 20 -+ 20 sqrt(8)/pi; the next day is the same."""
    load = DiurnalLoad(base_rps=0.0, peak_rps=40.0, period_s=400.0)
    low, high = 2000 * (1 - 8**0.5 / np.pi), 2000 * (1 + 8**0.5 / np.pi)
    assert counts(load, [-50, 50, 150, 250, 350, 450, 550]) == pytest.approx(
        [low / 2, 2000, high, 2000, low, 2000], rel=0.1
    )


def test_bursts_follow_the_rate() -> None:
    """Counts in windows of equal rate vary more than Poisson's where burstiness is below 1."""
    edges_s = np.arange(0.0, 400.0, 4.0).tolist()
    calm, bursty = (
        np.var(counts(StepLoad(before_rps=40.0, after_rps=1.0, at_s=400.0, burstiness=b), edges_s)) for b in (1.0, 0.2)
    )
    assert calm == pytest.approx(160, rel=0.4)
    assert bursty == pytest.approx(5 * 160, rel=0.4)


CURVE = "workload,t_s,rate_rps\nday,0,10\nday,60,30\nnight,0,1\nnight,60,1\n"


@pytest.fixture
def curve(tmp_path: Path) -> str:
    (tmp_path / "curve.csv").write_text(CURVE)
    return str(tmp_path / "curve.csv")


def test_rate_curve(curve: str) -> None:
    """The curve starts again at its end, the last window as long as the one before."""
    found = counts(CurveLoad(path=curve, series="day"), [0, 60, 120, 180, 240], requests=6000)
    assert found == pytest.approx([600, 1800, 600, 1800], rel=0.1)


def test_rate_curve_scaled_and_faster(curve: str) -> None:
    load = CurveLoad(path=curve, series="day", mean_rps=80.0, speedup=2.0)
    assert counts(load, [0, 30, 60, 90, 120], requests=12000) == pytest.approx([1200, 3600, 1200, 3600], rel=0.1)


@pytest.mark.parametrize(
    ("text", "series", "message"),
    [
        (CURVE, None, "workload.load.series: None: allowed are day, night"),
        (CURVE, "dusk", "workload.load.series: 'dusk': allowed are day, night"),
        (CURVE.replace("rate_rps", "rps"), "day", "rate_rps: no such column; allowed is a header with t_s,rate_rps"),
        (CURVE.replace("60,30", "60,-30"), "day", "curve.csv:3: rate_rps: '-30': Input should be greater than"),
        (CURVE.replace("60,30", "0,30"), "day", "allowed are at least two windows at rising times"),
        ("t_s,rate_rps\n0,0\n1,0\n", None, "allowed are at least two windows at rising times"),
    ],
)
def test_bad_rate_curve(curve: str, text: str, series: str | None, message: str) -> None:
    Path(curve).write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_workload(config(CurveLoad(path=curve, series=series)), seed=0)
    assert message in str(caught.value)
    with pytest.raises(ConfigError, match="cannot read the trace: No such file"):
        load_workload(config(CurveLoad(path="absent.csv")), seed=0)


def test_a_changed_curve_is_read_again(curve: str) -> None:
    case = config(CurveLoad(path=curve, series="day"))
    before = load_workload(case, seed=0).arrival_s[-1]
    Path(curve).write_text(CURVE.replace("60,30", "60,300"))
    assert load_workload(case, seed=0).arrival_s[-1] < before - 30


TALK = SyntheticSource(
    requests=60,
    input_tokens=FixedLength(tokens=30),
    output_tokens=FixedLength(tokens=10),
    sessions=Sessions(turns=FixedLength(tokens=3), think_s=FixedDelay(seconds=8.0)),
    arrivals=Arrivals(rates_rps=(2.0,)),
)


def test_speedup_divides_delays() -> None:
    plain, fast = (load_workload(config(TraceLoad(speedup=s), source=TALK), seed=0) for s in (1.0, 4.0))
    assert (plain.delay_s.max(), fast.delay_s.max()) == (8.0, 2.0)
    np.testing.assert_allclose(fast.arrival_s, plain.arrival_s / 4)


@pytest.mark.parametrize("load", [ConstantLoad(rate_rps=0.5), ConcurrencyLoad(concurrency=5)])
def test_rates_and_concurrency_are_of_sessions(load: Load) -> None:
    workload = load_workload(config(load, source=TALK), seed=0)
    starts_s = workload.arrival_s[::3]
    assert starts_s.tolist() == ([2.0 * k for k in range(20)] if load.type == "constant_rate" else [0.0] * 20)
    assert workload.delay_s.max() == 8.0


def test_sessions_that_overlap_are_regrouped(tmp_path: Path) -> None:
    """Workflows with a second root after another workflow's first: a rate gives each workflow one start."""
    rows = [
        {"request_id": "a1", "timestamp": 0},
        {"request_id": "b", "timestamp": 1000},
        {"request_id": "a2", "timestamp": 2000},
        {"request_id": "a3", "wait_for": ["a1", "a2"], "tool_wait_ms": 500},
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"input_length": 9, "output_length": 1, **row}) for row in rows))
    source = TraceSource(path=str(path))
    replayed = load_workload(WorkloadConfig(source=source), seed=0)
    assert (replayed.session.tolist(), replayed.arrival_s.tolist()) == ([0, 1, 0, 0], [0, 1, 2, 2])
    loaded = load_workload(WorkloadConfig(source=source, load=ConstantLoad(rate_rps=0.1)), seed=0)
    assert (loaded.session.tolist(), loaded.arrival_s.tolist()) == ([0, 0, 0, 1], [0, 0, 0, 10])
    assert (loaded.after_offsets.tolist(), loaded.after_ids.tolist()) == ([0, 0, 0, 2, 2], [0, 1])
    assert loaded.delay_s.tolist() == [0, 0, 0.5, 0]


def test_lengths_alone_need_a_load(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("ISL,OSL\n5,1\n7,2\n")
    source = TraceSource(path=str(path))
    with pytest.raises(ConfigError, match=r"workload\.load: trace_timestamps: lengths.csv has no times; allowed are"):
        load_workload(WorkloadConfig(source=source), seed=0)
    workload = load_workload(WorkloadConfig(source=source, load=ConstantLoad(rate_rps=0.5)), seed=0)
    assert workload.arrival_s.tolist() == [0, 2]


def test_classes_are_drawn_by_session() -> None:
    classes = (RequestClass(share=3, priority=0, deadline_s=2.0), RequestClass(share=1, priority=5))
    source = TALK.model_copy(update={"requests": 6000})
    workload = load_workload(config(source=source, classes=classes), seed=0)
    priority = workload.priority.reshape(-1, 3)
    assert (priority == priority[:, :1]).all()
    assert np.mean(priority[:, 0] == 5) == pytest.approx(0.25, abs=0.03)
    assert set(zip(workload.priority.tolist(), workload.deadline_s.tolist(), strict=True)) == {(0, 2.0), (5, np.inf)}
    plain = load_workload(config(source=source), seed=0)
    assert np.array_equal(plain.arrival_s, workload.arrival_s)


def test_end() -> None:
    """An open loop ends 10 times its span plus an hour, with the longest session's delays in the span."""
    span_s = load_workload(config(source=TALK), seed=0).arrival_s[-1] + 16.0
    assert load_workload(config(source=TALK), seed=0).end_s == pytest.approx(10 * span_s + 3600)
    assert load_workload(config(ConcurrencyLoad(concurrency=2)), seed=0).end_s == np.inf
    assert load_workload(config(ConcurrencyLoad(concurrency=2), max_virtual_time_s=60.0), seed=0).end_s == 60.0
