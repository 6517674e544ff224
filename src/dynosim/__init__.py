"""dynosim maps the Pareto frontier of LLM serving. Independent project, not affiliated with NVIDIA."""

__version__ = "0.1.0"
