"""Runs: what the command line, Python and the service call, a module per job.

``study`` searches a space and leaves a run behind, or opens one for others to evaluate; ``directory`` says what a run
is on disk, finds it, and keeps two processes out of it; ``keeper`` writes down how it ends; ``predict`` simulates one
configuration; ``spaces`` reads what either is given.
"""
