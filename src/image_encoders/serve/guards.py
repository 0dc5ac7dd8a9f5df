"""What every request passes before a route sees it: whom it claims to call, who calls, and how much it brings.

1. `Host` names this service: an address, localhost, or one of `allowed_hosts`. A page whose own name was made to lead
   here ("DNS rebinding") is refused.
2. `Origin` and `Sec-Fetch-Site`: pages of other sites are refused, unless `cors_origins` names them.
3. A key, where keys are set: `Authorization: Bearer`, `X-API-Key`, or the cookie that `/login` gave.
4. Bytes of the body, of one request and of all together.

Answers get security headers and a request id; the log gets a line for each, without what it held.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from image_encoders.api.responses import RequestError, problem
from image_encoders.errors import ImageEncodersError
from image_encoders.serve import logs
from image_encoders.serve.settings import Settings

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MIN_KEY_CHARS = 16
COOKIE_DAYS = 30
LOGIN_BYTES = 16 << 10
WRONG_KEY_S = 0.5  # how long a wrong key at the login waits for its answer
OPEN = re.compile(r"/health/.*|/login|/page/[^/]*")  # paths that need no key: they say nothing about a collection
OWN_PATH = re.compile(r"/?[A-Za-z][\w.-]*(/[A-Za-z0-9][\w.-]*)*([?#][\x21-\x7e]*)?", re.ASCII)  # no other host
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via")  # what proxies add
LOOPBACK_NAME = re.compile(rb"(localhost|127(\.\d+){3}|\[::1\])\.?(:\d+)?", re.IGNORECASE)
HEADERS = {  # of every answer that does not set its own
    b"content-security-policy": b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"same-origin",  # no-referrer would make the login form's Origin "null"
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"private, no-cache",
}
RELOAD = b'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0"><title>Search</title>'


def check_exposure(settings: Settings) -> None:
    """Raise ImageEncodersError if other machines could use this service without a key, or with a short one."""
    short = [key for key in settings.api_keys if len(key) < MIN_KEY_CHARS or not key.isascii() or not key.isprintable()]
    if short:
        raise ImageEncodersError(
            f"an API key must be at least {MIN_KEY_CHARS} printable ASCII characters; `openssl rand -hex 24` makes one"
        )
    if settings.api_keys or settings.no_auth or is_loopback(settings.host):
        return
    raise ImageEncodersError(
        f"listening on {settings.host or 'all addresses'} lets other machines use this service; set a key with "
        "--api-key, or allow it with --no-auth"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    try:
        found = socket.getaddrinfo(host or None, None, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return all(ipaddress.ip_address(one[4][0]).is_loopback for one in found)


def may_see_paths(scope: Scope, settings: Settings) -> bool:
    """Whether a client may know where files are: one on this machine, no proxy between; any one with --show-paths."""
    if settings.show_paths:
        return True
    headers = dict(scope["headers"])
    if any(name in headers for name in FORWARDED):
        return False
    try:
        address = ipaddress.ip_address(scope["client"][0] if scope.get("client") else "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return mapped.is_loopback and LOOPBACK_NAME.fullmatch(headers.get(b"host", b"")) is not None


class Guards:
    """An application behind the guards."""

    def __init__(self, app: App, settings: Settings):
        self._app, self._settings = app, settings
        self._keys = [key.encode() for key in settings.api_keys]
        self._cookie = b"image-encoders-" + hashlib.sha256(b"\n".join(self._keys)).hexdigest()[:8].encode()
        self._hosts = {name.lower().rstrip(".") for name in (*settings.allowed_hosts, settings.host, "localhost")}
        self._origins = {origin.lower().rstrip("/") for origin in settings.cors_origins}
        self.buffered = 0  # bytes of all bodies whose requests are not answered yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _Passage(self, scope, receive, send).run()
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)

    # The guards, in their order; each raises RequestError.

    async def answer(self, request: _Passage) -> None:
        """Pass a request on, or respond to it here."""
        if request.path.startswith("/health/"):  # probes name this machine as they please
            await self._app(request.scope, request.receive, request.send)
            return
        self._check_host(request)
        if self._check_origin(request):
            await self._answer_preflight(request)
            return
        self._check_size(request)
        if self._keys:
            if request.path == "/login" and request.method == "POST":
                await self._login(request)
                return
            if not OPEN.fullmatch(request.path) and not self._has_key(request):
                await self._ask_for_key(request)
                return
        await self._app(request.scope, request.receive, request.send)

    def _check_host(self, request: _Passage) -> None:
        hosts = request.all(b"host")
        if len(hosts) != 1:
            raise RequestError(400, f"{len(hosts)} Host headers; exactly one is required", code="invalid_http")
        name = _name(hosts[0])
        if name is None:
            raise RequestError(400, "a Host header that is neither a name nor an address", code="invalid_http")
        if "*" not in self._hosts and name not in self._hosts and not _is_address(name):
            raise RequestError(
                421,
                f"requests for the host {name} are not accepted; the option --allowed-host {name} accepts them",
                code="wrong_host",
            )

    def _check_origin(self, request: _Passage) -> bool:
        """Whether this is the preflight request (CORS) of an allowed page."""
        origin = request.one(b"origin")
        if origin is not None:
            allowed = "*" in self._origins or origin.lower() in self._origins
            if allowed:
                request.allowed_origin = "*" if "*" in self._origins else origin
            elif _netloc(origin) != (request.one(b"host") or "").lower():
                raise RequestError(
                    403,
                    f"pages of {origin[:200]!r} may not call this service; --cors-origin allows them",
                    code="wrong_origin",
                )
            return allowed and request.method == "OPTIONS" and bool(request.one(b"access-control-request-method"))
        site = request.one(b"sec-fetch-site")
        opened = request.one(b"sec-fetch-mode") == "navigate" and request.one(b"sec-fetch-dest") == "document"
        if site in ("cross-site", "same-site") and not (opened and request.method in ("GET", "HEAD")):
            raise RequestError(403, "pages of other sites may not call this service", code="wrong_origin")
        return False

    def _check_size(self, request: _Passage) -> None:
        encoding = request.one(b"content-encoding")
        if encoding not in (None, "", "identity"):
            raise RequestError(415, "a compressed body; only uncompressed bodies are accepted", code="content_encoding")
        length = request.one(b"content-length")
        if length is not None and int(length) > self._settings.max_body_bytes:
            raise self.too_large()

    def too_large(self) -> RequestError:
        """The error for a body that is too large."""
        return RequestError(
            413,
            f"the body has more than the {self._settings.max_body_bytes:,} bytes that are accepted",
            code="too_large",
        )

    def take(self, request: _Passage, size: int) -> None:
        """Count received bytes of a body."""
        request.taken += size
        self.buffered += size
        if request.taken > self._settings.max_body_bytes:
            raise self.too_large()
        if self.buffered > self._settings.max_buffered_bytes:
            raise RequestError(
                429,
                f"requests hold more than {self._settings.max_buffered_bytes:,} bytes together; retry in a second",
                code="overloaded",
                headers={"Retry-After": "1"},
            )

    # Keys

    def _has_key(self, request: _Passage) -> bool:
        found = False
        for given in request.given_keys():
            for key in self._keys:  # all of them, always
                found |= _same(given, key)
        for ticket in request.cookies(self._cookie):
            for key in self._keys:
                found |= self._is_valid(ticket, key)
        return found

    def _ticket(self, key: bytes, until: int) -> bytes:
        return b"%d." % until + hmac.new(key, b"image-encoders login %d" % until, "sha256").hexdigest().encode()

    def _is_valid(self, ticket: bytes, key: bytes) -> bool:
        until = ticket.split(b".")[0]
        if not re.fullmatch(rb"[0-9]{1,12}", until) or int(until) < time.time():
            return False
        return hmac.compare_digest(ticket, self._ticket(key, int(until)))

    async def _ask_for_key(self, request: _Passage) -> None:
        """Redirect people to the login, and send programs an error."""
        if request.method in ("GET", "HEAD") and "text/html" in (request.one(b"accept") or ""):
            if request.one(b"sec-fetch-site") == "cross-site":
                # Followed from a page of another site, and so without the cookie that there may be: open it from here.
                await request.reply(200, RELOAD, (b"content-type", b"text/html; charset=utf-8"))
                return
            path = request.raw_path.lstrip("/")
            query = request.scope["query_string"].decode("latin-1")
            target = "../" * path.count("/") + "login?next=" + quote(f"{path}?{query}" if query else path, safe="")
            await request.reply(303, b"", (b"location", target.encode()))
            return
        said = "is not valid" if request.given_keys() else "is missing"
        raise RequestError(
            401,
            f"the key {said}; send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
            code="no_key",
            headers={"WWW-Authenticate": 'Bearer realm="image-encoders"'},
        )

    async def _login(self, request: _Passage) -> None:
        """Set a cookie for a valid key, and redirect to the requested page."""
        body, more = b"", True
        while more:
            message = await request.receive()
            if message["type"] != "http.request":
                return
            body, more = body + message["body"], message["more_body"]
            if len(body) > LOGIN_BYTES:
                raise RequestError(413, f"a login of more than {LOGIN_BYTES:,} bytes", code="too_large")
        try:
            form = parse_qs(body.decode("latin-1"), max_num_fields=8)
        except ValueError as error:
            raise RequestError(400, "a login has the fields `key` and `next`", code="invalid_request") from error
        given = form.get("key", [""])[0].strip().encode()
        target = own_path(form.get("next", [""])[0])
        matching = [key for key in self._keys if _same(given, key)]
        if not matching:
            await asyncio.sleep(WRONG_KEY_S)
            where = f"login?failed=1&next={quote(target, safe='')}"
            await request.reply(303, b"", (b"location", where.encode()))
            return
        ticket = self._ticket(matching[0], int(time.time()) + COOKIE_DAYS * 86_400)
        about = f"; Path=/; Max-Age={COOKIE_DAYS * 86_400}; HttpOnly; SameSite=Strict"
        secure = "; Secure" if request.scope.get("scheme") == "https" else ""
        cookie = self._cookie + b"=" + ticket + (about + secure).encode()
        await request.reply(303, b"", (b"location", target.encode()), (b"set-cookie", cookie))

    async def _answer_preflight(self, request: _Passage) -> None:
        await request.reply(
            204,
            b"",
            (b"access-control-allow-methods", b"GET, HEAD, POST"),
            (b"access-control-allow-headers", b"authorization, content-type, x-api-key, x-request-id"),
            (b"access-control-max-age", b"600"),
        )


class _Passage:
    """One request on its way, and its answer on the way back."""

    def __init__(self, guards: Guards, scope: Scope, receive: Receive, send: Send):
        self._guards, self.scope, self._receive, self._send = guards, scope, receive, send
        self.method, self.path = scope["method"], scope["path"]
        self.raw_path = scope.get("raw_path", b"").decode("latin-1") or quote(self.path)
        self.id = next((one for one in self.all(b"x-request-id") if REQUEST_ID.fullmatch(one)), b"").decode()
        self.id = self.id or secrets.token_hex(8)
        self.allowed_origin: str | None = None
        self.taken = 0
        self._status: int | None = None
        self._sent = 0
        self._complete = False
        self._left = False
        self._over = False  # answered by a guard while the application was at it: it is not listened to any more

    async def run(self) -> None:
        began = time.monotonic()
        token = logs.request_id.set(self.id)
        self.scope["request_id"] = self.id
        try:
            await self._guards.answer(self)
        except RequestError as refused:
            await self._refuse(refused)
        except asyncio.CancelledError:
            self._left = True
            raise
        except Exception as error:
            log.error("a request failed", exc_info=error)
            if self._status is None:
                message = "the request failed inside the service; its log says why"
                await self._refuse(RequestError(500, message, code="internal"))
            elif not self._complete:
                raise _Broken from None  # the connection ends, which is all that can still be said
        finally:
            self._guards.buffered -= self.taken
            self._write_down(time.monotonic() - began)
            logs.request_id.reset(token)

    async def receive(self) -> Message:
        if self._over:
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._left = self._status is None
        else:
            try:
                self._guards.take(self, len(message.get("body", b"")))
            except RequestError as refused:  # not raised through the application, which may take it for its own
                if self._status is None:
                    await self._refuse(refused)
                self._over = True
                return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        if self._over:
            return
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message = {**message, "headers": self._headers(list(message.get("headers", ())))}
        else:
            self._sent += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
        await self._send(message)

    async def reply(self, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        """A complete response."""
        headers = (*headers, (b"content-length", b"%d" % len(body))) if status != 204 else headers
        await self.send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await self.send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def _refuse(self, refused: RequestError) -> None:
        body = json.dumps(problem(refused, self.id)).encode()
        headers = [(name.lower().encode(), value.encode()) for name, value in refused.headers.items()]
        await self.reply(refused.status, body, (b"content-type", b"application/json"), *headers)

    def _headers(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        there = {name.lower() for name, _ in headers}
        headers += [(name, value) for name, value in HEADERS.items() if name not in there]
        headers.append((b"x-request-id", self.id.encode()))
        if self.allowed_origin is not None:
            exposed = b"retry-after, server-timing, x-encoder, x-encoder-fingerprint, x-request-id"
            headers.append((b"access-control-allow-origin", self.allowed_origin.encode("latin-1")))
            headers.append((b"access-control-expose-headers", exposed))
            headers.append((b"vary", b"origin"))
        return headers

    def _write_down(self, seconds: float) -> None:
        client = self.scope.get("client")
        status: int | str = "left" if self._left or self._status is None else self._status
        quiet = self.path.startswith("/health/") and status == 200
        fields = {
            "status": status,
            "ms": round(1000 * seconds, 1),
            "bytes_in": self.taken,
            "bytes_out": self._sent,
            "client": client[0] if client else "",
        }
        level = logging.DEBUG if quiet else logging.INFO
        log.log(level, "%s %s", self.method, self.raw_path[:200], extra={"fields": fields})

    # What its headers say

    def all(self, name: bytes) -> list[bytes]:
        return [value for found, value in self.scope["headers"] if found == name]

    def one(self, name: bytes) -> str | None:
        return next((value.decode("latin-1") for value in self.all(name)), None)

    def given_keys(self) -> list[bytes]:
        bearers = [value[7:].strip() for value in self.all(b"authorization") if value[:7].lower() == b"bearer "]
        return bearers + self.all(b"x-api-key")

    def cookies(self, name: bytes) -> list[bytes]:
        pairs = [pair.strip().partition(b"=") for value in self.all(b"cookie") for pair in value.split(b";")]
        return [value for found, _, value in pairs if found == name]


class _Broken(Exception):
    """An answer that cannot be ended."""


def _same(given: bytes, key: bytes) -> bool:
    """Whether they are equal, in constant time."""
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(key).digest())


def _name(host: bytes) -> str | None:
    """The name or address in a Host header, in lower case, without its port; None if it is neither."""
    found = re.fullmatch(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?", host)
    return found[1].decode().lower().rstrip(".").strip("[]") if found else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _netloc(origin: str) -> str:
    """host:port of an origin; "" of what is none, such as "null"."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def own_path(target: str) -> str:
    """A path of this service, whatever target a login form contains."""
    if OWN_PATH.fullmatch(target):
        return target
    return "search"
