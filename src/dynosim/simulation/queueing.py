"""Requests at a pool in which only prompts queue: what waiting alone does to first tokens and to tokens. Compiled.

Prompts are served one after the other by the batches of the replicas, first come, first served, and what a prompt takes
is a function of its tokens. A request that decodes gets a token per decode step, and per pass with a prompt chunk while
its batch has prompts. No KV cache, no limits of a batch: the engine has those; this is a thousand times faster.
"""

from __future__ import annotations

from dynosim.simulation.compiled import Floats, Ints, entry, inner

(BATCHES, CYCLIC, TOKEN_S, PAIR_S, STEP_S, PASS_S, SPACING, WIDTH_S) = range(8)
"""Places of ``numbers``: batches of a replica; 1 where replicas take turns, 0 where the one that is free first gets the
next; seconds per prompt token and per pair of tokens that attention compares; per decode step, and per pass with a
chunk; the factor on arrivals, and the length of a window of ``replicas``."""


@entry
def replay(
    numbers: Floats,
    replicas: Floats,
    arrival_s: Floats,
    tokens: Floats,
    pairs: Floats,
    free_s: Floats,
    begin_s: Floats,
    end_s: Floats,
    following: Ints,
    last: Ints,
) -> None:
    """Serve ``n`` requests: write when each prompt begins and ends, and which one its batch takes next (or -1).

    *replicas* of each window are there, ``free_s`` and ``last`` have room for all batches. Arrivals do not decrease.
    """
    batches, width_s = int(numbers[BATCHES]), numbers[WIDTH_S]
    for k in range(len(free_s)):
        free_s[k], last[k] = 0.0, -1
    for i in range(len(arrival_s)):
        time = arrival_s[i] * numbers[SPACING]
        window = min(int(time / width_s), len(replicas) - 1) if width_s > 0.0 else 0
        there = max(int(replicas[window]), 1)
        first, count = ((i % there) * batches, batches) if numbers[CYCLIC] else (0, there * batches)
        k = _first_free(free_s, first, first + count)
        begin_s[i] = max(time, free_s[k])
        end_s[i] = begin_s[i] + tokens[i] * numbers[TOKEN_S] + pairs[i] * numbers[PAIR_S]
        free_s[k], following[i] = end_s[i], -1
        if last[k] >= 0:
            following[last[k]] = i
        last[k] = i


@inner
def _first_free(free_s, first, end):
    best = first
    for k in range(first + 1, end):
        if free_s[k] < free_s[best]:
            best = k
    return best


@entry
def decode(
    numbers: Floats, output: Floats, begin_s: Floats, end_s: Floats, following: Ints, busy_s: Floats, gap_s: Floats
) -> None:
    """Write the mean gap between the tokens of each request (``n``), after ``replay``; *busy_s* is room for ``n``.

    Afterwards *following* is who begins the next time that the batch has prompts, and *busy_s* when it has none before.
    """
    step_s, pass_s = numbers[STEP_S], numbers[PASS_S]
    for i in range(len(output) - 1, -1, -1):
        j = following[i]
        together = j >= 0 and begin_s[j] <= end_s[i]
        busy_s[i] = busy_s[j] if together else end_s[i]
        following[i] = following[j] if together else j
    for i in range(len(output)):
        tokens = max(output[i] - 1.0, 1.0)
        time, left, j = end_s[i], tokens, i
        while left > 0.0:
            chunks = (busy_s[j] - time) / pass_s
            if chunks >= left:
                time, left = time + left * pass_s, 0.0
                break
            time, left, j = busy_s[j], left - chunks, following[j]
            steps = left if j < 0 else min((begin_s[j] - time) / step_s, left)
            time, left = time + steps * step_s, left - steps
            if j < 0:
                break
            if left > 0.0:
                time = begin_s[j]
        gap_s[i] = (time - end_s[i]) / tokens
