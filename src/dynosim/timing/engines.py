"""What serving engines add to their kernels: CPU work between passes, launches without CUDA graphs, the HTTP server.

Few numbers per engine, each for one cause, fitted to all calibration measurements of the engine together (docs/
fidelity.md) and never to one run. Formulas that know no hardware have none of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dynosim.config import EngineConfig


@dataclass(frozen=True)
class Behaviour:
    """How an engine runs its passes."""

    overlap: bool
    """Passes are chosen while the one before runs."""
    piecewise: bool
    """CUDA graphs cover small passes with prompt chunks too."""
    launch_us: float
    """Per layer of a pass that no graph covers, at least."""
    pass_us: float
    request_us: float
    frontend_ms: float
    serial_us: float = 0.0
    """Added to ``pass_us`` where passes are not chosen ahead: the GPU waits for the scheduler."""
    prefill_slowdown: float = 1.0
    """Passes with prompt chunks over the sum of their kernels."""


BEHAVIOUR = {
    "vllm": Behaviour(True, True, 850.0, 600.0, 10.0, 4.0, 1000.0, 1.25),
    "sglang": Behaviour(True, False, 850.0, 300.0, 0.0, 6.0, 1000.0),
    "trtllm": Behaviour(True, False, 850.0, 0.0, 0.0, 8.0, 1000.0, 1.05),
}
FORMULA = Behaviour(False, True, 0.0, 0.0, 0.0, 0.0)
"""Of timing sources that know no hardware."""


def behaviour(engine: EngineConfig, *, hardware: bool) -> Behaviour:
    """Return the behaviour of *engine*: what its configuration says, else the engine's own, or none under formulas."""
    own = BEHAVIOUR[engine.name] if hardware else FORMULA
    said = {
        "overlap": engine.async_scheduling,
        "launch_us": engine.launch_overhead_us,
        "pass_us": engine.pass_overhead_us,
        "request_us": engine.request_overhead_us,
        "frontend_ms": engine.frontend_ms,
    }
    if engine.cudagraph_mode is not None:
        said["piecewise"] = engine.cudagraph_mode == "FULL_AND_PIECEWISE"
    found = replace(own, **{name: value for name, value in said.items() if value is not None})
    serial = engine.pass_overhead_us is None and not found.overlap
    return replace(found, pass_us=found.pass_us + found.serial_us) if serial else found
