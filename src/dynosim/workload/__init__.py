"""Workloads: trace readers, synthetic generators, profiles, arrival processes, statistics."""

from dynosim.workload.load import load_workload, traffic_hash
from dynosim.workload.profiles import get_profile, profile_names
from dynosim.workload.readers import read_trace
from dynosim.workload.statistics import describe, lru_reuse, reuse_bound
from dynosim.workload.table import Workload

__all__ = [
    "Workload",
    "describe",
    "get_profile",
    "load_workload",
    "lru_reuse",
    "profile_names",
    "read_trace",
    "reuse_bound",
    "traffic_hash",
]
