"""uvicorn's HTTP protocol with additional limits, so that no client can hold a connection forever.

- Headers come within `header_timeout`, as a whole, and are of bounded size and number.
- A body, or the reading of a response, may not pause for `body_timeout`, or be slower than `SLOWEST`.
- Beyond `max_connections`, only probes of health are answered; all others get 503 and a time to retry.
- Invalid HTTP gets a response with a reason, never in the middle of another request's response.
- A request whose client has disconnected is cancelled.
- A response sent before the whole request was read reaches its client: the connection closes only after that.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from image_encoders.api.responses import RequestError, problem
from image_encoders.serve.settings import Settings

MAX_HEAD_BYTES = 128 << 10  # a search's address may hold an embedding of 8,192 numbers twice
MAX_HEADERS = 128
MAX_PIPELINED = 16
SLOWEST = 4096  # bytes/s, below which a body or the reading of an answer that goes on and on is ended
SPARE = 64  # connections beyond the limit that are read, so that they get an answer; those after them are dropped


def limited(settings: Settings, refused: Callable[[int], None] = lambda status: None) -> type[HttpToolsProtocol]:
    """The protocol class for `uvicorn.Config(http=...)` with these limits.

    refused: called with the status of each rejection, which the application does not see
    """
    return type("LimitedConnection", (Connection,), {"settings": settings, "refused": staticmethod(refused)})


class Connection(HttpToolsProtocol):
    """One client's connection."""

    settings: Settings
    refused: Callable[[int], None]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        now = self.loop.time()
        self._app, self.app = self.app, self._serve
        self.ws_protocol_class = None
        self.timeout_keep_alive = self.settings.keep_alive  # type: ignore[assignment]
        self._surplus = len(self.connections) > self.settings.max_connections
        self._requests: deque[RequestResponseCycle] = deque()  # received, and not begun
        self._running: tuple[RequestResponseCycle, asyncio.Task[None]] | None = None
        self._closing = False  # what comes now is not read any more
        self._closed_by: float | None = None  # when the connection ends even if its client does not end it
        # of the request that is being received
        self._head_since: float | None = now  # when its headers began, while they are not complete
        self._head_bytes = 0  # in reads before which they had begun
        self._begun_in_this_read = False
        self._refusal: tuple[int, str, str] | None = None
        self._framing_bytes = 0  # what is neither its headers nor its body
        self._body_bytes = 0
        self._heard = now
        self._listened = 0.0  # seconds in which its body could have come
        # of the answer
        self._unread = 0  # bytes that the client has not taken yet, at the last look
        self._moved = now  # when that changed
        self._given = 0
        self._unread_since = now
        self._pause = min(1.0, min(self.settings.header_timeout, self.settings.body_timeout) / 4)
        self._looked = now
        self._look_again = self.loop.call_later(self._pause, self._look)
        if len(self.connections) > self.settings.max_connections + SPARE:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._look_again.cancel()
        self._unset_keepalive_if_required()
        self._closing = True
        self._requests.clear()
        self.pipeline.clear()
        self._cancel()
        super().connection_lost(exc)

    # What comes

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._heard = now = self.loop.time()
        self._unset_keepalive_if_required()
        if not self._receiving_body() and self._head_since is None:
            self._head_since, self._head_bytes = now, 0
        self._begun_in_this_read = False
        body_bytes, in_head = self._body_bytes, self._head_since is not None
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.cycle.keep_alive = False  # answered as if it had not asked; what follows may be of another protocol
            self._closing = True
        except httptools.HttpParserError as error:
            status, code, message = self._refusal or (400, "invalid_http", f"not a valid HTTP request: {error}")
            self._refuse(status, code, message)
        else:
            if self._head_since is not None:
                self._head_bytes += 0 if self._begun_in_this_read else len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    self._refuse(*TOO_LARGE_HEAD)
            elif not in_head:
                self._framing_bytes += len(data) - (self._body_bytes - body_bytes)
                if self._framing_bytes > MAX_HEAD_BYTES + 16 * self._body_bytes:
                    self._refuse(400, "invalid_http", "the body's chunks are almost all framing and no content")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_since is None:  # it came together with what was before it
            self._head_since, self._head_bytes = self.loop.time(), 0
            self._begun_in_this_read = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_since is not None:  # else a trailer, which is no header of the request
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._refusal = self._objection()
        if self._refusal is not None:
            raise ValueError(self._refusal)
        super().on_headers_complete()
        self._head_since = None
        self._framing_bytes = self._body_bytes = 0
        self._listened, self._heard = 0.0, self.loop.time()
        self.cycle.transport = _Answering(self)  # type: ignore[assignment]
        self._requests.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if not self.pipeline:
            self.flow.resume_reading()  # to see whether the client leaves

    def _objection(self) -> tuple[int, str, str] | None:
        """Why a request is rejected after its headers: proxies and servers might parse it differently."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            return TOO_LARGE_HEAD
        if len(self.pipeline) >= MAX_PIPELINED:  # those are answered, and then the connection ends
            return 429, "too_many_requests", f"more than {MAX_PIPELINED} pipelined requests"
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            return 505, "invalid_http", "HTTP/1.0 and HTTP/1.1 are accepted"
        if not self.url.startswith(b"/"):
            return 400, "invalid_http", "the request target is not a path; it must begin with a slash"
        encodings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if encodings and version == "1.0":
            return 400, "invalid_http", "Transfer-Encoding in HTTP/1.0"
        if encodings not in ([], [b"chunked"]):
            return 501, "invalid_http", "Transfer-Encoding: chunked is accepted, and no other"
        return None

    # What goes

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        cycle, task = self._requests.popleft() if self._requests else None, asyncio.current_task()
        if cycle is None or task is None or cycle.disconnected:
            return
        self._running = cycle, task

        async def early(message: Any) -> None:
            closes = cycle.more_body or self._surplus or not cycle.keep_alive
            if message["type"] == "http.response.start" and closes:
                headers = [header for header in message.get("headers", ()) if header[0].lower() != b"connection"]
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            await send(message)

        try:
            if self._surplus and not scope["path"].startswith("/health/"):
                await self._come_back(early)
            else:
                await self._app(scope, receive, early)
        except asyncio.CancelledError:
            if not cycle.disconnected:
                raise
        finally:
            if self._running is not None and self._running[0] is cycle:
                self._running = None

    async def _come_back(self, send: Any) -> None:
        self.refused(503)
        body = _body(
            503,
            "too_many_connections",
            f"{self.settings.max_connections} connections are open, which is the limit; retry in a second",
        )
        headers = [*JSON, (b"content-length", b"%d" % len(body)), (b"retry-after", b"1")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def on_response_complete(self) -> None:
        if self._closed_by is not None:
            self.pipeline.clear()
        super().on_response_complete()
        if self._closed_by is not None:
            self._unset_keepalive_if_required()

    def close_after_answer(self) -> None:
        """Close, or while the client is still sending, end the response and wait until it has been read.

        Closing with unread bytes would reset the connection and lose the response.
        """
        self._closing = True
        if self.closing:
            return
        if not self.transport.can_write_eof() or not self._receiving():
            self.transport.close()
            return
        self._closed_by = self.loop.time() + self.settings.body_timeout
        self.transport.write_eof()
        self.flow.resume_reading()

    @property
    def closing(self) -> bool:
        return self._closed_by is not None or self.transport.is_closing()

    def write(self, data: bytes) -> None:
        self._given += len(data)
        self.transport.write(data)

    # What takes too long

    def _look(self) -> None:
        now = self.loop.time()
        self._look_again = self.loop.call_later(self._pause, self._look)
        if self._closed_by is not None:
            if now > self._closed_by:
                self.transport.abort()
            return
        self._look_at_what_comes(now)
        self._look_at_what_goes(now)
        self._looked = now

    def _look_at_what_comes(self, now: float) -> None:
        settings = self.settings
        if self._closing or self.transport.is_closing():
            return
        if self._head_since is not None:
            if now - self._head_since > (1.0 if self._surplus else settings.header_timeout):
                if self._head_bytes == 0 and (self.cycle is None or self.cycle.response_complete):
                    self.transport.close()  # it never said anything
                else:
                    self._refuse(
                        408, "timeout", f"the request's headers took longer than {settings.header_timeout:g} s"
                    )
        elif self._receiving_body():
            if self.flow.read_paused or self.cycle.waiting_for_100_continue:  # it is us whom it waits for
                self._heard = now
                return
            self._listened += now - self._looked
            if now - self._heard > settings.body_timeout:
                self._refuse(408, "timeout", f"the request's body paused for more than {settings.body_timeout:g} s")
            elif self._listened > settings.body_timeout + self._body_bytes / SLOWEST:
                self._refuse(408, "timeout", f"the request's body came slower than {SLOWEST} bytes/s")

    def _look_at_what_goes(self, now: float) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread == 0:
            self._unread_since, self._given = now, 0
        if unread == 0 or unread != self._unread:
            self._moved = now
        self._unread = unread
        limit = self.settings.body_timeout
        if now - self._moved > limit or now - self._unread_since > limit + self._given / SLOWEST:
            self.logger.info("dropped a client that does not read its response")
            self.transport.abort()

    def _receiving_body(self) -> bool:
        return self.cycle is not None and self.cycle.more_body and self._head_since is None

    def _receiving(self) -> bool:
        return self._head_since is not None or self._receiving_body()

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Respond to invalid input, after the responses to earlier requests, and read nothing more."""
        self._closing = True
        self._unset_keepalive_if_required()
        newest: RequestResponseCycle | None = self.cycle
        if newest is not None and newest.more_body and self._head_since is None and not newest.response_complete:
            newest.disconnected = True
            if self.pipeline:  # it waits for its turn, which does not come
                self.pipeline.popleft()
                self._requests.pop()
                before = [cycle for cycle, _ in self.pipeline] + list(self._requests)[:1]
                (before + ([self._running[0]] if self._running else []))[0].keep_alive = False
                return
            if newest.response_started:
                self.transport.abort()
                return
            self._cancel()
        elif newest is not None and not newest.response_complete:
            newest.keep_alive = False
            return
        self.refused(status)
        body = _body(status, code, message)
        head = [
            STATUS_LINE[status],
            *(b"%b: %b\r\n" % header for header in [*self.server_state.default_headers, *JSON]),
        ]
        self.write(b"".join([*head, b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body), body]))
        self._head_since = self._head_since or self.loop.time()  # it is not known what it still sends
        self.close_after_answer()

    def _cancel(self) -> None:
        """End the request that is being answered, if one is."""
        if self._running is not None and not self._running[0].response_complete:
            cycle, task = self._running
            cycle.disconnected = True
            cycle.message_event.set()
            task.cancel()


def _body(status: int, code: str, message: str) -> bytes:
    return json.dumps(problem(RequestError(status, message, code=code))).encode()


class _Answering:
    """The connection as a request's answer has it."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self.write = connection.write
        self.close = connection.close_after_answer

    def is_closing(self) -> bool:
        return self._connection.closing


JSON = [(b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff")]
TOO_LARGE_HEAD = (
    431,
    "headers_too_large",
    f"the request's address and headers hold more than {MAX_HEAD_BYTES >> 10} KiB or {MAX_HEADERS} headers",
)
