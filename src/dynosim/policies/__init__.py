"""Policies a user may replace: one class per file, seen through frozen views."""
