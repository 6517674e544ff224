"""Imports BoTorch the way the library does, so that its deprecation warnings do not fail the collection of tests."""

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits

import dynosim.search.samplers.botorch_api  # noqa: F401


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Two threads on these small matrices are several times slower than one."""
    with threadpool_limits(1):
        yield
