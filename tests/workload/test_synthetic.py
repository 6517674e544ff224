"""Synthetic workloads: invariants of the table over all configurations, statistics, independence of the streams."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.config import (
    Arrivals,
    FixedLength,
    Length,
    LognormalLength,
    PrefixTree,
    QuantileLength,
    RatioLength,
    Rewrites,
    SyntheticSource,
    UniformLength,
)
from dynosim.rng import stream
from dynosim.workload import Workload, describe
from dynosim.workload.lengths import sample_lengths
from dynosim.workload.synthetic import generate

UNIT = st.floats(0.0, 1.0)
RATIOS = st.lists(st.floats(0.01, 1.5), min_size=2, max_size=4).map(
    lambda values: dict(zip(np.linspace(0, 1, len(values)).tolist(), sorted(values), strict=True))
)


def lengths(largest: int = 3000) -> st.SearchStrategy[Length]:
    tokens = st.integers(1, largest)
    ordered = st.lists(tokens, min_size=2, max_size=5).map(sorted)
    return st.one_of(
        tokens.map(lambda n: FixedLength(tokens=n)),
        ordered.map(lambda v: UniformLength(min=v[0], max=v[-1])),
        st.builds(LognormalLength, median=st.floats(1, largest), sigma=st.floats(0, 2), max=st.just(largest)),
        ordered.map(lambda v: QuantileLength(quantiles=dict(zip(np.linspace(0, 1, len(v)).tolist(), v, strict=True)))),
    )


PREFIXES = st.builds(
    PrefixTree,
    block_tokens=st.integers(1, 600),
    shared_blocks=st.integers(0, 3),
    continue_probability=st.lists(UNIT, min_size=1, max_size=3).map(tuple),
    continue_scale_tokens=st.none() | st.floats(10, 1e6),
    max_input_tokens=st.integers(3000, 10000),
    new_tokens=st.lists(lengths(500), min_size=1, max_size=2).map(tuple),
    gap_requests=lengths(30),
    persistence=UNIT,
    output_persistence=UNIT,
    resubmit_probability=UNIT,
    rewrites=st.none()
    | st.builds(
        Rewrites,
        probability=UNIT,
        persistence=UNIT,
        min_blocks=st.integers(1, 5),
        kept_fraction=RATIOS,
        length_ratio=RATIOS,
    ),
)
ARRIVALS = st.builds(
    Arrivals,
    rates_rps=st.lists(st.floats(0.01, 100), min_size=1, max_size=3).map(tuple),
    window_s=st.floats(0.1, 1000),
    burstiness=st.floats(0.05, 20),
    gap_quantiles=st.none() | RATIOS,
    quantum_s=st.sampled_from([0.0, 0.5, 3.0]),
)
SOURCES = st.builds(
    SyntheticSource,
    requests=st.integers(1, 60),
    input_tokens=lengths(),
    output_tokens=lengths(),
    prefix=st.none() | PREFIXES,
    arrivals=st.none() | ARRIVALS,
)


def prompts(workload: Workload) -> list[list[int]]:
    return [ids.tolist() for ids in np.split(workload.hash_ids, workload.hash_offsets[1:-1])]


@settings(max_examples=200)
@given(source=SOURCES, seed=st.integers(0, 2**32))
def test_table_is_valid(source: SyntheticSource, seed: int) -> None:
    workload = generate(source, seed)
    n = source.requests
    assert len(workload) == len(workload.input_tokens) == len(workload.output_tokens) == n
    assert workload.input_tokens.min() >= 1
    assert workload.output_tokens.min() >= 1
    assert workload.arrival_s[0] == 0.0
    assert np.all(np.diff(workload.arrival_s) >= 0)
    for array in (workload.input_tokens, workload.output_tokens, workload.hash_offsets, workload.hash_ids):
        assert array.dtype == np.int64
    blocks = -(-workload.input_tokens // source.prefix.block_tokens) if source.prefix else np.zeros(n)
    assert np.diff(workload.hash_offsets).tolist() == blocks.tolist()
    assert workload.hash_offsets[0] == 0
    assert np.unique(workload.hash_ids).tolist() == list(range(len(np.unique(workload.hash_ids))))


@settings(max_examples=100)
@given(source=SOURCES.filter(lambda source: source.prefix is not None), seed=st.integers(0, 2**32))
def test_equal_ids_mean_equal_prefixes(source: SyntheticSource, seed: int) -> None:
    """A block id stands for the prompt up to its end: the same ids come before it wherever it is, and a partial block
    is shared only by prompts of equal length."""
    assert source.prefix is not None
    workload = generate(source, seed)
    before: dict[int, tuple[list[int], int]] = {}
    for ids, tokens in zip(prompts(workload), workload.input_tokens.tolist(), strict=True):
        for k, block in enumerate(ids):
            end = min((k + 1) * source.prefix.block_tokens, tokens)
            assert before.setdefault(block, (ids[:k], end)) == (ids[:k], end)


def conversation(**changes: Any) -> SyntheticSource:
    prefix: dict[str, Any] = {
        "block_tokens": 10,
        "continue_probability": (1.0,),
        "new_tokens": (FixedLength(tokens=7),),
        "gap_requests": FixedLength(tokens=2),
    }
    return SyntheticSource(
        requests=8,
        input_tokens=FixedLength(tokens=34),
        output_tokens=FixedLength(tokens=5),
        prefix=PrefixTree(**{**prefix, **changes}),
    )


def test_next_turns_grow_by_answer_and_new_tokens() -> None:
    """Two conversations take turns: each prompt is the one before plus 5 answer and 7 new tokens."""
    workload = generate(conversation(), seed=0)
    assert workload.input_tokens.tolist() == [34, 34, 46, 46, 58, 58, 70, 70]
    ids = prompts(workload)
    assert [len(set(a) & set(b)) for a, b in zip(ids, ids[2:], strict=False)] == [3, 3, 4, 4, 5, 5]
    assert [len(set(a) & set(b)) for a, b in pairwise(ids)] == [1] * 7


def test_conversation_ends_at_the_longest_prompt() -> None:
    workload = generate(conversation(max_input_tokens=50), seed=0)
    assert workload.input_tokens.tolist() == [34, 34, 46, 46] * 2


def test_resubmission_shares_the_whole_prompt() -> None:
    ids = prompts(generate(conversation(resubmit_probability=1.0), seed=0))
    assert ids[0] == ids[2] == ids[4] == ids[6]


def test_rewriting_keeps_the_history_and_the_answers_since() -> None:
    """Of 6 whole blocks half stays (30 tokens), then 35 tokens, then 40, while the length stays 64."""
    half = Rewrites(probability=1.0, kept_fraction={0.0: 0.5, 1.0: 0.5}, length_ratio={0.0: 1.0, 1.0: 1.0})
    source = conversation(rewrites=half).model_copy(update={"input_tokens": FixedLength(tokens=64)})
    workload = generate(source, seed=0)
    assert workload.input_tokens.tolist() == [64] * 8
    ids = prompts(workload)
    assert [len(set(a) & set(b)) for a, b in zip(ids[::2], ids[2::2], strict=False)] == [3, 3, 4]


def test_long_first_prompts_are_one_off() -> None:
    """A probability of exp(-34/0.01) is none."""
    assert generate(conversation(continue_scale_tokens=0.01), seed=0).input_tokens.tolist() == [34] * 8


@pytest.mark.parametrize("persistence", [0.0, 0.5, 0.9, 1.0])
def test_output_persistence(persistence: float) -> None:
    """Two successive turns have the same draw, the conversation's own, with probability persistence^2."""
    source = conversation(output_persistence=persistence, resubmit_probability=1.0)
    update = {"requests": 20000, "output_tokens": UniformLength(min=1, max=10**6)}
    outputs = generate(source.model_copy(update=update), seed=1).output_tokens
    assert np.mean(outputs[:-2] == outputs[2:]) == pytest.approx(persistence**2, abs=0.02)


@pytest.mark.parametrize(
    ("length", "mean", "quantiles"),
    [
        (FixedLength(tokens=7), 7, {0.1: 7, 0.9: 7}),
        (UniformLength(min=1, max=999), 500, {0.1: 100, 0.5: 500, 0.9: 900}),
        (RatioLength(tokens=1000, ratio=0.8), 900, {0.0: 800, 0.5: 900, 1.0: 1000}),
        (RatioLength(tokens=1000, ratio=0.0), 500, {0.0: 1, 0.1: 100, 1.0: 1000}),
        (LognormalLength(median=500, sigma=0.8), 500 * np.exp(0.8**2 / 2), {0.1587: 500 / np.exp(0.8), 0.5: 500}),
        (QuantileLength(quantiles={0: 10, 0.5: 100, 1: 1000}), 990 / np.log(100), {0.25: 31.6, 0.5: 100, 0.75: 316}),
    ],
)
def test_length_statistics(length: Length, mean: float, quantiles: dict[float, float]) -> None:
    drawn = sample_lengths(length, 20000, stream(3, "test"))
    assert drawn.mean() == pytest.approx(mean, rel=0.03)
    for probability, value in quantiles.items():
        assert np.quantile(drawn, probability) == pytest.approx(value, rel=0.05)


def test_equal_seeds_give_equal_tables() -> None:
    source = SyntheticSource(
        requests=500,
        input_tokens=LognormalLength(median=2000, sigma=1),
        output_tokens=LognormalLength(median=200, sigma=1),
        prefix=PrefixTree(continue_probability=(0.5,), gap_requests=FixedLength(tokens=5)),
        arrivals=Arrivals(rates_rps=(2.0,)),
    )
    assert generate(source, 1).content_hash() == generate(source, 1).content_hash()
    assert generate(source, 1).content_hash() != generate(source, 2).content_hash()


def test_streams_are_independent() -> None:
    """Changing one part of a source leaves the draws of the others as they were."""
    base = SyntheticSource(
        requests=300,
        input_tokens=LognormalLength(median=2000, sigma=1),
        output_tokens=LognormalLength(median=200, sigma=1),
        arrivals=Arrivals(rates_rps=(2.0,)),
    )
    changes: dict[str, dict[str, Any]] = {
        "arrival_s": {"arrivals": Arrivals(rates_rps=(2.0, 5.0), burstiness=0.1)},
        "input_tokens": {"input_tokens": UniformLength(min=1, max=9)},
        "output_tokens": {"output_tokens": UniformLength(min=1, max=9)},
    }
    before = generate(base, 5)
    for changed, update in changes.items():
        after = generate(base.model_copy(update=update), 5)
        for name in changes:
            assert np.array_equal(getattr(after, name), getattr(before, name)) == (name != changed)


def test_more_requests_begin_with_the_same_ones() -> None:
    source = SyntheticSource(
        requests=200,
        input_tokens=LognormalLength(median=2000, sigma=1),
        output_tokens=FixedLength(tokens=1),
        arrivals=Arrivals(rates_rps=(2.0,)),
    )
    longer = generate(source.model_copy(update={"requests": 300}), 5)
    assert longer.head(200).content_hash() == generate(source, 5).content_hash()


def timed(arrivals: Arrivals, requests: int = 20000, seed: int = 0) -> Workload:
    one = FixedLength(tokens=1)
    return generate(SyntheticSource(requests=requests, input_tokens=one, output_tokens=one, arrivals=arrivals), seed)


@pytest.mark.parametrize("burstiness", [0.1, 1.0, 4.0])
def test_gamma_gaps(burstiness: float) -> None:
    measured = describe(timed(Arrivals(rates_rps=(5.0,), burstiness=burstiness)))
    assert measured["mean_rps"] == pytest.approx(5.0, rel=0.06)
    assert measured["gap_cv"] == pytest.approx(burstiness**-0.5, rel=0.06)


def test_quantile_gaps() -> None:
    """Uniform gaps have a coefficient of variation of 1/sqrt(3), whatever their unit."""
    measured = describe(timed(Arrivals(rates_rps=(5.0,), gap_quantiles={0.0: 0.0, 1.0: 77.0})))
    assert measured["mean_rps"] == pytest.approx(5.0, rel=0.02)
    assert measured["gap_cv"] == pytest.approx(3**-0.5, rel=0.02)


def test_rate_windows() -> None:
    """Each window has its own rate; the last rate holds from then on."""
    times_s = timed(Arrivals(rates_rps=(20.0, 5.0, 50.0), window_s=100.0)).arrival_s
    counts = np.histogram(times_s, [0, 100, 200, 300, 350])[0]
    np.testing.assert_allclose(counts, [2000, 500, 5000, 2500], rtol=0.15)


def test_batches() -> None:
    """Poisson counts in batches every 3 s: the gaps are 0 or 3 s, with CV sqrt(3 x rate - 1)."""
    workload = timed(Arrivals(rates_rps=(3.4,), quantum_s=3.0))
    assert np.unique(np.diff(workload.arrival_s)).tolist() == [0.0, 3.0]
    assert describe(workload)["gap_cv"] == pytest.approx((3 * 3.4 - 1) ** 0.5, rel=0.02)
