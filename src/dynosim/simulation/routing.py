"""Built-in routers over the engine's own arrays. Compiled.

A policy's file says in plain Python what it decides; here the same functions are compiled.
"""

from __future__ import annotations

from dynosim.policies.routing import kv_aware as policy
from dynosim.simulation.compiled import inner, share
from dynosim.simulation.state import CACHED, DISK, HOST, REFERENCED

share(policy.choose, policy.cost_of, policy._nth_equal, policy._softmax)


@inner
def kv_aware(e, rows, weights, draw, j):
    """Return the position in *rows* of the one that gets job *j*, whose overlap with every row has been looked up."""
    state = e.rows
    seen = (
        state.prefill_load,
        state.active_blocks,
        state.outstanding,
        e.overlap[CACHED],
        e.overlap[REFERENCED],
        e.overlap[HOST],
        e.overlap[DISK],
    )
    return policy.choose(weights, draw, e.jobs[j].input, e.limits[0].block_size, rows, seen, e.costs)
