"""What serving engines add to their kernels: CPU work between passes, launches without CUDA graphs, the HTTP server.

Few numbers per engine, each for one cause, fitted to all calibration measurements of the engine together (docs/
fidelity.md) and never to one run. Formulas that know no hardware have none of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

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
    """Passes with prompt chunks over the sum of their kernels: attention, and all beyond the first 1,024 tokens."""
    moe_launches: float = 1.0
    """Launches of an expert layer over those of a dense one."""
    mla_launches: float = 0.0
    """Further ones of latent attention."""


BEHAVIOUR = {
    "vllm": Behaviour(
        overlap=True, piecewise=True, launch_us=850.0, pass_us=400.0, request_us=20.0, frontend_ms=6.0,
        serial_us=1000.0, prefill_slowdown=1.3, moe_launches=1.5, mla_launches=1.0,
    ),
    "sglang": Behaviour(
        overlap=True, piecewise=False, launch_us=850.0, pass_us=400.0, request_us=20.0, frontend_ms=6.0,
        serial_us=1000.0, prefill_slowdown=1.0, moe_launches=1.5, mla_launches=1.5,
    ),
    "trtllm": Behaviour(
        overlap=True, piecewise=False, launch_us=850.0, pass_us=0.0, request_us=0.0, frontend_ms=8.0,
        serial_us=1000.0, prefill_slowdown=1.1,
    ),
}  # fmt: skip
"""The launch time agrees with the 0.8 ms per layer of "dispatch overhead" in AIConfigurator 0.12.0 (TTFT of vLLM);
in TensorRT-LLM an expert layer is one operator."""
FORMULA = Behaviour(False, True, 0.0, 0.0, 0.0, 0.0)
"""Of timing sources that know no hardware."""


def behaviour(engine: EngineConfig, *, hardware: bool) -> Behaviour:
    """Return the behaviour of *engine*: what its configuration says, else the engine's own, or none under formulas."""
    own = BEHAVIOUR[engine.name] if hardware else FORMULA
    said: dict[str, Any] = {
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
