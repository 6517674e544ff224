"""What a study leaves for people: files, a terminal summary and one page that explains the frontier.

It reads a finished (or running) ``Study`` and never changes it. Left out: Kubernetes manifests and what a real
measurement would say; every number here is simulated.
"""

from dynosim.report.analysis import data
from dynosim.report.files import write
from dynosim.report.html import html, page
from dynosim.report.launch import launch_script

__all__ = ["data", "html", "launch_script", "page", "write"]
