"""The live page in a real browser, with every other address than the server's unresolvable."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from browser import dom, needs_chromium


@pytest.fixture(scope="module")
def address(client: Any) -> Iterator[str]:
    """The address at which the app of *client* is served to other processes."""
    server = uvicorn.Server(uvicorn.Config(client.app, host="127.0.0.1", port=0, lifespan="off", log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@needs_chromium
def test_the_live_page_draws_the_frontier_without_any_other_server(
    client: Any, finished: str, address: str, tmp_path: Path
) -> None:
    frontier = client.get(f"/v1/studies/{finished}/frontier").json()
    page = dom(f"{address}/studies/{finished}", tmp_path)
    assert finished in page
    rows = re.search(r'<table id="frontier".*?</table>', page, re.DOTALL)
    assert rows is not None
    drawn = [int(number) for number in re.findall(r'data-trial="(\d+)"', rows.group())]
    assert 0 < len(drawn) == len(set(drawn))
    assert set(drawn) <= {group[0] for group in frontier["groups"]}
    assert page.count('class="point"') >= len(drawn), "Plotly has drawn the trials"
    assert all(f"<td>{mark}</td>" in rows.group() for mark in {trial["evidence"] for trial in frontier["frontier"]})


@needs_chromium
def test_the_list_opens_the_newest_study(finished: str, address: str, tmp_path: Path) -> None:
    page = dom(address + "/", tmp_path)
    assert f'<a href="#{finished}">' in page
    assert "completed: 5/5 trials" in page
    assert f'src="/studies/{finished}"' in page
    assert "<option>tiny</option>" in page


def test_every_page_allows_only_its_own_server(client: Any, finished: str) -> None:
    for path in ("/", "/login", f"/studies/{finished}"):
        page = client.get(path)
        assert page.headers["content-security-policy"].startswith("default-src 'self'; ")
        assert "http" not in page.headers["content-security-policy"]
    assert client.get("/studies/nothing").status_code == 404
