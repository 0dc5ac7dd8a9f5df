"""The service without models, and what it counts."""

from __future__ import annotations

import asyncio
import socket
import time
from types import SimpleNamespace
from unittest.mock import Mock
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from service_process import Server

from image_encoders.batching import Embedded
from image_encoders.serve.app import create_app
from image_encoders.serve.metrics import Metrics
from image_encoders.serve.recipe import Recipe
from image_encoders.serve.server import serve
from image_encoders.serve.service import Service
from image_encoders.serve.settings import Settings
from image_encoders.serve.towers import TowerQueue


def test_a_service_without_a_model_is_not_ready() -> None:
    service = Service(Settings(), [])
    assert not service.ready
    answer = TestClient(create_app(service)).get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "not ready: the model is being loaded"


def test_only_images_count_as_images() -> None:
    metrics = Metrics()
    for modality in ("image", "text", "audio"):
        metrics.embedded("clip/demo", modality, Embedded(np.zeros(2, np.float32), 0.0, 0.0, 0.0))
    assert metrics.last_minute()["images_per_second"] == 1 / 60


@pytest.mark.parametrize(("idle_s", "canaries"), [(0.0, 0), (60.0, 1)])
def test_a_canary_is_sent_only_where_no_answer_has_just_proved_as_much(idle_s: float, canaries: int) -> None:
    worker = SimpleNamespace(proved=time.monotonic() - idle_s, try_canary=Mock())
    settings = Settings(canary_every=60.0, stuck_after=600.0)

    async def watch() -> None:
        tower = TowerQueue(Recipe("clip/demo", "clip/demo", {}), "image", settings)
        watching = asyncio.create_task(tower._watch(worker))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        watching.cancel()

    asyncio.run(watch())
    assert worker.try_canary.call_count == canaries


def test_an_answer_does_not_wait_until_its_beginning_is_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    set_on: list[int] = []

    async def listen(self: object, sockets: list[socket.socket]) -> None:
        set_on.append(sockets[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr("uvicorn.Server.serve", listen)
    serve(Service(Settings(port=0), []), print)
    assert len(set_on) == 1
    assert set_on[0] != 0


def test_what_is_refused_before_a_route_sees_it_is_counted(server: Server, client: httpx.Client) -> None:
    assert client.get("/docs", headers={"Host": "evil.example"}).status_code == 421
    where = urlsplit(server.url)
    with socket.create_connection((where.hostname, where.port), timeout=60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 431 ")
    counted = client.get("/metrics").text
    for method, status in (("GET", 421), ("OTHER", 431)):
        assert f'requests_total{{method="{method}",route="none",status="{status}"}}' in counted
