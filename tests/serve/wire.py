"""Clients that speak HTTP as they please, and a server on loopback to speak it to."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from image_encoders.serve.connections import limited
from image_encoders.serve.settings import Settings

PATIENCE = 120.0  # seconds, for what has to happen at some time on a busy machine


class Client:
    """A socket with the few things that tests want of it."""

    def __init__(self, port: int):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._held = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, *, of_head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of the next answer; ConnectionError where none comes."""
        while b"\r\n\r\n" not in self._held:
            self._more()
        head, self._held = self._held.split(b"\r\n\r\n", 1)
        line, *lines = head.decode("latin-1").split("\r\n")
        status = int(line.split(" ")[1])
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        if status == 100:
            return status, headers, b""
        if "content-length" in headers:
            length = 0 if of_head else int(headers["content-length"])
            while len(self._held) < length:
                self._more()
            body, self._held = self._held[:length], self._held[length:]
            return status, headers, body
        if status in (204, 304):
            return status, headers, b""
        body = b""
        while True:
            while b"\r\n" not in self._held:
                self._more()
            size, self._held = self._held.split(b"\r\n", 1)
            while len(self._held) < int(size, 16) + 2:
                self._more()
            part, self._held = self._held[: int(size, 16)], self._held[int(size, 16) + 2 :]
            if not part:
                return status, headers, body
            body += part

    def ended(self) -> bool:
        """Whether the server ends the connection without saying anything more."""
        try:
            return not self._held and self.socket.recv(1 << 16) == b""
        except ConnectionError:
            return True

    def _more(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError(f"the server ended the connection; it had sent {self._held!r}")
        self._held += data

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def request(method: str = "GET", path: str = "/", body: bytes | None = None, **headers: str) -> bytes:
    """A request as bytes; an underscore in a header's name stands for a hyphen."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    if "Host" not in headers:
        lines.append("Host: localhost")
    if body is not None and "Content_Length" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def reason(body: bytes) -> str:
    """What an error's body says, which has the form of every error."""
    found = json.loads(body)
    assert found["error"]["message"] == found["detail"]
    return found["error"]["message"]


def eventually(condition: Callable[[], Any]) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.02)


@contextmanager
def serving(app: Any, settings: Settings | None = None) -> Iterator[uvicorn.Server]:
    """A uvicorn of this process, on a thread, with the service's protocol; `.port` says where."""
    protocol = limited(settings or Settings())
    config = uvicorn.Config(
        app, port=0, http=protocol, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server.port = listener.getsockname()[1]  # type: ignore[attr-defined]
    thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[listener]),))
    thread.start()
    try:
        eventually(lambda: server.started)
        yield server
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
