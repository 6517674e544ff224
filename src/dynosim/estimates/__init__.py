"""What a serving engineer would compute before simulating: demand, replicas, loads and latencies in closed form."""

from dynosim.estimates.demand import Demand, demand_of
from dynosim.estimates.replica import REPLICA_DTYPE, Records, replica
from dynosim.estimates.scaling import SCALER_DTYPE, SCALER_NUMBERS, scaler
from dynosim.estimates.serving import Deployments, Estimate, estimate

__all__ = [
    "REPLICA_DTYPE",
    "SCALER_DTYPE",
    "SCALER_NUMBERS",
    "Demand",
    "Deployments",
    "Estimate",
    "Records",
    "demand_of",
    "estimate",
    "replica",
    "scaler",
]
