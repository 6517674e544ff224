"""The discrete-event simulator: SimPy cluster, compiled replica engine."""

from dynosim.simulation.records import PoolRecord, SimulationResult, TokenGaps
from dynosim.simulation.run import simulate

__all__ = ["PoolRecord", "SimulationResult", "TokenGaps", "simulate"]
