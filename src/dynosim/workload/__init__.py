"""Workloads: trace readers, synthetic generators, profiles, arrival processes."""

from dynosim.workload.load import load_workload
from dynosim.workload.table import Workload

__all__ = ["Workload", "load_workload"]
