"""What clients do with connections: they are slow, they stop, they lie, they leave; and what comes of it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from wire import Client, eventually, reason, request, serving

from image_encoders.serve.connections import MAX_PIPELINED, SPARE
from image_encoders.serve.settings import Settings

QUICK = Settings(header_timeout=1.0, body_timeout=1.5, keep_alive=1.0)
PATIENT = Settings(header_timeout=600, body_timeout=600, keep_alive=600)
TEXT = [(b"content-type", b"text/plain")]


class App:
    """An application whose paths behave in different ways."""

    def __init__(self) -> None:
        self.begun = self.done = self.cancelled = 0
        self.go = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun += 1
        try:
            await getattr(self, scope["path"].strip("/").replace("/", "_") or "echo")(scope, receive, send)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.done += 1

    async def echo(self, scope: Any, receive: Any, send: Any) -> None:
        """What came: the body's length, and the names of the headers."""
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size, more = size + len(message["body"]), message["more_body"]
        names = b",".join(name for name, _ in scope["headers"])
        await self.answer(send, b"%d %b %b" % (size, scope["path"].encode(), names))

    async def early(self, scope: Any, receive: Any, send: Any) -> None:
        await self.answer(send, b"not wanted", 413)

    async def wait(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer when the whole request was read and the test says so."""
        while (await receive())["more_body"]:
            pass
        while not self.go.is_set():
            await asyncio.sleep(0.01)
        await self.answer(send, b"waited")

    async def large(self, scope: Any, receive: Any, send: Any) -> None:
        await self.answer(send, bytes(32 << 20))

    async def health_live(self, scope: Any, receive: Any, send: Any) -> None:
        await self.answer(send, b"alive")

    async def answer(self, send: Any, body: bytes, status: int = 200) -> None:
        headers = [*TEXT, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def quick(app: App) -> Iterator[uvicorn.Server]:
    with serving(app, QUICK) as server:
        yield server


@pytest.fixture
def patient(app: App) -> Iterator[uvicorn.Server]:
    with serving(app, PATIENT) as server:
        yield server


@pytest.fixture(scope="module")
def shared() -> Iterator[uvicorn.Server]:
    with serving(App(), PATIENT) as server:
        yield server


def works(server: uvicorn.Server) -> bool:
    with Client(server.port) as client:
        client.send(request())
        return client.answer()[0] == 200


def drip(client: Client, data: bytes, every: float, seconds: float = 20) -> None:
    """Send byte after byte, until the server has had enough."""
    until = time.monotonic() + seconds
    client.socket.settimeout(every)
    for byte in data:
        if time.monotonic() > until:
            break
        try:
            client.socket.sendall(bytes([byte]))
            if client.socket.recv(1, socket.MSG_PEEK) is not None:
                break  # it has said something, or left
        except TimeoutError:
            pass
        except ConnectionError:
            break
    client.socket.settimeout(30)


def test_requests_on_one_connection_are_answered_in_turn(patient: uvicorn.Server) -> None:
    with Client(patient.port) as client:
        for size in (0, 1, 100_000, 3_000_000):
            client.send(request("POST", body=bytes(size)))
            status, headers, body = client.answer()
            assert (status, body.split()[0]) == (200, b"%d" % size)
            assert "connection" not in headers


def test_headers_have_to_come_in_time_however_steadily_they_drip(quick: uvicorn.Server) -> None:
    with Client(quick.port) as client:
        drip(client, b"GET / HTTP/1.1\r\nX: " + b"x" * 1000, every=0.05)
        status, headers, body = client.answer()
        assert (status, headers["connection"]) == (408, "close")
        assert "1 s" in reason(body)
        assert client.ended()
    assert works(quick)


def test_a_connection_on_which_nothing_ever_comes_is_closed(quick: uvicorn.Server) -> None:
    with Client(quick.port) as client:
        assert client.ended()


def test_empty_lines_do_not_keep_a_connection_open(quick: uvicorn.Server) -> None:
    with Client(quick.port) as client:
        drip(client, b"\r\n" * 1000, every=0.05)
        assert client.answer()[0] == 408


def test_an_idle_connection_is_closed_and_so_is_one_that_begins_its_next_request_slowly(quick: uvicorn.Server) -> None:
    with Client(quick.port) as client:
        client.send(request())
        assert client.answer()[0] == 200
        assert client.ended()
    with Client(quick.port) as client:
        client.send(request())
        assert client.answer()[0] == 200
        client.send(b"GET /")
        assert client.answer()[0] == 408


def test_a_body_must_not_pause(quick: uvicorn.Server, app: App) -> None:
    with Client(quick.port) as client:
        client.send(request("POST", Content_Length="1000") + b"part")
        status, _, body = client.answer()
        assert status == 408
        assert "1.5 s" in reason(body)
    eventually(lambda: app.cancelled == 1)
    assert works(quick)


def test_a_body_that_drips_for_ever_is_ended(quick: uvicorn.Server) -> None:
    with Client(quick.port) as client:
        client.send(request("POST", Transfer_Encoding="chunked"))
        drip(client, b"1\r\nx\r\n" * 1000, every=0.05)
        status, _, body = client.answer()
        assert status == 408
        assert "4096 bytes/s" in reason(body)


def test_a_server_that_takes_its_time_to_read_or_answer_is_no_reason_to_end_a_request(
    quick: uvicorn.Server, app: App
) -> None:
    with Client(quick.port) as client:
        client.send(request("POST", "/wait", bytes(1000)))
        time.sleep(3)
        app.go.set()
        assert client.answer()[::2] == (200, b"waited")


def test_whoever_does_not_read_the_answer_is_dropped(quick: uvicorn.Server, app: App) -> None:
    with Client(quick.port) as client:
        client.send(request(path="/large"))
        eventually(lambda: app.begun == 1)
        eventually(lambda: not quick.server_state.connections)
    assert works(quick)


def test_an_answer_that_comes_before_the_end_of_the_body_reaches_its_client(patient: uvicorn.Server) -> None:
    with Client(patient.port) as client:
        client.send(request("POST", "/early", Content_Length=str(64 << 20)))
        try:
            for _ in range(64):
                client.send(bytes(1 << 20))
        except ConnectionError:
            pytest.fail("the connection was reset before the answer was read")
        status, headers, body = client.answer()
        assert (status, headers["connection"], body) == (413, "close", b"not wanted")
        assert client.ended()


def test_a_client_that_never_ends_its_refused_body_does_not_keep_its_connection(quick: uvicorn.Server) -> None:
    with Client(quick.port) as client:
        client.send(request("POST", "/early", Transfer_Encoding="chunked"))
        assert client.answer()[0] == 413

        def refused() -> bool:
            try:
                client.send(b"1\r\nx\r\n")
            except ConnectionError:
                return True
            return False

        eventually(refused)


def test_a_body_is_asked_for_where_the_client_waits_for_that(patient: uvicorn.Server) -> None:
    with Client(patient.port) as client:
        client.send(request("POST", Content_Length="4", Expect="100-continue"))
        assert client.answer()[0] == 100
        client.send(b"body")
        assert client.answer()[2].startswith(b"4 ")
    with Client(patient.port) as client:
        client.send(request("POST", "/early", Content_Length="4", Expect="100-continue"))
        assert client.answer()[0] == 413
        assert client.ended()


def test_the_request_of_a_client_that_left_is_cancelled(patient: uvicorn.Server, app: App) -> None:
    for size in (0, 10, 100_000, 1_000_000):
        app.begun = app.cancelled = 0
        with Client(patient.port) as client:
            client.send(request("POST", "/wait", bytes(size)))
            eventually(lambda: app.begun == 1)
        eventually(lambda: app.cancelled == 1)
    eventually(lambda: not patient.server_state.connections and not patient.server_state.tasks)
    assert works(patient)


def test_the_request_of_a_client_that_left_in_the_midst_of_its_body_is_cancelled(
    patient: uvicorn.Server, app: App
) -> None:
    with Client(patient.port) as client:
        client.send(request("POST", Content_Length="1000") + b"part")
        eventually(lambda: app.begun == 1)
    eventually(lambda: app.cancelled == 1)
    assert works(patient)


def test_a_client_that_says_that_it_sends_no_more_has_left(patient: uvicorn.Server, app: App) -> None:
    with Client(patient.port) as client:
        client.send(request("POST", Content_Length="1000") + b"part")
        client.socket.shutdown(socket.SHUT_WR)
        assert client.ended()
    assert works(patient)


def test_pipelined_requests_are_answered_in_order(patient: uvicorn.Server) -> None:
    with Client(patient.port) as client:
        client.send(b"".join(request("POST", body=bytes(i)) for i in range(MAX_PIPELINED)))
        assert [client.answer()[2].split()[0] for _ in range(MAX_PIPELINED)] == [
            b"%d" % i for i in range(MAX_PIPELINED)
        ]


def test_a_flood_of_pipelined_requests_ends_with_the_connection(patient: uvicorn.Server, app: App) -> None:
    with Client(patient.port) as client:
        client.send(request("GET", "/wait"))
        eventually(lambda: app.begun == 1)
        client.send(request() * 4000)
        app.go.set()
        for _ in range(MAX_PIPELINED + 1):
            assert client.answer()[0] == 200
        assert client.ended()
    assert app.begun == MAX_PIPELINED + 1


def test_nonsense_after_a_request_waits_for_its_answer(patient: uvicorn.Server, app: App) -> None:
    with Client(patient.port) as client:
        client.send(request("POST", "/wait", b"body") + b"\x00 nonsense")
        eventually(lambda: app.begun == 1)
        app.go.set()
        assert client.answer()[::2] == (200, b"waited")
        assert client.ended()
    with Client(patient.port) as client:
        client.send(request() + request("POST", Transfer_Encoding="chunked") + b"nonsense")
        assert client.answer()[0] == 200
        assert client.ended()


HOST = b"Host: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        (400, b"\x16\x03\x01\x02\x00\x01"),  # TLS
        (400, b"nonsense\r\n\r\n"),
        (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        (505, b"GET / HTTP/2.0\r\n" + HOST + b"\r\n"),
        (505, b"GET / HTTP/0.9\r\n" + HOST + b"\r\n"),
        (400, b"GET http://localhost/ HTTP/1.1\r\n" + HOST + b"\r\n"),
        (400, b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n"),
        (400, b"CONNECT localhost:443 HTTP/1.1\r\n" + HOST + b"\r\n"),
        (400, b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n"),
        (400, b"GET / HTTP/1.1\n" + b"Host: localhost\n\n"),
        (400, b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n folded\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\n" + HOST + b"X: a\rY: b\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\n" + HOST + b"X : a\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\n" + CHUNKED + b"\r\n0\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + b"Content-Length: 4\r\n\r\n0\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nbodyx"),
        (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 4, 4\r\n\r\nbody"),
        (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +4\r\n\r\nbody"),
        (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -4\r\n\r\nbody"),
        (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0x4\r\n\r\nbody"),
        (400, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999999999999\r\n\r\nbody"),
        (501, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        (501, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        (501, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n" + CHUNKED + b"\r\n0\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n"),
        (400, b"POST / HTTP/1.0\r\n" + HOST + CHUNKED + b"\r\n0\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\nzz\r\nbody\r\n0\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\nffffffffffffffffff\r\nbody"),
        (400, b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n1\r\nab0\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n1\na\n0\n\n"),
        (431, b"GET /" + b"x" * (200 << 10) + b" HTTP/1.1\r\n" + HOST + b"\r\n"),
        (431, b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * (200 << 10) + b"\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 200 + b"\r\n"),
        (431, b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * (2 << 20)),
        (431, b"GET / HTTP/1.1\r\n" + b"x" * (2 << 20)),
    ],
)
def test_what_proxies_could_read_differently_is_refused_and_nothing_after_it_is_read(
    shared: uvicorn.Server, status: int, sent: bytes
) -> None:
    with Client(shared.port) as client:
        client.send(sent + request(path="/large"))
        found, headers, body = client.answer()
        assert (found, headers["connection"], headers["content-type"]) == (status, "close", "application/json")
        assert reason(body)
        assert client.ended()
    assert works(shared)


@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
def test_a_wish_for_another_protocol_is_not_fulfilled(patient: uvicorn.Server, upgrade: str) -> None:
    for method, body in (("GET", None), ("POST", b"body")):
        with Client(patient.port) as client:
            client.send(request(method, "/", body, Connection="Upgrade", Upgrade=upgrade) + request())
            status, headers, _ = client.answer()
            assert (status, headers["connection"]) == (200, "close")
            assert client.ended()


def test_trailers_are_no_headers_and_cannot_go_on_for_ever(patient: uvicorn.Server) -> None:
    with Client(patient.port) as client:
        client.send(request("POST", Transfer_Encoding="chunked") + b"4\r\nbody\r\n0\r\nX-Api-Key: a\r\n\r\n")
        status, _, body = client.answer()
        assert status == 200
        assert body == b"4 / transfer-encoding,host"
    for endless in (b"0\r\nX: " + b"x" * (1 << 20), b"1;" + b"x" * (1 << 20), b"0\r\n" + b"X: y\r\n" * 100_000):
        with Client(patient.port) as client:
            client.send(request("POST", Transfer_Encoding="chunked"))
            client.send(endless)
            assert client.answer()[0] == 400
    assert works(patient)


def test_chunks_of_one_byte_are_a_body_too(patient: uvicorn.Server) -> None:
    with Client(patient.port) as client:
        client.send(request("POST", Transfer_Encoding="chunked") + b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n")
        assert client.answer()[2].startswith(b"100000 ")


def test_beyond_the_most_connections_only_health_is_answered(app: App) -> None:
    settings = Settings(max_connections=3, header_timeout=600, body_timeout=600, keep_alive=600)
    with serving(app, settings) as server:
        clients = [Client(server.port) for _ in range(3)]
        eventually(lambda: len(server.server_state.connections) == 3)
        with Client(server.port) as client:
            client.send(request())
            status, headers, body = client.answer()
            assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
            assert "3 connections" in reason(body)
        with Client(server.port) as client:
            client.send(request(path="/health/live"))
            status, headers, body = client.answer()
            assert (status, headers["connection"], body) == (200, "close", b"alive")
            assert client.ended()
        for client in clients:
            client.send(request())
            assert client.answer()[0] == 200
            client.socket.close()
        eventually(lambda: not server.server_state.connections)
        assert works(server)


def test_far_beyond_the_most_connections_they_are_dropped(app: App) -> None:
    with serving(app, Settings(max_connections=3)) as server:
        clients = [Client(server.port) for _ in range(3 + SPARE + 5)]
        assert sum(client.ended() for client in clients[-5:]) == 5
        for client in clients:
            client.socket.close()
        eventually(lambda: not server.server_state.connections)
        assert works(server)
