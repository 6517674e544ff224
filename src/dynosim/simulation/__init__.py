"""The discrete-event simulator: SimPy cluster, compiled replica engine."""

from dynosim.simulation import queueing
from dynosim.simulation.lost import LostCause
from dynosim.simulation.records import PoolRecord, SimulationResult, TokenGaps
from dynosim.simulation.run import simulate

__all__ = ["LostCause", "PoolRecord", "SimulationResult", "TokenGaps", "queueing", "simulate"]
