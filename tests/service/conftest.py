"""A service in this process whose studies run in real worker processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from dynosim.service import create_app

FAST = ["workload.source.requests=60", "workload.warmup_requests=0", "optimizer.sampler=random", "optimizer.workers=1"]
WAIT_S = 120.0


class ServiceClient(TestClient):
    """A client of a fresh app; entering it starts the runner."""

    def __init__(self, runs_dir: Path, **options: Any) -> None:
        super().__init__(create_app(runs_dir, **options), base_url="http://127.0.0.1")

    def submit(self, trials: int, space: str = "tiny") -> str:
        """Submit a quick study and return its id."""
        answer = self.post("/v1/studies", json={"space": space, "trials": trials, "overrides": FAST})
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"] == f"/v1/studies/{answer.json()['id']}"
        return str(answer.json()["id"])

    def wait_for(self, study_id: str, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the status of the study once it is as wished; fail after WAIT_S."""
        end_s = time.monotonic() + WAIT_S
        while not reached(status := self.get(f"/v1/studies/{study_id}").json()):
            assert time.monotonic() < end_s, status
            time.sleep(0.05)
        return status  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def make_client() -> type[ServiceClient]:
    """The class of clients, for tests that need a service of their own."""
    return ServiceClient


@pytest.fixture(scope="session")
def fast() -> list[str]:
    """Overrides that make a trial quick."""
    return FAST


@pytest.fixture(autouse=True, scope="module")
def _untracked() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYNOSIM_TRACKING", "off")
        yield


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceClient]:
    """A service for the tests that start no study of their own."""
    with ServiceClient(tmp_path_factory.mktemp("runs")) as client:
        yield client


@pytest.fixture(scope="session")
def finished(client: ServiceClient) -> str:
    """The id of a study of five trials that has run in *client*: one for all tests, since a process takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYNOSIM_TRACKING", "off")
        study_id = client.submit(trials=5)
        status = client.wait_for(study_id, lambda s: s["state"] in ("completed", "failed"))
    assert status["state"] == "completed", status
    return study_id
