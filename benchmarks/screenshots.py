"""Renew the pictures of the report and of MLflow in docs/images: search, start MLflow's server, look with Chromium.

    pip install playwright && python benchmarks/screenshots.py

takes a minute. The Assistant panel that MLflow opens on its first page is closed, as a reader would.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from mlflow import MlflowClient

import dynosim
from dynosim.run.directory import find_run
from dynosim.tracking import views
from dynosim.tracking.ui import latest_study

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PORT = 5057
REPORT = {"width": 1400, "height": 1560}
"""As much of the report as README shows: picks, sliders, scatter and the pinned trial."""


def main() -> None:
    """Search in a folder of its own, or look at the last study of RUNS_DIR, and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs-dir", type=Path, help="where a study is already (default: search llama70b)")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        runs_dir = args.runs_dir or Path(folder)
        if args.runs_dir is None:
            dynosim.optimize("llama70b", runs_dir=runs_dir)
        uri = f"sqlite:///{runs_dir.resolve() / 'mlflow.db'}"
        with _server(uri) as address, _browser(args.chromium) as page:
            for name, link, awaited in _pictures(uri):
                _shoot(page, f"{address}/{link}", awaited, IMAGES / f"mlflow_{name}.png")
            report = find_run("last", runs_dir).resolve() / "report.html"
            page.set_viewport_size(REPORT)
            _shoot(page, report.as_uri(), ".js-plotly-plot", IMAGES / "llama70b.png")


def _pictures(uri: str) -> list[tuple[str, str, str]]:
    """Return name, link and what is awaited on the page."""
    study = latest_study(MlflowClient(uri))
    assert study is not None
    experiment_id, run_id, study_id = study
    charts = [
        (view, views.view_link(experiment_id, study_id, view), ".js-plotly-plot, .parcoords") for view in views.CHARTS
    ]
    return [
        ("trials", views.view_link(experiment_id, study_id, views.TRIALS), ".ag-row"),
        *charts,
        ("study", views.run_link(experiment_id, run_id), "text=Pareto frontier of"),
    ]


@contextmanager
def _server(uri: str) -> Iterator[str]:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--port", str(PORT)]
    with subprocess.Popen([*command, "--workers", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        address = f"http://127.0.0.1:{PORT}"
        try:
            _wait_for(address)
            yield address
        finally:
            server.terminate()


def _wait_for(address: str, timeout_s: float = 180.0) -> None:
    end = time.monotonic() + timeout_s
    while True:
        try:
            urlopen(address)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
        else:
            return


@contextmanager
def _browser(executable: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1440, "height": 810})
        page.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
        yield page
        browser.close()


def _shoot(page: Any, url: str, awaited: str, path: Path) -> None:
    page.goto("about:blank")  # links into one page differ in their fragment only, which loads nothing
    page.goto(url, timeout=180_000)
    page.locator(awaited).first.wait_for(timeout=180_000)
    page.wait_for_timeout(3000)  # what moves has settled
    page.screenshot(path=path)
    print(f"{path}  {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
