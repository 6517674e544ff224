"""Workloads: trace readers, synthetic generators, profiles, arrival processes."""
