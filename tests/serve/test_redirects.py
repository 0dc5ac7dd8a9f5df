"""A public server that redirects to addresses inside: the service follows it there in no spelling."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import ClassVar
from urllib.parse import unquote

import pytest
from fastapi.testclient import TestClient

from image_encoders.inputs import urls
from image_encoders.serve.app import create_app
from image_encoders.serve.service import Service
from image_encoders.serve.settings import Settings

OUTSIDE = "127.0.0.9"  # passes for a public address
INSIDE = [
    *("127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0.0.0.0"),
    *("[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]"),
    *("169.254.169.254", "[fe80::1]", "[fd00:ec2::254]", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1"),
]


class Redirecting(BaseHTTPRequestHandler):
    """Sends each request on to what stands after the question mark, and keeps where it was asked."""

    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.seen.append(str(self.server.server_address[0]))
        target = unquote(self.path.partition("?")[2])
        self.send_response(302 if target else 200)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def listening(address: str) -> Iterator[int]:
    with ThreadingHTTPServer((address, 0), Redirecting) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_redirect_to_an_address_inside_is_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    real = urls._public
    monkeypatch.setattr(urls, "_public", lambda address: address == OUTSIDE or real(address))
    tower = SimpleNamespace(admit=lambda: None)
    served = SimpleNamespace(name="m", dim=2, fingerprint="0", modalities=("image",), tower=lambda _: tower)
    service = Service(Settings(urls=True), [])
    monkeypatch.setattr(service, "model", lambda name=None: served)
    with listening(OUTSIDE) as outside, listening("127.0.0.1") as inside:
        at = [f"http://{OUTSIDE}:{outside}/?http://{place}:{inside}/secret" for place in INSIDE]
        answer = TestClient(create_app(service)).post("/v1/embeddings", json={"input": [{"url": one} for one in at]})
    assert answer.status_code == 422
    found = answer.json()["items"]
    assert [one["index"] for one in found] == list(range(len(INSIDE)))
    assert {one["code"] for one in found} == {"url"}
    assert all("public" in one["message"] or "could not be fetched" in one["message"] for one in found), found
    assert Redirecting.seen == [OUTSIDE] * len(INSIDE)
