"""Autoscaling policies of the fast loop, one per file; the file's name is the policy's name."""
