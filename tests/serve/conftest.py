"""What the tests of the service share: one that runs as a process of its own, with the bundled model."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from service_process import Server, serving

from image_encoders.encoder import Encoder
from image_encoders.models import load


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


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """The same model in this process: what the service's embeddings are compared with."""
    return load("clip/demo", precision="float32")
