"""The report as one page: the same template stands alone with its data inside, or follows a running study.

Everything is inline, Plotly's script from the installed wheel included, so the page works with the network off.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dynosim.report.analysis import data
from dynosim.report.timeline import timelines

if TYPE_CHECKING:
    from pathlib import Path

    from jinja2 import Environment

    from dynosim.search.study import Study


def html(study: Study, provenance: dict[str, Any] | None = None, run_dir: Path | None = None) -> str:
    """Return the page of *study* with its data embedded; *provenance* goes into the footer.

    *run_dir* is where the study's files lie: commands on the page name it.
    """
    return page({**data(study, run_dir), "timelines": timelines(study), "provenance": provenance or {}}, None)


def page(data: dict[str, Any] | None, live_url: str | None) -> str:
    """Return the page for embedded *data*, or one that follows the running study at *live_url*.

    ``<live_url>/page`` answers with ``report.data(study)`` and a ``state``; while that is ``running`` the page asks
    again with every server-sent event of ``<live_url>/events``.
    """
    from plotly.offline import get_plotlyjs

    # "<" would let a value end the script element.
    embedded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    title = data["space"] if data else "live study"
    template = _templates().get_template("report.html")
    return template.render(title=title, data=embedded, live_url=live_url, plotly=get_plotlyjs())


@lru_cache(maxsize=1)
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader

    return Environment(loader=PackageLoader("dynosim.report"), autoescape=True)
