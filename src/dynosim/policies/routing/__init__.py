"""Routers, one per file; the file's name is the policy's name."""
