"""What the tests of the service share: one that runs as a process of its own, with the bundled model."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from service_process import Server, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A service of clip/demo in float32 that all tests of a session share; see service_process.py."""
    with serving() as one:
        yield one


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of that service."""
    with server.client() as one:
        yield one
